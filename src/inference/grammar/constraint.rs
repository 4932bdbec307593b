//! The grammar of one text, at the position that the text has reached, and the masks it gives.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};

use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// How long computing a mask may take. Usually it takes about 50 µs.
const MASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The tokens that may come next.
#[derive(Clone)]
pub struct TokenMask(SimpleVob);

/// A mask to be computed, and where to send the result.
pub struct MaskJob {
    matcher: Box<Matcher>,
    done: mpsc::Sender<(Box<Matcher>, Result<TokenMask>)>,
}

/// The grammar of one text, at the position that the text has reached. A clone is at the same position of another text.
pub struct Constraint {
    phase: GrammarPhase,
    /// Text that may come before the part that the grammar describes.
    preamble: Option<Preamble>,
    mask: MaskState,
    /// Whether the last sampled token was not allowed: then the next one is likely not to be either.
    was_refused: bool,
    jobs: mpsc::Sender<MaskJob>,
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

enum MaskState {
    /// Not computed for this position.
    Pending(Box<Matcher>),
    /// Being computed.
    Computing {
        matcher: mpsc::Receiver<(Box<Matcher>, Result<TokenMask>)>,
        cancel: Option<CancellationHandle>,
    },
    Ready(Box<Matcher>, TokenMask),
    Failed(Error),
}

impl TokenMask {
    /// Sets the logits of all tokens that are not in the mask to minus infinity.
    pub fn apply_mask(&self, logits: &mut [f32]) {
        let words = self.0.as_slice().iter().chain(std::iter::repeat(&0));
        for (&word, logits) in words.zip(logits.chunks_mut(u32::BITS as usize)) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    let masked = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    masked.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }

