//! The channels of Harmony, the format of gpt-oss: thoughts are reasoning, the final message is content, and calls are
//! left to the parser of tool calls.

use crate::inference::overlap;

/// A piece of text, split.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReasoningSplit {
    /// Text of the reasoning.
    pub reasoning: String,
    /// Text of the answer.
    pub content: String,
}

/// Texts of the format that are special tokens.
pub const MARKS: [&str; 7] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];

/// The header of a thought.
pub const THOUGHT_OPEN: &str = "<|channel|>analysis<|message|>";

/// The end of a thought.
pub const THOUGHT_CLOSE: &str = "<|end|>";

/// The header of the final message.
pub const FINAL_OPEN: &str = "<|channel|>final<|message|>";

/// Text that ends a thought and begins the final message.
pub const FORCED_CLOSE: &str = "<|end|><|start|>assistant<|channel|>final<|message|>";

/// Texts that begin a header.
const HEADER_STARTS: [&str; 5] = ["<|start|>", "<|channel|>", "to=", "<|constrain|>", "<|message|>"];

/// The end of a header.
const HEADER_END: &str = "<|message|>";

/// Marks that end a message, and whether they belong to it.
const MESSAGE_ENDS: [(&str, bool); 5] = [
    ("<|end|>", true),
    ("<|call|>", true),
    ("<|return|>", true),
    ("<|start|>", false),
    ("<|channel|>", false),
];

/// The longest header.
const MAX_HEADER_BYTES: usize = 512;

/// An incremental parser of messages in channels.
#[derive(Debug, Clone)]
pub struct HarmonyParser {
    /// The message that the text is in; `None` in a header.
    message: Option<MessageKind>,
    held: String,
    /// Whether calls are passed on as content. If not, nobody can run them, and they are reasoning.
    passes_calls: bool,
    /// Tokens of thoughts, their headers included.
    n_tokens: usize,
    /// Tokens of a header, before the kind of its message is known.
    n_undecided_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MessageKind {
    Thought,
    Answer,
    Call,
}

impl HarmonyParser {
    /// A parser of the text that follows `<|start|>assistant`.
    pub fn new() -> Self {
        Self { message: None, held: String::new(), passes_calls: false, n_tokens: 0, n_undecided_tokens: 0 }
    }

    /// Passes calls on as content, in the form that the parser of tool calls expects.
    pub fn pass_calls(&mut self) {
        self.passes_calls = true;
    }

    /// Number of reasoning tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Splits more text, of `n_tokens` tokens.
    pub fn push(&mut self, text: &str, n_tokens: usize) -> ReasoningSplit {
        self.held.push_str(text);
        self.n_undecided_tokens += n_tokens;
        let mut split = ReasoningSplit::default();
        while self.step(&mut split) {}
        if let Some(kind) = self.message {
            let decided = std::mem::take(&mut self.n_undecided_tokens);
            self.n_tokens += if kind == MessageKind::Thought { decided } else { 0 };
        }
        split
    }

    /// Parses some of the held text; returns whether more of it can be parsed.
    fn step(&mut self, split: &mut ReasoningSplit) -> bool {
        let Some(kind) = self.message else { return self.read_header(split) };
        let ends =
            MESSAGE_ENDS.iter().filter_map(|(mark, is_own)| Some((self.held.find(mark)?, mark, is_own)));
        let Some((end, mark, is_own)) = ends.min_by_key(|(end, ..)| *end) else {
            let n_held = MESSAGE_ENDS.iter().map(|(mark, _)| overlap(&self.held, mark)).max().unwrap_or(0);
            let text: String = self.held.drain(..self.held.len() - n_held).collect();
            self.emit(kind, &text, split);
            return false;
        };
        let text: String = self.held.drain(..end).collect();
        self.emit(kind, &text, split);
        self.held.drain(..if *is_own { mark.len() } else { 0 });
        if kind == MessageKind::Call {
            self.emit(kind, if self.passes_calls { "<|call|>" } else { "" }, split);
        }
        self.message = None;
        !self.held.is_empty()
    }

