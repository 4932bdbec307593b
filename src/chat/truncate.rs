//! Prompts longer than the context: refused, or truncated. Token limits beyond it: refused, or named.

use super::generation_request::TokenLimit;
use super::model::ChatModel;
use crate::error::{Error, Kind, Result};
use crate::openai::generation_options::{GenerationOptions, NO_TOKEN_LIMIT};

/// Bytes of a chunk for each token of the context, more than most texts need. The tokens of a prompt of one chunk
/// need not be counted before it is encoded.
const CHUNK_BYTES_PER_TOKEN: usize = 8;

/// The smallest chunk.
const MIN_CHUNK_BYTES: usize = 1 << 14;

/// Upper bound on the tokens that a chunk has more than the same text within the whole prompt, because tokens
/// are split at its ends.
const BOUNDARY_TOKENS: usize = 128;

/// A size in bytes at which most texts have more than `n_tokens` tokens.
pub fn max_chunk_bytes(n_tokens: usize) -> usize {
    n_tokens.saturating_mul(CHUNK_BYTES_PER_TOKEN).max(MIN_CHUNK_BYTES)
}

/// The maximum number of prompt tokens, if the client wants longer prompts truncated. -1 leaves room for a response
/// of `max_tokens`, but keeps at least half of the context.
///
/// # Errors
/// When the number is 0, or does not fit the context.
pub fn max_prompt_tokens(
    options: &GenerationOptions,
    context_length: usize,
    max_tokens: usize,
) -> Result<Option<usize>> {
    let max = context_length.saturating_sub(1);
    match options.truncate_prompt_tokens {
        None => Ok(None),
        Some(-1) => Ok(Some(context_length - max_tokens.min(context_length / 2))),
        Some(n) => match usize::try_from(n) {
            Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(Error::invalid(
                "truncate_prompt_tokens",
                format!(
                    "`truncate_prompt_tokens` is {n}; it must be -1 (as many as fit) or from 1 to {max}, since the \
                     context of {context_length} tokens holds both prompt and response"
                ),
            )),
        },
    }
}

/// How to truncate a prompt of more than `max_tokens`: keep the first `n_first` and the last `n_last` tokens.
struct Truncation {
    max_tokens: usize,
    n_first: usize,
    n_last: usize,
}

impl ChatModel {
    /// A token limit, lowered to the context's length if the context ends a response before it.
    pub fn limit_within_context(&self, n_tokens: u64) -> u64 {
        let is_bounded = n_tokens != NO_TOKEN_LIMIT && self.engine.context_shift().is_none();
        if is_bounded { n_tokens.min(self.engine.context_length() as u64) } else { n_tokens }
    }

    /// Checks the client's token limit against the context.
    ///
    /// # Errors
    /// When it alone exceeds the context, so that no prompt leaves room for it.
    pub(super) fn check_token_limit(&self, limit: Option<TokenLimit>) -> Result<()> {
        let context_length = self.engine.context_length();
        match self.limit_beyond_context(limit, 0) {
            None => Ok(()),
            Some(TokenLimit { param, n_tokens }) => Err(Error::new(
                Kind::ContextLengthExceeded,
                format!(
                    "`{param}` is {n_tokens}, but the context holds {context_length} tokens for prompt and completion \
                     together; send a smaller one, or -1 for as many as fit"
                ),
            )
            .with_param(param)),
        }
    }

    /// The client's token limit, if it exceeds the context together with a prompt of `n_prompt` tokens, so that the
    /// context ends a long response before the limit does.
    pub(super) fn limit_beyond_context(
        &self,
        limit: Option<TokenLimit>,
        n_prompt: usize,
    ) -> Option<TokenLimit> {
        let room = self.engine.context_length().saturating_sub(n_prompt) as u64;
        limit.filter(|limit| limit.n_tokens > room && self.engine.context_shift().is_none())
    }

