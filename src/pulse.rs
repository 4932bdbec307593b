//! The pulse of a thread that runs as long as the server: others see whether it is alive and responsive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// The signs of life of one thread. A clone is the same pulse.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<PulseState>);

#[derive(Debug)]
struct PulseState {
    origin: Instant,
    /// The time of the last beat, in milliseconds since `origin`; [`SUSPENDED`] during work of unknown length.
    last_beat_ms: AtomicU64,
    has_stopped: AtomicBool,
}

/// Marks the thread as dead when dropped, unwinding included.
pub struct PulseGuard(Pulse);

/// A time that stands for "not expected to beat".
const SUSPENDED: u64 = u64::MAX;

/// The longest time between two beats of an idle thread.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

impl Pulse {
    /// The pulse of a thread that is about to start.
    #[expect(clippy::new_without_default, reason = "a pulse begins at a moment; it is no empty value")]
    pub fn new() -> Self {
        Self(Arc::new(PulseState {
            origin: Instant::now(),
            last_beat_ms: AtomicU64::new(0),
            has_stopped: AtomicBool::new(false),
        }))
    }

    /// A guard for the thread to hold until it ends.
    pub fn guard(&self) -> PulseGuard {
        self.beat();
        PulseGuard(self.clone())
    }

    /// Gives a sign of life.
    pub fn beat(&self) {
        self.0.last_beat_ms.store(self.now_ms(), Ordering::Release);
    }

    /// Announces work of unknown length, such as a download. The next beat ends it.
    pub fn suspend(&self) {
        self.0.last_beat_ms.store(SUSPENDED, Ordering::Release);
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        !self.0.has_stopped.load(Ordering::Acquire)
    }

    /// Checks that the thread runs, and that its last beat is at most `max_silence` ago. `name` is that of the thread
    /// in errors.
    ///
    /// # Errors
    /// When it has ended or is silent.
    pub fn check(&self, name: &str, max_silence: Duration) -> Result<()> {
        if !self.is_alive() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the {name} has stopped after a fault; restart the server"),
            ));
        }
        let last = self.0.last_beat_ms.load(Ordering::Acquire);
        let silence = Duration::from_millis(self.now_ms().saturating_sub(last));
        if last != SUSPENDED && silence > max_silence.max(3 * BEAT_INTERVAL) {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the {name} has not responded for {} s; try again later", silence.as_secs()),
            ));
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.origin.elapsed().as_millis()).unwrap_or(SUSPENDED - 1)
    }
}

impl Drop for PulseGuard {
    fn drop(&mut self) {
        self.0.0.has_stopped.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_death_are_noticed() {
        let pulse = Pulse::new();
        let guard = pulse.guard();
        assert!(pulse.check("thread", Duration::ZERO).is_ok());
        let earlier = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let state = PulseState { origin: earlier, last_beat_ms: 0.into(), has_stopped: false.into() };
        let silent = Pulse(Arc::new(state));
        let error = silent.check("test thread", Duration::from_secs(5)).unwrap_err().to_string();
        assert_eq!(error, "the test thread has not responded for 60 s; try again later");
        silent.suspend();
        assert!(silent.check("thread", Duration::from_secs(5)).is_ok());
        drop(guard);
        assert!(pulse.check("test thread", Duration::ZERO).unwrap_err().to_string().contains("stopped"));
    }
}
