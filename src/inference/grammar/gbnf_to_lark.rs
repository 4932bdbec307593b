//! The translation of GBNF into llguidance's dialect of Lark.
//!
//! GBNF describes texts character by character. llguidance splits a text into terminals first, each as long as
//! possible, which is much faster, but not always the same: in `("a" [ \n]*) "\n"`, a terminal that takes in the line
//! break leaves none for what follows. So parts without recursion become terminals, and those that could take in the
//! beginning of what follows are split further, down to single characters, which are always exact.
//!
//! A terminal takes in too much if, after one of its texts, a character may follow by the rules that also continues
//! the same or another terminal that may stand at that position. Two terminals may stand at the same position only if
//! the same character may precede them. Characters are told apart by the first bytes of their UTF-8, as the lexer of
//! llguidance works on bytes.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::char_set::ByteMask;
use super::gbnf::{BnfGrammar, Expr, read};
use super::terminal::{StepBudget, Terminal, takes_in_too_much};

/// A byte that no character begins with. It stands for the beginning of the text.
const TEXT_START: u8 = 0xFF;

/// Most alternatives of a rule that [`without_self_reference`] makes.
const MAX_ALTERNATIVES: usize = 64;

/// A grammar in GBNF, in Lark's form.
///
/// # Errors
/// When it is malformed, uses something that has no counterpart, or is too complex to translate.
pub fn gbnf_to_lark(text: &str) -> Result<String, String> {
    let BnfGrammar { mut rules, root } = read(text)?;
    for (idx, rule) in rules.iter_mut().enumerate() {
        if let Some(rewritten) = without_self_reference(rule, idx) {
            *rule = rewritten;
        }
    }
    let mut translation = Translation::new(&rules);
    let mut steps = StepBudget::default();
    translation.add_rule(root);
    while translation.split_terminals(root, &mut steps)? {}
    Ok(translation.to_lark(root))
}

/// A rule that refers to itself only at the end, or only at the beginning, of its alternatives, as a repetition.
fn without_self_reference(expr: &Expr, own: usize) -> Option<Expr> {
    let refers = |expr: &Expr| {
        let mut found = false;
        expr.for_each_rule(&mut |rule| found |= rule == own);
        found
    };
    if !refers(expr) {
        return None;
    }
    let mut open = vec![vec![expr.clone()]];
    let (mut ends, mut right, mut left) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(mut items) = open.pop() {
        if open.len() + ends.len() + right.len() + left.len() > MAX_ALTERNATIVES {
            return None;
        }
        match items.iter().filter(|item| refers(item)).count() {
            0 => ends.push(Expr::sequence(items)),
            1 if items.first() == Some(&Expr::Rule(own)) => left.push(Expr::sequence(items.split_off(1))),
            1 if items.last().is_some_and(refers) => match items.pop()? {
                Expr::Rule(_) => right.push(Expr::sequence(items)),
                Expr::Sequence(more) => open.push([items, more].concat()),
                Expr::Choice(more) => {
                    open.extend(more.into_iter().map(|more| [&items[..], &[more]].concat()))
                }
                Expr::Repeat(more, 0, Some(1)) => open.extend([[&items[..], &[*more]].concat(), items]),
                _ => return None,
            },
            _ => return None,
        }
    }
    let repeated = |items| Expr::Repeat(Box::new(Expr::choice(items)), 0, None);
    match (ends.is_empty(), right.is_empty(), left.is_empty()) {
        (false, false, true) => Some(Expr::Sequence(vec![repeated(right), Expr::choice(ends)])),
        (false, true, false) => Some(Expr::Sequence(vec![Expr::choice(ends), repeated(left)])),
        _ => None,
    }
}

/// A part of a rule above its terminals.
enum Node {
    Terminal(Terminal),
    Sequence(Vec<usize>),
    Choice(Vec<usize>),
    Repeat(usize, u32, Option<u32>),
    Rule(usize),
}

struct Translation<'a> {
    rules: &'a [Expr],
    /// Whether a rule has no recursion, by its index.
    is_regular: Vec<bool>,
    nodes: Vec<Node>,
    /// The nodes of the rules that are not part of a terminal.
    bodies: HashMap<usize, usize>,
    /// The rules of `bodies`, in the order of their first use.
    order: Vec<usize>,
}

