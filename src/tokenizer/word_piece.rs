//! WordPiece as BERT's vocabularies have it, in the form of GGUF files: tokens that begin a
//! word begin with `▁`, the others continue one.

use std::collections::HashMap;

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization;

use super::sentence_piece::SPACE;

/// A vocabulary of words and parts of words.
pub struct WordPiece {
    ids: HashMap<Box<str>, u32>,
    /// Stands for a word that no tokens make.
    unknown: u32,
    /// Bytes of the longest token.
    longest: usize,
    form: Form,
}

/// What is made of text before it is cut.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub is_lower_case: bool,
    pub strips_accents: bool,
}

impl WordPiece {
    /// `tokens` are all texts, by id.
    pub fn new<'a>(tokens: impl Iterator<Item = &'a str>, unknown: u32, form: Form) -> Self {
        let ids: HashMap<Box<str>, u32> = tokens.map(Box::from).zip(0u32..).collect();
        let longest = ids.keys().map(|text| text.len()).max().unwrap_or(0);
        Self { ids, unknown, longest, form }
    }

    /// Encodes text without special tokens.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        for word in words(text, self.form) {
            let n_before = ids.len();
            if !self.encode_word(&word, ids) {
                ids.truncate(n_before);
                ids.push(self.unknown);
            }
        }
    }

    /// Takes the longest token at each place; whether the word could be covered.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> bool {
        let mut rest = word;
        while !rest.is_empty() {
            let longest = rest.floor_char_boundary(self.longest);
            let ends = (1..=longest).rev().filter(|&end| rest.is_char_boundary(end));
            let found = ends.filter_map(|end| Some((*self.ids.get(&rest[..end])?, end))).next();
            let Some((id, end)) = found else { return false };
            ids.push(id);
            rest = &rest[end..];
        }
        true
    }
}

/// The words of a text, each with `▁` in front; punctuation and Chinese characters stand alone.
fn words(text: &str, form: Form) -> Vec<String> {
    let mut words = Vec::new();
    let mut is_in_word = false;
    for c in text.chars().map(|c| if form.strips_accents { base(c) } else { c }) {
        let category = get_general_category(c);
        if c.is_whitespace() {
            is_in_word = false;
            continue;
        }
        if c == '\0' || c == char::REPLACEMENT_CHARACTER || is_control(category) {
            continue;
        }
        if form.strips_accents && is_mark(category) {
            continue;
        }
        let lower = if form.is_lower_case { c.to_lowercase().next().unwrap_or(c) } else { c };
        let is_alone = is_punctuation(category) || (c < '\u{7F}' && is_symbol(category)) || is_chinese(c);
        if is_alone || !is_in_word {
            words.push(String::from(SPACE));
        }
        if let Some(word) = words.last_mut() {
            word.push(lower);
        }
        is_in_word = !is_alone;
    }
    words
}

/// The character without what its canonical decomposition adds to it.
fn base(c: char) -> char {
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

/// The blocks that BERT's tokenizer counts as Chinese.
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

    const BERT: Form = Form { is_lower_case: true, strips_accents: true };

    #[test]
    fn words_are_lower_case_without_accents_and_cut_at_punctuation() {
        assert_eq!(
            words("Ünï\u{301}  don't\n中文 a_b", BERT),
            ["▁uni", "▁don", "▁'", "▁t", "▁中", "▁文", "▁a", "▁_", "▁b"]
        );
        assert_eq!(words("a\u{0}\u{200b}b €5 $5", BERT), ["▁ab", "▁€5", "▁$", "▁5"]);
        assert!(words(" \t", BERT).is_empty());
        let cased = Form { is_lower_case: false, strips_accents: false };
        assert_eq!(words("Ünï", cased), ["▁Ünï"]);
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
