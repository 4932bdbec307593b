//! Lark grammars of texts, rewritten to grammars of the same texts inside a JSON string.
//!
//! In a JSON string a quote is `\"` and a line break `\n`. Each character is given one such form, so the rules of a
//! grammar stay as they are, and only its terminals change: literals and regular expressions.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};
use serde_json::Value;

/// Terminals of Lark's `common` module, as regular expressions.
const COMMON: [(&str, &str); 14] = [
    ("CNAME", "[_A-Za-z][_A-Za-z0-9]*"),
    ("CR", r"\r"),
    ("DIGIT", "[0-9]"),
    ("ESCAPED_STRING", r#""([^"\\\n]|\\.)*""#),
    ("HEXDIGIT", "[0-9a-fA-F]"),
    ("INT", "[0-9]+"),
    ("LETTER", "[A-Za-z]"),
    ("LF", r"\n"),
    ("NEWLINE", r"(\r?\n)+"),
    ("NUMBER", r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"),
    ("SIGNED_NUMBER", r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"),
    ("WORD", "[A-Za-z]+"),
    ("WS", r"[ \t\f\r\n]+"),
    ("WS_INLINE", r"[ \t]+"),
];

/// Rewrites rules in Lark.
///
/// # Errors
/// When they use something whose form in JSON is not known; the error says what.
pub fn lark_in_json(rules: &str) -> Result<String, String> {
    let mut out = String::with_capacity(rules.len() * 2);
    let mut rest = rules;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '/' if rest.starts_with("//") => &rest[rest.find('\n').unwrap_or(rest.len())..],
            '/' => rewrite_regex(rest, &mut out)?,
            '"' => rewrite_literal(rest, &mut out)?,
            '%' => rewrite_directive(rest, &mut out)?,
            '~' | '&' | '<' | '@' => return Err(format!("`{c}` in a rule")),
            other => {
                out.push(other);
                &rest[other.len_utf8()..]
            }
        };
    }
    Ok(out)
}

/// The length of the token at the beginning of `text` that ends with its first character.
fn delimited(text: &str) -> Result<usize, String> {
    let delimiter = text.chars().next().unwrap_or_default();
    let mut is_escaped = false;
    for (idx, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\n' => break,
            c if c == delimiter => return Ok(idx + 1),
            _ => {}
        }
    }
    Err(format!("a `{delimiter}` without its end"))
}

/// Rewrites the regular expression at the beginning of `rest`, and returns what follows it.
fn rewrite_regex<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let len = delimited(rest)?;
    let n_flags = rest[len..].find(|c: char| !"imslux".contains(c)).unwrap_or(rest.len() - len);
    let (flags, after) = rest[len..].split_at(n_flags);
    let pattern = rest[1..len - 1].replace("\\/", "/");
    *out += &format!("/{}/", regex_in_json(&pattern, flags)?);
    Ok(after)
}

/// Rewrites the literal, or the range of characters, at the beginning of `rest`, and returns what follows it.
fn rewrite_literal<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let (first, after) = literal(rest)?;
    if let Some(range) =
        after.trim_start().strip_prefix("..").map(str::trim_start).filter(|end| end.starts_with('"'))
    {
        let (last, after) = literal(range)?;
        let bounds = [&first, &last].map(|text| text.chars().next().filter(|c| c.len_utf8() == text.len()));
        let [Some(first), Some(last)] = bounds else { return Err("a range of texts".to_owned()) };
        *out += &format!("/{}/", class_in_json(&ClassUnicode::new([ClassUnicodeRange::new(first, last)])));
        return Ok(after);
    }
    match after.strip_prefix('i') {
        Some(after) => {
            *out += &format!("/{}/", regex_in_json(&regex_syntax::escape(&first), "i")?);
            Ok(after)
        }
        None => {
            let escaped = Value::from(first).to_string();
            *out += &Value::from(&escaped[1..escaped.len() - 1]).to_string();
            Ok(after)
        }
    }
}

/// The text of the literal at the beginning of `rest`, and what follows it.
fn literal(rest: &str) -> Result<(String, &str), String> {
    let (token, after) = rest.split_at(delimited(rest)?);
    let text = serde_json::from_str(token).map_err(|e| format!("the literal {token}: {e}"))?;
    Ok((text, after))
}

/// Rewrites the directive at the beginning of `rest`, and returns what follows it. Imports become definitions.
fn rewrite_directive<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let (line, after) = rest.split_at(rest.find('\n').unwrap_or(rest.len()));
    if line.starts_with("%ignore") {
        *out += "%ignore";
        return Ok(&rest["%ignore".len()..]);
    }
    let unknown = || format!("the directive `{}`", line.trim());
    let (source, alias) = match line.split_once("->") {
        Some((source, alias)) => (source.trim(), Some(alias.trim())),
        None => (line.trim(), None),
    };
    let imported = source
        .strip_prefix("%import")
        .map(str::trim)
        .and_then(|path| path.strip_prefix("common"))
        .ok_or_else(unknown)?;
    let names: Vec<&str> = match imported.strip_prefix('.') {
        Some(name) => vec![name],
        None => {
            let list = imported
                .trim()
                .strip_prefix('(')
                .and_then(|list| list.strip_suffix(')'))
                .ok_or_else(unknown)?;
            list.split(',').map(str::trim).collect()
        }
    };
    for name in names {
        let (_, pattern) = COMMON.iter().find(|(row, _)| *row == name).ok_or_else(unknown)?;
        *out += &format!("{}: /{}/\n", alias.unwrap_or(name), regex_in_json(pattern, "")?);
    }
    Ok(after)
}