/// The first bytes of the characters at the edges of the texts of a node.
#[derive(Clone, Copy, Default, PartialEq)]
struct Edges {
    first: ByteMask,
    last: ByteMask,
    is_nullable: bool,
}

/// The first bytes of the characters around a node.
#[derive(Clone, Copy, Default)]
struct Context {
    before: ByteMask,
    after: ByteMask,
}

impl Edges {
    const EMPTY: Self = Self { first: ByteMask::EMPTY, last: ByteMask::EMPTY, is_nullable: true };

    fn then(self, next: Self) -> Self {
        let (mut first, mut last) = (self.first, next.last);
        if self.is_nullable {
            first.extend(next.first);
        }
        if next.is_nullable {
            last.extend(self.last);
        }
        Self { first, last, is_nullable: self.is_nullable && next.is_nullable }
    }

    fn or(mut self, other: Self) -> Self {
        self.first.extend(other.first);
        self.last.extend(other.last);
        Self { is_nullable: self.is_nullable || other.is_nullable, ..self }
    }
}

impl<'a> Translation<'a> {
    fn new(rules: &'a [Expr]) -> Self {
        Self {
            is_regular: regular_rules(rules),
            rules,
            nodes: Vec::new(),
            bodies: HashMap::new(),
            order: Vec::new(),
        }
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        let mut is_regular = true;
        expr.for_each_rule(&mut |rule| is_regular &= self.is_regular[rule]);
        is_regular
    }

    /// Adds a rule and all that it refers to outside of terminals.
    fn add_rule(&mut self, rule: usize) {
        let mut open = vec![rule];
        while let Some(rule) = open.pop() {
            if self.bodies.contains_key(&rule) {
                continue;
            }
            let body = self.node_of(&self.rules[rule].clone(), &mut open);
            self.bodies.insert(rule, body);
            self.order.push(rule);
        }
    }

    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A node for a part of a rule, with the largest possible terminals. `used` gets the rules that it refers to.
    fn node_of(&mut self, expr: &Expr, used: &mut Vec<usize>) -> usize {
        if self.is_regular(expr) {
            return self.push(Node::Terminal(Terminal::new(expr.clone())));
        }
        let node = match expr {
            Expr::Sequence(items) => {
                let mut nodes = Vec::new();
                for run in items
                    .chunk_by(|one, next| self.is_regular(one) && self.is_regular(next))
                    .map(<[Expr]>::to_vec)
                    .collect::<Vec<_>>()
                {
                    nodes.push(self.node_of(&Expr::sequence(run), used));
                }
                Node::Sequence(nodes)
            }
            Expr::Choice(items) => {
                let (regular, others): (Vec<Expr>, Vec<Expr>) =
                    items.iter().cloned().partition(|item| self.is_regular(item));
                let mut nodes: Vec<usize> = others.iter().map(|item| self.node_of(item, used)).collect();
                if !regular.is_empty() {
                    nodes.push(self.node_of(&Expr::choice(regular), used));
                }
                Node::Choice(nodes)
            }
            Expr::Repeat(item, min, max) => Node::Repeat(self.node_of(item, used), *min, *max),
            Expr::Rule(rule) => {
                used.push(*rule);
                Node::Rule(*rule)
            }
            // It refers to no rule.
            Expr::Chars(_) => Node::Sequence(Vec::new()),
        };
        self.push(node)
    }

