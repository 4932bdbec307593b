//! Separation of a model's reasoning from its answer. Models that reason write their reasoning first, between
//! `<think>` and `</think>`.

use crate::inference::overlap;

/// The part of the text that the parser is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReasoningPhase {
    /// Nothing but whitespace so far.
    Start,
    /// Between the tags.
    Reasoning {
        /// Whether anything but whitespace has followed the opening tag.
        has_text: bool,
    },
    /// After the closing tag, with nothing but whitespace since.
    Closed,
    /// In the answer.
    Answer,
}

/// An incremental parser that splits the text of one choice into reasoning and content.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    phase: ReasoningPhase,
    /// Text held back because it may be the beginning of a tag, or trailing whitespace.
    held: String,
    /// Tokens of the reasoning, its tags included.
    n_tokens: usize,
    /// Tokens received before it is known whether the text begins with reasoning.
    n_undecided_tokens: usize,
    has_reasoning: bool,
}

/// A piece of text, split.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReasoningSplit {
    /// Text between the tags.
    pub reasoning: String,
    /// Text of the answer.
    pub content: String,
}

/// The tag that opens the reasoning.
pub const OPEN: &str = "<think>";

/// The tag that closes the reasoning.
pub const CLOSE: &str = "</think>";

impl ReasoningParser {
    /// A parser for the response to `prompt`. Reasoning is open from the start if the prompt ends with the opening
    /// tag, which some templates add.
    pub fn for_prompt(prompt: &str) -> Self {
        let is_open = prompt.trim_end().ends_with(OPEN);
        let phase =
            if is_open { ReasoningPhase::Reasoning { has_text: false } } else { ReasoningPhase::Start };
        Self { phase, held: String::new(), n_tokens: 0, n_undecided_tokens: 0, has_reasoning: is_open }
    }

    /// Whether the text is between the tags.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, ReasoningPhase::Reasoning { .. })
    }

    /// Number of reasoning tokens, tags included.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Splits more text, of `n_tokens` tokens.
    pub fn push(&mut self, text: &str, n_tokens: usize) -> ReasoningSplit {
        self.held.push_str(text);
        self.n_undecided_tokens += n_tokens;
        let was_closed = matches!(self.phase, ReasoningPhase::Closed | ReasoningPhase::Answer);
        let split = self.split();
        if self.phase != ReasoningPhase::Start {
            let decided = std::mem::take(&mut self.n_undecided_tokens);
            self.n_tokens += if self.has_reasoning && !was_closed { decided } else { 0 };
        }
        split
    }

    fn split(&mut self) -> ReasoningSplit {
        let mut split = ReasoningSplit::default();
        loop {
            match self.phase {
                ReasoningPhase::Start => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.phase = ReasoningPhase::Reasoning { has_text: false };
                        self.has_reasoning = true;
                    } else if OPEN.starts_with(begun) {
                        return split;
                    } else {
                        self.phase = ReasoningPhase::Answer;
                    }
                }
                ReasoningPhase::Reasoning { has_text: false } => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.phase = ReasoningPhase::Reasoning { has_text: true };
                }
                ReasoningPhase::Reasoning { has_text: true } => {
                    let Some(end) = self.held.find(CLOSE) else {
                        // Hold back a possible beginning of the tag, and whitespace before it.
                        let n_certain = self.held.len() - overlap(&self.held, CLOSE);
                        let n_released = self.held[..n_certain].trim_end().len();
                        split.reasoning.extend(self.held.drain(..n_released));
                        return split;
                    };
                    split.reasoning += self.held[..end].trim_end();
                    self.held.drain(..end + CLOSE.len());
                    self.phase = ReasoningPhase::Closed;
                }
                ReasoningPhase::Closed => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.phase = ReasoningPhase::Answer;
                }
                ReasoningPhase::Answer => {
                    split.content += &std::mem::take(&mut self.held);
                    return split;
                }
            }
        }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> ReasoningSplit {
        let rest = std::mem::take(&mut self.held);
        match self.phase {
            ReasoningPhase::Start | ReasoningPhase::Answer => {
                ReasoningSplit { content: rest, ..ReasoningSplit::default() }
            }
            ReasoningPhase::Reasoning { .. } => {
                ReasoningSplit { reasoning: rest, ..ReasoningSplit::default() }
            }
            ReasoningPhase::Closed => ReasoningSplit::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning and content of a text that arrives in pieces of `n` bytes, and the number of pieces with reasoning.
    fn split(prompt: &str, text: &str, n: usize) -> (String, String, usize) {
        let mut reasoning = ReasoningParser::for_prompt(prompt);
        let mut all = ReasoningSplit::default();
        let pieces = text.as_bytes().chunks(n).map(|piece| std::str::from_utf8(piece).unwrap());
        let splits: Vec<ReasoningSplit> = pieces.map(|piece| reasoning.push(piece, 1)).collect();
        for split in splits.into_iter().chain([reasoning.finish()]) {
            assert!(split.reasoning.is_empty() || all.content.is_empty(), "reasoning comes first");
            all.reasoning += &split.reasoning;
            all.content += &split.content;
        }
        (all.reasoning, all.content, reasoning.n_tokens())
    }

    #[test]
    fn reasoning_is_split_off_wherever_the_pieces_end() {
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
                let (found, answer, _) = split(prompt, text, n);
                assert_eq!(
                    (found.as_str(), answer.as_str()),
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
