//! The audit log: one line for each request to a model, with the account, the model and the token counts, never the
//! content. Lines form a hash chain, so that a change or a gap shows.
//!
//! A line is a JSON object whose last member is `hash`: the SHA-256 of the object without it. Its member
//! `previous` is the hash of the line before, and `n` counts the lines from 1 on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// The `previous` of the first line.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The longest line that is read. A line has some hundred bytes; ids of requests have 128 at most.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Records that may wait for the disk before requests are refused.
const MAX_WAITING: usize = 4096;

/// Time between attempts to write after a failure.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// An event in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// The server began to write the log. Without a [`AuditEvent::Stopped`] before it, the one before ended abruptly.
    Started {
        /// Version of the program.
        version: &'static str,
        /// Bytes of an incomplete last line that were removed.
        removed_bytes: u64,
    },
    /// A request ended.
    Request(AuditedRequest),
    /// The server ended.
    Stopped,
}

/// A request in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditedRequest {
    /// Id of the request, as in `x-request-id` and the log.
    pub request_id: String,
    /// The account: the name of the key.
    pub key: String,
    /// The route.
    pub route: &'static str,
    /// Id of the model; empty if the request was refused before one was found.
    pub model: String,
    /// Status of the response.
    pub status: u16,
    /// How it ended: `completed`, `failed`, or `cancelled` by its client.
    pub outcome: &'static str,
    /// Tokens of the prompt or the inputs.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Time from the head of the request to the end of its response, in milliseconds.
    pub ms: u64,
}

/// A line without its hash.
#[derive(Serialize)]
struct AuditLine<'a> {
    n: u64,
    time: String,
    #[serde(flatten)]
    event: &'a AuditEvent,
    previous: &'a str,
}

/// The members of a line that chain it to others.
#[derive(Deserialize)]
struct ChainedLine {
    n: u64,
    previous: String,
    hash: String,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    /// Number of lines.
    pub n_lines: u64,
    /// Hash of the last one.
    pub hash: String,
}

impl ChainHead {
    fn empty() -> Self {
        Self { n_lines: 0, hash: NO_HASH.to_owned() }
    }

    /// The next line, with its line break.
    fn next_line(&self, event: &AuditEvent, time: String) -> Result<(String, Self)> {
        let line = AuditLine { n: self.n_lines + 1, time, event, previous: &self.hash };
        let mut text = serde_json::to_string(&line).map_err(|e| Error::internal(e.to_string()))?;
        let hash = hex_digest(text.as_bytes());
        text.truncate(text.len() - 1);
        text.push_str(&format!(",\"hash\":\"{hash}\"}}\n"));
        Ok((text, Self { n_lines: line.n, hash }))
    }

