//! The position of tokens in a text, for the legacy form of log probabilities.

use crate::tokenizer::Detokenizer;

/// The position of a text's next token.
#[derive(Default)]
pub struct TextOffset {
    n_chars: usize,
    /// The position in bytes, within an echoed prompt.
    n_bytes: usize,
    detokenizer: Detokenizer,
}

impl TextOffset {
    /// Returns the position of a token in characters, and moves past it. All tokens of one character are where it is.
    pub fn advance(&mut self, token: &[u8]) -> usize {
        let start = self.n_chars;
        self.n_chars += self.detokenizer.push(token).chars().count();
        start
    }

    /// [`TextOffset::advance`] for a token of `text`. A token that the text does not show where it should, such as one that
    /// the tokenizer has added, takes no room.
    pub fn advance_in(&mut self, text: &str, token: &[u8]) -> usize {
        let start = self.n_chars;
        let token = self.detokenizer.push(token);
        let rest = text.get(self.n_bytes..).unwrap_or_default();
        // Some tokenizers put a space before a text.
        let shown = [token.as_str(), token.trim_start()].into_iter().find(|token| rest.starts_with(token));
        self.n_chars += shown.map_or(0, |token| token.chars().count());
        self.n_bytes += shown.map_or(0, str::len);
        start
    }
}
