//! Admission of embedding requests: what they hold of each bounded resource, and who gives way.
//!
//! Bounded are requests, bytes of their inputs, and tokens to compute. When a resource runs out, the tenant that
//! holds most gives way to one that holds less: its newest request that has not begun is refused in place of the
//! newcomer. So no tenant can lock the others out by filling the queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// Bounds on what all admitted requests hold together. A single request may exceed the bytes and the tokens.
#[derive(Debug, Clone, Copy)]
pub struct LedgerLimits {
    /// Requests.
    pub requests: usize,
    /// Bytes of inputs.
    pub bytes: usize,
    /// Tokens that are still to be computed.
    pub tokens: usize,
}

/// Resources that a request holds, or asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Holding {
    requests: usize,
    bytes: usize,
    tokens: usize,
}

/// The requests that are admitted.
pub struct RequestLedger {
    limits: LedgerLimits,
    state: Mutex<LedgerState>,
}

#[derive(Default)]
struct LedgerState {
    next_id: u64,
    /// By id, the oldest first.
    entries: BTreeMap<u64, LedgerEntry>,
    /// Moving averages of the tokens and the seconds of a batch; their ratio is the speed.
    batch_tokens: f64,
    batch_seconds: f64,
}

struct LedgerEntry {
    tenant: Arc<str>,
    holding: Holding,
    has_begun: bool,
    /// Tells the request that it gave way.
    give_way: Option<oneshot::Sender<()>>,
}

/// A place in the ledger, until it is dropped.
pub struct Ticket {
    ledger: Arc<RequestLedger>,
    id: u64,
}

/// Bytes of a text for each of its tokens, for the backlog of texts that are not tokenized yet.
const BYTES_PER_TOKEN: usize = 4;

/// Weight of the latest batch in the averages.
const NEWEST_WEIGHT: f64 = 1.0 / 16.0;

impl RequestLedger {
    /// An empty ledger.
    pub fn new(limits: LedgerLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// Admits a request with this many bytes of inputs. The receiver resolves when it has to give way.
    ///
    /// # Errors
    /// When there is no room for it; the error says when to try again.
    pub fn admit(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        n_bytes: usize,
    ) -> Result<(Ticket, oneshot::Receiver<()>)> {
        let holding = Holding { requests: 1, bytes: n_bytes, tokens: 0 };
        let mut state = self.lock();
        self.make_room(&mut state, tenant, holding)?;
        let id = state.next_id;
        state.next_id += 1;
        let (give_way, gave_way) = oneshot::channel();
        let entry =
            LedgerEntry { tenant: tenant.clone(), holding, has_begun: false, give_way: Some(give_way) };
        state.entries.insert(id, entry);
        Ok((Ticket { ledger: self.clone(), id }, gave_way))
    }

    /// Records the speed of a batch.
    pub fn record_batch(&self, n_tokens: usize, took: Duration) {
        let mut state = self.lock();
        state.batch_tokens += (n_tokens as f64 - state.batch_tokens) * NEWEST_WEIGHT;
        state.batch_seconds += (took.as_secs_f64() - state.batch_seconds) * NEWEST_WEIGHT;
    }

    /// The error of a request that there is no room for, or that waited too long.
    pub fn overloaded(&self, message: String) -> Error {
        refusal(&self.lock(), message)
    }

    fn lock(&self) -> MutexGuard<'_, LedgerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for `demand`, if need be by having requests of other tenants give way.
    fn make_room(&self, state: &mut LedgerState, tenant: &Arc<str>, demand: Holding) -> Result<()> {
        while let Some(message) = self.lacking(state.total(), demand) {
            let shares = self.shares(state);
            let own = self.share_of(shares.get(tenant).copied().unwrap_or_default().plus(demand));
            let heaviest = shares
                .into_iter()
                .map(|(tenant, holding)| (tenant, self.share_of(holding)))
                .filter(|(other, share)| other != tenant && *share > own)
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let victim = heaviest.and_then(|(heaviest, _)| {
                let mut newest_first = state.entries.iter().rev();
                newest_first
                    .find(|(_, entry)| entry.tenant == heaviest && !entry.has_begun)
                    .map(|(&id, _)| id)
            });
            let Some(victim) = victim else { return Err(refusal(state, message)) };
            let give_way = state.entries.remove(&victim).and_then(|entry| entry.give_way);
            // The request may have ended just now.
            let _ = give_way.map(|give_way| give_way.send(()));
        }
        Ok(())
    }

    /// The resource that `demand` does not fit into beside `total`, as a message.
    fn lacking(&self, total: Holding, demand: Holding) -> Option<String> {
        let LedgerLimits { requests, bytes, tokens } = self.limits;
        let exceeds = |held: usize, more: usize, limit: usize| held > 0 && more > 0 && held + more > limit;
        if total.requests + demand.requests > requests {
            return Some(format!("the queue is full with {requests} embedding requests; try again later"));
        }
        if exceeds(total.bytes, demand.bytes, bytes) {
            return Some(format!(
                "the queue is full: it holds at most {bytes} bytes of inputs to embed, and {} more do not fit; try \
                 again later",
                demand.bytes
            ));
        }
        exceeds(total.tokens, demand.tokens, tokens).then(|| {
            format!(
                "the queue is full: it holds at most {tokens} tokens to embed, and {} more do not fit; try again \
                 later",
                demand.tokens
            )
        })
    }

    /// Resources by tenant.
    fn shares(&self, state: &LedgerState) -> BTreeMap<Arc<str>, Holding> {
        let mut shares = BTreeMap::<Arc<str>, Holding>::new();
        for LedgerEntry { tenant, holding, .. } in state.entries.values() {
            let share = shares.entry(tenant.clone()).or_default();
            *share = share.plus(*holding);
        }
        shares
    }

    /// The part that a holding takes of the resource that it takes most of (dominant share).
    fn share_of(&self, holding: Holding) -> f64 {
        let LedgerLimits { requests, bytes, tokens } = self.limits;
        let part = |held: usize, limit: usize| held as f64 / limit.max(1) as f64;
        part(holding.requests, requests).max(part(holding.bytes, bytes)).max(part(holding.tokens, tokens))
    }
}

impl LedgerState {
    fn total(&self) -> Holding {
        self.entries.values().fold(Holding::default(), |total, entry| total.plus(entry.holding))
    }

