//! Rewriting of a template's source before minijinja parses it.

/// Name of the filter that refuses to iterate over `none`, as Python does and minijinja does not.
pub const ITERABLE: &str = "iterable";

/// Name of the filter for Python's `%` after a string.
pub const PERCENT: &str = "percent_format";

/// Rewrites a template:
/// - line ends become `\n`, as in Jinja2's lexer;
/// - the `generation` block, with which `transformers` marks the assistant's tokens, becomes a plain scope;
/// - the iterable of a loop is filtered through [`ITERABLE`];
/// - a string before `%` is filtered through [`PERCENT`].
pub fn prepare(template: &str) -> String {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut prepared = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(tag) = next_tag(rest) {
        prepared.push_str(&rest[..tag.code_start]);
        let code = &rest[tag.code_start..tag.code_end];
        match tag.kind {
            TagKind::Comment | TagKind::Raw => prepared.push_str(code),
            TagKind::Block => prepared.push_str(&rewrite(code, block_edits)),
            TagKind::Expression => prepared.push_str(&rewrite(code, |_, _| Vec::new())),
        }
        rest = &rest[tag.code_end..];
    }
    prepared + rest
}

enum TagKind {
    Comment,
    /// From a `raw` tag to its end; all of it is text.
    Raw,
    Block,
    Expression,
}

struct Tag {
    kind: TagKind,
    /// Byte range of the code between the tag's marks.
    code_start: usize,
    code_end: usize,
}

/// The next tag of a template; `None` if there is none, or if it is not closed.
fn next_tag(template: &str) -> Option<Tag> {
    let start = template.match_indices('{').map(|(at, _)| at).find(|at| {
        let next = template.as_bytes().get(at + 1);
        next.is_some_and(|next| b"{%#".contains(next))
    })?;
    let code_start = start + 2;
    let inside = &template[code_start..];
    let (kind, len) = match template.as_bytes()[start + 1] {
        b'#' => (TagKind::Comment, inside.find("#}")?),
        b'{' => (TagKind::Expression, code_len(inside, "}}")?),
        _ => {
            let len = code_len(inside, "%}")?;
            match inside[..len].trim_matches(is_padding) {
                "raw" => (TagKind::Raw, len + raw_len(&inside[len..])?),
                _ => (TagKind::Block, len),
            }
        }
    };
    Some(Tag { kind, code_start, code_end: code_start + len })
}

/// Whether a character may stand between a tag's mark and its name.
fn is_padding(c: char) -> bool {
    c.is_whitespace() || "+-".contains(c)
}

/// Number of bytes up to the end of the `endraw` tag's code.
fn raw_len(text: &str) -> Option<usize> {
    text.match_indices("{%").find_map(|(at, _)| {
        let len = text[at..].find("%}")?;
        (text[at + 2..at + len].trim_matches(is_padding) == "endraw").then_some(at + len)
    })
}