    /// Splits the terminals that could take in the beginning of what follows them; returns whether there were any.
    fn split_terminals(&mut self, root: usize, steps: &mut StepBudget) -> Result<bool, String> {
        for node in &mut self.nodes {
            if let Node::Terminal(terminal) = node {
                terminal.analyze(self.rules, steps)?;
            }
        }
        let contexts = self.contexts(root, steps)?;
        let found: Vec<(usize, &Terminal, Context)> = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(idx, node)| match node {
                Node::Terminal(terminal) => Some((idx, terminal, contexts[idx]?)),
                _ => None,
            })
            .collect();
        let mut greedy = Vec::new();
        for &(idx, longer, longer_context) in &found {
            if longer.is_single_char() {
                continue;
            }
            for &(_, terminal, context) in &found {
                if context.before.overlaps(longer_context.before)
                    && takes_in_too_much(longer, terminal, context.after, steps)?
                {
                    greedy.push(idx);
                    break;
                }
            }
        }
        for &idx in &greedy {
            self.split(idx);
        }
        Ok(!greedy.is_empty())
    }

    /// Replaces a terminal with its parts.
    fn split(&mut self, idx: usize) {
        let node = std::mem::replace(&mut self.nodes[idx], Node::Sequence(Vec::new()));
        let Node::Terminal(terminal) = node else { return };
        let mut terminals = |items: Vec<Expr>| -> Vec<usize> {
            items.into_iter().map(|item| self.push(Node::Terminal(Terminal::new(item)))).collect()
        };
        let parts = match terminal.into_expr() {
            Expr::Sequence(items) => Node::Sequence(terminals(items)),
            Expr::Choice(items) => Node::Choice(terminals(items)),
            Expr::Repeat(item, min, max) => {
                Node::Repeat(self.push(Node::Terminal(Terminal::new(*item))), min, max)
            }
            Expr::Rule(rule) => {
                if !self.bodies.contains_key(&rule) {
                    let body = self.push(Node::Terminal(Terminal::new(self.rules[rule].clone())));
                    self.bodies.insert(rule, body);
                    self.order.push(rule);
                }
                Node::Rule(rule)
            }
            chars @ Expr::Chars(_) => Node::Terminal(Terminal::new(chars)),
        };
        self.nodes[idx] = parts;
    }

    /// The characters around each node that is in use.
    fn contexts(&self, root: usize, steps: &mut StepBudget) -> Result<Vec<Option<Context>>, String> {
        let edges = self.edges(steps)?;
        let mut contexts: Vec<Option<Context>> = vec![None; self.nodes.len()];
        let mut of_rules: HashMap<usize, Context> = HashMap::new();
        let mut start = Context::default();
        start.before.insert(TEXT_START);
        of_rules.insert(root, start);
        let mut is_changed = true;
        while std::mem::take(&mut is_changed) {
            for rule in &self.order {
                let Some(&context) = of_rules.get(rule) else { continue };
                let mut open = vec![(self.bodies[rule], context)];
                while let Some((idx, context)) = open.pop() {
                    steps.take(1)?;
                    let known = contexts[idx].get_or_insert_default();
                    known.before.extend(context.before);
                    known.after.extend(context.after);
                    match &self.nodes[idx] {
                        Node::Terminal(_) => {}
                        Node::Choice(items) => open.extend(items.iter().map(|&item| (item, context))),
                        Node::Repeat(item, _, max) => {
                            let mut context = context;
                            if *max != Some(1) {
                                context.before.extend(edges[*item].last);
                                context.after.extend(edges[*item].first);
                            }
                            open.push((*item, context));
                        }
                        Node::Rule(rule) => {
                            let is_new = !of_rules.contains_key(rule);
                            let known = of_rules.entry(*rule).or_default();
                            is_changed |= known.before.extend(context.before)
                                | known.after.extend(context.after)
                                | is_new;
                        }
                        Node::Sequence(items) => {
                            let mut inner: Vec<Context> = vec![context; items.len()];
                            let mut before = Edges { last: context.before, ..Edges::default() };
                            for (inner, &item) in inner.iter_mut().zip(items) {
                                inner.before = before.last;
                                before = before.then(edges[item]);
                            }
                            let mut after = Edges { first: context.after, ..Edges::default() };
                            for (inner, &item) in inner.iter_mut().zip(items).rev() {
                                inner.after = after.first;
                                after = edges[item].then(after);
                            }
                            open.extend(items.iter().copied().zip(inner));
                        }
                    }
                }
            }
        }
        Ok(contexts)
    }

    /// The edges of each node.
    fn edges(&self, steps: &mut StepBudget) -> Result<Vec<Edges>, String> {
        let mut edges = vec![Edges::default(); self.nodes.len()];
        let mut is_changed = true;
        while std::mem::take(&mut is_changed) {
            for idx in 0..self.nodes.len() {
                let new = match &self.nodes[idx] {
                    Node::Terminal(terminal) => {
                        let (first, last, is_nullable) = terminal.edges();
                        Edges { first, last, is_nullable }
                    }
                    Node::Sequence(items) => {
                        steps.take(items.len())?;
                        items.iter().fold(Edges::EMPTY, |edge, &item| edge.then(edges[item]))
                    }
                    Node::Choice(items) => {
                        steps.take(items.len())?;
                        items.iter().fold(Edges::default(), |edge, &item| edge.or(edges[item]))
                    }
                    Node::Repeat(_, _, Some(0)) => Edges::EMPTY,
                    Node::Repeat(item, min, _) => {
                        Edges { is_nullable: *min == 0 || edges[*item].is_nullable, ..edges[*item] }
                    }
                    Node::Rule(rule) => edges[self.bodies[rule]],
                };
                steps.take(1)?;
                is_changed |= new != edges[idx];
                edges[idx] = new;
            }
        }
        Ok(edges)
    }

    fn to_lark(&self, root: usize) -> String {
        let mut writer = LarkWriter {
            rules: self.rules,
            text: format!("start: r{root}\n"),
            n_helpers: 0,
            tokens: HashMap::new(),
            used: Vec::new(),
        };
        for rule in &self.order {
            let body = self.node_to_lark(self.bodies[rule], &mut writer);
            let _ = writeln!(writer.text, "r{rule}: {body}");
        }
        writer.finish()
    }

    /// A node as what may follow the colon of a rule.
    fn node_to_lark(&self, idx: usize, writer: &mut LarkWriter) -> String {
        match &self.nodes[idx] {
            Node::Terminal(terminal) => writer.token(terminal.expr()),
            Node::Rule(rule) => format!("r{rule}"),
            Node::Sequence(items) if items.is_empty() => "\"\"".to_owned(),
            Node::Sequence(items) => self.atoms(items, writer).join(" "),
            Node::Choice(items) => self.atoms(items, writer).join(" | "),
            Node::Repeat(item, min, max) => repetition(&self.atoms(&[*item], writer).concat(), *min, *max),
        }
    }

    /// Nodes as parts of a rule. Groups become rules of their own: Lark's may not be nested deeply.
    fn atoms(&self, items: &[usize], writer: &mut LarkWriter) -> Vec<String> {
        let atom = |&idx: &usize| {
            let text = self.node_to_lark(idx, writer);
            match &self.nodes[idx] {
                Node::Terminal(_) | Node::Rule(_) => text,
                Node::Sequence(items) if items.is_empty() => text,
                _ => writer.helper("g", &text),
            }
        };
        items.iter().map(atom).collect()
    }
}

