//! A response as it is generated: events of the chat layer in, items and events of the wire out.

use serde_json::Value;

use super::custom_input::CustomInput;
use super::reasoning_blob::BlobSigner;
use super::sequence::{
    REASONING_TEXT, SUMMARY_TEXT, closing_events, delta_event, emptied, final_event, first_events, item_text,
    opening_events, text_part,
};
use super::tools::{OfferedTool, OfferedTools, ToolKind};
use crate::openai::chat::{ChoiceLogprobs, FinishReason, ToolCallDelta, Usage};
use crate::openai::responses::JsonMap;
use crate::openai::responses::events::{EventBody, ResponseEvent};
use crate::openai::responses::output::{
    IncompleteDetails, InputTokensDetails, ItemStatus, OutputItem, OutputLogprob, OutputText,
    OutputTokensDetails, ResponseFailure, ResponseObject, ResponseStatus, ResponseUsage,
};

/// The parts of a response that its request asks for.
#[derive(Clone)]
pub struct OutputSettings {
    /// Whether reasoning comes as a summary.
    pub is_summary: bool,
    /// Whether the text has log probabilities.
    pub has_logprobs: bool,
    /// Signs the reasoning, if requested.
    pub signer: Option<BlobSigner>,
}

/// A response that is being generated.
pub struct ResponseBuilder {
    response: ResponseObject,
    tools: OfferedTools,
    settings: OutputSettings,
    open: Option<OpenItem>,
    /// Whitespace that belongs to a text only if more follows.
    blank: String,
    /// Log probabilities of tokens whose text is held back.
    logprobs: Vec<OutputLogprob>,
    /// Bytes of the deltas of every item.
    deltas: Vec<Vec<u32>>,
    n_events: u64,
    /// Events that are not taken; none are made for a response that is not streamed.
    events: Vec<ResponseEvent>,
    is_streamed: bool,
}

/// The item that is being generated.
enum OpenItem {
    Text(OutputItem),
    Reasoning(OutputItem),
    Call {
        /// Index among the calls of the chat layer.
        index: usize,
        item: OutputItem,
        /// The decoder of a custom tool's input.
        custom: Option<CustomInput>,
    },
    /// A call whose item is made from its whole arguments.
    WholeCall {
        index: usize,
        call_id: String,
        tool: OfferedTool,
        arguments: String,
    },
}

impl OpenItem {
    fn call_index(&self) -> Option<usize> {
        match self {
            Self::Call { index, .. } | Self::WholeCall { index, .. } => Some(*index),
            _ => None,
        }
    }
}

impl ResponseBuilder {
    /// A response without output. Makes events if it `is_streamed`.
    pub fn new(
        response: ResponseObject,
        tools: OfferedTools,
        settings: OutputSettings,
        is_streamed: bool,
    ) -> Self {
        let mut builder = Self {
            response,
            tools,
            settings,
            open: None,
            blank: String::new(),
            logprobs: Vec::new(),
            deltas: Vec::new(),
            n_events: 0,
            events: Vec::new(),
            is_streamed,
        };
        builder.response.status = ResponseStatus::InProgress;
        if is_streamed {
            let first = first_events(&builder.response);
            builder.emit(first);
        }
        builder
    }

    /// A response that has failed before it began.
    pub fn failed(response: ResponseObject, code: &str, message: &str) -> Self {
        let settings = OutputSettings { is_summary: false, has_logprobs: false, signer: None };
        let mut builder = Self::new(response, OfferedTools::default(), settings, true);
        builder.fail(code, message);
        builder
    }

    /// The response so far.
    pub fn response(&self) -> &ResponseObject {
        &self.response
    }

    /// Bytes of the deltas of every item, from which [`super::sequence::replay`] makes the events again.
    pub fn deltas(&self) -> &[Vec<u32>] {
        &self.deltas
    }

    /// Takes the events since the last call.
    pub fn take_events(&mut self) -> Vec<ResponseEvent> {
        std::mem::take(&mut self.events)
    }

    /// Adds more of the response: reasoning, then text, then calls.
    pub fn push(
        &mut self,
        reasoning: &str,
        text: &str,
        calls: Vec<ToolCallDelta>,
        logprobs: Option<ChoiceLogprobs>,
    ) {
        if !reasoning.is_empty() {
            self.push_reasoning(reasoning);
        }
        if self.settings.has_logprobs && reasoning.is_empty() && calls.is_empty() {
            let entries = logprobs.into_iter().flat_map(|logprobs| logprobs.content);
            self.logprobs.extend(entries.map(OutputLogprob::from));
        }
        if !text.is_empty() {
            self.push_text(text);
        }
        calls.into_iter().for_each(|call| self.push_call(call));
    }

