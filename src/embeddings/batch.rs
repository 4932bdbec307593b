//! Embedding requests, the part of a request that the cache does not answer, and results.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::backend::TokenizedInput;
use super::cache::EmbeddingCache;
use super::entry::{Embedding, EmbeddingInput, EmbeddingKey, l2_norm};
use super::input_tokens::RequestTokenizer;
use super::prompts::PromptPrefix;
use crate::error::Result;

/// Inputs to embed, and how.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingRequest {
    /// The inputs; the result has one vector for each, in this order.
    pub inputs: Vec<EmbeddingInput>,
    /// The number of leading dimensions to keep; `None` keeps all.
    pub dimensions: Option<usize>,
    /// Whether `dimensions` may shorten the vectors of a model that was not trained for it.
    pub force_dimensions: bool,
    /// The prompt prefix of every text.
    pub prompt: PromptPrefix,
    /// The treatment of long inputs.
    pub length: LengthRule,
    /// The sender. Tenants get equal shares of the model's time, and have cache entries of their own.
    pub tenant: Arc<str>,
}

/// The treatment of an input that is longer than the model or the request allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LengthRule {
    /// Whether an input that is too long for the model is truncated instead of refused.
    pub truncate: bool,
    /// The number of tokens to which longer inputs are truncated in any case.
    pub max_tokens: Option<InputTokens>,
}

/// A number of tokens of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputTokens {
    /// Tokens of the input with the model's first and last special tokens.
    Whole(usize),
    /// Tokens of the text alone; of a pair, tokens of its second text.
    Text(usize),
}

impl EmbeddingRequest {
    /// Bytes of all inputs. A text that follows itself in several pairs counts once.
    pub(super) fn n_bytes(&self) -> usize {
        let mut n_bytes = 0;
        let mut latest: [Option<&Arc<str>>; 2] = [None, None];
        for input in &self.inputs {
            match input {
                EmbeddingInput::Text(text) => n_bytes += text.len(),
                EmbeddingInput::Tokens(ids) => n_bytes += size_of_val(&ids[..]),
                EmbeddingInput::Pair(first, second) => {
                    for (latest, text) in latest.iter_mut().zip([first, second]) {
                        if !latest.replace(text).is_some_and(|before| Arc::ptr_eq(before, text)) {
                            n_bytes += text.len();
                        }
                    }
                }
            }
        }
        n_bytes
    }
}

impl From<Vec<EmbeddingInput>> for EmbeddingRequest {
    /// A request with default settings: no prompt, all dimensions, no truncation.
    fn from(inputs: Vec<EmbeddingInput>) -> Self {
        Self { inputs, ..Self::default() }
    }
}

/// A request after cache look-up and tokenization: the distinct inputs that still have to be computed.
pub(super) struct PreparedBatch {
    /// One for each input of the request, in order.
    lookups: Vec<CacheLookup>,
    /// The inputs to compute, without duplicates.
    pub inputs: Vec<TokenizedInput>,
    /// Their cache keys.
    keys: Vec<EmbeddingKey>,
    /// Cache hits.
    pub n_hits: usize,
    /// Whether the model knows the prompt of the request's `input_type`; true where it had none.
    pub is_prompt_known: bool,
    /// The indices of the inputs that are truncated.
    pub truncated: Vec<usize>,
}

/// The outcome of a cache look-up.
enum CacheLookup {
    Hit(Arc<Embedding>),
    /// The index in [`PreparedBatch::inputs`].
    Miss(usize),
}

impl PreparedBatch {
    /// Deduplicates the inputs that are not in `cached`, and tokenizes them.
    ///
    /// # Errors
    /// When one cannot be tokenized.
    pub fn new(
        inputs: Vec<EmbeddingInput>,
        keys: Vec<EmbeddingKey>,
        cached: Vec<Option<Arc<Embedding>>>,
        tokenizer: &mut RequestTokenizer,
    ) -> Result<Self> {
        let mut batch = Self {
            lookups: Vec::new(),
            inputs: Vec::new(),
            keys: Vec::new(),
            n_hits: 0,
            is_prompt_known: true,
            truncated: Vec::new(),
        };
        // The index in `inputs`, and whether it is truncated.
        let mut first_uses: HashMap<EmbeddingKey, (usize, bool)> = HashMap::new();
        for (index, ((input, key), cached)) in inputs.into_iter().zip(keys).zip(cached).enumerate() {
            let is_truncated = if let Some(embedding) = cached {
                let is_truncated = tokenizer.was_truncated(input, index, embedding.n_tokens)?;
                batch.lookups.push(CacheLookup::Hit(embedding));
                batch.n_hits += 1;
                is_truncated
            } else if let Some(&(first_use, is_truncated)) = first_uses.get(&key) {
                batch.lookups.push(CacheLookup::Miss(first_use));
                is_truncated
            } else {
                let (tokenized, is_truncated) = tokenizer.tokenize(input, index)?;
                first_uses.insert(key, (batch.inputs.len(), is_truncated));
                batch.lookups.push(CacheLookup::Miss(batch.inputs.len()));
                batch.inputs.push(tokenized);
                batch.keys.push(key);
                is_truncated
            };
            batch.truncated.extend(is_truncated.then_some(index));
        }
        Ok(batch)
    }

