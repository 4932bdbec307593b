//! Prompts that differ in one part only: what is before it is rendered and encoded once for all of them.

use super::model::ChatModel;
use super::reasoning::ReasoningParser;
use crate::error::Result;
use crate::openai::chat::{ChatCompletionRequest, Content, Message, ReasoningEffort, Role};
use crate::tokenizer::Tokenizer;

/// Stands for the part that differs: a noncharacter, which the marker of special tokens never is.
const GAP: char = '\u{1FFFE}';

/// The ending of prompts for a model without a template.
const PLAIN_ENDING: &str = "\nAnswer:";

/// A user's message with a gap before its end, as the model's prompt.
pub struct PromptFrame {
    /// The tokens before the gap.
    pub beginning: Vec<u32>,
    /// The text after the gap: the end of the user's message, and the header of the answer.
    ending: String,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

impl ChatModel {
    /// The prompt of a message that begins with `text`, to be answered without reasoning. A model without a template reads
    /// the text as it is.
    ///
    /// # Errors
    /// When the template refuses the message, or the text does not fit the context.
    pub fn prompt_frame(&self, text: &str) -> Result<PromptFrame> {
        let mut ends = self.tokenizer.end_of_generation().to_vec();
        let (prompt, marker) = if self.template().is_ok() {
            let message = Message {
                role: Role::User,
                content: Some(Content::Text(format!("{text}{GAP}"))),
                ..Message::default()
            };
            let request = ChatCompletionRequest {
                messages: vec![message],
                reasoning_effort: Some(ReasoningEffort::None),
                ..ChatCompletionRequest::default()
            };
            let rendered = self.render_text(&request, None)?;
            let mut prompt = rendered.text;
            match self.template()?.reasoning_marks() {
                // The header of the channel for answers.
                Some(marks) if marks.is_harmony => prompt += marks.preamble_close(),
                Some(marks) if ReasoningParser::for_prompt(marks, &prompt).is_open() => {
                    prompt += marks.close;
                    prompt += "\n\n";
                }
                _ => {}
            }
            (prompt, Some(rendered.marker))
        } else {
            ends.extend(self.tokenizer.single_token_id("\n"));
            (format!("{text}{GAP}{PLAIN_ENDING}"), None)
        };
        // The message's own gap is the last one. A template that does not show the message shows none.
        let (beginning, ending) = prompt.rsplit_once(GAP).unwrap_or((&prompt, PLAIN_ENDING));
        self.check_prompt_length(beginning, marker)?;
        let beginning = self.tokenizer.encode_prompt(beginning, marker)?;
        let ending = marker.map_or_else(|| ending.to_owned(), |marker| ending.replace(marker, ""));
        Ok(PromptFrame { beginning, ending, ends })
    }
}

impl PromptFrame {
    /// The tokens after the beginning of the prompt whose gap is filled with `text`.
    ///
    /// # Errors
    /// When the vocabulary has no token for a part of the text.
    pub fn fill(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let before = self.beginning.last().copied();
        let mut tokens: Vec<u32> = before.into_iter().collect();
        tokenizer.append(text, &mut tokens)?;
        tokenizer.append_with_special(&self.ending, &mut tokens)?;
        Ok(tokens.split_off(usize::from(before.is_some())))
    }

    /// The tokens of an answer to a prompt that ends with the token `last`.
    ///
    /// # Errors
    /// When the vocabulary has no token for a part of the text.
    pub fn answer(&self, tokenizer: &Tokenizer, last: u32, text: &str) -> Result<Vec<u32>> {
        // Words follow each other with a space between them; a header ends with a special token or white space.
        let is_apart =
            tokenizer.special_token_text(last).is_some() || self.ending.ends_with(char::is_whitespace);
        let space = if is_apart { "" } else { " " };
        let mut tokens = vec![last];
        tokenizer.append(&format!("{space}{text}"), &mut tokens)?;
        Ok(tokens.split_off(1))
    }
}
