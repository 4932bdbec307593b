//! Deduplication of retries: a retry joins the attempt that already runs.
//!
//! OpenAI's clients give up on a response that takes too long, close the connection and retry. On a slow
//! machine that would compute the same response again and again and deliver none. So a response whose
//! client had waited long enough for a timeout to be the likely reason outlives its client for a while,
//! and the retry, which has the same key, path and body, joins it.
//!
//! Identical requests need not be the same request: a client may want several responses to one prompt.
//! A retry therefore takes over an attempt whose client has gone, if there is one. Otherwise it shares
//! an attempt that is still connected, but only if no attempt of this request ended without a response:
//! such an attempt has a retry of its own, which must compute.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::Limits;
use crate::error::{Error, Result};
use crate::http::error::PANICKED;
use crate::telemetry;

/// A future that several clients can wait for; it makes progress while one of them does.
pub type SharedFuture<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Makes `work` shareable. A panic in it becomes an error, so that it does not spread to every waiter.
fn shared_future<T: Clone + Send + Sync + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> SharedFuture<T> {
    let failed = |_| Err(Error::internal(PANICKED));
    AssertUnwindSafe(work).catch_unwind().map(move |result| result.unwrap_or_else(failed)).boxed().shared()
}

/// A response with known headers, whose body is still computed.
#[derive(Clone)]
pub struct PendingResponse {
    /// Headers of the response.
    pub headers: HeaderMap,
    /// The body, as JSON.
    pub body: SharedFuture<Bytes>,
}

impl PendingResponse {
    /// A response with `headers` and what `body` resolves to, as JSON.
    pub fn new<T: Serialize>(
        headers: HeaderMap,
        body: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        Self { headers, body: shared_future(async move { to_json(&body.await?) }) }
    }
}

/// Serializes the body of a response.
pub fn to_json(body: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_vec(body)
        .map_err(|e| Error::internal(format!("cannot serialize the response: {e}")))?;
    Ok(json.into())
}

/// The header in which all of OpenAI's clients number the attempts of a request, from 0.
const RETRY_COUNT: &str = "x-stainless-retry-count";

/// Headers with the client's timeout in seconds. The Python client always sends one, the Node client
/// only if the caller sets a timeout.
const CLIENT_TIMEOUT: [&str; 2] = ["x-stainless-read-timeout", "x-stainless-timeout"];

/// Share of a client's timeout that counts as all of it: its clock starts a little before ours.
const TIMEOUT_TOLERANCE: f64 = 0.95;

/// The most requests to remember whose attempts ended without a response, besides those that run. Beyond
/// that they are forgotten, and their retries may share an attempt.
const MAX_REQUESTS: usize = 1024;

/// A hash of a request's tenant, route and body; equal for identical requests.
type RequestKey = [u8; 32];

/// One attempt at a request, by a client that may retry it.
pub struct Attempt {
    key: RequestKey,
    is_retry: bool,
    /// How long the client waits, if it says so.
    client_timeout: Option<Duration>,
}

impl Attempt {
    /// Reads the attempt from a request's headers. None if the client does not count its retries.
    pub fn from_request(
        headers: &HeaderMap,
        tenant: &str,
        path: &str,
        body: &Map<String, Value>,
    ) -> Option<Self> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<f64>().ok();
        let count = number(RETRY_COUNT)?;
        let mut hash = Sha256::new();
        for part in [tenant.as_bytes(), path.as_bytes()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.update(serde_json::to_vec(body).ok()?);
        let seconds = CLIENT_TIMEOUT.iter().find_map(|name| number(name));
        let client_timeout =
            seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds * TIMEOUT_TOLERANCE).ok());
        Some(Self { key: hash.finalize().into(), is_retry: count > 0.0, client_timeout })
    }
}

/// Whether a client sends a request again.
pub fn is_retry(headers: &HeaderMap) -> bool {
    let count = headers.get(RETRY_COUNT).and_then(|count| count.to_str().ok());
    count.and_then(|count| count.parse::<f64>().ok()).is_some_and(|count| count > 0.0)
}

/// The pending responses that retries can join.
#[derive(Clone)]
pub struct RetryDedup {
    /// How long a client must have waited for its response to outlive it.
    patience: Duration,
    /// How long a response outlives its client.
    grace: Duration,
    /// The most responses without a client.
    max_orphans: usize,
    state: Arc<Mutex<DedupState>>,
}

