//! Parsers for the values of flags.

use std::time::Duration;

/// Parses `NAME=MODEL` into an alias and the model that it stands for.
pub fn parse_alias(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() => {
            Ok((name.to_owned(), model.to_owned()))
        }
        _ => Err("expected NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct".to_owned()),
    }
}

/// Parses a duration with a unit, such as `90s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "expected a duration such as 90s, 10m or 2h")?;
    Duration::try_from(span).map_err(|_| "expected a duration that is not negative".to_owned())
}

/// Parses a size in bytes, with an optional suffix for a power of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err("expected a size such as 800M or 6G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size such as 800M or 6G")?;
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "the size is too large for 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_aliases_are_parsed() {
        assert_eq!(parse_bytes("1000"), Ok(1000));
        assert_eq!(parse_bytes("800M"), Ok(800 << 20));
        assert_eq!(parse_bytes("6GiB"), Ok(6 << 30));
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_alias("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        for wrong in ["", "G", "1.5G", "6X", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "soon", "-1s", "10"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a", "=a", "a="] {
            assert!(parse_alias(wrong).is_err(), "{wrong}");
        }
    }
}
