//! Texts to vectors.
//!
//! One [`TextEmbedding`] per process, in a `once_cell` singleton: loaded by the first request
//! that needs it, exactly once, kept for all later ones; a load that fails is reported to its
//! request and tried again by the next. [`Embedder`] is the handle to the thread that computes.
//!
//! Two backends: our encoder ([`crate::models::Encoder`], safetensors) and fastembed (`onnx`,
//! ONNX Runtime).

mod cache;
mod disk;
mod embedder;
mod encoder;
mod onnx;
mod prompts;
mod request;
mod scores;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use cache::Fingerprint;
pub use disk::DiskCache;
pub use embedder::{Embedder, EmbedderOptions, Loader};
pub use request::{Embedded, EmbeddingInput, EmbeddingRequest, Prompt};
pub use scores::{Scores, ScoresRequest};
pub use source::EmbeddingSource;

use self::embedder::Answer;
use self::prompts::Prompts;
use self::request::{Prepared, Tokenized};
use crate::error::{Error, Result};
use crate::registry::{Format, Golden, ModelKind, Registry};
use crate::tokenizer::Tokenizer;

/// An embedding model with its tokenizer.
pub struct TextEmbedding {
    backend: Box<dyn Backend>,
    tokenizer: Tokenizer,
    prompts: Prompts,
    /// Whether vectors may be cut: the model was trained so that their first numbers say most.
    is_matryoshka: bool,
    kind: ModelKind,
    format: Format,
    license: Option<String>,
    fingerprint: Fingerprint,
}

/// What computes the vectors.
trait Backend: Send + Sync {
    /// Name of the model's family.
    fn family(&self) -> &str;

    /// Length of a vector.
    fn dimensions(&self) -> usize;

    /// Most tokens of a text, the model's own first and last ones included.
    fn max_tokens(&self) -> usize;

    /// Tokens that are best computed at once: more take more memory and keep others waiting longer, fewer are
    /// slower.
    fn batch_tokens(&self) -> usize;

