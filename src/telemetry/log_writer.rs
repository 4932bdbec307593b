//! A log writer that never blocks the thread that logs: lines wait for a thread of their own, within a budget, and
//! are dropped and counted beyond it. So a terminal or pipe that nobody reads costs log lines, not requests.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// The most bytes of lines that wait to be written; some thousands of lines.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// The longest line; the rest is cut off. Messages that quote requests are much shorter.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Writes lines through a thread. Cheap to clone.
#[derive(Clone)]
pub struct LogWriter {
    commands: mpsc::Sender<LogCommand>,
    state: Arc<LogState>,
}

struct LogState {
    /// Bytes of all lines that wait.
    n_queued_bytes: AtomicUsize,
    /// Lines dropped since the last report of dropped lines.
    n_dropped: AtomicU64,
    /// The counter of dropped lines.
    dropped_metric: &'static str,
    /// Whether lines have terminal colors, which are control sequences.
    has_colors: bool,
}

enum LogCommand {
    Line(Vec<u8>),
    /// Asks for an answer once all lines before it are written.
    Flush(mpsc::SyncSender<()>),
}

impl LogWriter {
    /// Starts the thread that writes to `sink`. `dropped_metric` is the counter of dropped lines.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(
        sink: Box<dyn Write + Send>,
        has_colors: bool,
        dropped_metric: &'static str,
    ) -> io::Result<Self> {
        let (commands, received) = mpsc::channel();
        let state = Arc::new(LogState {
            n_queued_bytes: AtomicUsize::new(0),
            n_dropped: AtomicU64::new(0),
            dropped_metric,
            has_colors,
        });
        let shared = state.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(sink, &received))?;
        Ok(Self { commands, state })
    }

    /// Writes one line, without control characters.
    pub fn write_line(&self, line: &str) {
        let line = sanitized(line, self.state.has_colors);
        let n_bytes = line.len();
        let n_before = self.state.n_queued_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        if n_before + n_bytes > MAX_QUEUED_BYTES || self.commands.send(LogCommand::Line(line)).is_err() {
            self.state.n_queued_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
            self.state.count_dropped();
        }
    }

    /// Waits until all lines so far are written, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let (done, is_done) = mpsc::sync_channel(1);
        if self.commands.send(LogCommand::Flush(done)).is_ok() {
            // After the timeout the lines are lost.
            let _ = is_done.recv_timeout(timeout);
        }
    }
}

impl LogState {
    fn count_dropped(&self) {
        self.n_dropped.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(self.dropped_metric).increment(1);
    }

    fn write_all(&self, mut sink: Box<dyn Write + Send>, commands: &mpsc::Receiver<LogCommand>) {
        for command in commands {
            match command {
                LogCommand::Line(line) => {
                    let is_written = sink.write_all(&line).is_ok();
                    self.n_queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    if !is_written {
                        metrics::counter!(self.dropped_metric).increment(1);
                        continue;
                    }
                    let n_dropped = self.n_dropped.swap(0, Ordering::Relaxed);
                    if n_dropped > 0 {
                        tracing::warn!(
                            lines = n_dropped,
                            "log lines were dropped, since stderr was not read"
                        );
                    }
                }
                // The one who asked may have stopped waiting.
                LogCommand::Flush(done) => {
                    let _ = done.try_send(());
                }
            }
        }
    }
}

/// One event of the log is one write.
impl Write for LogWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.write_line(&String::from_utf8_lossy(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// `line` with one line break at its end, and its other control characters escaped.
fn sanitized(line: &str, has_colors: bool) -> Vec<u8> {
    const ESCAPE: char = '\u{1b}';
    let line = line.strip_suffix('\n').unwrap_or(line);
    let cut = &line[..line.floor_char_boundary(MAX_LINE_BYTES)];
    let is_escaped = |c: char| c.is_control() && !(has_colors && c == ESCAPE);
    let mut text = String::with_capacity(cut.len() + 1);
    for c in cut.chars() {
        if is_escaped(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    if cut.len() < line.len() {
        text += "...";
    }
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Instant;

    /// A sink that writes only while it can lock what it has written.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_sink_drops_lines_and_blocks_nobody() {
        let sink = Sink::default();
        let writer = LogWriter::spawn(Box::new(sink.clone()), false, "dropped").unwrap();
        let stalled = sink.0.lock().unwrap();
        let started = Instant::now();
        let line = "x".repeat(1023);
        (0..10_000).for_each(|_| writer.write_line(&line));
        writer.flush(Duration::from_millis(10));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        writer.write_line("dropped, too");
        let n_dropped = writer.state.n_dropped.load(Ordering::Relaxed);
        assert_eq!(n_dropped, 10_001 - (MAX_QUEUED_BYTES / 1024) as u64);
        drop(stalled);
        writer.flush(Duration::from_secs(10));
        writer.write_line("the end");
        writer.flush(Duration::from_secs(10));
        let written = sink.0.lock().unwrap();
        assert_eq!(written.len(), MAX_QUEUED_BYTES + "the end\n".len());
        assert!(written.ends_with(b"x\nthe end\n"));
    }

    #[test]
    fn a_line_has_no_control_characters() {
        let text = |line: &str, has_colors| String::from_utf8(sanitized(line, has_colors)).unwrap();
        assert_eq!(text("a\nb\r\u{1b}[0m\u{85}é\n", false), "a\\nb\\r\\u{1b}[0m\\u{85}é\n");
        assert_eq!(text("\u{1b}[0ma\u{7}\n", true), "\u{1b}[0ma\\u{7}\n");
        let long = text(&"é".repeat(1 << 16), false);
        assert!(long.len() < MAX_LINE_BYTES + 5 && long.ends_with("é...\n"));
    }
}
