//! The accounts of admission control: how many requests each class has, and how many bytes their bodies. Pure: callers
//! pass the time.
//!
//! A request is entered by its head, with the announced length of its body, and counts until its response is done.
//! Nobody can keep others out by filling a class:
//!
//! - A class that is full evicts requests whose bodies have been arriving for too long, the oldest first, to admit a
//!   new one.
//! - An eighth more than the limits is kept for tenants that hold little.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ClassLimits, N_CLASSES, RequestClass};

/// The shortest and the longest time that a refused client is told to wait.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The accounts of all classes. `T` is attached to each request, to tell it that it is evicted.
#[derive(Debug)]
pub struct AdmissionLedger<T> {
    classes: [ClassAccount; N_CLASSES],
    /// By id, so in order of arrival.
    requests: BTreeMap<u64, RequestEntry<T>>,
    n_admitted: u64,
    body_grace: Duration,
}

#[derive(Debug)]
struct ClassAccount {
    limits: ClassLimits,
    n_requests: usize,
    n_bytes: usize,
    completions: CompletionRate,
}

#[derive(Debug)]
struct RequestEntry<T> {
    class: RequestClass,
    tenant: Arc<str>,
    n_bytes: usize,
    /// When its body began to arrive; `None` once it is complete.
    arriving_since: Option<Instant>,
    attachment: T,
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassFull {
    /// The limit that was reached.
    pub shortage: Shortage,
    /// The time to serve all requests of the class at the recent rate.
    pub retry_after: Duration,
}

/// The limit that a class has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// This many requests are in progress.
    Requests(usize),
    /// The bodies of requests in progress may have this many bytes.
    BodyBytes(usize),
}

/// Requests, and bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    n_requests: usize,
    n_bytes: usize,
}

/// The rate at which a class completes requests.
#[derive(Debug, Default)]
struct CompletionRate {
    /// Moving average of the time between two completions while there was work.
    mean_interval: Option<Duration>,
    /// The last completion; `None` after a time without work.
    last: Option<Instant>,
}

impl CompletionRate {
    fn record(&mut self, now: Instant, has_more: bool) {
        if let Some(interval) = self.last.map(|last| now.saturating_duration_since(last)) {
            self.mean_interval = Some(self.mean_interval.map_or(interval, |mean| (mean * 7 + interval) / 8));
        }
        self.last = has_more.then_some(now);
    }

    /// The time to complete `n` requests.
    fn time_for(&self, n: usize) -> Duration {
        let [shortest, longest] = RETRY_AFTER;
        let each = self.mean_interval.unwrap_or_default();
        each.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX)).clamp(shortest, longest)
    }
}

impl<T> AdmissionLedger<T> {
    /// Empty accounts. A body that takes longer than `body_grace` to arrive may be evicted.
    pub fn new(limits: [ClassLimits; N_CLASSES], body_grace: Duration) -> Self {
        let account = |limits| ClassAccount {
            limits,
            n_requests: 0,
            n_bytes: 0,
            completions: CompletionRate::default(),
        };
        Self { classes: limits.map(account), requests: BTreeMap::new(), n_admitted: 0, body_grace }
    }

    /// Enters a request whose head announces a body of `n_bytes`. Returns its id, and the attachments of the requests
    /// that are evicted for it.
    ///
    /// # Errors
    /// When its class is full.
    pub fn admit(
        &mut self,
        class: RequestClass,
        tenant: &Arc<str>,
        n_bytes: usize,
        attachment: T,
        now: Instant,
    ) -> Result<(u64, Vec<T>), ClassFull> {
        let evicted = self.make_room((class, tenant), Amount { n_requests: 1, n_bytes }, None, now)?;
        let account = self.account(class);
        account.n_requests += 1;
        account.n_bytes += n_bytes;
        self.n_admitted += 1;
        let tenant = tenant.clone();
        let entry = RequestEntry { class, tenant, n_bytes, arriving_since: Some(now), attachment };
        self.requests.insert(self.n_admitted, entry);
        Ok((self.n_admitted, evicted))
    }

