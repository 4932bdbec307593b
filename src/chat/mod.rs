//! Chat: messages in, response deltas out.
//!
//! A [`ChatModel`] renders a conversation with the model's own template, submits the prompt to the
//! engine, and turns the engine's events into response deltas. It knows no tensors.

mod completion;
mod continuation_scores;
mod event;
mod generation_request;
mod harmony;
mod model;
mod prompt;
mod prompt_frame;
mod reasoning;
mod response_cache;
mod scored_prompt;
mod stream;
mod structural_tag;
mod structured;
mod system_messages;
pub mod template;
mod template_probe;
mod text_offset;
mod tools;
mod truncate;

use std::sync::Arc;

pub use completion::CompletionStream;
pub use continuation_scores::{ContinuationRequest, ContinuationScores, ContinuedPrompt};
pub use event::{ChatEvent, GenerationStats};
pub use generation_request::chat_generation_request;
use generation_request::{TokenLimit, num_choices};
pub use model::ChatModel;
pub use prompt::RenderedPrompt;
use prompt::prediction_text;
use reasoning::{ReasoningMarks, ReasoningParser};
pub use response_cache::ResponseCache;
pub use scored_prompt::{PromptToken, prompt_logprobs};
pub use stream::{CacheStatus, ChatStream};
pub use structured::ConstraintSpec;
use structured::{constraint_of, unenforced_keywords};
pub use template::{ChatTemplate, TemplateSource, builtin_names, builtin_template};
pub use text_offset::TextOffset;
use tools::{RepeatedCalls, ToolCallFormat, ToolCallParser, ToolSet, tool_constraint};
use truncate::{max_chunk_bytes, max_prompt_tokens};

use crate::error::Result;
use crate::inference::{Admission, CompiledGrammar, Scoring};
pub use crate::inference::{Caller, Priority};
use crate::openai::chat::ChatCompletionRequest;

impl ChatModel {
    /// The grammar of the response to a conversation, if it has one.
    ///
    /// # Errors
    /// When it is malformed, several are requested, or `tools` are.
    pub fn chat_grammar(&self, request: &ChatCompletionRequest) -> Result<Option<ConstraintSpec>> {
        let spec = constraint_of(&request.options)?;
        let special = |text: &str| self.tokenizer.special_token_id(text);
        match ToolSet::from_request(request)? {
            None => Ok(spec),
            Some(tools) => tool_constraint(&tools, self.call_format()?, special, spec),
        }
    }

    /// Checks the parameters and the functions of a request, but not its messages.
    ///
    /// # Errors
    /// When one is out of range or malformed; the error names it.
    pub fn check_parameters(&self, request: &ChatCompletionRequest) -> Result<()> {
        chat_generation_request(request, Caller::default())?;
        self.chat_grammar(request).map(drop)
    }

    /// Number of tokens of a conversation's prompt.
    ///
    /// # Errors
    /// When the template refuses the messages, or the prompt does not fit the context.
    pub fn count_prompt_tokens(&self, request: &ChatCompletionRequest) -> Result<usize> {
        Ok(self.prompt(request)?.tokens.len())
    }

    /// Starts the response to a conversation on behalf of `caller`, by [`ChatModel::chat_grammar`], compiled.
    /// `admission` reserves its place in the queue.
    ///
    /// # Errors
    /// When a parameter is out of range, the template refuses the messages, or the prompt does not fit
    /// the context.
    pub fn start_chat(
        self: &Arc<Self>,
        admission: Admission,
        request: &ChatCompletionRequest,
        grammar: Option<&Arc<CompiledGrammar>>,
        caller: Caller,
    ) -> Result<ChatStream> {
        // The parameters first: checking them costs nothing.
        let mut generation = chat_generation_request(request, caller)?;
        let n_choices = num_choices(&request.options)?;
        generation.prediction = self.prediction_tokens(request)?;
        let tools = ToolSet::from_request(request)?;
        let limit = TokenLimit::for_chat(request);
        self.check_token_limit(limit)?;
        let max_prompt_tokens =
            max_prompt_tokens(&request.options, self.engine.context_length(), generation.max_tokens)?;
        let RenderedPrompt { tokens, mut ignored_fields, mut reasoning } =
            self.render_prompt(request, tools.as_ref(), max_prompt_tokens)?;
        let beyond = self.limit_beyond_context(limit, tokens.len());
        ignored_fields.extend(beyond.map(|limit| limit.param.to_owned()));
        if grammar.is_some() {
            ignored_fields.extend(unenforced_keywords(&request.options));
            let offered = request.tools.as_deref().unwrap_or_default();
            ignored_fields.extend(tools.iter().flat_map(|tools| tools::unenforced_keywords(tools, offered)));
        }
        if let Some(Scoring::Prompt { n_top }) = generation.scoring {
            self.engine.check_prompt_logprobs("prompt_logprobs", tokens.len(), n_top)?;
        }
        let is_scored = generation.scoring.is_some();
        generation.prompt = tokens;
        let call_format = self.call_format()?;
        let marks = self.template()?.reasoning_marks();
        let mut visible = marks.map_or(Vec::new(), ReasoningMarks::marks);
        if tools.is_some() {
            visible.extend(call_format.marks());
            reasoning.iter_mut().for_each(ReasoningParser::pass_calls);
        }
        let special = |text: &str| self.tokenizer.special_token_id(text);
        generation.visible_tokens = visible.into_iter().filter_map(special).collect();
        if let (Some(marks), Some(reasoning)) = (marks, &reasoning) {
            let is_framed = tools.is_some() && grammar.is_some() && call_format.is_framed();
            generation.thought_budget =
                self.thought_budget(request.thought_tokens(), marks, reasoning, is_framed)?;
        }
        // Grammars of calls in Harmony's channels describe thoughts too.
        let preamble = reasoning.as_ref().filter(|_| tools.is_none() || !call_format.is_framed());
        generation.constraint = grammar.map(|grammar| self.constraint(grammar, preamble));
        let is_unconstrained = generation.constraint.is_none();
        let n_prompt_tokens = vec![generation.prompt.len()];
        let repeats = RepeatedCalls::for_request(tools.as_ref(), &generation.sampling);
        let generations = self.engine.submit(self.reserve_slots(admission, n_choices)?, generation)?;
        // Under a grammar, calls always have their mark; JSON without it is text.
        let accept_unmarked = call_format.is_open_optional || is_unconstrained;
        let calls = tools.map(|tools| ToolCallParser::new(call_format, tools.functions, accept_unmarked));
        let stream = ChatStream::new(self.clone(), generations, n_prompt_tokens, ignored_fields);
        let stream = if is_scored { stream.with_scored_prompts() } else { stream };
        Ok(stream.with_parsers(reasoning, calls, repeats))
    }

    /// The form in which the model writes tool calls.
    fn call_format(&self) -> Result<&'static ToolCallFormat> {
        let template = self.template()?;
        Ok(ToolCallFormat::for_template(|text| template.template_contains(text)))
    }

    /// Encodes the client's predicted output, at most a context's worth of tokens.
    fn prediction_tokens(&self, request: &ChatCompletionRequest) -> Result<Vec<u32>> {
        let Some(text) = prediction_text(request)? else { return Ok(Vec::new()) };
        let context_length = self.engine.context_length();
        let end = text.floor_char_boundary(max_chunk_bytes(context_length));
        let mut tokens = self.tokenizer.encode(&text[..end])?;
        tokens.truncate(context_length);
        Ok(tokens)
    }
}