    /// The head after `line`, which has no line break.
    ///
    /// # Errors
    /// When it is not the next line, with the reason.
    fn after(&self, line: &str) -> Result<Self, String> {
        let chained: ChainedLine =
            serde_json::from_str(line).map_err(|e| format!("it is not a line of an audit log: {e}"))?;
        let end = format!(",\"hash\":\"{}\"}}", chained.hash);
        let start = line.strip_suffix(&end).ok_or("`hash` is not its last member")?;
        if hex_digest(format!("{start}}}").as_bytes()) != chained.hash {
            return Err("its content was changed: it does not have its hash".to_owned());
        }
        if chained.previous != self.hash {
            return Err("it does not follow the line before: lines were removed, added or changed".to_owned());
        }
        if chained.n != self.n_lines + 1 {
            return Err(format!("it has the number {}, not {}", chained.n, self.n_lines + 1));
        }
        Ok(Self { n_lines: chained.n, hash: chained.hash })
    }
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks the chain of an audit log from its first line on, and returns its end. Lines cut off at the end leave no
/// trace in the file itself, nor does a chain that was made anew: `noted` is a hash that was noted elsewhere, of a line
/// that must be there.
///
/// # Errors
/// When the file cannot be read, a line does not follow the one before, or none has the hash; the message says which.
pub fn verify_chain(path: &Path, noted: Option<&str>) -> Result<ChainHead> {
    let failed = |message: String| Error::new(Kind::InvalidRequest, format!("{}: {message}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(|e| failed(e.to_string()))?);
    let mut head = ChainHead::empty();
    let mut is_found = noted.is_none();
    loop {
        let mut line = Vec::new();
        let n_read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        if n_read.map_err(|e| failed(e.to_string()))? == 0 {
            let missing = || "no line has the hash of --contains: lines were removed or made anew".to_owned();
            return is_found.then_some(head).ok_or_else(|| failed(missing()));
        }
        let n_line = head.n_lines + 1;
        let line = line.strip_suffix(b"\n").ok_or_else(|| failed(format!("line {n_line} is incomplete")))?;
        let text = str::from_utf8(line).map_err(|_| failed(format!("line {n_line} is not text")))?;
        head = head.after(text).map_err(|reason| failed(format!("line {n_line} is wrong: {reason}")))?;
        is_found |= noted == Some(&*head.hash);
    }
}

/// The audit log of a server: a thread writes what it is sent.
pub struct AuditLog {
    records: Sender<AuditMessage>,
    state: Arc<WriterState>,
    path: PathBuf,
}

/// The state of the writer, for those who send to it.
#[derive(Default)]
struct WriterState {
    n_waiting: AtomicUsize,
    has_failed: AtomicBool,
}

/// A message to the writer.
enum AuditMessage {
    /// An event, and its time.
    Record(AuditEvent, jiff::Timestamp),
    /// Asks for a reply once everything before it is on disk.
    Flush(Sender<()>),
}

impl AuditLog {
    /// Opens or creates the log at `path`, and starts its writer. Goes on with the chain of its last line. An incomplete last line
    /// is removed: its request ended with the process that wrote it.
    ///
    /// # Errors
    /// When the file cannot be written, is not an audit log, or another server writes it.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| {
            let message = format!("cannot use the audit log {}: {e}; pass another file", path.display());
            Error::new(Kind::Config, message)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed(&e))?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => failed(&"another server writes it"),
            TryLockError::Error(e) => failed(&format!("it cannot be locked: {e}")),
        })?;
        let (head, removed_bytes) = read_head(&mut file).map_err(|e| failed(&e))?;
        let state = Arc::new(WriterState::default());
        let (records, received) = channel();
        let writer = AuditWriter { file, head, state: state.clone() };
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|e| failed(&e))?;
        let log = Self { records, state, path: path.to_owned() };
        log.record(AuditEvent::Started { version: env!("CARGO_PKG_VERSION"), removed_bytes });
        Ok(log)
    }

    /// Appends an event, a moment later.
    pub fn record(&self, event: AuditEvent) {
        self.state.n_waiting.fetch_add(1, Ordering::Relaxed);
        // The writer lives as long as this.
        let _ = self.records.send(AuditMessage::Record(event, jiff::Timestamp::now()));
    }

    /// Checks that requests can be recorded.
    ///
    /// # Errors
    /// When the file cannot be written: what cannot be recorded is not served.
    pub fn check(&self) -> Result<()> {
        let problem = if self.state.has_failed.load(Ordering::Relaxed) {
            "cannot be written, so requests are refused; make room on its disk"
        } else if self.state.n_waiting.load(Ordering::Relaxed) > MAX_WAITING {
            "is written too slowly, so requests are refused; use a faster disk"
        } else {
            return Ok(());
        };
        let message = format!("the audit log {} {problem}", self.path.display());
        let public = "the server cannot record requests, so it refuses them; tell its operator";
        Err(Error::new(Kind::Unavailable, message).with_public(public))
    }

    /// Waits until everything is written, for `timeout` at most.
    pub fn flush(&self, timeout: Duration) {
        let (reply, written) = channel();
        // A writer that is gone has nothing to write.
        if self.records.send(AuditMessage::Flush(reply)).is_ok() {
            let _ = written.recv_timeout(timeout);
        }
    }
}

