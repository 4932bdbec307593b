//! `/v1/rerank`, as Cohere and Jina have it, and `/v1/score`, as vLLM has it.

use serde::{Deserialize, Serialize};

use super::chat::OneOrMany;
use super::embeddings::Usage;

#[derive(Debug, Clone, Deserialize)]
pub struct RerankRequest {
    #[serde(default)]
    pub model: Option<String>,
    pub query: String,
    pub documents: Vec<Document>,
    /// How many of the best to give, if not all.
    #[serde(default)]
    pub top_n: Option<usize>,
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
#[derive(Debug, Clone, Deserialize)]
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

#[derive(Debug, Clone, Serialize)]
pub struct RerankResponse {
    pub id: String,
    pub model: String,
    pub results: Vec<RerankResult>,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize)]
pub struct RerankResult {
    /// Place of the document in the request.
    pub index: usize,
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<ReturnedDocument>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReturnedDocument {
    pub text: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ScoreRequest {
    #[serde(default)]
    pub model: Option<String>,
    pub text_1: OneOrMany,
    pub text_2: OneOrMany,
    /// As in [`RerankRequest`].
    #[serde(default)]
    pub truncate: Option<bool>,
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ScoreResponse {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub data: Vec<Score>,
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize)]
pub struct Score {
    pub index: usize,
    pub object: &'static str,
    pub score: f32,
}
