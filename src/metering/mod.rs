//! Metering of requests by account: quotas, usage, and the audit log.
//!
//! An account is an API key by its name or, on a server without keys, a token. Each request has a [`RequestMeter`],
//! which counts its tokens and reports them when the last part of the server lets go of it.

mod audit;
mod quota;
mod usage;

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

pub use audit::{AuditLog, ChainHead, verify_chain};
pub use quota::{BucketStatus, QuotaExceeded, QuotaLimit, QuotaStatus};
pub use usage::{DAY_SECONDS, UsageCounts, UsageLedger, day_of};

use crate::config::KeyLimitsTable;
use crate::error::{Error, Kind, RateUnit, Result};
use crate::telemetry;
use audit::{AuditEvent, AuditedRequest};
use quota::Quotas;

/// Interval at which usage is stored.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Time for the last lines of the audit log at the end of the process.
const AUDIT_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a request's body for each estimated token of its prompt.
const BYTES_PER_TOKEN: u64 = 4;

/// The meters of all accounts.
pub struct Metering {
    quotas: Mutex<Quotas>,
    usage: UsageLedger,
    audit: Option<AuditLog>,
    /// Whether accounts are few: only then do they become labels of metrics.
    has_named_accounts: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Completed,
    Failed,
    Cancelled,
}

/// Counts the tokens of one request. Clones count for the same request, which ends with the last of them.
#[derive(Clone)]
pub struct RequestMeter(Arc<MeteredRequest>);

struct MeteredRequest {
    metering: Arc<Metering>,
    account: Arc<str>,
    request_id: String,
    route: &'static str,
    began: Instant,
    /// Tokens that its account's quota was charged at the beginning; `None` if it does not count towards quotas.
    n_reserved: Option<u64>,
    counted: Mutex<CountedRequest>,
}

/// What is known of a request so far.
#[derive(Default)]
struct CountedRequest {
    model: String,
    /// Status of the response; 0 before it begins.
    status: u16,
    /// `None` until the request is known to have failed or to have been cancelled.
    outcome: Option<Outcome>,
    counts: UsageCounts,
}

impl CountedRequest {
    fn outcome(&self) -> Outcome {
        match (self.outcome, self.status) {
            (Some(outcome), _) => outcome,
            // The last part of the server lets go of it because of a panic, or because its client has gone.
            (None, 0) if thread::panicking() => Outcome::Failed,
            (None, 0) => Outcome::Cancelled,
            (None, 400..) => Outcome::Failed,
            (None, _) => Outcome::Completed,
        }
    }
}

/// The place of a request among those of its account that are in progress, given back when dropped.
pub struct QuotaPlace {
    metering: Arc<Metering>,
    account: Arc<str>,
}

impl Drop for QuotaPlace {
    fn drop(&mut self) {
        self.metering.quotas().release(&self.account);
    }
}

/// A request to be metered.
pub struct MeteredHead<'a> {
    /// The account.
    pub account: Arc<str>,
    /// Id of the request.
    pub request_id: &'a str,
    /// The route's path.
    pub route: &'static str,
    /// Bytes of the body, as the head announces them.
    pub body_bytes: usize,
}

impl Metering {
    /// Meters by these limits, into this ledger and, if there is one, this audit log.
    ///
    /// # Errors
    /// When the thread that stores usage cannot be started.
    pub fn start(
        limits: KeyLimitsTable,
        usage: UsageLedger,
        audit: Option<AuditLog>,
        has_named_accounts: bool,
    ) -> Result<Arc<Self>> {
        let quotas = Mutex::new(Quotas::new(limits));
        let metering = Arc::new(Self { quotas, usage, audit, has_named_accounts });
        let weak = Arc::downgrade(&metering);
        thread::Builder::new()
            .name("usage".to_owned())
            .spawn(move || store_usage(&weak))
            .map_err(|e| Error::internal(format!("cannot start the thread that stores usage: {e}")))?;
        Ok(metering)
    }

