//! JSON as written by Python's `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind};

use super::arguments::Arguments;
use super::budget::check_size;
use super::repr::{as_float, float_text};

/// The deepest nesting; deeper values are refused because writing them recurses.
const MAX_DEPTH: usize = 256;

/// Maximum number of spaces per level; larger indents are reduced to it.
pub const MAX_INDENT: usize = 64;

/// The filter `tojson`, which `transformers` defines as Python's `json.dumps`: `", "` and `": "`
/// between items, no HTML escapes, and non-ASCII characters as they are.
pub fn to_json(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let ensure_ascii = args.flag(0, "ensure_ascii")?;
    let indent = match args.get(1, "indent")?.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(MAX_INDENT)),
        }),
        None => None,
    };
    let (item_separator, key_separator) =
        match args.get(2, "separators")?.filter(|separators| !separators.is_none()) {
            Some(pair) => {
                (pair.get_item(&Value::from(0))?.to_string(), pair.get_item(&Value::from(1))?.to_string())
            }
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        };
    // They are written for each item before its size is checked.
    for separator in [indent.as_deref().unwrap_or_default(), &item_separator, &key_separator] {
        if separator.len() > MAX_INDENT {
            let message = format!("indents and separators may have at most {MAX_INDENT} bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    let sort_keys = args.flag(3, "sort_keys")?;
    args.refuse_rest(4)?;
    let mut writer =
        JsonWriter { json: String::new(), indent, item_separator, key_separator, ensure_ascii, sort_keys };
    writer.value(value, 0)?;
    Ok(Value::from(writer.json))
}

struct JsonWriter {
    json: String,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::Seq => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.container(['[', ']'], items, depth)
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(key), item));
                }
                if self.sort_keys {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container(['{', '}'], items, depth)
            }
            _ => match (value.as_str(), scalar(value)) {
                (Some(text), _) => {
                    self.string(text);
                    Ok(())
                }
                (None, Some(text)) => {
                    self.json.push_str(&text);
                    Ok(())
                }
                (None, None) => {
                    let message = format!("{} is not JSON serializable", value.kind());
                    Err(Error::new(ErrorKind::BadSerialization, message))
                }
            },
        }
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<(Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.json.push(open);
        let is_empty = items.is_empty();
        for (idx, (key, item)) in items.into_iter().enumerate() {
            if idx > 0 {
                self.json.push_str(&self.item_separator);
            }
            self.new_line(depth + 1);
            check_size(self.json.len())?;
            if let Some(key) = key {
                let text = key.as_str().map(str::to_owned).or_else(|| scalar(&key));
                let refused =
                    || Error::new(ErrorKind::BadSerialization, format!("{key} cannot be a key in JSON"));
                self.string(&text.ok_or_else(refused)?);
                self.json.push_str(&self.key_separator);
            }
            self.value(&item, depth + 1)?;
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.json.push(close);
        Ok(())
    }

    /// Starts a new line if there is an indent.
    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            self.json.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for c in text.chars() {
            match c {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\x08' => self.json.push_str("\\b"),
                '\x0c' => self.json.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.json, "\\u{unit:04x}");
                    }
                }
                c => self.json.push(c),
            }
        }
        self.json.push('"');
    }
}

/// JSON of a value that is neither a string nor a container.
fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("null".to_owned()),
        ValueKind::Bool => Some(value.is_true().to_string()),
        ValueKind::Number => Some(match as_float(value) {
            Some(float) if float.is_nan() => "NaN".to_owned(),
            Some(float) if float.is_infinite() => format!("{}Infinity", if float < 0.0 { "-" } else { "" }),
            Some(float) => float_text(float),
            None => value.to_string(),
        }),
        _ => None,
    }
}
