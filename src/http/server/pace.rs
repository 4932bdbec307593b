//! The least rate at which a client must send or take bytes, as a leaky bucket of waiting time.

use std::time::Duration;

use tokio::time::Instant;

/// How long the server still waits for a client. Waiting uses patience up, bytes that move earn it back, each its
/// share of a second, up to the whole patience.
///
/// A client that is as fast as the rate, averaged over the patience, is never given up on; one that pauses for the
/// whole patience, or moves a byte now and then, is. Time in which the server waits for nothing counts neither way.
pub struct Pace {
    bytes_per_second: u64,
    patience: Duration,
    /// Patience used up so far.
    waited: Duration,
    waiting_since: Option<Instant>,
}

impl Pace {
    /// A pace with its whole patience left. A rate of 0 forgives everything with the first byte.
    pub fn new(bytes_per_second: u64, patience: Duration) -> Self {
        Self { bytes_per_second, patience, waited: Duration::ZERO, waiting_since: None }
    }

    /// This pace with at most `patience` left at first.
    pub fn starting_with(self, patience: Duration) -> Self {
        Self { waited: self.patience.saturating_sub(patience), ..self }
    }

    /// Waits from `now` on, unless it does already. Returns when patience ends.
    pub fn wait(&mut self, now: Instant) -> Instant {
        let since = *self.waiting_since.get_or_insert(now);
        since + self.patience.saturating_sub(self.waited)
    }

    /// Counts `n_bytes` that moved, and waits no longer.
    pub fn advance(&mut self, n_bytes: usize, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited = (self.waited + (now - since)).min(self.patience);
        }
        let earned = match self.bytes_per_second {
            0 if n_bytes > 0 => Duration::MAX,
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(n_bytes as f64 / rate as f64),
        };
        self.waited = self.waited.saturating_sub(earned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds until a client that moves `n_bytes` every `pause` seconds is given up on, up to an hour.
    fn lifetime(mut pace: Pace, n_bytes: usize, pause: u32) -> u64 {
        let start = Instant::now();
        let mut now = start;
        while now < start + 3600 * SECOND {
            let deadline = pace.wait(now);
            now += pause * SECOND;
            if deadline <= now {
                return (deadline - start).as_secs();
            }
            pace.advance(n_bytes, now);
        }
        3600
    }

    #[test]
    fn slow_clients_are_given_up_on_and_steady_ones_are_not() {
        let pace = || Pace::new(1024, 30 * SECOND);
        // Pauses shorter than the patience, but hardly a byte.
        assert_eq!(lifetime(pace(), 1, 29), 30);
        assert_eq!(lifetime(pace().starting_with(10 * SECOND), 1, 29), 10);
        assert_eq!(lifetime(pace().starting_with(10 * SECOND), 1, 2), 10);
        // Half the rate lasts twice the patience.
        assert_eq!(lifetime(pace(), 512, 1), 59);
        for (n_bytes, pause) in [(1024, 1), (29 * 1024, 29), (1 << 20, 29)] {
            assert_eq!(lifetime(pace(), n_bytes, pause), 3600, "{n_bytes} bytes every {pause} s");
        }
        assert_eq!(lifetime(pace(), 1 << 20, 31), 30, "a pause longer than the patience");
        assert_eq!(lifetime(Pace::new(0, 30 * SECOND), 1, 29), 3600, "no rate");
        assert_eq!(lifetime(Pace::new(0, 30 * SECOND), 1, 31), 30);
    }

    #[test]
    fn patience_is_earned_back_but_not_saved_up() {
        let mut pace = Pace::new(1000, 30 * SECOND).starting_with(10 * SECOND);
        let start = Instant::now();
        assert_eq!(pace.wait(start), start + 10 * SECOND);
        assert_eq!(pace.wait(start + SECOND), start + 10 * SECOND, "waiting began earlier");
        pace.advance(5000, start + SECOND);
        assert_eq!(pace.wait(start + SECOND), start + 15 * SECOND);
        pace.advance(1 << 30, start + 2 * SECOND);
        // Not counted: nothing waits until then.
        let later = start + 1000 * SECOND;
        assert_eq!(pace.wait(later), later + 30 * SECOND);
    }
}