    fn read_header(&mut self, split: &mut ReasoningSplit) -> bool {
        let begun = self.held.trim_start();
        let is_header = HEADER_STARTS.iter().any(|start| begun.starts_with(start));
        let may_be_header = is_header || HEADER_STARTS.iter().any(|start| start.starts_with(begun));
        let end = self.held.find(HEADER_END).filter(|_| is_header);
        match end {
            Some(end) => {
                let header: String = self.held.drain(..end + HEADER_END.len()).collect();
                let header = &header[..end];
                let channel = header.rsplit_once("<|channel|>").map_or("final", |(_, channel)| channel);
                let recipient = header.split_once("to=").map(|(_, rest)| rest);
                let recipient = recipient.and_then(|rest| rest.split([' ', '<', '\n']).next());
                let kind = match recipient {
                    Some(name) if !name.is_empty() && name != "user" && name != "assistant" => {
                        if self.passes_calls {
                            split.content += &format!("<|channel|>commentary to={name}{HEADER_END}");
                        }
                        MessageKind::Call
                    }
                    _ if channel.trim_start().starts_with("analysis") => MessageKind::Thought,
                    _ => MessageKind::Answer,
                };
                self.message = Some(kind);
            }
            None if may_be_header && self.held.len() <= MAX_HEADER_BYTES => return false,
            // No header: the model does not keep to the format.
            None => self.message = Some(MessageKind::Answer),
        }
        true
    }

    fn emit(&self, kind: MessageKind, text: &str, split: &mut ReasoningSplit) {
        match kind {
            MessageKind::Answer => split.content += text,
            MessageKind::Call if self.passes_calls => split.content += text,
            MessageKind::Thought | MessageKind::Call => split.reasoning += text,
        }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> ReasoningSplit {
        let rest = std::mem::take(&mut self.held);
        let mut split = ReasoningSplit::default();
        // The beginning of a header is no text.
        if let Some(kind) = self.message {
            self.emit(kind, &rest, &mut split);
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, n: usize, passes_calls: bool) -> (String, String) {
        let mut parser = HarmonyParser { passes_calls, ..HarmonyParser::new() };
        let (mut reasoning, mut content) = (String::new(), String::new());
        let chars: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = chars.chunks(n).map(|piece| piece.iter().collect()).collect();
        let splits: Vec<ReasoningSplit> = pieces.iter().map(|piece| parser.push(piece, 1)).collect();
        for split in splits.into_iter().chain([parser.finish()]) {
            reasoning += &split.reasoning;
            content += &split.content;
        }
        (reasoning, content)
    }

    #[test]
    fn channels_are_separated_wherever_the_pieces_end() {
        let call = "<|channel|>commentary to=functions.f<|message|>{\"a\": 1}<|call|>";
        for (text, passes_calls, reasoning, content) in [
            (
                "<|channel|>analysis<|message|>Hm < 1.<|end|><|start|>assistant<|channel|>final<|message|>Yes<|return|>",
                true,
                "Hm < 1.",
                "Yes",
            ),
            ("<|channel|>final<|message|>Yes", true, "", "Yes"),
            ("Plain <b>", true, "", "Plain <b>"),
            (
                "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary<|message|>Now.<|end|>\
                 <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
                true,
                "x",
                &format!("Now.{call}"),
            ),
            (" to=functions.f<|channel|>commentary json<|message|>{\"a\": 1}<|call|>", true, "", call),
            (
                "<|channel|>analysis to=python code<|message|>1 + 1<|call|>",
                true,
                "",
                "<|channel|>commentary to=python<|message|>1 + 1<|call|>",
            ),
            ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", false, "1 + 1", ""),
            ("<|channel|>analysis<|message|>cut <|en", true, "cut <|en", ""),
            ("<|channel|>anal", true, "", ""),
        ] {
            for n in [1, 2, 3, 7, 1000] {
                let found = split(text, n, passes_calls);
                assert_eq!(found, (reasoning.to_owned(), content.to_owned()), "{text} by {n}");
            }
        }
    }

    #[test]
    fn the_tokens_of_thoughts_are_counted() {
        let mut parser = HarmonyParser::new();
        for token in ["<|channel|>", "analysis", "<|message|>", "a", "b", "<|end|>", "<|start|>", "assistant"]
        {
            parser.push(token, 1);
        }
        parser.push("<|channel|>final<|message|>", 3);
        parser.push("yes", 1);
        assert_eq!(parser.n_tokens(), 5);
    }
}
