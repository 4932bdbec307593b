//! Text completions: prompts continued as they are, without a template.

use std::sync::Arc;

use super::generation_request::{TokenLimit, completion_generation_request, num_choices};
use super::model::ChatModel;
use super::stream::ChatStream;
use super::structured::{ConstraintSpec, constraint_of, unenforced_keywords};
use super::truncate::max_prompt_tokens;
use crate::error::{Error, Result};
use crate::inference::Caller;
use crate::inference::{Admission, CompiledGrammar, GenerationRequest, Scoring};
use crate::openai::completions::CompletionRequest;
use crate::openai::embeddings::TextsOrTokens;
use crate::openai::generation_options::MAX_CHOICES;
use crate::tokenizer::Tokenizer;

/// Maximum number of texts in one response, over all prompts.
const MAX_TEXTS: usize = 64;

/// Fill-in-the-middle tokens of the families of code models: before the prefix, before the suffix, and before the
/// middle to generate.
const FIM_TOKENS: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
];

/// A text completion in progress.
pub struct CompletionStream {
    /// The generated texts.
    pub stream: ChatStream,
    /// The prompts as text, if they are to be echoed; else empty.
    pub echo: Vec<String>,
    /// Number of texts to return for each prompt, the likeliest ones.
    pub n: usize,
}

/// A prompt of a request.
enum CompletionPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl ChatModel {
    /// Whether the model can fill in the text before a suffix.
    pub fn can_insert(&self) -> bool {
        fim_tokens(&self.tokenizer).is_some()
    }

    /// The grammar of the completions of a request, if they have one.
    ///
    /// # Errors
    /// When it is malformed, or several are requested.
    pub fn completion_grammar(&self, request: &CompletionRequest) -> Result<Option<ConstraintSpec>> {
        constraint_of(&request.options)
    }

    /// Starts to complete the prompts of a request on behalf of `caller`, each by [`ChatModel::completion_grammar`],
    /// compiled. `admission` reserves its place in the queue.
    ///
    /// # Errors
    /// When a parameter is out of range, the model cannot fill in the middle, or a prompt does not fit the context.
    pub fn start_completion(
        self: &Arc<Self>,
        admission: Admission,
        request: &CompletionRequest,
        grammar: Option<&Arc<CompiledGrammar>>,
        caller: Caller,
    ) -> Result<CompletionStream> {
        let options = &request.options;
        let mut generation = completion_generation_request(request, caller)?;
        let n = num_choices(options)?;
        let best_of = best_of(request, n)?;
        if best_of > n {
            generation.top_logprobs.get_or_insert(0);
        }
        generation.constraint = grammar.map(|grammar| self.constraint(grammar, None));
        let prompts = prompts(request)?;
        if prompts.len() * best_of > MAX_TEXTS {
            return Err(Error::invalid(
                "prompt",
                format!(
                    "{} prompts with {best_of} texts each are more than {MAX_TEXTS} texts; send them in several requests",
                    prompts.len()
                ),
            ));
        }
        let limit = TokenLimit::for_completion(request);
        self.check_token_limit(limit)?;
        let max_prompt_tokens =
            max_prompt_tokens(options, self.engine.context_length(), generation.max_tokens)?;
        let mut slots = self.reserve_slots(admission, prompts.len() * best_of)?;
        let (mut generations, mut n_prompt_tokens) = (Vec::new(), Vec::new());
        let mut ignored = unenforced_keywords(options);
        let scoring = scoring_param(request, &generation);
        let mut n_scored = 0;
        let is_echoed = request.echo.unwrap_or(false);
        let mut echo = Vec::new();
        for prompt in &prompts {
            let (tokens, is_middle_dropped) = self.completion_tokens(prompt, request, max_prompt_tokens)?;
            let beyond = self.limit_beyond_context(limit, tokens.len()).map(|limit| limit.param);
            for param in is_middle_dropped.then_some("prompt").into_iter().chain(beyond) {
                if !ignored.iter().any(|name| name == param) {
                    ignored.push(param.to_owned());
                }
            }
            n_prompt_tokens.push(tokens.len());
            if is_echoed {
                // An echo with scores is exactly what was scored.
                let is_cut = scoring.is_some() && (max_prompt_tokens.is_some() || is_middle_dropped);
                echo.push(match prompt {
                    CompletionPrompt::Text(text) if !is_cut => text.clone(),
                    CompletionPrompt::Tokens(ids) if !is_cut => self.tokenizer.decode(ids)?,
                    _ => self.tokenizer.decode(&tokens)?,
                });
            }
            if let Some((param, n_top)) = scoring {
                n_scored += tokens.len() * best_of;
                self.engine.check_prompt_logprobs(param, n_scored, n_top)?;
            }
            let prompt_slots = slots.split_off(slots.len() - best_of);
            let generation = GenerationRequest { prompt: tokens, ..generation.clone() };
            generations.extend(self.engine.submit(prompt_slots, generation).map_err(with_prompt_param)?);
        }
        let stream = ChatStream::new(self.clone(), generations, n_prompt_tokens, ignored);
        let stream = if scoring.is_some() { stream.with_scored_prompts() } else { stream };
        Ok(CompletionStream { stream, echo, n })
    }

