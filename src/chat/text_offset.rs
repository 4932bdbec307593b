//! The position of tokens in a text, for the legacy form of log probabilities.

use crate::tokenizer::Detokenizer;

/// The position of a text's next token.
#[derive(Default)]
pub struct TextOffset {
    n_chars: usize,
    detokenizer: Detokenizer,
}

impl TextOffset {
    /// Returns the position of a token in characters, and moves past it. All tokens of one character are where it is.
    pub fn advance(&mut self, token: &[u8]) -> usize {
        let start = self.n_chars;
        self.n_chars += self.detokenizer.push(token).chars().count();
        start
    }
}
