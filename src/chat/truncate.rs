//! Prompts that are too long: refused, or cut.

use super::model::ChatModel;
use crate::error::{Error, Result};
use crate::openai::chat::ChatCompletionRequest;

/// Prompts are counted in pieces of this many bytes per token of the context, and at least so many:
/// more than most texts take, so that most prompts are one piece, which needs no counting.
const PIECE_BYTES_PER_TOKEN: usize = 8;
const MIN_PIECE_BYTES: usize = 1 << 14;

/// Tokens that a piece may have more than the same text has in its place, for what is cut in two at
/// its ends.
const CUT_TOKENS: usize = 128;

/// Bytes that more than `n_tokens` tokens take in most texts.
pub fn piece_bytes(n_tokens: usize) -> usize {
    n_tokens.saturating_mul(PIECE_BYTES_PER_TOKEN).max(MIN_PIECE_BYTES)
}

/// How a prompt of more than `most` tokens is cut: so many of the first and of the last stay.
struct Cut {
    most: usize,
    n_first: usize,
    n_last: usize,
}

impl ChatModel {
    /// Token ids of a prompt, of which the client wants the last `most` if it says so; and whether its middle was
    /// left out, to which the client has not agreed.
    pub(super) fn encode(
        &self,
        prompt: &str,
        marker: Option<char>,
        most: Option<usize>,
    ) -> Result<(Vec<u32>, bool)> {
        match (most, self.engine.context_shift()) {
            (Some(most), _) => {
                Ok((self.encode_cut(prompt, marker, Cut { most, n_first: 0, n_last: most })?.0, false))
            }
            (None, Some(shift)) => {
                let (n_first, n_last) = shift.n_kept();
                let cut = Cut { most: self.engine.context_length() - 1, n_first, n_last };
                self.encode_cut(prompt, marker, cut)
            }
            (None, None) => {
                self.check_length(prompt, marker)?;
                Ok((self.tokenizer.encode_prompt(prompt, marker)?, false))
            }
        }
    }

    /// Token ids of a prompt, cut if it is too long, and whether it was. Of a long one only as much is encoded as
    /// stays.
    fn encode_cut(&self, prompt: &str, marker: Option<char>, cut: Cut) -> Result<(Vec<u32>, bool)> {
        let Cut { most, n_first, n_last } = cut;
        let mut n_bytes = piece_bytes(most);
        let tokens = loop {
            let start = prompt.ceil_char_boundary(prompt.len().saturating_sub(n_bytes));
            let tokens = self.tokenizer.encode_prompt(&prompt[start..], marker)?;
            if start == 0 && tokens.len() <= most {
                return Ok((tokens, false));
            }
            if start == 0 || tokens.len() >= most + CUT_TOKENS {
                break tokens;
            }
            n_bytes *= 2;
        };
        let head = &prompt[..prompt.floor_char_boundary(MIN_PIECE_BYTES)];
        let head = if n_first > 0 { self.tokenizer.encode_prompt(head, marker)? } else { Vec::new() };
        let first = head.get(..n_first).unwrap_or(&head);
        Ok(([first, &tokens[tokens.len() - n_last..]].concat(), true))
    }

    /// Refuses a prompt that is far too long piece by piece: the tokens of a whole one could take a
    /// thousand times its own memory.
    pub(super) fn check_length(&self, prompt: &str, marker: Option<char>) -> Result<()> {
        let context_length = self.engine.context_length();
        let piece_bytes = piece_bytes(context_length);
        let (mut n_tokens, mut rest) = (0, prompt);
        while rest.len() > piece_bytes || (n_tokens > 0 && !rest.is_empty()) {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(piece_bytes));
            n_tokens += self.tokenizer.encode_prompt(piece, marker)?.len().saturating_sub(CUT_TOKENS);
            if n_tokens > context_length {
                return Err(self.engine.prompt_too_long(&format!("more than {context_length}")));
            }
            rest = after;
        }
        Ok(())
    }
}

/// Most tokens of the prompt, where the client wants the rest left out: as many as it says, or for -1 as many as
/// leave room for an answer of `max_tokens`, or of half the context.
///
/// # Errors
/// When they are none, or do not fit the context.
pub fn most_prompt_tokens(
    request: &ChatCompletionRequest,
    context_length: usize,
    max_tokens: usize,
) -> Result<Option<usize>> {
    let most = context_length.saturating_sub(1);
    match request.truncate_prompt_tokens {
        None => Ok(None),
        Some(-1) => Ok(Some(context_length - max_tokens.min(context_length / 2))),
        Some(n) => match usize::try_from(n) {
            Ok(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => Err(Error::invalid(
                "truncate_prompt_tokens",
                format!(
                    "`truncate_prompt_tokens` is {n}; it must be -1 (as many as fit) or from 1 to {most}, since the \
                     context is {context_length} tokens, prompt and answer together"
                ),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai;
    use serde_json::json;

    #[test]
    fn a_prompt_is_cut_to_what_fits() {
        let most = |n: i64, max_tokens: usize| {
            let request = openai::from_value(json!({"messages": [], "truncate_prompt_tokens": n})).unwrap();
            most_prompt_tokens(&request, 100, max_tokens)
        };
        assert_eq!(most_prompt_tokens(&ChatCompletionRequest::default(), 100, 5).unwrap(), None);
        assert_eq!(most(7, 50).unwrap(), Some(7));
        assert_eq!(most(-1, 30).unwrap(), Some(70));
        assert_eq!(most(-1, usize::MAX).unwrap(), Some(50), "half, where the answer has no limit");
        for n in [0, -2, 100, i64::MAX] {
            let error = most(n, 5).unwrap_err();
            assert_eq!(error.param(), Some("truncate_prompt_tokens"));
            assert!(error.to_string().contains("from 1 to 99"), "{error}");
        }
    }
}