    /// The time after which the backlog is computed at the measured speed.
    fn retry_after(&self) -> Duration {
        let Holding { tokens, .. } = self.total();
        // Texts that are not tokenized yet.
        let untokenized = self.entries.values().filter(|entry| entry.holding.tokens == 0);
        let bytes: usize = untokenized.map(|entry| entry.holding.bytes).sum();
        let backlog = (tokens + bytes / BYTES_PER_TOKEN) as f64;
        let seconds =
            if self.batch_tokens > 0.0 { backlog * self.batch_seconds / self.batch_tokens } else { 0.0 };
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }
}

impl Holding {
    fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            tokens: self.tokens + other.tokens,
        }
    }
}

fn refusal(state: &LedgerState, message: String) -> Error {
    metrics::counter!(telemetry::EMBEDDING_REQUESTS_SHED).increment(1);
    Error::new(Kind::Overloaded { retry_after: state.retry_after() }, message)
}

impl Ticket {
    /// Sets what the request holds once it is tokenized.
    ///
    /// # Errors
    /// When there is no room for so many tokens.
    pub fn set_tokens(&self, tenant: &Arc<str>, n_tokens: usize, n_bytes: usize) -> Result<()> {
        let mut state = self.ledger.lock();
        self.ledger.make_room(&mut state, tenant, Holding { tokens: n_tokens, ..Holding::default() })?;
        if let Some(entry) = state.entries.get_mut(&self.id) {
            entry.holding.tokens += n_tokens;
            entry.holding.bytes = n_bytes;
        }
        Ok(())
    }

    /// Notes that the first inputs of the request are being computed: it will not have to give way any more.
    pub fn begin(&self) {
        if let Some(entry) = self.ledger.lock().entries.get_mut(&self.id) {
            entry.has_begun = true;
        }
    }

    /// Whether the first inputs were computed.
    pub fn has_begun(&self) -> bool {
        self.ledger.lock().entries.get(&self.id).is_some_and(|entry| entry.has_begun)
    }

