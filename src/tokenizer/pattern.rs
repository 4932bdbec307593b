//! Patterns of a tokenizer's file, searched for within bounds.
//!
//! The regular expressions of `tokenizer.json` are Oniguruma's, which backtracks: a hostile one takes exponential
//! time, and panics at Oniguruma's own limit. Here every match has a limit that grows with the text, and the clock is
//! looked at between a few start positions.

use onig::{MatchParam, Regex, Region, SearchOptions};
use tokenizers::tokenizer::pattern::Pattern as CratePattern;
use tokenizers::{Offsets, Result};

use super::bounds::{check_time, exceeded};

/// The longest regular expression, in bytes. Those of models have up to 2000.
const MAX_PATTERN_BYTES: usize = 8 << 10;

/// The deepest nesting of groups in a regular expression.
const MAX_GROUPS: usize = 64;

/// Bytes of start positions between two looks at the clock.
const WINDOW_BYTES: usize = 64;

/// Times that a match may backtrack in a short text.
const MIN_RETRIES: usize = 10_000;

/// Times that a match may backtrack for each byte of the text. Skipping a run of spaces takes one.
const RETRIES_PER_BYTE: usize = 16;

/// Times that a match may backtrack in any text: some tens of milliseconds.
const MAX_RETRIES: usize = 4_000_000;

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

/// A search for all matches of a regular expression, with the results of Oniguruma's own iterator.
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
        let max_retries = (MIN_RETRIES + text.len().saturating_mul(RETRIES_PER_BYTE)).min(MAX_RETRIES);
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

    /// The first match from the current position on.
    fn find(&mut self) -> Result<Option<Offsets>> {
        let mut from = self.at;
        loop {
            check_time()?;
            let to = self.text.ceil_char_boundary((from + WINDOW_BYTES).min(self.text.len()));
            let mut param = MatchParam::default();
            param.set_retry_limit_in_match(self.max_retries);
            self.region.clear();
            let options = SearchOptions::SEARCH_OPTION_NONE;
            let found =
                self.regex.search_with_param(self.text, from, to, options, Some(&mut self.region), param);
            match found {
                Ok(Some(_)) => return Ok(self.region.pos(0)),
                Ok(None) if to == self.text.len() => return Ok(None),
                Ok(None) => from = to,
                Err(e) => {
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
        let long = "word ".repeat(100) + &"😀é ".repeat(50) + "\r\n  tail";
        for regex in
            [r"\p{L}+| ?\p{N}+|\s+(?!\S)|\s+", "", "x*", r"(?=w)", "tail$", r"^word", "é", "(?<=e)é|\\z"]
        {
            for text in ["", "a", "ab  12\n", "xxay", long.as_str()] {
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
