//! Messages typed over several lines: between `"""`, or with a backslash at the end of a line.

/// The mark around a message of several lines.
const QUOTE: &str = "\"\"\"";

/// Joins lines to messages.
#[derive(Debug, Default)]
pub struct LineJoiner {
    lines: Vec<String>,
    is_quoted: bool,
}

/// A complete entry.
#[derive(Debug, PartialEq, Eq)]
pub struct TypedText {
    /// The text, without marks.
    pub text: String,
    /// Whether it was quoted, and so is no command.
    pub is_quoted: bool,
}

impl LineJoiner {
    /// Adds a line, and returns the entry that it completes.
    pub fn push(&mut self, line: &str) -> Option<TypedText> {
        let mut line = line;
        let quoted = line.trim_start().strip_prefix(QUOTE);
        if let Some(rest) = quoted.filter(|_| !self.is_pending()) {
            (self.is_quoted, line) = (true, rest);
        }
        if self.is_quoted {
            match line.trim_end().strip_suffix(QUOTE) {
                Some(last) => {
                    self.lines.push(last.to_owned());
                    return Some(self.complete());
                }
                None => self.lines.push(line.to_owned()),
            }
            return None;
        }
        if let Some(continued) = line.strip_suffix('\\') {
            self.lines.push(continued.to_owned());
            return None;
        }
        self.lines.push(line.to_owned());
        Some(self.complete())
    }

    /// Whether an entry is incomplete.
    pub fn is_pending(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Drops an incomplete entry.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn complete(&mut self) -> TypedText {
        let Self { lines, is_quoted } = std::mem::take(self);
        let text = lines.join("\n");
        TypedText { text: text.trim_matches('\n').to_owned(), is_quoted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(lines: &[&str]) -> Vec<(String, bool)> {
        let mut joiner = LineJoiner::default();
        let entries = lines.iter().filter_map(|line| joiner.push(line));
        let entries = entries.map(|entry| (entry.text, entry.is_quoted)).collect();
        assert!(!joiner.is_pending());
        entries
    }

    fn plain(text: &str) -> (String, bool) {
        (text.to_owned(), false)
    }

    fn quoted(text: &str) -> (String, bool) {
        (text.to_owned(), true)
    }

    #[test]
    fn lines_are_joined() {
        assert_eq!(entries(&["one", "two"]), [plain("one"), plain("two")]);
        assert_eq!(entries(&["one\\", "two\\", "three", "four"]), [plain("one\ntwo\nthree"), plain("four")]);
        assert_eq!(entries(&["\"\"\"", "one", "", "two\\", "\"\"\""]), [quoted("one\n\ntwo\\")]);
        assert_eq!(entries(&["\"\"\"one", "two\"\"\" "]), [quoted("one\ntwo")]);
        assert_eq!(entries(&["\"\"\"/help\"\"\"", "x"]), [quoted("/help"), plain("x")]);
        assert_eq!(entries(&["say \"\"\"", "\\", "x"]), [plain("say \"\"\""), plain("x")]);
        assert_eq!(entries(&["pasted\nlines"]), [plain("pasted\nlines")]);
        assert_eq!(entries(&[""]), [plain("")]);
    }

    #[test]
    fn an_incomplete_entry_can_be_dropped() {
        let mut joiner = LineJoiner::default();
        assert_eq!(joiner.push("\"\"\""), None);
        assert!(joiner.is_pending());
        joiner.clear();
        assert!(!joiner.is_pending());
        assert_eq!(joiner.push("x").map(|entry| entry.text), Some("x".to_owned()));
    }
}
