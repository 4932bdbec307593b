//! The time as templates format it.

use jiff::civil::DateTime;
use jiff::fmt::strtime;

/// Python's `strftime` of a time without a zone, in the C locale. Unknown codes are kept as they are, and the zone
/// is empty.
pub fn strftime(now: DateTime, format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        let flags = rest[start + 1..].find(|c: char| !"-_0^#".contains(c));
        let Some(code) = flags.and_then(|flags| rest[start + 1 + flags..].chars().next()) else {
            rest = &rest[start..];
            break;
        };
        let end = start + 1 + flags.unwrap_or(0) + code.len_utf8();
        let directive = &rest[start..end];
        match code {
            'z' | 'Z' => {}
            'f' => text.push_str(&format!("{:06}", now.subsec_nanosecond() / 1000)),
            'c' => text.push_str(&strftime(now, "%a %b %e %H:%M:%S %Y")),
            'x' => text.push_str(&strftime(now, "%m/%d/%y")),
            'X' => text.push_str(&strftime(now, "%H:%M:%S")),
            _ => match strtime::format(directive, now) {
                Ok(written) => text.push_str(&written),
                Err(_) => text.push_str(directive),
            },
        }
        rest = &rest[end..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_match_python() {
        let now = jiff::civil::date(2026, 7, 5).at(9, 3, 0, 12_345_000);
        for (format, written) in [
            ("%d %b %Y", "05 Jul 2026"),
            ("%-d.%-m.%y, %A", "5.7.26, Sunday"),
            ("%H:%M:%S.%f %I%p", "09:03:00.012345 09AM"),
            ("%c|%x|%X", "Sun Jul  5 09:03:00 2026|07/05/26|09:03:00"),
            ("[%Z%z] %% 100%", "[] % 100%"),
            ("%Q é %", "%Q é %"),
        ] {
            assert_eq!(strftime(now, format), written);
        }
    }
}
