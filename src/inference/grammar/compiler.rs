//! Compiling grammars, on threads of their own: few at once, in bounded time, and each only once.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use llguidance::ParserFactory;
use llguidance::toktrie::TokEnv;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::timeout;

use super::constraint::{AllowedTokens, CompiledGrammar, Constraint};
use super::matcher::GrammarMatcher;
use super::threads::{GrammarQueue, GrammarThreads};
use super::trial::{run_trial, too_busy};
use super::vocabulary::GrammarVocabulary;
use super::{COMPILE_STACK_BYTES, Grammar, new_factory, unenforceable};
use crate::cache::Cache;
use crate::error::{Error, Kind, Result};
use crate::kernels::threads::pool;
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// How long compiling a grammar may take, and how long it may wait for that.
const COMPILE_TIME: Duration = Duration::from_secs(2);

/// Grammars that are compiled at once, for all models.
static PERMITS: Semaphore = Semaphore::const_new(2);

/// Grammars that wait or are compiled.
static PLACES: Semaphore = Semaphore::const_new(MAX_QUEUED_GRAMMARS);
const MAX_QUEUED_GRAMMARS: usize = 32;

/// Niceness of compiling. The model's threads have 5, those that serve HTTP 0.
const NICENESS: i32 = 10;

/// Budget of a model's compiled grammars.
const CACHE_BYTES: usize = 64 << 20;

/// How long a grammar stays known, compiled or refused.
const CACHE_TIME: Duration = Duration::from_secs(600);

/// Nominal size of a grammar that was refused.
const REFUSED_BYTES: usize = 4 << 10;

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    shared: Arc<CompilerShared>,
    threads: GrammarThreads,
}

/// State that the compiler shares with its threads.
struct CompilerShared {
    tokenizer: Arc<Tokenizer>,
    n_vocab: usize,
    /// Made for the first grammar.
    factory: OnceLock<Result<ParserFactory>>,
    queue: Arc<GrammarQueue>,
    known: Mutex<Cache<GrammarDigest, KnownGrammar>>,
}

/// SHA-256 of a grammar.
type GrammarDigest = [u8; 32];

/// The outcome of compiling a grammar.
#[derive(Clone)]
enum KnownGrammar {
    Compiled(Arc<CompiledGrammar>),
    Refused(Error),
}

impl KnownGrammar {
    fn into_result(self) -> Result<Arc<CompiledGrammar>> {
        match self {
            Self::Compiled(grammar) => Ok(grammar),
            Self::Refused(e) => Err(e),
        }
    }
}

impl GrammarCompiler {
    /// A compiler for a model with `n_vocab` logits. It starts the threads that work on texts with grammars.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Result<Self> {
        let threads = GrammarThreads::start()?;
        let shared = CompilerShared {
            tokenizer,
            n_vocab,
            factory: OnceLock::new(),
            queue: threads.queue().clone(),
            known: Mutex::new(Cache::new(CACHE_BYTES, CACHE_TIME)),
        };
        Ok(Self { shared: Arc::new(shared), threads })
    }

    /// Compiles a grammar, unless that has been done. Dropping the future ends the work.
    ///
    /// # Errors
    /// When the grammar is too large or too complex, is malformed, or uses a feature that cannot be enforced; when too
    /// many grammars wait.
    pub async fn compile(&self, grammar: &Grammar) -> Result<Arc<CompiledGrammar>> {
        grammar.check_size()?;
        let digest = digest(grammar)?;
        if let Some(known) = self.shared.known(&digest) {
            metrics::counter!(telemetry::GRAMMAR_CACHE_HITS).increment(1);
            return known.into_result();
        }
        let _place = PLACES.try_acquire().map_err(|_| overloaded())?;
        let permit = timeout(COMPILE_TIME, PERMITS.acquire()).await;
        let permit = permit.map_err(|_| overloaded())?.map_err(|e| Error::internal(e.to_string()))?;
        // An equal one may have been compiled meanwhile.
        if let Some(known) = self.shared.known(&digest) {
            return known.into_result();
        }
        let (sender, compiled) = oneshot::channel();
        let (shared, grammar) = (self.shared.clone(), grammar.clone());
        let work = move || shared.compile(grammar, digest, permit, sender);
        thread::Builder::new()
            .name("grammar-compiler".to_owned())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn(work)
            .map_err(|e| Error::internal(format!("cannot start a thread for a grammar: {e}")))?;
        compiled.await.unwrap_or_else(|_| Err(unenforceable("it is too complex")))
    }

    /// Checks that the threads that work on texts make progress.
    ///
    /// # Errors
    /// When they do not.
    pub fn check_health(&self) -> Result<()> {
        self.threads.queue().check_health()
    }
}

