//! The tokens of a template's code, coarser than Jinja's: words, texts and single marks.

/// A replacement of a byte range of the code; an empty range is an insertion.
pub type Edit = (usize, usize, String);

/// The kind of a token.
#[derive(Clone, Copy, PartialEq)]
pub enum LexemeKind {
    /// A name, a keyword or the digits of a number.
    Word,
    /// A text in quotes.
    Text,
    /// Any other character.
    Mark(char),
}

/// A token, and its byte range in the code.
#[derive(Clone, Copy)]
pub struct Lexeme {
    /// Its kind.
    pub kind: LexemeKind,
    /// Its first byte.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

/// The first token of some code.
pub fn first_token(code: &str) -> Option<Lexeme> {
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

/// The text of a token that is a word.
pub fn word<'a>(code: &'a str, token: &Lexeme) -> Option<&'a str> {
    (token.kind == LexemeKind::Word).then(|| &code[token.start..token.end])
}

/// Number of tokens before the first that ends an expression: one for which `ends` is true outside of brackets, or
/// an unmatched closing bracket.
pub fn outer_len(tokens: &[Lexeme], ends: impl Fn(&Lexeme) -> bool) -> usize {
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
