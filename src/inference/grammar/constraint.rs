//! The grammar of one text, at the position that the text has reached.
//!
//! The matcher's work is done by the [grammar threads](super::threads), never by the caller: whoever samples starts it,
//! and asks later for the result.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::Thread;
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

use super::matcher::{GrammarMatcher, TokenMask};
use super::threads::{GrammarJob, GrammarQueue};
use super::too_complex;
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// How long one step of the matcher may take: checking a token, or computing a mask. Usually these take some
/// microseconds.
const MAX_STEP_TIME: Duration = Duration::from_secs(1);

/// How long a step of the matcher may take in the slow lane, whose threads get little time while the model computes.
const MAX_SLOW_STEP_TIME: Duration = Duration::from_secs(4);

/// How long all steps of one text may take together.
const MAX_TEXT_TIME: Duration = Duration::from_secs(60);

/// How long a step may wait for a thread.
const MAX_QUEUE_TIME: Duration = Duration::from_secs(30);

/// A text whose steps take longer than this, on average, is in the slow lane.
const SLOW_STEP_TIME: Duration = Duration::from_millis(2);

/// The grammar of one text, at the position that the text has reached. A clone is at the same position of another text.
pub struct Constraint {
    phase: GrammarPhase,
    /// Text that may come before the part that the grammar describes.
    preamble: Option<Preamble>,
    matcher: MatcherState,
    /// Whether the last sampled token was not allowed: then the next one is likely not to be either.
    was_refused: bool,
    time: MatcherTime,
    queue: Arc<GrammarQueue>,
    /// The thread to wake when a result is there.
    waker: Option<Thread>,
}

/// Text before the part that a grammar describes, such as a thought.
#[derive(Debug, Clone)]
pub struct Preamble {
    /// The token that opens it, if the text itself may open it.
    pub open: Option<u32>,
    /// Whether the prompt has opened it.
    pub is_open: bool,
    /// The string that closes it.
    pub close: String,
}

#[derive(Debug, Clone)]
enum GrammarPhase {
    /// The first token decides whether there is a preamble.
    Start,
    /// In the preamble. The bytes are its end, which may be the beginning of its closing string.
    Preamble(Vec<u8>),
    /// In the part that the grammar describes.
    Body,
}

enum MatcherState {
    /// At the beginning of the text.
    Fresh(Arc<CompiledGrammar>),
    /// Nothing to do. The mask is that of this position, if it has been computed.
    Idle(Box<GrammarMatcher>, Option<TokenMask>),
    /// Being worked on.
    Busy(PendingStep),
    Failed(Error),
}

/// A compiled grammar, from which the constraints of texts are made.
pub struct CompiledGrammar {
    /// At the beginning of a text.
    prototype: Mutex<GrammarMatcher>,
    mask: TokenMask,
    time: MatcherTime,
    queue: Arc<GrammarQueue>,
}

/// A step of the matcher, queued or running. Dropping it cancels it.
struct PendingStep {
    result: mpsc::Receiver<StepResult>,
    queued: Instant,
    progress: Arc<StepProgress>,
    is_finished: bool,
}

/// State that a step shares with the thread that works on it.
#[derive(Default)]
struct StepProgress {
    began: OnceLock<Instant>,
    cancellation: OnceLock<CancellationHandle>,
    is_cancelled: AtomicBool,
}

/// The work of a step.
enum MatcherStep {
    /// Advance by a token if it is allowed, else compute the mask.
    Check(u32),
    /// Advance by a token.
    Consume(u32),
    /// Compute the mask.
    Mask,
}

struct StepResult {
    matcher: Box<GrammarMatcher>,
    outcome: Result<StepOutcome>,
    took: Duration,
}

enum StepOutcome {
    /// The matcher has advanced by the token.
    Consumed {
        is_complete: bool,
    },
    Mask(TokenMask),
}

/// The time that the matcher has taken for a text.
#[derive(Debug, Clone, Copy, Default)]
struct MatcherTime {
    spent: Duration,
    /// Moving average of its steps.
    average: Duration,
}

/// The grammar's answer to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenVerdict {
    /// Not known yet.
    Pending,
    /// The text has advanced by the token.
    Accepted {
        /// Whether the text is complete, so that nothing can follow.
        is_complete: bool,
    },
    /// The token is not allowed.
    Refused,
}

/// The tokens that may come next.
pub enum AllowedTokens<'a> {
    /// Not known yet.
    Pending,
    /// Any token.
    All,
    /// The tokens of a mask, and perhaps a token besides.
    Masked(&'a TokenMask, Option<u32>),
}