impl CompilerShared {
    /// Compiles a grammar and sends the result to `sender`, unless the receiver has gone. The permit is held for as long
    /// as this takes.
    fn compile(
        &self,
        grammar: Grammar,
        digest: GrammarDigest,
        permit: SemaphorePermit<'_>,
        sender: oneshot::Sender<Result<Arc<CompiledGrammar>>>,
    ) {
        pool::set_niceness(NICENESS);
        let began = Instant::now();
        let result = self.compile_until(&grammar, || sender.is_closed());
        metrics::histogram!(telemetry::GRAMMAR_COMPILE_SECONDS).record(began.elapsed().as_secs_f64());
        let (known, n_bytes) = match result {
            Ok((compiled, n_bytes)) => (KnownGrammar::Compiled(Arc::new(compiled)), n_bytes),
            Err(e) if e.kind() == Kind::InvalidRequest => (KnownGrammar::Refused(e), REFUSED_BYTES),
            Err(e) => return drop(sender.send(Err(e))),
        };
        self.cache().insert(digest, known.clone(), n_bytes, SystemTime::now());
        drop(permit);
        // The client may have gone.
        let _ = sender.send(known.into_result());
    }

    /// Compiles a grammar and computes its first mask; returns the bytes that it takes, too.
    fn compile_until(
        &self,
        grammar: &Grammar,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<(CompiledGrammar, usize)> {
        let factory = self.factory.get_or_init(|| self.new_factory()).as_ref().map_err(Clone::clone)?;
        let deadline = Instant::now() + COMPILE_TIME;
        let n_vocab = u32::try_from(self.n_vocab).unwrap_or(u32::MAX);
        let grammar = grammar.to_llguidance()?;
        let n_trial_bytes = run_trial(&grammar, n_vocab, deadline, &is_cancelled)?;
        let parser = factory.create_parser(grammar).map_err(|e| unenforceable(&e.to_string()))?;
        let mut constraint = Constraint::new(GrammarMatcher::new(parser), self.queue.clone());
        constraint.set_waker(thread::current());
        // A grammar that no text can follow fails here, before the prompt is computed.
        while let AllowedTokens::Pending =
            constraint.allowed_tokens().map_err(|e| unenforceable(&e.to_string()))?
        {
            if is_cancelled() {
                return Err(too_busy());
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        let compiled = constraint.into_compiled()?;
        let n_bytes = n_trial_bytes + compiled.n_bytes() + REFUSED_BYTES;
        Ok((compiled, n_bytes))
    }

    fn new_factory(&self) -> Result<ParserFactory> {
        let vocabulary: TokEnv = Arc::new(GrammarVocabulary::new(self.tokenizer.clone(), self.n_vocab));
        new_factory(&vocabulary)
    }

    fn known(&self, digest: &GrammarDigest) -> Option<KnownGrammar> {
        self.cache().get(digest, SystemTime::now())
    }

    fn cache(&self) -> MutexGuard<'_, Cache<GrammarDigest, KnownGrammar>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(grammar: &Grammar) -> Result<GrammarDigest> {
    let text = serde_json::to_vec(grammar)
        .map_err(|e| Error::internal(format!("a grammar cannot be written down: {e}")))?;
    Ok(Sha256::digest(text).into())
}

/// The error of a grammar for which there is no room.
fn overloaded() -> Error {
    metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
    too_busy()
}
