//! `/v1/embeddings`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request for embeddings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct EmbeddingsRequest {
    /// Id or alias of the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The texts to embed.
    #[schemars(example = "A man is eating food.")]
    pub input: TextsOrTokens,
    /// Encoding of the vectors; `float` by default.
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// Number of leading dimensions of each vector to return.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub dimensions: Option<usize>,
    /// Shorten vectors even if the model was not trained for it.
    #[serde(default)]
    pub force_dimensions: Option<bool>,
    /// Purpose of the texts; selects the prompt that the model expects before them.
    #[serde(default)]
    pub input_type: Option<InputType>,
    /// Name of one of the model's prompts, which is put before the texts.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
}

/// Purpose of the texts to embed. Names in parentheses are aliases from other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
// With the aliases, which schemars does not see.
#[schemars(extend("oneOf" = [
    {"enum": ["query", "search_query"], "description": "A search query."},
    {"enum": ["document", "search_document", "passage"], "description": "A document to be found."},
]))]
pub enum InputType {
    /// A search query (`search_query`).
    #[serde(alias = "search_query")]
    Query,
    /// A document to be found (`search_document`, `passage`).
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// One or more texts, as strings or as token ids of the model's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
#[schemars(rename = "Input")]
pub enum TextsOrTokens {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(#[schemars(length(min = 1, max = 2048))] Vec<String>),
    /// One text as token ids.
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    /// Several texts as token ids.
    TokenLists(#[schemars(length(min = 1, max = 2048), inner(length(min = 1)))] Vec<Vec<u32>>),
}

/// Encoding of embedding vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// An array of numbers.
    Float,
    /// Little-endian float32 in base64; the default of OpenAI's own clients.
    Base64,
}

/// The response: one embedding per text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct EmbeddingsResponse {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The embeddings, in the order of the texts.
    pub data: Vec<EmbeddingObject>,
    /// Id of the model.
    pub model: String,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// The embedding of one text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Embedding")]
pub struct EmbeddingObject {
    /// Always `embedding`.
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    /// Index of the text in the request.
    pub index: usize,
    /// The vector.
    pub embedding: EmbeddingVector,
}

/// An embedding vector in the requested encoding.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Vector")]
pub enum EmbeddingVector {
    /// Numbers.
    Float(Vec<f32>),
    /// Little-endian float32 in base64.
    Base64(String),
}

/// Token counts of a request that generates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InputUsage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// Equal to `prompt_tokens`.
    pub total_tokens: usize,
}
