//! Texts to vectors.
//!
//! One [`TextEmbedding`] per process, in a `once_cell` singleton: loaded by the first request
//! that needs it, exactly once, kept for all later ones; a load that fails is reported to its
//! request and tried again by the next. [`Embedder`] is the handle to the thread that computes.
//!
//! Two backends: our encoder ([`crate::models::Encoder`], safetensors) and fastembed (`onnx`,
//! ONNX Runtime).

mod embedder;
mod encoder;
mod onnx;
mod source;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

pub use embedder::{Embedder, Loader};
pub use source::EmbeddingSource;

use crate::error::{Error, Result};
use crate::registry::{Format, Registry};
use crate::tokenizer::Tokenizer;

/// Tokens computed in one forward pass; bounds the memory that a large request takes, and the time
/// that a new one waits for its turn. Larger batches are slower, too: OPTIMIZATIONS.md has the
/// numbers of 2026-11-23.
const BATCH_TOKENS: usize = 512;

/// An embedding model with its tokenizer.
pub struct TextEmbedding {
    backend: Box<dyn Backend>,
    tokenizer: Tokenizer,
    format: Format,
    license: Option<String>,
}

/// What computes the vectors.
trait Backend: Send + Sync {
    /// Name of the model's family.
    fn family(&self) -> &str;

    /// Length of a vector.
    fn dimensions(&self) -> usize;

    /// Most tokens of a text, the model's own first and last ones included.
    fn max_tokens(&self) -> usize;

    /// One vector per text, in order.
    fn embed(&self, texts: &[Tokenized]) -> Result<Vec<Vec<f32>>>;
}

/// Something to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    Text(String),
    /// Token ids of the model's own vocabulary, without its first and last tokens.
    Tokens(Vec<u32>),
}

/// An input with its token ids, the model's first and last ones included.
struct Tokenized {
    /// What the ids were made of; absent where the client sent ids.
    text: Option<String>,
    ids: Vec<u32>,
}

/// The texts of one request and the vectors there are so far.
struct Work {
    /// Texts with their places in the request, the longest first: they are taken from the end, and
    /// a batch of texts of like length is padded little.
    rest: Vec<(usize, Tokenized)>,
    vectors: Vec<Vec<f32>>,
    /// Of all texts.
    n_tokens: usize,
    dimensions: usize,
}

impl Work {
    fn is_done(&self) -> bool {
        self.rest.is_empty()
    }
}

/// The vectors of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Unit length, in input order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs, the model's first and last ones included.
    pub n_tokens: usize,
    pub queue: Duration,
    pub compute: Duration,
}

impl TextEmbedding {
    /// Loads the model that `source` found.
    ///
    /// # Errors
    /// When its files are damaged or of an unsupported form, or ONNX Runtime is needed and cannot
    /// be found.
    pub fn load(source: &EmbeddingSource, registry: &Registry) -> Result<Self> {
        let started = Instant::now();
        let (backend, tokenizer): (Box<dyn Backend>, Tokenizer) = if source.is_onnx() {
            let tokenizer = Tokenizer::from_file(source.file("tokenizer.json")?)?;
            (Box::new(onnx::OnnxBackend::load(source, registry)?), tokenizer)
        } else {
            let (backend, tokenizer) = encoder::EncoderBackend::load(source)?;
            (Box::new(backend), tokenizer)
        };
        let tokenizer = tokenizer.reading_special_tokens();
        tracing::info!(
            model = source.id(),
            backend = if source.is_onnx() { "fastembed" } else { "encoder" },
            dimensions = backend.dimensions(),
            max_tokens = backend.max_tokens(),
            load_ms = started.elapsed().as_millis(),
            "embedding model loaded"
        );
        let license = source.license().map(str::to_owned);
        Ok(Self { backend, tokenizer, format: source.format(), license })
    }

    /// Name of the model's family.
    pub fn family(&self) -> &str {
        self.backend.family()
    }

    /// The form of its weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The licence of its weights, where it is known.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// Most tokens of a text, the model's own first and last ones included.
    pub fn max_tokens(&self) -> usize {
        self.backend.max_tokens()
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.backend.dimensions()
    }