    /// Meters by these limits, in memory and without an audit log.
    ///
    /// # Errors
    /// When there is no memory, or no thread can be started.
    pub fn in_memory(limits: KeyLimitsTable, has_named_accounts: bool) -> Result<Arc<Self>> {
        Self::start(limits, UsageLedger::open(None)?, None, has_named_accounts)
    }

    /// Begins a request, unless it exceeds a limit of its account or cannot be recorded. Returns what is left of the
    /// limits, too. The place, if the account has limits, is to be kept until the response is sent.
    pub fn begin(
        self: &Arc<Self>,
        head: MeteredHead,
    ) -> (QuotaStatus, Result<(RequestMeter, Option<QuotaPlace>)>) {
        if let Err(e) = self.audit.as_ref().map_or(Ok(()), AuditLog::check) {
            return (QuotaStatus::default(), Err(e));
        }
        let n_tokens = head.body_bytes as u64 / BYTES_PER_TOKEN;
        let (status, begun) = self.quotas().begin(&head.account, n_tokens, Instant::now());
        let meter = match begun {
            Ok(is_limited) => {
                let (metering, account) = (self.clone(), head.account.clone());
                let place = is_limited.then_some(QuotaPlace { metering, account });
                Ok((RequestMeter::new(self.clone(), head, is_limited.then_some(n_tokens)), place))
            }
            Err(exceeded) => {
                metrics::counter!(telemetry::REQUESTS_RATE_LIMITED).increment(1);
                let client = match self.has_named_accounts {
                    true => format!("the API key `{}`", head.account),
                    false => "this client".to_owned(),
                };
                Err(rate_limited(&client, exceeded))
            }
        };
        (status, meter)
    }

    /// Begins a request that does not count towards quotas, such as a line of a batch.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn begin_unlimited(self: &Arc<Self>, head: MeteredHead) -> Result<RequestMeter> {
        self.audit.as_ref().map_or(Ok(()), AuditLog::check)?;
        Ok(RequestMeter::new(self.clone(), head, None))
    }

    /// Limits accounts by another table from now on.
    pub fn replace_limits(&self, limits: KeyLimitsTable) {
        self.quotas().replace_table(limits);
    }

    /// The usage of all accounts.
    pub fn usage(&self) -> &UsageLedger {
        &self.usage
    }

    /// Writes what has been counted, before the process ends.
    pub fn finish(&self) {
        if let Err(e) = self.usage.flush(SystemTime::now()) {
            tracing::error!(error = %e, "the latest usage could not be stored");
        }
        if let Some(audit) = &self.audit {
            audit.record(AuditEvent::Stopped);
            audit.flush(AUDIT_FLUSH_TIMEOUT);
        }
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a request that has ended.
    fn end(&self, request: &MeteredRequest) {
        let counted = mem::take(&mut *request.counted());
        let outcome = counted.outcome();
        let CountedRequest { model, status, mut counts, .. } = counted;
        let n_tokens = counts.prompt_tokens + counts.completion_tokens;
        if let Some(n_reserved) = request.n_reserved {
            // A request that ends before its tokens are known may have been computed all the same.
            let n_charged = if outcome == Outcome::Cancelled { n_tokens.max(n_reserved) } else { n_tokens };
            self.quotas().settle(&request.account, n_reserved, n_charged, Instant::now());
        }
        if !model.is_empty() && (outcome == Outcome::Completed || n_tokens > 0) {
            counts.requests = 1;
            self.usage.add(&request.account, &model, &counts, SystemTime::now());
            if self.has_named_accounts {
                let count = |kind: &'static str, n| {
                    let key = request.account.to_string();
                    metrics::counter!(telemetry::KEY_TOKENS, "key" => key, "kind" => kind).increment(n);
                };
                count("prompt", counts.prompt_tokens);
                count("completion", counts.completion_tokens);
                metrics::counter!(telemetry::KEY_REQUESTS, "key" => request.account.to_string()).increment(1);
            }
        }
        if let Some(audit) = &self.audit {
            audit.record(AuditEvent::Request(AuditedRequest {
                request_id: request.request_id.clone(),
                key: request.account.to_string(),
                route: request.route,
                model,
                status,
                outcome: match outcome {
                    Outcome::Completed => "completed",
                    Outcome::Failed => "failed",
                    Outcome::Cancelled => "cancelled",
                },
                prompt_tokens: counts.prompt_tokens,
                cached_tokens: counts.cached_tokens,
                completion_tokens: counts.completion_tokens,
                ms: request.began.elapsed().as_millis() as u64,
            }));
        }
    }
}

