//! What is asked of an embedding model, and what it is asked after a look at what is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::TextEmbedding;
use super::cache::{EmbeddingCache, Key};
use crate::error::{Error, Result};

/// Something to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    Text(String),
    /// Token ids of the model's own vocabulary, without its first and last tokens.
    Tokens(Vec<u32>),
    /// Two texts that a cross-encoder scores against each other.
    Pair(String, String),
}

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

/// What the model is to see before each text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prompt {
    #[default]
    Nothing,
    /// What it was trained to see before a text that searches.
    Query,
    /// And before one that is found.
    Document,
    /// One of the prompts that its files name.
    Named(String),
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

/// What a text has become: the model's numbers for it, not cut and of any length.
#[derive(Debug, PartialEq)]
pub struct Embedded {
    pub numbers: Vec<f32>,
    /// Tokens of the text, the model's first and last ones included.
    pub n_tokens: usize,
}

/// A text with its token ids, the model's first and last ones included.
#[derive(Debug, Clone)]
pub(super) struct Tokenized {
    /// What the ids were made of; absent where the client sent ids.
    pub text: Option<String>,
    pub ids: Vec<u32>,
    /// How many of them belong to the first text of a pair.
    pub n_first: Option<usize>,
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
    /// Looks up and tokenizes the inputs of a request.
    ///
    /// # Errors
    /// As [`TextEmbedding::embed`].
    pub fn new(
        request: EmbeddingRequest,
        model: &TextEmbedding,
        cache: Option<&EmbeddingCache>,
        now: SystemTime,
    ) -> Result<Self> {
        if let Some(n) = request.dimensions {
            model.check_dimensions(n, request.forces_dimensions)?;
        }
        let prefix = model.prefix(&request.prompt)?;
        let inputs =
            request.inputs.into_iter().map(|input| prompted(input, prefix)).collect::<Result<Vec<_>>>()?;
        let key = |input| Key::new(model.fingerprint(), input, request.truncates);
        let keys: Vec<Key> = inputs.iter().map(key).collect();
        let known = cache.map_or_else(|| vec![None; keys.len()], |cache| cache.get_all(&keys, now));
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
            prepared.texts.push(model.tokenize(input, index, request.truncates)?);
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

/// An input with what the model is to see before it.
fn prompted(input: EmbeddingInput, prefix: &str) -> Result<EmbeddingInput> {
    match input {
        EmbeddingInput::Text(text) if !prefix.is_empty() => {
            Ok(EmbeddingInput::Text(format!("{prefix}{text}")))
        }
        EmbeddingInput::Tokens(_) if !prefix.is_empty() => Err(Error::invalid(
            "input",
            "a prompt can be put before texts, not before token ids; send strings",
        )),
        other => Ok(other),
    }
}
