//! Relevance scores of texts: the logit of a cross-encoder that reads both texts together, or the cosine
//! similarity of their embeddings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{BatchOutput, EmbeddingRequest};
use super::embedder::Embedder;
use super::entry::{Embedding, EmbeddingInput, l2_normalize};
use super::prompts::PromptPrefix;
use crate::error::{Error, Result};
use crate::registry::ModelKind;

/// Pairs of texts to score.
#[derive(Debug, Clone, Default)]
pub struct ScoringRequest {
    /// Each a query and a document.
    pub pairs: Vec<(String, String)>,
    /// Whether a text that is too long is truncated instead of refused. A cross-encoder truncates the document.
    pub truncate: bool,
    /// Whether a cross-encoder's logits are returned as they are, without the sigmoid that maps them to 0 to 1.
    pub raw_scores: bool,
}

/// The scores of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct RelevanceScores {
    /// One for each pair, in order.
    pub scores: Vec<f32>,
    /// Tokens of all inputs, the model's first and last special tokens included. A text that occurs in several
    /// pairs is embedded, and counted, once.
    pub n_tokens: usize,
    /// Inputs found in the cache.
    pub n_hits: usize,
    /// How long the request waited for its first batches.
    pub queue_time: Duration,
    /// How long its batches took.
    pub compute_time: Duration,
}

impl Embedder {
    /// Scores pairs of texts. Dropping the future cancels the work that has not started.
    ///
    /// # Errors
    /// See [`Embedder::embed`].
    pub async fn score(&self, request: ScoringRequest) -> Result<RelevanceScores> {
        let ScoringRequest { pairs, truncate, raw_scores } = request;
        let request = |inputs, prompt| EmbeddingRequest { inputs, prompt, truncate, ..Default::default() };
        if self.model().await?.kind() == ModelKind::Reranker {
            let inputs = pairs.into_iter().map(|(query, text)| EmbeddingInput::Pair(query, text)).collect();
            let output = self
                .compute(request(inputs, PromptPrefix::None))
                .await
                .map_err(|e| with_param_name(e, "documents"))?;
            let score = |logit: f32| if raw_scores { logit } else { 1.0 / (1.0 + (-logit).exp()) };
            let scores = output.embeddings.iter().map(|embedding| score(embedding.values[0])).collect();
            return Ok(RelevanceScores::new(scores, [&output]));
        }
        let (queries, documents): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .map(|(query, text)| (EmbeddingInput::Text(query), EmbeddingInput::Text(text)))
            .unzip();
        // A query that occurs in many pairs is computed once: a batch has no duplicates.
        let queries = self.compute(request(queries, PromptPrefix::Query)).await;
        let queries = queries.map_err(|e| with_param_name(e, "query"))?;
        let documents = self.compute(request(documents, PromptPrefix::Document)).await;
        let documents = documents.map_err(|e| with_param_name(e, "documents"))?;
        let pairs = queries.embeddings.iter().zip(&documents.embeddings);
        let scores =
            pairs.map(|(query, document)| cosine_similarity(query, document)).collect::<Result<_>>()?;
        Ok(RelevanceScores::new(scores, [&queries, &documents]))
    }
}

impl RelevanceScores {
    fn new<const N: usize>(scores: Vec<f32>, outputs: [&BatchOutput; N]) -> Self {
        // Inputs that occur several times share one embedding.
        let distinct: HashMap<*const Embedding, usize> = outputs
            .iter()
            .flat_map(|output| &output.embeddings)
            .map(|embedding| (Arc::as_ptr(embedding), embedding.n_tokens))
            .collect();
        Self {
            scores,
            n_tokens: distinct.values().sum(),
            n_hits: outputs.iter().map(|output| output.n_hits).sum(),
            queue_time: outputs.iter().map(|output| output.queue_time).sum(),
            compute_time: outputs.iter().map(|output| output.compute_time).sum(),
        }
    }
}

/// Names the request's own parameter in an error about `input`.
fn with_param_name(e: Error, param: &str) -> Error {
    if e.param() == Some("input") { e.with_param(param) } else { e }
}

fn cosine_similarity(a: &Embedding, b: &Embedding) -> Result<f32> {
    let (a, b) = (l2_normalize(&a.values)?, l2_normalize(&b.values)?);
    Ok(a.iter().zip(&b).map(|(a, b)| a * b).sum())
}
