//! SentencePiece's byte-pair encoding: of all neighbours that together are a token, those with the
//! best score are joined first.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// A vocabulary with scores. Spaces are written `▁`.
pub struct SentencePiece {
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    /// The tokens of single bytes, for text that no token covers.
    bytes: Vec<Option<u32>>,
    /// Stands for a byte without a token.
    unknown: Option<u32>,
    /// Whether text at the beginning or behind a special token gets a space in front.
    adds_space: bool,
}

/// What a space is written as.
pub const SPACE: char = '▁';

/// A stretch of the text that is one token, or may become part of one.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// None once it has become part of the one before.
    n_bytes: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that together are a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both; if they have other lengths by now, the pair is out of date.
    n_bytes: usize,
}

impl SentencePiece {
    /// `tokens` are all texts with their scores, by id; `byte` says which byte a token stands for, if
    /// it is one of bytes.
    pub fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, f32)>,
        byte: impl Fn(u32) -> Option<u8>,
        unknown: Option<u32>,
        adds_space: bool,
    ) -> Self {
        let (mut ids, mut scores, mut bytes) = (HashMap::new(), Vec::new(), vec![None; 256]);
        for (id, (text, score)) in (0u32..).zip(tokens) {
            if let Some(byte) = byte(id) {
                bytes[usize::from(byte)] = Some(id);
            }
            ids.insert(text.into(), id);
            scores.push(score);
        }
        Self { ids, scores, bytes, unknown, adds_space }
    }

    /// Encodes text without special tokens; `at_start` says that it stands at the beginning or
    /// behind a special token.
    pub fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + 3);
        if at_start && self.adds_space {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for symbol in self.merge(&escaped) {
            let text = &escaped[symbol.start..][..symbol.n_bytes];
            match self.ids.get(text) {
                Some(&id) => ids.push(id),
                None => {
                    ids.extend(text.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown)))
                }
            }
        }
    }

    /// Joins characters until no two neighbours are a token.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(idx, (start, c))| Symbol {
                start,
                n_bytes: c.len_utf8(),
                previous: idx.checked_sub(1),
                next: Some(idx + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut pairs: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|right| self.pair(text, &symbols, right - 1, right)).collect();
        while let Some(Pair { left, right, n_bytes, .. }) = pairs.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.n_bytes == 0 || b.n_bytes == 0 || a.n_bytes + b.n_bytes != n_bytes {
                continue;
            }
            symbols[left] = Symbol { n_bytes, next: b.next, ..a };
            symbols[right].n_bytes = 0;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
                pairs.extend(self.pair(text, &symbols, left, next));
            }
            if let Some(previous) = a.previous {
                pairs.extend(self.pair(text, &symbols, previous, left));
            }
        }
        symbols.retain(|symbol| symbol.n_bytes > 0);
        symbols
    }

    /// Two neighbours, if together they are a token.
    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let n_bytes = symbols[left].n_bytes + symbols[right].n_bytes;
        let id = *self.ids.get(&text[symbols[left].start..][..n_bytes])?;
        Some(Pair { score: self.scores[id as usize], left, right, n_bytes })
    }
}

/// The best score first, of equals the leftmost.
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Vec<(String, f32)> {
        let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0));
        let texts =
            [("▁", -5.0), ("a", -6.0), ("b", -7.0), ("ab", -1.0), ("ba", -2.0), ("▁a", -3.0), ("aba", -4.0)];
        bytes.chain(texts.map(|(text, score)| (text.to_owned(), score))).collect()
    }

    fn encode(text: &str, adds_space: bool) -> Vec<String> {
        let tokens = tokens();
        let byte = |id: u32| (id < 256).then_some(id as u8);
        let entries = tokens.iter().map(|(text, score)| (text.as_str(), *score));
        let mut ids = Vec::new();
        SentencePiece::new(entries, byte, None, adds_space).encode(text, true, &mut ids);
        ids.into_iter().map(|id| tokens[id as usize].0.clone()).collect()
    }

    #[test]
    fn the_best_score_is_joined_first_then_the_leftmost() {
        assert_eq!(encode("abab", false), ["ab", "ab"]);
        assert_eq!(encode("baba", false), ["b", "aba"]);
        assert_eq!(encode("aab", true), ["▁a", "ab"]);
        assert_eq!(encode(" ", false), ["▁"]);
        assert_eq!(encode("", true), ["▁"]);
    }

    #[test]
    fn what_no_token_covers_becomes_bytes() {
        assert_eq!(encode("a🙂", false), ["a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]);
    }

    #[test]
    fn a_megabyte_of_one_letter_takes_no_longer_than_another_text() {
        let started = std::time::Instant::now();
        assert_eq!(encode(&"ab".repeat(500_000), false).len(), 500_000);
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}
