//! Messages in, deltas out.
//!
//! A [`ChatModel`] turns a conversation into a prompt with the model's own template, hands it to
//! the engine, and turns the engine's events into what the API says. It knows no tensors.

mod completion;
mod event;
mod generation_options;
mod model;
mod prompt;
mod reasoning;
mod response_cache;
mod stream;
mod structured;
pub mod template;
mod template_probe;
mod tools;
mod truncate;

use std::sync::Arc;

pub use completion::CompletionStream;
pub use event::{ChatEvent, Figures};
pub use model::ChatModel;
use prompt::Prompt;
pub use response_cache::ResponseCache;
pub use stream::ChatStream;
pub use template::{ChatTemplate, TemplateSource};
use tools::{CallParser, Tools};
use truncate::piece_bytes;

use crate::error::Result;
use crate::inference::Admission;
use crate::openai::chat::ChatCompletionRequest;

impl ChatModel {
    /// Starts to answer a conversation that has a place, for `tenant`.
    ///
    /// # Errors
    /// When a parameter is out of its range, the template refuses the messages, or the prompt does
    /// not fit the context.
    pub fn answer(
        self: &Arc<Self>,
        admission: Admission,
        request: &ChatCompletionRequest,
        tenant: Arc<str>,
    ) -> Result<ChatStream> {
        // The parameters first: checking them costs nothing.
        let mut generation = generation_options::generation_request(request, tenant)?;
        let n_choices = generation_options::n_choices(request)?;
        generation.prediction = self.predicted(request)?;
        let tools = Tools::of(request)?;
        let mut asked = structured::asked(request)?;
        let Prompt { tokens, ignored_fields, reasoning, format } =
            self.prompt(request, tools.as_ref(), generation.max_tokens)?;
        generation.prompt = tokens;
        let special = |text: &str| self.tokenizer.special_token_id(text);
        if let Some(tools) = &tools {
            let marks = [format.open, format.close].into_iter().chain(format.named_by);
            generation.visible_tokens = marks.filter_map(special).collect();
            asked = tools::asked(tools, format, special, asked)?;
        }
        let generation_is_free = asked.is_none();
        generation.constraint = self.constraint(asked, reasoning.as_ref())?;
        let generations = self.engine.submit(self.places(admission, n_choices)?, generation)?;
        let reasoning = vec![reasoning; n_choices].into_iter().flatten().collect();
        // What a grammar takes for text is no call.
        let reads_unmarked = format.is_open_optional || generation_is_free;
        let calls = tools.map(|tools| CallParser::new(format, tools.names(), reads_unmarked));
        let calls = vec![calls; n_choices].into_iter().flatten().collect();
        Ok(ChatStream { reasoning, calls, ..ChatStream::new(self.clone(), generations, 1, ignored_fields) })
    }

    /// Token ids of what the client predicts, of which no more is of use than a context holds.
    fn predicted(&self, request: &ChatCompletionRequest) -> Result<Vec<u32>> {
        let Some(text) = prompt::prediction(request)? else { return Ok(Vec::new()) };
        let context_length = self.engine.context_length();
        let mut tokens =
            self.tokenizer.encode(&text[..text.floor_char_boundary(piece_bytes(context_length))])?;
        tokens.truncate(context_length);
        Ok(tokens)
    }
}
