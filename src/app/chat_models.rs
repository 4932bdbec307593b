//! The chat models of this server: which of them are in memory, and when they come and go.
//!
//! A model is loaded when it is first asked for, one at a time, each with an engine of its own. It
//! is unloaded when it has been idle for long, or when another needs its memory; never while a
//! request uses it: whoever holds the `Arc` of a [`ChatModel`] keeps it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::{ModelInfo, ServedModel};
use crate::chat::ChatModel;
use crate::config::Residency;
use crate::error::{Error, Kind, Result};
use crate::inference::EngineStatus;

/// All chat models, the default first.
pub struct ChatModels {
    slots: Vec<Arc<ChatSlot>>,
    residency: Residency,
    /// Held while memory is given to a model, so that no two are given the same.
    loading: Mutex<()>,
}

/// One chat model that is served, in memory or not.
pub struct ChatSlot {
    served: ServedModel,
    find: Box<Find>,
    info: OnceLock<ModelInfo>,
    state: Mutex<State>,
    /// Held by the request that has the model loaded; the others wait for it.
    turn: tokio::sync::Mutex<()>,
    /// Places for requests that wait for the model.
    places: Semaphore,
    n_places: usize,
}

/// Finds a model's files, fetching those that are missing, and reads what they say of it.
pub type Find = dyn Fn() -> Result<Found> + Send + Sync;

/// A model that can be loaded now.
pub struct Found {
    pub info: ModelInfo,
    /// What its weights will take in memory.
    pub n_bytes: u64,
    pub load: Box<dyn FnOnce() -> Result<ChatModel>>,
}

#[derive(Default)]
struct State {
    loaded: Option<Loaded>,
    /// When the last try to load it failed, and how.
    failed: Option<(Instant, Error)>,
}

struct Loaded {
    model: Arc<ChatModel>,
    n_bytes: u64,
    last_used: Instant,
}

impl ChatModels {
    /// `slots` has the default model first.
    pub fn new(slots: Vec<ChatSlot>, residency: Residency) -> Arc<Self> {
        let slots = slots.into_iter().map(Arc::new).collect();
        Arc::new(Self { slots, residency, loading: Mutex::new(()) })
    }

    /// Starts the thread that unloads idle models, if they are to be. It ends with the last handle.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_keeper(self: &Arc<Self>) -> Result<()> {
        let Some(limit) = self.residency.idle_unload else { return Ok(()) };
        let models = Arc::downgrade(self);
        let keep = move || {
            while let Some(models) = models.upgrade() {
                for slot in &models.slots {
                    if slot.idle_for().is_some_and(|idle| idle >= limit) && slot.unload() {
                        tracing::info!(model = slot.served.id(), "chat model unloaded: idle");
                    }
                }
                drop(models);
                thread::sleep((limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
            }
        };
        thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(keep)
            .map(drop)
            .map_err(|e| Error::internal(format!("cannot start a thread to unload models: {e}")))
    }

    pub fn slots(&self) -> &[Arc<ChatSlot>] {
        &self.slots
    }

    /// The model of a slot, loaded now if it is not.
    ///
    /// # Errors
    /// When it cannot be found or loaded, when there is no memory for it, or when too many requests
    /// wait for it.
    pub async fn acquire(self: &Arc<Self>, slot: &Arc<ChatSlot>) -> Result<Arc<ChatModel>> {
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        let arrived = Instant::now();
        let _place = slot.places.try_acquire().map_err(|_| {
            Error::new(
                Kind::Overloaded { retry_after: Duration::from_secs(10) },
                format!(
                    "{} requests wait for `{}` to be loaded; try again later",
                    slot.n_places,
                    slot.served.id()
                ),
            )
        })?;
        let _turn = slot.turn.lock().await;
        let (models, slot) = (self.clone(), slot.clone());
        tokio::task::spawn_blocking(move || models.load(&slot, arrived))
            .await
            .map_err(|e| Error::internal(format!("the model could not be loaded: {e}")))?
    }

    /// As [`ChatModels::acquire`], on a thread that may wait. A try that failed after `arrived` is
    /// not repeated.
    ///
    /// # Errors
    /// As [`ChatModels::acquire`].
    pub fn load(&self, slot: &ChatSlot, arrived: Instant) -> Result<Arc<ChatModel>> {
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        if let Some((when, e)) = &slot.state().failed
            && arrived < *when
        {
            return Err(e.clone());
        }
        self.load_now(slot).inspect_err(|e| slot.state().failed = Some((Instant::now(), e.clone())))
    }

    /// How busy each model in memory is.
    pub fn status(&self) -> Vec<(&ServedModel, EngineStatus)> {
        let of_slot = |slot: &'_ Arc<ChatSlot>| {
            let state = slot.state();
            state.loaded.as_ref().map(|loaded| loaded.model.engine().status())
        };
        self.slots.iter().filter_map(|slot| Some((&slot.served, of_slot(slot)?))).collect()
    }

