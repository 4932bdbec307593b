//! Stop strings: found across token boundaries, never partly emitted.

/// Searches generated text for stop strings.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text held back because it may be the beginning of a stop string.
    held: String,
}

/// The result of scanning a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub struct StopScan {
    /// Text that is certainly not part of a stop string.
    pub text: String,
    /// The stop string that was found; `text` ends before it.
    pub found: Option<String>,
}

impl StopStrings {
    /// A search for `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds text and returns the text that may be emitted.
    pub fn push(&mut self, text: &str) -> StopScan {
        self.held.push_str(text);
        // The first to end wins, as if the text came character by character, so that token boundaries make no
        // difference. Of several that end together, the longest wins.
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start))
        });
        if let Some((end, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            let found = text[start..end].to_owned();
            text.truncate(start);
            return StopScan { text, found: Some(found) };
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        StopScan { text: std::mem::replace(&mut self.held, rest), found: None }
    }

    /// The text that was held back, once no more text comes.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest suffix of `text` that is a proper prefix of `stop`.
pub fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(end, _)| end).rev().find(|&end| text.ends_with(&stop[..end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str, found: &str) -> StopScan {
        StopScan { text: text.to_owned(), found: (!found.is_empty()).then(|| found.to_owned()) }
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_partly_emitted() {
        let mut stops = StopStrings::new(vec!["</end>".to_owned()]);
        assert_eq!(stops.push("a <"), scan("a ", ""));
        assert_eq!(stops.push("/e"), scan("", ""));
        assert_eq!(stops.push("nd"), scan("", ""));
        assert_eq!(stops.push("> b"), scan("", "</end>"));
    }

    #[test]
    fn a_false_start_is_emitted_in_full() {
        let mut stops = StopStrings::new(vec!["</end>".to_owned()]);
        assert_eq!(stops.push("1 </en"), scan("1 ", ""));
        assert_eq!(stops.push("ough"), scan("</enough", ""));
        assert_eq!(stops.push("<"), scan("", ""));
        assert_eq!(stops.flush(), "<");
    }

    #[test]
    fn the_stop_string_that_ends_first_wins() {
        let stops = || StopStrings::new(vec!["cd".to_owned(), "b".to_owned(), "abcde".to_owned()]);
        assert_eq!(stops().push("abcde"), scan("a", "b"));
        assert_eq!(StopStrings::new(vec!["bc".into(), "abc".into()]).push("xabc"), scan("x", "abc"));
    }

    proptest! {
        #[test]
        fn every_split_stops_at_the_same_position(
            text in "[ab]{0,24}",
            strings in prop::collection::vec("[ab]{1,4}", 1..5),
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stops = StopStrings::new(strings.clone());
            let mut emitted = String::new();
            let mut is_stopped = false;
            for cut in cuts.windows(2) {
                let scan = stops.push(&text[cut[0]..cut[1]]);
                emitted += &scan.text;
                is_stopped = scan.found.is_some();
                if is_stopped { break; }
            }
            if !is_stopped { emitted += &stops.flush(); }
            // The definition: the shortest prefix of the text that ends with a stop string.
            let end = (0..=text.len()).find(|&end| strings.iter().any(|stop| text[..end].ends_with(stop)));
            let longest = |end: usize| {
                strings.iter().filter(|stop| text[..end].ends_with(*stop)).map(String::len).max().unwrap()
            };
            prop_assert_eq!(is_stopped, end.is_some());
            prop_assert_eq!(emitted, end.map_or(text.as_str(), |end| &text[..end - longest(end)]));
        }
    }
}
