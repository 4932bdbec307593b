//! Trial compilations in a process of their own.
//!
//! No part of compiling a grammar can be interrupted, and a few bytes can take minutes and gigabytes: a regular
//! expression whose derivatives explode, an `allOf` of many `anyOf`, the multiples of a large prime. So this program
//! runs itself, with limits on processor time and memory that the operating system enforces, and compiles the grammar
//! there first. What fits is compiled again by the server, at the same cost; what does not, ends with that process.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use serde::{Deserialize, Serialize};

use super::{COMPILE_STACK_BYTES, new_factory, unenforceable};
use crate::config::procfs_bytes;
use crate::error::{Error, Kind, Result};

/// The first argument of a process that compiles a grammar. No command has this name.
pub const TRIAL_COMMAND: &str = "compile-grammar-trial";

/// Processor time of a trial in seconds.
pub const TRIAL_SECONDS: u64 = 1;

/// Memory that a grammar may take while it is compiled.
pub const TRIAL_BYTES: usize = 128 << 20;

/// Longest error message of a trial.
const MAX_MESSAGE_BYTES: usize = 2000;

/// The program that runs trials.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// A grammar to be compiled, as it is written to the process.
#[derive(Serialize)]
struct TrialRequest<'a> {
    n_vocab: u32,
    grammar: &'a TopLevelGrammar,
}

/// A [`TrialRequest`] as the process reads it.
#[derive(Deserialize)]
struct ReceivedRequest {
    n_vocab: u32,
    grammar: TopLevelGrammar,
}

/// The result of a trial.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TrialResult {
    /// Bytes that compiling took.
    Compiled(usize),
    /// Why the grammar cannot be compiled.
    Refused(String),
}

/// The end of a process, whatever happens.
struct TrialProcess(Child);

impl Drop for TrialProcess {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets `program`, which calls [`serve_trial`] for [`TRIAL_COMMAND`], run trials. Without a program, grammars are
/// compiled without one.
pub fn set_trial_program(program: PathBuf) {
    let _ = PROGRAM.set(program);
}

/// The program of this process, even if its file has been replaced.
pub fn own_program() -> Option<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if own.exists() { Some(own.to_owned()) } else { std::env::current_exe().ok() }
}

/// Compiles a grammar for a vocabulary of `n_vocab` tokens in a process of its own; returns the bytes that this took,
/// or 0 if no process can be started.
///
/// # Errors
/// When the grammar is malformed or takes too much time or memory, when the server is too busy to compile it before the
/// `deadline`, or when it `is_cancelled`.
pub fn run_trial(
    grammar: &TopLevelGrammar,
    n_vocab: u32,
    deadline: Instant,
    is_cancelled: impl Fn() -> bool,
) -> Result<usize> {
    let Some(program) = PROGRAM.get() else { return Ok(0) };
    let request = serde_json::to_vec(&TrialRequest { n_vocab, grammar })
        .map_err(|e| Error::internal(format!("a grammar cannot be written down: {e}")))?;
    let mut process = match start(program) {
        Ok(process) => process,
        Err(e) => {
            tracing::warn!(error = %e, "grammars are compiled without a trial, for no process can be started");
            return Ok(0);
        }
    };
    if let Some(mut input) = process.0.stdin.take() {
        // A process that has ended reads nothing.
        let _ = input.write_all(&request);
    }
    let mut pause = Duration::from_micros(200);
    while process.0.try_wait().is_ok_and(|status| status.is_none()) {
        if is_cancelled() || Instant::now() >= deadline {
            return Err(too_busy());
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(5));
    }
    let mut output = Vec::new();
    if let Some(pipe) = process.0.stdout.take() {
        let _ = pipe.take(MAX_MESSAGE_BYTES as u64 * 8).read_to_end(&mut output);
    }
    match serde_json::from_slice(&output) {
        Ok(TrialResult::Compiled(n_bytes)) => Ok(n_bytes),
        Ok(TrialResult::Refused(why)) => Err(unenforceable(&why)),
        // The operating system has ended it.
        Err(_) => Err(unenforceable(&format!(
            "compiling it takes more than {TRIAL_SECONDS} s or {} MiB; send a simpler one",
            TRIAL_BYTES >> 20
        ))),
    }
}

/// The error of a grammar that could not be compiled in time because of others.
pub fn too_busy() -> Error {
    let message = "the server is too busy to compile the grammar; try again later";
    Error::new(Kind::Overloaded { retry_after: Duration::from_secs(2) }, message)
}

fn start(program: &Path) -> std::io::Result<TrialProcess> {
    let process = Command::new(program)
        .arg(TRIAL_COMMAND)
        // Address space is limited, and an arena for each thread takes much of it.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(TrialProcess(process))
}

/// Whether a process with this first argument is to run a trial.
pub fn is_trial(argument: Option<&OsStr>) -> bool {
    argument.is_some_and(|argument| argument == TRIAL_COMMAND)
}

/// Bytes of address space that a trial may have in all.
pub fn trial_address_space() -> u64 {
    let n_mapped = procfs_bytes("/proc/self/status", "VmSize:").unwrap_or(1 << 30);
    (n_mapped + COMPILE_STACK_BYTES + TRIAL_BYTES) as u64
}

/// The whole life of a process that compiles a grammar: reads it from the standard input and writes a result to the
/// standard output. The caller has limited the process's memory and time.
pub fn serve_trial() -> ExitCode {
    // Where memory runs out, this process goes first.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let work = || {
        let mut request = Vec::new();
        std::io::stdin().read_to_end(&mut request).ok()?;
        let request: ReceivedRequest = serde_json::from_slice(&request).ok()?;
        let before = procfs_bytes("/proc/self/status", "VmHWM:").unwrap_or(0);
        Some(match compile(request) {
            Ok(()) => {
                let after = procfs_bytes("/proc/self/status", "VmHWM:").unwrap_or(0);
                TrialResult::Compiled(after.saturating_sub(before))
            }
            Err(mut why) => {
                why.truncate(why.floor_char_boundary(MAX_MESSAGE_BYTES));
                TrialResult::Refused(why)
            }
        })
    };
    let compiler = thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn(work);
    let Ok(Ok(Some(result))) = compiler.map(thread::JoinHandle::join) else { return ExitCode::FAILURE };
    match serde_json::to_writer(std::io::stdout(), &result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn compile(request: ReceivedRequest) -> Result<(), String> {
    let ReceivedRequest { n_vocab, grammar } = request;
    let vocabulary: TokEnv = Arc::new(ByteVocabulary::new(n_vocab));
    let factory: ParserFactory = new_factory(&vocabulary).map_err(|e| e.to_string())?;
    factory.create_parser(grammar).map(drop).map_err(|e| e.to_string())
}

/// A vocabulary of `n_vocab` tokens in which only those of single bytes have a text. Compiling depends on no other's.
pub struct ByteVocabulary(TokTrie);

impl ByteVocabulary {
    /// The vocabulary.
    pub fn new(n_vocab: u32) -> Self {
        let n_vocab = n_vocab.max(256);
        let words: Vec<Vec<u8>> = (0..n_vocab).map(|id| u8::try_from(id).into_iter().collect()).collect();
        Self(TokTrie::from(&TokRxInfo::new(n_vocab, n_vocab - 1), &words))
    }
}

impl TokenizerEnv for ByteVocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }
}
