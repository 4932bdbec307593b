//! Separation of a model's reasoning from its answer. Models that reason write their reasoning first, between marks
//! that their template knows.

pub use super::harmony::ReasoningSplit;
use super::harmony::{self, HarmonyParser};
use crate::inference::overlap;

/// The marks around a family's reasoning.
#[derive(Debug, PartialEq, Eq)]
pub struct ReasoningMarks {
    /// Texts that occur, all of them, in every template of the family.
    markers: &'static [&'static str],
    /// Mark that opens the reasoning.
    pub open: &'static str,
    /// The beginning of `open` that may be a token of its own.
    pub open_token: &'static str,
    /// Mark that closes the reasoning.
    pub close: &'static str,
    /// Text that closes reasoning whose budget is used up.
    pub forced_close: &'static str,
    /// Marks around the answer, which are no part of it; may be empty.
    answer: [&'static str; 2],
    /// Whether reasoning and answers stand in Harmony's channels.
    pub is_harmony: bool,
}

const THINK: ReasoningMarks = ReasoningMarks {
    markers: &["<think>"],
    open: "<think>",
    open_token: "<think>",
    close: "</think>",
    forced_close: "\n</think>",
    answer: ["", ""],
    is_harmony: false,
};

/// The marks of all families. The first whose markers all occur in a template are chosen.
const FAMILIES: &[ReasoningMarks] = &[
    ReasoningMarks {
        markers: &["<|channel|>", "<|message|>", "analysis"],
        open: harmony::THOUGHT_OPEN,
        open_token: "",
        close: harmony::THOUGHT_CLOSE,
        forced_close: harmony::FORCED_CLOSE,
        answer: ["", ""],
        is_harmony: true,
    },
    // Gemma 4.
    marks(&["<|channel>thought"], "<|channel>thought\n", "<channel|>"),
    marks(&["<seed:think>"], "<seed:think>", "</seed:think>"),
    // Mistral's.
    marks(&["[THINK]"], "[THINK]", "[/THINK]"),
    marks(&["◁think▷"], "◁think▷", "◁/think▷"),
    ReasoningMarks {
        answer: ["<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        ..marks(&["<|START_THINKING|>"], "<|START_THINKING|>", "<|END_THINKING|>")
    },
    // Kimi K3.
    ReasoningMarks {
        open_token: "<|open|>",
        answer: ["<|open|>response<|sep|>", "<|close|>response<|sep|>"],
        ..marks(&["<|open|>", "open_tag('think'"], "<|open|>think<|sep|>", "<|close|>think<|sep|>")
    },
    // Apriel.
    ReasoningMarks {
        answer: ["", "[END FINAL RESPONSE]"],
        ..marks(&["[BEGIN FINAL RESPONSE]"], "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]")
    },
    // Granite 3.2 and 3.3.
    marks(&["Here is my thought process:"], "Here is my thought process:", "Here is my response:"),
    ReasoningMarks { markers: &["<think>", "<response>"], answer: ["<response>", "</response>"], ..THINK },
    THINK,
    // The model opens its reasoning by itself, and the template only leaves it out of later prompts.
    ReasoningMarks { markers: &["</think>"], ..THINK },
    marks(&["<thought>", "</thought>"], "<thought>", "</thought>"),
];

/// Marks that may be tokens, with nothing around the answer.
const fn marks(markers: &'static [&'static str], open: &'static str, close: &'static str) -> ReasoningMarks {
    let open_token = if markers.len() == 1 { markers[0] } else { open };
    ReasoningMarks {
        markers,
        open,
        open_token,
        close,
        forced_close: close,
        answer: ["", ""],
        is_harmony: false,
    }
}

impl ReasoningMarks {
    /// The marks of a model, by its template; `contains` says whether a text occurs in it.
    pub fn for_template(contains: impl Fn(&str) -> bool) -> Option<&'static Self> {
        FAMILIES.iter().find(|marks| marks.markers.iter().all(|marker| contains(marker)))
    }

    /// Texts that may be special tokens.
    pub fn marks(&self) -> Vec<&'static str> {
        if self.is_harmony {
            return harmony::MARKS.to_vec();
        }
        let own = [self.open.trim_end(), self.open_token, self.close].into_iter().chain(self.answer);
        let parts =
            ["<|open|>", "<|close|>", "<|sep|>"].into_iter().filter(|_| self.open_token == "<|open|>");
        own.chain(parts).filter(|mark| !mark.is_empty()).collect()
    }

    /// Text after which an answer follows, whose form a grammar may describe.
    pub fn preamble_close(&self) -> &'static str {
        if self.is_harmony { harmony::FINAL_OPEN } else { self.close }
    }
}

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
    /// Before the mark that opens the answer, if the family has one.
    BeforeAnswer,
    /// In the answer.
    Answer,
}

