//! Rewriting of a template's source before minijinja parses it, within limits of size and depth.
//!
//! minijinja's parser and compiler recurse without bound over chains of operators, signs and `elif`; a template that
//! could overflow their stack is refused here, by code without recursion that takes linear time.

use super::expression::{assignment_edits, guard_edits};
use super::lexer::{Edit, Lexeme, LexemeKind, first_token, outer_len, word};
use crate::error::{Error, Result};

/// Name of the filter that refuses to iterate over `none`, as Python does and minijinja does not.
pub const ITERABLE: &str = "iterable";

/// Name of the filter for Python's `%` after a string.
pub const PERCENT: &str = "percent_format";

/// Name of the filter that checks the deadline.
pub const TICK: &str = "tick";

/// The largest template. Those of models have up to 20 kB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// Tokens of one tag. Those of models have up to 50, except for tables.
const MAX_TAG_TOKENS: usize = 2000;

/// Tokens of all tags. Those of models have up to 3000.
const MAX_TOKENS: usize = 50_000;

/// The deepest nesting of blocks, `elif` included.
const MAX_BLOCKS: usize = 100;

/// Rewrites a template:
/// - line ends become `\n`, as in Jinja2's lexer;
/// - the `generation` block, with which `transformers` marks the assistant's tokens, becomes a plain scope;
/// - the iterable of a loop is filtered through [`ITERABLE`];
/// - a string before `%` is filtered through [`PERCENT`];
/// - values that the template makes are filtered as [`guard_edits`] says;
/// - [`TICK`] follows blocks that may be repeated.
///
/// # Errors
/// When the template exceeds a limit, or a tag is not closed.
pub fn prepare(template: &str) -> Result<String> {
    if template.len() > MAX_TEMPLATE_BYTES {
        return Err(too_large(format!(
            "has {} bytes; at most {MAX_TEMPLATE_BYTES} are allowed",
            template.len()
        )));
    }
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut prepared = String::with_capacity(2 * template.len());
    let mut rest = template.as_str();
    let mut blocks = OpenBlocks::default();
    let mut n_tokens = 0;
    while let Some(tag) = next_tag(rest)? {
        prepared.push_str(&rest[..tag.code_start]);
        let code = &rest[tag.code_start..tag.code_end];
        n_tokens += tag.tokens.len();
        if n_tokens > MAX_TOKENS {
            return Err(too_large(format!("has more than {MAX_TOKENS} tokens in its tags")));
        }
        match tag.kind {
            TagKind::Comment | TagKind::Raw => prepared.push_str(code),
            TagKind::Expression => {
                let edits = guard_edits(code, without_signs(code, &tag.tokens))?;
                prepared.push_str(&rewrite(code, &tag.tokens, edits));
            }
            TagKind::Block => {
                let statement = Statement::new(code, &tag.tokens);
                blocks.enter(&statement)?;
                prepared.push_str(&rewrite(code, &tag.tokens, statement.edits()?));
                if statement.is_repeatable() {
                    let sign = code.chars().next_back().filter(|c| "+-".contains(*c));
                    prepared.push_str("%}{%if 0|");
                    prepared.push_str(TICK);
                    prepared.push_str("%}{%endif");
                    prepared.extend(sign);
                }
            }
        }
        rest = &rest[tag.code_end..];
    }
    Ok(prepared + rest)
}

fn too_large(what: String) -> Error {
    Error::model(format!("the model's chat template {what}"))
}

#[derive(Clone, Copy)]
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
    /// The tokens of the code of a block or expression.
    tokens: Vec<Lexeme>,
}

/// The next tag of a template, if there is one.
fn next_tag(template: &str) -> Result<Option<Tag>> {
    let unclosed = || Error::model("the model's chat template is not valid: a tag of it does not end");
    let start = template.match_indices('{').map(|(at, _)| at).find(|at| {
        let next = template.as_bytes().get(at + 1);
        next.is_some_and(|next| b"{%#".contains(next))
    });
    let Some(start) = start else { return Ok(None) };
    let code_start = start + 2;
    let inside = &template[code_start..];
    let (kind, len, tokens) = match template.as_bytes()[start + 1] {
        b'#' => (TagKind::Comment, inside.find("#}").ok_or_else(unclosed)?, Vec::new()),
        b'{' => {
            let tokens = code_tokens(inside, "}}")?.ok_or_else(unclosed)?;
            (TagKind::Expression, tokens.0, tokens.1)
        }
        _ => {
            let (len, tokens) = code_tokens(inside, "%}")?.ok_or_else(unclosed)?;
            match inside[..len].trim_matches(is_padding) {
                "raw" => (TagKind::Raw, len + raw_len(&inside[len..]).ok_or_else(unclosed)?, Vec::new()),
                _ => (TagKind::Block, len, tokens),
            }
        }
    };
    Ok(Some(Tag { kind, code_start, code_end: code_start + len, tokens }))
}

