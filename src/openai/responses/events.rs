//! Events of a streamed response.

use schemars::JsonSchema;
use serde::Serialize;

use super::output::{OutputItem, OutputLogprob, OutputText, ResponseObject, TextPart};

/// An event and its place in the stream.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ResponseEvent {
    /// The event.
    #[serde(flatten)]
    pub body: EventBody,
    /// Number of the event within its stream, from 0.
    pub sequence_number: u64,
}

/// Something that happened to a response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type")]
pub enum EventBody {
    /// The response exists.
    #[serde(rename = "response.created")]
    Created {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response waits for its turn in the background.
    #[serde(rename = "response.queued")]
    Queued {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response is generated.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response is complete.
    #[serde(rename = "response.completed")]
    Completed {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response ended at the token limit.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response failed.
    #[serde(rename = "response.failed")]
    Failed {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// The response was cancelled.
    #[serde(rename = "response.cancelled")]
    Cancelled {
        /// The response.
        response: Box<ResponseObject>,
    },
    /// An item has begun.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Index of the item.
        output_index: usize,
        /// The item.
        item: OutputItem,
    },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Index of the item.
        output_index: usize,
        /// The item.
        item: OutputItem,
    },
    /// A part of a message or of reasoning has begun.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// The part.
        part: StreamedPart,
    },
    /// A part of a message or of reasoning is complete.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// The part.
        part: StreamedPart,
    },
    /// More of a text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// Text to append.
        delta: String,
        /// Log probabilities of the tokens; empty unless requested.
        logprobs: Vec<OutputLogprob>,
    },
    /// A text is complete.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// The whole text.
        text: String,
        /// Log probabilities of the tokens; empty unless requested.
        logprobs: Vec<OutputLogprob>,
    },
    /// More of the reasoning.
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// Reasoning to append.
        delta: String,
    },
    /// The reasoning is complete.
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        content_index: usize,
        /// The whole reasoning.
        text: String,
    },
    /// The summary of the reasoning has begun.
    #[serde(rename = "response.reasoning_summary_part.added")]
    SummaryPartAdded {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        summary_index: usize,
        /// The part.
        part: TextPart,
    },
    /// More of the summary of the reasoning.
    #[serde(rename = "response.reasoning_summary_text.delta")]
    SummaryDelta {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        summary_index: usize,
        /// Text to append.
        delta: String,
    },
    /// The text of the summary is complete.
    #[serde(rename = "response.reasoning_summary_text.done")]
    SummaryDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        summary_index: usize,
        /// The whole text.
        text: String,
    },
    /// The summary of the reasoning is complete.
    #[serde(rename = "response.reasoning_summary_part.done")]
    SummaryPartDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Index of the part.
        summary_index: usize,
        /// The part.
        part: TextPart,
    },
    /// More of a function's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Text to append.
        delta: String,
    },
    /// A function's arguments are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// The function's name.
        name: String,
        /// The whole arguments.
        arguments: String,
    },
    /// More of a custom tool's input.
    #[serde(rename = "response.custom_tool_call_input.delta")]
    CustomInputDelta {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// Text to append.
        delta: String,
    },
    /// A custom tool's input is complete.
    #[serde(rename = "response.custom_tool_call_input.done")]
    CustomInputDone {
        /// Id of the item.
        item_id: String,
        /// Index of the item.
        output_index: usize,
        /// The whole input.
        input: String,
    },
    /// The stream cannot go on, although the response may.
    #[serde(rename = "error")]
    StreamError {
        /// A code for programs.
        code: Option<String>,
        /// The problem and its remedy.
        message: String,
        /// The parameter at fault, if any.
        param: Option<String>,
    },
}

/// A part of a message or of reasoning.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum StreamedPart {
    /// The text of a message.
    Output(OutputText),
    /// Reasoning.
    Reasoning(TextPart),
}

impl ResponseEvent {
    /// The name of the event, which is the `type` in its JSON.
    pub fn name(&self) -> &'static str {
        match &self.body {
            EventBody::Created { .. } => "response.created",
            EventBody::Queued { .. } => "response.queued",
            EventBody::InProgress { .. } => "response.in_progress",
            EventBody::Completed { .. } => "response.completed",
            EventBody::Incomplete { .. } => "response.incomplete",
            EventBody::Failed { .. } => "response.failed",
            EventBody::Cancelled { .. } => "response.cancelled",
            EventBody::ItemAdded { .. } => "response.output_item.added",
            EventBody::ItemDone { .. } => "response.output_item.done",
            EventBody::PartAdded { .. } => "response.content_part.added",
            EventBody::PartDone { .. } => "response.content_part.done",
            EventBody::TextDelta { .. } => "response.output_text.delta",
            EventBody::TextDone { .. } => "response.output_text.done",
            EventBody::ReasoningDelta { .. } => "response.reasoning_text.delta",
            EventBody::ReasoningDone { .. } => "response.reasoning_text.done",
            EventBody::SummaryPartAdded { .. } => "response.reasoning_summary_part.added",
            EventBody::SummaryDelta { .. } => "response.reasoning_summary_text.delta",
            EventBody::SummaryDone { .. } => "response.reasoning_summary_text.done",
            EventBody::SummaryPartDone { .. } => "response.reasoning_summary_part.done",
            EventBody::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            EventBody::ArgumentsDone { .. } => "response.function_call_arguments.done",
            EventBody::CustomInputDelta { .. } => "response.custom_tool_call_input.delta",
            EventBody::CustomInputDone { .. } => "response.custom_tool_call_input.done",
            EventBody::StreamError { .. } => "error",
        }
    }
}
