//! The response cache: complete responses, replayed for the same request of the same client.
//!
//! Only deterministic requests are cached: those at temperature 0 or with a seed.

use std::mem::size_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::event::ChatEvent;
use super::generation_request::{chat_generation_request, num_choices};
use crate::cache::Cache;
use crate::inference::Caller;
use crate::openai::chat::{ChatCompletionRequest, TokenLogprob};
use crate::openai::generation_options::GenerationOptions;
use crate::telemetry;

/// A cache of complete responses with a time to live and a byte budget.
pub struct ResponseCache {
    max_bytes: usize,
    responses: Mutex<Cache<Arc<str>, Arc<CachedResponse>>>,
}

/// A complete response.
pub struct CachedResponse {
    /// The fingerprint of the model that generated it.
    pub fingerprint: String,
    /// Paths of request fields that had no effect.
    pub ignored_fields: Vec<String>,
    /// Number of choices.
    pub n_choices: usize,
    /// All events in order, each with the index of its choice.
    pub events: Vec<(usize, ChatEvent)>,
}

/// Records a response while it is generated, and stores it in the cache once it is complete.
pub struct ResponseRecorder {
    cache: Arc<ResponseCache>,
    key: Arc<str>,
    response: CachedResponse,
    /// Number of choices that have finished.
    n_finished: usize,
    n_bytes: usize,
}

/// Everything that a response depends on.
#[derive(Serialize)]
struct ResponseKey<'a> {
    tenant: &'a str,
    model: &'a str,
    request: &'a ChatCompletionRequest,
    /// Today's date, which templates may put into the prompt.
    date: String,
}

impl CachedResponse {
    /// Tokens of the prompt.
    pub fn n_prompt_tokens(&self) -> usize {
        let usage = |(_, event): &(usize, ChatEvent)| match event {
            ChatEvent::Finished { usage, .. } => Some(usage.prompt_tokens),
            _ => None,
        };
        self.events.iter().find_map(usage).unwrap_or(0)
    }
}

impl ResponseCache {
    /// An empty cache.
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { max_bytes, responses: Mutex::new(Cache::new(max_bytes, time_to_live)) }
    }

    /// The key of the response to a request, or `None` if the response is not deterministic.
    pub fn key(tenant: &str, model: &str, request: &ChatCompletionRequest) -> Option<Arc<str>> {
        let is_deterministic = request.options.temperature == Some(0.0) || request.options.seed.is_some();
        // An invalid request must be refused even if a valid one has the same key.
        let is_valid = chat_generation_request(request, Caller::default()).is_ok()
            && num_choices(&request.options).is_ok();
        // The scores of a prompt can be much larger than the response.
        if !is_deterministic || !is_valid || request.options.prompt_logprobs.is_some() {
            return None;
        }
        // These do not change the content of the response.
        let options = GenerationOptions { stream: None, stream_options: None, ..request.options.clone() };
        let request = &ChatCompletionRequest { prediction: None, options, ..request.clone() };
        let date = jiff::Zoned::now().date().to_string();
        serde_json::to_string(&ResponseKey { tenant, model, request, date }).ok().map(Arc::from)
    }

    /// The response stored under `key`.
    pub fn get(&self, key: &str) -> Option<Arc<CachedResponse>> {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        let response = responses.get(key, SystemTime::now());
        metrics::gauge!(telemetry::RESPONSE_BYTES).set(responses.n_bytes() as f64);
        metrics::counter!(telemetry::RESPONSE_HITS).increment(u64::from(response.is_some()));
        response
    }

    /// Starts to record a response that is about to be generated.
    pub fn start_recording(
        self: &Arc<Self>,
        key: Arc<str>,
        n_choices: usize,
        fingerprint: &str,
        ignored_fields: &[String],
    ) -> ResponseRecorder {
        metrics::counter!(telemetry::RESPONSE_MISSES).increment(1);
        let response = CachedResponse {
            fingerprint: fingerprint.to_owned(),
            ignored_fields: ignored_fields.to_vec(),
            n_choices,
            events: Vec::new(),
        };
        ResponseRecorder { cache: self.clone(), n_bytes: 2 * key.len(), key, response, n_finished: 0 }
    }
}

impl ResponseRecorder {
    /// Records an event of a choice. Returns the recorder while the response is incomplete; drops it, and the
    /// recording, after a failure or when the response outgrows the cache.
    pub fn push(mut self, choice: usize, event: &ChatEvent) -> Option<Self> {
        self.n_finished += usize::from(matches!(event, ChatEvent::Finished { .. }));
        self.n_bytes += event_bytes(event);
        self.response.events.push((choice, event.clone()));
        if matches!(event, ChatEvent::Failed(_)) || self.n_bytes > self.cache.max_bytes {
            return None;
        }
        if self.n_finished < self.response.n_choices {
            return Some(self);
        }
        self.store();
        None
    }

    fn store(self) {
        let Self { cache, key, response, n_bytes, .. } = self;
        let mut responses = cache.responses.lock().unwrap_or_else(PoisonError::into_inner);
        responses.insert(key, Arc::new(response), n_bytes, SystemTime::now());
        metrics::gauge!(telemetry::RESPONSE_BYTES).set(responses.n_bytes() as f64);
    }
}

/// Memory that an event takes.
fn event_bytes(event: &ChatEvent) -> usize {
    let token_bytes = |entry: &TokenLogprob| {
        let top = entry.top_logprobs.iter().map(|top| size_of_val(top) + top.token.len() + top.bytes.len());
        size_of_val(entry) + entry.token.len() + entry.bytes.len() + top.sum::<usize>()
    };
    size_of::<(usize, ChatEvent)>()
        + match event {
            ChatEvent::Content { text, reasoning, logprobs, .. } => {
                let tokens = logprobs.iter().flat_map(|logprobs| &logprobs.content);
                text.len() + reasoning.len() + tokens.map(token_bytes).sum::<usize>()
            }
            ChatEvent::Finished { stop, .. } => stop.as_ref().map_or(0, String::len),
            ChatEvent::Failed(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key(tenant: &str, fields: Value) -> Option<Arc<str>> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = ChatCompletionRequest::from_object(body.as_object().unwrap().clone()).unwrap();
        ResponseCache::key(tenant, "m", &request)
    }

    #[test]
    fn only_deterministic_requests_have_a_key() {
        assert!(key("", json!({})).is_some());
        assert!(key("", json!({"temperature": 1})).is_none());
        assert!(key("", json!({"temperature": null})).is_none());
        assert!(key("", json!({"temperature": 1, "seed": 3})).is_some());
        assert!(key("", json!({"prompt_logprobs": 0})).is_none());
        let invalid =
            [json!({"stream_options": {"include_usage": true}}), json!({"top_p": 1e40}), json!({"n": 17})];
        assert!(invalid.into_iter().all(|invalid| key("", invalid).is_none()));
    }

    #[test]
    fn fields_that_change_the_response_change_the_key() {
        let plain = key("", json!({}));
        for same in [json!({"stream": true}), json!({"stream": false, "seed": null}), json!({"user": "u"})] {
            assert_eq!(key("", same), plain);
        }
        for other in [
            json!({"seed": 1}),
            json!({"max_tokens": 3}),
            json!({"n": 2}),
            json!({"logprobs": true}),
            json!({"stop": "x"}),
            json!({"cache_salt": "x"}),
            json!({"messages": [{"role": "system", "content": "hi"}]}),
            json!({"logit_bias": {"1": 1}}),
        ] {
            assert_ne!(key("", other.clone()), plain, "{other}");
        }
        assert_ne!(key("someone", json!({})), plain);
    }
}
