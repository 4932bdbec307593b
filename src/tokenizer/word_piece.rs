//! BERT's WordPiece, with vocabularies as GGUF files write them: tokens that start a word start with `▁`, and the
//! others continue a word.

use std::collections::HashMap;

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization;

use super::token_bytes::SPACE;

/// A vocabulary of words and word pieces.
pub struct WordPiece {
    ids: HashMap<Box<str>, u32>,
    /// The id for a word that no sequence of tokens covers.
    unknown: u32,
    /// Bytes of the longest token.
    max_token_bytes: usize,
    normalizer: WordNormalizer,
}

/// The normalization of text before it is split.
#[derive(Debug, Clone, Copy)]
pub struct WordNormalizer {
    /// Whether text is converted to lower case.
    pub lowercase: bool,
    /// Whether accents are removed.
    pub strip_accents: bool,
}

impl WordPiece {
    /// A vocabulary with the texts of all `tokens`, by id.
    pub fn new<'a>(tokens: impl Iterator<Item = &'a str>, unknown: u32, normalizer: WordNormalizer) -> Self {
        let ids: HashMap<Box<str>, u32> = tokens.map(Box::from).zip(0u32..).collect();
        let max_token_bytes = ids.keys().map(|text| text.len()).max().unwrap_or(0);
        Self { ids, unknown, max_token_bytes, normalizer }
    }

    /// Encodes text without special tokens.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        for word in split_words(text, self.normalizer) {
            let n_before = ids.len();
            if !self.encode_word(&word, ids) {
                ids.truncate(n_before);
                ids.push(self.unknown);
            }
        }
    }

    /// Covers a word greedily with the longest tokens. Returns whether that was possible.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> bool {
        let mut rest = word;
        while !rest.is_empty() {
            let longest = rest.floor_char_boundary(self.max_token_bytes);
            let ends = (1..=longest).rev().filter(|&end| rest.is_char_boundary(end));
            let found = ends.filter_map(|end| Some((*self.ids.get(&rest[..end])?, end))).next();
            let Some((id, end)) = found else { return false };
            ids.push(id);
            rest = &rest[end..];
        }
        true
    }
}

/// Splits text into words, each with a leading `▁`. Punctuation marks and Chinese characters are words of their own.
fn split_words(text: &str, normalizer: WordNormalizer) -> Vec<String> {
    let mut words = Vec::new();
    let mut is_in_word = false;
    for c in text.chars().map(|c| if normalizer.strip_accents { base_char(c) } else { c }) {
        let category = get_general_category(c);
        if c.is_whitespace() {
            is_in_word = false;
            continue;
        }
        if c == '\0' || c == char::REPLACEMENT_CHARACTER || is_control(category) {
            continue;
        }
        if normalizer.strip_accents && is_mark(category) {
            continue;
        }
        let lower = if normalizer.lowercase { c.to_lowercase().next().unwrap_or(c) } else { c };
        let is_separate = is_punctuation(category) || (c < '\u{7F}' && is_symbol(category)) || is_chinese(c);
        if is_separate || !is_in_word {
            words.push(String::from(SPACE));
        }
        if let Some(word) = words.last_mut() {
            word.push(lower);
        }
        is_in_word = !is_separate;
    }
    words
}

/// The first character of the canonical decomposition: the character without its accents.
fn base_char(c: char) -> char {
    std::iter::once(c).nfd().next().unwrap_or(c)
}

fn is_control(category: GeneralCategory) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse, Surrogate};
    matches!(category, Control | Format | PrivateUse | Surrogate)
}

fn is_mark(category: GeneralCategory) -> bool {
    use GeneralCategory::{EnclosingMark, NonspacingMark, SpacingMark};
    matches!(category, EnclosingMark | NonspacingMark | SpacingMark)
}

fn is_punctuation(category: GeneralCategory) -> bool {
    use GeneralCategory::{
        ClosePunctuation, ConnectorPunctuation, DashPunctuation, FinalPunctuation, InitialPunctuation,
        OpenPunctuation, OtherPunctuation,
    };
    matches!(
        category,
        ClosePunctuation
            | ConnectorPunctuation
            | DashPunctuation
            | FinalPunctuation
            | InitialPunctuation
            | OpenPunctuation
            | OtherPunctuation
    )
}

fn is_symbol(category: GeneralCategory) -> bool {
    use GeneralCategory::{CurrencySymbol, MathSymbol, ModifierSymbol, OtherSymbol};
    matches!(category, CurrencySymbol | MathSymbol | ModifierSymbol | OtherSymbol)
}

/// Whether BERT's tokenizer counts a character as Chinese.
fn is_chinese(c: char) -> bool {
    matches!(
        c,
        '\u{4E00}'..='\u{9FFF}'
            | '\u{3400}'..='\u{4DBF}'
            | '\u{20000}'..='\u{2A6DF}'
            | '\u{2A700}'..='\u{2B73F}'
            | '\u{2B740}'..='\u{2B81F}'
            | '\u{2B920}'..='\u{2CEAF}'
            | '\u{F900}'..='\u{FAFF}'
            | '\u{2F800}'..='\u{2FA1F}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: WordNormalizer = WordNormalizer { lowercase: true, strip_accents: true };

    #[test]
    fn words_are_normalized_and_split_at_punctuation() {
        assert_eq!(
            split_words("Ünï\u{301}  don't\n中文 a_b", BERT),
            ["▁uni", "▁don", "▁'", "▁t", "▁中", "▁文", "▁a", "▁_", "▁b"]
        );
        assert_eq!(split_words("a\u{0}\u{200b}b €5 $5", BERT), ["▁ab", "▁€5", "▁$", "▁5"]);
        assert!(split_words(" \t", BERT).is_empty());
        let cased = WordNormalizer { lowercase: false, strip_accents: false };
        assert_eq!(split_words("Ünï", cased), ["▁Ünï"]);
    }

    #[test]
    fn the_longest_tokens_cover_a_word_or_it_is_unknown() {
        let piece = WordPiece::new(["[UNK]", "▁un", "▁u", "related", "rel", "n"].into_iter(), 0, BERT);
        let encode = |text| {
            let mut ids = Vec::new();
            piece.encode(text, &mut ids);
            ids
        };
        assert_eq!(encode("unrelated u unx"), [1, 3, 2, 0]);
    }
}
