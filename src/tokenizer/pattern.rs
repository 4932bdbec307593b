//! Patterns of a tokenizer's file, searched for within bounds.
//!
//! The regular expressions of `tokenizer.json` are Oniguruma's, which backtracks: a hostile one takes exponential
//! time, and panics at Oniguruma's own limit. Here the length of a match and its backtracking are limited, and the clock
//! is looked at between a few start positions.

use onig::{MatchParam, Regex, Region, SearchOptions};
use tokenizers::tokenizer::pattern::Pattern as CratePattern;
use tokenizers::{Offsets, Result};

use super::bounds::{check_time, exceeded};

/// The longest regular expression, in bytes. Those of models have up to 2000.
const MAX_PATTERN_BYTES: usize = 8 << 10;

/// The deepest nesting of groups in a regular expression.
const MAX_GROUPS: usize = 64;

/// Bytes of start positions between two looks at the clock.
const BYTES_PER_CHECK: usize = 64;

/// Times that a match may backtrack in a short text.
const MIN_RETRIES: usize = 10_000;

/// Times that a match may backtrack for each byte that it may take. Skipping a run of spaces takes one.
const RETRIES_PER_BYTE: usize = 16;

/// Bytes of the longest match. Its time may be quadratic in them even without backtracking: some milliseconds.
const MAX_MATCH_BYTES: usize = 4 << 10;

/// A pattern.
pub enum Pattern {
    /// A text.
    Text(String),
    /// A regular expression.
    Regex(Regex),
}

impl Pattern {
    /// A text, which must not be empty.
    pub fn from_text(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err("a pattern is empty".into());
        }
        Ok(Self::Text(text.to_owned()))
    }

    /// A regular expression.
    pub fn from_regex(regex: &str) -> Result<Self> {
        check_regex(regex)?;
        Ok(Self::Regex(Regex::new(regex)?))
    }
}

/// Refuses a regular expression that is too long or nested too deeply to be compiled.
pub fn check_regex(regex: &str) -> Result<()> {
    let mut depth = 0_usize;
    for byte in regex.bytes() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_GROUPS {
            return Err(format!("a regular expression nests groups more than {MAX_GROUPS} deep").into());
        }
    }
    if regex.len() > MAX_PATTERN_BYTES {
        return Err(format!(
            "a regular expression has {} bytes; at most {MAX_PATTERN_BYTES} are allowed",
            regex.len()
        )
        .into());
    }
    Ok(())
}

impl CratePattern for &Pattern {
    fn find_matches(&self, inside: &str) -> Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut splits = Vec::new();
        let mut end = 0;
        let mut push = |(start, stop): Offsets| {
            if end != start {
                splits.push(((end, start), false));
            }
            splits.push(((start, stop), true));
            end = stop;
        };
        match self {
            Pattern::Text(text) => {
                inside.match_indices(text.as_str()).for_each(|(at, _)| push((at, at + text.len())));
            }
            Pattern::Regex(regex) => {
                let mut search = Search::new(regex, inside);
                while let Some(found) = search.next()? {
                    push(found);
                }
            }
        }
        if end != inside.len() {
            splits.push(((end, inside.len()), false));
        }
        Ok(splits)
    }
}

/// A search for all matches of a regular expression, with the results of Oniguruma's own iterator up to
/// [`MAX_MATCH_BYTES`].
struct Search<'a> {
    regex: &'a Regex,
    text: &'a str,
    region: Region,
    at: usize,
    last_end: Option<usize>,
    max_retries: u32,
}

impl<'a> Search<'a> {
    fn new(regex: &'a Regex, text: &'a str) -> Self {
        let max_retries = MIN_RETRIES + text.len().min(MAX_MATCH_BYTES) * RETRIES_PER_BYTE;
        Self { regex, text, region: Region::new(), at: 0, last_end: None, max_retries: max_retries as u32 }
    }

