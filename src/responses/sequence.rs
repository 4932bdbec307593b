//! The order of a stream's events, for items that are generated now and for those of stored responses.

use crate::openai::responses::events::{EventBody, ResponseEvent, StreamedPart};
use crate::openai::responses::output::{
    ItemStatus, OutputItem, OutputLogprob, OutputText, ResponseObject, ResponseStatus, TextPart,
};

/// The type of a part with reasoning.
pub const REASONING_TEXT: &str = "reasoning_text";
/// The type of a part with a summary of the reasoning.
pub const SUMMARY_TEXT: &str = "summary_text";

/// A part with reasoning or its summary.
pub fn text_part(kind: &str, text: &str) -> TextPart {
    TextPart { kind: kind.to_owned(), text: text.to_owned() }
}

/// The events at the beginning of an item, whose text is still empty.
pub fn opening_events(item: &OutputItem, output_index: usize) -> Vec<EventBody> {
    let mut added = item.clone();
    let item_id = item.id().to_owned();
    let part = match &mut added {
        OutputItem::Message { content, .. } => {
            content.clear();
            let part = StreamedPart::Output(OutputText::new(String::new(), Vec::new()));
            Some(EventBody::PartAdded { item_id, output_index, content_index: 0, part })
        }
        OutputItem::Reasoning { content: Some(content), .. } => {
            content.clear();
            let part = StreamedPart::Reasoning(text_part(REASONING_TEXT, ""));
            Some(EventBody::PartAdded { item_id, output_index, content_index: 0, part })
        }
        OutputItem::Reasoning { summary, .. } => {
            summary.clear();
            let part = text_part(SUMMARY_TEXT, "");
            Some(EventBody::SummaryPartAdded { item_id, output_index, summary_index: 0, part })
        }
        _ => None,
    };
    [EventBody::ItemAdded { output_index, item: added }].into_iter().chain(part).collect()
}

/// The event that adds `delta` to an item; none for items that come whole.
pub fn delta_event(
    item: &OutputItem,
    output_index: usize,
    delta: String,
    logprobs: Vec<OutputLogprob>,
) -> Option<EventBody> {
    let item_id = item.id().to_owned();
    Some(match item {
        OutputItem::Message { .. } => {
            EventBody::TextDelta { item_id, output_index, content_index: 0, delta, logprobs }
        }
        OutputItem::Reasoning { content: Some(_), .. } => {
            EventBody::ReasoningDelta { item_id, output_index, content_index: 0, delta }
        }
        OutputItem::Reasoning { .. } => {
            EventBody::SummaryDelta { item_id, output_index, summary_index: 0, delta }
        }
        OutputItem::FunctionCall { .. } => EventBody::ArgumentsDelta { item_id, output_index, delta },
        OutputItem::CustomToolCall { .. } => EventBody::CustomInputDelta { item_id, output_index, delta },
        _ => return None,
    })
}

/// The events at the end of an item.
pub fn closing_events(item: &OutputItem, output_index: usize) -> Vec<EventBody> {
    let item_id = item.id().to_owned();
    let mut events = Vec::with_capacity(3);
    match item {
        OutputItem::Message { content, .. } => {
            let part = content.first().cloned().unwrap_or_else(|| OutputText::new(String::new(), Vec::new()));
            events.push(EventBody::TextDone {
                item_id: item_id.clone(),
                output_index,
                content_index: 0,
                text: part.text.clone(),
                logprobs: part.logprobs.clone(),
            });
            events.push(EventBody::PartDone {
                item_id,
                output_index,
                content_index: 0,
                part: StreamedPart::Output(part),
            });
        }
        OutputItem::Reasoning { content: Some(_), .. } => {
            let part = text_part(REASONING_TEXT, item_text(item));
            let text = part.text.clone();
            let id = item_id.clone();
            events.push(EventBody::ReasoningDone { item_id: id, output_index, content_index: 0, text });
            let part = StreamedPart::Reasoning(part);
            events.push(EventBody::PartDone { item_id, output_index, content_index: 0, part });
        }
        OutputItem::Reasoning { .. } => {
            let part = text_part(SUMMARY_TEXT, item_text(item));
            let text = part.text.clone();
            let id = item_id.clone();
            events.push(EventBody::SummaryDone { item_id: id, output_index, summary_index: 0, text });
            events.push(EventBody::SummaryPartDone { item_id, output_index, summary_index: 0, part });
        }
        OutputItem::FunctionCall { name, arguments, .. } => events.push(EventBody::ArgumentsDone {
            item_id,
            output_index,
            name: name.clone(),
            arguments: arguments.clone(),
        }),
        OutputItem::CustomToolCall { input, .. } => {
            events.push(EventBody::CustomInputDone { item_id, output_index, input: input.clone() });
        }
        _ => {}
    }
    events.push(EventBody::ItemDone { output_index, item: item.clone() });
    events
}