/// Stores usage now and then, as long as the server lives.
fn store_usage(metering: &Weak<Metering>) {
    loop {
        thread::sleep(FLUSH_INTERVAL);
        let Some(metering) = metering.upgrade() else { return };
        if let Err(e) = metering.usage.flush(SystemTime::now()) {
            tracing::error!(error = %e, "usage could not be stored; trying again");
        }
    }
}

/// The refusal of a request of `client`, as the message names it.
fn rate_limited(client: &str, exceeded: QuotaExceeded) -> Error {
    let QuotaExceeded { limit, retry_after } = exceeded;
    let (unit, limit) = match limit {
        QuotaLimit::RequestsPerMinute(n) => (RateUnit::Requests, format!("{n} requests per minute")),
        QuotaLimit::TokensPerMinute(n) => (RateUnit::Tokens, format!("{n} tokens per minute")),
        QuotaLimit::ConcurrentRequests(n) => (RateUnit::Requests, format!("{n} concurrent requests")),
    };
    let seconds = (retry_after.as_secs_f64() * 10.0).ceil() / 10.0;
    let message = format!("{client} is limited to {limit}; try again in {seconds} s");
    Error::new(Kind::RateLimited { retry_after, unit }, message)
}

impl RequestMeter {
    fn new(metering: Arc<Metering>, head: MeteredHead, n_reserved: Option<u64>) -> Self {
        let MeteredHead { account, request_id, route, .. } = head;
        Self(Arc::new(MeteredRequest {
            metering,
            account,
            request_id: request_id.to_owned(),
            route,
            began: Instant::now(),
            n_reserved,
            counted: Mutex::default(),
        }))
    }

    /// Names the model that the request is for.
    pub fn set_model(&self, id: &str) {
        id.clone_into(&mut self.0.counted().model);
    }

    /// Sets the status of the response.
    pub fn set_status(&self, status: u16) {
        self.0.counted().status = status;
    }

    /// Counts tokens of the prompt or the inputs.
    pub fn add_prompt_tokens(&self, n: usize) {
        self.0.counted().counts.prompt_tokens += n as u64;
    }

    /// Counts tokens of the prompt as found in the prefix cache.
    pub fn add_cached_tokens(&self, n: usize) {
        self.0.counted().counts.cached_tokens += n as u64;
    }

    /// Counts generated tokens.
    pub fn add_completion_tokens(&self, n: usize) {
        self.0.counted().counts.completion_tokens += n as u64;
    }

    /// Records that the request failed. If nothing was generated for it, its prompt does not count.
    pub fn fail(&self) {
        let mut counted = self.0.counted();
        counted.outcome = Some(Outcome::Failed);
        if counted.counts.completion_tokens == 0 {
            counted.counts = UsageCounts::default();
        }
    }

    /// Records that the client wants no more of the response.
    pub fn cancel(&self) {
        self.0.counted().outcome = Some(Outcome::Cancelled);
    }
}

impl MeteredRequest {
    fn counted(&self) -> MutexGuard<'_, CountedRequest> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MeteredRequest {
    fn drop(&mut self) {
        self.metering.clone().end(self);
    }
}
