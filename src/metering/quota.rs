//! Rate limits of accounts: token buckets for requests and tokens per minute, and a bound on requests in progress.
//!
//! The tokens of a request are known only at its end. A request takes an estimate of its prompt from the bucket when
//! it begins, and the rest when it ends, which may leave the bucket in debt: the account then waits until it is paid off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{KeyLimits, KeyLimitsTable};

/// The period in which a bucket is filled.
const PERIOD: Duration = Duration::from_secs(60);

/// Accounts that are remembered although they have no request in progress. Where no keys are set, a client chooses
/// how many there are.
const MAX_IDLE_ACCOUNTS: usize = 4096;

/// When to retry after a refusal for too many requests in progress.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The limits of accounts, and their state.
#[derive(Debug, Default)]
pub struct Quotas {
    table: KeyLimitsTable,
    accounts: HashMap<Arc<str>, QuotaAccount>,
}

#[derive(Debug)]
struct QuotaAccount {
    limits: KeyLimits,
    requests: Option<TokenBucket>,
    tokens: Option<TokenBucket>,
    n_running: u64,
}

/// A bucket that fills evenly, in [`PERIOD`] from empty to its capacity.
#[derive(Debug)]
struct TokenBucket {
    capacity: u64,
    /// Below zero: a debt.
    level: f64,
    updated: Instant,
}

/// A limit that a request exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaLimit {
    /// Requests per minute.
    RequestsPerMinute(u64),
    /// Tokens per minute.
    TokensPerMinute(u64),
    /// Requests in progress.
    ConcurrentRequests(u64),
}

/// The refusal of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// The limit.
    pub limit: QuotaLimit,
    /// Time until a retry may succeed.
    pub retry_after: Duration,
}

/// A limit per minute and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketStatus {
    /// The limit.
    pub limit: u64,
    /// The amount that may be taken now.
    pub remaining: u64,
    /// Time until the bucket is full.
    pub reset_after: Duration,
}

/// What is left of an account's limits per minute; `None` where there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaStatus {
    /// The requests.
    pub requests: Option<BucketStatus>,
    /// The tokens.
    pub tokens: Option<BucketStatus>,
}

impl TokenBucket {
    fn new(capacity: u64, now: Instant) -> Self {
        Self { capacity, level: capacity as f64, updated: now }
    }

    /// Units that flow in per second.
    fn rate(&self) -> f64 {
        self.capacity as f64 / PERIOD.as_secs_f64()
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.level = (self.level + elapsed * self.rate()).min(self.capacity as f64);
        self.updated = now;
    }

    /// Time until one unit may be taken; `None` if it may now.
    fn wait(&self) -> Option<Duration> {
        let missing = 1.0 - self.level;
        // A debt of any size is paid off some day.
        (missing > 0.0).then(|| Duration::try_from_secs_f64(missing / self.rate()).unwrap_or(Duration::MAX))
    }

    fn take(&mut self, n: f64) {
        self.level = (self.level - n).min(self.capacity as f64);
    }

    fn status(&self) -> BucketStatus {
        let missing = (self.capacity as f64 - self.level) / self.rate();
        BucketStatus {
            limit: self.capacity,
            remaining: self.level.max(0.0) as u64,
            reset_after: Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX),
        }
    }
}

impl QuotaAccount {
    fn new(limits: KeyLimits, now: Instant) -> Self {
        let bucket = |limit: Option<u64>| limit.map(|capacity| TokenBucket::new(capacity, now));
        Self {
            limits,
            requests: bucket(limits.requests_per_minute),
            tokens: bucket(limits.tokens_per_minute),
            n_running: 0,
        }
    }

    fn fill(&mut self, now: Instant) {
        self.requests.iter_mut().chain(&mut self.tokens).for_each(|bucket| bucket.fill(now));
    }