    fn push_reasoning(&mut self, delta: &str) {
        if !matches!(self.open, Some(OpenItem::Reasoning(_))) {
            self.close(ItemStatus::Completed);
            let content = (!self.settings.is_summary).then(Vec::new);
            let status = ItemStatus::InProgress;
            let (id, summary) = (self.item_id("rs"), Vec::new());
            let item = OutputItem::Reasoning { id, status, summary, content, encrypted_content: None };
            self.begin(&item);
            self.open = Some(OpenItem::Reasoning(item));
        }
        let Some(OpenItem::Reasoning(mut item)) = self.open.take() else { return };
        if let OutputItem::Reasoning { summary, content, .. } = &mut item {
            let (parts, kind) = match content {
                Some(content) => (content, REASONING_TEXT),
                None => (summary, SUMMARY_TEXT),
            };
            match parts.first_mut() {
                Some(part) => part.text += delta,
                None => parts.push(text_part(kind, delta)),
            }
        }
        self.extend(&item, delta, Vec::new());
        self.open = Some(OpenItem::Reasoning(item));
    }

    fn push_text(&mut self, delta: &str) {
        let is_open = matches!(self.open, Some(OpenItem::Text(_)));
        if !is_open && delta.trim().is_empty() {
            self.blank += delta;
            return;
        }
        let delta = std::mem::take(&mut self.blank) + delta;
        if !is_open {
            self.close(ItemStatus::Completed);
            let item = OutputItem::Message {
                id: self.item_id("msg"),
                status: ItemStatus::InProgress,
                role: "assistant".to_owned(),
                content: vec![OutputText::new(String::new(), Vec::new())],
            };
            self.begin(&item);
            self.open = Some(OpenItem::Text(item));
        }
        let Some(OpenItem::Text(mut item)) = self.open.take() else { return };
        let logprobs = std::mem::take(&mut self.logprobs);
        if let OutputItem::Message { content, .. } = &mut item
            && let Some(part) = content.first_mut()
        {
            part.text += &delta;
            part.logprobs.extend(logprobs.iter().cloned());
        }
        self.extend(&item, &delta, logprobs);
        self.open = Some(OpenItem::Text(item));
    }

    fn push_call(&mut self, call: ToolCallDelta) {
        let ToolCallDelta { index, id, function, .. } = call;
        if let (Some(call_id), Some(name)) = (id, function.name) {
            self.blank.clear();
            self.close(ItemStatus::Completed);
            self.open_call(index, call_id, &name);
        }
        let open = self.open.take();
        if open.as_ref().and_then(OpenItem::call_index) != Some(index) {
            self.open = open;
            return;
        }
        self.open = match open {
            Some(OpenItem::Call { index, mut item, mut custom }) => {
                let delta = match &mut custom {
                    Some(decoder) => decoder.push(&function.arguments),
                    None => function.arguments,
                };
                self.extend_call(&mut item, &delta);
                Some(OpenItem::Call { index, item, custom })
            }
            Some(OpenItem::WholeCall { index, call_id, tool, mut arguments }) => {
                arguments += &function.arguments;
                Some(OpenItem::WholeCall { index, call_id, tool, arguments })
            }
            other => other,
        };
    }

    fn open_call(&mut self, index: usize, call_id: String, chat_name: &str) {
        let tool = self.tools.by_chat_name(chat_name).cloned();
        let kind = tool.as_ref().map_or(ToolKind::Function, |tool| tool.kind);
        let (name, namespace) = match &tool {
            Some(tool) => (tool.name.clone(), tool.namespace.clone()),
            None => (chat_name.to_owned(), None),
        };
        let status = ItemStatus::InProgress;
        let item = match (kind, tool) {
            (ToolKind::Custom, _) => {
                let (id, input) = (self.item_id("ctc"), String::new());
                OutputItem::CustomToolCall { id, status, call_id, name, namespace, input }
            }
            (ToolKind::LocalShell | ToolKind::Shell | ToolKind::ApplyPatch, Some(tool)) => {
                self.open = Some(OpenItem::WholeCall { index, call_id, tool, arguments: String::new() });
                return;
            }
            _ => {
                let (id, arguments) = (self.item_id("fc"), String::new());
                OutputItem::FunctionCall { id, status, call_id, name, namespace, arguments }
            }
        };
        self.begin(&item);
        let custom = (kind == ToolKind::Custom).then(CustomInput::default);
        self.open = Some(OpenItem::Call { index, item, custom });
    }