/// Whether a character may stand between a tag's mark and its name.
fn is_padding(c: char) -> bool {
    c.is_whitespace() || "+-".contains(c)
}

/// Number of bytes up to the end of the `endraw` tag's code.
fn raw_len(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let start = at + text[at..].find("{%")? + 2;
        let end = start + text[start..].find("%}")?;
        // Another tag may start before this one ends.
        let start = text[..end].rfind("{%").map_or(start, |inner| start.max(inner + 2));
        if text[start..end].trim_matches(is_padding) == "endraw" {
            return Some(end);
        }
        at = end;
    }
}

/// Number of bytes up to the mark that closes a tag, outside of strings and brackets, and the tokens before it; `None`
/// if there is no such mark.
fn code_tokens(text: &str, close: &str) -> Result<Option<(usize, Vec<Lexeme>)>> {
    let mut depth = 0_usize;
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(Lexeme { kind, start, end }) = first_token(&text[at..]) {
        let token = Lexeme { kind, start: at + start, end: at + end };
        if depth == 0 && text[token.start..].starts_with(close) {
            return Ok(Some((token.start, tokens)));
        }
        match token.kind {
            LexemeKind::Mark('(' | '[' | '{') => depth += 1,
            LexemeKind::Mark(')' | ']' | '}') if depth == 0 => return Ok(None),
            LexemeKind::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        at = token.end;
        tokens.push(token);
        if tokens.len() > MAX_TAG_TOKENS {
            return Err(too_large(format!("has a tag of more than {MAX_TAG_TOKENS} tokens")));
        }
    }
    Ok(None)
}

/// The tokens of a tag without the signs at its ends, which control white space.
fn without_signs<'a>(code: &str, tokens: &'a [Lexeme]) -> &'a [Lexeme] {
    let is_sign = |token: &Lexeme| matches!(token.kind, LexemeKind::Mark('+' | '-'));
    let first = tokens.first().is_some_and(|token| is_sign(token) && token.start == 0);
    let tokens = &tokens[usize::from(first)..];
    let last = tokens.last().is_some_and(|token| is_sign(token) && token.end == code.len());
    &tokens[..tokens.len() - usize::from(last)]
}

/// The code of a tag with `edits` applied, and those of its texts before `%`.
fn rewrite(code: &str, tokens: &[Lexeme], mut edits: Vec<Edit>) -> String {
    edits.extend(percent_edits(code, tokens));
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

/// The tag of a statement.
struct Statement<'a> {
    code: &'a str,
    tokens: &'a [Lexeme],
    name: &'a str,
}

impl<'a> Statement<'a> {
    fn new(code: &'a str, tokens: &'a [Lexeme]) -> Self {
        let tokens = without_signs(code, tokens);
        let name = tokens.first().and_then(|name| word(code, name)).unwrap_or_default();
        Self { code, tokens, name }
    }

    /// The index of the `=` of an assignment without block, among the tokens after the name.
    fn assigned(&self) -> Option<usize> {
        let tokens = self.tokens.get(1..).filter(|_| self.name == "set")?;
        let at = outer_len(tokens, |token| token.kind == LexemeKind::Mark('='));
        (at < tokens.len()).then_some(at)
    }

    /// Whether [`TICK`] follows: it must stand in all that is repeated, and after all that compares values.
    fn is_repeatable(&self) -> bool {
        matches!(self.name, "for" | "if" | "elif" | "else" | "endif" | "macro" | "call" | "set" | "do")
    }

