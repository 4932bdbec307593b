//! The embedding model, and the singleton that holds the process's own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::OnceCell;

use super::backend::encoder::EncoderBackend;
use super::backend::onnx::OnnxBackend;
use super::backend::{TokenizedInput, VectorBackend};
use super::batch::{BatchOutput, EmbeddingOutput, EmbeddingRequest, InputTokens, PreparedBatch};
use super::cache::EmbeddingCache;
use super::entry::{Embedding, EmbeddingInput, Fingerprint, KeyScope};
use super::input_tokens::{InputRules, RequestRules, RequestTokenizer};
use super::prompts::{PromptPrefix, PromptTable};
use super::sentence_config::SentenceConfig;
use super::source::{EmbeddingSource, spec_by_name};
use crate::error::{Error, Result};
use crate::registry::{Golden, ModelFormat, ModelKind, Registry};
use crate::tokenizer::Tokenizer;

/// The process's embedding model, loaded by the first request that needs it.
pub static TEXT_EMBEDDING: OnceCell<TextEmbedding> = OnceCell::new();

/// An embedding model or reranker with its tokenizer.
pub struct TextEmbedding {
    backend: Box<dyn VectorBackend>,
    rules: InputRules,
    prompts: PromptTable,
    /// Whether the vectors may be shortened: Matryoshka training puts most information into the first dimensions.
    is_matryoshka: bool,
    kind: ModelKind,
    format: ModelFormat,
    license: Option<String>,
    fingerprint: Fingerprint,
}

/// The surroundings in which a request is prepared.
pub(super) struct PrepareContext<'a> {
    /// The cache, if there is one.
    pub cache: Option<&'a EmbeddingCache>,
    /// Whether tenants share the cache.
    pub is_cache_shared: bool,
    /// The current time.
    pub now: SystemTime,
    /// Most tokens of the request.
    pub max_request_tokens: usize,
    /// Set when nobody waits for the request any more.
    pub is_abandoned: &'a AtomicBool,
}

impl TextEmbedding {
    /// Loads the model at `source`.
    ///
    /// # Errors
    /// When its files are damaged or not supported, or when it needs ONNX Runtime and that is not found.
    pub fn load(source: &EmbeddingSource, registry: &Registry) -> Result<Self> {
        let started = Instant::now();
        if source.kind() == ModelKind::Reranker && source.is_onnx() {
            // The ONNX backend returns embeddings, which would be taken for scores.
            return Err(Error::model(format!(
                "reranking with ONNX models such as `{}` is not supported; use a reranker in safetensors format",
                source.id()
            )));
        }
        let (backend, tokenizer, name): (Box<dyn VectorBackend>, Tokenizer, _) = if source.is_onnx() {
            let tokenizer = Tokenizer::from_file(source.file("tokenizer.json")?)?;
            (Box::new(OnnxBackend::load(source, registry)?), tokenizer, None)
        } else {
            let (backend, tokenizer, name) = EncoderBackend::load(source)?;
            (Box::new(backend), tokenizer, name)
        };
        let known = source.spec().or_else(|| name.as_deref().and_then(spec_by_name));
        let SentenceConfig { max_tokens, lowercase } = SentenceConfig::from_source(source, known)?;
        let own = backend.max_tokens();
        let rules = InputRules {
            max_tokens: max_tokens.map_or(own, |n| n.min(own)),
            lowercase,
            needs_text: backend.needs_text(),
            tokenizer: tokenizer.with_special_tokens_in_text(),
        };
        let n_special = rules.tokenizer.n_template_tokens(source.kind() == ModelKind::Reranker);
        if rules.max_tokens <= n_special {
            return Err(Error::model(format!(
                "`{}` takes at most {} tokens, which leaves no room for text beside {n_special} special tokens",
                source.id(),
                rules.max_tokens
            )));
        }
        let model = Self {
            prompts: PromptTable::from_source(source, known.map(|spec| spec.prefixes))?,
            backend,
            rules,
            is_matryoshka: source.spec().is_some_and(|spec| spec.is_matryoshka),
            kind: source.kind(),
            format: source.format(),
            license: source.license().map(str::to_owned),
            fingerprint: Fingerprint::default(),
        };
        model
            .check_finite()
            .and_then(|()| model.check_golden(source.spec().map_or(&[], |spec| spec.golden)))
            .map_err(|e| e.context(source.id()))?;
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

    /// Computes a vector, as damaged weights may show in no other way before the first request.
    ///
    /// # Errors
    /// When the computation fails, or its result is not finite.
    fn check_finite(&self) -> Result<()> {
        let input = TokenizedInput { text: Some("a".into()), ids: vec![0], n_first: None };
        self.compute(&[&input]).map(drop).map_err(|e| {
            Error::model(format!("{e}: its files are damaged; remove them and download them again"))
        })
    }

    /// Compares the vectors of known texts with their expected values, since a wrong weight, tokenizer or kernel may
    /// show in no other way.
    ///
    /// # Errors
    /// When a vector differs.
    fn check_golden(&self, golden: &[Golden]) -> Result<()> {
        const TOLERANCE: f32 = 0.01;
        let inputs: Vec<EmbeddingInput> =
            golden.iter().map(|golden| EmbeddingInput::Text(golden.text.into())).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let computed = self.embed(inputs.into())?;
        for (Golden { text, first }, vector) in golden.iter().zip(computed.vectors.to_vec()) {
            let is_close = |(value, expected): (&f32, &f32)| (value - expected).abs() <= TOLERANCE;
            if vector.len() < first.len() || !vector.iter().zip(first).all(is_close) {
                let start = &vector[..vector.len().min(first.len())];
                return Err(Error::model(format!(
                    "the vector of {text:?} starts with {start:?} instead of {first:?}, so the model is not served: \
                     its files are damaged (download them again), or this machine computes wrongly (try --isa \
                     scalar, and please report it)"
                )));
            }
        }
        Ok(())
    }

    /// Name of the model's family.
    pub fn family(&self) -> &str {
        self.backend.family()
    }

    /// The format of its weights.
    pub fn format(&self) -> ModelFormat {
        self.format
    }

    /// The license of its weights, if known.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// Embedding or reranking.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.rules.tokenizer
    }