    /// One vector per text, in order.
    fn embed(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>>;
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
    fn new(answer: Answer, dimensions: Option<usize>) -> Result<Self> {
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

impl TextEmbedding {
    /// Loads the model that `source` found.
    ///
    /// # Errors
    /// When its files are damaged or of an unsupported form, or ONNX Runtime is needed and cannot
    /// be found.
    pub fn load(source: &EmbeddingSource, registry: &Registry) -> Result<Self> {
        let started = Instant::now();
        if source.kind() == ModelKind::Reranker && source.is_onnx() {
            // Its numbers would be an embedding's, and taken for scores.
            return Err(Error::model(format!(
                "`{}` is an ONNX model, and rerankers run on our own encoder; use one in safetensors",
                source.id()
            )));
        }
        let (backend, tokenizer): (Box<dyn Backend>, Tokenizer) = if source.is_onnx() {
            let tokenizer = Tokenizer::from_file(source.file("tokenizer.json")?)?;
            (Box::new(onnx::OnnxBackend::load(source, registry)?), tokenizer)
        } else {
            let (backend, tokenizer) = encoder::EncoderBackend::load(source)?;
            (Box::new(backend), tokenizer)
        };
        let model = Self {
            backend,
            tokenizer: tokenizer.reading_special_tokens(),
            prompts: Prompts::of(source)?,
            is_matryoshka: source.spec().is_some_and(|spec| spec.is_matryoshka),
            kind: source.kind(),
            format: source.format(),
            license: source.license().map(str::to_owned),
            fingerprint: Fingerprint::default(),
        };
        model.check(source.spec().map_or(&[], |spec| spec.golden)).map_err(|e| e.context(source.id()))?;
        tracing::info!(
            model = source.id(),
            backend = if source.is_onnx() { "fastembed" } else { "encoder" },
            dimensions = model.dimensions(),
            max_tokens = model.max_tokens(),
            load_ms = started.elapsed().as_millis(),
            "embedding model loaded"
        );
        Ok(model)
    }

    /// Compares vectors with those that are known: weights, tokenizer or kernels may be wrong without any other
    /// sign.
    ///
    /// # Errors
    /// When they are others.
    fn check(&self, golden: &[Golden]) -> Result<()> {
        const TOLERANCE: f32 = 0.01;
        let inputs: Vec<EmbeddingInput> =
            golden.iter().map(|golden| EmbeddingInput::Text(golden.text.to_owned())).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let found = self.embed(inputs.into())?;
        for (Golden { text, first }, vector) in golden.iter().zip(&found.vectors) {
            let is_near = |(found, expected): (&f32, &f32)| (found - expected).abs() <= TOLERANCE;
            if vector.len() < first.len() || !vector.iter().zip(first).all(is_near) {
                let begins = &vector[..vector.len().min(first.len())];
                return Err(Error::model(format!(
                    "the vector of {text:?} begins with {begins:?} and should with {first:?}, so the model is not \
                     served: its files are damaged (fetch them again), or the arithmetic is wrong on this machine \
                     (try --isa scalar, and please report it)"
                )));
            }
        }
        Ok(())
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

    /// Whether it is for embedding or for scoring texts against each other.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Most tokens of a text, the model's own first and last ones included.
    pub fn max_tokens(&self) -> usize {
        self.backend.max_tokens()
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.backend.dimensions()
    }

    /// The model, known by what tells its vectors from those of others that are kept beside them.
    pub fn with_fingerprint(self, fingerprint: Fingerprint) -> Self {
        Self { fingerprint, ..self }
    }

    fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Embeds the texts of a request on the calling thread, all at once.
    ///
    /// # Errors
    /// When an input is too long or has ids outside the vocabulary, there are no vectors of such
    /// dimensions, the model has no such prompt, or its computation fails.
    pub fn embed(&self, request: EmbeddingRequest) -> Result<Embeddings> {
        let (started, now) = (Instant::now(), SystemTime::now());
        let dimensions = request.dimensions;
        let prepared = Prepared::new(request, self, None, now)?;
        let texts: Vec<&Tokenized> = prepared.texts.iter().collect();
        let n_tokens = texts.iter().map(|text| text.ids.len()).collect();
        let vectors = self.compute(&texts)?;
        let embedded: Vec<Arc<Embedded>> = prepared.finish(n_tokens, vectors, None, now);
        let answer = Answer { embedded, n_hits: 0, queue: Duration::ZERO, compute: started.elapsed() };
        Embeddings::new(answer, dimensions)
    }

    fn batch_tokens(&self) -> usize {
        self.backend.batch_tokens()
    }

    /// The model's numbers for each text.
    ///
    /// # Errors
    /// When the computation fails, or some of them are not finite.
    fn compute(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>> {
        let vectors = self.backend.embed(texts)?;
        if vectors.iter().flatten().all(|x| x.is_finite()) {
            return Ok(vectors);
        }
        Err(Error::internal("the model gave a vector that is not finite; it is not served"))
    }

    /// Refuses to cut vectors to `n` numbers where that makes no sense.
    fn check_dimensions(&self, n: usize, is_forced: bool) -> Result<()> {
        let own = self.dimensions();
        if !(1..=own).contains(&n) {
            return Err(Error::invalid(
                "dimensions",
                format!("`dimensions` is {n}; this model's vectors have 1 to {own}"),
            ));
        }
        if n < own && !self.is_matryoshka && !is_forced {
            return Err(Error::invalid(
                "dimensions",
                format!(
                    "`dimensions` is {n}, but this model is not known to be trained for vectors shorter than {own}; \
                     leave it out, or send `force_dimensions: true` to have the first {n} numbers anyway"
                ),
            ));
        }
        Ok(())
    }

    /// What stands before each text for a prompt.
    fn prefix(&self, prompt: &Prompt) -> Result<&str> {
        self.prompts.prefix(prompt)
    }

    /// The token ids of an input; `index` is its place in the request.
    fn tokenize(&self, input: EmbeddingInput, index: usize, truncates: bool) -> Result<Tokenized> {
        let mut tokenized = match input {
            EmbeddingInput::Text(text) => {
                let ids = self.tokenizer.encode_with_template(&text)?;
                Tokenized { ids, text: Some(text), n_first: None }
            }
            EmbeddingInput::Pair(first, second) => {
                let max_tokens = self.backend.max_tokens();
                let (ids, n_first) = self.tokenizer.encode_pair(&first, &second, max_tokens, truncates)?;
                Tokenized { ids, text: None, n_first: Some(n_first) }
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
                Tokenized { ids: self.tokenizer.put_in_template(&ids), text: None, n_first: None }
            }
        };
        let (n_tokens, max_tokens) = (tokenized.ids.len(), self.backend.max_tokens());
        if n_tokens > max_tokens {
            // Of a pair, the first text alone may be too long.
            if !truncates || tokenized.n_first.is_some() {
                return Err(Error::invalid(
                    "input",
                    format!(
                        "input {index} has {n_tokens} tokens, and this model takes at most {max_tokens}; split the \
                         text, or send `truncate: true` to have its beginning only"
                    ),
                ));
            }
            self.tokenizer.truncate_in_template(&mut tokenized.ids, max_tokens);
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
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::RegistryConfig;

    #[test]
    fn a_model_that_gives_other_vectors_than_known_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        for (from, name) in [
            ("tiny-encoders/bert", "config.json"),
            ("tiny-encoders/bert", "model.safetensors"),
            ("bert-onnx", "tokenizer.json"),
        ] {
            fs::copy(Path::new("tests/data").join(from).join(name), folder.path().join(name)).unwrap();
        }
        let registry = Registry::new(RegistryConfig {
            offline: true,
            hub_cache: folder.path().to_owned(),
            cache_dir: folder.path().to_owned(),
            hub_endpoint: String::new(),
            hub_token: None,
            hub_connect_timeout: Duration::ZERO,
            hub_read_timeout: Duration::ZERO,
            python: "python3".into(),
        });
        let source = EmbeddingSource::locate(folder.path().to_str().unwrap(), &registry).unwrap();
        let model = TextEmbedding::load(&source, &registry).unwrap();
        let text = "the cat";
        let vector =
            model.embed(vec![EmbeddingInput::Text(text.to_owned())].into()).unwrap().vectors.remove(0);
        let mut first: [f32; 8] = vector[..8].try_into().unwrap();
        assert!(model.check(&[Golden { text, first }]).is_ok());
        assert!(model.check(&[]).is_ok());
        first[5] += 0.02;
        let error = model.check(&[Golden { text, first }]).unwrap_err().to_string();
        assert!(error.contains("the cat") && error.contains("fetch them again"), "{error}");
    }

    #[test]
    fn vectors_that_are_not_numbers_are_not_served() {
        assert_eq!(unit_length(&[3.0, 4.0]).unwrap(), [0.6, 0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(unit_length(&bad).is_err());
        }
    }
}