/// Rewrites a regular expression with Python's flags.
fn regex_in_json(pattern: &str, flags: &str) -> Result<String, String> {
    let has = |flag| flags.contains(flag);
    let mut parser = ParserBuilder::new();
    parser
        .case_insensitive(has('i'))
        .multi_line(has('m'))
        .dot_matches_new_line(has('s'))
        .ignore_whitespace(has('x'));
    let hir =
        parser.build().parse(pattern).map_err(|e| format!("the regular expression `{pattern}`: {e}"))?;
    hir_in_json(&hir)
}

fn hir_in_json(hir: &Hir) -> Result<String, String> {
    Ok(match hir.kind() {
        HirKind::Empty => "(?:)".to_owned(),
        HirKind::Literal(literal) => {
            let text = str::from_utf8(&literal.0).map_err(|_| "bytes that are no text".to_owned())?;
            text.chars().map(char_in_json).collect()
        }
        HirKind::Class(Class::Unicode(class)) => class_in_json(class),
        HirKind::Class(Class::Bytes(_)) => return Err("a class of bytes".to_owned()),
        HirKind::Look(_) => return Err("an anchor or a word boundary in a regular expression".to_owned()),
        HirKind::Repetition(repetition) => {
            let max = repetition.max.map(|max| max.to_string()).unwrap_or_default();
            format!("(?:{}){{{},{max}}}", hir_in_json(&repetition.sub)?, repetition.min)
        }
        HirKind::Capture(capture) => hir_in_json(&capture.sub)?,
        HirKind::Concat(parts) => parts.iter().map(hir_in_json).collect::<Result<String, String>>()?,
        HirKind::Alternation(parts) => {
            let parts = parts.iter().map(hir_in_json).collect::<Result<Vec<String>, String>>()?;
            format!("(?:{})", parts.join("|"))
        }
    })
}

/// The regular expression of the characters of a class.
fn class_in_json(class: &ClassUnicode) -> String {
    let escaped = [('\0', '\u{1f}'), ('"', '"'), ('\\', '\\')];
    let escaped = ClassUnicode::new(escaped.map(|(first, last)| ClassUnicodeRange::new(first, last)));
    let mut plain = class.clone();
    plain.difference(&escaped);
    let mut special = class.clone();
    special.intersect(&escaped);
    let hex = |c: char| format!("\\x{{{:X}}}", u32::from(c));
    let ranges: String =
        plain.iter().map(|range| format!("{}-{}", hex(range.start()), hex(range.end()))).collect();
    let mut parts: Vec<String> =
        special.iter().flat_map(|range| range.start()..=range.end()).map(char_in_json).collect();
    if !ranges.is_empty() {
        parts.insert(0, format!("[{ranges}]"));
    }
    // A class without characters matches nothing.
    if parts.is_empty() { "[^\\x{0}-\\x{10FFFF}]".to_owned() } else { format!("(?:{})", parts.join("|")) }
}

/// The regular expression of one character.
fn char_in_json(c: char) -> String {
    let json = Value::from(c.to_string()).to_string();
    // A slash would end the expression in Lark.
    regex_syntax::escape(&json[1..json.len() - 1]).replace('/', "\\x2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_escaped_and_rules_stay() {
        for (rules, expected) in [
            (
                "start: \"a\" | x+ // comment\nx: \"b\"i",
                "start: \"a\" | x+ \nx: /(?:[\\x{42}-\\x{42}\\x{62}-\\x{62}])/",
            ),
            (r#"start: "say \"x\"\n""#, r#"start: "say \\\"x\\\"\\n""#),
            ("start: /a\\/b/", "start: /a\\x2Fb/"),
            ("start: /\"+/", "start: /(?:\\\\\"){1,}/"),
            ("start: LF\n%import common.LF", "start: LF\nLF: /\\\\n/\n"),
            ("%import common.LF -> X\nstart: X", "X: /\\\\n/\n\nstart: X"),
            ("start: \"a\"..\"c\"", "start: /(?:[\\x{61}-\\x{63}])/"),
        ] {
            assert_eq!(lark_in_json(rules).unwrap(), expected, "{rules}");
        }
        for refused in
            ["start: ~A", "start: /^a/", "%declare X", "start: \"a", "%import common.X", "start: <|x|>"]
        {
            assert!(lark_in_json(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn classes_are_split() {
        assert_eq!(
            regex_in_json("[^\\x00-\\x1f]", "").unwrap(),
            "(?:[\\x{20}-\\x{21}\\x{23}-\\x{5B}\\x{5D}-\\x{10FFFF}]|\\\\\"|\\\\\\\\)"
        );
        assert_eq!(regex_in_json("[\\n\\x01a]", "").unwrap(), "(?:[\\x{61}-\\x{61}]|\\\\u0001|\\\\n)");
    }
}