/// Whether each rule has no recursion, itself and in all rules that it refers to.
fn regular_rules(rules: &[Expr]) -> Vec<bool> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    let mut n_open = vec![0usize; rules.len()];
    for (idx, rule) in rules.iter().enumerate() {
        rule.for_each_rule(&mut |used| {
            users[used].push(idx);
            n_open[idx] += 1;
        });
    }
    let mut is_regular = vec![false; rules.len()];
    let mut ready: Vec<usize> = (0..rules.len()).filter(|&idx| n_open[idx] == 0).collect();
    while let Some(rule) = ready.pop() {
        is_regular[rule] = true;
        for &user in &users[rule] {
            n_open[user] -= 1;
            if n_open[user] == 0 {
                ready.push(user);
            }
        }
    }
    is_regular
}

fn repetition(atom: &str, min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => format!("{atom}*"),
        (1, None) => format!("{atom}+"),
        (0, Some(1)) => format!("{atom}?"),
        (1, Some(1)) => atom.to_owned(),
        (_, Some(0)) => "\"\"".to_owned(),
        (min, None) => format!("{atom}{{{min},}}"),
        (min, Some(max)) => format!("{atom}{{{min},{max}}}"),
    }
}

/// Writes rules and terminals.
struct LarkWriter<'a> {
    rules: &'a [Expr],
    text: String,
    n_helpers: usize,
    /// Names of the terminals so far.
    tokens: HashMap<Expr, String>,
    /// Rules that terminals refer to, in the order of their first use.
    used: Vec<usize>,
}

