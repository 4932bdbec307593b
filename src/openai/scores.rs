//! `/v1/rerank`, as Cohere and Jina have it, and `/v1/score`, as vLLM has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::OneOrMany;
use super::embeddings::Usage;

/// Documents to be put in the order in which they fit a query.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RerankRequest {
    /// Any name of the reranker, or of the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    #[schemars(example = "What is the capital of France?")]
    pub query: String,
    #[schemars(length(min = 1, max = 2048), example = ["Berlin is in Germany.", "Paris is the capital."])]
    pub documents: Vec<Document>,
    /// How many of the best to give, if not all.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub top_n: Option<usize>,
    /// Whether the documents themselves are given too.
    #[serde(default)]
    pub return_documents: Option<bool>,
    /// Whether what is too long is cut instead of refused.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Whether scores are given as the model makes them.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

/// A document, alone or in an object.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an object with `text`")]
pub enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResponse {
    pub id: String,
    pub model: String,
    pub results: Vec<RerankResult>,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResult {
    /// Place of the document in the request.
    pub index: usize,
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<ReturnedDocument>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReturnedDocument {
    pub text: String,
}

/// Texts to score against each other.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ScoreRequest {
    /// Any name of the reranker, or of the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    #[schemars(example = "a cat")]
    pub text_1: OneOrMany,
    /// As many as `text_1` has, or either of them is one.
    #[schemars(example = ["a dog", "a car"])]
    pub text_2: OneOrMany,
    /// Whether what is too long is cut instead of refused.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Whether scores are given as the model makes them.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ScoreResponse {
    pub id: String,
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub data: Vec<Score>,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Score {
    pub index: usize,
    #[schemars(extend("const" = "score"))]
    pub object: &'static str,
    pub score: f32,
}
