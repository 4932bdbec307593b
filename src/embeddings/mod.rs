//! Texts to vectors.
//!
//! One [`TextEmbedding`] per process, in a `once_cell` singleton: loaded by the first request
//! that needs it, exactly once, kept for all later ones; a load that fails is reported to its
//! request and tried again by the next. [`Embedder`] is the handle: a thread of its own takes
//! requests from a bounded queue.
//!
//! Two backends: our encoder ([`crate::models::Encoder`], safetensors) and fastembed (`onnx`,
//! ONNX Runtime).

mod encoder;
mod onnx;
mod source;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use tokio::sync::oneshot;

pub use source::EmbeddingSource;

use crate::error::{Error, Kind, Result};
use crate::registry::{Format, Registry};
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// The embedding model of this process.
static TEXT_EMBEDDING: OnceCell<TextEmbedding> = OnceCell::new();

/// Tokens computed in one forward pass; bounds the memory that a large request takes.
const BATCH_TOKENS: usize = 8192;

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
        let tokenizer = Tokenizer::from_file(source.file("tokenizer.json")?)?.reading_special_tokens();
        let backend: Box<dyn Backend> = if source.is_onnx() {
            Box::new(onnx::OnnxBackend::load(source, registry)?)
        } else {
            Box::new(encoder::EncoderBackend::load(source, tokenizer.n_vocab())?)
        };
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

    /// Embeds `inputs` in batches of bounded size, shortest texts first so that a batch that is
    /// padded is padded little; `go_on` is asked between batches.
    ///
    /// # Errors
    /// When an input is too long or has ids outside the vocabulary, when a vector would not be
    /// finite, or when `go_on` says no.
    pub fn embed(
        &self,
        inputs: Vec<EmbeddingInput>,
        dimensions: Option<usize>,
        go_on: impl Fn() -> bool,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        if let Some(wanted) = dimensions
            && !(1..=self.dimensions()).contains(&wanted)
        {
            return Err(Error::invalid(
                "dimensions",
                format!("`dimensions` is {wanted}; this model's vectors have 1 to {}", self.dimensions()),
            ));
        }
        let mut texts = inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| Ok((index, self.tokenize(input, index)?)))
            .collect::<Result<Vec<_>>>()?;
        let n_tokens = texts.iter().map(|(_, text)| text.ids.len()).sum();
        texts.sort_by_key(|(_, text)| text.ids.len());

        let mut vectors = vec![Vec::new(); texts.len()];
        let mut rest = texts.into_iter().peekable();
        while rest.peek().is_some() {
            if !go_on() {
                return Err(Error::new(Kind::Unavailable, "the client has gone away"));
            }
            let mut batch_tokens = 0;
            let (order, batch): (Vec<usize>, Vec<Tokenized>) = std::iter::from_fn(|| {
                rest.next_if(|(_, text)| {
                    batch_tokens += text.ids.len();
                    batch_tokens <= BATCH_TOKENS.max(text.ids.len())
                })
            })
            .unzip();
            for (index, vector) in order.into_iter().zip(self.backend.embed(&batch)?) {
                let shortened = dimensions.unwrap_or(vector.len());
                vectors[index] = unit_length(&vector[..shortened])?;
            }
        }
        Ok((vectors, n_tokens))
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

/// How a model is loaded when it is first needed.
pub type Loader = dyn Fn() -> Result<TextEmbedding> + Send + Sync;

/// A handle to the embedding thread. Cheap to clone; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Embedder {
    cell: &'static OnceCell<TextEmbedding>,
    sender: mpsc::Sender<Job>,
    n_requests: Arc<AtomicUsize>,
    max_requests: usize,
}

/// A request on its way to the thread.
struct Job {
    inputs: Vec<EmbeddingInput>,
    dimensions: Option<usize>,
    reply: oneshot::Sender<Result<Embeddings>>,
    arrived: Instant,
    _admitted: Admission,
}

/// Holds a request's place; gives it back when dropped, whatever becomes of the request.
struct Admission(Arc<AtomicUsize>);