    /// The embedding of every input of the request, given the token counts and computed `vectors` of
    /// [`PreparedBatch::inputs`]. Adds these to the cache.
    pub fn into_embeddings(
        self,
        n_tokens: Vec<usize>,
        vectors: Vec<Vec<f32>>,
        cache: Option<&EmbeddingCache>,
        now: SystemTime,
    ) -> Vec<Arc<Embedding>> {
        let computed: Vec<Arc<Embedding>> = vectors
            .into_iter()
            .zip(n_tokens)
            .map(|(values, n_tokens)| Arc::new(Embedding { values, n_tokens }))
            .collect();
        if let Some(cache) = cache {
            cache.insert_all(self.keys.into_iter().zip(computed.iter().cloned()).collect(), now);
        }
        let embedding = |lookup| match lookup {
            CacheLookup::Hit(embedding) => embedding,
            CacheLookup::Miss(idx) => computed[idx].clone(),
        };
        self.lookups.into_iter().map(embedding).collect()
    }
}

/// The raw output for one request.
pub(super) struct BatchOutput {
    /// One for each input, in order.
    pub embeddings: Vec<Arc<Embedding>>,
    /// Inputs found in the cache.
    pub n_hits: usize,
    /// How long the request waited for its first batch.
    pub queue_time: Duration,
    /// How long its batches took.
    pub compute_time: Duration,
    /// Whether the model knows the prompt of the request's `input_type`; true where it had none.
    pub is_prompt_known: bool,
    /// The indices of the inputs that are truncated.
    pub truncated: Vec<usize>,
}

/// The vectors of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingOutput {
    /// Unit vectors, in input order.
    pub vectors: UnitVectors,
    /// Tokens of all inputs, the model's first and last special tokens included.
    pub n_tokens: usize,
    /// Inputs found in the cache.
    pub n_hits: usize,
    /// How long the request waited for its first batch.
    pub queue_time: Duration,
    /// How long its batches took.
    pub compute_time: Duration,
    /// Whether the model knows the prompt of the request's `input_type`; true where it had none.
    pub is_prompt_known: bool,
    /// The indices of the inputs that are truncated.
    pub truncated: Vec<usize>,
}

/// Unit vectors, made one at a time from embeddings that the cache and equal inputs may share.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitVectors {
    embeddings: Vec<Arc<Embedding>>,
    /// The number of leading values that are kept.
    n_dimensions: usize,
}

impl UnitVectors {
    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.embeddings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.embeddings.is_empty()
    }

    /// The vector of an input, if there is one of this index.
    pub fn get(&self, idx: usize) -> Option<Vec<f32>> {
        let values = &self.embeddings.get(idx)?.values[..self.n_dimensions];
        // Checked when these were collected.
        let norm = l2_norm(values).ok()?;
        Some(values.iter().map(|&x| (f64::from(x) / norm) as f32).collect())
    }

    /// All vectors.
    pub fn to_vec(&self) -> Vec<Vec<f32>> {
        (0..self.len()).filter_map(|idx| self.get(idx)).collect()
    }
}

impl EmbeddingOutput {
    /// Keeps the first `dimensions` values of each embedding (all by default).
    ///
    /// # Errors
    /// When a vector cannot be normalized.
    pub(super) fn new(output: BatchOutput, dimensions: Option<usize>) -> Result<Self> {
        let BatchOutput { embeddings, n_hits, queue_time, compute_time, is_prompt_known, truncated } = output;
        let own = embeddings.first().map_or(0, |embedding| embedding.values.len());
        let n_dimensions = dimensions.map_or(own, |n| n.min(own));
        for embedding in &embeddings {
            l2_norm(&embedding.values[..n_dimensions])?;
        }
        Ok(Self {
            n_tokens: embeddings.iter().map(|embedding| embedding.n_tokens).sum(),
            vectors: UnitVectors { embeddings, n_dimensions },
            n_hits,
            queue_time,
            compute_time,
            is_prompt_known,
            truncated,
        })
    }
}
