//! Methods of Python's strings, lists and dictionaries.
//!
//! Those that change a list or a dictionary are missing on purpose: the sandbox that templates are
//! written for refuses them.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::arguments::Arguments;
use super::check_size;

/// Calls a method that minijinja itself does not know.
pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, method, &Arguments::new(args)?)?,
        (None, ValueKind::Map) if method == "copy" => Some(value.clone()),
        (None, ValueKind::Seq) => sequence_method(value, method, &Arguments::new(args)?)?,
        _ => None,
    };
    match known {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// A method of a string; `None` is for those that pycompat has right.
fn string_method(text: &str, method: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.optional_text(0, "chars")?;
            let stripped = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(stripped) };
            Value::from(if method == "lstrip" { text } else { text.trim_end_matches(stripped) })
        }
        "split" | "rsplit" => {
            let separator = args.optional_text(0, "sep")?;
            let max: Option<i64> = args.optional(1, "maxsplit")?;
            let max = max.and_then(|max| usize::try_from(max).ok());
            args.finish(2)?;
            split(text, separator.as_deref(), max, method == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let keep_ends = args.flag(0, "keepends")?;
            split_lines(text, keep_ends).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let separator = args.text(0, "sep")?;
            refuse_empty(&separator)?;
            let last = method == "rpartition";
            let found = if last { text.rsplit_once(&separator) } else { text.split_once(&separator) };
            match found {
                Some((before, after)) => Value::from((before, separator.as_str(), after)),
                None if last => Value::from(("", "", text)),
                None => Value::from((text, "", "")),
            }
        }
        "startswith" | "endswith" => {
            let part = Part::of(text, args)?;
            let matches = |affix: &Value| {
                let affix = affix.as_str().ok_or_else(|| {
                    let message =
                        format!("{method} takes a string or a tuple of strings, not {}", affix.kind());
                    Error::new(ErrorKind::InvalidOperation, message)
                })?;
                Ok(part.is_valid
                    && if method == "startswith" {
                        part.text.starts_with(affix)
                    } else {
                        part.text.ends_with(affix)
                    })
            };
            let affixes = args.required(0, "prefix")?;
            if affixes.is_tuple() {
                let found =
                    affixes.try_iter()?.map(|affix| matches(&affix)).collect::<Result<Vec<bool>, Error>>()?;
                Value::from(found.contains(&true))
            } else {
                Value::from(matches(&affixes)?)
            }
        }
        "find" | "index" | "rfind" | "rindex" => {
            let sought = args.text(0, "sub")?;
            let part = Part::of(text, args)?;
            let found =
                if method.starts_with('r') { part.text.rfind(&sought) } else { part.text.find(&sought) };
            match found.filter(|_| part.is_valid) {
                Some(at) => Value::from(part.n_before + part.text[..at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "count" => {
            let sought = args.text(0, "sub")?;
            let part = Part::of(text, args)?;
            Value::from(if part.is_valid { part.text.matches(&sought).count() } else { 0 })
        }
        "removeprefix" | "removesuffix" => {
            let affix = args.text(0, "prefix")?;
            let removed =
                if method == "removeprefix" { text.strip_prefix(&affix) } else { text.strip_suffix(&affix) };
            Value::from(removed.unwrap_or(text))
        }
        "join" => {
            let items = args.required(0, "iterable")?;
            let items = items.try_iter()?.collect::<Vec<Value>>();
            let texts = items.iter().map(|item| {
                item.as_str().ok_or_else(|| {
                    let message = format!("join takes strings, but there is {} among the items", item.kind());
                    Error::new(ErrorKind::InvalidOperation, message)
                })
            });
            let texts = texts.collect::<Result<Vec<&str>, Error>>()?;
            let n_bytes = texts.iter().map(|item| item.len() + text.len()).sum();
            check_size(n_bytes)?;
            Value::from(texts.join(text))
        }
        "format" => {
            let n_longest = args.values().filter_map(|value| Some(value.as_str()?.len())).max().unwrap_or(0);
            check_size(text.matches('{').count().saturating_mul(n_longest))?;
            return Ok(None);
        }
        "replace" => {
            let (old, new) = (args.text(0, "old")?, args.text(1, "new")?);
            let max: Option<i64> = args.optional(2, "count")?;
            let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
            args.finish(3)?;
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

/// A method that lists and tuples have; `None` is for those that pycompat has right.
fn sequence_method(value: &Value, method: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    match method {
        "copy" if !value.is_tuple() => Ok(Some(value.clone())),
        "index" => {
            let sought = args.required(0, "value")?;
            let place = value.try_iter()?.position(|item| item == sought);
            let missing =
                || Error::new(ErrorKind::InvalidOperation, format!("{sought:?} is not in the list"));
            Ok(Some(Value::from(place.ok_or_else(missing)?)))
        }
        _ => Ok(None),
    }
}

/// What Python's strings take for white space: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn refuse_empty(separator: &str) -> Result<(), Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(())
}

/// At most `max` splits, counted from the end if `from_end`. Without a separator, runs of white
/// space separate, and those at the ends are dropped.
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

/// Lines at all the ends that Python knows.
fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
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

/// The part of a text that a search is for: from the second argument to the third, in characters.
struct Part<'a> {
    text: &'a str,
    n_before: usize,
    /// Whether the part begins within the text and not after its own end.
    is_valid: bool,
}

impl<'a> Part<'a> {
    fn of(text: &'a str, args: &Arguments) -> Result<Self, Error> {
        let n_chars = text.chars().count();
        let place = |index: i64| {
            let from_end = if index < 0 { n_chars as i64 } else { 0 };
            usize::try_from(index.saturating_add(from_end)).unwrap_or(0)
        };
        let start = args.optional(1, "start")?.map_or(0, place);
        let end = args.optional(2, "end")?.map_or(n_chars, place).min(n_chars);
        let byte = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        let is_valid = start <= end;
        Ok(Self {
            text: if is_valid { &text[byte(start)..byte(end)] } else { "" },
            n_before: start,
            is_valid,
        })
    }
}

/// Pads to `width` characters as the method of that name does.
fn pad(text: &str, method: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // An odd one goes to the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    fill(left) + text + &fill(missing - left)
}

/// Each run of letters begins upper case and goes on lower case.
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
    fn padding_is_pythons() {
        assert_eq!(
            ["ljust", "rjust", "center"].map(|method| pad("ab", method, 5, '*')),
            ["ab***", "***ab", "**ab*"]
        );
        assert_eq!(pad("a", "center", 4, '*'), "*a**");
        assert_eq!(pad("abc", "center", 2, '*'), "abc");
    }
}
