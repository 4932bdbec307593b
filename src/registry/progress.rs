//! Download progress: a progress bar on a terminal, plain lines elsewhere, and whoever else follows it.

use std::io::{IsTerminal, stderr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::telemetry;

/// The state of a download.
#[derive(Debug, Clone, Copy)]
pub struct DownloadState<'a> {
    /// The file or package that is downloaded.
    pub what: &'a str,
    /// Bytes so far.
    pub n_bytes: u64,
    /// Bytes in all, if known.
    pub size_bytes: Option<u64>,
}

type Watcher = dyn Fn(DownloadState) -> ControlFlow<()> + Send + Sync;

/// Follows downloads and may cancel them. By default, nobody does.
#[derive(Clone, Default)]
pub struct DownloadWatch(Option<Arc<Watcher>>);

impl DownloadWatch {
    /// Calls `watcher` with every change. A download ends when it breaks.
    pub fn new(watcher: impl Fn(DownloadState) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watcher)))
    }

    fn report(&self, state: DownloadState) -> Result<()> {
        match self.0.as_ref().map(|watcher| watcher(state)) {
            Some(ControlFlow::Break(())) => Err(Error::registry(format!(
                "the download of {} was cancelled; begin it again to resume",
                state.what
            ))),
            _ => Ok(()),
        }
    }
}

/// The progress of one download, on stderr. The bar vanishes if it is dropped without [`Progress::complete`].
pub struct Progress {
    what: String,
    size_bytes: Option<u64>,
    started: Instant,
    bar: Option<ProgressBar>,
    watch: DownloadWatch,
}

impl Progress {
    /// Shows the download of `what`, with `done_bytes` of `size_bytes` there already.
    pub fn for_bytes(what: &str, size_bytes: u64, done_bytes: u64, watch: &DownloadWatch) -> Self {
        let bar = on_terminal(|| {
            let bar = ProgressBar::new(size_bytes).with_position(done_bytes);
            bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"));
            bar
        });
        let resumed = match done_bytes {
            0 => String::new(),
            done => format!(", resuming at {}", readable_size(done)),
        };
        let detail = format!("{}{resumed}", readable_size(size_bytes));
        Self::start(what, bar, &detail, Some(size_bytes), watch)
    }

    /// Shows the download of `what`, whose size is unknown; `how` describes the download.
    pub fn for_unknown_size(what: &str, how: &str, watch: &DownloadWatch) -> Self {
        let bar = on_terminal(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {msg} {elapsed}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self::start(what, bar, how, None, watch)
    }

    fn start(
        what: &str,
        bar: Option<ProgressBar>,
        detail: &str,
        size_bytes: Option<u64>,
        watch: &DownloadWatch,
    ) -> Self {
        match &bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => notify(&format!("downloading {what} ({detail})")),
        }
        Self { what: what.to_owned(), size_bytes, started: Instant::now(), bar, watch: watch.clone() }
    }

    /// Sets the number of bytes downloaded so far.
    ///
    /// # Errors
    /// When the download is cancelled.
    pub fn set_position(&self, n_bytes: u64) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_position(n_bytes);
        }
        let Self { what, size_bytes, .. } = self;
        self.watch.report(DownloadState { what, n_bytes, size_bytes: *size_bytes })
    }

    /// Reports that the download of all `size_bytes` is complete.
    pub fn complete(self, size_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        notify(&format!("downloaded {} ({} in {seconds:.1} s)", self.what, readable_size(size_bytes)));
    }
}

/// Prints a line for the user on stderr.
pub fn notify(line: &str) {
    telemetry::print_lines(line);
}

/// Formats a size in MB (10^6 bytes) or, from 1 GB on, in GB (10^9 bytes).
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
    // A mistake in one of our templates costs the details, not the bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
