//! Special tokens: finding and escaping them in text.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};

/// A set of special tokens that can be searched for in text.
pub struct SpecialTokens {
    /// Finds their texts, leftmost-longest.
    automaton: AhoCorasick,
    /// The token of each pattern.
    tokens: Vec<SpecialToken>,
}

/// A token that is matched as a whole, before the model encodes the text around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether it is parsed in any text and not only in prompts, as tokens are that users added to a vocabulary.
    pub is_user_defined: bool,
    /// Whether it consumes the white space after it.
    pub strip_right: bool,
}

/// A segment of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextSegment<'a> {
    /// Text without special tokens.
    Text(&'a str),
    /// The id of a special token.
    Special(u32),
}

/// The texts of end-of-generation (EOG) tokens, in all vocabularies. A model may emit any of them, whichever one its
/// metadata names as EOS.
pub const END_OF_GENERATION: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// The ids of the end-of-generation tokens among the special tokens of a vocabulary.
pub fn end_of_generation(special_tokens: &[SpecialToken]) -> Vec<u32> {
    let has = |text: &str| special_tokens.iter().any(|token| token.text == text);
    // In formats that have other end tokens, these separate the sections of a response.
    let is_section_mark = |text: &str| match text {
        "<|end|>" => has("<|call|>") && (has("<|return|>") || has("<|flush|>")),
        "</s>" => has("<|tool_response>"),
        _ => false,
    };
    let is_end = |text: &str| END_OF_GENERATION.contains(&text) && !is_section_mark(text);
    special_tokens.iter().filter(|token| is_end(&token.text)).map(|token| token.id).collect()
}

impl SpecialTokens {
    /// Builds the search automaton. Tokens without text are left out.
    ///
    /// # Errors
    /// When there are too many tokens.
    pub fn new(tokens: impl IntoIterator<Item = SpecialToken>) -> Result<Self> {
        let tokens: Vec<SpecialToken> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|e| Error::model(format!("cannot build a search for the special tokens: {e}")))?;
        Ok(Self { automaton, tokens })
    }

    /// Splits a text at the special tokens in it. Tokens escaped by `marker` are text.
    pub fn split<'a>(&self, text: &'a str, marker: Option<char>) -> Vec<TextSegment<'a>> {
        let mut segments = Vec::new();
        let mut start = 0;
        for found in self.automaton.find_iter(text) {
            // The marker of a one-character token stands after it, so the token itself still matches.
            if marker.is_some_and(|marker| text[found.end()..].starts_with(marker)) {
                continue;
            }
            let token = &self.tokens[found.pattern()];
            if start < found.start() {
                segments.push(TextSegment::Text(&text[start..found.start()]));
            }
            segments.push(TextSegment::Special(token.id));
            start = found.end();
            if token.strip_right {
                let is_space = |c: char| c.is_ascii_whitespace() || c == '\u{B}';
                start = text.len() - text[start..].trim_start_matches(is_space).len();
            }
        }
        if start < text.len() {
            segments.push(TextSegment::Text(&text[start..]));
        }
        segments
    }

    /// Escapes every token in `text`, except user-defined ones, by inserting `marker` after its first character.
    pub fn escape(&self, text: &str, marker: char) -> String {
        let mut escaped = String::with_capacity(text.len());
        let mut start = 0;
        // Searching on from the marker finds overlapping tokens too.
        while let Some(found) = self.automaton.find(aho_corasick::Input::new(text).range(start..)) {
            let first = text[found.range()].chars().next().map_or(0, char::len_utf8);
            if self.tokens[found.pattern()].is_user_defined {
                escaped.push_str(&text[start..found.end()]);
                start = found.end();
            } else {
                escaped.push_str(&text[start..found.start() + first]);
                escaped.push(marker);
                start = found.start() + first;
            }
        }
        escaped.push_str(&text[start..]);
        escaped
    }
}