    fn next(&mut self) -> Result<Option<Offsets>> {
        while self.at <= self.text.len() {
            let Some((start, end)) = self.find()? else { return Ok(None) };
            // An empty match right after the last one does not count.
            if start == end && self.last_end == Some(end) {
                self.at += self.text[self.at..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            self.at = end;
            self.last_end = Some(end);
            return Ok(Some((start, end)));
        }
        Ok(None)
    }

    /// The first match from the current position on. Start positions are tried one by one: a search of Oniguruma's in a
    /// range would end matches with the range.
    fn find(&mut self) -> Result<Option<Offsets>> {
        let mut start = self.at;
        let mut next_check = start;
        loop {
            if start >= next_check {
                check_time()?;
                next_check = start + BYTES_PER_CHECK;
            }
            let mut param = MatchParam::default();
            param.set_retry_limit_in_match(self.max_retries);
            self.region.clear();
            let end = self.text.ceil_char_boundary((start + MAX_MATCH_BYTES).min(self.text.len()));
            let options = SearchOptions::SEARCH_OPTION_NONE;
            let found =
                self.regex.match_with_param(&self.text[..end], start, options, Some(&mut self.region), param);
            match (found, self.text[start..].chars().next()) {
                (Ok(Some(_)), _) => return Ok(self.region.pos(0)),
                (Ok(None), None) => return Ok(None),
                (Ok(None), Some(c)) => start += c.len_utf8(),
                (Err(e), _) => {
                    let bound = format!("a regular expression of the tokenizer fails: {}", e.description());
                    return Err(exceeded(bound).into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::bounds::with_bounds;
    use super::*;

    #[test]
    fn matches_are_those_of_onigurumas_iterator() {
        let many = "word ".repeat(100) + &"😀é ".repeat(50) + "\r\n  tail";
        let long = ["é", " ", "=", "word ", "1"].map(|piece| piece.repeat(100)).concat() + "\n";
        for regex in [
            r"\p{L}+| ?\p{N}+|\s+(?!\S)|\s+",
            "",
            "x*",
            r"(?=w)",
            "tail$",
            r"^word",
            "é",
            "(?<=e)é|\\z",
            r"[^\n]+",
            r"\s{90}|=+(?!w)",
            r"\d{1,3}(?=(\d{3})*\b)",
        ] {
            for text in ["", "a", "ab  12\n", "xxay", many.as_str(), long.as_str()] {
                let expected: Vec<Offsets> = Regex::new(regex).unwrap().find_iter(text).collect();
                let found = (&Pattern::from_regex(regex).unwrap()).find_matches(text).unwrap();
                let found: Vec<Offsets> =
                    found.into_iter().filter(|(_, is_match)| *is_match).map(|(offsets, _)| offsets).collect();
                assert_eq!(found, if text.is_empty() { Vec::new() } else { expected }, "{regex} in {text:?}");
            }
        }
    }

    #[test]
    fn backtracking_ends_with_an_error() {
        for (regex, text) in [
            ("(a+)+$", "a".repeat(40) + "b"),
            ("(a|aa)+$", "a".repeat(60) + "b"),
            ("a([^b]*[^c]*d)?", "d".to_owned() + &"a".repeat(600_000)),
        ] {
            let started = Instant::now();
            let pattern = Pattern::from_regex(regex).unwrap();
            let found = with_bounds(text.len(), || (&pattern).find_matches(&text));
            assert!(found.is_err(), "{regex}");
            assert!(started.elapsed().as_secs() < 8, "{regex}: {:?}", started.elapsed());
        }
    }

    #[test]
    fn long_and_deep_expressions_are_refused() {
        for regex in ["(".repeat(100) + &")".repeat(100), "a".repeat(10_000), "(".to_owned()] {
            assert!(Pattern::from_regex(&regex).is_err());
        }
        assert!(Pattern::from_text("").is_err());
    }
}
