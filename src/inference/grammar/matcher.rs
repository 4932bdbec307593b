//! A grammar at the position that a text has reached: llguidance's parser, whose panics become errors and whose memory
//! is bounded.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, TokenParser};

use super::too_complex;
use crate::error::Result;

/// Most bytes of the tables that a text's lexer builds as the text grows. A schema of a few kilobytes takes less than
/// one megabyte.
const MAX_LEXER_BYTES: usize = 32 << 20;

/// Most bytes of the tables of all texts together. Beyond it, only texts with small tables go on.
const MAX_ALL_BYTES: usize = 256 << 20;
const SMALL_LEXER_BYTES: usize = 2 << 20;

/// Bytes of the tables of all matchers, as of their last steps.
static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The tokens that may come next.
#[derive(Clone)]
pub struct TokenMask(SimpleVob);

/// A grammar at a position of a text. A clone is at the same position of another text and shares nothing with it.
pub struct GrammarMatcher {
    parser: TokenParser,
    cancellation: CancellationHandle,
    /// Its share of [`ALL_BYTES`].
    n_counted: usize,
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

impl GrammarMatcher {
    /// A grammar at the beginning of a text.
    pub fn new(mut parser: TokenParser) -> Self {
        if parser.is_fresh() {
            parser.start_without_prompt();
        }
        let cancellation = parser.enable_cancellation();
        Self { parser, cancellation, n_counted: 0 }
    }

    /// Ends the operation that runs, and every later one, with an error.
    pub fn cancellation(&self) -> CancellationHandle {
        self.cancellation.clone()
    }

    /// Whether a token may come next.
    ///
    /// # Errors
    /// When the grammar has become too complex.
    pub fn allows(&mut self, token: u32) -> Result<bool> {
        self.run(|parser| Ok(parser.validate_tokens_raw(&[token]).map_err(in_words)? == 1))
    }

    /// Advances by a token; returns whether the text is complete, so that nothing can follow.
    ///
    /// # Errors
    /// When the token is not allowed, or the grammar has become too complex.
    pub fn consume(&mut self, token: u32) -> Result<bool> {
        self.run(|parser| {
            parser.consume_token(token).map_err(in_words)?;
            parser.check_stop().map_err(in_words)?;
            Ok(parser.stopped())
        })
    }

    /// The tokens that may come next.
    ///
    /// # Errors
    /// When there are none, or the grammar has become too complex.
    pub fn mask(&mut self) -> Result<TokenMask> {
        self.run(|parser| {
            if parser.stopped() {
                return Ok(TokenMask(parser.token_env.tok_trie().eos_token_set()));
            }
            parser.compute_mask().map(TokenMask).map_err(in_words)
        })
    }

    /// Bytes of the lexer's tables as of the last step.
    pub fn n_bytes(&self) -> usize {
        self.n_counted
    }

    /// Runs an operation of the parser.
    fn run<T>(&mut self, operation: impl FnOnce(&mut TokenParser) -> Result<T, String>) -> Result<T> {
        let result = catch(|| operation(&mut self.parser))?;
        let n_bytes = catch(|| Ok(self.parser.parser.lexer_stats().num_bytes))?;
        let n_before = std::mem::replace(&mut self.n_counted, n_bytes);
        ALL_BYTES.fetch_add(n_bytes, Ordering::Relaxed);
        let n_all = ALL_BYTES.fetch_sub(n_before, Ordering::Relaxed) - n_before;
        if n_bytes > MAX_LEXER_BYTES || n_all > MAX_ALL_BYTES && n_bytes > SMALL_LEXER_BYTES {
            let most = if n_bytes > MAX_LEXER_BYTES { MAX_LEXER_BYTES } else { SMALL_LEXER_BYTES };
            return Err(too_complex(&format!(
                "its tables have grown to {n_bytes} bytes, and {most} is the limit"
            )));
        }
        Ok(result)
    }
}

impl Drop for GrammarMatcher {
    fn drop(&mut self) {
        ALL_BYTES.fetch_sub(self.n_counted, Ordering::Relaxed);
    }
}

impl Clone for GrammarMatcher {
    fn clone(&self) -> Self {
        let mut parser = self.parser.deep_clone();
        let cancellation = parser.enable_cancellation();
        Self { parser, cancellation, n_counted: 0 }
    }
}

/// Runs `operation` and turns a panic into an error.
fn catch<T>(operation: impl FnOnce() -> Result<T, String>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(operation))
        .unwrap_or_else(|_| Err("its parser has failed".to_owned()))
        .map_err(|why| too_complex(&why))
}

fn in_words(e: impl Display) -> String {
    e.to_string()
}
