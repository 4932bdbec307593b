//! The structure of a template's expressions: where lists, texts and numbers are made, and how deeply they nest.
//!
//! This is a parser of just enough of Jinja's grammar: operands with what follows them (`.name`, `[…]`, `(…)`,
//! `| filter`, `is test`), products, sums, and everything that separates sums. It has no recursion, so no expression
//! can overflow the stack here.

use super::lexer::{Edit, Lexeme, LexemeKind, outer_len, word};
use crate::error::{Error, Result};

/// Name of the filter that bounds a value which the template makes.
pub const MADE: &str = "made";

/// Name of the filter that bounds a value which becomes an attribute of a namespace.
pub const STORED: &str = "stored";

/// The deepest nesting of brackets.
const MAX_BRACKETS: usize = 48;

/// Filters that make no list and no dictionary, so that their results need no [`MADE`].
const SCALAR_FILTERS: [&str; 20] = [
    "trim",
    "length",
    "count",
    "tojson",
    "string",
    "int",
    "float",
    "upper",
    "lower",
    "title",
    "capitalize",
    "replace",
    "join",
    "abs",
    "round",
    "safe",
    "first",
    "last",
    "default",
    "indent",
];

/// Words between expressions.
const OPERATORS: [&str; 7] = ["and", "or", "not", "in", "if", "else", "recursive"];

/// The role of a bracket.
#[derive(Clone, Copy, PartialEq)]
enum BracketKind {
    /// The whole tag.
    Tag,
    /// Parentheses around an expression or the items of a tuple.
    Group,
    /// A list or a dictionary.
    Literal,
    /// The arguments of a call or test.
    Arguments,
    /// The arguments of a filter whose result may be a list.
    FilterArguments,
    Subscript,
}

/// A bracket that is open, and the expression that is being read inside of it.
struct Bracket {
    kind: BracketKind,
    start: usize,
    has_comma: bool,
    has_colon: bool,
    /// Whether everything inside so far is a text, a number or a constant.
    is_constant: bool,
    /// Whether an operand has been read, so that an operator may follow.
    after_operand: bool,
    operand_start: Option<usize>,
    /// Start of the product or single operand that is being read.
    product_start: Option<usize>,
    is_product: bool,
    /// Start of the sum or single product that is being read.
    sum_start: Option<usize>,
    is_sum: bool,
}

impl Bracket {
    fn new(kind: BracketKind, start: usize) -> Self {
        Self {
            kind,
            start,
            has_comma: false,
            has_colon: false,
            is_constant: true,
            after_operand: false,
            operand_start: None,
            product_start: None,
            is_product: false,
            sum_start: None,
            is_sum: false,
        }
    }
}

/// The word that is expected next.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Any,
    Attribute,
    Filter,
    Test,
    /// A test's argument may follow without parentheses.
    TestArgument,
}

struct Scanner<'a> {
    code: &'a str,
    tokens: &'a [Lexeme],
    brackets: Vec<Bracket>,
    next: Next,
    edits: Vec<Edit>,
}

/// The edits that pass the values which an expression makes through [`MADE`]. `tokens` are those of the expression.
///
/// # Errors
/// When brackets are nested too deeply or do not match.
pub fn guard_edits(code: &str, tokens: &[Lexeme]) -> Result<Vec<Edit>> {
    let mut scanner = Scanner {
        code,
        tokens,
        brackets: vec![Bracket::new(BracketKind::Tag, 0)],
        next: Next::Any,
        edits: Vec::new(),
    };
    for idx in 0..tokens.len() {
        scanner.token(idx)?;
    }
    if scanner.brackets.len() != 1 {
        return Err(unbalanced());
    }
    scanner.end_sum(tokens.last().map_or(0, |token| token.end));
    Ok(scanner.edits)
}

