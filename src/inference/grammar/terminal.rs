//! Terminals of a translated grammar: parts without recursion, as automata over the first bytes of characters.

use super::char_set::ByteMask;
use super::gbnf::Expr;

/// Most characters of a terminal. A larger one is split.
const MAX_POSITIONS: usize = 400;

/// Most steps of a translation, of some nanoseconds each.
const MAX_STEPS: usize = 20_000_000;

/// The steps that a translation has taken.
#[derive(Default)]
pub struct StepBudget(usize);

impl StepBudget {
    /// Counts `n` steps.
    ///
    /// # Errors
    /// When there are too many.
    pub fn take(&mut self, n: usize) -> Result<(), String> {
        self.0 += n;
        if self.0 <= MAX_STEPS {
            return Ok(());
        }
        Err("it is too complex to be translated; send a simpler one, or one in Lark's form".to_owned())
    }
}

/// A part of a grammar that is matched as a whole.
pub struct Terminal {
    expr: Expr,
    automaton: Option<Automaton>,
}

/// A Glushkov automaton: its positions are the characters of an expression. Bounds of repetitions other than 0 and 1
/// are ignored, so it may match more.
#[derive(Default)]
struct Automaton {
    /// First bytes of the characters of each position.
    bytes: Vec<ByteMask>,
    /// The positions that may follow each position.
    next: Vec<Vec<usize>>,
    is_last: Vec<bool>,
    first: Vec<usize>,
    is_nullable: bool,
    /// Whether the expression has too many positions. Then the automaton is that of any text.
    is_too_large: bool,
}

/// The positions at the edges of a part of an expression.
struct Part {
    first: Vec<usize>,
    last: Vec<usize>,
    is_nullable: bool,
}

impl Terminal {
    /// A terminal of an expression without recursion.
    pub fn new(expr: Expr) -> Self {
        Self { expr, automaton: None }
    }

    /// The expression.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The expression.
    pub fn into_expr(self) -> Expr {
        self.expr
    }

    /// Whether it is a single character, which cannot be split.
    pub fn is_single_char(&self) -> bool {
        matches!(self.expr, Expr::Chars(_))
    }

    /// Makes the automaton, if that has not been done.
    ///
    /// # Errors
    /// When this takes too many steps.
    pub fn analyze(&mut self, rules: &[Expr], steps: &mut StepBudget) -> Result<(), String> {
        if self.automaton.is_none() {
            self.automaton = Some(Automaton::from_expr(&self.expr, rules, steps)?);
        }
        Ok(())
    }

    /// First bytes of the first and last characters of its texts, and whether one of the texts is empty.
    pub fn edges(&self) -> (ByteMask, ByteMask, bool) {
        let Some(automaton) = &self.automaton else { return (ByteMask::ALL, ByteMask::ALL, true) };
        let last = (0..automaton.bytes.len()).filter(|&position| automaton.is_last[position]);
        let is_nullable = automaton.is_nullable;
        (automaton.union(automaton.first.iter().copied()), automaton.union(last), is_nullable)
    }
}

/// Whether `longer`, beginning at the same position as `terminal`, could go on after a text of `terminal` with one of
/// the characters `after`, which may follow it by the rules.
///
/// # Errors
/// When finding out takes too many steps.
pub fn takes_in_too_much(
    longer: &Terminal,
    terminal: &Terminal,
    after: ByteMask,
    steps: &mut StepBudget,
) -> Result<bool, String> {
    steps.take(1)?;
    let (Some(longer), Some(short)) = (&longer.automaton, &terminal.automaton) else { return Ok(true) };
    // What is too large is split first.
    if after == ByteMask::EMPTY || longer.is_too_large || short.is_too_large {
        return Ok(after != ByteMask::EMPTY && longer.is_too_large);
    }
    let mut seen = vec![false; longer.bytes.len() * short.bytes.len()];
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut add = |nexts: (&[usize], &[usize]), open: &mut Vec<_>, steps: &mut StepBudget| {
        steps.take(nexts.0.len() * nexts.1.len())?;
        for &one in nexts.0 {
            for &other in nexts.1 {
                let pair = one * short.bytes.len() + other;
                if !seen[pair] && longer.bytes[one].overlaps(short.bytes[other]) {
                    seen[pair] = true;
                    open.push((one, other));
                }
            }
        }
        Ok::<(), String>(())
    };
    add((&longer.first, &short.first), &mut open, steps)?;
    while let Some((one, other)) = open.pop() {
        if short.is_last[other] && longer.union(longer.next[one].iter().copied()).overlaps(after) {
            return Ok(true);
        }
        add((&longer.next[one], &short.next[other]), &mut open, steps)?;
    }
    Ok(false)
}