    /// Token ids of a prompt, and whether its middle was dropped without the client's request.
    fn completion_tokens(
        &self,
        prompt: &CompletionPrompt,
        request: &CompletionRequest,
        max_tokens: Option<usize>,
    ) -> Result<(Vec<u32>, bool)> {
        let is_echo_scored = request.echoed_logprobs().is_some();
        match (prompt, request.suffix.as_deref()) {
            (CompletionPrompt::Text(text), None) => {
                self.encode_prompt(text, None, max_tokens).map_err(with_prompt_param)
            }
            (_, Some(_)) if is_echo_scored => Err(Error::invalid(
                "suffix",
                "the echoed prompt has log probabilities only as a text that is continued; send `suffix` without `echo`",
            )),
            (CompletionPrompt::Text(text), Some(suffix)) => {
                let [before_prefix, before_suffix, before_middle] =
                    fim_tokens(&self.tokenizer).ok_or_else(|| {
                        Error::invalid(
                            "suffix",
                            "this model has no fill-in-the-middle tokens; leave `suffix` out",
                        )
                    })?;
                self.check_prompt_length(text, None)
                    .and_then(|()| self.check_prompt_length(suffix, None))
                    .map_err(with_prompt_param)?;
                let prefix = self.tokenizer.encode_with_special(text)?;
                let suffix = self.tokenizer.encode_with_special(suffix)?;
                let tokens =
                    [&[before_prefix][..], &prefix, &[before_suffix], &suffix, &[before_middle]].concat();
                Ok((tokens, false))
            }
            (CompletionPrompt::Tokens(_), Some(_)) => {
                Err(Error::invalid("suffix", "`suffix` needs a prompt of text, not of token ids"))
            }
            (CompletionPrompt::Tokens(ids), None) => {
                self.tokenizer.check_ids(ids, "prompt", "send text, or ids of this model's tokenizer")?;
                let start = max_tokens.map_or(0, |max_tokens| ids.len().saturating_sub(max_tokens));
                Ok((ids[start..].to_vec(), false))
            }
        }
    }
}

/// The parameter that asks for the scores of the prompts, and how many tokens they have at each position.
fn scoring_param(
    request: &CompletionRequest,
    generation: &GenerationRequest,
) -> Option<(&'static str, usize)> {
    let Some(Scoring::Prompt { n_top }) = generation.scoring else { return None };
    let is_listed = request.options.prompt_logprobs.is_some();
    Some((if is_listed { "prompt_logprobs" } else { "logprobs" }, n_top))
}

/// The prompts of a request: at least one, and none without tokens.
fn prompts(request: &CompletionRequest) -> Result<Vec<CompletionPrompt>> {
    let prompt = request.prompt.clone().ok_or_else(|| Error::invalid("prompt", "`prompt` is missing"))?;
    let prompts: Vec<CompletionPrompt> = match prompt {
        TextsOrTokens::Text(text) => vec![CompletionPrompt::Text(text)],
        TextsOrTokens::Texts(texts) => texts.into_iter().map(CompletionPrompt::Text).collect(),
        TextsOrTokens::Tokens(ids) => vec![CompletionPrompt::Tokens(ids)],
        TextsOrTokens::TokenLists(lists) => lists.into_iter().map(CompletionPrompt::Tokens).collect(),
    };
    let is_empty =
        |prompt: &CompletionPrompt| matches!(prompt, CompletionPrompt::Tokens(ids) if ids.is_empty());
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(Error::invalid("prompt", "`prompt` is empty; send at least one text"));
    }
    Ok(prompts)
}

/// Number of texts to generate for each prompt.
fn best_of(request: &CompletionRequest, n: usize) -> Result<usize> {
    match request.best_of {
        None => Ok(n),
        Some(best_of) if best_of < n as u64 || best_of > MAX_CHOICES => Err(Error::invalid(
            "best_of",
            format!("`best_of` is {best_of}; it must be from `n`, which is {n}, to {MAX_CHOICES}"),
        )),
        Some(best_of) if best_of > n as u64 && request.options.is_streamed() => Err(Error::invalid(
            "best_of",
            "the likeliest texts are known only when all have ended; send `best_of` without `stream`",
        )),
        Some(best_of) => Ok(best_of as usize),
    }
}

/// The model's fill-in-the-middle tokens, if its vocabulary has them.
fn fim_tokens(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    let id = |name: &str| tokenizer.special_token_id(name);
    FIM_TOKENS.iter().find_map(|[prefix, suffix, middle]| Some([id(prefix)?, id(suffix)?, id(middle)?]))
}

/// Names `prompt` in an error about `messages`, which a text completion does not have.
fn with_prompt_param(e: Error) -> Error {
    if e.param() == Some("messages") { e.with_param("prompt") } else { e }
}