#[derive(Default)]
struct DedupState {
    requests: HashMap<RequestKey, RequestAttempts>,
    n_orphans: usize,
    n_started: u64,
}

/// The attempts of identical requests.
#[derive(Default)]
struct RequestAttempts {
    running: Vec<RunningAttempt>,
    /// Attempts that ended without a response, and whose retries have not arrived.
    n_unanswered: usize,
}

/// An attempt whose response is not complete, or not delivered.
struct RunningAttempt {
    id: u64,
    response: SharedFuture<PendingResponse>,
    /// Clients that wait for it.
    n_waiting: usize,
    /// The task that keeps computing it for a while after the last client has gone.
    grace_task: Option<AbortHandle>,
}

/// A client's hold on a pending response. It is dropped when the client has its response, or has gone.
pub struct Lease {
    /// The response.
    pub response: SharedFuture<PendingResponse>,
    /// When the client began to wait.
    pub started: Instant,
    /// Whether the response was started by an earlier attempt.
    pub is_joined: bool,
    /// The entry that retries can join; none if the client does not retry.
    entry: Option<LeaseEntry>,
}

/// The place of a lease in a [`RetryDedup`].
struct LeaseEntry {
    dedup: RetryDedup,
    key: RequestKey,
    id: u64,
    client_timeout: Option<Duration>,
}

impl RetryDedup {
    /// No pending responses yet.
    pub fn new(limits: &Limits) -> Self {
        Self {
            patience: limits.retry_patience,
            grace: limits.retry_grace,
            max_orphans: limits.orphaned_responses,
            state: Arc::default(),
        }
    }

    /// Joins the response that `attempt` is a retry for, or starts a new one with `work`.
    pub fn join_or_start(
        &self,
        attempt: Option<Attempt>,
        work: impl Future<Output = Result<PendingResponse>> + Send + 'static,
    ) -> Lease {
        let started = Instant::now();
        let Some(Attempt { key, is_retry, client_timeout }) = attempt else {
            return Lease { response: shared_future(work), started, is_joined: false, entry: None };
        };
        let mut state = self.lock();
        let attempts = state.requests.entry(key).or_default();
        let joined = if is_retry { attempts.join_running() } else { None };
        let (id, response, is_joined) = match joined {
            Some((id, response, was_orphan)) => {
                state.n_orphans -= usize::from(was_orphan);
                metrics::counter!(telemetry::RETRIES_JOINED).increment(1);
                (id, response, true)
            }
            None => {
                let response = shared_future(work);
                state.n_started += 1;
                let id = state.n_started;
                let running =
                    RunningAttempt { id, response: response.clone(), n_waiting: 1, grace_task: None };
                state.requests.entry(key).or_default().running.push(running);
                (id, response, false)
            }
        };
        drop(state);
        let entry = LeaseEntry { dedup: self.clone(), key, id, client_timeout };
        Lease { response, started, is_joined, entry: Some(entry) }
    }