    /// Whether each model in memory gets on with its work.
    ///
    /// # Errors
    /// When one does not.
    pub fn check_health(&self) -> Result<()> {
        self.slots.iter().try_for_each(|slot| {
            let state = slot.state();
            let Some(loaded) = &state.loaded else { return Ok(()) };
            loaded.model.engine().check_health().map_err(|e| e.context(slot.served.id()))
        })
    }

    /// Ends every generation that still runs, with an error.
    pub fn stop_generating(&self) {
        for slot in &self.slots {
            if let Some(loaded) = &slot.state().loaded {
                loaded.model.engine().stop();
            }
        }
    }

    fn load_now(&self, slot: &ChatSlot) -> Result<Arc<ChatModel>> {
        // Fetching may take long, and keeps no other model waiting.
        let found = slot.find()?;
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        self.make_room(slot, found.n_bytes)?;
        let model = Arc::new((found.load)()?);
        let loaded = Loaded { model: model.clone(), n_bytes: found.n_bytes, last_used: Instant::now() };
        *slot.state() = State { loaded: Some(loaded), failed: None };
        Ok(model)
    }

    /// Unloads idle models until `n_bytes` fit into the budget.
    fn make_room(&self, slot: &ChatSlot, n_bytes: u64) -> Result<()> {
        let Some(budget) = self.residency.memory_budget else { return Ok(()) };
        if n_bytes > budget {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "`{}` takes {n_bytes} bytes of memory, and the budget is {budget}; raise --memory-budget",
                    slot.served.id()
                ),
            ));
        }
        loop {
            let occupants: Vec<Occupant> = self.slots.iter().map(|slot| slot.occupant()).collect();
            match next_step(&occupants, budget, n_bytes) {
                Room::Enough => return Ok(()),
                Room::Unload(idx) => {
                    if self.slots[idx].unload() {
                        tracing::info!(
                            model = self.slots[idx].served.id(),
                            "chat model unloaded: another needs its memory"
                        );
                    }
                }
                Room::None => {
                    return Err(Error::new(
                        Kind::Overloaded { retry_after: Duration::from_secs(10) },
                        format!(
                            "there is no memory for `{}` while other models are in use; try again later, or start \
                             the server with a larger --memory-budget",
                            slot.served.id()
                        ),
                    ));
                }
            }
        }
    }
}

/// What is to be done for a model that needs memory.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// The model of this index is to go first.
    Unload(usize),
    /// All others are in use.
    None,
}

/// What a model has of the memory.
#[derive(Debug, Clone, Copy)]
struct Occupant {
    n_bytes: u64,
    /// For how long no request has used it; none while one does, or while it is not loaded.
    idle: Option<Duration>,
}