impl CompiledGrammar {
    /// The constraint of a new text. It shares the grammar's tables until the text begins.
    pub fn constraint(self: &Arc<Self>) -> Constraint {
        let matcher = MatcherState::Fresh(self.clone());
        Constraint { time: self.time, ..Constraint::with_matcher(matcher, self.queue.clone()) }
    }

    /// Bytes of its tables.
    pub(super) fn n_bytes(&self) -> usize {
        self.prototype().n_bytes()
    }

    fn prototype(&self) -> MutexGuard<'_, GrammarMatcher> {
        self.prototype.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Constraint {
    /// A constraint at the beginning of a text, whose mask is not computed.
    pub(super) fn new(matcher: GrammarMatcher, queue: Arc<GrammarQueue>) -> Self {
        Self::with_matcher(MatcherState::Idle(Box::new(matcher), None), queue)
    }

    fn with_matcher(matcher: MatcherState, queue: Arc<GrammarQueue>) -> Self {
        Self {
            phase: GrammarPhase::Body,
            preamble: None,
            matcher,
            was_refused: false,
            time: MatcherTime::default(),
            queue,
            waker: None,
        }
    }

    /// The grammar at this position, whose mask is computed, as the beginning of other texts.
    pub(super) fn into_compiled(self) -> Result<CompiledGrammar> {
        let MatcherState::Idle(matcher, Some(mask)) = self.matcher else { return Err(lost()) };
        Ok(CompiledGrammar { prototype: Mutex::new(*matcher), mask, time: self.time, queue: self.queue })
    }

    /// Allows a preamble before the part that the grammar describes.
    pub fn with_preamble(self, preamble: Preamble) -> Self {
        let phase = match preamble {
            Preamble { is_open: true, .. } => GrammarPhase::Preamble(Vec::new()),
            Preamble { open: Some(_), .. } => GrammarPhase::Start,
            _ => GrammarPhase::Body,
        };
        Self { phase, preamble: Some(preamble), ..self }
    }

    /// Sets the thread to unpark when a result is there.
    pub fn set_waker(&mut self, thread: Thread) {
        self.waker = Some(thread);
    }

    /// Whether the text is in its preamble, and so must not end yet.
    pub fn is_in_preamble(&self) -> bool {
        matches!(self.phase, GrammarPhase::Preamble(_))
    }

    /// Whether the mask for this position is neither computed nor being computed.
    pub fn mask_pending(&self) -> bool {
        matches!(self.matcher, MatcherState::Idle(_, None))
    }

    /// Whether results usually take long.
    pub fn is_slow(&self) -> bool {
        self.time.is_slow()
    }

    /// Advances by a token, whose text is `bytes`, if it is allowed. For a verdict that is pending, call
    /// [`Constraint::verdict`] later.
    ///
    /// # Errors
    /// When the text has become too complex.
    pub fn check(&mut self, token: u32, bytes: &[u8]) -> Result<TokenVerdict> {
        self.advance(token, bytes, MatcherStep::Check(token))
    }

    /// Advances by a token of [`Constraint::allowed_tokens`], as [`Constraint::check`] does.
    ///
    /// # Errors
    /// When the token was not allowed, or the text has become too complex.
    pub fn consume(&mut self, token: u32, bytes: &[u8]) -> Result<TokenVerdict> {
        self.advance(token, bytes, MatcherStep::Consume(token))
    }

    fn advance(&mut self, token: u32, bytes: &[u8], step: MatcherStep) -> Result<TokenVerdict> {
        let accepted = Ok(TokenVerdict::Accepted { is_complete: false });
        if matches!(self.phase, GrammarPhase::Start)
            && self.preamble.as_ref().is_some_and(|preamble| preamble.open == Some(token))
        {
            self.phase = GrammarPhase::Preamble(Vec::new());
            return accepted;
        }
        if let GrammarPhase::Preamble(tail) = &mut self.phase {
            let close = self.preamble.as_ref().map_or("", |preamble| &preamble.close);
            if push_preamble(tail, close, bytes)? {
                self.phase = GrammarPhase::Body;
            }
            return accepted;
        }
        self.begin(step);
        self.verdict()
    }

    /// The verdict on the token that was last checked or consumed.
    ///
    /// # Errors
    /// When the token was not allowed, or the text has become too complex.
    pub fn verdict(&mut self) -> Result<TokenVerdict> {
        Ok(match self.poll()? {
            None => TokenVerdict::Pending,
            Some(StepOutcome::Consumed { is_complete }) => {
                self.phase = GrammarPhase::Body;
                TokenVerdict::Accepted { is_complete }
            }
            Some(StepOutcome::Mask(mask)) => {
                self.keep_mask(mask);
                self.was_refused = true;
                TokenVerdict::Refused
            }
        })
    }

    /// Starts computing the mask in the background, if the last token was not allowed.
    pub fn prepare(&mut self) {
        if std::mem::take(&mut self.was_refused) && self.mask_pending() && !self.is_in_preamble() {
            self.begin(MatcherStep::Mask);
        }
    }

    /// The tokens that may come next.
    ///
    /// # Errors
    /// When there are none, or computing the mask takes too long.
    pub fn allowed_tokens(&mut self) -> Result<AllowedTokens<'_>> {
        if self.is_in_preamble() {
            return Ok(AllowedTokens::All);
        }
        if self.mask_pending() {
            self.begin(MatcherStep::Mask);
        }
        if !matches!(self.matcher, MatcherState::Fresh(_) | MatcherState::Idle(_, Some(_))) {
            match self.poll()? {
                None => return Ok(AllowedTokens::Pending),
                Some(StepOutcome::Mask(mask)) => self.keep_mask(mask),
                Some(StepOutcome::Consumed { .. }) => return Err(lost()),
            }
        }
        let extra = match (&self.phase, &self.preamble) {
            (GrammarPhase::Start, Some(preamble)) => preamble.open,
            _ => None,
        };
        match &self.matcher {
            MatcherState::Fresh(grammar) => Ok(AllowedTokens::Masked(&grammar.mask, extra)),
            MatcherState::Idle(_, Some(mask)) => Ok(AllowedTokens::Masked(mask, extra)),
            _ => Err(lost()),
        }
    }