    /// Embeds `inputs`; gives the vectors and the number of tokens.
    ///
    /// # Errors
    /// When an input is too long or has ids outside the vocabulary, there are no vectors of such
    /// dimensions, or the model's computation fails.
    pub fn embed(
        &self,
        inputs: Vec<EmbeddingInput>,
        dimensions: Option<usize>,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        let mut work = self.prepare(inputs, dimensions)?;
        while !work.is_done() {
            self.embed_batch(&mut work)?;
        }
        Ok((work.vectors, work.n_tokens))
    }

    /// Checks and tokenizes `inputs`; each vector is to be cut to `dimensions` where given.
    ///
    /// # Errors
    /// When an input is too long or has ids outside the vocabulary, or there are no vectors of such
    /// dimensions.
    fn prepare(&self, inputs: Vec<EmbeddingInput>, dimensions: Option<usize>) -> Result<Work> {
        if let Some(wanted) = dimensions
            && !(1..=self.dimensions()).contains(&wanted)
        {
            return Err(Error::invalid(
                "dimensions",
                format!("`dimensions` is {wanted}; this model's vectors have 1 to {}", self.dimensions()),
            ));
        }
        let mut rest = inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| Ok((index, self.tokenize(input, index)?)))
            .collect::<Result<Vec<_>>>()?;
        rest.sort_by_key(|(_, text)| Reverse(text.ids.len()));
        Ok(Work {
            dimensions: dimensions.unwrap_or(self.dimensions()),
            n_tokens: rest.iter().map(|(_, text)| text.ids.len()).sum(),
            vectors: vec![Vec::new(); rest.len()],
            rest,
        })
    }

    /// Computes the next batch.
    ///
    /// # Errors
    /// When a vector would not be finite.
    fn embed_batch(&self, work: &mut Work) -> Result<()> {
        let mut batch_tokens = 0;
        let (order, batch): (Vec<usize>, Vec<Tokenized>) = std::iter::from_fn(|| {
            work.rest.pop_if(|(_, text)| {
                batch_tokens += text.ids.len();
                batch_tokens <= BATCH_TOKENS.max(text.ids.len())
            })
        })
        .unzip();
        for (index, vector) in order.into_iter().zip(self.backend.embed(&batch)?) {
            work.vectors[index] = unit_length(&vector[..work.dimensions])?;
        }
        Ok(())
    }

    fn tokenize(&self, input: EmbeddingInput, index: usize) -> Result<Tokenized> {
        let tokenized = match input {
            EmbeddingInput::Text(text) => {
                Tokenized { ids: self.tokenizer.encode_with_template(&text)?, text: Some(text) }
            }
            EmbeddingInput::Tokens(ids) => {
                let n_vocab = self.tokenizer.n_vocab();
                if let Some(id) = ids.iter().find(|&&id| id as usize >= n_vocab) {
                    return Err(Error::invalid(
                        "input",
                        format!(
                            "input {index} has token id {id}, but this model's vocabulary ends at {}; the ids are \
                             another model's, so send text (in LangChain: check_embedding_ctx_length=False)",
                            n_vocab - 1
                        ),
                    ));
                }
                Tokenized { ids: self.tokenizer.put_in_template(&ids), text: None }
            }
        };
        let (n_tokens, max_tokens) = (tokenized.ids.len(), self.backend.max_tokens());
        if n_tokens > max_tokens {
            return Err(Error::invalid(
                "input",
                format!(
                    "input {index} has {n_tokens} tokens, and this model takes at most {max_tokens}; split the text"
                ),
            ));
        }
        Ok(tokenized)
    }
}

/// Scales a vector to length 1.
fn unit_length(vector: &[f32]) -> Result<Vec<f32>> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(Error::internal(format!("the model gave a vector of length {length}; it is not served")));
    }
    Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_are_not_numbers_are_not_served() {
        assert_eq!(unit_length(&[3.0, 4.0]).unwrap(), [0.6, 0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(unit_length(&bad).is_err());
        }
    }
}