    /// Whether tokens other than `tokens` may come next.
    pub fn has_tokens_besides(&self, tokens: &[u32]) -> bool {
        let n_in = tokens.iter().filter(|&&token| self.0.get(token as usize)).count();
        self.0.num_set() > n_in
    }
}

impl Constraint {
    /// A constraint at the beginning of a text.
    pub(super) fn new(matcher: Box<Matcher>, jobs: mpsc::Sender<MaskJob>) -> Self {
        Self {
            phase: GrammarPhase::Body,
            preamble: None,
            mask: MaskState::Pending(matcher),
            was_refused: false,
            jobs,
        }
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

    /// Whether the text is in its preamble, and so must not end yet.
    pub fn is_in_preamble(&self) -> bool {
        matches!(self.phase, GrammarPhase::Preamble(_))
    }

    /// Whether the mask for this position is neither computed nor being computed.
    pub fn mask_pending(&self) -> bool {
        matches!(self.mask, MaskState::Pending(_))
    }

    /// Whether a token may come next. Without a pending mask the answer is no, and the mask has to be used.
    pub fn is_allowed(&mut self, token: u32) -> bool {
        let is_opening = self.is_opening(token);
        let is_allowed = match (&self.phase, &mut self.mask) {
            (GrammarPhase::Preamble(_), _) => true,
            (GrammarPhase::Start, _) if is_opening => true,
            // An error occurs again when the mask is computed, and is reported then.
            (_, MaskState::Pending(matcher)) => matcher.validate_tokens(&[token]).is_ok_and(|n| n == 1),
            _ => false,
        };
        self.was_refused = !is_allowed;
        is_allowed
    }

    /// Whether `token` opens the preamble.
    fn is_opening(&self, token: u32) -> bool {
        self.preamble.as_ref().is_some_and(|preamble| preamble.open == Some(token))
    }

    /// Starts computing the mask in the background, if the last token was not allowed.
    pub fn prepare(&mut self) {
        if std::mem::take(&mut self.was_refused) {
            self.compute_mask();
        }
    }

    /// Starts computing the mask on the grammar thread, unless that has been done.
    fn compute_mask(&mut self) {
        if !self.mask_pending() {
            return;
        }
        let (done, matcher) = mpsc::channel();
        let MaskState::Pending(pending) = std::mem::replace(&mut self.mask, MaskState::Failed(lost())) else {
            return;
        };
        let cancel = pending.cancellation_handle();
        if self.jobs.send(MaskJob { matcher: pending, done }).is_ok() {
            self.mask = MaskState::Computing { matcher, cancel };
        }
    }

    /// The mask of the tokens that may come next, and a token that may come besides; `None` if all may come. Waits for
    /// the mask to be computed.
    ///
    /// # Errors
    /// When no token may come next, or computing the mask takes too long.
    pub fn allowed_tokens(&mut self) -> Result<Option<(&TokenMask, Option<u32>)>> {
        if self.is_in_preamble() {
            return Ok(None);
        }
        self.compute_mask();
        if let MaskState::Computing { matcher, cancel } = &self.mask {
            let computed = matcher.recv_timeout(MASK_TIMEOUT).or_else(|_| {
                cancel.iter().for_each(CancellationHandle::cancel);
                matcher.recv()
            });
            self.mask = match computed {
                Ok((matcher, Ok(mask))) => MaskState::Ready(matcher, mask),
                Ok((_, Err(e))) => MaskState::Failed(e),
                Err(_) => MaskState::Failed(lost()),
            };
        }
        let extra = match (&self.phase, &self.preamble) {
            (GrammarPhase::Start, Some(preamble)) => preamble.open,
            _ => None,
        };
        match &self.mask {
            MaskState::Ready(_, mask) => Ok(Some((mask, extra))),
            MaskState::Failed(e) => Err(e.clone()),
            MaskState::Pending(_) | MaskState::Computing { .. } => Err(lost()),
        }
    }

    /// Advances by a token whose text is `bytes`; returns whether the text is complete, so that nothing can follow.
    ///
    /// # Errors
    /// When the token was not allowed, or the text has become too complex.
    pub fn push(&mut self, token: u32, bytes: &[u8]) -> Result<bool> {
        if matches!(self.phase, GrammarPhase::Start) {
            if self.is_opening(token) {
                self.phase = GrammarPhase::Preamble(Vec::new());
                return Ok(false);
            }
            self.phase = GrammarPhase::Body;
        }
        if let GrammarPhase::Preamble(tail) = &mut self.phase {
            let close = self.preamble.as_ref().map_or("", |preamble| &preamble.close);
            if push_preamble(tail, close, bytes)? {
                self.phase = GrammarPhase::Body;
            }
            return Ok(false);
        }
        let state = std::mem::replace(&mut self.mask, MaskState::Failed(lost()));
        let (MaskState::Pending(mut matcher) | MaskState::Ready(mut matcher, _)) = state else {
            self.mask = state;
            return Err(lost());
        };
        matcher.consume_token(token).map_err(|e| too_complex(&e.to_string()))?;
        let is_complete = matcher.is_stopped();
        self.mask = MaskState::Pending(matcher);
        Ok(is_complete)
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
        let mask = match &self.mask {
            MaskState::Pending(matcher) => MaskState::Pending(Box::new(matcher.deep_clone())),
            MaskState::Ready(matcher, mask) => MaskState::Ready(Box::new(matcher.deep_clone()), mask.clone()),
            MaskState::Computing { .. } => MaskState::Failed(lost()),
            MaskState::Failed(e) => MaskState::Failed(e.clone()),
        };
        Self {
            phase: self.phase.clone(),
            preamble: self.preamble.clone(),
            mask,
            was_refused: self.was_refused,
            jobs: self.jobs.clone(),
        }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Constraint").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl MaskJob {
    /// Computes the mask and sends it back.
    pub fn run(mut self) {
        let began = Instant::now();
        let mask = match self.matcher.compute_mask_or_eos() {
            Ok(mask) => Ok(TokenMask(mask)),
            Err(_) if self.matcher.is_cancelled() => Err(too_complex(&format!(
                "computing the next allowed tokens takes more than {} s",
                MASK_TIMEOUT.as_secs()
            ))),
            Err(e) => Err(too_complex(&e.to_string())),
        };
        metrics::histogram!(telemetry::MASK_SECONDS).record(began.elapsed().as_secs_f64());
        // A text that has ended does not wait for it.
        let _ = self.done.send((self.matcher, mask));
    }
}

fn too_complex(why: &str) -> Error {
    let why = why.lines().next().unwrap_or(why);
    Error::new(
        Kind::InvalidRequest,
        format!("the text was ended because its grammar could not be enforced: {why}; send a simpler one"),
    )
}

fn lost() -> Error {
    Error::internal("the grammar of a text was lost")
}
