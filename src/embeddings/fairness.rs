//! Fair shares of tenants: whoever was served least is next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The service that each active tenant has had. A tenant that becomes active starts with the least of the others':
/// its past neither helps nor harms it.
#[derive(Debug, Default)]
pub struct TenantShares {
    served: HashMap<Arc<str>, u64>,
}

impl TenantShares {
    /// Adds a tenant, if it is not active.
    pub fn activate(&mut self, tenant: &Arc<str>) {
        let least = self.served.values().min().copied().unwrap_or(0);
        if let Entry::Vacant(entry) = self.served.entry(tenant.clone()) {
            entry.insert(least);
        }
    }

    /// Removes the tenants that are not active any more.
    pub fn retain(&mut self, is_active: impl Fn(&str) -> bool) {
        self.served.retain(|tenant, _| is_active(tenant));
    }

    /// The service that a tenant has had.
    pub fn served(&self, tenant: &str) -> u64 {
        self.served.get(tenant).copied().unwrap_or(0)
    }

    /// Adds to the service that a tenant has had.
    pub fn charge(&mut self, tenant: &str, cost: u64) {
        if let Some(served) = self.served.get_mut(tenant) {
            *served += cost;
        }
    }
}

/// Turns to do something of which only a few may be done at once. Waiting tenants get equal shares; those of one
/// tenant are first come, first served.
pub struct FairTurns {
    state: Mutex<TurnState>,
    max_at_once: usize,
}

#[derive(Default)]
struct TurnState {
    n_taken: usize,
    waiting: Vec<WaitingTurn>,
    shares: TenantShares,
}

struct WaitingTurn {
    tenant: Arc<str>,
    cost: u64,
    grant: oneshot::Sender<Turn>,
}

/// A turn, until it is dropped.
pub struct Turn {
    turns: Arc<FairTurns>,
}

impl FairTurns {
    /// At most `max_at_once` turns at the same time.
    pub fn new(max_at_once: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), max_at_once })
    }

    /// Waits for a turn that costs `cost`. Dropping the future gives up the place.
    pub async fn wait(self: &Arc<Self>, tenant: &Arc<str>, cost: u64) -> Turn {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.shares.activate(tenant);
            state.waiting.push(WaitingTurn { tenant: tenant.clone(), cost, grant });
        }
        self.grant_next();
        match granted.await {
            Ok(turn) => turn,
            // The sender is only dropped after it has sent.
            Err(_) => std::future::pending().await,
        }
    }

    /// Grants turns while there are free ones.
    fn grant_next(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.waiting.retain(|waiting| !waiting.grant.is_closed());
                let TurnState { n_taken, waiting, shares } = &mut *state;
                if *n_taken >= self.max_at_once {
                    return;
                }
                let least = (0..waiting.len()).min_by_key(|&idx| shares.served(&waiting[idx].tenant));
                let Some(idx) = least else {
                    shares.retain(|_| false);
                    return;
                };
                let next = waiting.remove(idx);
                *n_taken += 1;
                shares.charge(&next.tenant, next.cost);
                next
            };
            // If the waiting future is gone, the turn is dropped, which releases it.
            let _ = next.grant.send(Turn { turns: self.clone() });
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.state.lock().unwrap_or_else(PoisonError::into_inner).n_taken -= 1;
        self.turns.grant_next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tenant_starts_with_the_least_service() {
        let (a, b, c): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "b".into(), "c".into());
        let mut shares = TenantShares::default();
        shares.activate(&a);
        shares.charge("a", 100);
        shares.activate(&b);
        assert_eq!(shares.served("b"), 100);
        shares.charge("a", 7);
        shares.activate(&c);
        assert_eq!((shares.served("a"), shares.served("b"), shares.served("c")), (107, 100, 100));
        shares.retain(|tenant| tenant == "a");
        shares.activate(&b);
        assert_eq!(shares.served("b"), 107);
        shares.activate(&a);
        assert_eq!(shares.served("a"), 107, "it was active already");
    }

    #[tokio::test]
    async fn turns_go_to_the_tenant_that_had_least() {
        let turns = FairTurns::new(1);
        let first = turns.wait(&"a".into(), 10).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, tenant, cost) in [("a1", "a", 10), ("a2", "a", 10), ("b1", "b", 4), ("b2", "b", 4)] {
            let (turns, order) = (turns.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = turns.wait(&tenant.into(), cost).await;
                order.lock().unwrap().push(name);
            }));
            tokio::task::yield_now().await;
        }
        let given_up = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.wait(&"c".into(), 1).await) }
        });
        tokio::task::yield_now().await;
        given_up.abort();
        let _ = given_up.await;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a1", "b1", "b2", "a2"]);
        let state = turns.state.lock().unwrap();
        assert_eq!((state.n_taken, state.waiting.len()), (0, 0));
    }
}
