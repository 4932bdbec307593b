//! Log probabilities of a prompt's tokens, as in vLLM's API.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// The log probabilities of tokens at one position of a prompt: of the prompt's own token, which comes first, and of the
/// likeliest ones. An object whose keys are token ids.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(with = "BTreeMap<String, PromptTokenLogprob>")]
pub struct PositionLogprobs(pub Vec<(u32, PromptTokenLogprob)>);

/// The log probability of a token.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PromptTokenLogprob {
    /// Natural logarithm of the token's probability, at least -9999.
    pub logprob: f32,
    /// The token's rank among all tokens; 1 is the likeliest.
    pub rank: usize,
    /// The token's text, with U+FFFD for incomplete UTF-8.
    pub decoded_token: String,
}

impl Serialize for PositionLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, logprob)| (id, logprob)))
    }
}
