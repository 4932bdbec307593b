//! `/v1/embeddings`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Texts to embed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct EmbeddingsRequest {
    #[serde(default)]
    /// Any name of the embedding model.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    #[schemars(example = "A man is eating food.")]
    pub input: Input,
    /// How vectors are written; as numbers unless it is said.
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// How many numbers of each vector are given.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub dimensions: Option<usize>,
    /// Whether vectors may be cut of a model that was not trained for it.
    #[serde(default)]
    pub force_dimensions: Option<bool>,
    /// What the texts are for: the model may want to see something before them.
    #[serde(default)]
    pub input_type: Option<InputType>,
    /// Name of what the model is to see before them.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Whether texts that are too long are cut instead of refused.
    #[serde(default)]
    pub truncate: Option<bool>,
}

/// What the texts are for; the names in parentheses are those of other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
// With the other names, which schemars does not see.
#[schemars(extend("oneOf" = [
    {"enum": ["query", "search_query"], "description": "To search with."},
    {"enum": ["document", "search_document", "passage"], "description": "To be found."},
]))]
pub enum InputType {
    /// To search with (`search_query`).
    #[serde(alias = "search_query")]
    Query,
    /// To be found (`search_document`, `passage`).
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// What to embed: texts, or token ids of the model's own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub enum Input {
    Text(String),
    Texts(#[schemars(length(min = 1, max = 2048))] Vec<String>),
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    TokenLists(#[schemars(length(min = 1, max = 2048), inner(length(min = 1)))] Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    Float,
    /// Little-endian float32, which is what OpenAI's own clients ask for.
    Base64,
}

/// The answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct EmbeddingsResponse {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Embedding {
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    /// Place of the text in the request.
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "InputUsage")]
pub struct Usage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}
