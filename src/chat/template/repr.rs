//! Values as text, as in Python.

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::budget::check_size;

/// The deepest nesting; deeper containers are abbreviated.
const MAX_DEPTH: usize = 256;

/// Python's `str(value)`.
///
/// # Errors
/// When the text would be too long.
pub fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut repr = String::new();
            write_repr(&mut repr, value, 0)?;
            Ok(repr)
        }
    }
}

/// Writes Python's `repr(value)`.
fn write_repr(repr: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_size(repr.len())?;
    if depth > MAX_DEPTH {
        repr.push_str("...");
        return Ok(());
    }
    let items = |value: &Value| value.try_iter().into_iter().flatten().collect::<Vec<Value>>();
    match value.kind() {
        ValueKind::Undefined => repr.push_str("Undefined"),
        ValueKind::String => write_text_repr(repr, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items = items(value);
            let (open, close) = match items.len() {
                _ if !value.is_tuple() => ("[", "]"),
                1 => ("(", ",)"),
                _ => ("(", ")"),
            };
            repr.push_str(open);
            for (idx, item) in items.iter().enumerate() {
                repr.push_str(if idx > 0 { ", " } else { "" });
                write_repr(repr, item, depth + 1)?;
            }
            repr.push_str(close);
        }
        ValueKind::Map => {
            repr.push('{');
            for (idx, key) in items(value).iter().enumerate() {
                repr.push_str(if idx > 0 { ", " } else { "" });
                write_repr(repr, key, depth + 1)?;
                repr.push_str(": ");
                write_repr(repr, &value.get_item(key).unwrap_or_default(), depth + 1)?;
            }
            repr.push('}');
        }
        _ => match as_float(value) {
            Some(float) => repr.push_str(&float_text(float)),
            None => repr.push_str(&value.to_string()),
        },
    }
    Ok(())
}

fn write_text_repr(repr: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    repr.push(quote);
    for c in text.chars() {
        match c {
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote || c == '\\' => repr.extend(['\\', c]),
            c if is_printable(c) => repr.push(c),
            c => repr.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    repr.push(quote);
}

/// Whether Python's `repr` shows a character as it is: not if it is a control character, whitespace other than the
/// space, or in the categories "format" (those in use) and "private use".
fn is_printable(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{e007f}');
    let is_private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format || is_private)
}

/// The value of a float; `None` for integers and anything that is not a number.
pub fn as_float(value: &Value) -> Option<f64> {
    (value.is_number() && !value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// Python's `repr` of a float: the shortest digits that parse back to the same value, with an exponent below 1e-4
/// and from 1e16 on.
pub fn float_text(float: f64) -> String {
    if !float.is_finite() {
        return float.to_string().to_lowercase();
    }
    // Rust switches to exponents at the same magnitudes, but writes them without plus sign and padding.
    let text = format!("{float:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) =
                exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_in_python() {
        for (float, written) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_text(float), written);
        }
    }

    #[test]
    fn containers_are_written_as_in_python() {
        let list = Value::from(vec!["it's", "\"", "'\"", "\\\n\u{1b}", "é\u{a0}\u{200d}❤\u{fe0f}\u{e0067}"]);
        let written =
            r#"["it's", '"', '\'"', '\\\n\x1b', 'é\xa0\u200d❤"#.to_owned() + "\u{fe0f}" + r"\U000e0067']";
        assert_eq!(text(&list).unwrap(), written);
        let pair = Value::from((1e-7, Value::from((Value::UNDEFINED,))));
        let pairs = Value::from_pairs([(Value::from("k"), pair), (Value::from(1), Value::from(()))]);
        assert_eq!(text(&pairs).unwrap(), "{'k': (1e-07, (Undefined,)), 1: None}");
        assert_eq!(text(&Value::UNDEFINED).unwrap(), "");
    }
}
