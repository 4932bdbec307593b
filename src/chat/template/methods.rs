//! Methods of Python's strings, lists and dictionaries.
//!
//! Methods that modify a list or a dictionary are missing on purpose: the sandbox that templates are written for
//! refuses them.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::arguments::Arguments;
use super::budget::{charge_items, check_size};
use super::format::check_format;
use super::guard::made;

/// Calls a method that minijinja itself does not have.
pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let result = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, method, &Arguments::new(args)?)?,
        (None, ValueKind::Map) if method == "copy" => Some(value.clone()),
        (None, ValueKind::Seq) => sequence_method(value, method, &Arguments::new(args)?)?,
        _ => None,
    };
    match result {
        Some(result) => made(result),
        None => made(pycompat::unknown_method_callback(state, value, method, args)?),
    }
}

/// A method of a string; `None` for a method that pycompat implements correctly.
fn string_method(text: &str, method: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => strip(text, method, args)?,
        "split" | "rsplit" => {
            let separator = args.optional_text(0, "sep")?;
            let max: Option<i64> = args.optional(1, "maxsplit")?;
            let max = max.and_then(|max| usize::try_from(max).ok());
            args.refuse_rest(2)?;
            // White space separates at least every second byte.
            let n_parts = separator.as_deref().map_or(text.len() / 2, |sep| text.matches(sep).count());
            charge_items(n_parts.min(max.unwrap_or(usize::MAX)))?;
            split(text, separator.as_deref(), max, method == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let keep_ends = args.flag(0, "keepends")?;
            charge_items(text.matches(LINE_ENDS).count())?;
            split_lines(text, keep_ends).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => partition(text, method, args)?,
        "startswith" | "endswith" => has_affix(text, method, args)?,
        "find" | "index" | "rfind" | "rindex" => find(text, method, args)?,
        "count" => {
            let pattern = args.text(0, "sub")?;
            let range = SearchRange::from_args(text, args)?;
            Value::from(if range.is_valid { range.text.matches(&pattern).count() } else { 0 })
        }
        "removeprefix" | "removesuffix" => {
            let affix = args.text(0, "prefix")?;
            let removed =
                if method == "removeprefix" { text.strip_prefix(&affix) } else { text.strip_suffix(&affix) };
            Value::from(removed.unwrap_or(text))
        }
        "join" => join(text, args)?,
        "format" => {
            check_format(text, &args.values()?)?;
            return Ok(None);
        }
        "replace" => {
            let (old, new) = (args.text(0, "old")?, args.text(1, "new")?);
            let max: Option<i64> = args.optional(2, "count")?;
            let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
            args.refuse_rest(3)?;
            let n_replaced = text.matches(&old).take(max).count();
            check_size(n_replaced.saturating_mul(new.len()))?;
            Value::from(text.replacen(&old, &new, max))
        }
        "ljust" | "rjust" | "center" => {
            let width = usize::try_from(args.required(0, "width")?)?;
            check_size(width)?;
            let fill: char = args.optional(1, "fillchar")?.unwrap_or(' ');
            Value::from(pad(text, method, width, fill))
        }
        "zfill" => {
            let width = usize::try_from(args.required(0, "width")?)?;
            check_size(width)?;
            let digits = text.trim_start_matches(['+', '-']);
            let sign = if text.len() - digits.len() == 1 { &text[..1] } else { "" };
            let n_sign = sign.len();
            Value::from(format!("{sign}{}", pad(&text[n_sign..], "rjust", width.saturating_sub(n_sign), '0')))
        }
        "title" => Value::from(title(text)),
        "swapcase" => Value::from(text.chars().map(swap_case).collect::<String>()),
        "casefold" => Value::from(text.to_lowercase()),
        "isdigit" | "isdecimal" => Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())),
        _ => return Ok(None),
    }))
}