/// An incremental parser that splits the text of one choice into reasoning and content.
#[derive(Debug, Clone)]
pub enum ReasoningParser {
    /// Reasoning between marks.
    Marked(MarkedReasoning),
    /// Reasoning in a channel.
    Harmony(HarmonyParser),
}

/// A parser of reasoning that stands between marks, before the answer.
#[derive(Debug, Clone)]
pub struct MarkedReasoning {
    marks: &'static ReasoningMarks,
    phase: ReasoningPhase,
    /// Text held back because it may be the beginning of a tag, or trailing whitespace.
    held: String,
    /// Tokens of the reasoning, its marks included.
    n_tokens: usize,
    /// Tokens received before it is known whether the text begins with reasoning.
    n_undecided_tokens: usize,
    has_reasoning: bool,
}

impl ReasoningParser {
    /// A parser for the response to `prompt`. Reasoning is open from the start if the prompt ends with the opening
    /// mark, which some templates add.
    pub fn for_prompt(marks: &'static ReasoningMarks, prompt: &str) -> Self {
        if marks.is_harmony {
            return Self::Harmony(HarmonyParser::new());
        }
        let is_open = prompt.trim_end().ends_with(marks.open.trim_end());
        let phase =
            if is_open { ReasoningPhase::Reasoning { has_text: false } } else { ReasoningPhase::Start };
        Self::Marked(MarkedReasoning {
            marks,
            phase,
            held: String::new(),
            n_tokens: 0,
            n_undecided_tokens: 0,
            has_reasoning: is_open,
        })
    }

    /// Whether the text is in reasoning that it has not opened by itself.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Marked(parser) => matches!(parser.phase, ReasoningPhase::Reasoning { .. }),
            Self::Harmony(_) => false,
        }
    }

    /// Leaves calls that stand in channels to the parser of tool calls.
    pub fn pass_calls(&mut self) {
        if let Self::Harmony(parser) = self {
            parser.pass_calls();
        }
    }

    /// Number of reasoning tokens, marks included.
    pub fn n_tokens(&self) -> usize {
        match self {
            Self::Marked(parser) => parser.n_tokens,
            Self::Harmony(parser) => parser.n_tokens(),
        }
    }

    /// Splits more text, of `n_tokens` tokens.
    pub fn push(&mut self, text: &str, n_tokens: usize) -> ReasoningSplit {
        match self {
            Self::Marked(parser) => parser.push(text, n_tokens),
            Self::Harmony(parser) => parser.push(text, n_tokens),
        }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> ReasoningSplit {
        match self {
            Self::Marked(parser) => parser.finish(),
            Self::Harmony(parser) => parser.finish(),
        }
    }
}

impl MarkedReasoning {
    fn push(&mut self, text: &str, n_tokens: usize) -> ReasoningSplit {
        self.held.push_str(text);
        self.n_undecided_tokens += n_tokens;
        let was_closed = !matches!(self.phase, ReasoningPhase::Start | ReasoningPhase::Reasoning { .. });
        let split = self.split();
        if self.phase != ReasoningPhase::Start {
            let decided = std::mem::take(&mut self.n_undecided_tokens);
            self.n_tokens += if self.has_reasoning && !was_closed { decided } else { 0 };
        }
        split
    }