    fn extend_call(&mut self, item: &mut OutputItem, delta: &str) {
        if let OutputItem::FunctionCall { arguments: text, .. }
        | OutputItem::CustomToolCall { input: text, .. } = item
        {
            *text += delta;
        }
        self.extend(item, delta, Vec::new());
    }

    /// Ends the response.
    pub fn finish(&mut self, reason: FinishReason, usage: &Usage, now: u64) {
        let is_cut = reason == FinishReason::Length;
        let blank = std::mem::take(&mut self.blank);
        let has_output = self.open.is_some() || !self.response.output.is_empty();
        if !has_output {
            // A response without any item would be taken for a broken one.
            self.open_empty_text(&blank);
        }
        self.close(if is_cut { ItemStatus::Incomplete } else { ItemStatus::Completed });
        self.response.usage = Some(response_usage(usage));
        self.response.status = if is_cut { ResponseStatus::Incomplete } else { ResponseStatus::Completed };
        match is_cut {
            true => {
                self.response.incomplete_details =
                    Some(IncompleteDetails { reason: "max_output_tokens".to_owned() });
            }
            false => self.response.completed_at = Some(now),
        }
    }

    fn open_empty_text(&mut self, text: &str) {
        let content = vec![OutputText::new(text.to_owned(), std::mem::take(&mut self.logprobs))];
        let (id, status, role) = (self.item_id("msg"), ItemStatus::InProgress, "assistant".to_owned());
        let item = OutputItem::Message { id, status, role, content };
        self.begin(&item);
        if !text.is_empty() {
            self.extend(&item, text, Vec::new());
        }
        self.open = Some(OpenItem::Text(item));
    }

    /// Ends the response with an error.
    pub fn fail(&mut self, code: &str, message: &str) {
        self.close(ItemStatus::Incomplete);
        self.response.status = ResponseStatus::Failed;
        self.response.error = Some(ResponseFailure { code: code.to_owned(), message: message.to_owned() });
    }

    /// Ends the response because its client wants no more of it.
    pub fn cancel(&mut self) {
        self.close(ItemStatus::Incomplete);
        self.response.status = ResponseStatus::Cancelled;
    }

    /// Makes the last event, after [`finish`](Self::finish), [`fail`](Self::fail) or [`cancel`](Self::cancel).
    /// `is_stored` is whether the response is in the store.
    pub fn end_stream(&mut self, is_stored: bool) {
        self.response.store = is_stored;
        if self.is_streamed {
            self.emit(vec![final_event(self.response.clone())]);
        }
    }

    /// Begins an item.
    fn begin(&mut self, item: &OutputItem) {
        self.deltas.push(Vec::new());
        if self.is_streamed {
            self.emit(opening_events(item, self.response.output.len()));
        }
    }

    /// Notes a delta of the open item.
    fn extend(&mut self, item: &OutputItem, delta: &str, logprobs: Vec<OutputLogprob>) {
        if delta.is_empty() {
            return;
        }
        if let Some(deltas) = self.deltas.last_mut() {
            deltas.push(u32::try_from(delta.len()).unwrap_or(u32::MAX));
        }
        if self.is_streamed {
            let event = delta_event(item, self.response.output.len(), delta.to_owned(), logprobs);
            self.emit(event.into_iter().collect());
        }
    }

    /// Closes the open item and adds it to the output.
    fn close(&mut self, end: ItemStatus) {
        let item = match self.open.take() {
            None => return,
            Some(OpenItem::Text(item) | OpenItem::Reasoning(item)) => item,
            Some(OpenItem::Call { mut item, custom, .. }) => {
                let rest = custom.map(|mut decoder| decoder.finish()).unwrap_or_default();
                self.extend_call(&mut item, &rest);
                item
            }
            Some(OpenItem::WholeCall { call_id, tool, arguments, .. }) => {
                let item = self.whole_call(call_id, &tool, &arguments);
                self.begin(&emptied(&item));
                let text = item_text(&item).to_owned();
                self.extend(&item, &text, Vec::new());
                item
            }
        };
        let item = self.completed(item, end);
        if self.is_streamed {
            self.emit(closing_events(&item, self.response.output.len()));
        }
        self.response.output.push(item);
    }

