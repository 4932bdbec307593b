//! `/v1/rerank`, as in Cohere's and Jina's APIs, and `/v1/score`, as in vLLM's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::InputUsage;
use super::generation_options::OneOrMany;

/// A query and the documents to rank by relevance to it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RerankRequest {
    /// Id or alias of the reranker or the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The query.
    #[schemars(example = "What is the capital of France?")]
    pub query: String,
    /// The documents.
    #[schemars(length(min = 1, max = 2048), example = ["Berlin is in Germany.", "Paris is the capital."])]
    pub documents: Vec<Document>,
    /// Number of best documents to return; all by default.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub top_n: Option<usize>,
    /// Include the documents' texts in the response.
    #[serde(default)]
    pub return_documents: Option<bool>,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Return the model's raw scores.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

/// A document: a string, or an object with `text`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an object with `text`")]
pub enum Document {
    /// The text alone.
    Text(String),
    /// The text in an object.
    Object {
        /// The text.
        text: String,
    },
}

impl Document {
    /// Returns the text.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// The response: documents by descending relevance.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResponse {
    /// Id of the response.
    pub id: String,
    /// Id of the model.
    pub model: String,
    /// The documents, best first.
    pub results: Vec<RerankResult>,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// A ranked document.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResult {
    /// Index of the document in the request.
    pub index: usize,
    /// Relevance to the query; higher is better.
    pub relevance_score: f32,
    /// The document, if `return_documents` was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<ReturnedDocument>,
}

/// A document of the request, returned.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReturnedDocument {
    /// The text.
    pub text: String,
}

/// Pairs of texts to score.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ScoreRequest {
    /// Id or alias of the reranker or the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The first texts of the pairs.
    #[schemars(example = "a cat")]
    pub text_1: OneOrMany,
    /// The second texts: as many as in `text_1`, or one of the two has a single text.
    #[schemars(example = ["a dog", "a car"])]
    pub text_2: OneOrMany,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Return the model's raw scores.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

/// The response: one score per pair.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ScoreResponse {
    /// Id of the response.
    pub id: String,
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// Unix time of the response in seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// The scores, in the order of the pairs.
    pub data: Vec<Score>,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// The score of one pair.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Score {
    /// Index of the pair.
    pub index: usize,
    /// Always `score`.
    #[schemars(extend("const" = "score"))]
    pub object: &'static str,
    /// The score; higher is more similar.
    pub score: f32,
}
