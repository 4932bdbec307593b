//! What a user sees while files are fetched: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of one transfer, on stderr. Dropped without [`Progress::done`], it vanishes.
pub struct Progress {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts the display of `what`, of which `done_bytes` of `size_bytes` are there already.
    pub fn of_bytes(what: &str, size_bytes: u64, done_bytes: u64) -> Self {
        let bar = on_terminal(|| {
            let bar = ProgressBar::new(size_bytes).with_position(done_bytes);
            bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"));
            bar
        });
        let resumed = match done_bytes {
            0 => String::new(),
            done => format!(", going on from {}", readable_size(done)),
        };
        Self::start(what, bar, &format!("{}{resumed}", readable_size(size_bytes)))
    }

    /// Starts the display of `what`, whose length is unknown; `how` says what is being done.
    pub fn of_unknown(what: &str, how: &str) -> Self {
        let bar = on_terminal(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {msg} {elapsed}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self::start(what, bar, how)
    }

    fn start(what: &str, bar: Option<ProgressBar>, detail: &str) -> Self {
        match &bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => note(&format!("fetching {what} ({detail})")),
        }
        Self { what: what.to_owned(), started: Instant::now(), bar }
    }

    /// The first `n_bytes` are there.
    pub fn reached(&self, n_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(n_bytes);
        }
    }

    /// Says that all `size_bytes` are there.
    pub fn done(self, size_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        note(&format!("fetched {} ({} in {seconds:.1} s)", self.what, readable_size(size_bytes)));
    }
}

/// One line for the user.
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// A size in millions or, from one on, in billions of bytes.
pub fn readable_size(n_bytes: u64) -> String {
    match n_bytes as f64 {
        n_bytes if n_bytes < 1e9 => format!("{:.1} MB", n_bytes / 1e6),
        n_bytes => format!("{:.2} GB", n_bytes / 1e9),
    }
}

fn on_terminal(bar: impl FnOnce() -> ProgressBar) -> Option<ProgressBar> {
    stderr().is_terminal().then(bar)
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; should one be wrong, a bar without details is good enough.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