/// The end of the chain in a file, whose incomplete last line is removed, and the bytes of that.
fn read_head(file: &mut File) -> io::Result<(ChainHead, u64)> {
    let n_bytes = file.seek(SeekFrom::End(0))?;
    // Two lines at least, so that the last complete one is among them.
    let start = n_bytes.saturating_sub(2 * MAX_LINE_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let n_complete = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |idx| idx + 1);
    let removed = (tail.len() - n_complete) as u64;
    let is_foreign = || io::Error::new(io::ErrorKind::InvalidData, "it is not an audit log");
    if n_complete == 0 {
        // Only the beginning of a first line may be incomplete.
        if start > 0 || !(tail.is_empty() || tail.starts_with(b"{\"n\":1,")) {
            return Err(is_foreign());
        }
    }
    let last = tail[..n_complete].strip_suffix(b"\n").unwrap_or_default();
    let last = last.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    let head = match last {
        [] => ChainHead::empty(),
        line => {
            let line: ChainedLine = serde_json::from_slice(line).map_err(|_| is_foreign())?;
            ChainHead { n_lines: line.n, hash: line.hash }
        }
    };
    file.set_len(n_bytes - removed)?;
    file.seek(SeekFrom::End(0))?;
    Ok((head, removed))
}

/// The thread that writes.
struct AuditWriter {
    file: File,
    head: ChainHead,
    state: Arc<WriterState>,
}