    /// Ends an attempt after its grace period, unless a retry has joined it.
    fn expire(&self, key: RequestKey, id: u64) {
        let ended = {
            let mut state = self.lock();
            let is_orphan = |running: &RunningAttempt| running.id == id && running.n_waiting == 0;
            let attempts = state.requests.get_mut(&key);
            if !attempts.is_some_and(|attempts| attempts.running.iter().any(is_orphan)) {
                return;
            }
            state.n_orphans -= 1;
            state.remove_attempt(key, id, true)
        };
        // Its result is freed without the lock.
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, DedupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DedupState {
    /// Removes an attempt; `unanswered` is whether its client got no response.
    fn remove_attempt(&mut self, key: RequestKey, id: u64, unanswered: bool) -> Option<RunningAttempt> {
        if self.requests.len() > MAX_REQUESTS {
            self.requests.retain(|_, attempts| !attempts.running.is_empty());
        }
        let attempts = self.requests.get_mut(&key)?;
        attempts.n_unanswered += usize::from(unanswered);
        let idx = attempts.running.iter().position(|running| running.id == id);
        let removed = idx.map(|idx| attempts.running.remove(idx));
        if attempts.running.is_empty() && attempts.n_unanswered == 0 {
            self.requests.remove(&key);
        }
        removed
    }
}

impl RequestAttempts {
    /// Joins the attempt that a retry takes over or shares. Returns its id, its response, and whether it
    /// was an orphan: had no client left.
    fn join_running(&mut self) -> Option<(u64, SharedFuture<PendingResponse>, bool)> {
        let orphan = self.running.iter().position(|running| running.n_waiting == 0);
        let idx = match orphan {
            Some(idx) => idx,
            None if self.n_unanswered > 0 => {
                self.n_unanswered -= 1;
                return None;
            }
            None => self.running.iter().position(|running| running.n_waiting == 1)?,
        };
        let running = &mut self.running[idx];
        running.n_waiting += 1;
        if let Some(task) = running.grace_task.take() {
            task.abort();
        }
        Some((running.id, running.response.clone(), orphan.is_some()))
    }
}

/// Whether a response succeeded; none while it is pending.
fn outcome(response: &SharedFuture<PendingResponse>) -> Option<bool> {
    match response.peek()? {
        Ok(pending) => pending.body.peek().map(|body| body.is_ok()),
        Err(_) => Some(false),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(LeaseEntry { dedup, key, id, client_timeout }) = &self.entry else { return };
        let (key, id) = (*key, *id);
        let mut state = dedup.lock();
        let n_orphans = state.n_orphans;
        let attempts = state.requests.get_mut(&key);
        let Some(running) =
            attempts.and_then(|attempts| attempts.running.iter_mut().find(|running| running.id == id))
        else {
            return;
        };
        running.n_waiting -= 1;
        if running.n_waiting > 0 {
            return;
        }
        let outcome = outcome(&running.response);
        let patience = client_timeout.map_or(dedup.patience, |timeout| timeout.min(dedup.patience));
        let expects_retry = self.started.elapsed() >= patience && !dedup.grace.is_zero();
        let ended = match Handle::try_current() {
            Ok(runtime) if outcome.is_none() && expects_retry && n_orphans < dedup.max_orphans => {
                let (response, dedup) = (running.response.clone(), dedup.clone());
                let task = runtime.spawn(async move {
                    let work = timeout(dedup.grace, async {
                        if let Ok(pending) = response.await {
                            // The result is for the retry that joins.
                            let _ = pending.body.await;
                        }
                        std::future::pending::<()>().await;
                    });
                    let _ = work.await;
                    dedup.expire(key, id);
                });
                running.grace_task = Some(task.abort_handle());
                state.n_orphans += 1;
                None
            }
            _ => state.remove_attempt(key, id, outcome != Some(true)),
        };
        drop(state);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    fn dedup() -> RetryDedup {
        let (retry_patience, retry_grace) = (Duration::ZERO, Duration::from_millis(200));
        RetryDedup::new(&Limits { retry_patience, retry_grace, orphaned_responses: 2, ..Limits::default() })
    }

    fn attempt(count: u32, fields: &[(&str, &str)]) -> Option<Attempt> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_COUNT, count.into());
        let body = fields.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        Attempt::from_request(&headers, "key", "/path", &body)
    }

    /// Work that ends with the result sent to it, and counts how often it was started.
    fn work(
        n_started: &Arc<AtomicUsize>,
    ) -> (oneshot::Sender<Result<&'static str>>, BoxFuture<'static, Result<PendingResponse>>) {
        let (end, ended) = oneshot::channel();
        let n_started = n_started.clone();
        let start = async move {
            n_started.fetch_add(1, Ordering::SeqCst);
            let body = async { Ok(Bytes::from(ended.await.map_err(|_| Error::internal("dropped"))??)) };
            Ok(PendingResponse { headers: HeaderMap::new(), body: body.boxed().shared() })
        };
        (end, start.boxed())
    }

    async fn text(lease: &Lease) -> Result<Bytes> {
        lease.response.clone().await?.body.await
    }

    #[tokio::test]
    async fn a_retry_shares_an_attempt_that_is_still_connected() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let (end, start) = work(&n_started);
        let first = dedup.join_or_start(attempt(0, &[]), start);
        let second = dedup.join_or_start(attempt(1, &[]), work(&n_started).1);
        end.send(Ok("x")).unwrap();
        assert_eq!(tokio::join!(text(&first), text(&second)).1.unwrap(), "x");
        assert_eq!(n_started.load(Ordering::SeqCst), 1);
        drop((first, second));
        assert!(dedup.lock().requests.is_empty());
    }

