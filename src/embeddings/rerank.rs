//! Relevance scores of texts: the logit of a cross-encoder that reads both texts together, or the cosine
//! similarity of their embeddings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{BatchOutput, EmbeddingRequest, InputTokens, LengthRule};
use super::embedder::{AdmittedRequest, Embedder};
use super::entry::{Embedding, EmbeddingInput, l2_norm};
use super::prompts::PromptPrefix;
use crate::error::{Error, Result};
use crate::registry::ModelKind;

/// Pairs of texts to score: the texts at the same index, or one text with each of the other list.
#[derive(Debug, Clone, Default)]
pub struct ScoringRequest {
    /// The first texts: the query, or one for each document.
    pub queries: Vec<Arc<str>>,
    /// The second texts.
    pub documents: Vec<Arc<str>>,
    /// Whether a text that is too long is truncated instead of refused. A cross-encoder truncates the document.
    pub truncate: bool,
    /// The number of tokens to which longer documents are truncated in any case.
    pub max_document_tokens: Option<usize>,
    /// Whether a cross-encoder's logits are returned as they are, without the sigmoid that maps them to 0 to 1.
    pub raw_scores: bool,
    /// The sender. Tenants get equal shares of the model's time, and have cache entries of their own.
    pub tenant: Arc<str>,
}

impl ScoringRequest {
    /// The pairs, as indices into the two lists.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + Clone + use<> {
        let (n_queries, n_documents) = (self.queries.len(), self.documents.len());
        let n_pairs = if n_queries == 0 || n_documents == 0 { 0 } else { n_queries.max(n_documents) };
        (0..n_pairs).map(move |idx| (idx.min(n_queries - 1), idx.min(n_documents - 1)))
    }

    fn n_bytes(&self) -> usize {
        self.queries.iter().chain(&self.documents).map(|text| text.len()).sum()
    }
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
    /// The indices of the first texts that are truncated.
    pub truncated_queries: Vec<usize>,
    /// The indices of the second texts that are truncated.
    pub truncated_documents: Vec<usize>,
}

impl Embedder {
    /// Scores pairs of texts. Dropping the future cancels the work that has not started.
    ///
    /// # Errors
    /// See [`Embedder::embed`].
    pub async fn score(&self, request: ScoringRequest) -> Result<RelevanceScores> {
        let (admitted, gave_way) = self.admit(request.tenant.clone(), request.n_bytes())?;
        self.unless_refused(&admitted, gave_way, self.score_admitted(request, &admitted)).await
    }

    async fn score_admitted(
        &self,
        request: ScoringRequest,
        admitted: &AdmittedRequest,
    ) -> Result<RelevanceScores> {
        let pairs = request.pairs();
        let ScoringRequest { queries, documents, truncate, max_document_tokens, raw_scores, tenant } =
            request;
        let whole = LengthRule { truncate, max_tokens: None };
        let of_documents = LengthRule { truncate, max_tokens: max_document_tokens.map(InputTokens::Text) };
        let embedding_request = |inputs, prompt, length| EmbeddingRequest {
            inputs,
            prompt,
            length,
            tenant: tenant.clone(),
            ..Default::default()
        };
        if self.model().await?.kind() == ModelKind::Reranker {
            let pair = |(query, document): (usize, usize)| {
                EmbeddingInput::Pair(queries[query].clone(), documents[document].clone())
            };
            let inputs = pairs.clone().map(pair).collect();
            let request = embedding_request(inputs, PromptPrefix::None, of_documents);
            let output =
                self.compute(request, admitted).await.map_err(|e| with_param_name(e, "documents"))?;
            let score = |logit: f32| if raw_scores { logit } else { 1.0 / (1.0 + (-logit).exp()) };
            let scores = output.embeddings.iter().map(|embedding| score(embedding.values[0])).collect();
            let truncated = pairs.enumerate().filter(|(idx, _)| output.truncated.contains(idx));
            let mut truncated: Vec<usize> = truncated.map(|(_, (_, document))| document).collect();
            truncated.dedup();
            let scores = RelevanceScores::new(scores, [&output]);
            return Ok(RelevanceScores { truncated_documents: truncated, ..scores });
        }
        let texts = |texts: Vec<Arc<str>>| texts.into_iter().map(EmbeddingInput::Text).collect();
        let queries =
            self.compute(embedding_request(texts(queries), PromptPrefix::Query, whole), admitted).await;
        let queries = queries.map_err(|e| with_param_name(e, "query"))?;
        let documents = self
            .compute(embedding_request(texts(documents), PromptPrefix::Document, of_documents), admitted)
            .await;
        let documents = documents.map_err(|e| with_param_name(e, "documents"))?;
        let norms = |output: &BatchOutput| {
            output.embeddings.iter().map(|embedding| l2_norm(&embedding.values)).collect::<Result<Vec<f64>>>()
        };
        let (query_norms, document_norms) = (norms(&queries)?, norms(&documents)?);
        let score = |(query, document): (usize, usize)| {
            let product = dot(&queries.embeddings[query], &documents.embeddings[document]);
            // Rounding may take the cosine of equal vectors past 1.
            (product / (query_norms[query] * document_norms[document])).clamp(-1.0, 1.0) as f32
        };
        let scores = RelevanceScores::new(pairs.map(score).collect(), [&queries, &documents]);
        let (truncated_queries, truncated_documents) = (queries.truncated, documents.truncated);
        Ok(RelevanceScores { truncated_queries, truncated_documents, ..scores })
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
            truncated_queries: Vec::new(),
            truncated_documents: Vec::new(),
        }
    }
}

/// Names the request's own parameter in an error about `input`.
fn with_param_name(e: Error, param: &str) -> Error {
    if e.param() == Some("input") { e.with_param(param) } else { e }
}

fn dot(a: &Embedding, b: &Embedding) -> f64 {
    a.values.iter().zip(&b.values).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
