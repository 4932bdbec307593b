//! How well documents fit a query: by a cross-encoder, which reads both together, or by the cosine of the
//! vectors of an embedding model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Answer, EmbeddingRequest};
use super::embedder::Embedder;
use super::entry::{Embedded, EmbeddingInput, unit_length};
use super::prompts::Prompt;
use crate::error::{Error, Result};
use crate::registry::ModelKind;

/// Texts to score against each other.
#[derive(Debug, Clone, Default)]
pub struct ScoresRequest {
    /// Queries with what each is scored against.
    pub pairs: Vec<(String, String)>,
    /// Whether what is too long is cut at its end instead of refused; of a query and a document that are read
    /// together, the document.
    pub truncates: bool,
    /// Whether a cross-encoder's scores are given as the model makes them, not as numbers from 0 to 1.
    pub is_raw: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of each pair, in order.
    pub scores: Vec<f32>,
    /// Tokens of all that was read, the model's first and last ones included.
    pub n_tokens: usize,
    /// Texts, or pairs of them, that were known.
    pub n_hits: usize,
    pub queue: Duration,
    pub compute: Duration,
}

impl Embedder {
    /// Scores pairs of texts. Dropping the future cancels what is not computed yet.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub async fn score(&self, request: ScoresRequest) -> Result<Scores> {
        let ScoresRequest { pairs, truncates, is_raw } = request;
        let of =
            |inputs, prompt| EmbeddingRequest { inputs, prompt, truncates, ..EmbeddingRequest::default() };
        if self.model().await?.kind() == ModelKind::Reranker {
            let inputs = pairs.into_iter().map(|(query, text)| EmbeddingInput::Pair(query, text)).collect();
            let answer =
                self.compute(of(inputs, Prompt::Nothing)).await.map_err(|e| named(e, "documents"))?;
            let score = |logit: f32| if is_raw { logit } else { 1.0 / (1.0 + (-logit).exp()) };
            let scores = answer.embedded.iter().map(|embedded| score(embedded.numbers[0])).collect();
            return Ok(Scores::new(scores, [&answer]));
        }
        let (queries, documents): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .map(|(query, text)| (EmbeddingInput::Text(query), EmbeddingInput::Text(text)))
            .unzip();
        // The same text is computed once, however often it stands there.
        let queries = self.compute(of(queries, Prompt::Query)).await.map_err(|e| named(e, "query"))?;
        let documents = self.compute(of(documents, Prompt::Document)).await;
        let documents = documents.map_err(|e| named(e, "documents"))?;
        let pairs = queries.embedded.iter().zip(&documents.embedded);
        let scores = pairs.map(|(query, document)| cosine(query, document)).collect::<Result<_>>()?;
        Ok(Scores::new(scores, [&queries, &documents]))
    }
}

impl Scores {
    fn new<const N: usize>(scores: Vec<f32>, answers: [&Answer; N]) -> Self {
        // What stands in several pairs was read once.
        let read = answers.iter().flat_map(|answer| &answer.embedded);
        let read: HashMap<*const Embedded, usize> =
            read.map(|embedded| (Arc::as_ptr(embedded), embedded.n_tokens)).collect();
        Self {
            scores,
            n_tokens: read.values().sum(),
            n_hits: answers.iter().map(|answer| answer.n_hits).sum(),
            queue: answers.iter().map(|answer| answer.queue).sum(),
            compute: answers.iter().map(|answer| answer.compute).sum(),
        }
    }
}

/// An error about inputs as one about what these are here.
fn named(e: Error, param: &str) -> Error {
    if e.param() == Some("input") { e.with_param(param) } else { e }
}

fn cosine(a: &Embedded, b: &Embedded) -> Result<f32> {
    let (a, b) = (unit_length(&a.numbers)?, unit_length(&b.numbers)?);
    Ok(a.iter().zip(&b).map(|(a, b)| a * b).sum())
}
