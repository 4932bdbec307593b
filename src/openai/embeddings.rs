//! `/v1/embeddings`.

use serde::{Deserialize, Serialize};

/// A request.
#[derive(Debug, Clone, Deserialize)]
pub struct EmbeddingsRequest {
    #[serde(default)]
    pub model: Option<String>,
    pub input: Input,
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// Whether vectors may be cut of a model that was not trained for it.
    #[serde(default)]
    pub force_dimensions: Option<bool>,
    #[serde(default)]
    pub input_type: Option<InputType>,
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Whether texts that are too long are cut instead of refused.
    #[serde(default)]
    pub truncate: Option<bool>,
}

/// What the texts are for; the names in parentheses are those of other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    /// To search with (`search_query`).
    #[serde(alias = "search_query")]
    Query,
    /// To be found (`search_document`, `passage`).
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// What to embed: texts, or token ids of the model's own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    Float,
    /// Little-endian float32, which is what OpenAI's own clients ask for.
    Base64,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct EmbeddingsResponse {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize)]
pub struct Embedding {
    pub object: &'static str,
    /// Place of the text in the request.
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}
