//! The input of a custom tool, decoded from the arguments of its function while they arrive.

use super::tools::CUSTOM_ARGUMENT;

/// A decoder of `{"input": "…"}`, piece by piece. What has another form is passed on at the end, as it is.
#[derive(Debug, Clone, Default)]
pub struct CustomInput {
    raw: String,
    /// Bytes of `raw` that are decoded.
    n_decoded: usize,
    /// The input so far.
    input: String,
    state: DecoderState,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum DecoderState {
    /// Before the text.
    #[default]
    Head,
    /// In the text.
    Text,
    /// After the text, or in something of another form.
    Rest,
}

impl CustomInput {
    /// Takes more of the arguments, and returns the addition to the input.
    pub fn push(&mut self, arguments: &str) -> String {
        self.raw += arguments;
        let n_before = self.input.len();
        if self.state == DecoderState::Head {
            self.read_head();
        }
        if self.state == DecoderState::Text {
            self.read_text();
        }
        self.input[n_before..].to_owned()
    }

    /// Ends the arguments, and returns the rest of the input.
    pub fn finish(&mut self) -> String {
        if self.state != DecoderState::Head {
            return String::new();
        }
        let value = serde_json::from_str::<serde_json::Value>(&self.raw).ok();
        let named = value.as_ref().and_then(|value| value.get(CUSTOM_ARGUMENT)?.as_str());
        let input = named.or_else(|| value.as_ref()?.as_str()).unwrap_or(&self.raw).to_owned();
        self.state = DecoderState::Rest;
        self.input += &input;
        input
    }

    /// Finds the beginning of the text.
    fn read_head(&mut self) {
        let mut rest = self.raw.as_str();
        for mark in ["{", "\"input\"", ":", "\""] {
            rest = match rest.trim_start().strip_prefix(mark) {
                Some(rest) => rest,
                None => return,
            };
        }
        self.n_decoded = self.raw.len() - rest.len();
        self.state = DecoderState::Text;
    }

    /// Decodes the text up to its end, or to an escape that is not complete.
    fn read_text(&mut self) {
        loop {
            let rest = &self.raw[self.n_decoded..];
            let plain = rest.find(['"', '\\']).unwrap_or(rest.len());
            self.input += &rest[..plain];
            self.n_decoded += plain;
            match rest[plain..].chars().next() {
                None => return,
                Some('"') => {
                    self.state = DecoderState::Rest;
                    return;
                }
                Some(_) => match unescape(&rest[plain..]) {
                    None => return,
                    Some((c, n_bytes)) => {
                        self.input.push(c);
                        self.n_decoded += n_bytes;
                    }
                },
            }
        }
    }
}

/// The character of the escape at the beginning of `text`, and the escape's bytes; `None` if it is not complete.
/// What is no escape of JSON stands for itself.
fn unescape(text: &str) -> Option<(char, usize)> {
    let c = text[1..].chars().next()?;
    let plain = match c {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'u' => {
            let unit = |at: usize| -> Option<Result<u32, ()>> {
                let digits = text.as_bytes().get(at..at + 4)?;
                Some(
                    std::str::from_utf8(digits)
                        .ok()
                        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                        .ok_or(()),
                )
            };
            let first = match unit(2)? {
                Ok(first) => first,
                Err(()) => return Some((char::REPLACEMENT_CHARACTER, 2)),
            };
            if !(0xd800..0xdc00).contains(&first) {
                return Some((char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6));
            }
            let next = text.as_bytes().get(6..8);
            let is_pair = match next {
                None if text.len() < 8 && "\\u".starts_with(&text[6..]) => return None,
                next => next == Some(b"\\u"),
            };
            let second = if is_pair { unit(8)? } else { Err(()) };
            return Some(match second {
                Ok(second @ 0xdc00..0xe000) => {
                    let c = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                    (char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                _ => (char::REPLACEMENT_CHARACTER, 6),
            });
        }
        other => other,
    };
    Some((plain, 1 + c.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(arguments: &str, n: usize) -> String {
        let mut decoder = CustomInput::default();
        let mut input = String::new();
        let mut rest = arguments;
        while !rest.is_empty() {
            let end = rest.ceil_char_boundary(n.min(rest.len()));
            input += &decoder.push(&rest[..end]);
            rest = &rest[end..];
        }
        input + &decoder.finish()
    }

    #[test]
    fn inputs_are_decoded_wherever_the_pieces_end() {
        for (arguments, input) in [
            (r#"{"input": "a\nb \"c\" \\ é \u00e9 \ud83d\ude42 \/"}"#, "a\nb \"c\" \\ é é 🙂 /"),
            (r#"{"input":""}"#, ""),
            (r#" { "input" : "x" } "#, "x"),
            (r#"{"input": "lone \ud83d end"}"#, "lone \u{fffd} end"),
            (r#"{"input": "cut \u00"#, "cut "),
            (r#"{"input": "\ud83d\u0041"}"#, "\u{fffd}A"),
            (r#"{"input": "bad \uzzzz"}"#, "bad \u{fffd}zzzz"),
            (r#"{"other": 1, "input": "x"}"#, "x"),
            (r#""plain""#, "plain"),
            ("not json", "not json"),
            (r#"{"code": "x"}"#, r#"{"code": "x"}"#),
            ("", ""),
        ] {
            for n in [1, 2, 3, 5, 100] {
                assert_eq!(decoded(arguments, n), input, "{arguments} in pieces of {n}");
            }
        }
    }
}