    /// Maximum number of tokens of an input, the model's first and last special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.rules.max_tokens
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.backend.dimensions()
    }

    /// Sets the fingerprint under which a shared cache stores the model's vectors.
    pub fn with_fingerprint(self, fingerprint: Fingerprint) -> Self {
        Self { fingerprint, ..self }
    }

    /// Embeds the inputs of a request on the calling thread, in one batch and without a cache.
    ///
    /// # Errors
    /// When an input is too long or has token ids outside the vocabulary, the model does not support the
    /// requested dimensions or prompt, or the computation fails.
    pub fn embed(&self, request: EmbeddingRequest) -> Result<EmbeddingOutput> {
        let (started, now) = (Instant::now(), SystemTime::now());
        let dimensions = request.dimensions;
        let context = PrepareContext {
            cache: None,
            is_cache_shared: false,
            now,
            max_request_tokens: usize::MAX,
            is_abandoned: &AtomicBool::new(false),
        };
        let mut prepared = self.prepare(request, &context)?;
        let is_prompt_known = prepared.is_prompt_known;
        let truncated = std::mem::take(&mut prepared.truncated);
        let inputs: Vec<&TokenizedInput> = prepared.inputs.iter().collect();
        let n_tokens = inputs.iter().map(|input| input.ids.len()).collect();
        let vectors = self.compute(&inputs)?;
        let embeddings: Vec<Arc<Embedding>> = prepared.into_embeddings(n_tokens, vectors, None, now);
        let (queue_time, compute_time) = (Duration::ZERO, started.elapsed());
        let output =
            BatchOutput { embeddings, n_hits: 0, queue_time, compute_time, is_prompt_known, truncated };
        EmbeddingOutput::new(output, dimensions)
    }

    /// Looks up the inputs of a request in the cache, and tokenizes those that are not there.
    ///
    /// # Errors
    /// See [`TextEmbedding::embed`].
    pub(super) fn prepare(
        &self,
        request: EmbeddingRequest,
        context: &PrepareContext,
    ) -> Result<PreparedBatch> {
        let EmbeddingRequest { inputs, dimensions, force_dimensions, prompt, length, tenant } = request;
        if let Some(n) = dimensions {
            self.check_dimensions(n, force_dimensions)?;
        }
        let selected = self.prompts.select(&prompt)?;
        let max_text_tokens = self.max_text_tokens(length.max_tokens)?;
        let scope = KeyScope {
            model: &self.fingerprint,
            tenant: if context.is_cache_shared { "" } else { &tenant },
            truncate: length.truncate,
            max_text_tokens,
            prefix: selected.prefix,
        };
        let keys = scope.keys(&inputs);
        let cached =
            context.cache.map_or_else(|| vec![None; keys.len()], |cache| cache.get_all(&keys, context.now));
        let rules = RequestRules {
            prompt: selected,
            is_prompt_chosen: prompt != PromptPrefix::None,
            truncate: length.truncate,
            max_text_tokens,
            max_request_tokens: context.max_request_tokens,
            is_abandoned: context.is_abandoned,
        };
        let mut tokenizer = RequestTokenizer::new(&self.rules, rules);
        let mut batch = PreparedBatch::new(inputs, keys, cached, &mut tokenizer)?;
        batch.is_prompt_known = selected.is_known;
        Ok(batch)
    }

    /// The request's limit on the tokens of a text, without special tokens.
    ///
    /// # Errors
    /// When it is a limit on whole inputs that leaves no room for text, or more than the model takes.
    fn max_text_tokens(&self, limit: Option<InputTokens>) -> Result<Option<usize>> {
        let n = match limit {
            None => return Ok(None),
            Some(InputTokens::Text(n)) => return Ok(Some(n)),
            Some(InputTokens::Whole(n)) => n,
        };
        let n_special = self.tokenizer().n_template_tokens(false);
        let max = self.max_tokens();
        if n > n_special && n <= max {
            return Ok(Some(n - n_special));
        }
        Err(Error::invalid(
            "truncate_prompt_tokens",
            format!(
                "`truncate_prompt_tokens` is {n}; for this model it must be -1 (as many as it takes) or from {} to \
                 {max}, of which {n_special} are special tokens",
                n_special + 1
            ),
        ))
    }

    /// The best number of tokens per batch.
    pub(super) fn batch_tokens(&self) -> usize {
        self.backend.batch_tokens()
    }

    /// Computes one vector per input.
    ///
    /// # Errors
    /// When the computation fails, or a value is not finite.
    pub(super) fn compute(&self, inputs: &[&TokenizedInput]) -> Result<Vec<Vec<f32>>> {
        let vectors = self.backend.embed(inputs)?;
        if vectors.len() != inputs.len() || vectors.iter().any(|vector| vector.len() != self.dimensions()) {
            return Err(Error::internal("the model computed vectors of the wrong number or length"));
        }
        if vectors.iter().flatten().all(|x| x.is_finite()) {
            return Ok(vectors);
        }
        Err(Error::internal("the model computed a vector that is not finite"))
    }

    /// Refuses to shorten vectors to `n` dimensions where the model does not support it.
    fn check_dimensions(&self, n: usize, force: bool) -> Result<()> {
        let own = self.dimensions();
        if !(1..=own).contains(&n) {
            return Err(Error::invalid(
                "dimensions",
                format!("`dimensions` is {n}; this model supports 1 to {own}"),
            ));
        }
        if n < own && !self.is_matryoshka && !force {
            return Err(Error::invalid(
                "dimensions",
                format!(
                    "`dimensions` is {n}, but this model is not known to be trained for fewer than {own} dimensions; \
                     leave it out, or send `force_dimensions: true` to keep the first {n} anyway"
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::config::RegistryConfig;

    /// A folder with a small model.
    fn model_folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (from, name) in [
            ("tiny-encoders/bert", "config.json"),
            ("tiny-encoders/bert", "model.safetensors"),
            ("bert-onnx", "tokenizer.json"),
        ] {
            fs::copy(Path::new("tests/data").join(from).join(name), folder.path().join(name)).unwrap();
        }
        folder
    }

    fn load(folder: &TempDir) -> Result<TextEmbedding> {
        let registry = Registry::new(RegistryConfig {
            offline: true,
            hub_cache: folder.path().to_owned(),
            cache_dir: folder.path().to_owned(),
            hub_endpoint: String::new(),
            hub_token: None,
            hub_connect_timeout: Duration::ZERO,
            hub_read_timeout: Duration::ZERO,
            python: "python3".into(),
            pip_timeout: Duration::ZERO,
        });
        let source = EmbeddingSource::locate(folder.path().to_str().unwrap(), &registry).unwrap();
        TextEmbedding::load(&source, &registry)
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let folder = model_folder();
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let n_header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        bytes[8 + n_header..].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let error = load(&folder).map(drop).unwrap_err().to_string();
        assert!(error.contains("not finite") && error.contains("download them again"), "{error}");
    }

    #[test]
    fn a_model_with_wrong_golden_vectors_is_refused() {
        let model = load(&model_folder()).unwrap();
        let text = "the cat";
        let vector =
            model.embed(vec![EmbeddingInput::Text(text.into())].into()).unwrap().vectors.get(0).unwrap();
        let mut first: [f32; 8] = vector[..8].try_into().unwrap();
        assert!(model.check_golden(&[Golden { text, first }]).is_ok());
        assert!(model.check_golden(&[]).is_ok());
        first[5] += 0.02;
        let error = model.check_golden(&[Golden { text, first }]).unwrap_err().to_string();
        assert!(error.contains("the cat") && error.contains("download them again"), "{error}");
    }
}