    /// Notes that this many tokens have been computed.
    pub fn record_computed(&self, n_tokens: usize) {
        if let Some(entry) = self.ledger.lock().entries.get_mut(&self.id) {
            // One token is left, so that its texts do not count as not tokenized.
            entry.holding.tokens = entry.holding.tokens.saturating_sub(n_tokens).max(1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ledger.lock().entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LedgerLimits = LedgerLimits { requests: 4, bytes: 1000, tokens: 100 };

    fn tenant(name: &str) -> Arc<str> {
        name.into()
    }

    fn admit(ledger: &Arc<RequestLedger>, name: &str, n_bytes: usize) -> (Ticket, oneshot::Receiver<()>) {
        ledger.admit(&tenant(name), n_bytes).unwrap()
    }

    fn refused(ledger: &Arc<RequestLedger>, name: &str, n_bytes: usize) -> String {
        let error = ledger.admit(&tenant(name), n_bytes).err().expect("it is refused");
        assert!(matches!(error.kind(), Kind::Overloaded { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn places_are_bounded_and_freed() {
        let ledger = RequestLedger::new(LIMITS);
        let mut held: Vec<_> = (0..4).map(|_| admit(&ledger, "a", 10)).collect();
        assert!(refused(&ledger, "a", 10).contains("full with 4"));
        held.pop();
        held.push(admit(&ledger, "a", 10));
        drop(held);
        assert_eq!(ledger.lock().total(), Holding::default());
    }

    #[test]
    fn bytes_and_tokens_are_bounded_but_one_request_may_exceed_them() {
        let ledger = RequestLedger::new(LIMITS);
        let large = admit(&ledger, "a", 5000);
        assert!(refused(&ledger, "a", 10).contains("1000 bytes"));
        large.0.set_tokens(&tenant("a"), 500, 0).unwrap();
        let small = admit(&ledger, "a", 10);
        let error = small.0.set_tokens(&tenant("a"), 3, 0).unwrap_err().to_string();
        assert!(error.contains("100 tokens") && error.contains("3 more"), "{error}");
        large.0.record_computed(499);
        small.0.set_tokens(&tenant("a"), 3, 0).unwrap();
        assert_eq!(ledger.lock().total(), Holding { requests: 2, bytes: 0, tokens: 4 });
    }

    #[test]
    fn the_heaviest_tenant_gives_way() {
        let ledger = RequestLedger::new(LIMITS);
        let mut held: Vec<_> = (0..4).map(|_| admit(&ledger, "a", 10)).collect();
        held[3].0.begin();
        let _first = admit(&ledger, "b", 10);
        assert!(held[2].1.try_recv().is_ok(), "the newest that has not begun");
        assert!(held[1].1.try_recv().is_err());
        drop(held.remove(2));
        let _second = admit(&ledger, "c", 10);
        assert!(held[1].1.try_recv().is_ok());
        assert!(refused(&ledger, "b", 10).contains("full"), "it would hold as much as the heaviest");
        assert!(refused(&ledger, "a", 10).contains("full"));
        assert_eq!(ledger.lock().total().requests, 4);
    }

    #[test]
    fn a_tenant_with_few_large_requests_gives_way_to_small_ones() {
        let ledger = RequestLedger::new(LIMITS);
        let (_large, mut gave_way) = admit(&ledger, "a", 900);
        let _small = admit(&ledger, "b", 200);
        assert!(gave_way.try_recv().is_ok());
    }

    #[test]
    fn the_time_to_retry_is_the_backlog_at_the_measured_speed() {
        let ledger = RequestLedger::new(LedgerLimits { tokens: 1 << 20, ..LIMITS });
        let after = || ledger.lock().retry_after().as_secs_f64();
        let (ticket, _gave_way) = admit(&ledger, "a", 40_000);
        assert_eq!(after(), 1.0, "nothing measured yet");
        ledger.record_batch(500, Duration::from_millis(250));
        assert!((after() - 5.0).abs() < 1e-6, "{}", after());
        ticket.set_tokens(&tenant("a"), 20_000, 0).unwrap();
        assert!((after() - 10.0).abs() < 1e-6, "{}", after());
        ticket.record_computed(12_000);
        assert!((after() - 4.0).abs() < 1e-6, "{}", after());
        ledger.record_batch(500, Duration::from_secs(600));
        assert_eq!(after(), 60.0);
    }
}
