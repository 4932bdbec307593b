//! Values as in Python, in JSON, and in Gemma's form of both, whose strings stand between [`GEMMA_QUOTE`]s.

use serde_json::{Map, Value};

/// The mark around strings in Gemma's form; a token of its own.
pub const GEMMA_QUOTE: &str = "<|\"|>";

/// Deepest nesting of a value.
const MAX_DEPTH: usize = 64;

/// An incremental search for the end of a value among arguments.
#[derive(Debug, Clone, Default)]
pub struct LiteralScan {
    /// Bytes searched.
    pos: usize,
    depth: usize,
    quote: Option<&'static str>,
    is_escaped: bool,
}

impl LiteralScan {
    /// The length of the value that `text` begins with: up to a comma or a bracket that closes the arguments. `None` if
    /// more text is needed. Later calls must have the same text, and more.
    pub fn find_end(&mut self, text: &str) -> Option<usize> {
        while let Some(c) = text[self.pos..].chars().next() {
            let rest = &text[self.pos..];
            if c == '<' && GEMMA_QUOTE.starts_with(rest) && rest != GEMMA_QUOTE {
                return None;
            }
            let mut n_read = c.len_utf8();
            match self.quote {
                _ if self.is_escaped => self.is_escaped = false,
                Some(GEMMA_QUOTE) => {
                    if rest.starts_with(GEMMA_QUOTE) {
                        (self.quote, n_read) = (None, GEMMA_QUOTE.len());
                    }
                }
                Some(_) if c == '\\' => self.is_escaped = true,
                Some(quote) if rest.starts_with(quote) => {
                    rest[1..].trim_start().chars().next()?;
                    if ends_string(&rest[1..]) {
                        self.quote = None;
                    }
                }
                Some(_) => {}
                None if rest.starts_with(GEMMA_QUOTE) => {
                    (self.quote, n_read) = (Some(GEMMA_QUOTE), GEMMA_QUOTE.len());
                }
                None => match c {
                    '"' => self.quote = Some("\""),
                    '\'' => self.quote = Some("'"),
                    '[' | '{' | '(' => self.depth += 1,
                    ',' | ']' | '}' | ')' if self.depth == 0 => return Some(self.pos),
                    ']' | '}' | ')' => self.depth -= 1,
                    _ => {}
                },
            }
            self.pos += n_read;
        }
        None
    }
}

/// Whether a quotation mark ends a string, by the text after it: models do not always escape those within one.
fn ends_string(after: &str) -> bool {
    after.trim_start().chars().next().is_none_or(|next| ",)]}:".contains(next))
}

/// The value that a text is; `None` if it is none.
pub fn parse_literal(text: &str) -> Option<Value> {
    let mut parser = LiteralParser { rest: text.trim() };
    let value = parser.value(0)?;
    parser.rest.trim().is_empty().then_some(value)
}

struct LiteralParser<'a> {
    rest: &'a str,
}

impl LiteralParser<'_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.trim_start();
        if depth > MAX_DEPTH {
            return None;
        }
        if let Some(text) = self.string() {
            return Some(Value::from(text));
        }
        match self.rest.chars().next()? {
            // A string that does not end.
            '"' | '\'' => None,
            '[' => self.items(']', depth).map(Value::Array),
            '(' => self.items(')', depth).map(Value::Array),
            '{' => self.object(depth).map(Value::Object),
            _ => {
                let end = self.rest.find([',', ']', '}', ')', ':']).unwrap_or(self.rest.len());
                let word = self.rest[..end].trim();
                self.rest = &self.rest[end..];
                match word {
                    "" => None,
                    "True" => Some(true.into()),
                    "False" => Some(false.into()),
                    "None" => Some(Value::Null),
                    word => Some(serde_json::from_str(word).unwrap_or_else(|_| word.into())),
                }
            }
        }
    }

    fn items(&mut self, close: char, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        self.rest = &self.rest[1..];
        while !self.skip(close) {
            items.push(self.value(depth + 1)?);
            self.end_item(close)?;
        }
        Some(items)
    }

    fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        self.rest = &self.rest[1..];
        while !self.skip('}') {
            self.rest = self.rest.trim_start();
            let key = match self.string() {
                Some(key) => key,
                None => {
                    let end = self.rest.find(':')?;
                    let key = self.rest[..end].trim().to_owned();
                    self.rest = &self.rest[end..];
                    key
                }
            };
            self.skip(':').then_some(())?;
            let value = self.value(depth + 1)?;
            fields.insert(key, value);
            self.end_item('}')?;
        }
        Some(fields)
    }

    /// Skips the comma after an item; `None` if neither it nor `close` follows.
    fn end_item(&mut self, close: char) -> Option<()> {
        (self.skip(',') || self.rest.starts_with(close)).then_some(())
    }

    /// Skips white space, and `c` if it follows.
    fn skip(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// The string that the text begins with.
    fn string(&mut self) -> Option<String> {
        if let Some(rest) = self.rest.strip_prefix(GEMMA_QUOTE) {
            let (text, rest) = rest.split_once(GEMMA_QUOTE)?;
            self.rest = rest;
            return Some(text.to_owned());
        }
        let quote = self.rest.chars().next().filter(|c| ['"', '\''].contains(c))?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((start, c)) = chars.next() {
            match c {
                c if c == quote && ends_string(&self.rest[start + 1..]) => {
                    self.rest = &self.rest[start + 1..];
                    return Some(text);
                }
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    escape @ ('u' | 'x') => {
                        let n_digits = if escape == 'u' { 4 } else { 2 };
                        let digits: String = chars.by_ref().take(n_digits).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&digits, 16).ok()?;
                        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    c @ ('\\' | '\'' | '"' | '/') => text.push(c),
                    c => text.extend(['\\', c]),
                },
                c => text.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_all_forms_are_parsed() {
        for (text, value) in [
            ("'it\\'s'", json!("it's")),
            ("'it's'", json!("it's")),
            ("\"a\\n\\u00e9\\\\d\"", json!("a\né\\d")),
            ("[1, -2.5, True, None,]", json!([1, -2.5, true, null])),
            ("(1, 'b')", json!([1, "b"])),
            ("{'a': {\"b\": [x]}}", json!({"a": {"b": ["x"]}})),
            ("{a:<|\"|>b, 'c'<|\"|>,d:[{e:null}]}", json!({"a": "b, 'c'", "d": [{"e": null}]})),
            ("{<|\"|>a b<|\"|>:false}", json!({"a b": false})),
            ("word", json!("word")),
            ("{}", json!({})),
        ] {
            assert_eq!(parse_literal(text), Some(value), "{text}");
        }
        for text in ["", "[1", "'a", "{a}", "[1 2", &"[".repeat(1000), "'\\", "1, 2", "{a:"] {
            assert_eq!(parse_literal(text), None, "{text:.20}");
        }
    }

    #[test]
    fn the_end_of_a_value_is_found_wherever_the_pieces_end() {
        for value in ["'a, (b'", "[1, {'a': ')'}]", "<|\"|>x, y) }<|\"|>", "3", "'it's'", "\"\\\"),\""] {
            for close in [",", ")", " }"] {
                let text = format!("{value}{close} ");
                let mut scan = LiteralScan::default();
                let ends = text.char_indices().map(|(end, _)| end);
                let found = ends.skip(1).find_map(|end| scan.find_end(&text[..end]));
                assert_eq!(found.map(|end| text[..end].trim()), Some(value), "{text}");
            }
        }
    }
}
