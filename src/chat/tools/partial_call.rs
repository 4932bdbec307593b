//! Incremental parsing of a call that is a JSON object.

use serde_json::Value;

use super::json_text::JsonNesting;

/// The keys of a call's object.
const KEYS: [&str; 7] = ["name", "tool_name", "arguments", "parameters", "type", "id", "tool_call_id"];

/// A call parsed so far.
#[derive(Debug, Clone, Default)]
pub struct PartialCall {
    nesting: JsonNesting,
    /// Raw text of the current key or value at depth one.
    item: String,
    /// The key of the current value.
    key: Option<String>,
    /// Whether a key occurred that no call has.
    pub has_unknown_key: bool,
    /// The function's name, once it is whole.
    pub name: Option<String>,
    /// Text of the arguments so far.
    pub arguments: String,
    /// Bytes of the arguments already emitted.
    pub n_emitted: usize,
    /// Whether a delta of the call has been emitted.
    pub is_emitted: bool,
    /// Whether the object has ended.
    pub is_complete: bool,
}

impl PartialCall {
    /// Parses more of a call's object; returns the number of bytes up to its end.
    pub fn parse(&mut self, text: &str) -> usize {
        for (start, c) in text.char_indices() {
            let was_inner = self.nesting.depth() > 1 || self.nesting.is_in_string();
            self.nesting.push(c);
            match c {
                _ if was_inner => self.push_item_char(c),
                '{' if self.item.is_empty() && self.key.is_none() && self.nesting.depth() == 1 => {}
                ':' if self.key.is_none() => {
                    let key = std::mem::take(&mut self.item);
                    let key: String = serde_json::from_str(key.trim()).unwrap_or_default();
                    self.has_unknown_key |= !KEYS.contains(&key.as_str());
                    self.key = Some(key);
                }
                ',' => self.end_item(),
                '}' | ']' if self.nesting.is_outside() => {
                    self.end_item();
                    self.is_complete = true;
                }
                c => self.push_item_char(c),
            }
            if self.is_complete {
                return start + c.len_utf8();
            }
        }
        text.len()
    }

    fn is_name(&self) -> bool {
        matches!(self.key.as_deref(), Some("name" | "tool_name"))
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_deref(), Some("arguments" | "parameters"))
    }

    /// Whether what there is of a name is the beginning of one of `names`.
    pub fn may_name_one_of<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        let item = self.item.trim_end();
        !self.is_name() || names.any(|name| Value::from(name).to_string().starts_with(item))
    }

    /// Takes the value that the text was cut in or after as the name, if it is a whole one.
    pub fn end_name(&mut self) {
        if self.name.is_none() && self.is_name() {
            self.name = serde_json::from_str(self.item.trim()).ok();
        }
    }

    fn push_item_char(&mut self, c: char) {
        if self.item.is_empty() && c.is_whitespace() {
            return;
        }
        self.item.push(c);
        if self.is_arguments() && self.item.starts_with('{') && (self.nesting.depth() > 1 || c == '}') {
            self.arguments.push(c);
        }
    }

    fn end_item(&mut self) {
        let is_arguments = self.is_arguments();
        let item = std::mem::take(&mut self.item);
        match self.key.take().as_deref() {
            Some("name" | "tool_name") => self.name = serde_json::from_str(item.trim()).ok(),
            // Some models write the arguments as a string with JSON in it.
            Some(_) if is_arguments && item.starts_with('"') => {
                self.arguments = serde_json::from_str::<String>(item.trim()).unwrap_or(item);
            }
            Some(_) if is_arguments && self.arguments.is_empty() && item.trim() != "null" => {
                self.arguments = Value::from(item.trim()).to_string();
            }
            _ => {}
        }
    }
}
