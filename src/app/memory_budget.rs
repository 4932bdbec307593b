//! The memory that models and caches may take together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// Bytes for weights, KV caches and caches, of which some are reserved for what is never unloaded: the caches, the
/// embedding model and the reranker. Chat models share the rest.
pub struct MemoryBudget {
    max_bytes: u64,
    reserved_bytes: AtomicU64,
    /// Unloads idle chat models that no longer fit.
    make_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// The next step to fit a model into the budget.
#[derive(Debug, PartialEq, Eq)]
pub enum BudgetStep {
    /// The model fits.
    Fits,
    /// Evict the model of this index first.
    Evict(usize),
    /// No model can be evicted, because all are in use.
    AllInUse,
}

/// A chat model's share of the memory.
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    /// Bytes of its weights and its KV cache; none while it is not in memory.
    pub n_bytes: u64,
    /// How long no request has used the model; `None` while one does, or while it is not in memory.
    pub idle: Option<Duration>,
}

impl MemoryBudget {
    /// A budget of `max_bytes`; `None` is unlimited.
    pub fn new(max_bytes: Option<u64>) -> Arc<Self> {
        let (reserved_bytes, make_room) = (AtomicU64::new(0), OnceLock::new());
        Arc::new(Self { max_bytes: max_bytes.unwrap_or(u64::MAX), reserved_bytes, make_room })
    }

    /// Sets what unloads idle chat models when more memory is reserved.
    pub fn on_shortage(&self, make_room: Box<dyn Fn() + Send + Sync>) {
        // The chat models of a server are created once.
        let _ = self.make_room.set(make_room);
    }

    /// Reserves memory for `what`, for good. Idle chat models are unloaded if they leave too little.
    ///
    /// # Errors
    /// When it does not fit beside what else is reserved.
    pub fn reserve(&self, what: &str, n_bytes: u64) -> Result<()> {
        let reserved = self.reserved_bytes.fetch_add(n_bytes, Ordering::AcqRel);
        if reserved.saturating_add(n_bytes) > self.max_bytes {
            self.reserved_bytes.fetch_sub(n_bytes, Ordering::AcqRel);
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "there is no memory for {what} ({n_bytes} bytes): {reserved} bytes of the budget of {} are taken; \
                     raise --memory-budget, or use a smaller model or smaller caches",
                    self.max_bytes
                ),
            ));
        }
        if let Some(make_room) = self.make_room.get() {
            make_room();
        }
        Ok(())
    }

    /// The bytes that chat models may take together.
    pub fn for_chat(&self) -> u64 {
        self.max_bytes.saturating_sub(self.reserved_bytes.load(Ordering::Acquire))
    }

    /// Decides the next step to fit in `n_bytes` more of chat models. The model that has been idle longest is evicted
    /// first.
    pub fn next_step(&self, residents: &[Resident], n_bytes: u64) -> BudgetStep {
        let n_used: u64 = residents.iter().map(|resident| resident.n_bytes).sum();
        if n_used.saturating_add(n_bytes) <= self.for_chat() {
            return BudgetStep::Fits;
        }
        let idle = residents.iter().enumerate().filter_map(|(idx, resident)| Some((resident.idle?, idx)));
        idle.max().map_or(BudgetStep::AllInUse, |(_, idx)| BudgetStep::Evict(idx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_model_is_evicted_first_and_none_in_use() {
        let unloaded = Resident { n_bytes: 0, idle: None };
        let in_use = Resident { n_bytes: 4, idle: None };
        let idle = |seconds| Resident { n_bytes: 4, idle: Some(Duration::from_secs(seconds)) };
        for (residents, needed, expected) in [
            (vec![], 10, BudgetStep::Fits),
            (vec![idle(1), unloaded], 6, BudgetStep::Fits),
            (vec![idle(1), unloaded], 7, BudgetStep::Evict(0)),
            (vec![idle(1), idle(9)], 7, BudgetStep::Evict(1)),
            (vec![in_use, idle(9)], 7, BudgetStep::Evict(1)),
            (vec![in_use, unloaded], 7, BudgetStep::AllInUse),
            (vec![in_use], u64::MAX, BudgetStep::AllInUse),
        ] {
            let budget = MemoryBudget::new(Some(10));
            assert_eq!(budget.next_step(&residents, needed), expected, "{residents:?}");
        }
    }

    #[test]
    fn what_is_reserved_is_not_left_for_chat() {
        let budget = MemoryBudget::new(Some(10));
        budget.reserve("the cache", 3).unwrap();
        assert_eq!(budget.for_chat(), 7);
        let idle = Resident { n_bytes: 4, idle: Some(Duration::from_secs(1)) };
        assert_eq!(budget.next_step(&[idle], 3), BudgetStep::Fits);
        assert_eq!(budget.next_step(&[idle], 4), BudgetStep::Evict(0));
        let error = budget.reserve("model `e`", 8).unwrap_err().to_string();
        for part in ["model `e` (8 bytes)", "3 bytes of the budget of 10", "--memory-budget"] {
            assert!(error.contains(part), "{error}");
        }
        // A failure reserves nothing.
        budget.reserve("model `e`", 7).unwrap();
        assert_eq!((budget.for_chat(), MemoryBudget::new(None).for_chat()), (0, u64::MAX));
    }
}