    fn keep_mask(&mut self, mask: TokenMask) {
        if let MatcherState::Idle(_, kept) = &mut self.matcher {
            *kept = Some(mask);
        }
    }

    /// Queues a step of the matcher.
    fn begin(&mut self, step: MatcherStep) {
        let state = std::mem::replace(&mut self.matcher, MatcherState::Failed(lost()));
        let matcher: Box<dyn FnOnce() -> Box<GrammarMatcher> + Send> = match state {
            MatcherState::Fresh(grammar) => Box::new(move || Box::new(grammar.prototype().clone())),
            MatcherState::Idle(matcher, _) => Box::new(move || matcher),
            MatcherState::Busy(_) | MatcherState::Failed(_) => {
                self.matcher = state;
                return;
            }
        };
        let (sender, result) = mpsc::channel();
        let (queued, progress) = (Instant::now(), Arc::new(StepProgress::default()));
        let step_progress = progress.clone();
        self.matcher = MatcherState::Busy(PendingStep { result, queued, progress, is_finished: false });
        let waker = self.waker.clone();
        let run = Box::new(move || {
            if let Some(result) = step.run(matcher, &step_progress) {
                let _ = sender.send(result);
                waker.iter().for_each(Thread::unpark);
            }
        });
        self.queue.push(GrammarJob { run, spent: self.time.spent, is_slow: self.is_slow(), queued });
    }

    /// The outcome of the step that was begun; `None` if it is not there yet. Then the matcher is idle.
    fn poll(&mut self) -> Result<Option<StepOutcome>> {
        let step = match &mut self.matcher {
            MatcherState::Busy(step) => step,
            MatcherState::Fresh(_) | MatcherState::Idle(..) => return Err(lost()),
            MatcherState::Failed(e) => return Err(e.clone()),
        };
        let failed = match step.result.try_recv() {
            Ok(StepResult { matcher, outcome, took }) => {
                step.is_finished = true;
                self.time.record(took);
                match outcome.and_then(|outcome| self.time.check(Duration::ZERO).map(|()| outcome)) {
                    Ok(outcome) => {
                        self.matcher = MatcherState::Idle(matcher, None);
                        return Ok(Some(outcome));
                    }
                    Err(e) => e,
                }
            }
            Err(mpsc::TryRecvError::Disconnected) => lost(),
            Err(mpsc::TryRecvError::Empty) => match step.check(self.time) {
                Ok(()) => return Ok(None),
                Err(e) => e,
            },
        };
        self.matcher = MatcherState::Failed(failed.clone());
        Err(failed)
    }
}

impl PendingStep {
    /// Checks that it has neither waited nor run for too long.
    fn check(&self, time: MatcherTime) -> Result<()> {
        match self.progress.began.get() {
            Some(began) => time.check(began.elapsed()),
            None if self.queued.elapsed() > MAX_QUEUE_TIME => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "the text was ended because its grammar has waited for {} s; try again later",
                    MAX_QUEUE_TIME.as_secs()
                ),
            )),
            None => Ok(()),
        }
    }
}

