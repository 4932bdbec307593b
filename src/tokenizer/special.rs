//! Special tokens: finding them in text.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};

/// Some special tokens of a vocabulary.
pub struct SpecialTokens {
    /// Finds their texts, of several at one place the longest.
    automaton: AhoCorasick,
    /// One for each pattern.
    tokens: Vec<SpecialToken>,
}

/// A token that stands for itself, whatever is around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    pub id: u32,
    pub text: String,
    /// Whether it is read in any text, as tokens are that users of a vocabulary added, and not only
    /// where a template wrote it.
    pub is_plain: bool,
    /// Whether it swallows the white space behind it.
    pub strips_right: bool,
}

/// A stretch of a text: without special tokens, or one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Special(u32),
}

impl SpecialTokens {
    /// Tokens without text are never found.
    ///
    /// # Errors
    /// When they are too many to be searched for.
    pub fn new(tokens: impl IntoIterator<Item = SpecialToken>) -> Result<Self> {
        let tokens: Vec<SpecialToken> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|e| Error::model(format!("the special tokens cannot be searched for: {e}")))?;
        Ok(Self { automaton, tokens })
    }

    /// Cuts a text at the special tokens in it. Those behind whose first character `marker` stands
    /// are text.
    pub fn cut<'a>(&self, text: &'a str, marker: Option<char>) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for found in self.automaton.find_iter(text) {
            // A token of one character has no inside; the marker stands behind it.
            if marker.is_some_and(|marker| text[found.end()..].starts_with(marker)) {
                continue;
            }
            let token = &self.tokens[found.pattern()];
            if start < found.start() {
                pieces.push(Piece::Text(&text[start..found.start()]));
            }
            pieces.push(Piece::Special(token.id));
            start = found.end();
            if token.strips_right {
                let is_space = |c: char| c.is_ascii_whitespace() || c == '\u{B}';
                start = text.len() - text[start..].trim_start_matches(is_space).len();
            }
        }
        if start < text.len() {
            pieces.push(Piece::Text(&text[start..]));
        }
        pieces
    }

    /// Breaks every token that `text` spells out, but for plain ones, by putting `marker` behind its
    /// first character.
    pub fn defuse(&self, text: &str, marker: char) -> String {
        let mut defused = String::with_capacity(text.len());
        let mut start = 0;
        // Overlapping look-alikes too: breaking one must not leave another.
        while let Some(found) = self.automaton.find(aho_corasick::Input::new(text).range(start..)) {
            let first = text[found.range()].chars().next().map_or(0, char::len_utf8);
            if self.tokens[found.pattern()].is_plain {
                defused.push_str(&text[start..found.end()]);
                start = found.end();
            } else {
                defused.push_str(&text[start..found.start() + first]);
                defused.push(marker);
                start = found.start() + first;
            }
        }
        defused.push_str(&text[start..]);
        defused
    }
}
