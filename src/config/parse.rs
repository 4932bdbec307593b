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

/// Parses `NAME=VALUE` into the name of a parameter and its value.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, such as top_k=40".to_owned()),
    }
}

/// Parses a duration with a unit, such as `90s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "expected a duration such as 90s, 10m or 2h")?;
    let duration = Duration::try_from(span).map_err(|_| "expected a duration that is not negative")?;
    if duration > MAX_DURATION {
        return Err("expected a duration of at most 8760h".to_owned());
    }
    Ok(duration)
}

/// The longest duration of a flag, a year: sums with the current time never overflow.
const MAX_DURATION: Duration = Duration::from_secs(8760 * 3600);

/// Parses the interval of a heartbeat: 0s, or at least a second, since each beat wakes a task and sends a packet.
pub fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval > Duration::ZERO && interval < Duration::from_secs(1) => {
            Err("expected 0s, or an interval of at least 1s".to_owned())
        }
        interval => Ok(interval),
    }
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
        for wrong in ["", "soon", "-1s", "10", "8761h", "9223372036854775807s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_heartbeat("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_heartbeat("1500ms"), Ok(Duration::from_millis(1500)));
        for wrong in ["999ms", "1ns", "-1s", ""] {
            assert!(parse_heartbeat(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a", "=a", "a="] {
            assert!(parse_alias(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_setting("stop=a=b"), Ok(("stop".to_owned(), "a=b".to_owned())));
        assert!(parse_setting("top_k").is_err() && parse_setting("=1").is_err());
    }
}