/// The edits of an assignment, of which `tokens` are those after `set`, and `assigned` is the index of `=`. A tuple
/// without parentheses is [`MADE`], the attribute of a namespace is [`STORED`].
///
/// # Errors
/// As for [`guard_edits`].
pub fn assignment_edits(code: &str, tokens: &[Lexeme], assigned: usize) -> Result<Vec<Edit>> {
    let (target, value) = (&tokens[..assigned], &tokens[assigned + 1..]);
    let mut edits = guard_edits(code, value)?;
    let is_attribute = target.iter().any(|token| token.kind == LexemeKind::Mark('.'));
    let is_tuple = outer_len(value, |token| token.kind == LexemeKind::Mark(',')) < value.len();
    if let (Some(first), Some(last)) = (value.first(), value.last())
        && (is_attribute || is_tuple)
    {
        edits.extend(wrap(first.start, last.end, if is_attribute { STORED } else { MADE }));
    }
    Ok(edits)
}

/// Edits that pass an expression through a filter.
fn wrap(start: usize, end: usize, filter: &str) -> [Edit; 2] {
    [(start, start, "(".to_owned()), (end, end, format!(")|{filter}"))]
}

/// Edits that pass an operand through a filter, so that the result is an operand again.
fn wrap_operand(start: usize, end: usize) -> [Edit; 2] {
    [(start, start, "(".to_owned()), (end, end, format!("|{MADE})"))]
}

fn unbalanced() -> Error {
    Error::model("the model's chat template has brackets that do not match")
}