    /// Whether forgetting the account changes nothing.
    fn is_fresh(&self, now: Instant) -> bool {
        let is_full = |bucket: &TokenBucket| {
            let elapsed = now.saturating_duration_since(bucket.updated).as_secs_f64();
            bucket.level + elapsed * bucket.rate() >= bucket.capacity as f64
        };
        self.n_running == 0 && self.requests.iter().chain(&self.tokens).all(is_full)
    }

    fn check(&self) -> Result<(), QuotaExceeded> {
        let KeyLimits { requests_per_minute, tokens_per_minute, concurrent_requests } = self.limits;
        if let Some(n) = concurrent_requests.filter(|&n| self.n_running >= n) {
            let limit = QuotaLimit::ConcurrentRequests(n);
            return Err(QuotaExceeded { limit, retry_after: BUSY_RETRY_AFTER });
        }
        let waits = [
            (&self.requests, requests_per_minute.map(QuotaLimit::RequestsPerMinute)),
            (&self.tokens, tokens_per_minute.map(QuotaLimit::TokensPerMinute)),
        ];
        for (bucket, limit) in waits {
            if let Some(retry_after) = bucket.as_ref().and_then(TokenBucket::wait)
                && let Some(limit) = limit
            {
                return Err(QuotaExceeded { limit, retry_after });
            }
        }
        Ok(())
    }

    fn status(&self) -> QuotaStatus {
        let status = |bucket: &Option<TokenBucket>| bucket.as_ref().map(TokenBucket::status);
        QuotaStatus { requests: status(&self.requests), tokens: status(&self.tokens) }
    }
}

impl Quotas {
    /// Accounts with these limits.
    pub fn new(table: KeyLimitsTable) -> Self {
        Self { table, accounts: HashMap::new() }
    }

    /// Limits accounts by another table from now on. An account whose limits change begins anew.
    pub fn replace_table(&mut self, table: KeyLimitsTable) {
        self.table = table;
    }

    /// Begins a request of an account whose prompt is estimated to have `n_tokens`, unless it exceeds a limit. Returns
    /// what is left, and whether the request must be [released](Self::release) and [settled](Self::settle).
    pub fn begin(
        &mut self,
        account: &Arc<str>,
        n_tokens: u64,
        now: Instant,
    ) -> (QuotaStatus, Result<bool, QuotaExceeded>) {
        if self.table.is_empty() && self.accounts.is_empty() {
            return (QuotaStatus::default(), Ok(false));
        }
        if self.accounts.len() >= MAX_IDLE_ACCOUNTS {
            self.forget_accounts(now);
        }
        let limits = self.table.for_key(account);
        let state = self.accounts.entry(account.clone()).or_insert_with(|| QuotaAccount::new(limits, now));
        if state.limits != limits {
            *state = QuotaAccount { n_running: state.n_running, ..QuotaAccount::new(limits, now) };
        }
        state.fill(now);
        let checked = state.check();
        if checked.is_ok() {
            state.n_running += 1;
            state.requests.iter_mut().for_each(|bucket| bucket.take(1.0));
            state.tokens.iter_mut().for_each(|bucket| bucket.take(n_tokens as f64));
        }
        (state.status(), checked.map(|()| true))
    }

    /// Ends a request, as far as requests in progress are counted.
    pub fn release(&mut self, account: &str) {
        if let Some(state) = self.accounts.get_mut(account) {
            state.n_running = state.n_running.saturating_sub(1);
        }
    }

    /// Charges a request the `n_tokens` that it had in place of the `n_estimated` that it began with.
    pub fn settle(&mut self, account: &str, n_estimated: u64, n_tokens: u64, now: Instant) {
        let Some(state) = self.accounts.get_mut(account) else { return };
        state.fill(now);
        state.tokens.iter_mut().for_each(|bucket| bucket.take(n_tokens as f64 - n_estimated as f64));
    }

