//! An embedding model with its tokenizer, and the one of this process.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::OnceCell;

use super::backend::encoder::EncoderBackend;
use super::backend::onnx::OnnxBackend;
use super::backend::{Backend, Tokenized};
use super::batch::{Answer, EmbeddingRequest, Embeddings, Prepared};
use super::cache::EmbeddingCache;
use super::entry::{Embedded, EmbeddingInput, Fingerprint, Key};
use super::prompts::{Prompt, Prompts};
use super::source::EmbeddingSource;
use crate::error::{Error, Result};
use crate::registry::{Format, Golden, ModelKind, Registry};
use crate::tokenizer::Tokenizer;

/// The embedding model of this process.
pub static TEXT_EMBEDDING: OnceCell<TextEmbedding> = OnceCell::new();

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
            (Box::new(OnnxBackend::load(source, registry)?), tokenizer)
        } else {
            let (backend, tokenizer) = EncoderBackend::load(source)?;
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

    /// Embeds the texts of a request on the calling thread, all at once.
    ///
    /// # Errors
    /// When an input is too long or has ids outside the vocabulary, there are no vectors of such
    /// dimensions, the model has no such prompt, or its computation fails.
    pub fn embed(&self, request: EmbeddingRequest) -> Result<Embeddings> {
        let (started, now) = (Instant::now(), SystemTime::now());
        let dimensions = request.dimensions;
        let prepared = self.prepare(request, None, now)?;
        let texts: Vec<&Tokenized> = prepared.texts.iter().collect();
        let n_tokens = texts.iter().map(|text| text.ids.len()).collect();
        let vectors = self.compute(&texts)?;
        let embedded: Vec<Arc<Embedded>> = prepared.finish(n_tokens, vectors, None, now);
        let answer = Answer { embedded, n_hits: 0, queue: Duration::ZERO, compute: started.elapsed() };
        Embeddings::new(answer, dimensions)
    }

    /// Looks up and tokenizes the inputs of a request.
    ///
    /// # Errors
    /// As [`TextEmbedding::embed`].
    pub(super) fn prepare(
        &self,
        request: EmbeddingRequest,
        cache: Option<&EmbeddingCache>,
        now: SystemTime,
    ) -> Result<Prepared> {
        if let Some(n) = request.dimensions {
            self.check_dimensions(n, request.forces_dimensions)?;
        }
        let prefix = self.prefix(&request.prompt)?;
        let inputs =
            request.inputs.into_iter().map(|input| prompted(input, prefix)).collect::<Result<Vec<_>>>()?;
        let keys: Vec<Key> =
            inputs.iter().map(|input| Key::new(&self.fingerprint, input, request.truncates)).collect();
        let known = cache.map_or_else(|| vec![None; keys.len()], |cache| cache.get_all(&keys, now));
        let tokenize = |input, index| self.tokenize(input, index, request.truncates);
        Prepared::new(inputs, keys, known, tokenize)
    }

    pub(super) fn batch_tokens(&self) -> usize {
        self.backend.batch_tokens()
    }

    /// The model's numbers for each text.
    ///
    /// # Errors
    /// When the computation fails, or some of them are not finite.
    pub(super) fn compute(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>> {
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
}
