//! Decisions: questions about an input, answered by the probabilities of their labels instead of by a text.
//!
//! A request of either API becomes a [`DecisionTask`]: the input as text, and questions, each with a text that ends a
//! prompt and with labels. The prompts share their beginning, which holds the input. The model's log probability of each
//! whole label, its end included, comes from the engine; the answers are these, relative to each other.

mod answer;
mod input;
mod question;
mod system_one;

pub use answer::{LabelProbabilities, decision};
pub use question::DecisionTask;
pub use system_one::system_one_response;

use crate::chat::{ChatModel, ContinuationRequest, ContinuedPrompt};
use crate::error::{Error, Result};
use crate::inference::Caller;

/// The beginning of every prompt.
const INSTRUCTIONS: &str = "Read the input, then answer the question about it. Reply with one of the given labels, \
                            exactly as it is written, and with nothing else.";

impl DecisionTask {
    /// The prompts and labels in the model's tokens, at most `max_tokens` of them.
    ///
    /// # Errors
    /// When they are more, the input does not fit the context, or a label has no tokens.
    pub fn prepare(
        &self,
        model: &ChatModel,
        caller: Caller,
        max_tokens: usize,
    ) -> Result<ContinuationRequest> {
        let beginning = format!("{INSTRUCTIONS}\n\n<input>\n{}\n</input>\n\n", self.input);
        let frame = model.prompt_frame(&beginning).map_err(|e| match e.param() {
            Some("messages") => e.with_param(self.input_param),
            _ => e,
        })?;
        let tokenizer = model.tokenizer();
        let mut n_tokens = frame.beginning.len();
        let mut prompts = Vec::with_capacity(self.questions.len());
        for question in &self.questions {
            let tokens = frame.fill(tokenizer, &question.text)?;
            let last = tokens.last().or(frame.beginning.last()).copied().unwrap_or_default();
            let texts = question.labels.iter().map(|label| frame.answer(tokenizer, last, label));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            let longest = texts.iter().map(Vec::len).max().unwrap_or_default();
            let n_prompt = frame.beginning.len() + tokens.len() + longest;
            if n_prompt > model.engine().context_length() {
                return Err(model
                    .engine()
                    .prompt_too_long(&n_prompt.to_string())
                    .with_param(self.input_param));
            }
            n_tokens += tokens.len() + texts.iter().map(Vec::len).sum::<usize>();
            if n_tokens > max_tokens {
                let message = format!(
                    "input, questions and labels have more than {max_tokens} tokens, the limit of one request; send \
                     fewer questions or choices at a time"
                );
                return Err(Error::invalid("questions", message));
            }
            prompts.push(ContinuedPrompt { tokens, texts });
        }
        let cache_salt = self.cache_salt.clone();
        Ok(ContinuationRequest { beginning: frame.beginning, prompts, ends: frame.ends, caller, cache_salt })
    }
}