impl LarkWriter<'_> {
    /// Defines a rule or terminal for a group; returns its name.
    fn helper(&mut self, prefix: &str, body: &str) -> String {
        let name = format!("{prefix}{}", self.n_helpers);
        self.n_helpers += 1;
        let _ = writeln!(self.text, "{name}: {body}");
        name
    }

    /// An expression without recursion as one part of a rule or terminal.
    fn token(&mut self, expr: &Expr) -> String {
        match expr {
            Expr::Chars(set) => match set.single() {
                Some(c) => literal(&c.to_string()),
                None => format!("/{}/", set.to_regex()),
            },
            Expr::Rule(rule) => {
                if !self.used.contains(rule) {
                    self.used.push(*rule);
                }
                format!("R{rule}")
            }
            Expr::Sequence(items) if items.iter().all(|item| single_char(item).is_some()) => {
                literal(&items.iter().filter_map(single_char).collect::<String>())
            }
            group => {
                if let Some(name) = self.tokens.get(group) {
                    return name.clone();
                }
                let body = self.token_body(group);
                let name = self.helper("T", &body);
                self.tokens.insert(group.clone(), name.clone());
                name
            }
        }
    }

    /// An expression as what may follow the colon of a terminal.
    fn token_body(&mut self, expr: &Expr) -> String {
        match expr {
            Expr::Chars(_) | Expr::Rule(_) => self.token(expr),
            Expr::Sequence(items) => {
                let runs =
                    items.chunk_by(|one, next| single_char(one).is_some() && single_char(next).is_some());
                let parts: Vec<String> = runs.map(|run| self.part(&Expr::sequence(run.to_vec()))).collect();
                if parts.is_empty() { literal("") } else { parts.join(" ") }
            }
            Expr::Choice(items) => {
                let parts: Vec<String> = items.iter().map(|item| self.part(item)).collect();
                parts.join(" | ")
            }
            Expr::Repeat(item, min, max) => repetition(&self.token(item), *min, *max),
        }
    }

    /// An expression as a part of a sequence or choice, which may be repeated.
    fn part(&mut self, expr: &Expr) -> String {
        match expr {
            Expr::Repeat(item, min, max) => repetition(&self.token(item), *min, *max),
            expr => self.token(expr),
        }
    }

    /// Writes the rules that terminals refer to.
    fn finish(mut self) -> String {
        let mut n_written = 0;
        while let Some(&rule) = self.used.get(n_written) {
            let body = self.token_body(&self.rules[rule]);
            let _ = writeln!(self.text, "R{rule}: {body}");
            n_written += 1;
        }
        self.text
    }
}

fn single_char(expr: &Expr) -> Option<char> {
    match expr {
        Expr::Chars(set) => set.single(),
        _ => None,
    }
}

