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
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
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
fn overlap(text: &str, stop: &str) -> usize {
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
    fn the_earliest_of_several_wins() {
        let mut stops = StopStrings::new(vec!["cd".to_owned(), "b".to_owned()]);
        assert_eq!(stops.push("abcd"), checked("a", true));
    }

    proptest! {
        #[test]
        fn any_split_stops_at_the_same_place(
            text in "[ab]{0,24}",
            stop in "[ab]{1,4}",
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stops = StopStrings::new(vec![stop.clone()]);
            let mut shown = String::new();
            let mut stopped = false;
            for cut in cuts.windows(2) {
                let checked = stops.push(&text[cut[0]..cut[1]]);
                shown += &checked.text;
                stopped = checked.stopped;
                if stopped { break; }
            }
            if !stopped { shown += &stops.finish(); }
            let expected = text.split(&stop).next().unwrap_or_default();
            prop_assert_eq!(stopped, text.contains(&stop));
            prop_assert_eq!(shown, expected);
        }
    }
}
