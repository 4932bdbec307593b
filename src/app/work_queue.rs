//! Threads for work that would hold up the I/O threads, such as rendering and tokenizing, and the queue for them.
//!
//! Tenants get equal shares of the threads ([`FairQueue`]). One thread takes small work only, so that large work of
//! others delays a small request by no more than other small ones. What waits is bounded by
//! [admission control](super::AdmissionControl): every request in the queue holds a place there.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fair_queue::FairQueue;
use crate::error::{Error, Result};

/// The largest work that counts as small.
const SMALL_BYTES: usize = 16 << 10;

/// The queue, with the threads that serve it. They end with it.
pub struct WorkQueue {
    shared: Arc<SharedQueue>,
}

struct SharedQueue {
    state: Mutex<QueueState>,
    /// Signals that work has arrived, or that the queue has ended.
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    queue: FairQueue<PendingWork>,
    /// Ids of the work that runs, and when it arrived.
    running: Vec<(u64, Instant)>,
    has_ended: bool,
}

struct PendingWork {
    arrived: Instant,
    run: Box<dyn FnOnce() + Send>,
}

/// Takes work out of the queue if its client goes before it runs.
struct CancelOnDrop<'a> {
    shared: &'a SharedQueue,
    id: u64,
}

impl WorkQueue {
    /// Starts the threads: at least two. `set_up` runs on each of them first.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(name: &str, n_threads: usize, set_up: fn()) -> Result<Self> {
        let shared = Arc::new(SharedQueue { state: Mutex::default(), changed: Condvar::new() });
        for idx in 0..n_threads.max(2) {
            let max_bytes = if idx == 0 { SMALL_BYTES } else { usize::MAX };
            let shared = shared.clone();
            let run = move || {
                set_up();
                shared.serve(max_bytes);
            };
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(|e| Error::internal(format!("cannot start the threads for {name}: {e}")))?;
        }
        Ok(Self { shared })
    }

    /// Runs `work`, whose cost grows with `n_bytes`, on behalf of a tenant. Work that has not begun is dropped with
    /// the future.
    ///
    /// # Errors
    /// When `work` panics.
    pub async fn run<T: Send + 'static>(
        &self,
        tenant: &Arc<str>,
        n_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        // The client may have gone.
        let run = Box::new(move || drop(reply.send(work())));
        let item = PendingWork { arrived: Instant::now(), run };
        let id = self.shared.state().queue.push(tenant, n_bytes, item);
        let _cancel = CancelOnDrop { shared: &self.shared, id };
        self.shared.changed.notify_all();
        result
            .await
            .map_err(|_| Error::internal("the request could not be prepared; the server's log has the cause"))
    }

    /// Work that waits.
    pub fn n_waiting(&self) -> usize {
        self.shared.state().queue.iter().count()
    }

    /// The time since the oldest work arrived that is not done; zero if there is none.
    pub fn oldest(&self) -> Duration {
        let state = self.shared.state();
        let waiting = state.queue.iter().map(|queued| queued.item.arrived);
        let running = state.running.iter().map(|&(_, arrived)| arrived);
        waiting.chain(running).min().map(|arrived| arrived.elapsed()).unwrap_or_default()
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        self.shared.state().has_ended = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.state().queue.remove(self.id);
    }
}

impl SharedQueue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work of up to `max_bytes` until the queue ends.
    fn serve(&self, max_bytes: usize) {
        while let Some((id, run)) = self.next(max_bytes) {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
                // The panic was logged; dropping its payload could panic again.
                mem::forget(payload);
            }
            self.state().running.retain(|&(running, _)| running != id);
        }
    }

    /// Waits for work; `None` once the queue has ended.
    fn next(&self, max_bytes: usize) -> Option<(u64, Box<dyn FnOnce() + Send>)> {
        let mut state = self.state();
        loop {
            if state.has_ended {
                return None;
            }
            if let Some(next) = state.queue.pop(max_bytes) {
                state.running.push((next.id, next.item.arrived));
                return Some((next.id, next.item.run));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn queue() -> WorkQueue {
        WorkQueue::start("test", 2, || {}).unwrap()
    }

    const LARGE: usize = 1 << 20;

    #[tokio::test]
    async fn small_work_passes_large_work() {
        let queue = queue();
        let (release, held) = mpsc::channel::<()>();
        let tenant: Arc<str> = "a".into();
        let large = queue.run(&tenant, LARGE, move || held.recv());
        let small = async {
            tokio::task::yield_now().await;
            let result = queue.run(&tenant, 10, || 7).await.unwrap();
            assert!(queue.oldest() > Duration::ZERO, "the large one runs on");
            release.send(()).unwrap();
            result
        };
        let (large, small) = tokio::join!(large, small);
        assert_eq!((large.unwrap(), small), (Ok(()), 7));
        // A thread is done a moment after its result is known.
        while !queue.oldest().is_zero() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives_on() {
        let queue = queue();
        let tenant: Arc<str> = "a".into();
        for _ in 0..3 {
            assert!(queue.run(&tenant, LARGE, || -> u8 { panic!("the test says so") }).await.is_err());
        }
        assert_eq!(queue.run(&tenant, LARGE, || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_of_a_client_that_has_gone_is_dropped() {
        let queue = queue();
        let tenant: Arc<str> = "a".into();
        let (release, held) = mpsc::channel::<()>();
        let running = queue.run(&tenant, LARGE, move || held.recv());
        let waiting = async {
            tokio::task::yield_now().await;
            let cancelled = queue.run(&tenant, LARGE, || -> u8 { unreachable!("nobody waits for it") });
            assert!(tokio::time::timeout(Duration::from_millis(20), cancelled).await.is_err());
            assert_eq!(queue.n_waiting(), 0);
            release.send(()).unwrap();
        };
        let _ = tokio::join!(running, waiting);
    }
}
