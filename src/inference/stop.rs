//! Stop strings: found across token borders, never half emitted.

/// Watches generated text for stop strings.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What came of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// Text that is certainly not part of a stop string.
    pub text: String,
    /// Whether a stop string came; then `text` ends before it.
    pub stopped: bool,
}

impl StopStrings {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Takes more text and returns what may be shown.
    pub fn push(&mut self, text: &str) -> Checked {
        self.held.push_str(text);
        // The one that ends first, as if the text came character by character: then where the
        // tokens' borders are makes no difference. Of several that end together, the longest.
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Checked { text, stopped: true };
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Checked { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` with which `stop` begins.
pub fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(end, _)| end).rev().find(|&end| text.ends_with(&stop[..end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn checked(text: &str, stopped: bool) -> Checked {
        Checked { text: text.to_owned(), stopped }
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_half_shown() {
        let mut stops = StopStrings::new(vec!["</end>".to_owned()]);
        assert_eq!(stops.push("a <"), checked("a ", false));
        assert_eq!(stops.push("/e"), checked("", false));
        assert_eq!(stops.push("nd"), checked("", false));
        assert_eq!(stops.push("> b"), checked("", true));
    }

    #[test]
    fn a_false_start_comes_out_whole() {
        let mut stops = StopStrings::new(vec!["</end>".to_owned()]);
        assert_eq!(stops.push("1 </en"), checked("1 ", false));
        assert_eq!(stops.push("ough"), checked("</enough", false));
        assert_eq!(stops.push("<"), checked("", false));
        assert_eq!(stops.finish(), "<");
    }

    #[test]
    fn of_several_the_one_that_ends_first_wins() {
        let stops = || StopStrings::new(vec!["cd".to_owned(), "b".to_owned(), "abcde".to_owned()]);
        assert_eq!(stops().push("abcde"), checked("a", true));
        assert_eq!(StopStrings::new(vec!["bc".into(), "abc".into()]).push("xabc"), checked("x", true));
    }

    proptest! {
        #[test]
        fn any_split_stops_at_the_same_place(
            text in "[ab]{0,24}",
            strings in prop::collection::vec("[ab]{1,4}", 1..5),
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stops = StopStrings::new(strings.clone());
            let mut shown = String::new();
            let mut stopped = false;
            for cut in cuts.windows(2) {
                let checked = stops.push(&text[cut[0]..cut[1]]);
                shown += &checked.text;
                stopped = checked.stopped;
                if stopped { break; }
            }
            if !stopped { shown += &stops.finish(); }
            // The definition: the shortest beginning of the text that ends with a stop string.
            let end = (0..=text.len()).find(|&end| strings.iter().any(|stop| text[..end].ends_with(stop)));
            let longest = |end: usize| {
                strings.iter().filter(|stop| text[..end].ends_with(*stop)).map(String::len).max().unwrap()
            };
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(shown, end.map_or(text.as_str(), |end| &text[..end - longest(end)]));
        }
    }
}