/// Decides what is to be done for `needed` bytes more. The longest idle goes first.
fn next_step(occupants: &[Occupant], budget: u64, needed: u64) -> Room {
    let taken: u64 = occupants.iter().map(|occupant| occupant.n_bytes).sum();
    if taken.saturating_add(needed) <= budget {
        return Room::Enough;
    }
    let idle = occupants.iter().enumerate().filter_map(|(idx, occupant)| Some((occupant.idle?, idx)));
    idle.max().map_or(Room::None, |(_, idx)| Room::Unload(idx))
}

impl ChatSlot {
    /// A model that `find` leads to; at most `n_places` requests wait while it is loaded.
    pub fn new(served: ServedModel, n_places: usize, find: Box<Find>) -> Self {
        Self {
            served,
            find,
            info: OnceLock::new(),
            state: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            places: Semaphore::new(n_places),
            n_places,
        }
    }

    pub fn served(&self) -> &ServedModel {
        &self.served
    }

    /// What its files say of it, once they have been found.
    pub fn info(&self) -> Option<&ModelInfo> {
        self.info.get()
    }

    /// The fingerprint of the model, if it is in memory.
    pub fn fingerprint(&self) -> Option<String> {
        self.state().loaded.as_ref().map(|loaded| loaded.model.fingerprint().to_owned())
    }

    pub fn is_loaded(&self) -> bool {
        self.state().loaded.is_some()
    }

    /// Finds its files, so that they are there when it is loaded.
    ///
    /// # Errors
    /// When they cannot be had or read.
    pub fn find(&self) -> Result<Found> {
        let found = (self.find)()?;
        // Of several at once the first one's word stays; all say the same.
        let _ = self.info.set(found.info.clone());
        Ok(found)
    }

    /// The model, if it is in memory. One whose engine has died of a fault is let go.
    fn loaded(&self) -> Option<Arc<ChatModel>> {
        let mut state = self.state();
        let loaded = state.loaded.as_mut()?;
        if !loaded.model.engine().is_alive() {
            state.loaded = None;
            return None;
        }
        loaded.last_used = Instant::now();
        Some(loaded.model.clone())
    }

    fn occupant(&self) -> Occupant {
        let n_bytes = self.state().loaded.as_ref().map_or(0, |loaded| loaded.n_bytes);
        Occupant { n_bytes, idle: self.idle_for() }
    }

    /// For how long no request has used it, if it is in memory and none does now.
    fn idle_for(&self) -> Option<Duration> {
        let mut state = self.state();
        let loaded = state.loaded.as_mut()?;
        if Arc::strong_count(&loaded.model) > 1 {
            loaded.last_used = Instant::now();
            return None;
        }
        Some(loaded.last_used.elapsed())
    }

    /// Frees its memory, unless a request uses it.
    fn unload(&self) -> bool {
        // Handles are only made under this lock, so one that is the last stays the last.
        let model = {
            let mut state = self.state();
            let Some(loaded) = state.loaded.take() else { return false };
            match Arc::try_unwrap(loaded.model) {
                Ok(model) => model,
                Err(model) => {
                    state.loaded = Some(Loaded { model, ..loaded });
                    return false;
                }
            }
        };
        model.shut_down();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_goes_first_and_those_in_use_stay() {
        let unloaded = Occupant { n_bytes: 0, idle: None };
        let busy = Occupant { n_bytes: 4, idle: None };
        let idle = |seconds| Occupant { n_bytes: 4, idle: Some(Duration::from_secs(seconds)) };
        for (occupants, needed, expected) in [
            (vec![], 10, Room::Enough),
            (vec![idle(1), unloaded], 6, Room::Enough),
            (vec![idle(1), unloaded], 7, Room::Unload(0)),
            (vec![idle(1), idle(9)], 7, Room::Unload(1)),
            (vec![busy, idle(9)], 7, Room::Unload(1)),
            (vec![busy, unloaded], 7, Room::None),
            (vec![busy], u64::MAX, Room::None),
        ] {
            assert_eq!(next_step(&occupants, 10, needed), expected, "{occupants:?}");
        }
    }
}