impl AuditWriter {
    /// Writes until nobody can send any more.
    fn run(mut self, received: &Receiver<AuditMessage>) {
        let mut is_synced = true;
        loop {
            let message = match is_synced {
                true => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                // After a failure, try again later.
                false if self.state.has_failed.load(Ordering::Relaxed) => {
                    received.recv_timeout(RETRY_INTERVAL)
                }
                false => received.recv_timeout(Duration::ZERO),
            };
            match message {
                Ok(AuditMessage::Record(event, time)) => {
                    self.append(&event, time);
                    self.state.n_waiting.fetch_sub(1, Ordering::Relaxed);
                    is_synced = false;
                }
                Ok(AuditMessage::Flush(reply)) => {
                    self.sync();
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                }
                Err(RecvTimeoutError::Timeout) => is_synced = self.sync(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes a line, as often as it takes.
    fn append(&mut self, event: &AuditEvent, time: jiff::Timestamp) {
        let (line, head) = match self.head.next_line(event, time.to_string()) {
            Ok(next) => next,
            Err(e) => return tracing::error!(error = %e, "a line of the audit log could not be made"),
        };
        while let Err(e) = self.write(&line) {
            if !self.state.has_failed.swap(true, Ordering::Relaxed) {
                tracing::error!(error = %e, "the audit log cannot be written; requests are refused until it can");
            }
            thread::sleep(RETRY_INTERVAL);
        }
        self.head = head;
    }

    /// Writes a line whole, or nothing of it.
    fn write(&mut self, line: &str) -> io::Result<()> {
        let start = self.file.stream_position()?;
        self.file.write_all(line.as_bytes()).inspect_err(|_| {
            // The next attempt overwrites what could not be removed.
            let _ = self.file.set_len(start);
            let _ = self.file.seek(SeekFrom::Start(start));
        })
    }

    /// Makes sure that what is written is on the disk. Returns whether it is.
    fn sync(&self) -> bool {
        match self.file.sync_data() {
            Ok(()) => {
                if self.state.has_failed.swap(false, Ordering::Relaxed) {
                    tracing::info!("the audit log can be written again");
                }
                true
            }
            Err(e) => {
                if !self.state.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(error = %e, "the audit log cannot be synced to its disk; requests are refused until it can");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(key: &str) -> AuditEvent {
        AuditEvent::Request(AuditedRequest {
            request_id: "req_1".to_owned(),
            key: key.into(),
            route: "/v1/chat/completions",
            model: "m".to_owned(),
            status: 200,
            outcome: "completed",
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens: 5,
            ms: 12,
        })
    }

    /// An audit log with these requests, and its path.
    fn write(path: &Path, keys: &[&str]) {
        let log = AuditLog::open(path).unwrap();
        keys.iter().for_each(|key| log.record(request(key)));
        log.record(AuditEvent::Stopped);
        log.flush(Duration::from_secs(10));
        log.check().unwrap();
    }

    /// Opens the log once its last writer has gone.
    fn write_again(path: &Path, keys: &[&str]) {
        while File::open(path).unwrap().try_lock().is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        write(path, keys);
    }

    #[test]
    fn a_chain_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        write(&path, &["a", "b"]);
        let first = verify_chain(&path, None).unwrap();
        assert_eq!(verify_chain(&path, Some(&first.hash)).unwrap(), first);
        assert!(verify_chain(&path, Some(NO_HASH)).unwrap_err().to_string().contains("--contains"));
        assert_eq!(first.n_lines, 4);
        // The process was killed while it wrote.
        let text = fs::read_to_string(&path).unwrap() + "{\"n\":5,\"time\":\"20";
        fs::write(&path, text).unwrap();
        assert!(verify_chain(&path, None).unwrap_err().to_string().contains("line 5 is incomplete"));
        write_again(&path, &["c"]);
        assert_eq!(verify_chain(&path, None).unwrap().n_lines, 7);
        let lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        assert!(lines[4].contains("\"event\":\"started\"") && lines[4].contains("\"removed_bytes\":17"));
        assert!(lines[4].contains(&first.hash), "it follows the last complete line");
        assert!(
            lines[5].contains("\"key\":\"c\"") && lines[5].contains("\"completion_tokens\":5"),
            "{}",
            lines[5]
        );
    }

    #[test]
    fn changes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        write(&path, &["a", "b", "c"]);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let without = |idx: usize| {
            let rest: Vec<&str> =
                lines.iter().enumerate().filter(|(i, _)| *i != idx).map(|(_, line)| *line).collect();
            rest.join("\n") + "\n"
        };
        let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4]].join("\n") + "\n";
        for (changed, reason) in [
            (text.replacen("\"key\":\"b\"", "\"key\":\"x\"", 1), "line 3 is wrong: its content"),
            (
                text.replacen("\"completion_tokens\":5", "\"completion_tokens\":4", 1),
                "line 2 is wrong: its content",
            ),
            (without(0), "line 1 is wrong: it does not follow"),
            (without(2), "line 3 is wrong: it does not follow"),
            (swapped, "line 2 is wrong: it does not follow"),
            (text.trim_end().to_owned(), "line 5 is incomplete"),
            (text.replacen("{\"n\":2", "{\"x\":\"y\",\"n\":2", 1), "line 2 is wrong"),
            (format!("{text}hello\n"), "line 6 is wrong: it is not a line"),
        ] {
            fs::write(&path, changed).unwrap();
            let message = verify_chain(&path, None).unwrap_err().to_string();
            assert!(message.contains(reason), "{reason}: {message}");
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["a text", "a text\n", "{\"a\": 1}\n"] {
            let path = folder.path().join("notes.txt");
            fs::write(&path, text).unwrap();
            let message = AuditLog::open(&path).err().unwrap().to_string();
            assert!(message.contains("not an audit log"), "{message}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let path = folder.path().join("audit.jsonl");
        let _log = AuditLog::open(&path).unwrap();
        assert!(AuditLog::open(&path).err().unwrap().to_string().contains("another server"));
        assert!(AuditLog::open(&folder.path().join("no/such/folder.jsonl")).is_err());
    }

    #[test]
    fn what_cannot_be_recorded_is_refused() {
        // Every write to this device fails for lack of space.
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let state = Arc::new(WriterState::default());
        let (records, received) = channel();
        let writer = AuditWriter { file, head: ChainHead::empty(), state: state.clone() };
        thread::spawn(move || writer.run(&received));
        let log = AuditLog { records, state, path: "/dev/full".into() };
        log.check().unwrap();
        log.record(request("a"));
        while log.check().is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(log.check().unwrap_err().to_string().contains("/dev/full"));
    }
}