    /// Forgets accounts with full buckets and, if there are none, all that have no request in progress.
    fn forget_accounts(&mut self, now: Instant) {
        self.accounts.retain(|_, account| !account.is_fresh(now));
        if self.accounts.len() >= MAX_IDLE_ACCOUNTS {
            self.accounts.retain(|_, account| account.n_running > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(text: &str) -> Quotas {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        Quotas::new(KeyLimitsTable::read(file.path()).unwrap())
    }

    fn refused(outcome: (QuotaStatus, Result<bool, QuotaExceeded>)) -> Option<(QuotaLimit, Duration)> {
        outcome.1.err().map(|exceeded| (exceeded.limit, exceeded.retry_after))
    }

    #[test]
    fn requests_are_limited_per_minute() {
        let (mut quotas, start) = (quotas("[default]\nrequests-per-minute = 2"), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (status, _) = quotas.begin(&a, 0, start);
        let left = BucketStatus { limit: 2, remaining: 1, reset_after: Duration::from_secs(30) };
        assert_eq!(status, QuotaStatus { requests: Some(left), tokens: None });
        assert_eq!(refused(quotas.begin(&a, 0, start)), None);
        let limit = QuotaLimit::RequestsPerMinute(2);
        assert_eq!(refused(quotas.begin(&a, 0, start)), Some((limit, Duration::from_secs(30))));
        assert_eq!(refused(quotas.begin(&b, 0, start)), None, "another account");
        assert_eq!(refused(quotas.begin(&a, 0, start + Duration::from_secs(30))), None);
        assert!(refused(quotas.begin(&a, 0, start + Duration::from_secs(31))).is_some());
    }

    #[test]
    fn tokens_beyond_the_limit_are_a_debt() {
        let (mut quotas, start) = (quotas("[default]\ntokens-per-minute = 600"), Instant::now());
        let a: Arc<str> = "a".into();
        assert_eq!(refused(quotas.begin(&a, 100, start)), None);
        quotas.settle(&a, 100, 899, start);
        let limit = QuotaLimit::TokensPerMinute(600);
        assert_eq!(refused(quotas.begin(&a, 100, start)), Some((limit, Duration::from_secs(30))));
        let later = start + Duration::from_secs(30);
        assert_eq!(refused(quotas.begin(&a, 1, later)), None);
        quotas.settle(&a, 1, 0, later);
        assert_eq!(refused(quotas.begin(&a, 1, later)), None, "what was not used is given back");
    }

    #[test]
    fn requests_in_progress_are_limited() {
        let (mut quotas, now) = (quotas("[keys.a]\nconcurrent-requests = 1"), Instant::now());
        let a: Arc<str> = "a".into();
        assert_eq!(refused(quotas.begin(&a, 0, now)), None);
        let limit = QuotaLimit::ConcurrentRequests(1);
        assert_eq!(refused(quotas.begin(&a, 0, now)), Some((limit, BUSY_RETRY_AFTER)));
        quotas.release(&a);
        assert_eq!(refused(quotas.begin(&a, 0, now)), None);
    }

    #[test]
    fn new_limits_count_from_the_next_request() {
        let (mut quotas, now) = (quotas("[default]\nrequests-per-minute = 1"), Instant::now());
        let a: Arc<str> = "a".into();
        assert_eq!(refused(quotas.begin(&a, 0, now)), None);
        assert!(refused(quotas.begin(&a, 0, now)).is_some());
        quotas.replace_table(self::quotas("[default]\nrequests-per-minute = 5").table);
        assert_eq!(refused(quotas.begin(&a, 0, now)), None);
    }

    #[test]
    fn the_number_of_accounts_is_bounded() {
        let (mut quotas, now) = (quotas("[default]\nrequests-per-minute = 9"), Instant::now());
        for idx in 0..3 * MAX_IDLE_ACCOUNTS {
            let account: Arc<str> = idx.to_string().into();
            assert_eq!(refused(quotas.begin(&account, 0, now)), None);
            quotas.release(&account);
        }
        assert!(quotas.accounts.len() <= MAX_IDLE_ACCOUNTS);
    }
}