impl Drop for PendingStep {
    fn drop(&mut self) {
        if !self.is_finished {
            self.progress.is_cancelled.store(true, Ordering::SeqCst);
            self.progress.cancellation.get().into_iter().for_each(CancellationHandle::cancel);
        }
    }
}

impl MatcherStep {
    /// Does the work; `None` if it is cancelled before.
    fn run(
        self,
        matcher: impl FnOnce() -> Box<GrammarMatcher>,
        progress: &StepProgress,
    ) -> Option<StepResult> {
        let is_cancelled = || progress.is_cancelled.load(Ordering::SeqCst);
        let began = *progress.began.get_or_init(Instant::now);
        if is_cancelled() {
            return None;
        }
        let mut matcher = matcher();
        let _ = progress.cancellation.set(matcher.cancellation());
        if is_cancelled() {
            return None;
        }
        let consumed = |is_complete| StepOutcome::Consumed { is_complete };
        let outcome = match self {
            Self::Consume(token) => matcher.consume(token).map(consumed),
            Self::Check(token) => match matcher.allows(token) {
                Ok(true) => matcher.consume(token).map(consumed),
                Ok(false) => mask(&mut matcher),
                Err(e) => Err(e),
            },
            Self::Mask => mask(&mut matcher),
        };
        Some(StepResult { matcher, outcome, took: began.elapsed() })
    }
}

fn mask(matcher: &mut GrammarMatcher) -> Result<StepOutcome> {
    let began = Instant::now();
    let mask = matcher.mask().map(StepOutcome::Mask);
    metrics::histogram!(telemetry::MASK_SECONDS).record(began.elapsed().as_secs_f64());
    mask
}

impl MatcherTime {
    fn is_slow(&self) -> bool {
        self.average > SLOW_STEP_TIME
    }

    fn record(&mut self, took: Duration) {
        self.spent += took;
        self.average = (self.average * 7 + took) / 8;
    }

    /// Checks the time of a text whose current step has run for `running`.
    fn check(&self, running: Duration) -> Result<()> {
        let most = if self.is_slow() { MAX_SLOW_STEP_TIME } else { MAX_STEP_TIME };
        let (what, most) = match () {
            () if running > most => ("computing the next allowed tokens takes", most),
            () if self.spent + running > MAX_TEXT_TIME => ("its steps together take", MAX_TEXT_TIME),
            () => return Ok(()),
        };
        Err(too_complex(&format!("{what} more than {} s", most.as_secs())))
    }
}