    fn split(&mut self) -> ReasoningSplit {
        let ReasoningMarks { open, close, answer, .. } = *self.marks;
        let open = open.trim_end();
        let mut split = ReasoningSplit::default();
        loop {
            match self.phase {
                ReasoningPhase::Start => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(open) {
                        self.held = rest.to_owned();
                        self.phase = ReasoningPhase::Reasoning { has_text: false };
                        self.has_reasoning = true;
                    } else if open.starts_with(begun) {
                        return split;
                    } else {
                        self.phase = ReasoningPhase::BeforeAnswer;
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
                    let Some(end) = self.held.find(close) else {
                        // Hold back a possible beginning of the tag, and whitespace before it.
                        let n_certain = self.held.len() - overlap(&self.held, close);
                        let n_released = self.held[..n_certain].trim_end().len();
                        split.reasoning.extend(self.held.drain(..n_released));
                        return split;
                    };
                    split.reasoning += self.held[..end].trim_end();
                    self.held.drain(..end + close.len());
                    self.phase = ReasoningPhase::Closed;
                }
                ReasoningPhase::Closed => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.phase = ReasoningPhase::BeforeAnswer;
                }
                ReasoningPhase::BeforeAnswer => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(answer[0]).filter(|_| !answer[0].is_empty()) {
                        self.held = rest.to_owned();
                    } else if !answer[0].is_empty() && answer[0].starts_with(begun) {
                        return split;
                    }
                    self.phase = ReasoningPhase::Answer;
                }
                ReasoningPhase::Answer => {
                    let end = answer[1];
                    self.held = if end.is_empty() {
                        std::mem::take(&mut self.held)
                    } else {
                        self.held.replace(end, "")
                    };
                    let n_certain = self.held.len() - overlap(&self.held, end);
                    split.content.extend(self.held.drain(..n_certain));
                    return split;
                }
            }
        }
    }

    fn finish(&mut self) -> ReasoningSplit {
        let rest = std::mem::take(&mut self.held);
        match self.phase {
            ReasoningPhase::Start | ReasoningPhase::BeforeAnswer | ReasoningPhase::Answer => {
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
        split_by(&THINK, prompt, text, n)
    }

    fn split_by(
        marks: &'static ReasoningMarks,
        prompt: &str,
        text: &str,
        n: usize,
    ) -> (String, String, usize) {
        let mut reasoning = ReasoningParser::for_prompt(marks, prompt);
        let mut all = ReasoningSplit::default();
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars.chunks(n).map(|piece| piece.iter().collect::<String>());
        let splits: Vec<ReasoningSplit> = pieces.map(|piece| reasoning.push(&piece, 1)).collect();
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

    #[test]
    fn every_family_has_its_marks() {
        for (template, prompt, text, reasoning, content) in [
            (
                "'<|channel>thought\n<channel|>'",
                "<|turn>model\n",
                "<|channel>thought\nHm.<channel|>Yes",
                "Hm.",
                "Yes",
            ),
            ("'<|channel>thought\n<channel|>'", "<|channel>thought\n<channel|>", "Yes", "", "Yes"),
            ("<seed:think>", "assistant\n", "<seed:think>Hm.</seed:think>Yes", "Hm.", "Yes"),
            ("[THINK] [/THINK]", "[/INST]", "[THINK]Hm.[/THINK]Yes [", "Hm.", "Yes ["),
            ("◁think▷", "", "◁think▷Hm.◁/think▷Yes", "Hm.", "Yes"),
            (
                "<|START_THINKING|>",
                "",
                "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>",
                "Hm.",
                "Yes",
            ),
            ("<|START_THINKING|>", "", "<|START_RESPONSE|>Yes<|END_RESPONSE|>", "", "Yes"),
            (
                "<|open|> open_tag('think' if thinking else 'response')",
                "<|open|>think<|sep|>",
                "Hm.<|close|>think<|sep|><|open|>response<|sep|>Yes<|close|>response<|sep|>",
                "Hm.",
                "Yes",
            ),
            (
                "[BEGIN FINAL RESPONSE]",
                "Here are my reasoning steps:\n",
                "Hm.\n[BEGIN FINAL RESPONSE]\nYes\n[END FINAL RESPONSE]",
                "Hm.",
                "Yes\n",
            ),
            (
                "Here is my thought process: Here is my response:",
                "",
                "Here is my thought process: Hm.\n\nHere is my response: Yes",
                "Hm.",
                "Yes",
            ),
            (
                "<think></think> <response></response>",
                "",
                "<think>Hm.</think><response>Yes</response>",
                "Hm.",
                "Yes",
            ),
            ("content.split('</think>')", "", "<think>Hm.</think>Yes", "Hm.", "Yes"),
            ("<thought> </thought>", "<thought>\n", "Hm.</thought>Yes", "Hm.", "Yes"),
            (
                "<|channel|>analysis<|message|>",
                "<|start|>assistant",
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes",
                "Hm.",
                "Yes",
            ),
        ] {
            let marks = ReasoningMarks::for_template(|text| template.contains(text)).unwrap();
            for n in [1, 2, 3, 7, 100] {
                let (found, answer, _) = split_by(marks, prompt, text, n);
                assert_eq!(
                    (found.as_str(), answer.as_str()),
                    (reasoning, content),
                    "{text:?} in pieces of {n}"
                );
            }
        }
        assert_eq!(ReasoningMarks::for_template(|_| false), None);
    }
}
