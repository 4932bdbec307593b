//! Texts to be gone on with, without a template.

use std::sync::Arc;

use super::model::ChatModel;
use super::stream::ChatStream;
use super::truncate::most_prompt_tokens;
use super::{generation_options, structured};
use crate::error::{Error, Result};
use crate::inference::{Admission, GenerationRequest};
use crate::openai::completions::{CompletionRequest, Own};
use crate::openai::embeddings::TextsOrTokens;
use crate::tokenizer::Tokenizer;

/// Texts that one request may ask for, all prompts and choices together.
const MAX_TEXTS: usize = 64;

/// OpenAI's bound.
const MAX_LOGPROBS: u64 = 5;

/// How families of code models write the tokens before what comes first, before what comes last, and before the
/// middle that is to be filled in.
const FILL_IN: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
];

/// The texts of a completion in the making, and what is needed to give them out.
pub struct CompletionStream {
    pub answer: ChatStream,
    /// The prompts as text, where they are to stand before the texts.
    pub echo: Vec<String>,
    /// How many texts of each prompt are to be given, the likeliest ones.
    pub n: usize,
}

/// A prompt as it came.
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl ChatModel {
    /// Starts to go on with the prompts of a request that has a place, for `tenant`.
    ///
    /// # Errors
    /// When a parameter is out of its range, the model cannot fill in, or a prompt does not fit the context.
    pub fn complete(
        self: &Arc<Self>,
        admission: Admission,
        request: &CompletionRequest,
        tenant: Arc<str>,
    ) -> Result<CompletionStream> {
        let CompletionRequest { own, options } = request;
        check_logprobs(own)?;
        let mut generation = generation_options::generation_request(options, tenant)?;
        let n = generation_options::n_choices(options)?;
        let best_of = best_of(request, n)?;
        if best_of > n {
            generation.top_logprobs.get_or_insert(0);
        }
        generation.is_continuation = true;
        generation.constraint = self.constraint(structured::asked(options)?, None)?;
        let prompts = prompts(own)?;
        if prompts.len() * best_of > MAX_TEXTS {
            return Err(Error::invalid(
                "prompt",
                format!(
                    "{} prompts with {best_of} texts each are more than {MAX_TEXTS} texts; send them in several requests",
                    prompts.len()
                ),
            ));
        }
        let most = most_prompt_tokens(options, self.engine.context_length(), generation.max_tokens)?;
        let mut places = self.places(admission, prompts.len() * best_of)?;
        let (mut generations, mut ignored) = (Vec::new(), Vec::new());
        let echoes = own.echo.unwrap_or(false);
        let mut echo = Vec::new();
        for prompt in &prompts {
            let (tokens, lacks_middle) = self.prompt_of(prompt, own.suffix.as_deref(), most)?;
            if lacks_middle {
                ignored = vec!["prompt".to_owned()];
            }
            if echoes {
                echo.push(match prompt {
                    Prompt::Text(text) => text.clone(),
                    Prompt::Tokens(ids) => self.tokenizer.decode(ids)?,
                });
            }
            let of_prompt = places.split_off(places.len() - best_of);
            let generation = GenerationRequest { prompt: tokens, ..generation.clone() };
            generations.extend(self.engine.submit(of_prompt, generation).map_err(about_prompt)?);
        }
        Ok(CompletionStream {
            answer: ChatStream::new(self.clone(), generations, prompts.len(), ignored),
            echo,
            n,
        })
    }

    /// Token ids of a prompt, and whether its middle was left out.
    fn prompt_of(
        &self,
        prompt: &Prompt,
        suffix: Option<&str>,
        most: Option<usize>,
    ) -> Result<(Vec<u32>, bool)> {
        match (prompt, suffix) {
            (Prompt::Text(text), None) => self.encode(text, None, most).map_err(about_prompt),
            (Prompt::Text(text), Some(suffix)) => {
                let marks = fill_in(&self.tokenizer).ok_or_else(|| {
                    Error::invalid("suffix", "this model has no tokens for filling in; leave `suffix` out")
                })?;
                let [before, after, middle] = marks;
                self.check_length(text, None)
                    .and_then(|()| self.check_length(suffix, None))
                    .map_err(about_prompt)?;
                let text = self.tokenizer.encode_with_special(text)?;
                let suffix = self.tokenizer.encode_with_special(suffix)?;
                Ok(([&[before][..], &text, &[after], &suffix, &[middle]].concat(), false))
            }
            (Prompt::Tokens(_), Some(_)) => {
                Err(Error::invalid("suffix", "`suffix` needs a prompt of text, not of token ids"))
            }
            (Prompt::Tokens(ids), None) => {
                self.tokenizer.check_ids(ids, "prompt", "send text, or ids of this model's tokenizer")?;
                let start = most.map_or(0, |most| ids.len().saturating_sub(most));
                Ok((ids[start..].to_vec(), false))
            }
        }
    }
}

/// The prompts of a request, at least one, and none of them without tokens.
fn prompts(own: &Own) -> Result<Vec<Prompt>> {
    let prompt = own.prompt.clone().ok_or_else(|| Error::invalid("prompt", "`prompt` is missing"))?;
    let prompts: Vec<Prompt> = match prompt {
        TextsOrTokens::Text(text) => vec![Prompt::Text(text)],
        TextsOrTokens::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        TextsOrTokens::Tokens(ids) => vec![Prompt::Tokens(ids)],
        TextsOrTokens::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    if prompts.is_empty()
        || prompts.iter().any(|prompt| matches!(prompt, Prompt::Tokens(ids) if ids.is_empty()))
    {
        return Err(Error::invalid("prompt", "`prompt` is empty; send at least one text"));
    }
    Ok(prompts)
}

/// How many texts are computed for each prompt.
fn best_of(request: &CompletionRequest, n: usize) -> Result<usize> {
    match request.own.best_of {
        None => Ok(n),
        Some(best_of) if best_of < n as u64 || best_of > generation_options::MAX_CHOICES => {
            Err(Error::invalid(
                "best_of",
                format!(
                    "`best_of` is {best_of}; it must be from `n`, which is {n}, to {}",
                    generation_options::MAX_CHOICES
                ),
            ))
        }
        Some(best_of) if best_of > n as u64 && request.options.stream.unwrap_or(false) => {
            Err(Error::invalid(
                "best_of",
                "the best texts are known only when all have ended; send `best_of` without `stream`",
            ))
        }
        Some(best_of) => Ok(best_of as usize),
    }
}

fn check_logprobs(own: &Own) -> Result<()> {
    match own.logprobs {
        Some(n) if n > MAX_LOGPROBS => Err(Error::invalid(
            "logprobs",
            format!("`logprobs` is {n}; at most {MAX_LOGPROBS} tokens are reported with each"),
        )),
        Some(_) if own.echo.unwrap_or(false) => Err(Error::invalid(
            "echo",
            "the probabilities of the prompt's own tokens are not computed; send `echo` without `logprobs`",
        )),
        _ => Ok(()),
    }
}

/// The tokens for filling in, where the vocabulary has them.
fn fill_in(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    let id = |name: &str| tokenizer.special_token_id(name);
    FILL_IN.iter().find_map(|[before, after, middle]| Some([id(before)?, id(after)?, id(middle)?]))
}

/// An error about messages as one about what they are here.
fn about_prompt(e: Error) -> Error {
    if e.param() == Some("messages") { e.with_param("prompt") } else { e }
}
