//! Encoding of texts that may be far longer than a model takes: piece by piece, only as far as needed.
//!
//! The `tokenizers` crate takes up to 150 times the bytes of a text while it encodes it, so a long text must never
//! reach it whole.

use super::Tokenizer;
use super::special::TextSegment;
use crate::error::{Error, Result};

/// Bytes of a text that are encoded at once. Texts up to this size, a few thousand words, are encoded whole.
const PIECE_BYTES: usize = 64 << 10;

/// The first tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedEncoding {
    /// Their ids: all of the text's, or more than were asked for.
    pub ids: Vec<u32>,
    /// Bytes at the start of the text that these ids encode; all of it unless there were too many tokens.
    pub n_bytes: usize,
}

impl Tokenizer {
    /// Encodes a text to embed without the model's first and last special tokens. Stops once it has more than
    /// `max_tokens` ids, at the end of a piece.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn encode_up_to(&self, text: &str, max_tokens: usize) -> Result<BoundedEncoding> {
        let special = if self.parse_special { &self.special_tokens } else { &self.user_defined_tokens };
        let mut ids = Vec::new();
        let mut at_start = true;
        for segment in special.split(text, None) {
            match segment {
                TextSegment::Special(id) => {
                    ids.push(id);
                    at_start = true;
                }
                TextSegment::Text(segment) => {
                    for piece in pieces(segment, PIECE_BYTES) {
                        self.model.encode(piece, at_start, &mut ids)?;
                        at_start = false;
                        if ids.len() > max_tokens {
                            let end = piece.as_ptr() as usize + piece.len() - text.as_ptr() as usize;
                            return Ok(BoundedEncoding { ids, n_bytes: end });
                        }
                    }
                }
            }
        }
        Ok(BoundedEncoding { ids, n_bytes: text.len() })
    }

    /// The number of special tokens in the template of a text, or of two texts with `is_pair`.
    pub fn n_template_tokens(&self, is_pair: bool) -> usize {
        match (&self.pair_template, is_pair) {
            (Some(pair), true) => pair.before.len() + pair.between.len() + pair.after.len(),
            _ => self.template.before.len() + self.template.after.len(),
        }
    }

    /// Puts the ids of two texts into the model's template (`[CLS] … [SEP] … [SEP]`). Returns the ids, and how many
    /// of them belong to the first text.
    ///
    /// # Errors
    /// When the model has no template for two texts.
    pub fn add_pair_template(&self, first: &[u32], second: &[u32]) -> Result<(Vec<u32>, usize)> {
        let template = self.pair_template.as_ref().ok_or_else(|| {
            Error::model("the model's tokenizer has no template for two texts; use another reranker")
        })?;
        let n_first = template.before.len() + first.len() + template.n_between_first;
        let ids = [&template.before, first, &template.between, second, &template.after].concat();
        Ok((ids, n_first))
    }
}

/// Splits a text into pieces of at most `max_bytes`, before white space where there is some: most models encode the
/// pieces to the tokens of the whole.
fn pieces(text: &str, max_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, others) = rest.split_at(piece_end(rest, max_bytes));
        rest = others;
        Some(piece)
    })
}

/// The end of the first piece of a text, more than 0.
fn piece_end(text: &str, max_bytes: usize) -> usize {
    if text.len() <= max_bytes {
        return text.len();
    }
    let longest = text.floor_char_boundary(max_bytes.max(4));
    let mut following_is_space = text[longest..].starts_with(char::is_whitespace);
    for (idx, c) in text[..longest].char_indices().rev() {
        if following_is_space && !c.is_whitespace() {
            return idx + c.len_utf8();
        }
        following_is_space = c.is_whitespace();
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, max_bytes: usize) -> Vec<&str> {
        pieces(text, max_bytes).collect()
    }

    #[test]
    fn pieces_end_before_white_space() {
        assert_eq!(split("", 8), [""; 0]);
        assert_eq!(split("one two", 8), ["one two"]);
        assert_eq!(split("one two three", 8), ["one two", " three"]);
        assert_eq!(split("one  two  three", 8), ["one  two", "  three"]);
        assert_eq!(split("one two three", 7), ["one two", " three"]);
    }

    #[test]
    fn text_without_white_space_is_split_between_characters() {
        assert_eq!(split("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(split("ééééé", 5), ["éé", "éé", "é"]);
        assert_eq!(split("          ", 4), ["    ", "    ", "  "]);
        assert_eq!(split("😀😀", 1), ["😀", "😀"]);
    }
}
