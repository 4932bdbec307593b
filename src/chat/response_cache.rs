//! Answers that were given before, for the same request of the same client: only where the model would say the
//! same again, which it does at temperature 0 or with a seed.

use std::mem::size_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::event::ChatEvent;
use super::generation_options::{generation_request, n_choices};
use crate::cache::Cache;
use crate::openai::chat::{ChatCompletionRequest, TokenLogprob};
use crate::telemetry;

/// Whole answers, by what they are answers to.
pub struct ResponseCache {
    max_bytes: usize,
    answers: Mutex<Cache<Arc<str>, Arc<Answer>>>,
}

/// An answer as it was given.
pub struct Answer {
    pub fingerprint: String,
    pub ignored_fields: Vec<String>,
    pub n_choices: usize,
    /// Each with its choice.
    pub events: Vec<(usize, ChatEvent)>,
}

/// An answer in the making, and where it is to be kept.
pub struct Recording {
    cache: Arc<ResponseCache>,
    key: Arc<str>,
    answer: Answer,
    /// How many choices have ended.
    n_finished: usize,
    n_bytes: usize,
}

/// All that an answer depends on.
#[derive(Serialize)]
struct Key<'a> {
    tenant: &'a str,
    model: &'a str,
    request: &'a ChatCompletionRequest,
    /// Templates may tell the model.
    date: String,
}

impl ResponseCache {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { max_bytes, answers: Mutex::new(Cache::new(max_bytes, time_to_live)) }
    }

    /// The name under which the answer to a request is kept; none if another try might be answered otherwise.
    pub fn key(tenant: &str, model: &str, request: &ChatCompletionRequest) -> Option<Arc<str>> {
        let is_certain = request.temperature == Some(0.0) || request.seed.is_some();
        // What is to be refused is refused even if it looks like something that was answered.
        let is_sound = generation_request(request, Arc::default()).is_ok() && n_choices(request).is_ok();
        if !is_certain || !is_sound {
            return None;
        }
        // How it is sent does not change what it says.
        let request = &ChatCompletionRequest {
            stream: None,
            stream_options: None,
            prediction: None,
            ..request.clone()
        };
        let date = jiff::Zoned::now().date().to_string();
        serde_json::to_string(&Key { tenant, model, request, date }).ok().map(Arc::from)
    }

    /// The answer that is kept under a key.
    pub fn find(&self, key: &str) -> Option<Arc<Answer>> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let found = answers.get(key, SystemTime::now());
        metrics::gauge!(telemetry::RESPONSE_BYTES).set(answers.n_bytes() as f64);
        metrics::counter!(telemetry::RESPONSE_HITS).increment(u64::from(found.is_some()));
        found
    }

    /// Keeps the events of an answer that is about to be given, once it is whole.
    pub fn record(
        self: &Arc<Self>,
        key: Arc<str>,
        n_choices: usize,
        fingerprint: &str,
        ignored_fields: &[String],
    ) -> Recording {
        metrics::counter!(telemetry::RESPONSE_MISSES).increment(1);
        let answer = Answer {
            fingerprint: fingerprint.to_owned(),
            ignored_fields: ignored_fields.to_vec(),
            n_choices,
            events: Vec::new(),
        };
        Recording { cache: self.clone(), n_bytes: 2 * key.len(), key, answer, n_finished: 0 }
    }
}

impl Recording {
    /// Adds an event of a choice of an answer; gives the recording back if more is to come and it is worth
    /// going on, which it is not after a failure, nor when there would be no room for it.
    pub fn push(mut self, choice: usize, event: &ChatEvent) -> Option<Self> {
        self.n_finished += usize::from(matches!(event, ChatEvent::Finished { .. }));
        self.n_bytes += n_bytes(event);
        self.answer.events.push((choice, event.clone()));
        if matches!(event, ChatEvent::Failed(_)) || self.n_bytes > self.cache.max_bytes {
            return None;
        }
        if self.n_finished < self.answer.n_choices {
            return Some(self);
        }
        self.keep();
        None
    }

    /// Keeps it for those who ask again.
    fn keep(self) {
        let Self { cache, key, answer, n_bytes, .. } = self;
        let mut answers = cache.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(key, Arc::new(answer), n_bytes, SystemTime::now());
        metrics::gauge!(telemetry::RESPONSE_BYTES).set(answers.n_bytes() as f64);
    }
}

/// Bytes that an event takes.
fn n_bytes(event: &ChatEvent) -> usize {
    let of_token = |entry: &TokenLogprob| {
        let top = entry.top_logprobs.iter().map(|top| size_of_val(top) + top.token.len() + top.bytes.len());
        size_of_val(entry) + entry.token.len() + entry.bytes.len() + top.sum::<usize>()
    };
    size_of::<(usize, ChatEvent)>()
        + match event {
            ChatEvent::Content { text, reasoning, logprobs, .. } => {
                text.len()
                    + reasoning.len()
                    + logprobs.iter().flat_map(|logprobs| &logprobs.content).map(of_token).sum::<usize>()
            }
            ChatEvent::Finished { .. } | ChatEvent::Failed(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai;
    use serde_json::{Value, json};

    fn key(tenant: &str, fields: Value) -> Option<Arc<str>> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        ResponseCache::key(tenant, "m", &openai::from_value(body).unwrap())
    }

    #[test]
    fn only_what_is_certain_has_a_key() {
        assert!(key("", json!({})).is_some());
        assert!(key("", json!({"temperature": 1})).is_none());
        assert!(key("", json!({"temperature": null})).is_none());
        assert!(key("", json!({"temperature": 1, "seed": 3})).is_some());
        let wrong =
            [json!({"stream_options": {"include_usage": true}}), json!({"top_p": 1e40}), json!({"n": 9})];
        assert!(wrong.into_iter().all(|wrong| key("", wrong).is_none()));
    }

    #[test]
    fn what_changes_the_answer_changes_the_key() {
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
        assert_ne!(key("somebody", json!({})), plain);
    }
}
