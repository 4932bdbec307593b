//! A reader of GBNF, llama.cpp's form of BNF, and of XGrammar's EBNF, which differs little. Both describe texts
//! character by character, from the rule `root`.

use std::collections::HashMap;

use super::char_set::CharSet;

/// The deepest nesting of groups.
const MAX_DEPTH: usize = 100;

/// Most repetitions in `{m,n}`.
const MAX_REPETITIONS: u32 = 100_000;

/// Most operators of repetition after one item, one of which is the end.
const MAX_OPERATORS: usize = 4;

/// The first rule of a grammar.
const ROOT: &str = "root";

/// A grammar as it was read.
pub struct BnfGrammar {
    /// The rules. [`Expr::Rule`] has indices into them.
    pub rules: Vec<Expr>,
    /// Index of the first rule.
    pub root: usize,
}

/// The texts that a part of a grammar matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// One character of a set.
    Chars(CharSet),
    /// One text after the other.
    Sequence(Vec<Expr>),
    /// Any of several.
    Choice(Vec<Expr>),
    /// At least and at most so many times.
    Repeat(Box<Expr>, u32, Option<u32>),
    /// The rule with this index.
    Rule(usize),
}

impl Expr {
    /// A text as it is.
    fn literal(text: &str) -> Self {
        Self::Sequence(text.chars().map(|c| Self::Chars(CharSet::from_char(c))).collect())
    }

    /// Several in sequence; one by itself.
    pub fn sequence(mut items: Vec<Self>) -> Self {
        if items.len() == 1 { items.remove(0) } else { Self::Sequence(items) }
    }

    /// One of several; single characters become a set.
    pub fn choice(items: Vec<Self>) -> Self {
        let mut chars: Option<CharSet> = None;
        let mut others = Vec::new();
        for item in items {
            match item {
                Self::Chars(set) => chars = Some(chars.map_or(set.clone(), |chars| chars.union(&set))),
                other => others.push(other),
            }
        }
        others.extend(chars.map(Self::Chars));
        if others.len() == 1 { others.remove(0) } else { Self::Choice(others) }
    }

    /// Calls `visit` with the index of each rule that it refers to.
    pub fn for_each_rule(&self, visit: &mut impl FnMut(usize)) {
        match self {
            Self::Chars(_) => {}
            Self::Sequence(items) | Self::Choice(items) => {
                items.iter().for_each(|item| item.for_each_rule(visit));
            }
            Self::Repeat(item, ..) => item.for_each_rule(visit),
            Self::Rule(rule) => visit(*rule),
        }
    }
}

/// Whether rules are in a form of BNF, and not in Lark's: whether `::=` follows the first name.
pub fn is_bnf(rules: &str) -> bool {
    let mut rest = rules.trim_start();
    while rest.starts_with('#') || rest.starts_with("//") {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
    }
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    rest.trim_start_matches(is_name).trim_start().starts_with("::=")
}

