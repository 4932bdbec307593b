//! Responses of chat as messages, whole and as events.

use serde_json::Map;

use super::signature::sign;
use crate::anthropic::response::{
    BlockDelta, MessageEnd, MessageEvent, MessageObject, MessageOutputDetails, MessageUsage, OutputBlock,
    StopReason,
};
use crate::openai::call_arguments::complete_arguments;
use crate::openai::chat::{FinishReason, ToolCall, ToolCallDelta, Usage};

/// The beginning of a call's id on the chat route, and here.
const CALL_ID: &str = "call_";
const TOOL_USE_ID: &str = "toolu_";

/// The form of a response, as its request asks for it.
#[derive(Debug, Clone, Copy)]
pub struct MessageForm {
    /// Whether reasoning is part of the response.
    pub is_thinking_shown: bool,
    /// The token limit; 0 if nothing is to be sent.
    pub max_tokens: usize,
}

/// A complete response of chat.
pub struct MessageParts {
    /// The text.
    pub text: String,
    /// The reasoning that preceded it.
    pub reasoning: String,
    /// The calls that followed it.
    pub calls: Vec<ToolCall>,
    /// Why generation ended.
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
    /// Token counts.
    pub usage: Usage,
}

impl MessageForm {
    /// A response before its first token, to a prompt of `n_prompt` tokens.
    pub fn start(self, id: String, model: String, n_prompt: usize) -> MessageObject {
        MessageObject {
            id,
            kind: "message",
            role: "assistant",
            model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            stop_details: None,
            usage: MessageUsage { input_tokens: n_prompt, ..MessageUsage::default() },
        }
    }

    /// A complete response.
    pub fn complete(self, id: String, model: String, parts: MessageParts) -> MessageObject {
        let MessageParts { text, reasoning, calls, reason, stop, usage } = parts;
        let MessageEnd { stop_reason, stop_sequence } = self.end(reason, stop, &usage);
        let mut content = Vec::new();
        if !reasoning.is_empty() {
            let signature = sign(&reasoning, self.is_thinking_shown);
            let thinking = if self.is_thinking_shown { reasoning } else { String::new() };
            content.push(OutputBlock::Thinking { thinking, signature });
        }
        if !text.is_empty() {
            content.push(OutputBlock::Text { text });
        }
        content.extend(calls.into_iter().map(|call| OutputBlock::ToolUse {
            id: tool_use_id(&call.id),
            name: call.function.name,
            input: complete_arguments(&call.function.arguments),
        }));
        if self.max_tokens == 0 {
            content.clear();
        }
        MessageObject {
            content,
            stop_reason: Some(stop_reason),
            stop_sequence,
            usage: self.usage(&usage),
            ..self.start(id, model, 0)
        }
    }

    /// Why a response ended.
    fn end(self, reason: FinishReason, stop: Option<String>, usage: &Usage) -> MessageEnd {
        let stop_reason = match reason {
            FinishReason::ToolCalls => StopReason::ToolUse,
            FinishReason::Stop if stop.is_some() => StopReason::StopSequence,
            FinishReason::Stop if self.max_tokens > 0 => StopReason::EndTurn,
            FinishReason::Length if usage.completion_tokens < self.max_tokens => {
                StopReason::ModelContextWindowExceeded
            }
            FinishReason::Stop | FinishReason::Length => StopReason::MaxTokens,
        };
        let stop_sequence = stop.filter(|_| stop_reason == StopReason::StopSequence);
        MessageEnd { stop_reason, stop_sequence }
    }

    fn usage(self, usage: &Usage) -> MessageUsage {
        let n_cached = usage.prompt_tokens_details.cached_tokens;
        let is_sent = self.max_tokens > 0;
        MessageUsage {
            input_tokens: usage.prompt_tokens.saturating_sub(n_cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: n_cached,
            output_tokens: if is_sent { usage.completion_tokens } else { 0 },
            output_tokens_details: MessageOutputDetails {
                thinking_tokens: if is_sent { usage.completion_tokens_details.reasoning_tokens } else { 0 },
            },
        }
    }
}

fn tool_use_id(call_id: &str) -> String {
    format!("{TOOL_USE_ID}{}", call_id.strip_prefix(CALL_ID).unwrap_or(call_id))
}

/// Encodes the events of a response as the events of a message.
pub struct MessageEvents {
    form: MessageForm,
    open: Option<OpenBlock>,
    n_blocks: usize,
}

/// The block that has begun and not ended.
enum OpenBlock {
    Text,
    /// With the reasoning so far, which its signature depends on.
    Thinking(String),
    /// With the call's index.
    ToolUse(usize),
}

impl MessageEvents {
    /// An encoder for a response of this form.
    pub fn new(form: MessageForm) -> Self {
        Self { form, open: None, n_blocks: 0 }
    }

