//! SentencePiece's byte-pair encoding: of all adjacent pairs that form a token, the pair with the best score is
//! merged first.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::token_bytes::SPACE;

/// A vocabulary with scores, in which `▁` stands for a space.
pub struct SentencePiece {
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    /// The byte-fallback tokens by byte, for text that no token covers.
    byte_ids: Vec<Option<u32>>,
    /// The id for a byte without a token.
    unknown: Option<u32>,
    /// Whether text at the start, or after a special token, gets a space prefix.
    add_space_prefix: bool,
}

/// A span of the text: a token, or a part of one that is still to be merged.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once it is merged into the previous symbol.
    n_bytes: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two adjacent symbols that together form a token.
struct MergeCandidate {
    score: f32,
    left: usize,
    right: usize,
    /// The length of both; the candidate is stale if they have changed since.
    n_bytes: usize,
}

impl SentencePiece {
    /// A vocabulary with the texts and scores of all `tokens`, by id. `fallback_byte` returns the byte of a
    /// byte-fallback token.
    pub fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, f32)>,
        fallback_byte: impl Fn(u32) -> Option<u8>,
        unknown: Option<u32>,
        add_space_prefix: bool,
    ) -> Self {
        let (mut ids, mut scores, mut byte_ids) = (HashMap::new(), Vec::new(), vec![None; 256]);
        for (id, (text, score)) in (0u32..).zip(tokens) {
            if let Some(byte) = fallback_byte(id) {
                byte_ids[usize::from(byte)] = Some(id);
            }
            ids.insert(text.into(), id);
            scores.push(score);
        }
        Self { ids, scores, byte_ids, unknown, add_space_prefix }
    }

    /// Encodes text without special tokens; `at_start` says whether it stands at the start or after a special
    /// token.
    pub fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + 3);
        if at_start && self.add_space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for symbol in self.merge(&escaped) {
            let text = &escaped[symbol.start..][..symbol.n_bytes];
            match self.ids.get(text) {
                Some(&id) => ids.push(id),
                None => ids.extend(
                    text.bytes().filter_map(|byte| self.byte_ids[usize::from(byte)].or(self.unknown)),
                ),
            }
        }
    }

    /// Merges characters until no two adjacent symbols form a token.
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
        let mut candidates: BinaryHeap<MergeCandidate> =
            (1..symbols.len()).filter_map(|right| self.candidate(text, &symbols, right - 1, right)).collect();
        while let Some(MergeCandidate { left, right, n_bytes, .. }) = candidates.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.n_bytes == 0 || b.n_bytes == 0 || a.n_bytes + b.n_bytes != n_bytes {
                continue;
            }
            symbols[left] = Symbol { n_bytes, next: b.next, ..a };
            symbols[right].n_bytes = 0;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
                candidates.extend(self.candidate(text, &symbols, left, next));
            }
            if let Some(previous) = a.previous {
                candidates.extend(self.candidate(text, &symbols, previous, left));
            }
        }
        symbols.retain(|symbol| symbol.n_bytes > 0);
        symbols
    }

    /// A merge of two adjacent symbols, if together they form a token.
    fn candidate(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<MergeCandidate> {
        let n_bytes = symbols[left].n_bytes + symbols[right].n_bytes;
        let id = *self.ids.get(&text[symbols[left].start..][..n_bytes])?;
        Some(MergeCandidate { score: self.scores[id as usize], left, right, n_bytes })
    }
}

/// The best score first, then the leftmost.
impl Ord for MergeCandidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for MergeCandidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for MergeCandidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for MergeCandidate {}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Vec<(String, f32)> {
        let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0));
        let texts =
            [("▁", -5.0), ("a", -6.0), ("b", -7.0), ("ab", -1.0), ("ba", -2.0), ("▁a", -3.0), ("aba", -4.0)];
        bytes.chain(texts.map(|(text, score)| (text.to_owned(), score))).collect()
    }

    fn encode(text: &str, add_space_prefix: bool) -> Vec<String> {
        let tokens = tokens();
        let byte = |id: u32| (id < 256).then_some(id as u8);
        let entries = tokens.iter().map(|(text, score)| (text.as_str(), *score));
        let mut ids = Vec::new();
        SentencePiece::new(entries, byte, None, add_space_prefix).encode(text, true, &mut ids);
        ids.into_iter().map(|id| tokens[id as usize].0.clone()).collect()
    }

    #[test]
    fn the_best_score_is_merged_first_then_the_leftmost() {
        assert_eq!(encode("abab", false), ["ab", "ab"]);
        assert_eq!(encode("baba", false), ["b", "aba"]);
        assert_eq!(encode("aab", true), ["▁a", "ab"]);
        assert_eq!(encode(" ", false), ["▁"]);
        assert_eq!(encode("", true), ["▁"]);
    }

    #[test]
    fn text_without_a_token_becomes_bytes() {
        assert_eq!(encode("a🙂", false), ["a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]);
    }

    #[test]
    fn repetitive_text_takes_linear_time() {
        let started = std::time::Instant::now();
        assert_eq!(encode(&"ab".repeat(500_000), false).len(), 500_000);
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}