/// Reads a grammar.
///
/// # Errors
/// When it is malformed or uses something that has no counterpart here; the message names it and its line.
pub fn read(text: &str) -> Result<BnfGrammar, String> {
    let mut reader = Reader { text, at: 0, names: HashMap::new(), rules: Vec::new(), depth: 0 };
    reader.skip_space();
    while reader.at < text.len() {
        reader.rule()?;
    }
    let Reader { names, rules, .. } = reader;
    let Some(&root) = names.get(ROOT) else {
        return Err("it has no rule `root`, with which it begins".to_owned());
    };
    let mut missing: Vec<&str> =
        names.iter().filter(|(_, rule)| rules[**rule].is_none()).map(|(name, _)| *name).collect();
    missing.sort_unstable();
    match missing.first() {
        Some(name) => Err(format!("the rule `{}` is not defined", crate::error::quote(name))),
        None => Ok(BnfGrammar { rules: rules.into_iter().flatten().collect(), root }),
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Position in bytes.
    at: usize,
    names: HashMap<&'a str, usize>,
    /// The rules, if they are defined already.
    rules: Vec<Option<Expr>>,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let is_next = self.rest().starts_with(text);
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    fn error<T>(&self, message: &str) -> Result<T, String> {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Err(format!("line {line}: {message}"))
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        loop {
            self.at = self.text.len() - self.rest().trim_start().len();
            if !self.rest().starts_with('#') {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    /// The name that comes next, if one does.
    fn peek_name(&self) -> Option<&'a str> {
        let rest = self.rest();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        // A dot at either end is any character, one in the middle is part of the name.
        let name = name.trim_end_matches('.');
        (!name.is_empty() && !name.starts_with('.')).then_some(name)
    }

    fn rule_idx(&mut self, name: &'a str) -> usize {
        *self.names.entry(name).or_insert_with(|| {
            self.rules.push(None);
            self.rules.len() - 1
        })
    }

    fn rule(&mut self) -> Result<(), String> {
        let Some(name) = self.peek_name() else {
            return self.error("a rule, such as `root ::= \"yes\"`, was expected");
        };
        self.at += name.len();
        self.skip_space();
        if !self.take("::=") {
            return self.error("`::=` was expected after the name of a rule");
        }
        let rule = self.rule_idx(name);
        if self.rules[rule].is_some() {
            return self.error(&format!("the rule `{}` is defined twice", crate::error::quote(name)));
        }
        let expr = self.choice()?;
        if self.at < self.text.len() && !self.is_at_rule() {
            return self.error("a rule or a part of one was expected");
        }
        self.rules[rule] = Some(expr);
        Ok(())
    }

    /// Whether a new rule begins here.
    fn is_at_rule(&self) -> bool {
        self.peek_name().is_some_and(|name| self.rest()[name.len()..].trim_start().starts_with("::="))
    }

    fn choice(&mut self) -> Result<Expr, String> {
        if self.depth >= MAX_DEPTH {
            return self.error(&format!("groups are nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let mut items = vec![self.sequence()?];
        while self.take("|") {
            items.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(Expr::choice(items))
    }

    fn sequence(&mut self) -> Result<Expr, String> {
        let mut items = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None | Some('|' | ')') => break,
                Some(_) if self.is_at_rule() => break,
                Some(_) => {}
            }
            let item = self.item()?;
            items.push(self.repeated(item)?);
        }
        Ok(Expr::sequence(items))
    }

    fn item(&mut self) -> Result<Expr, String> {
        if let Some(name) = self.peek_name() {
            self.at += name.len();
            return Ok(Expr::Rule(self.rule_idx(name)));
        }
        match self.peek() {
            Some('"') => self.string(),
            Some('[') => self.class(),
            Some('.') => {
                self.at += 1;
                Ok(Expr::Chars(CharSet::any()))
            }
            Some('(') => {
                self.at += 1;
                if self.rest().starts_with('=') {
                    return self.error("look-ahead, `(= ...)`, is not supported");
                }
                let group = self.choice()?;
                if !self.take(")") {
                    return self.error("a group has no `)`");
                }
                Ok(group)
            }
            Some('<' | '!') => self.error("tokens, such as `<[1]>` and `!<[1]>`, are not supported"),
            Some('\'') => self.error("strings begin with `\"`"),
            Some('/') => self.error("regular expressions are not supported; write a class, such as `[a-z]+`"),
            Some('*' | '+' | '?' | '{') => self.error("there is nothing to repeat before this"),
            Some(c) => {
                self.error(&format!("`{}` is not supported here", crate::error::quote(&c.to_string())))
            }
            None => self.error("the grammar ends too early"),
        }
    }

    /// The item with the repetitions that follow it.
    fn repeated(&mut self, mut item: Expr) -> Result<Expr, String> {
        for _ in 0..MAX_OPERATORS {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let bounds = self.bounds()?;
                    item = Expr::Repeat(Box::new(item), bounds.0, bounds.1);
                    continue;
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Expr::Repeat(Box::new(item), min, max);
        }
        self.error(&format!("more than {MAX_OPERATORS} repetitions of repetitions are not supported"))
    }

    /// The rest of `{m}`, `{m,}`, `{m,n}` or `{,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), String> {
        let min = self.number()?;
        self.skip_space();
        let (min, max) = match (min, self.take(",")) {
            (None, false) => return self.error("`{` needs a number of repetitions"),
            (Some(n), false) => (n, Some(n)),
            (min, true) => (min.unwrap_or(0), self.number()?),
        };
        self.skip_space();
        if !self.take("}") {
            return self.error("repetitions have no `}`");
        }
        if max.is_some_and(|max| max < min) {
            return self.error("the bounds of repetitions are reversed");
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        self.skip_space();
        let rest = self.rest();
        let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
        if digits.is_empty() {
            return Ok(None);
        }
        self.at += digits.len();
        match digits.parse() {
            Ok(n) if n <= MAX_REPETITIONS => Ok(Some(n)),
            _ => self.error(&format!("more than {MAX_REPETITIONS} repetitions are not supported")),
        }
    }

    fn string(&mut self) -> Result<Expr, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                None | Some('\n') => return self.error("a string has no closing `\"`"),
                Some('"') => return Ok(Expr::literal(&text)),
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Expr, String> {
        self.at += 1;
        let is_negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let low = self.class_char()?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let high = if is_range {
                self.at += 1;
                self.class_char()?
            } else {
                low
            };
            if high < low {
                return self.error("the ends of a range of characters are reversed");
            }
            ranges.push((low.into(), high.into()));
        }
        let set = CharSet::from_ranges(ranges);
        let set = if is_negated { set.negated() } else { set };
        if set.is_empty() {
            return self.error("a class of characters is empty");
        }
        Ok(Expr::Chars(set))
    }

    fn class_char(&mut self) -> Result<char, String> {
        match self.next() {
            None | Some('\n') => self.error("a class of characters has no `]`"),
            Some('\\') => self.escape(),
            Some(c) => Ok(c),
        }
    }

    /// The character of an escape, after its backslash.
    fn escape(&mut self) -> Result<char, String> {
        let Some(c) = self.next() else { return self.error("the grammar ends with a backslash") };
        let n_digits = match c {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'v' => return Ok('\u{b}'),
            'e' => return Ok('\u{1b}'),
            '0' => return Ok('\0'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_ascii_punctuation() || c == ' ' => return Ok(c),
            c => {
                return self.error(&format!(
                    "the escape `\\{}` is not supported",
                    crate::error::quote(&c.to_string())
                ));
            }
        };
        let code = self.rest().get(..n_digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32) {
            Some(decoded) => {
                self.at += n_digits;
                Ok(decoded)
            }
            None => self.error(&format!("`\\{c}` needs the {n_digits} hexadecimal digits of a character")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(ranges: &[(char, char)]) -> Expr {
        Expr::Chars(CharSet::from_ranges(ranges.iter().map(|&(low, high)| (low.into(), high.into()))))
    }

    fn root(text: &str) -> Expr {
        let grammar = read(text).unwrap();
        grammar.rules[grammar.root].clone()
    }

    #[test]
    fn every_construct_is_read() {
        let a = || chars(&[('a', 'a')]);
        let repeat = |min, max| Expr::Repeat(Box::new(Expr::literal("a")), min, max);
        for (rule, expected) in [
            ("\"ab\"", Expr::Sequence(vec![a(), chars(&[('b', 'b')])])),
            ("\"\"", Expr::Sequence(vec![])),
            ("", Expr::Sequence(vec![])),
            ("[a]", a()),
            ("[a-c_-]", chars(&[('a', 'c'), ('_', '_'), ('-', '-')])),
            ("[-a]", chars(&[('a', 'a'), ('-', '-')])),
            (
                "[\\]\\\\\\n\\x41\\u00e9\\U0001F600]",
                chars(&[(']', ']'), ('\\', '\\'), ('\n', '\n'), ('A', 'A'), ('é', 'é'), ('😀', '😀')]),
            ),
            ("[^a]", Expr::Chars(CharSet::from_char('a').negated())),
            (".", Expr::Chars(CharSet::any())),
            ("\"a\"*", repeat(0, None)),
            ("\"a\"+", repeat(1, None)),
            ("\"a\"?", repeat(0, Some(1))),
            ("\"a\"{3}", repeat(3, Some(3))),
            ("\"a\"{3,}", repeat(3, None)),
            ("\"a\"{ 3 , 5 }", repeat(3, Some(5))),
            ("\"a\"{,5}", repeat(0, Some(5))),
            ("[a] | [b]", chars(&[('a', 'b')])),
            ("[a] | \n  # no rule ::= here\n [b]", chars(&[('a', 'b')])),
            ("([a])", a()),
            (
                "[a] ([b] | \"\")",
                Expr::Sequence(vec![a(), Expr::Choice(vec![Expr::Sequence(vec![]), chars(&[('b', 'b')])])]),
            ),
        ] {
            assert_eq!(root(&format!("root ::= {rule}\n")), expected, "{rule}");
        }
        let grammar =
            read("# comment\nroot::=my-rule2 other.rule\nmy-rule2 ::= \"x\"\nother.rule ::= root?").unwrap();
        assert_eq!(grammar.rules.len(), 3);
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        for (text, says) in [
            ("a ::= \"b\"", "no rule `root`"),
            ("root ::= missing", "`missing` is not defined"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule `root` is defined twice"),
            ("root ::= \"a", "no closing"),
            ("root ::= [a", "no `]`"),
            ("root ::= []", "empty"),
            ("root ::= [b-a]", "reversed"),
            ("root ::= (\"a\"", "no `)`"),
            ("root ::= \"a\")", "a rule or a part"),
            ("root ::= \n *", "line 2: there is nothing to repeat"),
            ("root ::= \"a\"{2", "no `}`"),
            ("root ::= \"a\"{3,2}", "reversed"),
            ("root ::= \"a\"{}", "number"),
            ("root ::= \"a\"{1000000}", "100000"),
            ("root ::= <[1000]>", "tokens"),
            ("root ::= \"a\" (= \"b\")", "look-ahead"),
            ("root ::= /a+/", "regular expressions"),
            ("root ::= [\\d]", "`\\d`"),
            ("root ::= \"\\xZZ\"", "hexadecimal"),
            ("root ::= \"\\uD800\"", "hexadecimal"),
            ("root ::= 'a'", "strings begin"),
            ("root ::= \"a\" @ \"b\"", "`@`"),
            ("root = \"a\"", "`::=`"),
        ] {
            let error = read(text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(error.contains(says), "{text}: {error}");
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
        assert!(read(&deep).err().unwrap().contains("nested"));
    }

    #[test]
    fn bnf_is_told_from_lark() {
        for (text, is) in [
            ("root ::= \"a\"", true),
            ("# x: y\n\nroot\n  ::= \"a\"", true),
            ("my-rule ::= \"a\"\nroot ::= my-rule", true),
            ("start: \"::=\"", false),
            ("// a ::= b\n?start: \"a\"", false),
            ("%import common.WS\nstart: WS", false),
            ("start[stop=\"::=\"]: /a/", false),
            ("", false),
        ] {
            assert_eq!(is_bnf(text), is, "{text}");
        }
    }
}