impl Scanner<'_> {
    fn token(&mut self, idx: usize) -> Result<()> {
        let token = self.tokens[idx];
        let next = std::mem::replace(&mut self.next, Next::Any);
        match token.kind {
            LexemeKind::Word => self.word(idx, next),
            LexemeKind::Text => self.operand(token.start, next),
            LexemeKind::Mark(mark @ ('(' | '[' | '{')) => return self.open(mark, token.start, next),
            LexemeKind::Mark(')' | ']' | '}') => return self.close(idx),
            LexemeKind::Mark(mark) => self.operator(idx, mark),
        }
        Ok(())
    }

    /// The innermost bracket.
    fn top(&mut self) -> &mut Bracket {
        // The tag itself is never closed.
        let last = self.brackets.len() - 1;
        &mut self.brackets[last]
    }

    fn word(&mut self, idx: usize, next: Next) {
        let token = self.tokens[idx];
        let text = word(self.code, &token).unwrap_or_default();
        let after_operand = self.top().after_operand;
        match next {
            Next::Attribute => self.top().is_constant = false,
            Next::Filter => self.filter(idx, text),
            Next::Test if text == "not" => self.next = Next::Test,
            Next::Test => {
                self.top().is_constant = false;
                self.next = Next::TestArgument;
            }
            _ if after_operand && text == "is" => self.next = Next::Test,
            _ if OPERATORS.contains(&text) => {
                self.end_sum(self.end_before(idx));
                self.top().is_constant = false;
            }
            _ => {
                let is_constant = text.starts_with(|c: char| c.is_ascii_digit())
                    || matches!(text, "true" | "false" | "none" | "True" | "False" | "None");
                self.top().is_constant &= is_constant;
                self.operand(token.start, next);
            }
        }
    }

    /// A filter's name: its result is [`MADE`] after the name and its arguments.
    fn filter(&mut self, idx: usize, name: &str) {
        self.top().is_constant = false;
        if SCALAR_FILTERS.contains(&name) {
            return;
        }
        if self.tokens.get(idx + 1).is_some_and(|token| token.kind == LexemeKind::Mark('(')) {
            self.next = Next::Filter;
        } else {
            let end = self.tokens[idx].end;
            self.edits.push((end, end, format!("|{MADE}")));
        }
    }

    fn operand(&mut self, start: usize, next: Next) {
        let top = self.top();
        if next == Next::TestArgument {
            top.operand_start = Some(start);
            return;
        }
        if !top.after_operand {
            top.operand_start = Some(start);
            top.product_start.get_or_insert(start);
            top.sum_start.get_or_insert(start);
        }
        top.after_operand = true;
    }

    fn open(&mut self, mark: char, start: usize, next: Next) -> Result<()> {
        if self.brackets.len() > MAX_BRACKETS {
            let message = format!("the model's chat template nests brackets more than {MAX_BRACKETS} deep");
            return Err(Error::model(message));
        }
        let is_argument = next == Next::TestArgument && mark != '(';
        let is_postfix = self.top().after_operand && !is_argument;
        let kind = match mark {
            '(' if next == Next::Filter => BracketKind::FilterArguments,
            '(' if is_postfix => BracketKind::Arguments,
            '[' if is_postfix => BracketKind::Subscript,
            '(' => BracketKind::Group,
            _ => BracketKind::Literal,
        };
        if is_postfix {
            self.top().is_constant = false;
        } else {
            self.operand(start, next);
        }
        self.brackets.push(Bracket::new(kind, start));
        Ok(())
    }

    fn close(&mut self, idx: usize) -> Result<()> {
        if self.brackets.len() < 2 {
            return Err(unbalanced());
        }
        self.end_sum(self.end_before(idx));
        let end = self.tokens[idx].end;
        let Some(bracket) = self.brackets.pop() else { return Err(unbalanced()) };
        let outer = self.top();
        outer.after_operand = true;
        outer.is_constant &= bracket.kind == BracketKind::Group && bracket.is_constant && !bracket.has_comma;
        let operand_start = outer.operand_start.unwrap_or(bracket.start);
        match bracket.kind {
            BracketKind::Literal if !bracket.is_constant => {
                self.edits.extend(wrap_operand(bracket.start, end));
            }
            // A tuple, unless it is the target of an assignment.
            BracketKind::Group if bracket.has_comma && !bracket.is_constant && !self.is_target(idx) => {
                self.edits.extend(wrap_operand(bracket.start, end));
            }
            BracketKind::Subscript if bracket.has_colon => {
                self.edits.extend(wrap_operand(operand_start, end));
            }
            BracketKind::FilterArguments => self.edits.push((end, end, format!("|{MADE}"))),
            _ => {}
        }
        Ok(())
    }

    /// Whether the bracket that ends with a token is assigned to.
    fn is_target(&self, idx: usize) -> bool {
        let is_equal_sign =
            |idx: usize| self.tokens.get(idx).is_some_and(|token| token.kind == LexemeKind::Mark('='));
        is_equal_sign(idx + 1) && !is_equal_sign(idx + 2)
    }

    fn operator(&mut self, idx: usize, mark: char) {
        let end = self.end_before(idx);
        let Lexeme { start, .. } = self.tokens[idx];
        let is_doubled = self.tokens.get(idx + 1).is_some_and(|next| next.kind == LexemeKind::Mark(mark));
        let after_operand = self.top().after_operand;
        match mark {
            '.' if after_operand => self.next = Next::Attribute,
            '|' if after_operand => self.next = Next::Filter,
            '-' | '+' if !after_operand => {
                let top = self.top();
                top.product_start.get_or_insert(start);
                top.sum_start.get_or_insert(start);
            }
            // The second half of `//` or `**`, or the star before an argument.
            '*' | '/' | '%' | '~' if !after_operand => {}
            '*' if is_doubled => self.top().after_operand = false,
            '*' | '/' | '%' => {
                let top = self.top();
                top.is_product |= mark == '*';
                top.is_constant = false;
                top.after_operand = false;
            }
            '+' | '-' | '~' => {
                self.end_product(end);
                let top = self.top();
                top.is_sum |= mark != '-';
                top.is_constant = false;
                top.after_operand = false;
            }
            _ => {
                self.end_sum(end);
                let top = self.top();
                top.has_comma |= mark == ',';
                top.has_colon |= mark == ':';
                top.is_constant &= matches!(mark, ',' | ':');
            }
        }
    }

    /// The end of the token before another.
    fn end_before(&self, idx: usize) -> usize {
        idx.checked_sub(1).map_or(0, |idx| self.tokens[idx].end)
    }

    fn end_product(&mut self, end: usize) {
        let top = self.top();
        let start = top.product_start.take();
        top.operand_start = None;
        let is_product = std::mem::take(&mut top.is_product);
        if let (Some(start), true) = (start, is_product) {
            self.edits.extend(wrap(start, end, MADE));
        }
    }

    fn end_sum(&mut self, end: usize) {
        self.end_product(end);
        let top = self.top();
        top.after_operand = false;
        let start = top.sum_start.take();
        let is_sum = std::mem::take(&mut top.is_sum);
        if let (Some(start), true) = (start, is_sum) {
            self.edits.extend(wrap(start, end, MADE));
        }
    }
}