/// A method of a list or tuple; `None` for a method that pycompat implements correctly.
fn sequence_method(value: &Value, method: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    match method {
        "copy" if !value.is_tuple() => Ok(Some(value.clone())),
        "index" => {
            let wanted = args.required(0, "value")?;
            let idx = value.try_iter()?.position(|item| item == wanted);
            let missing = || {
                Error::new(ErrorKind::InvalidOperation, format!("the {} is not in the list", wanted.kind()))
            };
            Ok(Some(Value::from(idx.ok_or_else(missing)?)))
        }
        _ => Ok(None),
    }
}

/// Python's `strip`, `lstrip` or `rstrip`.
fn strip(text: &str, method: &str, args: &Arguments) -> Result<Value, Error> {
    let chars = args.optional_text(0, "chars")?;
    let is_stripped = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if method == "rstrip" { text } else { text.trim_start_matches(is_stripped) };
    Ok(Value::from(if method == "lstrip" { text } else { text.trim_end_matches(is_stripped) }))
}

/// Python's `partition` or `rpartition`.
fn partition(text: &str, method: &str, args: &Arguments) -> Result<Value, Error> {
    let separator = args.text(0, "sep")?;
    refuse_empty(&separator)?;
    let from_end = method == "rpartition";
    let found = if from_end { text.rsplit_once(&separator) } else { text.split_once(&separator) };
    Ok(match found {
        Some((before, after)) => Value::from((before, separator.as_str(), after)),
        None if from_end => Value::from(("", "", text)),
        None => Value::from((text, "", "")),
    })
}