impl Embedder {
    /// Starts the thread; `loader` fills the process's singleton when the first request comes. At
    /// most `max_requests` wait or run at once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(loader: Box<Loader>, max_requests: usize) -> Result<Self> {
        Self::spawn_on(&TEXT_EMBEDDING, loader, max_requests)
    }

    /// As [`Embedder::spawn`], with a cell of the caller's for the model.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_on(
        cell: &'static OnceCell<TextEmbedding>,
        loader: Box<Loader>,
        max_requests: usize,
    ) -> Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || {
                let mut worker = Worker { cell, loader, failed: None };
                for job in jobs {
                    worker.run(job);
                }
            })
            .map_err(|e| Error::internal(format!("cannot start the embedding thread: {e}")))?;
        Ok(Self { cell, sender, n_requests: Arc::new(AtomicUsize::new(0)), max_requests })
    }

    /// The model, if it has been loaded.
    pub fn loaded(&self) -> Option<&'static TextEmbedding> {
        self.cell.get()
    }

    /// Embeds `inputs`, each vector cut to `dimensions` where given. Dropping the future cancels
    /// what is not computed yet.
    ///
    /// # Errors
    /// As [`TextEmbedding::embed`]; and when the queue is full or the model cannot be loaded.
    pub async fn embed(&self, inputs: Vec<EmbeddingInput>, dimensions: Option<usize>) -> Result<Embeddings> {
        let (reply, answer) = oneshot::channel();
        let job = Job { inputs, dimensions, reply, arrived: Instant::now(), _admitted: self.admit()? };
        let died = || {
            Error::new(
                Kind::Unavailable,
                "the embedding thread has stopped after a fault; restart the server",
            )
        };
        self.sender.send(job).map_err(|_| died())?;
        answer.await.map_err(|_| died())?
    }

    fn admit(&self) -> Result<Admission> {
        let place = |n: usize| (n < self.max_requests).then_some(n + 1);
        self.n_requests
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, place)
            .map(|_| Admission(self.n_requests.clone()))
            .map_err(|n| {
                Error::new(
                    Kind::Overloaded { retry_after: Duration::from_secs(1) },
                    format!("{n} embedding requests are queued, and that is the limit; try again later"),
                )
            })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread's state.
struct Worker {
    cell: &'static OnceCell<TextEmbedding>,
    loader: Box<Loader>,
    /// When the last try to load the model failed, and how.
    failed: Option<(Instant, Error)>,
}

impl Worker {
    /// Computes the answer of one request and sends it; a panic costs this request only.
    fn run(&mut self, job: Job) {
        let Job { inputs, dimensions, reply, arrived, .. } = job;
        if reply.is_closed() {
            return;
        }
        let (queue, started) = (arrived.elapsed(), Instant::now());
        let n_texts = inputs.len() as u64;
        let compute = || self.model(arrived)?.embed(inputs, dimensions, || !reply.is_closed());
        let result = catch_unwind(AssertUnwindSafe(compute))
            .unwrap_or_else(|_| Err(Error::internal("embedding failed; the fault was logged")));
        if let Ok((_, n_tokens)) = &result {
            metrics::counter!(telemetry::EMBEDDED_TEXTS).increment(n_texts);
            metrics::counter!(telemetry::EMBEDDED_TOKENS).increment(*n_tokens as u64);
        }
        let answer = result.map(|(vectors, n_tokens)| Embeddings {
            vectors,
            n_tokens,
            queue,
            compute: started.elapsed(),
        });
        // The client may have gone away meanwhile.
        let _ = reply.send(answer);
    }

    /// The model, loaded now if it is not yet. A load that fails answers every request that came
    /// before it ended; later ones try again.
    fn model(&mut self, arrived: Instant) -> Result<&'static TextEmbedding> {
        if let Some((when, e)) = &self.failed
            && arrived < *when
        {
            return Err(e.clone());
        }
        self.cell
            .get_or_try_init(&*self.loader)
            .inspect_err(|e| self.failed = Some((Instant::now(), e.clone())))
    }
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
