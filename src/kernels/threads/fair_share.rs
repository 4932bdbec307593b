//! A fair-share lock on the compute pool: least service time first.
//!
//! Each thread that brings work (an engine, the embedder) is a client of the lock. While several clients compete,
//! each gets a fair share of the pool's time, the same for all, however long its single jobs take: the client that
//! has been served least goes next. An idle client accrues almost no credit.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How soon after its last job an active client is expected to bring the next: a forward pass is hundreds of
/// jobs, and between two passes tokens are sampled.
const PAUSE: Duration = Duration::from_micros(300);

/// The credit that a returning client keeps at most, as service time: an engine pauses after each token and
/// should not lose its share by that.
const MAX_CREDIT: Duration = Duration::from_millis(10);

/// Service time by which the client served last may overtake the others, since switching costs time.
const QUANTUM: Duration = Duration::from_millis(4);

/// The lock.
pub struct FairLock {
    state: Mutex<LockState>,
    changed: Condvar,
}

struct LockState {
    held: bool,
    /// The client served last.
    last: Option<ThreadId>,
    clients: Vec<Client>,
}

/// A thread that brings work.
struct Client {
    thread: ThreadId,
    /// Service time so far.
    used: Duration,
    state: ClientState,
}

#[derive(Clone, Copy, PartialEq)]
enum ClientState {
    Waiting,
    Running,
    IdleSince(Instant),
}

impl Client {
    /// Whether it has work, or is about to bring some.
    fn is_active(&self, now: Instant) -> bool {
        self.has_worked_within(PAUSE, now)
    }

    /// Whether it has had work recently enough to keep its account.
    fn is_remembered(&self, now: Instant) -> bool {
        self.has_worked_within(2 * MAX_CREDIT, now)
    }

    fn has_worked_within(&self, time: Duration, now: Instant) -> bool {
        match self.state {
            ClientState::Waiting | ClientState::Running => true,
            ClientState::IdleSince(since) => now.saturating_duration_since(since) < time,
        }
    }
}

impl FairLock {
    /// A lock that nobody holds.
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(LockState { held: false, last: None, clients: Vec::new() }),
            changed: Condvar::new(),
        }
    }

    /// Runs `job` while the calling thread holds the lock.
    pub fn run<T>(&self, job: impl FnOnce() -> T) -> T {
        let guard = self.lock();
        let result = job();
        drop(guard);
        result
    }

    fn lock(&self) -> FairLockGuard<'_> {
        let thread = thread::current().id();
        let mut now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.client(thread).is_some_and(|client| client.is_active(now)) {
            let had = state.client(thread).map_or(Duration::ZERO, |client| client.used);
            state.clients.retain(|client| client.is_remembered(now) && client.thread != thread);
            let others = state.clients.iter().map(|client| client.used);
            let used = others
                .min()
                .map_or(Duration::ZERO, |least| had.clamp(least.saturating_sub(MAX_CREDIT), least));
            state.clients.push(Client { thread, used, state: ClientState::Waiting });
        }
        state.set(thread, ClientState::Waiting);
        while state.held || state.must_yield(thread, now) {
            // Nothing signals that another client's pause has become too long, so the wait is timed.
            state = self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
            now = Instant::now();
        }
        state.held = true;
        state.last = Some(thread);
        state.set(thread, ClientState::Running);
        FairLockGuard { lock: self, thread, begin: now }
    }
}

impl LockState {
    fn client(&mut self, thread: ThreadId) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.thread == thread)
    }

    fn set(&mut self, thread: ThreadId, state: ClientState) {
        if let Some(client) = self.client(thread) {
            client.state = state;
        }
    }

    /// Whether another active client goes before that of this thread.
    fn must_yield(&self, thread: ThreadId, now: Instant) -> bool {
        let own = self.clients.iter().find(|client| client.thread == thread).map(|own| self.rank(own));
        let goes_before =
            |other: &Client| own.is_some_and(|own| self.rank(other) < own) && other.is_active(now);
        self.clients.iter().any(goes_before)
    }

    /// The order of service: the smallest rank goes first.
    fn rank(&self, client: &Client) -> Duration {
        client.used + if self.last == Some(client.thread) { Duration::ZERO } else { QUANTUM }
    }
}

/// Holds the lock until it is dropped.
struct FairLockGuard<'a> {
    lock: &'a FairLock,
    thread: ThreadId,
    begin: Instant,
}

impl Drop for FairLockGuard<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.lock.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held = false;
        if let Some(client) = state.client(self.thread) {
            client.used += now - self.begin;
            client.state = ClientState::IdleSince(now);
        }
        // A client that would have to keep waiting is not woken.
        let can_go =
            |client: &Client| client.state == ClientState::Waiting && !state.must_yield(client.thread, now);
        let any_can_go = state.clients.iter().any(can_go);
        drop(state);
        if any_can_go {
            self.lock.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// Runs jobs of some length over and over until `stop`; returns how long they ran in all.
    fn run_jobs(lock: &FairLock, job: Duration, stop: &AtomicBool) -> Duration {
        let mut total = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            lock.run(|| {
                let begin = Instant::now();
                while begin.elapsed() < job {
                    std::hint::spin_loop();
                }
                total += begin.elapsed();
            });
            // An engine pauses as long between two jobs.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(5) {
                std::hint::spin_loop();
            }
        }
        total
    }

    #[test]
    fn short_jobs_get_as_much_time_as_long_ones() {
        let (lock, stop) = (FairLock::new(), AtomicBool::new(false));
        let [short, long] = thread::scope(|scope| {
            let short = scope.spawn(|| run_jobs(&lock, Duration::from_micros(50), &stop));
            let long = scope.spawn(|| run_jobs(&lock, Duration::from_millis(5), &stop));
            thread::sleep(Duration::from_millis(600));
            stop.store(true, Ordering::Relaxed);
            [short, long].map(|thread| thread.join().unwrap().as_secs_f64())
        });
        assert!(short / long > 0.5 && short / long < 1.5, "{short} s and {long} s");
    }

    #[test]
    fn a_client_that_leaves_is_not_waited_for() {
        let lock = FairLock::new();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| (0..20).for_each(|_| lock.run(|| thread::sleep(Duration::from_millis(5)))));
            // Less than its share, then nothing more.
            scope.spawn(|| (0..5).for_each(|_| lock.run(|| thread::sleep(Duration::from_millis(1)))));
        });
        assert!(begin.elapsed() < Duration::from_millis(400), "{:?}", begin.elapsed());
    }

    #[test]
    fn an_idle_client_accrues_no_credit() {
        let lock = FairLock::new();
        let idle = thread::scope(|scope| {
            scope.spawn(|| lock.run(|| ()));
            scope.spawn(|| {
                for _ in 0..20 {
                    lock.run(|| thread::sleep(Duration::from_millis(5)));
                }
            });
            thread::sleep(Duration::from_millis(60));
            let late = scope.spawn(|| {
                lock.run(|| ());
                let begin = Instant::now();
                (0..10).for_each(|_| lock.run(|| thread::sleep(Duration::from_millis(5))));
                begin.elapsed()
            });
            late.join().unwrap()
        });
        // Ten jobs of its own and about as many of the other client's.
        assert!(idle > Duration::from_millis(70), "{idle:?}");
    }

    #[test]
    fn a_panic_releases_the_lock() {
        let lock = FairLock::new();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lock.run(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        lock.run(|| ());
    }
}