    #[tokio::test]
    async fn first_attempts_and_different_requests_are_not_shared() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let start = |attempt| {
            let lease = dedup.join_or_start(attempt, work(&n_started).1);
            tokio::spawn(lease.response.clone());
            lease
        };
        let leases = [attempt(0, &[("a", "1")]), attempt(0, &[("a", "1")]), attempt(1, &[("a", "2")]), None]
            .map(start);
        tokio::task::yield_now().await;
        assert_eq!(n_started.load(Ordering::SeqCst), leases.len());
    }

    #[tokio::test]
    async fn an_orphaned_response_waits_for_its_retry_after_it_is_complete() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let (end, start) = work(&n_started);
        drop(dedup.join_or_start(attempt(0, &[]), start));
        tokio::task::yield_now().await;
        end.send(Ok("x")).unwrap();
        tokio::task::yield_now().await;
        let second = dedup.join_or_start(attempt(1, &[]), work(&n_started).1);
        assert_eq!((text(&second).await.unwrap(), n_started.load(Ordering::SeqCst)), ("x".into(), 1));
        drop(second);
        let state = dedup.lock();
        assert_eq!((state.n_orphans, state.requests.len()), (0, 0));
    }

    #[tokio::test]
    async fn an_orphan_ends_when_no_retry_comes() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let mut works = [work(&n_started), work(&n_started), work(&n_started)];
        for (idx, (_, start)) in works.iter_mut().enumerate() {
            let start = std::mem::replace(start, work(&n_started).1);
            drop(dedup.join_or_start(attempt(0, &[("a", &idx.to_string())]), start));
        }
        // At most two orphans go on.
        assert_eq!(works.each_ref().map(|(end, _)| end.is_closed()), [false, false, true]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(works.each_ref().map(|(end, _)| end.is_closed()), [true; 3]);
        assert_eq!(dedup.lock().n_orphans, 0);
        let second = dedup.join_or_start(attempt(1, &[("a", "0")]), work(&n_started).1);
        assert_eq!(second.response.clone().now_or_never().map(|pending| pending.is_ok()), Some(true));
        assert_eq!(n_started.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_client_that_leaves_early_cancels_its_attempt() {
        let limits = Limits { retry_patience: Duration::from_secs(3600), ..Limits::default() };
        let (dedup, n_started) = (RetryDedup::new(&limits), Arc::default());
        for (client_timeout, is_orphan) in [(None, false), (Some("600"), false), (Some("0.05"), true)] {
            let (end, start) = work(&n_started);
            let mut attempt = attempt(0, &[("a", client_timeout.unwrap_or_default())]);
            let seconds = client_timeout.map(|seconds| seconds.parse().unwrap());
            attempt.as_mut().unwrap().client_timeout = seconds.map(Duration::from_secs_f64);
            let lease = dedup.join_or_start(attempt, start);
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(lease);
            assert_eq!(end.is_closed(), !is_orphan, "{client_timeout:?}");
        }
    }

    #[tokio::test]
    async fn the_retry_of_a_failed_attempt_does_not_share_its_twin() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let (_end, start) = work(&n_started);
        let twin = dedup.join_or_start(attempt(0, &[]), start);
        let refused = dedup.join_or_start(attempt(0, &[]), async { Err(Error::internal("refused")) });
        assert!(text(&refused).await.is_err());
        drop(refused);
        let (end, start) = work(&n_started);
        let retry = dedup.join_or_start(attempt(1, &[]), start);
        end.send(Ok("own")).unwrap();
        assert_eq!(text(&retry).await.unwrap(), "own");
        drop((twin, retry));
    }

    #[tokio::test]
    async fn a_panic_becomes_an_error_for_every_client() {
        let dedup = dedup();
        let first = dedup.join_or_start(attempt(0, &[]), async { panic!("the test says so") });
        let second = dedup.join_or_start(attempt(1, &[]), async { panic!("this work must not run") });
        for lease in [&first, &second] {
            assert!(text(lease).await.is_err());
        }
        drop((first, second));
        assert!(dedup.lock().requests.values().all(|attempts| attempts.running.is_empty()));
    }

    #[tokio::test]
    async fn all_clients_get_the_same_error() {
        let (dedup, n_started) = (dedup(), Arc::default());
        let (end, start) = work(&n_started);
        let first = dedup.join_or_start(attempt(0, &[]), start);
        let second = dedup.join_or_start(attempt(1, &[]), work(&n_started).1);
        end.send(Err(Error::internal("no"))).unwrap();
        let (first, second) = tokio::join!(text(&first), text(&second));
        assert_eq!(first.unwrap_err().to_string(), second.unwrap_err().to_string());
    }
}
