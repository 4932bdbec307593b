//! Retries that take over what their first try began.
//!
//! OpenAI's clients give up on an answer that takes too long, close the connection and ask again. On a slow machine
//! that would compute the same answer again and again and deliver none. So an answer that had been waited for so
//! long that a timeout is the likely reason outlives its client for a while, and the retry, which has the same key,
//! path and body, joins it.
//!
//! Requests that are alike need not be the same: a client may want several answers to one prompt. A retry takes over
//! a try whose client has gone, if there is one. If not, it shares one that is still connected, but only when no try
//! of the same request has ended without an answer: such a try has a retry of its own, which is to compute.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::Limits;
use crate::error::{Error, Result};
use crate::telemetry;

/// What comes later, for everybody who waits for it; computed while somebody does.
pub type Later<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Makes it of `work`. A panic there becomes an error: it would be one more of whoever looked at what came of it.
pub fn later<T: Clone + Send + Sync + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Later<T> {
    let failed = |_| Err(Error::internal("the server failed on this request; the fault was logged"));
    AssertUnwindSafe(work).catch_unwind().map(move |done| done.unwrap_or_else(failed)).boxed().shared()
}

/// An answer that has begun.
#[derive(Clone)]
pub struct Begun {
    pub headers: HeaderMap,
    pub body: Later<Bytes>,
}

/// Which try of a request this is: all of OpenAI's clients say so.
const RETRY_COUNT: &str = "x-stainless-retry-count";

/// For how many seconds a client waits: one of them says so always, the other where the caller does.
const CLIENTS_TIMEOUT: [&str; 2] = ["x-stainless-read-timeout", "x-stainless-timeout"];

/// A client's clock starts a little before ours.
const NEARLY: f64 = 0.95;

/// Requests of which is known that a try ended without an answer, beside those that run. Beyond that they are
/// forgotten, and their retries may share.
const MAX_KNOWN: usize = 1024;

/// What requests that are alike have in common: who asks what of which route.
type Key = [u8; 32];

/// A request of a client that may try again.
pub struct Attempt {
    key: Key,
    is_retry: bool,
    /// How long its client waits, if it says so.
    clients_timeout: Option<Duration>,
}

impl Attempt {
    /// None where the client does not say that it tries again.
    pub fn of(headers: &HeaderMap, tenant: &str, path: &str, body: &Map<String, Value>) -> Option<Self> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<f64>().ok();
        let count = number(RETRY_COUNT)?;
        let mut hash = Sha256::new();
        for part in [tenant.as_bytes(), path.as_bytes()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.update(serde_json::to_vec(body).ok()?);
        let seconds = CLIENTS_TIMEOUT.iter().find_map(|name| number(name));
        let clients_timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds * NEARLY).ok());
        Some(Self { key: hash.finalize().into(), is_retry: count > 0.0, clients_timeout })
    }
}

/// The answers that retries can join.
#[derive(Clone)]
pub struct Retries {
    /// How long a client must have waited for its answer to outlive it, and for how long that is kept then.
    patience: Duration,
    grace: Duration,
    /// Answers kept at once whose clients have gone.
    max_kept: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    requests: HashMap<Key, Known>,
    n_kept: usize,
    n_begun: u64,
}

/// Tries of requests that are alike.
#[derive(Default)]
struct Known {
    running: Vec<Running>,
    /// Tries that ended without an answer, and whose retries have not come.
    n_owed: usize,
}

/// An answer that has not ended, or that nobody has fetched.
struct Running {
    id: u64,
    answer: Later<Begun>,
    /// Clients that wait for it.
    n_waiting: usize,
    /// Goes on with it for a while where there are none.
    keeper: Option<AbortHandle>,
}

/// A client that waits for an answer. When it is dropped, the client has its answer, or has gone.
pub struct Try {
    pub answer: Later<Begun>,
    pub since: Instant,
    /// Whether somebody else began it.
    pub is_joined: bool,
    /// Where others may join.
    registered: Option<Registered>,
}