/// The event at the end of a response.
pub fn final_event(response: ResponseObject) -> EventBody {
    let status = response.status;
    let response = Box::new(response);
    match status {
        ResponseStatus::Completed => EventBody::Completed { response },
        ResponseStatus::Incomplete => EventBody::Incomplete { response },
        ResponseStatus::Cancelled => EventBody::Cancelled { response },
        _ => EventBody::Failed { response },
    }
}

/// The events at the beginning of a response.
pub fn first_events(response: &ResponseObject) -> Vec<EventBody> {
    let at_start = ResponseObject {
        status: ResponseStatus::InProgress,
        completed_at: None,
        error: None,
        incomplete_details: None,
        output: Vec::new(),
        usage: None,
        ..response.clone()
    };
    let queued = response.background.then(|| {
        let response = ResponseObject { status: ResponseStatus::Queued, ..at_start.clone() };
        EventBody::Queued { response: Box::new(response) }
    });
    let created = EventBody::Created { response: Box::new(at_start.clone()) };
    let in_progress = EventBody::InProgress { response: Box::new(at_start) };
    [created].into_iter().chain(queued).chain([in_progress]).collect()
}

/// The text of an item that comes in deltas.
pub fn item_text(item: &OutputItem) -> &str {
    match item {
        OutputItem::Message { content, .. } => content.first().map_or("", |part| &part.text),
        OutputItem::Reasoning { content: Some(parts), .. } | OutputItem::Reasoning { summary: parts, .. } => {
            parts.first().map_or("", |part| &part.text)
        }
        OutputItem::FunctionCall { arguments, .. } => arguments,
        OutputItem::CustomToolCall { input, .. } => input,
        _ => "",
    }
}

/// An item as it was when it began.
pub fn emptied(item: &OutputItem) -> OutputItem {
    let mut item = item.clone();
    match &mut item {
        OutputItem::Message { content, status, .. } => {
            content.clear();
            *status = ItemStatus::InProgress;
        }
        OutputItem::Reasoning { summary, content, encrypted_content, status, .. } => {
            summary.clear();
            content.iter_mut().for_each(Vec::clear);
            *encrypted_content = None;
            *status = ItemStatus::InProgress;
        }
        OutputItem::FunctionCall { arguments: text, status, .. }
        | OutputItem::CustomToolCall { input: text, status, .. } => {
            text.clear();
            *status = ItemStatus::InProgress;
        }
        _ => {}
    }
    item
}

/// All events of a stored response, with the numbers that they had when it was generated. `deltas` has the bytes of
/// every delta of every item.
pub fn replay(response: &ResponseObject, deltas: &[Vec<u32>]) -> Vec<ResponseEvent> {
    let mut bodies = first_events(response);
    for (idx, item) in response.output.iter().enumerate() {
        bodies.extend(opening_events(&emptied(item), idx));
        let mut rest = item_text(item);
        for &n_bytes in deltas.get(idx).into_iter().flatten() {
            let Some((delta, more)) = rest.split_at_checked(n_bytes as usize) else { break };
            bodies.extend(delta_event(item, idx, delta.to_owned(), Vec::new()));
            rest = more;
        }
        bodies.extend(closing_events(item, idx));
    }
    bodies.push(final_event(response.clone()));
    (0..).zip(bodies).map(|(sequence_number, body)| ResponseEvent { body, sequence_number }).collect()
}
