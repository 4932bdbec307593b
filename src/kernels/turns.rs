//! Whose turn it is to use the compute pool.
//!
//! The threads that compute models are parties: each engine is one, the embedder another. While several want
//! the pool, each gets the same share of its time, however long its single pieces of work take: the one that
//! has had least goes next. Who has not asked for a while gathers no claim.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How soon after its last piece of work a party is expected to come with the next: a forward pass is
/// hundreds of pieces, between two passes tokens are chosen.
const PAUSE: Duration = Duration::from_micros(500);

/// Hands out turns.
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_taken: bool,
    parties: Vec<Party>,
}

/// A thread that brings work.
struct Party {
    thread: ThreadId,
    /// Time it has had.
    used: Duration,
    doing: Doing,
}

#[derive(Clone, Copy, PartialEq)]
enum Doing {
    Waits,
    Works,
    /// Nothing since then.
    Nothing(Instant),
}

impl Party {
    /// Whether it has work, or is about to.
    fn is_active(&self, now: Instant) -> bool {
        match self.doing {
            Doing::Waits | Doing::Works => true,
            Doing::Nothing(since) => now.saturating_duration_since(since) < PAUSE,
        }
    }
}

impl Turns {
    pub const fn new() -> Self {
        Self { state: Mutex::new(State { is_taken: false, parties: Vec::new() }), changed: Condvar::new() }
    }

    /// Runs `work` when it is the calling thread's turn.
    pub fn take<T>(&self, work: impl FnOnce() -> T) -> T {
        let turn = self.begin();
        let result = work();
        drop(turn);
        result
    }

    fn begin(&self) -> Turn<'_> {
        let thread = thread::current().id();
        let mut now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let used = state.party(thread).filter(|party| party.is_active(now)).map(|party| party.used);
        if used.is_none() {
            // It begins where those are that are at it.
            state.parties.retain(|party| party.is_active(now) && party.thread != thread);
            let used = state.parties.iter().map(|party| party.used).min().unwrap_or_default();
            state.parties.push(Party { thread, used, doing: Doing::Waits });
        }
        state.set(thread, Doing::Waits);
        while state.is_taken || state.is_before(thread, now) {
            state = if state.is_taken {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0
            };
            now = Instant::now();
        }
        state.is_taken = true;
        state.set(thread, Doing::Works);
        Turn { turns: self, thread, begin: now }
    }
}

impl State {
    fn party(&mut self, thread: ThreadId) -> Option<&mut Party> {
        self.parties.iter_mut().find(|party| party.thread == thread)
    }

    fn set(&mut self, thread: ThreadId, doing: Doing) {
        if let Some(party) = self.party(thread) {
            party.doing = doing;
        }
    }

    /// Whether another party goes before that of this thread.
    fn is_before(&mut self, thread: ThreadId, now: Instant) -> bool {
        let used = self.party(thread).map(|party| party.used);
        self.parties.iter().any(|other| used.is_some_and(|used| other.used < used) && other.is_active(now))
    }
}

/// A turn, until it is dropped.
struct Turn<'a> {
    turns: &'a Turns,
    thread: ThreadId,
    begin: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.turns.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_taken = false;
        if let Some(party) = state.party(self.thread) {
            party.used += now - self.begin;
            party.doing = Doing::Nothing(now);
        }
        let others_wait = state.parties.iter().any(|party| party.doing == Doing::Waits);
        drop(state);
        if others_wait {
            self.turns.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// Does work of some length over and over until told to stop; gives how long it worked in all.
    fn work(turns: &Turns, piece: Duration, stop: &AtomicBool) -> Duration {
        let mut total = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            turns.take(|| {
                let begin = Instant::now();
                while begin.elapsed() < piece {
                    std::hint::spin_loop();
                }
                total += begin.elapsed();
            });
            // What an engine does between two pieces.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(5) {
                std::hint::spin_loop();
            }
        }
        total
    }

    #[test]
    fn short_pieces_get_as_much_time_as_long_ones() {
        let (turns, stop) = (Turns::new(), AtomicBool::new(false));
        let [short, long] = thread::scope(|scope| {
            let short = scope.spawn(|| work(&turns, Duration::from_micros(50), &stop));
            let long = scope.spawn(|| work(&turns, Duration::from_millis(5), &stop));
            thread::sleep(Duration::from_millis(600));
            stop.store(true, Ordering::Relaxed);
            [short, long].map(|thread| thread.join().unwrap().as_secs_f64())
        });
        assert!(short / long > 0.5 && short / long < 1.5, "{short} s and {long} s");
    }

    #[test]
    fn who_was_idle_has_no_claim() {
        let turns = Turns::new();
        let idle = thread::scope(|scope| {
            scope.spawn(|| turns.take(|| ()));
            scope.spawn(|| {
                for _ in 0..20 {
                    turns.take(|| thread::sleep(Duration::from_millis(5)));
                }
            });
            thread::sleep(Duration::from_millis(60));
            let late = scope.spawn(|| {
                turns.take(|| ());
                let begin = Instant::now();
                (0..10).for_each(|_| turns.take(|| thread::sleep(Duration::from_millis(5))));
                begin.elapsed()
            });
            late.join().unwrap()
        });
        // Ten pieces of its own and about as many of the other's.
        assert!(idle > Duration::from_millis(70), "{idle:?}");
    }

    #[test]
    fn a_panic_ends_the_turn() {
        let turns = Turns::new();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| turns.take(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        turns.take(|| ());
    }
}
