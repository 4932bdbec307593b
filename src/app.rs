//! The composition root: finds the models, starts what serves them, and hands out the parts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::chat::{ChatModel, ChatTemplate};
use crate::config::{Config, Limits};
use crate::embeddings::{Embedder, EmbeddingSource, TextEmbedding};
use crate::error::{Error, Kind, Result};
use crate::inference::{Engine, EngineOptions};
use crate::models::llama::Llama;
use crate::models::load::{GgufFile, SafetensorsFiles, Weights};
use crate::models::{Decoder, DecoderConfig};
use crate::registry::{Format, ModelFiles, ModelKind, Registry};
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Everything a request may need. Cheap to clone.
#[derive(Clone)]
pub struct App {
    parts: Arc<Parts>,
    draining: Arc<AtomicBool>,
}

/// What an [`App`] is put together from.
pub struct Parts {
    pub chat_model: ServedModel,
    pub chat: ChatModel,
    pub embedding_model: ServedModel,
    pub embedder: Embedder,
    pub limits: Limits,
    pub metrics: PrometheusHandle,
}

/// A model as clients know it.
#[derive(Debug, Clone)]
pub struct ServedModel {
    id: String,
    aliases: Vec<String>,
    /// Unix time in seconds since when it is served.
    created: u64,
    fingerprint: String,
}

/// The name under which each route's own model answers.
const DEFAULT: &str = "default";

impl App {
    /// Finds, fetches and loads the chat model of `config` now. The embedding model's files are
    /// fetched meanwhile where they are missing, and the model is loaded when it is first used.
    ///
    /// # Errors
    /// When the chat model cannot be found, fetched or loaded. An embedding model that cannot be
    /// had is only logged: chat works without it, and its first request tries again.
    pub fn load(config: &Config) -> Result<Self> {
        let metrics = telemetry::start_metrics();
        let registry = Registry::new(config.registry.clone());
        let (chat_model, chat) = load_chat(config, &registry)?;
        let (embedding_model, embedder) = prepare_embeddings(config, registry)?;
        let limits = config.limits.clone();
        Ok(Self::new(Parts { chat_model, chat, embedding_model, embedder, limits, metrics }))
    }

    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), draining: Arc::new(AtomicBool::new(false)) }
    }

    /// The chat model that answers to `name`; no name is the default.
    ///
    /// # Errors
    /// When no chat model has this name.
    pub fn chat_model(&self, name: Option<&str>) -> Result<&ServedModel> {
        let Parts { chat_model, embedding_model, .. } = &*self.parts;
        match name {
            Some(name) if !chat_model.answers_to(name) && embedding_model.answers_to(name) => {
                Err(not_for_this(name, "an embedding model", "/v1/embeddings"))
            }
            _ => self.named(chat_model, name),
        }
    }

    /// The embedding model that answers to `name`; no name is the default.
    ///
    /// # Errors
    /// When no embedding model has this name.
    pub fn embedding_model(&self, name: Option<&str>) -> Result<&ServedModel> {
        let Parts { chat_model, embedding_model, .. } = &*self.parts;
        match name {
            Some(name) if !embedding_model.answers_to(name) && chat_model.answers_to(name) => {
                Err(not_for_this(name, "a chat model", "/v1/chat/completions"))
            }
            _ => self.named(embedding_model, name),
        }
    }

    /// The model that answers to `name`, whatever it is for.
    ///
    /// # Errors
    /// When no model has this name.
    pub fn any_model(&self, name: &str) -> Result<&ServedModel> {
        self.models().find(|model| model.answers_to(name)).ok_or_else(|| self.unknown(name))
    }

    /// All models that are served.
    pub fn models(&self) -> impl Iterator<Item = &ServedModel> {
        [&self.parts.chat_model, &self.parts.embedding_model].into_iter()
    }

    pub fn chat(&self) -> &ChatModel {
        &self.parts.chat
    }

    pub fn embedder(&self) -> &Embedder {
        &self.parts.embedder
    }

    pub fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// Counters in Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        self.parts.metrics.render()
    }

    /// From now on the server takes no new work.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends the generations that still run, each with an error.
    pub fn stop_generating(&self) {
        self.parts.chat.engine().stop();
    }

    /// Whether requests can be answered.
    ///
    /// # Errors
    /// When the server is shutting down or its engine has died.
    pub fn check_health(&self) -> Result<()> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Unavailable, "the server is shutting down"));
        }
        if !self.parts.chat.engine().is_alive() {
            return Err(Error::new(
                Kind::Unavailable,
                "the engine has stopped after a fault; restart the server",
            ));
        }
        Ok(())
    }

    fn named<'a>(&self, model: &'a ServedModel, name: Option<&str>) -> Result<&'a ServedModel> {
        match name {
            None => Ok(model),
            Some(name) if model.answers_to(name) => Ok(model),
            Some(name) => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let (chat, embedding) = (&self.parts.chat_model.id, &self.parts.embedding_model.id);
        let message =
            format!("model `{name}` is not served here; chat is `{chat}`, embeddings are `{embedding}`");
        Error::new(Kind::ModelNotFound, message).with_param("model")
    }
}