impl Automaton {
    fn from_expr(expr: &Expr, rules: &[Expr], steps: &mut StepBudget) -> Result<Self, String> {
        let mut automaton = Self::default();
        let part = automaton.add(expr, rules, steps)?;
        if automaton.bytes.len() > MAX_POSITIONS {
            return Ok(Self {
                bytes: vec![ByteMask::ALL],
                next: vec![vec![0]],
                is_last: vec![true],
                first: vec![0],
                is_nullable: true,
                is_too_large: true,
            });
        }
        automaton.is_last = vec![false; automaton.bytes.len()];
        part.last.iter().for_each(|&position| automaton.is_last[position] = true);
        for next in &mut automaton.next {
            next.sort_unstable();
            next.dedup();
        }
        (automaton.first, automaton.is_nullable) = (part.first, part.is_nullable);
        Ok(automaton)
    }

    /// Adds the positions of an expression, unless there are too many.
    fn add(&mut self, expr: &Expr, rules: &[Expr], steps: &mut StepBudget) -> Result<Part, String> {
        steps.take(1)?;
        let empty = || Part { first: Vec::new(), last: Vec::new(), is_nullable: true };
        if self.bytes.len() > MAX_POSITIONS {
            return Ok(empty());
        }
        Ok(match expr {
            Expr::Chars(set) => {
                self.bytes.push(set.first_bytes());
                self.next.push(Vec::new());
                let position = self.bytes.len() - 1;
                Part { first: vec![position], last: vec![position], is_nullable: false }
            }
            Expr::Sequence(items) => {
                let mut whole = empty();
                for item in items {
                    let part = self.add(item, rules, steps)?;
                    self.connect(&whole.last, &part.first, steps)?;
                    if whole.is_nullable {
                        whole.first.extend(&part.first);
                    }
                    if part.is_nullable {
                        whole.last.extend(part.last);
                    } else {
                        whole.last = part.last;
                    }
                    whole.is_nullable &= part.is_nullable;
                }
                whole
            }
            Expr::Choice(items) => {
                let mut whole = Part { is_nullable: false, ..empty() };
                for item in items {
                    let part = self.add(item, rules, steps)?;
                    whole.first.extend(part.first);
                    whole.last.extend(part.last);
                    whole.is_nullable |= part.is_nullable;
                }
                whole
            }
            Expr::Repeat(_, _, Some(0)) => empty(),
            Expr::Repeat(item, min, max) => {
                let part = self.add(item, rules, steps)?;
                if *max != Some(1) {
                    self.connect(&part.last, &part.first, steps)?;
                }
                Part { is_nullable: part.is_nullable || *min == 0, ..part }
            }
            Expr::Rule(rule) => return self.add(&rules[*rule], rules, steps),
        })
    }

    /// Lets each position of `first` follow each of `last`.
    fn connect(&mut self, last: &[usize], first: &[usize], steps: &mut StepBudget) -> Result<(), String> {
        steps.take(last.len() * first.len())?;
        last.iter().for_each(|&position| self.next[position].extend(first));
        Ok(())
    }

    fn union(&self, positions: impl Iterator<Item = usize>) -> ByteMask {
        let mut mask = ByteMask::EMPTY;
        positions.for_each(|position| {
            mask.extend(self.bytes[position]);
        });
        mask
    }
}