    fn edits(&self) -> Result<Vec<Edit>> {
        let tokens = self.tokens.get(1..).unwrap_or_default();
        let is_opening = |token: &Lexeme| token.kind == LexemeKind::Mark('(');
        let mut edits = match (self.name, self.assigned()) {
            (_, Some(assigned)) => assignment_edits(self.code, tokens, assigned)?,
            // The target of a loop makes no values, nor do the parameters of a call block.
            ("for", _) => {
                let target = outer_len(tokens, |token| word(self.code, token) == Some("in"));
                guard_edits(self.code, &tokens[target..])?
            }
            ("call", _) if tokens.first().is_some_and(is_opening) => {
                let n_params = outer_len(&tokens[1..], |_| false);
                let (params, call) = tokens[1..].split_at(n_params);
                let mut edits = guard_edits(self.code, params)?;
                edits.extend(guard_edits(self.code, call.get(1..).unwrap_or_default())?);
                edits
            }
            _ => guard_edits(self.code, tokens)?,
        };
        edits.extend(block_edits(self.code, self.tokens));
        Ok(edits)
    }
}

/// The blocks that are open at some place of a template, as the number of `elif` in each.
#[derive(Default)]
struct OpenBlocks(Vec<usize>);

impl OpenBlocks {
    fn enter(&mut self, statement: &Statement) -> Result<()> {
        match statement.name {
            "elif" => {
                if let Some(n_branches) = self.0.last_mut() {
                    *n_branches += 1;
                }
            }
            "for" | "if" | "with" | "autoescape" | "filter" | "block" | "macro" | "call" | "generation" => {
                self.0.push(1);
            }
            "set" if statement.assigned().is_none() => self.0.push(1),
            name if name.starts_with("end") => drop(self.0.pop()),
            _ => {}
        }
        if self.0.iter().sum::<usize>() > MAX_BLOCKS {
            return Err(too_large(format!("nests blocks more than {MAX_BLOCKS} deep")));
        }
        Ok(())
    }
}