    /// Records that `n_bytes` of a body have arrived, if these are more than announced. Returns the attachments of the
    /// requests that are evicted for it.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn grow(&mut self, id: u64, n_bytes: usize, now: Instant) -> Result<Vec<T>, ClassFull> {
        let Some(entry) = self.requests.get(&id) else { return Ok(Vec::new()) };
        let (class, tenant) = (entry.class, entry.tenant.clone());
        let n_more = n_bytes.saturating_sub(entry.n_bytes);
        let demand = Amount { n_requests: 0, n_bytes: n_more };
        let evicted = self.make_room((class, &tenant), demand, Some(id), now)?;
        self.account(class).n_bytes += n_more;
        if let Some(entry) = self.requests.get_mut(&id) {
            entry.n_bytes += n_more;
        }
        Ok(evicted)
    }

    /// Records that a body is complete: its request is no longer evicted. Returns false if it has been.
    pub fn complete_body(&mut self, id: u64) -> bool {
        self.requests.get_mut(&id).map(|entry| entry.arriving_since = None).is_some()
    }

    /// Removes a request that has ended. Does nothing if it has been evicted.
    pub fn release(&mut self, id: u64, now: Instant) {
        if let Some(entry) = self.remove(id) {
            let account = self.account(entry.class);
            account.completions.record(now, account.n_requests > 0);
        }
    }

    /// Requests of a class, and bytes of their bodies.
    pub fn load(&self, class: RequestClass) -> (usize, usize) {
        let account = &self.classes[class as usize];
        (account.n_requests, account.n_bytes)
    }

    /// Evicts as many requests as needed, and none if that is not enough.
    fn make_room(
        &mut self,
        (class, tenant): (RequestClass, &Arc<str>),
        demand: Amount,
        keep: Option<u64>,
        now: Instant,
    ) -> Result<Vec<T>, ClassFull> {
        let account = &self.classes[class as usize];
        let ClassLimits { max_requests, max_body_bytes } = account.limits;
        let held = Amount { n_requests: account.n_requests, n_bytes: account.n_bytes };
        let lacks = |held: Amount, limits: Amount| {
            let fits = |held: usize, more: usize, limit: usize| more == 0 || held + more <= limit;
            if !fits(held.n_requests, demand.n_requests, limits.n_requests) {
                return Some(Shortage::Requests(max_requests));
            }
            (!fits(held.n_bytes, demand.n_bytes, limits.n_bytes))
                .then_some(Shortage::BodyBytes(max_body_bytes))
        };
        let mut limits = Amount { n_requests: max_requests, n_bytes: max_body_bytes };
        if lacks(held, limits).is_some() {
            let reserve = Amount { n_requests: max_requests.div_ceil(8), n_bytes: max_body_bytes / 8 };
            let share = Amount { n_requests: reserve.n_requests.div_ceil(4), n_bytes: reserve.n_bytes / 4 };
            if lacks(self.held_by(class, tenant), share).is_none() {
                limits.n_requests += reserve.n_requests;
                limits.n_bytes += reserve.n_bytes;
            }
        }
        let mut held = held;
        let mut evicted = Vec::new();
        let grace = self.body_grace;
        let is_slow = |entry: &RequestEntry<T>| {
            entry.class == class
                && entry.arriving_since.is_some_and(|since| now.saturating_duration_since(since) >= grace)
        };
        let mut slow = self.requests.iter().filter(|&(&id, entry)| Some(id) != keep && is_slow(entry));
        while let Some(shortage) = lacks(held, limits) {
            let Some((&id, entry)) = slow.next() else {
                let retry_after = account.completions.time_for(account.n_requests);
                return Err(ClassFull { shortage, retry_after });
            };
            held.n_requests -= 1;
            held.n_bytes -= entry.n_bytes;
            evicted.push(id);
        }
        Ok(evicted.into_iter().filter_map(|id| Some(self.remove(id)?.attachment)).collect())
    }

    /// The requests of a tenant in a class, and the bytes of their bodies.
    fn held_by(&self, class: RequestClass, tenant: &Arc<str>) -> Amount {
        let own = self.requests.values().filter(|entry| entry.class == class && entry.tenant == *tenant);
        own.fold(Amount::default(), |held, entry| Amount {
            n_requests: held.n_requests + 1,
            n_bytes: held.n_bytes + entry.n_bytes,
        })
    }

    fn remove(&mut self, id: u64) -> Option<RequestEntry<T>> {
        let entry = self.requests.remove(&id)?;
        let account = self.account(entry.class);
        account.n_requests -= 1;
        account.n_bytes -= entry.n_bytes;
        Some(entry)
    }

    fn account(&mut self, class: RequestClass) -> &mut ClassAccount {
        &mut self.classes[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: RequestClass = RequestClass::Generation;
    const TOKENS: RequestClass = RequestClass::Tokens;

    fn ledger_of(max_requests: usize, max_body_bytes: usize) -> AdmissionLedger<&'static str> {
        let limits = ClassLimits { max_requests, max_body_bytes };
        AdmissionLedger::new([limits; N_CLASSES], Duration::from_secs(1))
    }

    fn ledger() -> OneTenant {
        OneTenant(ledger_of(3, 100))
    }

    /// A ledger with one tenant.
    struct OneTenant(AdmissionLedger<&'static str>);

    impl OneTenant {
        fn admit(
            &mut self,
            class: RequestClass,
            n_bytes: usize,
            attachment: &'static str,
            now: Instant,
        ) -> Result<(u64, Vec<&'static str>), ClassFull> {
            self.0.admit(class, &"a".into(), n_bytes, attachment, now)
        }
    }

    impl std::ops::Deref for OneTenant {
        type Target = AdmissionLedger<&'static str>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl std::ops::DerefMut for OneTenant {
        fn deref_mut(&mut self) -> &mut Self::Target {
            &mut self.0
        }
    }

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn each_class_has_its_own_places_and_bytes() {
        let (mut ledger, now) = (ledger(), Instant::now());
        for (class, n_bytes, expected) in [
            (CHAT, 60, Ok(1)),
            (CHAT, 41, Err(Shortage::BodyBytes(100))),
            (CHAT, 40, Ok(2)),
            (TOKENS, 100, Ok(3)),
            (CHAT, 0, Ok(4)),
            (CHAT, 0, Err(Shortage::Requests(3))),
            (TOKENS, 1, Err(Shortage::BodyBytes(100))),
            (TOKENS, 0, Ok(5)),
        ] {
            let admitted = ledger.admit(class, n_bytes, "", now).map(|(id, _)| id);
            assert_eq!(admitted.map_err(|full| full.shortage), expected, "{class:?} {n_bytes}");
        }
        ledger.release(1, now);
        ledger.release(1, now);
        assert_eq!(ledger.load(CHAT), (2, 40));
        assert!(ledger.admit(CHAT, 60, "", now).is_ok());
    }

    #[test]
    fn bodies_beyond_their_announced_length_are_charged_as_they_arrive() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let (id, _) = ledger.admit(CHAT, 50, "", now).unwrap();
        for (n_bytes, expected) in [(10, 50), (50, 50), (70, 70), (100, 100)] {
            ledger.grow(id, n_bytes, now).unwrap();
            assert_eq!(ledger.load(CHAT), (1, expected));
        }
        assert_eq!(ledger.grow(id, 101, now).unwrap_err().shortage, Shortage::BodyBytes(100));
        ledger.release(id, now);
        assert_eq!(ledger.load(CHAT), (0, 0));
    }

    #[test]
    fn a_tenant_that_fills_a_class_leaves_room_for_others() {
        let (mut ledger, now) = (ledger_of(64, 640), Instant::now());
        let mut admit =
            |tenant: &str, n_bytes| ledger.admit(CHAT, &tenant.into(), n_bytes, "", now).map(|(id, _)| id);
        for n in 1..=64 {
            assert_eq!(admit("many", 1), Ok(n));
        }
        assert!(admit("many", 1).is_err());
        // Eight more places; each tenant gets two of them.
        for tenant in ["b", "c", "d", "e"] {
            assert!(admit(tenant, 1).is_ok() && admit(tenant, 1).is_ok(), "{tenant}");
            assert!(admit(tenant, 1).is_err(), "{tenant}");
        }
        assert!(admit("f", 1).is_err());
        let (mut ledger, now) = (ledger_of(64, 640), Instant::now());
        let mut admit = |tenant: &str, n_bytes| ledger.admit(CHAT, &tenant.into(), n_bytes, "", now).is_ok();
        assert!(admit("large", 640) && !admit("large", 1));
        assert!(!admit("b", 21) && admit("b", 20) && !admit("b", 1) && admit("c", 20));
    }

    #[test]
    fn slow_bodies_are_evicted_only_for_others_and_only_if_that_helps() {
        let (mut ledger, start) = (ledger(), Instant::now());
        let (oldest, _) = ledger.admit(CHAT, 30, "oldest", start).unwrap();
        let (complete, _) = ledger.admit(CHAT, 30, "complete", start).unwrap();
        ledger.admit(CHAT, 30, "slow", at(start, 0.5)).unwrap();
        assert!(ledger.complete_body(complete));
        assert!(ledger.admit(CHAT, 1, "", at(start, 0.9)).is_err(), "they have a second");
        assert!(ledger.admit(CHAT, 99, "", at(start, 9.0)).is_err(), "two evictions are not enough");
        assert_eq!(ledger.load(CHAT), (3, 90));
        let (id, evicted) = ledger.admit(CHAT, 40, "new", at(start, 1.1)).unwrap();
        assert_eq!((evicted, ledger.load(CHAT)), (vec!["oldest"], (3, 100)));
        assert!(!ledger.complete_body(oldest) && ledger.complete_body(id));
        ledger.release(oldest, start);
        assert_eq!(ledger.load(CHAT), (3, 100), "it is not released twice");
        // A body that grows makes room in the same way, but never by its own eviction.
        assert_eq!(ledger.grow(id, 70, at(start, 9.0)).unwrap(), ["slow"]);
        assert!(ledger.grow(id, 71, at(start, 9.0)).is_err());
    }

    #[test]
    fn clients_are_told_to_wait_for_the_backlog_at_the_measured_rate() {
        let (mut ledger, start) = (ledger(), Instant::now());
        let full = |ledger: &mut OneTenant, now| {
            let mut ids = Vec::new();
            loop {
                match ledger.admit(CHAT, 0, "", now) {
                    Ok((id, _)) => {
                        ledger.complete_body(id);
                        ids.push(id);
                    }
                    Err(ClassFull { retry_after, .. }) => return (ids, retry_after.as_secs_f64()),
                }
            }
        };
        let (ids, unknown) = full(&mut ledger, start);
        assert_eq!(unknown, 1.0);
        for (n, id) in ids.iter().enumerate() {
            ledger.release(*id, at(start, 10.0 + 4.0 * n as f64));
        }
        let (ids, known) = full(&mut ledger, at(start, 1000.0));
        assert_eq!(known, 12.0, "three requests at one per four seconds, however long it was idle before");
        ledger.release(ids[0], at(start, 1001.0));
        ledger.release(ids[1], at(start, 9001.0));
        assert_eq!(full(&mut ledger, at(start, 9001.0)).1, 60.0);
    }
}
