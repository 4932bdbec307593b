//! A limit on the tokens of a model's thought: when they are used up, the tokens that close it are forced.

/// A limit on the tokens of a thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThoughtBudget {
    /// Text that opens a thought.
    pub open: String,
    /// Text that closes it.
    pub close: String,
    /// Whether the prompt has opened it.
    pub is_open: bool,
    /// Whether a thought may be opened anywhere, and not only at the beginning of the text.
    pub may_reopen: bool,
    /// Most tokens of all thoughts.
    pub max_tokens: usize,
    /// The tokens that close a thought; at least one.
    pub closing: Vec<u32>,
}

/// A thought's tokens, counted.
#[derive(Debug)]
pub struct ThoughtCounter {
    budget: ThoughtBudget,
    phase: ThoughtPhase,
    /// The end of the text, which may be the beginning of a mark.
    tail: Vec<u8>,
    n_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThoughtPhase {
    Before,
    Open,
    /// The next token to force.
    Closing(usize),
    After,
}

impl ThoughtCounter {
    /// The state at the beginning of a text.
    pub fn new(budget: ThoughtBudget) -> Self {
        let phase = match budget.is_open {
            true if budget.max_tokens == 0 => ThoughtPhase::Closing(0),
            true => ThoughtPhase::Open,
            false => ThoughtPhase::Before,
        };
        Self { budget, phase, tail: Vec::new(), n_tokens: 0 }
    }

    /// The token that must come next, if the budget is used up.
    pub fn forced(&self) -> Option<u32> {
        match self.phase {
            ThoughtPhase::Closing(idx) => self.budget.closing.get(idx).copied(),
            _ => None,
        }
    }

    /// Takes note of a token, whose text is `bytes`.
    pub fn record(&mut self, bytes: &[u8]) {
        match self.phase {
            ThoughtPhase::After => {}
            ThoughtPhase::Closing(idx) if idx + 1 < self.budget.closing.len() => {
                self.phase = ThoughtPhase::Closing(idx + 1);
            }
            ThoughtPhase::Closing(_) => self.end(),
            ThoughtPhase::Before => {
                self.tail.extend_from_slice(bytes);
                let open = self.budget.open.as_bytes();
                let begun = self.tail.trim_ascii_start();
                if find(begun, open).is_some_and(|start| start == 0 || self.budget.may_reopen) {
                    self.tail.clear();
                    self.phase = ThoughtPhase::Open;
                    self.close_if_used_up();
                } else if self.budget.may_reopen {
                    self.keep_tail(self.budget.open.len());
                } else if !open.starts_with(begun) {
                    self.phase = ThoughtPhase::After;
                }
            }
            ThoughtPhase::Open => {
                self.n_tokens += 1;
                self.tail.extend_from_slice(bytes);
                if find(&self.tail, self.budget.close.as_bytes()).is_some() {
                    self.end();
                } else {
                    self.keep_tail(self.budget.close.len());
                    self.close_if_used_up();
                }
            }
        }
    }

    fn end(&mut self) {
        self.tail.clear();
        self.phase = if self.budget.may_reopen { ThoughtPhase::Before } else { ThoughtPhase::After };
    }

    fn close_if_used_up(&mut self) {
        if self.n_tokens >= self.budget.max_tokens {
            self.phase = ThoughtPhase::Closing(0);
        }
    }

    fn keep_tail(&mut self, n_bytes: usize) {
        let n_over = self.tail.len().saturating_sub(n_bytes);
        self.tail.drain(..n_over);
    }
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len().max(1)).position(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a model that says `said`, a byte per token, where `|` closes a thought.
    fn generated(said: &str, budget: &ThoughtBudget) -> String {
        let mut counter = ThoughtCounter::new(budget.clone());
        let mut said = said.bytes();
        let mut text = String::new();
        loop {
            let byte = match counter.forced() {
                Some(token) => token as u8,
                None => match said.next() {
                    Some(byte) => byte,
                    None => return text,
                },
            };
            counter.record(&[byte]);
            text.push(char::from(byte));
        }
    }

    #[test]
    fn a_thought_is_closed_when_its_budget_is_used_up() {
        let budget = |is_open, may_reopen, max_tokens| ThoughtBudget {
            open: "<t>".to_owned(),
            close: "</t>".to_owned(),
            is_open,
            may_reopen,
            max_tokens,
            closing: "|</t>".bytes().map(u32::from).collect(),
        };
        for (said, is_open, may_reopen, max_tokens, expected) in [
            ("<t>abcdef", false, false, 3, "<t>abc|</t>def"),
            (" <t>abcdef", false, false, 0, " <t>|</t>abcdef"),
            ("abcdef", true, false, 2, "ab|</t>cdef"),
            ("abcdef", true, false, 0, "|</t>abcdef"),
            ("a</t>bcdefgh", true, false, 6, "a</t>bcdefgh"),
            ("Yes <t>abc", false, false, 1, "Yes <t>abc"),
            ("Yes <t>abc", false, true, 1, "Yes <t>a|</t>bc"),
            ("<t>a</t><t>bcdefg", false, true, 7, "<t>a</t><t>bc|</t>defg"),
        ] {
            let text = generated(said, &budget(is_open, may_reopen, max_tokens));
            assert_eq!(text, expected, "{said}");
        }
    }
}
