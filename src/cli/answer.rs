//! One answer: streamed from the server to the screen, with its figures.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::ApiClient;
use super::output::Screen;
use crate::error::Result;

/// An answer, as far as it was received.
#[derive(Debug, Default)]
pub struct StreamedAnswer {
    /// The text, without the reasoning.
    pub text: String,
    /// Whether the limit of tokens ended it.
    pub is_cut: bool,
    /// Token counts and times, if the server sent them.
    pub figures: Option<AnswerFigures>,
}

/// Token counts and times of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerFigures {
    n_prompt: u64,
    n_cached: u64,
    n_generated: u64,
    n_accepted_drafts: u64,
    /// Time until the first text.
    first_text: Duration,
    /// Time from the first text to the end.
    rest: Duration,
}

impl AnswerFigures {
    /// The figures of a `usage` object and the times that the client measured.
    fn new(usage: &Value, first_text: Duration, rest: Duration) -> Option<Self> {
        let n = |value: &Value| value.as_u64().unwrap_or_default();
        Some(Self {
            n_prompt: usage["prompt_tokens"].as_u64()?,
            n_cached: n(&usage["prompt_tokens_details"]["cached_tokens"]),
            n_generated: usage["completion_tokens"].as_u64()?,
            n_accepted_drafts: n(&usage["completion_tokens_details"]["accepted_prediction_tokens"]),
            first_text,
            rest,
        })
    }

    /// The figures on one line.
    pub fn line(&self) -> String {
        let Self { n_prompt, n_cached, n_generated, n_accepted_drafts, first_text, rest } = *self;
        let mut line = format!("{n_generated} {}", if n_generated == 1 { "token" } else { "tokens" });
        // The first one came with the prompt.
        if n_generated > 1 && !rest.is_zero() {
            line += &format!(", {:.1} tokens/s", (n_generated - 1) as f64 / rest.as_secs_f64());
        }
        line += &format!(
            ", first after {:.2} s; prompt of {n_prompt} tokens, {n_cached} cached",
            first_text.as_secs_f64()
        );
        if n_accepted_drafts > 0 {
            line += &format!("; {n_accepted_drafts} draft tokens accepted");
        }
        line
    }
}

/// Sends a request, and prints the answer as it is generated, its reasoning before it.
/// What was received is in `answer` even if this is dropped or fails.
///
/// # Errors
/// When the server refuses the request, or the connection is lost.
pub async fn stream_answer(
    client: &ApiClient,
    request: &Value,
    screen: &mut Screen,
    answer: &mut StreamedAnswer,
) -> Result<()> {
    let started = Instant::now();
    let mut stream = client.stream(&["v1", "chat", "completions"], request).await?;
    if let Some(names) = &stream.ignored {
        screen.remark(&format!("the server ignored {names}"));
    }
    let (mut first_text, mut usage) = (None, Value::Null);
    while let Some(mut event) = stream.next().await? {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        // vLLM's name for the same.
        let reasoning = delta["reasoning_content"].as_str().or_else(|| delta["reasoning"].as_str());
        if let Some(reasoning) = reasoning.filter(|text| !text.is_empty()) {
            first_text.get_or_insert_with(Instant::now);
            screen.reasoning(reasoning);
        }
        if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
            first_text.get_or_insert_with(Instant::now);
            screen.answer(text)?;
            answer.text.push_str(text);
        }
        answer.is_cut |= choice["finish_reason"] == "length";
        if event["usage"].is_object() {
            usage = event["usage"].take();
        }
    }
    let ended = Instant::now();
    let first_text = first_text.unwrap_or(ended);
    answer.figures = AnswerFigures::new(&usage, first_text - started, ended - first_text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_fit_on_a_line() {
        let usage = json!({
            "prompt_tokens": 30, "completion_tokens": 41, "prompt_tokens_details": {"cached_tokens": 24},
        });
        let (first, rest) = (Duration::from_millis(120), Duration::from_millis(500));
        let figures = AnswerFigures::new(&usage, first, rest).unwrap();
        assert_eq!(
            figures.line(),
            "41 tokens, 80.0 tokens/s, first after 0.12 s; prompt of 30 tokens, 24 cached"
        );
        let usage = json!({
            "prompt_tokens": 3, "completion_tokens": 1,
            "completion_tokens_details": {"accepted_prediction_tokens": 7},
        });
        assert_eq!(
            AnswerFigures::new(&usage, first, rest).unwrap().line(),
            "1 token, first after 0.12 s; prompt of 3 tokens, 0 cached; 7 draft tokens accepted"
        );
        assert_eq!(AnswerFigures::new(&Value::Null, first, rest), None);
    }
}
