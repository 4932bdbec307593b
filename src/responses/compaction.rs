//! Compaction of a conversation: the user's messages stay, and a summary takes the place of everything else.

use serde_json::{Value, json};

use super::input::{ContextItem, item_type};
use super::reasoning_blob::BlobSigner;
use super::state::new_id;
use crate::error::{Error, Result};
use crate::openai::responses::output::{CompactionObject, OutputItem, ResponseObject};
use crate::openai::responses::{JsonMap, ResponseReasoning, ResponsesRequest};

/// Maximum number of tokens of a summary, about as many as a page of text has.
const MAX_SUMMARY_TOKENS: usize = 1024;

/// The last message of a conversation that is to be summarized.
const SUMMARY_REQUEST: &str = "Summarize our conversation so that it can go on without its earlier messages. State \
     the goal, the facts and decisions so far, the results of tools, and what is still open. Write only the summary.";

/// A request for the summary of a conversation, with the settings that a summary needs. It is not stored.
pub fn summary_request(request: ResponsesRequest) -> ResponsesRequest {
    let reasoning = ResponseReasoning { enabled: Some(false), ..ResponseReasoning::default() };
    ResponsesRequest { store: Some(false), reasoning: Some(reasoning), ..request }
}

/// Maximum number of tokens of the summary: a quarter of a short context.
pub fn max_summary_tokens(context_length: usize) -> usize {
    MAX_SUMMARY_TOKENS.min(context_length / 4)
}

/// A conversation, and after it the message that asks for its summary.
///
/// # Errors
/// When there is no conversation.
pub fn ask_for_summary(mut items: Vec<ContextItem>) -> Result<Vec<ContextItem>> {
    if items.is_empty() {
        return Err(Error::invalid(
            "input",
            "`input` is missing; send the conversation that is to be compacted",
        ));
    }
    let item = JsonMap::from_iter([
        ("role".to_owned(), "user".into()),
        ("content".to_owned(), SUMMARY_REQUEST.into()),
    ]);
    items.push(ContextItem { item, path: "input".to_owned(), is_stored: true });
    Ok(items)
}

/// The user's messages of a conversation that ends with the request for its summary, each with an id.
pub fn user_messages(items: &[ContextItem]) -> Vec<JsonMap> {
    let is_user_message = |context: &&ContextItem| {
        let kind = item_type(&context.item, &context.path);
        kind.is_ok_and(|kind| kind == "message")
            && context.item.get("role").is_some_and(|role| role == "user")
    };
    let conversation = &items[..items.len().saturating_sub(1)];
    conversation.iter().filter(is_user_message).map(|context| shown_message(&context.item)).collect()
}

/// A user's message in the form in which responses show messages.
fn shown_message(item: &JsonMap) -> JsonMap {
    let content = match item.get("content") {
        Some(Value::String(text)) => json!([{"type": "input_text", "text": text}]),
        content => json!(content),
    };
    let id = item.get("id").cloned().unwrap_or_else(|| new_id("msg").into());
    let message =
        json!({"id": id, "type": "message", "status": "completed", "role": "user", "content": content});
    message.as_object().cloned().unwrap_or_default()
}

/// The compacted conversation: `messages`, then the summary that `response` has.
///
/// # Errors
/// When the model has written no summary.
pub fn compacted(
    messages: Vec<JsonMap>,
    response: ResponseObject,
    signer: &BlobSigner,
) -> Result<CompactionObject> {
    let summary: String = response.output.iter().flat_map(texts).collect();
    if summary.trim().is_empty() {
        let message = "the model wrote an empty summary; send the request again, or continue with the whole conversation";
        return Err(Error::invalid("input", message));
    }
    let item = OutputItem::Compaction { id: new_id("cmp"), encrypted_content: signer.seal(summary.trim()) };
    let output = messages.into_iter().map(Value::Object).chain([json!(item)]).collect();
    Ok(CompactionObject {
        id: response.id,
        object: "response.compaction",
        created_at: response.created_at,
        output,
        usage: response.usage.unwrap_or_default(),
    })
}

fn texts(item: &OutputItem) -> Vec<&str> {
    match item {
        OutputItem::Message { content, .. } => content.iter().map(|part| part.text.as_str()).collect(),
        _ => Vec::new(),
    }
}
