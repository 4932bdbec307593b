//! Progress of long work, on stderr: a spinner or a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::telemetry;

/// Interval of the lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Work of unknown length. What shows it vanishes on drop.
pub struct Spinner {
    bar: Option<ProgressBar>,
}

impl Spinner {
    /// Shows that `work` is being done.
    pub fn start(work: &str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed}"));
            bar.set_message(work.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            telemetry::print_lines(work);
        }
        Self { bar }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Work of known length. What shows it vanishes on drop.
pub struct ItemProgress {
    n_items: usize,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl ItemProgress {
    /// Shows that none of `n_items` are done.
    pub fn start(n_items: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            ProgressBar::new(n_items as u64).with_style(style("{wide_bar} {pos}/{len} texts, {eta} left"))
        });
        Self { n_items, bar, last_line: Instant::now() }
    }

    /// Shows that `n_done` items are done.
    pub fn set(&mut self, n_done: usize) {
        match &self.bar {
            Some(bar) => bar.set_position(n_done as u64),
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                telemetry::print_lines(&format!("{n_done} of {} texts", self.n_items));
                self.last_line = Instant::now();
            }
            None => {}
        }
    }
}

impl Drop for ItemProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // A mistake in one of our templates costs the details, not the bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
