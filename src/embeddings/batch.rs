//! What is asked of an embedding model, and what it is asked after a look at what is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::backend::Tokenized;
use super::cache::EmbeddingCache;
use super::entry::{Embedded, EmbeddingInput, Key, unit_length};
use super::prompts::Prompt;
use crate::error::Result;

/// Texts to embed, and how.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingRequest {
    pub inputs: Vec<EmbeddingInput>,
    /// Numbers of each vector to keep, if not all.
    pub dimensions: Option<usize>,
    /// Whether they may be kept of a model that was not trained for it.
    pub forces_dimensions: bool,
    pub prompt: Prompt,
    /// Whether texts that are too long are cut instead of refused.
    pub truncates: bool,
}

impl EmbeddingRequest {
    /// Bytes of all inputs.
    pub(super) fn n_bytes(&self) -> usize {
        let of_input = |input: &EmbeddingInput| match input {
            EmbeddingInput::Text(text) => text.len(),
            EmbeddingInput::Tokens(ids) => size_of_val(&ids[..]),
            EmbeddingInput::Pair(first, second) => first.len() + second.len(),
        };
        self.inputs.iter().map(of_input).sum()
    }
}

impl From<Vec<EmbeddingInput>> for EmbeddingRequest {
    /// Texts as they are.
    fn from(inputs: Vec<EmbeddingInput>) -> Self {
        Self { inputs, ..Self::default() }
    }
}

/// A request, of whose texts those remain that nothing is known of, each once.
pub(super) struct Prepared {
    /// Of each input, in order.
    inputs: Vec<Found>,
    pub texts: Vec<Tokenized>,
    keys: Vec<Key>,
    /// Inputs that were known.
    pub n_hits: usize,
}

enum Found {
    Known(Arc<Embedded>),
    /// Which of the texts it is.
    Unknown(usize),
}

impl Prepared {
    /// Of inputs with their keys, and what is known of each. `tokenize` gets the place of an input in the
    /// request too.
    ///
    /// # Errors
    /// Those of `tokenize`.
    pub fn new(
        inputs: Vec<EmbeddingInput>,
        keys: Vec<Key>,
        known: Vec<Option<Arc<Embedded>>>,
        tokenize: impl Fn(EmbeddingInput, usize) -> Result<Tokenized>,
    ) -> Result<Self> {
        let mut prepared = Self { inputs: Vec::new(), texts: Vec::new(), keys: Vec::new(), n_hits: 0 };
        let mut places: HashMap<Key, usize> = HashMap::new();
        for (index, ((input, key), known)) in inputs.into_iter().zip(keys).zip(known).enumerate() {
            if let Some(known) = known {
                prepared.inputs.push(Found::Known(known));
                prepared.n_hits += 1;
                continue;
            }
            if let Some(&place) = places.get(&key) {
                prepared.inputs.push(Found::Unknown(place));
                continue;
            }
            places.insert(key, prepared.texts.len());
            prepared.inputs.push(Found::Unknown(prepared.texts.len()));
            prepared.texts.push(tokenize(input, index)?);
            prepared.keys.push(key);
        }
        Ok(prepared)
    }

    /// What each input has become, once the texts have become `vectors`; the cache gets to know them.
    pub fn finish(
        self,
        n_tokens: Vec<usize>,
        vectors: Vec<Vec<f32>>,
        cache: Option<&EmbeddingCache>,
        now: SystemTime,
    ) -> Vec<Arc<Embedded>> {
        let embedded: Vec<Arc<Embedded>> = vectors
            .into_iter()
            .zip(n_tokens)
            .map(|(numbers, n_tokens)| Arc::new(Embedded { numbers, n_tokens }))
            .collect();
        if let Some(cache) = cache {
            cache.insert_all(self.keys.into_iter().zip(embedded.iter().cloned()).collect(), now);
        }
        let of_input = |found| match found {
            Found::Known(known) => known,
            Found::Unknown(place) => embedded[place].clone(),
        };
        self.inputs.into_iter().map(of_input).collect()
    }
}

/// What the inputs of a request have become.
pub(super) struct Answer {
    pub embedded: Vec<Arc<Embedded>>,
    pub n_hits: usize,
    pub queue: Duration,
    pub compute: Duration,
}

/// The vectors of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Unit length, in input order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs, the model's first and last ones included.
    pub n_tokens: usize,
    /// Inputs whose vectors were known.
    pub n_hits: usize,
    pub queue: Duration,
    pub compute: Duration,
}

impl Embeddings {
    /// Vectors of unit length, cut to `dimensions` where given.
    pub(super) fn new(answer: Answer, dimensions: Option<usize>) -> Result<Self> {
        let Answer { embedded, n_hits, queue, compute } = answer;
        let vectors = embedded.iter().map(|embedded| {
            let n = dimensions.unwrap_or(embedded.numbers.len());
            unit_length(&embedded.numbers[..n])
        });
        Ok(Self {
            vectors: vectors.collect::<Result<_>>()?,
            n_tokens: embedded.iter().map(|embedded| embedded.n_tokens).sum(),
            n_hits,
            queue,
            compute,
        })
    }
}
