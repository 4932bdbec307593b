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
const PAUSE: Duration = Duration::from_micros(300);

/// How much less than others a party that comes back may have had, to be made up for: an engine pauses after
/// each token, and is to lose nothing by it.
const CLAIM: Duration = Duration::from_millis(10);

/// How much more than others the party that is at it may have before another goes: changing over takes time.
const QUANTUM: Duration = Duration::from_millis(4);

/// Hands out turns.
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_taken: bool,
    /// Whose turn was the last.
    last: Option<ThreadId>,
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
        self.has_worked_within(PAUSE, now)
    }

    /// Whether it had work of late.
    fn was_here(&self, now: Instant) -> bool {
        self.has_worked_within(2 * CLAIM, now)
    }

    fn has_worked_within(&self, time: Duration, now: Instant) -> bool {
        match self.doing {
            Doing::Waits | Doing::Works => true,
            Doing::Nothing(since) => now.saturating_duration_since(since) < time,
        }
    }
}

impl Turns {
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State { is_taken: false, last: None, parties: Vec::new() }),
            changed: Condvar::new(),
        }
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
        if !state.party(thread).is_some_and(|party| party.is_active(now)) {
            let had = state.party(thread).map_or(Duration::ZERO, |party| party.used);
            // Who is away for so long has no claim, and nobody has one on it.
            state.parties.retain(|party| party.was_here(now) && party.thread != thread);
            let others = state.parties.iter().map(|party| party.used);
            let used =
                others.min().map_or(Duration::ZERO, |least| had.clamp(least.saturating_sub(CLAIM), least));
            state.parties.push(Party { thread, used, doing: Doing::Waits });
        }
        state.set(thread, Doing::Waits);
        while state.is_taken || state.is_before(thread, now) {
            // Nobody says when a party's pause has become too long.
            state = self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
            now = Instant::now();
        }
        state.is_taken = true;
        state.last = Some(thread);
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
    fn is_before(&self, thread: ThreadId, now: Instant) -> bool {
        let own = self.parties.iter().find(|party| party.thread == thread).map(|own| self.rank(own));
        let goes_before =
            |other: &Party| own.is_some_and(|own| self.rank(other) < own) && other.is_active(now);
        self.parties.iter().any(goes_before)
    }

    /// The smallest goes first.
    fn rank(&self, party: &Party) -> Duration {
        party.used + if self.last == Some(party.thread) { Duration::ZERO } else { QUANTUM }
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
        // Whoever has to wait on would only be disturbed.
        let can_go = |party: &Party| party.doing == Doing::Waits && !state.is_before(party.thread, now);
        let someone_can = state.parties.iter().any(can_go);
        drop(state);
        if someone_can {
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
    fn who_goes_away_is_not_waited_for() {
        let turns = Turns::new();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| (0..20).for_each(|_| turns.take(|| thread::sleep(Duration::from_millis(5)))));
            // Less than the other's share, and then no more.
            scope.spawn(|| (0..5).for_each(|_| turns.take(|| thread::sleep(Duration::from_millis(1)))));
        });
        assert!(begin.elapsed() < Duration::from_millis(400), "{:?}", begin.elapsed());
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