struct Registered {
    retries: Retries,
    key: Key,
    id: u64,
    clients_timeout: Option<Duration>,
}

impl Retries {
    pub fn new(limits: &Limits) -> Self {
        Self {
            patience: limits.retry_patience,
            grace: limits.retry_grace,
            max_kept: limits.retained_responses,
            state: Arc::default(),
        }
    }

    /// The answer that `attempt` is a retry for, or a new one, which is what `work` makes.
    pub fn join_or_begin(
        &self,
        attempt: Option<Attempt>,
        work: impl Future<Output = Result<Begun>> + Send + 'static,
    ) -> Try {
        let since = Instant::now();
        let Some(Attempt { key, is_retry, clients_timeout }) = attempt else {
            return Try { answer: later(work), since, is_joined: false, registered: None };
        };
        let mut state = self.state();
        let known = state.requests.entry(key).or_default();
        let joined = if is_retry { known.join() } else { None };
        let (id, answer, is_joined) = match joined {
            Some((id, answer, was_kept)) => {
                state.n_kept -= usize::from(was_kept);
                metrics::counter!(telemetry::RETRIES_JOINED).increment(1);
                (id, answer, true)
            }
            None => {
                let answer = later(work);
                state.n_begun += 1;
                let id = state.n_begun;
                let running = Running { id, answer: answer.clone(), n_waiting: 1, keeper: None };
                state.requests.entry(key).or_default().running.push(running);
                (id, answer, false)
            }
        };
        drop(state);
        Try {
            answer,
            since,
            is_joined,
            registered: Some(Registered { retries: self.clone(), key, id, clients_timeout }),
        }
    }