/// Adds `bytes` to the end of a preamble; returns whether they close it.
fn push_preamble(tail: &mut Vec<u8>, close: &str, bytes: &[u8]) -> Result<bool> {
    tail.extend_from_slice(bytes);
    let end = tail.windows(close.len().max(1)).position(|window| window == close.as_bytes());
    match end.map(|end| tail[end + close.len()..].trim_ascii().is_empty()) {
        None => {
            let n_over = tail.len().saturating_sub(close.len());
            tail.drain(..n_over);
            Ok(false)
        }
        Some(true) => Ok(true),
        Some(false) => Err(Error::internal("one token closed the thought and began the answer")),
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        let matcher = match &self.matcher {
            MatcherState::Fresh(grammar) => MatcherState::Fresh(grammar.clone()),
            MatcherState::Idle(matcher, mask) => MatcherState::Idle(matcher.clone(), mask.clone()),
            MatcherState::Busy(_) => MatcherState::Failed(lost()),
            MatcherState::Failed(e) => MatcherState::Failed(e.clone()),
        };
        Self {
            phase: self.phase.clone(),
            preamble: self.preamble.clone(),
            matcher,
            was_refused: self.was_refused,
            time: self.time,
            queue: self.queue.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Constraint").field("phase", &self.phase).finish_non_exhaustive()
    }
}

fn lost() -> Error {
    Error::internal("the grammar of a text was lost")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::TokEnv;

    use super::*;
    use crate::inference::grammar::new_factory;
    use crate::inference::grammar::threads::GrammarThreads;
    use crate::inference::grammar::trial::ByteVocabulary;

    fn compiled(regex: &str, threads: &GrammarThreads) -> Arc<CompiledGrammar> {
        let vocabulary: TokEnv = Arc::new(ByteVocabulary::new(300));
        let parser =
            new_factory(&vocabulary).unwrap().create_parser(TopLevelGrammar::from_regex(regex)).unwrap();
        let mut constraint = Constraint::new(GrammarMatcher::new(parser), threads.queue().clone());
        while let AllowedTokens::Pending = constraint.allowed_tokens().unwrap() {
            thread::yield_now();
        }
        Arc::new(constraint.into_compiled().unwrap())
    }

    fn settle(constraint: &mut Constraint, mut verdict: TokenVerdict) -> TokenVerdict {
        while verdict == TokenVerdict::Pending {
            thread::park_timeout(Duration::from_secs(5));
            verdict = constraint.verdict().unwrap();
        }
        verdict
    }

    /// Jobs that keep the whole quick lane busy until the sender is dropped.
    fn block(threads: &GrammarThreads) -> mpsc::Sender<()> {
        let (release, blocked) = mpsc::channel();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..4 {
            let blocked = blocked.clone();
            let run = Box::new(move || {
                let _ = blocked.lock().unwrap().recv();
            });
            let (spent, queued) = (Duration::ZERO, Instant::now());
            threads.queue().push(GrammarJob { run, spent, is_slow: false, queued });
        }
        release
    }

    #[test]
    fn an_answer_comes_when_a_thread_has_worked_it_out() {
        let threads = GrammarThreads::start().unwrap();
        let mut constraint = compiled("[ab]+c", &threads).constraint();
        constraint.set_waker(thread::current());
        let Ok(AllowedTokens::Masked(mask, None)) = constraint.allowed_tokens() else {
            panic!("the first mask is known")
        };
        assert!(mask.has_tokens_besides(&[u32::from(b'a')]));
        assert!(!mask.has_tokens_besides(&[u32::from(b'a'), u32::from(b'b')]));
        let release = block(&threads);
        let verdict = constraint.consume(u32::from(b'a'), b"a").unwrap();
        assert_eq!(verdict, TokenVerdict::Pending);
        assert_eq!(constraint.verdict().unwrap(), TokenVerdict::Pending);
        drop(release);
        assert_eq!(settle(&mut constraint, verdict), TokenVerdict::Accepted { is_complete: false });
        let verdict = constraint.check(u32::from(b'z'), b"z").unwrap();
        assert_eq!(settle(&mut constraint, verdict), TokenVerdict::Refused);
        assert!(matches!(constraint.allowed_tokens(), Ok(AllowedTokens::Masked(..))));
        let verdict = constraint.consume(u32::from(b'c'), b"c").unwrap();
        assert_eq!(settle(&mut constraint, verdict), TokenVerdict::Accepted { is_complete: true });
    }

    #[test]
    fn texts_of_one_grammar_are_independent_and_may_end_at_any_time() {
        let threads = GrammarThreads::start().unwrap();
        let grammar = compiled("ab|ba", &threads);
        let (mut first, mut second) = (grammar.constraint(), grammar.constraint());
        for (constraint, token) in [(&mut first, b'a'), (&mut second, b'b')] {
            constraint.set_waker(thread::current());
            let verdict = constraint.consume(u32::from(token), &[token]).unwrap();
            assert_eq!(settle(constraint, verdict), TokenVerdict::Accepted { is_complete: false });
        }
        let release = block(&threads);
        assert_eq!(second.check(u32::from(b'a'), b"a").unwrap(), TokenVerdict::Pending);
        drop(second);
        drop(release);
        let verdict = first.check(u32::from(b'b'), b"b").unwrap();
        assert_eq!(settle(&mut first, verdict), TokenVerdict::Accepted { is_complete: true });
    }

    #[test]
    fn the_time_of_a_text_is_bounded() {
        let seconds = Duration::from_secs;
        let time = |spent, average_ms| MatcherTime { spent, average: Duration::from_millis(average_ms) };
        for (time, running, is_ok) in [
            (time(seconds(0), 0), Duration::from_millis(900), true),
            (time(seconds(0), 0), Duration::from_millis(1100), false),
            (time(seconds(1), 50), Duration::from_millis(1100), true),
            (time(seconds(1), 50), Duration::from_millis(4100), false),
            (time(seconds(59), 50), Duration::from_millis(900), true),
            (time(seconds(59), 50), Duration::from_millis(1100), false),
        ] {
            assert_eq!(time.check(running).is_ok(), is_ok, "{time:?} {running:?}");
        }
        let mut time = MatcherTime::default();
        time.record(seconds(1));
        assert!(time.is_slow());
        (0..40).for_each(|_| time.record(Duration::from_micros(20)));
        assert!(!time.is_slow(), "a text that has become quick again leaves the slow lane");
    }
}
