//! What a model thinks before it answers, told from the answer: models that reason write it between `<think>` and
//! `</think>`, at the beginning.

use crate::inference::overlap;

/// Where a text has got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but space has come.
    Beginning,
    /// The thought is open, and something but space has come of it or not.
    Thinking {
        has_begun: bool,
    },
    /// The thought has ended, and nothing but space has come since.
    Thought,
    Answering,
}

/// Splits the text of one answer as it comes.
#[derive(Debug, Clone)]
pub struct Reasoning {
    state: State,
    /// Text that may be the beginning of a tag, or space that may be at an end.
    held: String,
    /// Tokens of the thought, its tags included, and those of which it is not known yet.
    n_tokens: usize,
    n_undecided: usize,
    has_thought: bool,
}

/// A piece of text in its two parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    pub reasoning: String,
    pub content: String,
}

pub const OPEN: &str = "<think>";
pub const CLOSE: &str = "</think>";

impl Reasoning {
    /// Of an answer to a prompt that ends like this: some templates open the thought themselves.
    pub fn after(prompt: &str) -> Self {
        let is_open = prompt.trim_end().ends_with(OPEN);
        let state = if is_open { State::Thinking { has_begun: false } } else { State::Beginning };
        Self { state, held: String::new(), n_tokens: 0, n_undecided: 0, has_thought: is_open }
    }

    /// Whether the thought has begun, and not ended.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Thinking { .. })
    }

    /// Tokens of what was thought, tags included.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Takes more text, which was `n_tokens` tokens.
    pub fn push(&mut self, text: &str, n_tokens: usize) -> Split {
        self.held.push_str(text);
        self.n_undecided += n_tokens;
        let was_over = matches!(self.state, State::Thought | State::Answering);
        let split = self.split();
        if self.state != State::Beginning {
            let decided = std::mem::take(&mut self.n_undecided);
            self.n_tokens += if self.has_thought && !was_over { decided } else { 0 };
        }
        split
    }

    fn split(&mut self) -> Split {
        let mut split = Split::default();
        loop {
            match self.state {
                State::Beginning => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::Thinking { has_begun: false };
                        self.has_thought = true;
                    } else if OPEN.starts_with(begun) {
                        return split;
                    } else {
                        self.state = State::Answering;
                    }
                }
                State::Thinking { has_begun: false } => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.state = State::Thinking { has_begun: true };
                }
                State::Thinking { has_begun: true } => {
                    let Some(end) = self.held.find(CLOSE) else {
                        // What may be the tag, and space before it, waits for what comes next.
                        let n_sure = self.held.len() - overlap(&self.held, CLOSE);
                        let n_given = self.held[..n_sure].trim_end().len();
                        split.reasoning.extend(self.held.drain(..n_given));
                        return split;
                    };
                    split.reasoning += self.held[..end].trim_end();
                    self.held.drain(..end + CLOSE.len());
                    self.state = State::Thought;
                }
                State::Thought => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.state = State::Answering;
                }
                State::Answering => {
                    split.content += &std::mem::take(&mut self.held);
                    return split;
                }
            }
        }
    }

    /// What was held back when no more text comes.
    pub fn finish(&mut self) -> Split {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Beginning | State::Answering => Split { content: rest, ..Split::default() },
            State::Thinking { .. } => Split { reasoning: rest, ..Split::default() },
            State::Thought => Split::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces of `n` bytes, and how many pieces were thought.
    fn split(prompt: &str, text: &str, n: usize) -> (String, String, usize) {
        let mut reasoning = Reasoning::after(prompt);
        let mut all = Split::default();
        let pieces = text.as_bytes().chunks(n).map(|piece| std::str::from_utf8(piece).unwrap());
        let splits: Vec<Split> = pieces.map(|piece| reasoning.push(piece, 1)).collect();
        for split in splits.into_iter().chain([reasoning.finish()]) {
            assert!(split.reasoning.is_empty() || all.content.is_empty(), "thoughts come first");
            all.reasoning += &split.reasoning;
            all.content += &split.content;
        }
        (all.reasoning, all.content, reasoning.n_tokens())
    }

    #[test]
    fn a_thought_is_told_from_the_answer_wherever_the_pieces_end() {
        for (prompt, text, reasoning, content) in [
            ("user: hi\n", "<think>\nA < b,\n\nso c.\n</think>\n\nYes.\n", "A < b,\n\nso c.", "Yes.\n"),
            ("assistant\n<think>\n", "so c. </think> Yes", "so c.", "Yes"),
            ("", "\n<think>\n\n</think>\n\nYes", "", "Yes"),
            ("", "Yes <think>no</think>", "", "Yes <think>no</think>"),
            ("", " <thin ice", "", " <thin ice"),
            ("", "  ", "", "  "),
            ("", "<think>it never ends </thin", "it never ends </thin", ""),
            ("", "<think>x</think>", "x", ""),
            ("", "<think>x</think>a</think>b", "x", "a</think>b"),
        ] {
            for n in [1, 2, 3, 7, 100] {
                let (found, said, _) = split(prompt, text, n);
                assert_eq!(
                    (found.as_str(), said.as_str()),
                    (reasoning, content),
                    "{text:?} in pieces of {n}"
                );
            }
        }
        assert_eq!(split("", "<think>abc</think>de", 1).2, 18);
        assert_eq!(split("", "<think>abc</think>de", 100).2, 1);
        assert_eq!(split("", "abc", 1).2, 0);
    }
}