/// A text as it is.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::TokEnv;

    use super::*;
    use crate::inference::grammar::new_factory;
    use crate::inference::grammar::trial::ByteVocabulary;

    /// Whether a grammar allows a text, byte by byte, and whether the text may end there.
    fn accepts(lark: &str, text: &str) -> bool {
        let vocabulary: TokEnv = Arc::new(ByteVocabulary::new(300));
        let factory = new_factory(&vocabulary).unwrap();
        let mut parser = factory
            .create_parser(TopLevelGrammar::from_lark(lark.to_owned()))
            .unwrap_or_else(|e| panic!("{e}\n{lark}"));
        parser.start_without_prompt();
        for byte in text.bytes() {
            if !parser.validate_tokens_raw(&[byte.into()]).is_ok_and(|n| n == 1) {
                return false;
            }
            parser.consume_token(byte.into()).unwrap();
        }
        parser.is_accepting()
    }

    const ARITHMETIC: &str = r#"root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*"#;

    const JSON: &str = r#"root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= ([ \t\n] ws)?"#;

    #[test]
    fn translations_accept_the_same_texts() {
        for (gbnf, yes, no) in [
            ("root ::= \"yes\" | \"no\"", &["yes", "no"][..], &["", "ye", "yesno"][..]),
            ("root ::= [^a-c\\n]{2,3} \"é\"?", &["xy", "x😀é", "xyzé"], &["x", "ax", "x\ny", "wxyz"]),
            ("root ::= \"a\"{0} \"b\"", &["b"], &["ab", ""]),
            ("root ::= \"\"", &[""], &["a"]),
            ("root ::= .+ \"/\\\\\\\"\"", &["\n/\\\"", "ab/\\\""], &["/\\\"", "a"]),
            ("root ::= a | b\na ::= \"x\" b?\nb ::= \"y\" a?", &["x", "xy", "yxyx"], &["", "xx", "yy"]),
            ("root ::= \"a\" root | \"b\"", &["b", "aab"], &["a", "ba"]),
            ("root ::= root \"a\" | \"b\"", &["b", "baa"], &["a", "ab"]),
            ("root ::= \"(\" root? \")\"", &["()", "((()))"], &["(", "())", "()()"]),
            (
                "root ::= \"(\" root \")\" | [a-z]+ [ ]* | [a-z]+ \" x\"",
                &["(ab  )", "((a x))"],
                &["(a", "(a x "],
            ),
            (
                "root ::= p | \"if\" p\np ::= [a-z]+ | \"(\" p \")\"",
                &["if", "ifif", "if(if)", "(iff)"],
                &["()", "if("],
            ),
            ("root ::= p \"aa\"\np ::= \"a\"* | \"(\" p \")\"", &["aa", "aaaaa", "(a)aa"], &["a", "(a)a"]),
            ("root ::= p [é-ü]\np ::= [ñ]* | \"(\" p \")\"", &["é", "ñé", "ñññ", "(ñ)ü"], &["", "(ñ)"]),
            (ARITHMETIC, &["a=1\n", "a_1 *(b +2) = 3\n", "x=1\n \ny=2 \n\n\n"], &["a=1", "=1\n", "a=1\nb"]),
            (
                JSON,
                &["{}", "{ \"a\": [1, -2.5e3, {\"b\": null } ] , \"é\": \"\\u00e9\\n\"}\n"],
                &["[]", "{\"a\"}", "{\"a\": 01}", "{\"a\": \"\n\"}"],
            ),
        ] {
            let lark = gbnf_to_lark(gbnf).unwrap_or_else(|e| panic!("{e}: {gbnf}"));
            for text in yes {
                assert!(accepts(&lark, text), "{gbnf}\nmust accept {text:?}:\n{lark}");
            }
            for text in no {
                assert!(!accepts(&lark, text), "{gbnf}\nmust not accept {text:?}:\n{lark}");
            }
        }
    }

    #[test]
    fn grammars_without_recursion_are_one_terminal() {
        let lark = gbnf_to_lark("root ::= a (\",\" ws a)*\na ::= [0-9]+\nws ::= (\" \" ws)?").unwrap();
        let rules: Vec<&str> = lark.lines().filter(|line| line.starts_with('r')).collect();
        assert!(matches!(rules[..], [rule] if rule.starts_with("r0: T")), "{lark}");
        // Strings, numbers and words stay whole.
        let lark = gbnf_to_lark(JSON).unwrap();
        assert!(!lark.contains("r4:") && !lark.contains("r5:"), "{lark}");
    }

    #[test]
    fn translations_are_bounded() {
        let doubling: String = (0..60).map(|n| format!("a{n} ::= a{0} a{0}\n", n + 1)).collect();
        for text in [
            format!("root ::= a0 | \"(\" root \")\"\n{doubling}a60 ::= \"a\"?"),
            format!("root ::= {}\"a\" root?", "[a-z]* ".repeat(10_000)),
            format!("root ::= \"(\" root \")\" | {}\"\"", "[ab]* [bc] \"x\" root | ".repeat(3000)),
            (0..8000).map(|n| format!("r{n} ::= r{} r0?\n", n + 1)).collect::<String>()
                + "r8000 ::= \"a\"\nroot ::= r0",
        ] {
            let start = std::time::Instant::now();
            let result = gbnf_to_lark(&text);
            assert!(start.elapsed().as_secs() < 20, "{:.60} {:?}", text, start.elapsed());
            if let Err(e) = result {
                assert!(e.contains("complex"), "{e}");
            }
        }
    }
}
