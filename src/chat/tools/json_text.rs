//! Text of JSON in pieces: nesting, and strings.

use serde_json::Value;

use crate::inference::overlap;

/// The position in a JSON value that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct JsonNesting {
    depth: usize,
    in_string: bool,
    /// Whether the previous character was a backslash in a string.
    is_escaped: bool,
}

impl JsonNesting {
    /// Takes one character into account.
    pub fn push(&mut self, c: char) {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' if self.in_string => self.is_escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    /// Nesting depth of objects and arrays.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Whether the position is in a string.
    pub fn is_in_string(&self) -> bool {
        self.in_string
    }

    /// Whether the position is outside of objects and arrays.
    pub fn is_outside(&self) -> bool {
        self.depth == 0
    }

    /// The length of what belongs to the object or array in `text`; `None` if it does not end there.
    pub fn end_of_value(&mut self, text: &str) -> Option<usize> {
        for (start, c) in text.char_indices() {
            self.push(c);
            if self.is_outside() {
                return Some(start + c.len_utf8());
            }
        }
        None
    }
}

/// A text as the contents of a JSON string.
pub fn escape(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// The length of the longest end of `text` that may be the beginning of one of `marks`.
pub fn overlap_any(text: &str, marks: &[&str]) -> usize {
    marks.iter().map(|mark| overlap(text, mark)).max().unwrap_or(0)
}
