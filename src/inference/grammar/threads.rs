//! The threads that check tokens and compute masks, in two lanes: one for texts whose grammar takes microseconds per
//! token, and one of low priority for texts whose grammar takes long, so that these slow down neither the others nor
//! the model.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::kernels::threads::pool;

/// Grammars are parsed recursively.
const STACK_BYTES: usize = 16 << 20;

/// Niceness of the slow lane. The model's threads have 5, and ten more is a tenth of their share of a core.
const SLOW_NICENESS: i32 = 15;

/// How long a job of the quick lane may wait before the threads count as stuck.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The threads of one engine. Dropping it ends them.
pub struct GrammarThreads(Arc<GrammarQueue>);

/// The jobs that wait for the threads.
#[derive(Default)]
pub struct GrammarQueue {
    jobs: Mutex<WaitingJobs>,
    quick: Condvar,
    slow: Condvar,
}

#[derive(Default)]
struct WaitingJobs {
    /// Oldest first.
    quick: VecDeque<GrammarJob>,
    slow: Vec<GrammarJob>,
    is_closed: bool,
}

/// A job on behalf of one text.
pub struct GrammarJob {
    /// The work.
    pub run: Box<dyn FnOnce() + Send>,
    /// Time that the text's jobs have taken so far. In the slow lane, the text with the least goes first.
    pub spent: Duration,
    /// Whether the text's jobs take long.
    pub is_slow: bool,
    /// When it was queued.
    pub queued: Instant,
}

impl GrammarThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start() -> Result<Self> {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = Self(Arc::default());
        // A quick lane that is wider than the machine leaves room beside a text that turns slow in it.
        let quick = std::iter::repeat_n(false, n_cores.clamp(3, 4));
        let slow = std::iter::repeat_n(true, (n_cores / 4).clamp(1, 4));
        for is_slow in quick.chain(slow) {
            let queue = threads.0.clone();
            thread::Builder::new()
                .name("grammar".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || queue.serve(is_slow))
                .map_err(|e| Error::internal(format!("cannot start a grammar thread: {e}")))?;
        }
        Ok(threads)
    }

    /// The queue of the threads.
    pub fn queue(&self) -> &Arc<GrammarQueue> {
        &self.0
    }
}

impl Drop for GrammarThreads {
    fn drop(&mut self) {
        let mut jobs = self.0.jobs();
        *jobs = WaitingJobs { is_closed: true, ..WaitingJobs::default() };
        drop(jobs);
        self.0.quick.notify_all();
        self.0.slow.notify_all();
    }
}

impl GrammarQueue {
    /// Queues a job. It is dropped if the threads have ended.
    pub fn push(&self, job: GrammarJob) {
        let mut jobs = self.jobs();
        if jobs.is_closed {
            return;
        }
        let wake = if job.is_slow {
            jobs.slow.push(job);
            &self.slow
        } else {
            jobs.quick.push_back(job);
            &self.quick
        };
        drop(jobs);
        wake.notify_one();
    }

    /// Checks that the threads make progress.
    ///
    /// # Errors
    /// When a job of the quick lane has waited for too long.
    pub fn check_health(&self) -> Result<()> {
        match self.jobs().quick.front().map(|job| job.queued.elapsed()) {
            Some(waited) if waited > MAX_WAIT => Err(Error::new(
                Kind::Unavailable,
                format!("the grammar threads have been busy for {} s; try again later", waited.as_secs()),
            )),
            _ => Ok(()),
        }
    }

    /// The main loop of a thread.
    fn serve(&self, is_slow: bool) {
        if is_slow {
            pool::set_niceness(SLOW_NICENESS);
        }
        while let Some(job) = self.next(is_slow) {
            // A panic costs the job, whose text then ends with an error.
            let _ = catch_unwind(AssertUnwindSafe(job.run));
        }
    }

    /// Waits for the next job of a lane; `None` once the threads are to end.
    fn next(&self, is_slow: bool) -> Option<GrammarJob> {
        let mut jobs = self.jobs();
        while !jobs.is_closed {
            let job = if is_slow { jobs.next_slow() } else { jobs.quick.pop_front() };
            if job.is_some() {
                return job;
            }
            let lane = if is_slow { &self.slow } else { &self.quick };
            jobs = lane.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn jobs(&self) -> MutexGuard<'_, WaitingJobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingJobs {
    /// The slow job of the text that has had the least time.
    fn next_slow(&mut self) -> Option<GrammarJob> {
        let idx = (0..self.slow.len()).min_by_key(|&idx| self.slow[idx].spent)?;
        Some(self.slow.swap_remove(idx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn job(spent_ms: u64, is_slow: bool, run: impl FnOnce() + Send + 'static) -> GrammarJob {
        let spent = Duration::from_millis(spent_ms);
        GrammarJob { run: Box::new(run), spent, is_slow, queued: Instant::now() }
    }

    #[test]
    fn slow_jobs_do_not_hold_up_quick_ones() {
        let threads = GrammarThreads::start().unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        let (done, order) = mpsc::channel();
        let slow = done.clone();
        threads.queue().push(job(0, true, move || {
            let _ = slow.send("slow");
            let _ = blocked.recv();
        }));
        assert_eq!(order.recv(), Ok("slow"));
        threads.queue().push(job(0, false, move || {
            let _ = done.send("quick");
        }));
        assert_eq!(order.recv(), Ok("quick"));
        drop(release);
    }

    #[test]
    fn the_slow_text_with_the_least_time_goes_first_and_a_panic_costs_one_job() {
        let mut jobs = WaitingJobs::default();
        for spent in [30, 10, 20] {
            jobs.slow.push(job(spent, true, || {}));
        }
        let order: Vec<u128> =
            std::iter::from_fn(|| jobs.next_slow()).map(|job| job.spent.as_millis()).collect();
        assert_eq!(order, [10, 20, 30]);
        let threads = GrammarThreads::start().unwrap();
        let (done, finished) = mpsc::channel();
        for _ in 0..8 {
            threads.queue().push(job(0, false, || panic!("requested by the test")));
        }
        threads.queue().push(job(0, false, move || {
            let _ = done.send(());
        }));
        assert_eq!(finished.recv(), Ok(()));
        assert!(threads.queue().check_health().is_ok());
    }
}