    /// Encodes a prompt, and says whether its middle was dropped without the client's request.
    ///
    /// With `max_tokens`, keeps the last tokens. Otherwise, a server that shifts the context drops the middle of
    /// a prompt that is too long, and any other refuses it.
    pub(super) fn encode_prompt(
        &self,
        prompt: &str,
        marker: Option<char>,
        max_tokens: Option<usize>,
    ) -> Result<(Vec<u32>, bool)> {
        match (max_tokens, self.engine.context_shift()) {
            (Some(max_tokens), _) => {
                let truncation = Truncation { max_tokens, n_first: 0, n_last: max_tokens };
                Ok((self.encode_truncated(prompt, marker, truncation)?.0, false))
            }
            (None, Some(shift)) => {
                let (n_first, n_last) = shift.n_kept();
                let max_tokens = self.engine.context_length() - 1;
                self.encode_truncated(prompt, marker, Truncation { max_tokens, n_first, n_last })
            }
            (None, None) => {
                self.check_prompt_length(prompt, marker)?;
                Ok((self.tokenizer.encode_prompt(prompt, marker)?, false))
            }
        }
    }

    /// Encodes a prompt, truncates it if it is too long, and says whether it was. Encodes only the parts of a
    /// long prompt that are kept.
    fn encode_truncated(
        &self,
        prompt: &str,
        marker: Option<char>,
        truncation: Truncation,
    ) -> Result<(Vec<u32>, bool)> {
        let Truncation { max_tokens, n_first, n_last } = truncation;
        let mut n_bytes = max_chunk_bytes(max_tokens);
        let tokens = loop {
            let start = prompt.ceil_char_boundary(prompt.len().saturating_sub(n_bytes));
            let tokens = self.tokenizer.encode_prompt(&prompt[start..], marker)?;
            if start == 0 && tokens.len() <= max_tokens {
                return Ok((tokens, false));
            }
            if start == 0 || tokens.len() >= max_tokens + BOUNDARY_TOKENS {
                break tokens;
            }
            n_bytes *= 2;
        };
        let head = &prompt[..prompt.floor_char_boundary(MIN_CHUNK_BYTES)];
        let head = if n_first > 0 { self.tokenizer.encode_prompt(head, marker)? } else { Vec::new() };
        let first = head.get(..n_first).unwrap_or(&head);
        Ok(([first, &tokens[tokens.len() - n_last..]].concat(), true))
    }

    /// Refuses a prompt that is far too long. Counts its tokens chunk by chunk, because encoding all of it at once
    /// can take a thousand times its own memory.
    pub(super) fn check_prompt_length(&self, prompt: &str, marker: Option<char>) -> Result<()> {
        let context_length = self.engine.context_length();
        let chunk_bytes = max_chunk_bytes(context_length);
        let (mut n_tokens, mut rest) = (0, prompt);
        while rest.len() > chunk_bytes || (n_tokens > 0 && !rest.is_empty()) {
            let (chunk, after) = rest.split_at(rest.floor_char_boundary(chunk_bytes));
            n_tokens += self.tokenizer.encode_prompt(chunk, marker)?.len().saturating_sub(BOUNDARY_TOKENS);
            if n_tokens > context_length {
                return Err(self.engine.prompt_too_long(&format!("more than {context_length}")));
            }
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_leaves_room_for_the_response() {
        let max = |n: i64, max_tokens: usize| {
            let options =
                GenerationOptions { truncate_prompt_tokens: Some(n), ..GenerationOptions::default() };
            max_prompt_tokens(&options, 100, max_tokens)
        };
        assert_eq!(max_prompt_tokens(&GenerationOptions::default(), 100, 5).unwrap(), None);
        assert_eq!(max(7, 50).unwrap(), Some(7));
        assert_eq!(max(-1, 30).unwrap(), Some(70));
        assert_eq!(max(-1, usize::MAX).unwrap(), Some(50), "half, if the response has no limit");
        for n in [0, -2, 100, i64::MAX] {
            let error = max(n, 5).unwrap_err();
            assert_eq!(error.param(), Some("truncate_prompt_tokens"));
            assert!(error.to_string().contains("from 1 to 99"), "{error}");
        }
    }
}
