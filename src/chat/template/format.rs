//! Bounds on formatted texts, checked before minijinja formats them.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

use super::budget::check_size;
use super::repr::text;

/// The largest width or precision of a field.
const MAX_WIDTH: usize = 10_000;

/// Refuses a pattern of `%` or `str.format` whose text with these values could be too long.
///
/// # Errors
/// When it could.
pub fn check_format(pattern: &str, values: &[Value]) -> Result<(), Error> {
    let specs = specs(pattern);
    let is_too_wide = |digits: &str| digits.parse::<usize>().map_or(!digits.is_empty(), |n| n > MAX_WIDTH);
    let widths = specs.iter().flat_map(|spec| spec.split(|c: char| !c.is_ascii_digit()));
    let has_argument_width = specs.iter().any(|spec| spec.contains(['*', '{']));
    let is_wide = |value: &Value| value.as_i64().is_some_and(|n| n.unsigned_abs() > MAX_WIDTH as u64);
    if widths.into_iter().any(is_too_wide) || (has_argument_width && values.iter().any(is_wide)) {
        let message = format!("a field may be at most {MAX_WIDTH} characters wide");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let has_width = specs.iter().any(|spec| spec.contains(|c: char| c.is_ascii_digit() || c == '*'));
    let mut longest = if has_width { MAX_WIDTH } else { 0 };
    for value in values {
        longest = longest.max(match value.as_str() {
            Some(text) => text.len(),
            None => text(value)?.len(),
        });
    }
    check_size(specs.len().saturating_mul(longest).saturating_add(pattern.len()))
}

/// The specifications of a pattern's fields: from `%` to a letter, and from `{` to `}`. Some of them may be text.
fn specs(pattern: &str) -> Vec<&str> {
    let mut specs = Vec::new();
    for (at, mark) in pattern.match_indices(['%', '{']) {
        let rest = &pattern[at + 1..];
        let name = if rest.starts_with('(') { rest.find(')').unwrap_or(0) } else { 0 };
        let len = match mark {
            "{" => rest.find('}').unwrap_or(rest.len()),
            _ => {
                name + rest[name..].find(|c: char| c.is_alphabetic() || c == '%').unwrap_or(rest.len() - name)
            }
        };
        specs.push(&rest[..len]);
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_and_repeated_fields_are_refused() {
        let long = Value::from("x".repeat(1 << 20));
        for (pattern, value) in [
            ("%100000000d", Value::from(1)),
            ("%(name)100000000d", Value::from(1)),
            ("%.100000000f", Value::from(1)),
            ("%*d", Value::from(100_000_000)),
            ("{:>100000000}", Value::from("x")),
            ("{0:{1}}", Value::from(100_000_000)),
            (&"{0}".repeat(100), long.clone()),
            (&"%s".repeat(100), long),
        ] {
            assert!(check_format(pattern, &[value]).is_err(), "{pattern:.20}");
        }
        for pattern in ["%s is 15551234567 %% %5.2f", "{:>10} 15551234567 {}"] {
            assert!(check_format(pattern, &[Value::from("x")]).is_ok(), "{pattern}");
        }
    }
}