/// Python's `startswith` or `endswith`, with a string or a tuple of strings.
fn has_affix(text: &str, method: &str, args: &Arguments) -> Result<Value, Error> {
    let range = SearchRange::from_args(text, args)?;
    let matches = |affix: &Value| {
        let affix = affix.as_str().ok_or_else(|| {
            let message = format!("{method} takes a string or a tuple of strings, not {}", affix.kind());
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        let is_match = match method {
            "startswith" => range.text.starts_with(affix),
            _ => range.text.ends_with(affix),
        };
        Ok(range.is_valid && is_match)
    };
    let affixes = args.required(0, "prefix")?;
    if !affixes.is_tuple() {
        return matches(&affixes).map(Value::from);
    }
    let found = affixes.try_iter()?.map(|affix| matches(&affix)).collect::<Result<Vec<bool>, Error>>()?;
    Ok(Value::from(found.contains(&true)))
}

/// Python's `find`, `index`, `rfind` or `rindex`.
fn find(text: &str, method: &str, args: &Arguments) -> Result<Value, Error> {
    let pattern = args.text(0, "sub")?;
    let range = SearchRange::from_args(text, args)?;
    let found = if method.starts_with('r') { range.text.rfind(&pattern) } else { range.text.find(&pattern) };
    match found.filter(|_| range.is_valid) {
        Some(at) => Ok(Value::from(range.n_before + range.text[..at].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    }
}

/// Python's `join`.
fn join(separator: &str, args: &Arguments) -> Result<Value, Error> {
    let items = args.required(0, "iterable")?;
    let items = items.try_iter()?.collect::<Vec<Value>>();
    let texts = items.iter().map(|item| {
        item.as_str().ok_or_else(|| {
            let message = format!("join takes strings, but there is {} among the items", item.kind());
            Error::new(ErrorKind::InvalidOperation, message)
        })
    });
    let texts = texts.collect::<Result<Vec<&str>, Error>>()?;
    check_size(texts.iter().map(|item| item.len() + separator.len()).sum())?;
    Ok(Value::from(texts.join(separator)))
}

/// Whether Python's strings treat a character as whitespace: Unicode's whitespace, and four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn refuse_empty(separator: &str) -> Result<(), Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(())
}

/// Splits a text at most `max` times, counted from the end if `from_end`. Without a separator, it is split at runs of
/// whitespace, and whitespace at the ends is dropped.
fn split<'a>(
    text: &'a str,
    separator: Option<&str>,
    max: Option<usize>,
    from_end: bool,
) -> Result<Vec<&'a str>, Error> {
    let n_parts = max.map_or(usize::MAX, |max| max.saturating_add(1));
    let Some(separator) = separator else {
        return Ok(split_at_space(text, n_parts, from_end));
    };
    refuse_empty(separator)?;
    if !from_end {
        return Ok(text.splitn(n_parts, separator).collect());
    }
    let mut parts: Vec<&str> = text.rsplitn(n_parts, separator).collect();
    parts.reverse();
    Ok(parts)
}

fn split_at_space(text: &str, n_parts: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        let gap = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(gap) = gap.filter(|_| parts.len() + 1 < n_parts) else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(gap);
        if from_end {
            let width = after.chars().next().map_or(0, char::len_utf8);
            parts.push(&after[width..]);
            rest = before;
        } else {
            parts.push(before);
            rest = after;
        }
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// The characters at which Python ends a line.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];

/// Splits a text into lines, at every line end that Python recognizes.
fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(LINE_ENDS) {
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// The part of a text to search: from the second argument to the third, in characters.
struct SearchRange<'a> {
    text: &'a str,
    /// Number of characters before it.
    n_before: usize,
    /// Whether it does not begin after its end.
    is_valid: bool,
}

impl<'a> SearchRange<'a> {
    fn from_args(text: &'a str, args: &Arguments) -> Result<Self, Error> {
        let n_chars = text.chars().count();
        let position = |index: i64| {
            let from_end = if index < 0 { n_chars as i64 } else { 0 };
            usize::try_from(index.saturating_add(from_end)).unwrap_or(0)
        };
        let start = args.optional(1, "start")?.map_or(0, position);
        let end = args.optional(2, "end")?.map_or(n_chars, position).min(n_chars);
        let byte = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        let is_valid = start <= end;
        Ok(Self {
            text: if is_valid { &text[byte(start)..byte(end)] } else { "" },
            n_before: start,
            is_valid,
        })
    }
}

/// Pads a text to `width` characters as Python's `method` does.
fn pad(text: &str, method: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // The odd one goes to the left if the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    fill(left) + text + &fill(missing - left)
}

/// Python's `title`: the first letter of each run of letters in upper case, the others in lower case.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(c.to_uppercase())
        }
        in_word = c.is_lowercase() || c.is_uppercase();
    }
    titled
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_as_in_python() {
        let at_space = |text, max, from_end| split(text, None, max, from_end).unwrap();
        assert_eq!(at_space(" a  b\tc ", None, false), ["a", "b", "c"]);
        assert_eq!(at_space(" a  b c ", Some(1), false), ["a", "b c "]);
        assert_eq!(at_space(" a  b c ", Some(1), true), [" a  b", "c"]);
        assert!(at_space(" ", None, false).is_empty());
        let at_comma = |max, from_end| split(",a,b", Some(","), max, from_end).unwrap();
        assert_eq!(at_comma(None, false), ["", "a", "b"]);
        assert_eq!(at_comma(Some(1), false), ["", "a,b"]);
        assert_eq!(at_comma(Some(1), true), [",a", "b"]);
        assert!(split("a", Some(""), None, false).is_err());
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(split_lines("a\r\nb\r\n\u{2028}c\x0b", false), ["a", "b", "", "c"]);
        assert_eq!(split_lines("a\n\nb", true), ["a\n", "\n", "b"]);
        assert!(split_lines("", false).is_empty());
    }

    #[test]
    fn padding_matches_python() {
        assert_eq!(
            ["ljust", "rjust", "center"].map(|method| pad("ab", method, 5, '*')),
            ["ab***", "***ab", "**ab*"]
        );
        assert_eq!(pad("a", "center", 4, '*'), "*a**");
        assert_eq!(pad("abc", "center", 2, '*'), "abc");
    }
}