/// Edits of a block, which depend on its name.
fn block_edits(code: &str, tokens: &[Lexeme]) -> Vec<Edit> {
    let Some(name) = tokens.first() else { return Vec::new() };
    match word(code, name) {
        Some("generation") => vec![(name.start, name.end, "with".to_owned())],
        Some("endgeneration") => vec![(name.start, name.end, "endwith".to_owned())],
        Some("for") => {
            let iterated = tokens.iter().skip_while(|token| word(code, token) != Some("in")).skip(1);
            let iterated: Vec<Lexeme> = iterated.copied().collect();
            let len = outer_len(&iterated, |token| matches!(word(code, token), Some("if" | "recursive")));
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

#[cfg(test)]
mod tests {
    use super::{TICK, prepare};

    fn prepared(template: &str) -> String {
        let tick = |sign: &str| format!("%}}{{%if 0|{TICK}%}}{{%endif{sign}%}}");
        let prepared = prepare(template).unwrap();
        prepared.replace(&tick(""), "%}").replace(&tick("-"), "%}").replace(&tick("+"), "%}")
    }

    #[test]
    fn other_code_is_unchanged() {
        for template in [
            "plain { text } %} {{ x }} {# {% generation %} #}",
            "{{ '{% generation %}' }}{{ {'%}': 'a'} }}{{ 5 % 3 }}",
            "{%- raw -%}{% for x in y %}{%}{%{{ '%s' % x }}{%- endraw -%}",
            "{% if 'a' %}b{% endif %}{% set for_ = 'in' %}",
            "{{ -x - y / 2 }}{{- x.a['b'](1, c=2)|trim -}}{{ x in ['a', 1, none] }}",
            "{{ a if b is not divisibleby 3 and not c else [] }}",
        ] {
            assert_eq!(prepared(template), template);
        }
    }

    #[test]
    fn line_ends_are_normalized() {
        assert_eq!(prepared("a\r\nb\rc\n"), "a\nb\nc\n");
    }

    #[test]
    fn the_generation_block_is_a_scope() {
        assert_eq!(prepared("{%- generation -%}a{% endgeneration +%}"), "{%- with -%}a{% endwith +%}");
        assert_eq!(prepared("{%generation%}{{ generation }}"), "{%with%}{{ generation }}");
    }

    #[test]
    fn the_clock_is_checked_without_changing_white_space() {
        assert_eq!(
            prepare("{%- for x in y -%}\n").unwrap(),
            "{%- for x in (y)|iterable  -%}{%if 0|tick%}{%endif-%}\n"
        );
        assert_eq!(prepare("{% endfor %}").unwrap(), "{% endfor %}");
    }

    #[test]
    fn loops_check_their_iterable() {
        for (template, expected) in [
            ("{% for x in y %}", "{% for x in (y)|iterable  %}"),
            (
                "{%- for k, v in d.items() if k in 'if' -%}",
                "{%- for k, v in (d.items())|iterable  if k in 'if' -%}",
            ),
            ("{%for x in(a if b else c)recursive-%}", "{%for x in((a if b else c))|iterable recursive-%}"),
            ("{% for x in a - b -%}", "{% for x in (a - b)|iterable  -%}"),
        ] {
            assert_eq!(prepared(template), expected);
        }
    }

    #[test]
    fn a_percent_sign_after_a_string_formats() {
        for (template, expected) in [
            ("{{ '%s' % x }}", "{{ '%s' |percent_format( x) }}"),
            ("{{ ['%s' % f(x)|upper, 1] }}", "{{ (['%s' |percent_format( f(x)|upper), 1]|made) }}"),
        ] {
            assert_eq!(prepared(template), expected);
        }
    }

    #[test]
    fn values_that_a_template_makes_are_guarded() {
        for (template, expected) in [
            ("{{ a + b ~ 'c' }}", "{{ (a + b ~ 'c')|made }}"),
            ("{{- a * b - c -}}", "{{- (a * b)|made - c -}}"),
            ("{{ x == a + 1 and -b * 2 }}", "{{ x == (a + 1)|made and (-b * 2)|made }}"),
            ("{{ a ** 2 // 3 }}", "{{ a ** 2 // 3 }}"),
            ("{{ [a, {'b': c}] }}", "{{ ([a, ({'b': c}|made)]|made) }}"),
            ("{{ (a, b)[0] }}", "{{ ((a, b)|made)[0] }}"),
            ("{{ x.a[1:][::-1].b }}", "{{ ((x.a[1:]|made)[::-1]|made).b }}"),
            ("{{ x|list|map('trim') | join }}", "{{ x|list|made|map('trim')|made | join }}"),
            ("{{ f(a, *b, c=d + e, **g) }}", "{{ f(a, *b, c=(d + e)|made, **g) }}"),
            ("{% for (a, b), c in [d, e] %}", "{% for (a, b), c in (([d, e]|made))|iterable  %}"),
            ("{% call(a, b) f([c]) %}", "{% call(a, b) f(([c]|made)) %}"),
            ("{% set (a, b) = c + d %}", "{% set (a, b) = (c + d)|made %}"),
            ("{% with (a, b) = c, d = [e] %}", "{% with (a, b) = c, d = ([e]|made) %}"),
            ("{% macro f(a, b=[c]) %}", "{% macro f(a, b=([c]|made)) %}"),
            ("{% set x = y, z %}", "{% set x = (y, z)|made %}"),
            ("{%- set ns.x = y -%}", "{%- set ns.x = (y)|stored -%}"),
            ("{% if a is defined and b + c is none %}", "{% if a is defined and (b + c is none)|made %}"),
        ] {
            assert_eq!(prepared(template), expected);
        }
    }

    #[test]
    fn templates_that_would_overflow_the_parser_are_refused() {
        let if_chain = "{% if a %}".to_owned() + &"{% elif b %}".repeat(100);
        for (template, limit) in [
            ("x".repeat(300_000), "262144"),
            (format!("{{{{ {}a }}}}", "not ".repeat(100_000)), "262144"),
            (format!("{{{{ a{} }}}}", "+a".repeat(100_000)), "2000 tokens"),
            (format!("{{{{ a{} }}}}", "|trim".repeat(40_000)), "2000 tokens"),
            (format!("{{{{ {}a }}}}", "-".repeat(100_000)), "2000 tokens"),
            (format!("{{{{ {}a }}}}", "(".repeat(1000)), "does not end"),
            (format!("{{{{ {}a{} }}}}", "[".repeat(100), "]".repeat(100)), "48 deep"),
            ("{% if a %}".repeat(20_000), "100 deep"),
            ("{% for a in b %}".repeat(200), "100 deep"),
            ("{% set a %}".repeat(200), "100 deep"),
            (if_chain, "100 deep"),
            ("{{a+b}}".repeat(20_000), "50000 tokens"),
            ("{{ unclosed".to_owned(), "does not end"),
            ("{{ ) }}{% if %}".to_owned(), "does not end"),
            ("{% raw %}".to_owned() + &"{%".repeat(100_000), "does not end"),
        ] {
            let started = std::time::Instant::now();
            let error = prepare(&template).unwrap_err().to_string();
            assert!(error.contains(limit), "{error}");
            assert!(started.elapsed().as_millis() < 500, "{error}");
        }
    }
}