/// Number of bytes up to the mark that closes a tag, outside of strings and brackets.
fn code_len(text: &str, close: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(token) = first_token(rest) {
        let code = &rest[token.start..];
        if depth == 0 && code.starts_with(close) {
            return Some(text.len() - code.len());
        }
        match token.kind {
            LexemeKind::Mark('(' | '[' | '{') => depth += 1,
            LexemeKind::Mark(')' | ']' | '}') => depth = depth.checked_sub(1)?,
            _ => {}
        }
        rest = &rest[token.end..];
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum LexemeKind {
    Word,
    Text,
    Mark(char),
}

#[derive(Clone, Copy)]
struct Lexeme {
    kind: LexemeKind,
    start: usize,
    end: usize,
}

fn first_token(code: &str) -> Option<Lexeme> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (start, first) = code.char_indices().find(|(_, c)| !c.is_whitespace())?;
    let after = start + first.len_utf8();
    let rest = &code[after..];
    let (kind, len) = match first {
        '"' | '\'' => {
            let mut escaped = false;
            let close = rest.find(|c| {
                let closes = c == first && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            (LexemeKind::Text, close.map_or(rest.len(), |close| close + 1))
        }
        c if is_word(c) => (LexemeKind::Word, rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
        c => (LexemeKind::Mark(c), 0),
    };
    Some(Lexeme { kind, start, end: after + len })
}

fn tokens(code: &str) -> Vec<Lexeme> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(Lexeme { kind, start, end }) = first_token(&code[at..]) {
        tokens.push(Lexeme { kind, start: at + start, end: at + end });
        at += end;
    }
    tokens
}

/// A replacement of a byte range of the code; an empty range is an insertion.
type Edit = (usize, usize, String);

/// The code of a tag with `edits` applied, and those of its expressions.
fn rewrite(code: &str, edits: impl Fn(&str, &[Lexeme]) -> Vec<Edit>) -> String {
    let tokens = tokens(code);
    let mut edits = edits(code, &tokens);
    edits.extend(percent_edits(code, &tokens));
    edits.sort_by_key(|(start, ..)| *start);
    let mut rewritten = String::with_capacity(code.len());
    let mut copied = 0;
    for (start, end, replacement) in edits {
        rewritten.push_str(&code[copied..start]);
        rewritten.push_str(&replacement);
        copied = end;
    }
    rewritten + &code[copied..]
}

/// The text of a token that is a word.
fn word<'a>(code: &'a str, token: &Lexeme) -> Option<&'a str> {
    (token.kind == LexemeKind::Word).then(|| &code[token.start..token.end])
}

/// Edits of a block, which depend on its name.
fn block_edits(code: &str, tokens: &[Lexeme]) -> Vec<Edit> {
    let Some(name) = tokens.iter().find(|token| !matches!(token.kind, LexemeKind::Mark('+' | '-'))) else {
        return Vec::new();
    };
    match word(code, name) {
        Some("generation") => vec![(name.start, name.end, "with".to_owned())],
        Some("endgeneration") => vec![(name.start, name.end, "endwith".to_owned())],
        Some("for") => {
            let iterated = tokens.iter().skip_while(|token| word(code, token) != Some("in")).skip(1);
            let iterated: Vec<Lexeme> = iterated.copied().collect();
            let len = outer_len(&iterated, |token| {
                matches!(word(code, token), Some("if" | "recursive")) || is_sign_at_end(code, token)
            });
            match (iterated.first(), iterated[..len].last()) {
                (Some(first), Some(last)) => iterable_edits(first, last).into(),
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// Edits that filter the code between two tokens through [`ITERABLE`].
fn iterable_edits(first: &Lexeme, last: &Lexeme) -> [Edit; 2] {
    [(first.start, first.start, "(".to_owned()), (last.end, last.end, format!(")|{ITERABLE} "))]
}

/// Edits that turn `%` after a string into a call of [`PERCENT`] with the operand.
fn percent_edits(code: &str, tokens: &[Lexeme]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        if (pair[0].kind, pair[1].kind) != (LexemeKind::Text, LexemeKind::Mark('%')) {
            continue;
        }
        let operand = &tokens[at + 2..];
        let len = outer_len(operand, |token| match token.kind {
            LexemeKind::Mark(mark) => ",+-*/~%=!<>:".contains(mark),
            _ => matches!(
                word(code, token),
                Some("and" | "or" | "not" | "in" | "is" | "if" | "else" | "recursive")
            ),
        });
        if let Some(last) = operand[..len].last() {
            edits.push((pair[1].start, pair[1].end, format!("|{PERCENT}(")));
            edits.push((last.end, last.end, ")".to_owned()));
        }
    }
    edits
}

/// Whether a token is the `-` or `+` with which a tag may end.
fn is_sign_at_end(code: &str, token: &Lexeme) -> bool {
    matches!(token.kind, LexemeKind::Mark('+' | '-')) && token.end == code.len()
}

/// Number of tokens before the first that ends an expression: one for which `ends` is true outside of brackets, or
/// an unmatched closing bracket.
fn outer_len(tokens: &[Lexeme], ends: impl Fn(&Lexeme) -> bool) -> usize {
    let mut depth = 0_usize;
    let end = tokens.iter().position(|token| match token.kind {
        LexemeKind::Mark('(' | '[' | '{') => {
            depth += 1;
            false
        }
        LexemeKind::Mark(')' | ']' | '}') if depth > 0 => {
            depth -= 1;
            false
        }
        LexemeKind::Mark(')' | ']' | '}') => true,
        _ => depth == 0 && ends(token),
    });
    end.unwrap_or(tokens.len())
}

#[cfg(test)]
mod tests {
    use super::prepare;

    #[test]
    fn other_code_is_unchanged() {
        for template in [
            "plain { text } %} {{ x }} {# {% generation %} #}",
            "{{ '{% generation %}' }}{{ {'%}': {}} }}{{ 5 % 3 }}",
            "{%- raw -%}{% for x in y %}{{ '%s' % x }}{%- endraw -%}",
            "{% if 'a' %}b{% endif %}{% set for_ = 'in' %}",
            "{{ unclosed",
        ] {
            assert_eq!(prepare(template), template);
        }
    }

    #[test]
    fn line_ends_are_normalized() {
        assert_eq!(prepare("a\r\nb\rc\n"), "a\nb\nc\n");
    }

    #[test]
    fn the_generation_block_is_a_scope() {
        assert_eq!(prepare("{%- generation -%}a{% endgeneration +%}"), "{%- with -%}a{% endwith +%}");
        assert_eq!(prepare("{%generation%}{{ generation }}"), "{%with%}{{ generation }}");
    }

    #[test]
    fn loops_check_their_iterable() {
        for (template, prepared) in [
            ("{% for x in y %}", "{% for x in (y)|iterable  %}"),
            (
                "{%- for k, v in d.items() if k in 'if' -%}",
                "{%- for k, v in (d.items())|iterable  if k in 'if' -%}",
            ),
            ("{%for x in(a if b else c)recursive-%}", "{%for x in((a if b else c))|iterable recursive-%}"),
            ("{% for x in a - b -%}", "{% for x in (a - b)|iterable  -%}"),
        ] {
            assert_eq!(prepare(template), prepared);
        }
    }

    #[test]
    fn a_percent_sign_after_a_string_formats() {
        for (template, prepared) in [
            ("{{ '%s' % x }}", "{{ '%s' |percent_format( x) }}"),
            ("{{ '%s' % (a, b[1]) ~ 'c' }}", "{{ '%s' |percent_format( (a, b[1])) ~ 'c' }}"),
            ("{{ ['%s' % f(x)|upper, 1] }}", "{{ ['%s' |percent_format( f(x)|upper), 1] }}"),
        ] {
            assert_eq!(prepare(template), prepared);
        }
    }
}