    /// The events of the beginning.
    pub fn start(&self, id: String, model: String, n_prompt: usize) -> Vec<MessageEvent> {
        vec![MessageEvent::MessageStart { message: self.form.start(id, model, n_prompt) }, MessageEvent::Ping]
    }

    /// The events of more of the response.
    pub fn more(&mut self, text: String, reasoning: String, calls: Vec<ToolCallDelta>) -> Vec<MessageEvent> {
        let mut events = Vec::new();
        if self.form.max_tokens == 0 {
            return events;
        }
        if !reasoning.is_empty() {
            if !matches!(self.open, Some(OpenBlock::Thinking(_))) {
                let block = OutputBlock::Thinking { thinking: String::new(), signature: String::new() };
                self.begin(OpenBlock::Thinking(String::new()), block, &mut events);
            }
            if let Some(OpenBlock::Thinking(all)) = &mut self.open {
                all.push_str(&reasoning);
            }
            if self.form.is_thinking_shown {
                self.add(BlockDelta::ThinkingDelta { thinking: reasoning }, &mut events);
            }
        }
        if !text.is_empty() {
            if !matches!(self.open, Some(OpenBlock::Text)) {
                self.begin(OpenBlock::Text, OutputBlock::Text { text: String::new() }, &mut events);
            }
            self.add(BlockDelta::TextDelta { text }, &mut events);
        }
        for ToolCallDelta { index, id, function, .. } in calls {
            if let (Some(id), Some(name)) = (id, function.name) {
                let block = OutputBlock::ToolUse { id: tool_use_id(&id), name, input: Map::new() };
                self.begin(OpenBlock::ToolUse(index), block, &mut events);
            }
            let is_open = matches!(self.open, Some(OpenBlock::ToolUse(open)) if open == index);
            if is_open && !function.arguments.is_empty() {
                self.add(BlockDelta::InputJsonDelta { partial_json: function.arguments }, &mut events);
            }
        }
        events
    }

    /// The events of the end.
    pub fn end(&mut self, reason: FinishReason, stop: Option<String>, usage: &Usage) -> Vec<MessageEvent> {
        let mut events = Vec::new();
        self.finish_block(&mut events);
        let delta = self.form.end(reason, stop, usage);
        events.push(MessageEvent::MessageDelta { delta, usage: self.form.usage(usage) });
        events.push(MessageEvent::MessageStop);
        events
    }

    fn begin(&mut self, open: OpenBlock, content_block: OutputBlock, events: &mut Vec<MessageEvent>) {
        self.finish_block(events);
        events.push(MessageEvent::ContentBlockStart { index: self.n_blocks, content_block });
        self.open = Some(open);
    }

    fn add(&self, delta: BlockDelta, events: &mut Vec<MessageEvent>) {
        events.push(MessageEvent::ContentBlockDelta { index: self.n_blocks, delta });
    }

    fn finish_block(&mut self, events: &mut Vec<MessageEvent>) {
        let Some(open) = self.open.take() else { return };
        if let OpenBlock::Thinking(all) = open {
            let signature = sign(&all, self.form.is_thinking_shown);
            self.add(BlockDelta::SignatureDelta { signature }, events);
        }
        events.push(MessageEvent::ContentBlockStop { index: self.n_blocks });
        self.n_blocks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_context_is_told_from_the_limit() {
        let form = MessageForm { is_thinking_shown: true, max_tokens: 5 };
        let end = |reason, stop: Option<&str>, completion_tokens| {
            let usage = Usage { completion_tokens, ..Usage::default() };
            form.end(reason, stop.map(str::to_owned), &usage).stop_reason
        };
        assert_eq!(end(FinishReason::Length, None, 5), StopReason::MaxTokens);
        assert_eq!(end(FinishReason::Length, None, 4), StopReason::ModelContextWindowExceeded);
        assert_eq!(end(FinishReason::Stop, None, 4), StopReason::EndTurn);
        assert_eq!(end(FinishReason::Stop, Some("x"), 4), StopReason::StopSequence);
        assert_eq!(end(FinishReason::ToolCalls, None, 4), StopReason::ToolUse);
    }
}