    /// An item with its final status, and its reasoning signed if requested.
    fn completed(&self, mut item: OutputItem, end: ItemStatus) -> OutputItem {
        let reasoning = item_text(&item).to_owned();
        match &mut item {
            OutputItem::Message { status, .. }
            | OutputItem::FunctionCall { status, .. }
            | OutputItem::CustomToolCall { status, .. }
            | OutputItem::LocalShellCall { status, .. }
            | OutputItem::ShellCall { status, .. }
            | OutputItem::ApplyPatchCall { status, .. } => *status = end,
            OutputItem::Reasoning { status, encrypted_content, .. } => {
                *status = end;
                *encrypted_content = self.settings.signer.as_ref().map(|signer| signer.seal(&reasoning));
            }
            OutputItem::Compaction { .. } => {}
        }
        item
    }

    /// The item of a call of a shell or of the patch tool. A call of another form becomes one of a function, so that
    /// nothing is lost.
    fn whole_call(&self, call_id: String, tool: &OfferedTool, arguments: &str) -> OutputItem {
        let status = ItemStatus::InProgress;
        let fields = serde_json::from_str::<JsonMap>(arguments).ok();
        let has_list = |fields: &JsonMap, key: &str| fields.get(key).is_some_and(Value::is_array);
        match (tool.kind, fields) {
            (ToolKind::LocalShell, Some(mut action)) if has_list(&action, "command") => {
                action.insert("type".to_owned(), "exec".into());
                action.entry("env").or_insert_with(|| JsonMap::new().into());
                OutputItem::LocalShellCall { id: self.item_id("lsh"), status, call_id, action }
            }
            (ToolKind::Shell, Some(mut action)) if has_list(&action, "commands") => {
                for key in ["timeout_ms", "max_output_length"] {
                    action.entry(key).or_insert(Value::Null);
                }
                OutputItem::ShellCall { id: self.item_id("sh"), status, call_id, action }
            }
            (ToolKind::ApplyPatch, Some(operation))
                if operation.get("path").is_some_and(Value::is_string) =>
            {
                OutputItem::ApplyPatchCall { id: self.item_id("apc"), status, call_id, operation }
            }
            _ => OutputItem::FunctionCall {
                id: self.item_id("fc"),
                status,
                call_id,
                name: tool.name.clone(),
                namespace: None,
                arguments: arguments.to_owned(),
            },
        }
    }

    /// The id of the next item. It contains the response's own, so that references to items need no index.
    fn item_id(&self, prefix: &str) -> String {
        item_id(prefix, &self.response.id, self.response.output.len())
    }

    fn emit(&mut self, bodies: Vec<EventBody>) {
        for body in bodies {
            self.events.push(ResponseEvent { body, sequence_number: self.n_events });
            self.n_events += 1;
        }
    }
}

/// The id of an item of a response or conversation: the owner's id with another prefix, and a number.
pub fn item_id(prefix: &str, owner: &str, number: usize) -> String {
    let (_, unique) = owner.split_once('_').unwrap_or(("", owner));
    format!("{prefix}_{unique}{number:04x}")
}

/// The part of an item's id that its owner's id has, if the id is one of this server's.
pub fn owner_of_item(id: &str) -> Option<&str> {
    let (_, unique) = id.split_once('_')?;
    let owner = unique.get(..OWNER_CHARS)?;
    (unique.len() > OWNER_CHARS && owner.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(owner)
}

/// Length of the unique part of the ids of responses and conversations.
const OWNER_CHARS: usize = 32;

/// Token counts in the form of this API.
fn response_usage(usage: &Usage) -> ResponseUsage {
    ResponseUsage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: InputTokensDetails {
            cached_tokens: usage.prompt_tokens_details.cached_tokens,
            cache_write_tokens: 0,
        },
        output_tokens: usage.completion_tokens,
        output_tokens_details: OutputTokensDetails {
            reasoning_tokens: usage.completion_tokens_details.reasoning_tokens,
        },
        total_tokens: usage.total_tokens,
    }
}