    /// Ends what has been kept for long enough, unless somebody has joined.
    fn lapse(&self, key: Key, id: u64) {
        let ended = {
            let mut state = self.state();
            let is_kept = |running: &Running| running.id == id && running.n_waiting == 0;
            let known = state.requests.get_mut(&key);
            if !known.is_some_and(|known| known.running.iter().any(is_kept)) {
                return;
            }
            state.n_kept -= 1;
            state.end(key, id, true)
        };
        // What it computed is freed without the lock.
        drop(ended);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out an answer; `is_owed` where its client has none.
    fn end(&mut self, key: Key, id: u64, is_owed: bool) -> Option<Running> {
        if self.requests.len() > MAX_KNOWN {
            self.requests.retain(|_, known| !known.running.is_empty());
        }
        let known = self.requests.get_mut(&key)?;
        known.n_owed += usize::from(is_owed);
        let place = known.running.iter().position(|running| running.id == id);
        let ended = place.map(|place| known.running.remove(place));
        if known.running.is_empty() && known.n_owed == 0 {
            self.requests.remove(&key);
        }
        ended
    }
}

impl Known {
    /// The answer that a retry takes over or shares, and whether it was kept without a client.
    fn join(&mut self) -> Option<(u64, Later<Begun>, bool)> {
        let kept = self.running.iter().position(|running| running.n_waiting == 0);
        let place = match kept {
            Some(place) => place,
            None if self.n_owed > 0 => {
                self.n_owed -= 1;
                return None;
            }
            None => self.running.iter().position(|running| running.n_waiting == 1)?,
        };
        let running = &mut self.running[place];
        running.n_waiting += 1;
        if let Some(keeper) = running.keeper.take() {
            keeper.abort();
        }
        Some((running.id, running.answer.clone(), kept.is_some()))
    }
}

/// What came of an answer, if it has ended: whether it is one.
fn outcome(answer: &Later<Begun>) -> Option<bool> {
    match answer.peek()? {
        Ok(begun) => begun.body.peek().map(|body| body.is_ok()),
        Err(_) => Some(false),
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        let Some(Registered { retries, key, id, clients_timeout }) = &self.registered else { return };
        let (key, id) = (*key, *id);
        let mut state = retries.state();
        let n_kept = state.n_kept;
        let known = state.requests.get_mut(&key);
        let Some(running) = known.and_then(|known| known.running.iter_mut().find(|running| running.id == id))
        else {
            return;
        };
        running.n_waiting -= 1;
        if running.n_waiting > 0 {
            return;
        }
        let outcome = outcome(&running.answer);
        let patience = clients_timeout.map_or(retries.patience, |timeout| timeout.min(retries.patience));
        let is_likely_to_come_again = self.since.elapsed() >= patience && !retries.grace.is_zero();
        let ended = match Handle::try_current() {
            Ok(runtime) if outcome.is_none() && is_likely_to_come_again && n_kept < retries.max_kept => {
                let (answer, grace, retries) = (running.answer.clone(), retries.grace, retries.clone());
                let keeper = runtime.spawn(async move {
                    let kept = timeout(grace, async {
                        if let Ok(begun) = answer.await {
                            // What comes of it is for whoever joins.
                            let _ = begun.body.await;
                        }
                        std::future::pending::<()>().await;
                    });
                    let _ = kept.await;
                    retries.lapse(key, id);
                });
                running.keeper = Some(keeper.abort_handle());
                state.n_kept += 1;
                None
            }
            _ => state.end(key, id, outcome != Some(true)),
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

    fn retries() -> Retries {
        let (retry_patience, retry_grace) = (Duration::ZERO, Duration::from_millis(200));
        Retries::new(&Limits { retry_patience, retry_grace, retained_responses: 2, ..Limits::default() })
    }

    fn attempt(count: u32, fields: &[(&str, &str)]) -> Option<Attempt> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_COUNT, count.into());
        let body = fields.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        Attempt::of(&headers, "key", "/path", &body)
    }

    /// Work that ends when it is told how; counts how often it began.
    fn work(
        n_begun: &Arc<AtomicUsize>,
    ) -> (oneshot::Sender<Result<&'static str>>, BoxFuture<'static, Result<Begun>>) {
        let (end, ended) = oneshot::channel();
        let n_begun = n_begun.clone();
        let begin = async move {
            n_begun.fetch_add(1, Ordering::SeqCst);
            let body = async { Ok(Bytes::from(ended.await.map_err(|_| Error::internal("dropped"))??)) };
            Ok(Begun { headers: HeaderMap::new(), body: body.boxed().shared() })
        };
        (end, begin.boxed())
    }

    async fn text(tried: &Try) -> Result<Bytes> {
        tried.answer.clone().await?.body.await
    }

    #[tokio::test]
    async fn a_retry_shares_with_a_try_that_is_still_connected() {
        let (retries, n_begun) = (retries(), Arc::default());
        let (end, begin) = work(&n_begun);
        let first = retries.join_or_begin(attempt(0, &[]), begin);
        let second = retries.join_or_begin(attempt(1, &[]), work(&n_begun).1);
        end.send(Ok("x")).unwrap();
        assert_eq!(tokio::join!(text(&first), text(&second)).1.unwrap(), "x");
        assert_eq!(n_begun.load(Ordering::SeqCst), 1);
        drop((first, second));
        assert!(retries.state().requests.is_empty());
    }

    #[tokio::test]
    async fn no_first_try_and_no_other_request_is_shared() {
        let (retries, n_begun) = (retries(), Arc::default());
        let begin = |attempt| {
            let tried = retries.join_or_begin(attempt, work(&n_begun).1);
            tokio::spawn(tried.answer.clone());
            tried
        };
        let tries = [attempt(0, &[("a", "1")]), attempt(0, &[("a", "1")]), attempt(1, &[("a", "2")]), None]
            .map(begin);
        tokio::task::yield_now().await;
        assert_eq!(n_begun.load(Ordering::SeqCst), tries.len());
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_its_retry_even_after_it_has_ended() {
        let (retries, n_begun) = (retries(), Arc::default());
        let (end, begin) = work(&n_begun);
        drop(retries.join_or_begin(attempt(0, &[]), begin));
        tokio::task::yield_now().await;
        end.send(Ok("x")).unwrap();
        tokio::task::yield_now().await;
        let second = retries.join_or_begin(attempt(1, &[]), work(&n_begun).1);
        assert_eq!((text(&second).await.unwrap(), n_begun.load(Ordering::SeqCst)), ("x".into(), 1));
        drop(second);
        let state = retries.state();
        assert_eq!((state.n_kept, state.requests.len()), (0, 0));
    }

    #[tokio::test]
    async fn nobody_comes_for_it_and_it_ends() {
        let (retries, n_begun) = (retries(), Arc::default());
        let mut works = [work(&n_begun), work(&n_begun), work(&n_begun)];
        for (idx, (_, begin)) in works.iter_mut().enumerate() {
            let begin = std::mem::replace(begin, work(&n_begun).1);
            drop(retries.join_or_begin(attempt(0, &[("a", &idx.to_string())]), begin));
        }
        // Two are kept at most.
        assert_eq!(works.each_ref().map(|(end, _)| end.is_closed()), [false, false, true]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(works.each_ref().map(|(end, _)| end.is_closed()), [true; 3]);
        assert_eq!(retries.state().n_kept, 0);
        let second = retries.join_or_begin(attempt(1, &[("a", "0")]), work(&n_begun).1);
        assert_eq!(second.answer.clone().now_or_never().map(|begun| begun.is_ok()), Some(true));
        assert_eq!(n_begun.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn whoever_leaves_early_gives_up() {
        let limits = Limits { retry_patience: Duration::from_secs(3600), ..Limits::default() };
        let (retries, n_begun) = (Retries::new(&limits), Arc::default());
        for (clients_timeout, is_kept) in [(None, false), (Some("600"), false), (Some("0.05"), true)] {
            let (end, begin) = work(&n_begun);
            let mut tried = attempt(0, &[("a", clients_timeout.unwrap_or_default())]);
            let seconds = clients_timeout.map(|seconds| seconds.parse().unwrap());
            tried.as_mut().unwrap().clients_timeout = seconds.map(Duration::from_secs_f64);
            let tried = retries.join_or_begin(tried, begin);
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(tried);
            assert_eq!(end.is_closed(), !is_kept, "{clients_timeout:?}");
        }
    }

    #[tokio::test]
    async fn the_retry_of_a_refused_try_does_not_share_with_its_twin() {
        let (retries, n_begun) = (retries(), Arc::default());
        let (_end, begin) = work(&n_begun);
        let twin = retries.join_or_begin(attempt(0, &[]), begin);
        let refused = retries.join_or_begin(attempt(0, &[]), async { Err(Error::internal("refused")) });
        assert!(text(&refused).await.is_err());
        drop(refused);
        let (end, begin) = work(&n_begun);
        let retry = retries.join_or_begin(attempt(1, &[]), begin);
        end.send(Ok("own")).unwrap();
        assert_eq!(text(&retry).await.unwrap(), "own");
        drop((twin, retry));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_like_others() {
        let retries = retries();
        let first = retries.join_or_begin(attempt(0, &[]), async { panic!("the test says so") });
        let second = retries.join_or_begin(attempt(1, &[]), async { panic!("nobody computes this") });
        for tried in [&first, &second] {
            assert!(text(tried).await.is_err());
        }
        drop((first, second));
        assert!(retries.state().requests.values().all(|known| known.running.is_empty()));
    }

    #[tokio::test]
    async fn a_failure_is_the_same_for_all() {
        let (retries, n_begun) = (retries(), Arc::default());
        let (end, begin) = work(&n_begun);
        let first = retries.join_or_begin(attempt(0, &[]), begin);
        let second = retries.join_or_begin(attempt(1, &[]), work(&n_begun).1);
        end.send(Err(Error::internal("no"))).unwrap();
        let (first, second) = tokio::join!(text(&first), text(&second));
        assert_eq!(first.unwrap_err().to_string(), second.unwrap_err().to_string());
    }
}
