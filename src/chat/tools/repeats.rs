//! The end of a loop of equal calls. Where a call is required, the grammar lets a model call again or stop, and a small
//! model at temperature 0 may repeat itself up to the largest number of calls.

use super::tool_set::{CallMode, ToolSet};
use crate::chat::event::ChatEvent;
use crate::inference::SamplingParams;
use crate::openai::chat::{FinishReason, ToolCallDelta};

/// A filter of the calls in one choice: holds back a call for as long as it equals an earlier one, and once all of it
/// does, drops it and everything after it.
#[derive(Debug, Clone, Default)]
pub struct RepeatedCalls {
    /// Name and arguments of each call so far.
    calls: Vec<(String, String)>,
    /// Deltas of the latest call, while it may be a repetition.
    held: Vec<ToolCallDelta>,
    is_ended: bool,
}

impl RepeatedCalls {
    /// A filter for requests in which a greedy model must call one of several `tools`, or the same several times.
    pub fn for_request(tools: Option<&ToolSet>, sampling: &SamplingParams) -> Option<Self> {
        let is_loop_possible =
            tools.is_some_and(|tools| tools.mode == CallMode::Required && tools.is_parallel);
        (is_loop_possible && sampling.temperature == 0.0).then(Self::default)
    }

    /// Whether a call was repeated.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The event without what repeats. Before the last event comes what was held back.
    pub fn filter(&mut self, event: ChatEvent) -> impl Iterator<Item = ChatEvent> + use<> {
        let (first, second) = match event {
            ChatEvent::Content { .. } if self.is_ended => (None, None),
            ChatEvent::Content { text, reasoning, calls, logprobs, n_tokens } => {
                let calls = calls.into_iter().flat_map(|delta| self.push(delta)).collect();
                (Some(ChatEvent::Content { text, reasoning, calls, logprobs, n_tokens }), None)
            }
            // The limit may have cut the text after the repetition.
            ChatEvent::Finished { usage, stats, .. } if self.is_ended => (
                None,
                Some(ChatEvent::Finished { reason: FinishReason::ToolCalls, stop: None, usage, stats }),
            ),
            last => {
                let calls = std::mem::take(&mut self.held);
                let (text, reasoning) = (String::new(), String::new());
                let rest = ChatEvent::Content { text, reasoning, calls, logprobs: None, n_tokens: 0 };
                let has_rest = matches!(&rest, ChatEvent::Content { calls, .. } if !calls.is_empty());
                (has_rest.then_some(rest), Some(last))
            }
        };
        first.into_iter().chain(second)
    }

    /// Takes a delta; returns those that need not be held back.
    fn push(&mut self, delta: ToolCallDelta) -> Vec<ToolCallDelta> {
        if self.is_ended {
            return Vec::new();
        }
        let is_new = delta.function.name.is_some();
        if let Some(name) = &delta.function.name {
            self.calls.push((name.clone(), String::new()));
        }
        let may_repeat = is_new || !self.held.is_empty();
        let Some(((name, arguments), earlier)) = self.calls.split_last_mut() else { return vec![delta] };
        arguments.push_str(&delta.function.arguments);
        self.held.push(delta);
        let mut equal = earlier.iter().filter(|(other, _)| may_repeat && other == name);
        if equal.clone().any(|(_, whole)| whole == arguments) {
            self.is_ended = true;
            self.held.clear();
            return Vec::new();
        }
        if equal.any(|(_, whole)| whole.starts_with(arguments.as_str())) {
            return Vec::new();
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::chat::{FunctionCallDelta, FunctionKind, Usage};

    fn add(left: &mut Vec<(String, String)>, events: impl Iterator<Item = ChatEvent>) {
        for event in events {
            let ChatEvent::Content { calls, .. } = event else { continue };
            for ToolCallDelta { function, .. } in calls {
                left.extend(function.name.map(|name| (name, String::new())));
                left.last_mut().unwrap().1 += &function.arguments;
            }
        }
    }

    /// What is left of calls whose arguments come in pieces of one character, and whether the filter has ended them.
    fn filtered(calls: &[(&str, &str)]) -> (Vec<(String, String)>, bool) {
        let mut filter = RepeatedCalls::default();
        let mut left: Vec<(String, String)> = Vec::new();
        for (index, (name, arguments)) in calls.iter().enumerate() {
            let first = ToolCallDelta {
                index,
                id: Some(format!("call_{index}")),
                kind: Some(FunctionKind::Function),
                function: FunctionCallDelta { name: Some((*name).to_owned()), arguments: String::new() },
            };
            let more = arguments.chars().map(|c| ToolCallDelta {
                index,
                id: None,
                kind: None,
                function: FunctionCallDelta { name: None, arguments: c.into() },
            });
            for delta in [first].into_iter().chain(more) {
                let event = ChatEvent::Content {
                    text: String::new(),
                    reasoning: String::new(),
                    calls: vec![delta],
                    logprobs: None,
                    n_tokens: 1,
                };
                add(&mut left, filter.filter(event));
            }
        }
        let end = ChatEvent::Finished {
            reason: FinishReason::Length,
            stop: None,
            usage: Usage::default(),
            stats: None,
        };
        add(&mut left, filter.filter(end));
        (left, filter.is_ended())
    }

    #[test]
    fn a_repeated_call_ends_the_calls() {
        let own = |calls: &[(&str, &str)]| -> Vec<(String, String)> {
            calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
        };
        let (a, b, long) = (("f", "{\"a\":1}"), ("f", "{\"a\":2}"), ("f", "{\"a\":10}"));
        for (calls, left, is_ended) in [
            (vec![a, b], vec![a, b], false),
            (vec![a, a], vec![a], true),
            (vec![a, b, a, b], vec![a, b], true),
            (vec![a, long, ("g", a.1), b], vec![a, long, ("g", a.1), b], false),
            (vec![a, a, b], vec![a], true),
            (vec![long, ("f", "{\"a\":1")], vec![long, ("f", "{\"a\":1")], false),
        ] {
            assert_eq!(filtered(&calls), (own(&left), is_ended), "{calls:?}");
        }
    }
}