impl ServedModel {
    /// A model that answers to `id`, to each of `aliases`, and to `default`. `fingerprint` changes
    /// when the same request may be answered differently.
    pub fn new(id: String, aliases: Vec<String>, fingerprint: String) -> Self {
        Self { id, aliases, created: unix_time(), fingerprint }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn created(&self) -> u64 {
        self.created
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Who made it, as far as its repository's name tells.
    pub fn owner(&self) -> &str {
        let names = self.aliases.iter().chain([&self.id]);
        names
            .filter_map(|name| name.split_once('/'))
            .map(|(owner, _)| owner)
            .next()
            .unwrap_or("predict-otron-9000")
    }

    /// Names are compared without case, as the hub does.
    fn answers_to(&self, name: &str) -> bool {
        let names = self.aliases.iter().chain([&self.id]).map(String::as_str).chain([DEFAULT]);
        names.into_iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

fn not_for_this(name: &str, what: &str, route: &str) -> Error {
    let message = format!("model `{name}` is {what}; it answers on {route}");
    Error::new(Kind::ModelNotFound, message).with_param("model")
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn load_chat(config: &Config, registry: &Registry) -> Result<(ServedModel, ChatModel)> {
    let files = registry.resolve(&config.model, ModelKind::Chat)?;
    let started = Instant::now();
    let Checkpoint { decoder, tokenizer, template } =
        Checkpoint::load(&files).map_err(|e| e.context(format_args!("cannot load `{}`", files.id)))?;
    tracing::info!(
        model = files.id,
        source = %files.source,
        vocabulary = tokenizer.n_vocab(),
        context = decoder.config().context_length,
        load_ms = started.elapsed().as_millis(),
        "chat model loaded"
    );
    let compiled = ChatTemplate::new(
        &template,
        tokenizer.bos().unwrap_or_default(),
        tokenizer.eos().unwrap_or_default(),
    )?;
    let tokenizer = Arc::new(tokenizer);
    let options = EngineOptions {
        queued_requests: config.limits.queued_requests,
        running_requests: config.limits.running_requests,
        prefill_chunk_tokens: config.limits.prefill_chunk_tokens,
        kv_bytes: config.limits.kv_bytes,
    };
    let engine = Engine::spawn(decoder, tokenizer.clone(), options)?;
    let served = ServedModel::new(files.id, files.aliases, fingerprint(&files.main, &template)?);
    Ok((served, ChatModel::new(compiled, tokenizer, engine)))
}

fn prepare_embeddings(config: &Config, registry: Registry) -> Result<(ServedModel, Embedder)> {
    let reference = config.embedding_model.clone();
    // Only the disk is asked now: a slow network must not keep chat waiting.
    let (id, aliases) = match EmbeddingSource::locate(&reference, &registry.offline()) {
        Ok(source) => (source.id().to_owned(), source.aliases().to_vec()),
        Err(_) => {
            let names = EmbeddingSource::names(&reference)?;
            let (reference, registry) = (reference.clone(), registry.clone());
            let fetch = move || {
                if let Err(e) = EmbeddingSource::locate(&reference, &registry) {
                    tracing::warn!(error = %e, "the embedding model is not at hand; its first request tries again");
                }
            };
            thread::Builder::new()
                .name("embedding-files".to_owned())
                .spawn(fetch)
                .map_err(|e| Error::internal(format!("cannot start a thread to fetch files: {e}")))?;
            names
        }
    };
    let loader = move || TextEmbedding::load(&EmbeddingSource::locate(&reference, &registry)?, &registry);
    let embedder = Embedder::spawn(Box::new(loader), config.limits.embedding_requests)?;
    Ok((ServedModel::new(id, aliases, String::new()), embedder))
}

/// A chat model's parts, read from its files.
struct Checkpoint {
    decoder: Box<dyn Decoder>,
    tokenizer: Tokenizer,
    template: String,
}

impl Checkpoint {
    fn load(files: &ModelFiles) -> Result<Self> {
        match files.format {
            Format::Gguf => Self::from_gguf(&files.main),
            Format::Safetensors => Self::from_safetensors(files),
            Format::Onnx => {
                Err(Error::model("ONNX files are read for embeddings only; use GGUF or safetensors"))
            }
        }
    }

    fn from_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let tokenizer = Tokenizer::from_gguf(file.metadata())?;
        let template = file.metadata().string("tokenizer.chat_template")?.ok_or_else(no_template)?.to_owned();
        let config = file.decoder_config()?;
        let decoder = Box::new(Llama::load(config, &Weights::Gguf(file))?);
        Ok(Self { decoder, tokenizer, template })
    }

    fn from_safetensors(files: &ModelFiles) -> Result<Self> {
        let mut config = DecoderConfig::from_json(&read(files.require("config.json")?)?)?;
        if let Some(path) = files.file("generation_config.json") {
            config = config.with_generation_config(&read(path)?)?;
        }
        let tokenizer_config: Value = match files.file("tokenizer_config.json") {
            Some(path) => serde_json::from_slice(&read(path)?)
                .map_err(|e| Error::model(format!("cannot read tokenizer_config.json: {e}")))?,
            None => Value::Null,
        };
        // A token is a string, or an object with its properties.
        let token_text = |key: &str| {
            let token = &tokenizer_config[key];
            token.as_str().or(token["content"].as_str()).map(str::to_owned)
        };
        let tokenizer = Tokenizer::from_file(files.require("tokenizer.json")?)?.with_config_tokens(
            config.bos_token_id,
            &config.eos_token_ids,
            token_text("bos_token"),
            token_text("eos_token"),
        );
        if !tokenizer.is_byte_level() {
            return Err(Error::model(
                "tokenizer.json is not byte-level, and no other kind is supported for chat",
            ));
        }
        let template = match files.file("chat_template.jinja") {
            Some(path) => String::from_utf8_lossy(&read(path)?).into_owned(),
            None => template_in(&tokenizer_config)?,
        };
        let shards: Vec<PathBuf> = files.safetensors().into_iter().map(Path::to_owned).collect();
        let weights = Weights::Safetensors(SafetensorsFiles::open(&shards)?);
        Ok(Self { decoder: Box::new(Llama::load(config, &weights)?), tokenizer, template })
    }
}

/// The chat template in a `tokenizer_config.json`: a string, or a list of named ones.
fn template_in(tokenizer_config: &Value) -> Result<String> {
    let template = match &tokenizer_config["chat_template"] {
        Value::Array(templates) => templates
            .iter()
            .find(|template| template["name"] == DEFAULT)
            .map_or(&Value::Null, |template| &template["template"]),
        template => template,
    };
    template.as_str().map(str::to_owned).ok_or_else(no_template)
}

fn no_template() -> Error {
    Error::model("the model carries no chat template, so it was not made for chat; use its instruct version")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::model(format!("cannot read `{}`: {e}", path.display())))
}

/// A short hash of weights, template and build. Of the weights it takes size, beginning (names and
/// places of all tensors) and end: hashing all of a large file would take longer than loading it.
fn fingerprint(weights: &Path, template: &str) -> Result<String> {
    const SAMPLE_BYTES: u64 = 1 << 16;
    let mut hash = Sha256::new();
    let mut sample = || {
        let mut file = File::open(weights)?;
        let size_bytes = file.metadata()?.len();
        let mut bytes = Vec::new();
        (&file).take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(size_bytes.saturating_sub(SAMPLE_BYTES)))?;
        (&file).take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        hash.update(size_bytes.to_le_bytes());
        hash.update(bytes);
        Ok(())
    };
    sample()
        .map_err(|e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", weights.display())))?;
    hash.update(template);
    hash.update(env!("CARGO_PKG_VERSION"));
    let hex: String = hash.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("fp_{hex}"))
}
