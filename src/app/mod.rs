//! The composition root: finds the models, starts what serves them, and hands out the parts.

mod api_keys;
mod chat_models;
mod checkpoint;
mod text_models;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

pub use api_keys::ApiKeys;
pub use chat_models::{ChatModels, ChatSlot, Found};
pub use checkpoint::{kv_format, read_headers};
pub use text_models::{TextModel, embedder_options};

use crate::chat::{ChatModel, ResponseCache};
use crate::config::{Config, Limits};
use crate::embeddings::{DiskCache, EmbedderOptions, TextEmbedding};
use crate::error::{Error, Kind, Result};
use crate::inference::EngineStatus;
use crate::kernels::attention::kv_block::BLOCK_TOKENS;
use crate::registry::{ModelKind, ModelRef, Registry};
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Everything a request may need. Cheap to clone.
#[derive(Clone)]
pub struct App {
    parts: Arc<Parts>,
    /// Permits to compute on a request outside the engines: one per core.
    preparing: Arc<Semaphore>,
    /// Answers that were given before, where they are kept.
    responses: Option<Arc<ResponseCache>>,
    phase: Arc<Phase>,
}

/// What an [`App`] is put together from.
pub struct Parts {
    pub chat_models: Arc<ChatModels>,
    pub embedding: TextModel,
    /// A model that scores texts against each other; without one, the embedding model's vectors do.
    pub reranker: Option<TextModel>,
    pub api_keys: ApiKeys,
    pub limits: Limits,
    pub metrics: PrometheusHandle,
}

/// Where the server is in its life.
#[derive(Default)]
struct Phase {
    loading: AtomicBool,
    draining: AtomicBool,
}

/// A model as clients know it.
#[derive(Debug, Clone)]
pub struct ServedModel {
    id: String,
    aliases: Vec<String>,
    owner: Option<String>,
    /// Unix time in seconds since when it is served.
    created: u64,
}

/// What a model's files say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    pub family: String,
    /// Of its weights: `gguf`, `safetensors` or `onnx`.
    pub format: &'static str,
    /// Most tokens of a prompt and its answer, or of a text.
    pub context_length: usize,
    pub license: Option<String>,
}

/// A model with what is known of it now.
pub struct ModelStatus<'a> {
    pub served: &'a ServedModel,
    pub kind: ModelKind,
    pub info: Option<ModelInfo>,
    pub is_loaded: bool,
}

/// A model whose tokenizer is asked for.
pub enum Vocabulary {
    OfChat(Arc<ChatModel>),
    OfTexts(&'static TextEmbedding),
}

impl Vocabulary {
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::OfChat(model) => model.tokenizer(),
            Self::OfTexts(model) => model.tokenizer(),
        }
    }

    /// Most tokens of a prompt and its answer, or of a text.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::OfChat(model) => model.engine().context_length(),
            Self::OfTexts(model) => model.max_tokens(),
        }
    }
}

/// The name under which each route's own model answers.
const DEFAULT: &str = "default";

impl App {
    /// Puts the server together for the models of `config`. Nothing is loaded yet
    /// ([`App::preload`]); files of the embedding model that are missing are fetched in the
    /// background.
    ///
    /// # Errors
    /// When a key cannot be one, a model is named wrongly or twice, or a thread cannot be started.
    pub fn new(config: &Config) -> Result<Self> {
        let api_keys = ApiKeys::new(&config.api_keys, config.api_key_file.as_deref())?;
        if !api_keys.are_required() && !config.host.is_loopback() && !config.allow_unauthenticated {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "--host {} lets other machines in, and no key is set; set one with --api-key or --api-key-file, \
                     or pass --no-auth to serve everybody who can reach it",
                    config.host
                ),
            ));
        }
        let metrics = telemetry::start_metrics();
        let registry = Registry::new(config.registry.clone());
        let limits = config.limits.clone();
        let disk_cache = config.disk_cache.as_ref().map(DiskCache::open).transpose()?.map(Arc::new);
        let options = EmbedderOptions { disk_cache, ..embedder_options(&limits) };
        let text_model = |reference: &str, kind| {
            TextModel::new(reference, kind, config.embedding_backend, registry.clone(), options.clone())
        };
        let mut embedding = text_model(&config.embedding_model, ModelKind::Embedding)?;
        let reranker = config.rerank_model.as_deref();
        let mut reranker = reranker.map(|name| text_model(name, ModelKind::Reranker)).transpose()?;
        let mut served = config
            .models
            .iter()
            .map(|reference| Ok(ServedModel::of(&ModelRef::parse(reference)?)))
            .collect::<Result<Vec<_>>>()?;
        let text_models = [&mut embedding].into_iter().chain(&mut reranker).map(|model| &mut model.served);
        name_models(served.iter_mut().chain(text_models).collect(), &config.aliases)?;
        let slots = served
            .into_iter()
            .zip(&config.models)
            .map(|(served, reference)| {
                let (reference, registry, limits) = (reference.clone(), registry.clone(), limits.clone());
                let find = move || checkpoint::find(&reference, &registry, &limits);
                ChatSlot::new(served, config.limits.queued_requests, Box::new(find))
            })
            .collect();
        let chat_models = ChatModels::new(slots, config.residency);
        chat_models.start_keeper()?;
        let app = Self::from_parts(Parts { chat_models, embedding, reranker, api_keys, limits, metrics });
        app.phase.loading.store(true, Ordering::Release);
        Ok(app)
    }

    pub fn from_parts(parts: Parts) -> Self {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let Limits { response_cache_bytes, response_cache_ttl, .. } = parts.limits;
        let responses = || Arc::new(ResponseCache::new(response_cache_bytes, response_cache_ttl));
        Self {
            responses: (response_cache_bytes > 0).then(responses),
            parts: Arc::new(parts),
            preparing: Arc::new(Semaphore::new(n_cores)),
            phase: Arc::default(),
        }
    }

    /// Loads the first chat model, so that a mistake shows at once, and with `all` the others too;
    /// without it, fetches what is missing of their files. Blocks.
    ///
    /// # Errors
    /// When the only chat model cannot be loaded. Where there are others, a failure is logged, and
    /// requests for the model try again.
    pub fn preload(&self, all: bool) -> Result<()> {
        let slots = self.parts.chat_models.slots();
        for (idx, slot) in slots.iter().enumerate() {
            let result = if idx == 0 || all {
                self.parts.chat_models.load(slot, Instant::now()).map(drop)
            } else {
                slot.find().map(drop)
            };
            if idx == 0 || all {
                self.phase.loading.store(all && idx + 1 < slots.len(), Ordering::Release);
            }
            match result {
                Err(e) if slots.len() == 1 => return Err(e),
                Err(e) => tracing::warn!(model = slot.served().id(), error = %e, "chat model not at hand"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// The chat model that answers to `name`; no name is the default.
    ///
    /// # Errors
    /// When no chat model has this name.
    pub fn chat_slot(&self, name: Option<&str>) -> Result<&Arc<ChatSlot>> {
        let slots = self.parts.chat_models.slots();
        let name = name.unwrap_or(DEFAULT);
        let found = slots.iter().find(|slot| slot.served().answers_to(name));
        let found = found.or(slots.first().filter(|_| is_default(name)));
        found.ok_or_else(|| {
            if self.parts.embedding.served.answers_to(name) {
                return not_for_this(name, "an embedding model", "/v1/embeddings");
            }
            if self.reranker_named(name).is_some() {
                return not_for_this(name, "a reranker", "/v1/rerank");
            }
            self.unknown(name)
        })
    }

    /// The models that read whole texts.
    fn text_models(&self) -> impl Iterator<Item = &TextModel> {
        [&self.parts.embedding].into_iter().chain(&self.parts.reranker)
    }

    fn reranker_named(&self, name: &str) -> Option<&TextModel> {
        self.parts.reranker.as_ref().filter(|model| model.served.answers_to(name))
    }

    /// The embedding model that answers to `name`; no name is the default.
    ///
    /// # Errors
    /// When no embedding model has this name.
    pub fn embedding_model(&self, name: Option<&str>) -> Result<&TextModel> {
        let (model, name) = (&self.parts.embedding, name.unwrap_or(DEFAULT));
        if model.served.answers_to(name) || is_default(name) {
            Ok(model)
        } else if self.reranker_named(name).is_some() {
            Err(not_for_this(name, "a reranker", "/v1/rerank"))
        } else if self.parts.chat_models.slots().iter().any(|slot| slot.served().answers_to(name)) {
            Err(not_for_this(name, "a chat model", "/v1/chat/completions"))
        } else {
            Err(self.unknown(name))
        }
    }

    /// The model that scores texts and answers to `name`; no name is the reranker, or without one the embedding
    /// model.
    ///
    /// # Errors
    /// When no such model has this name.
    pub fn scoring_model(&self, name: Option<&str>) -> Result<&TextModel> {
        let is_meant =
            |model: &&TextModel| name.is_none_or(|name| is_default(name) || model.served.answers_to(name));
        match self.parts.reranker.as_ref().filter(is_meant) {
            Some(reranker) => Ok(reranker),
            None => self.embedding_model(name),
        }
    }

    /// A model's tokenizer and the most tokens it takes, loaded now if it is not; no name is the default chat
    /// model.
    ///
    /// # Errors
    /// When no model has this name, or it cannot be loaded.
    pub async fn vocabulary(&self, name: Option<&str>) -> Result<Vocabulary> {
        let name = name.unwrap_or(DEFAULT);
        let chat = self.chat_slot(Some(name));
        if chat.is_err()
            && let Some(model) = self.text_models().find(|model| model.served.answers_to(name))
        {
            return Ok(Vocabulary::OfTexts(model.embedder.model().await?));
        }
        Ok(Vocabulary::OfChat(self.chat_model(chat?).await?))
    }

    /// The model that answers to `name`, whatever it is for.
    ///
    /// # Errors
    /// When no model has this name.
    pub fn any_model(&self, name: &str) -> Result<ModelStatus<'_>> {
        let answers = |model: &ModelStatus| model.served.answers_to(name);
        let found = self.models().find(answers).or(self.models().next().filter(|_| is_default(name)));
        found.ok_or_else(|| self.unknown(name))
    }

    /// All models that are served.
    pub fn models(&self) -> impl Iterator<Item = ModelStatus<'_>> {
        let chat = self.parts.chat_models.slots().iter().map(|slot| ModelStatus {
            served: slot.served(),
            kind: ModelKind::Chat,
            info: slot.info().cloned(),
            is_loaded: slot.is_loaded(),
        });
        let kinds = [ModelKind::Embedding, ModelKind::Reranker];
        chat.chain(self.text_models().zip(kinds).map(|(model, kind)| {
            let loaded = model.embedder.loaded();
            let info = loaded.map(|model| ModelInfo {
                family: model.family().to_owned(),
                format: model.format().name(),
                context_length: model.max_tokens(),
                license: model.license().map(str::to_owned),
            });
            ModelStatus { served: &model.served, kind, info, is_loaded: loaded.is_some() }
        }))
    }

    /// The model of a slot, loaded now if it is not.
    ///
    /// # Errors
    /// As [`ChatModels::acquire`].
    pub async fn chat_model(&self, slot: &Arc<ChatSlot>) -> Result<Arc<ChatModel>> {
        self.parts.chat_models.acquire(slot).await
    }

    /// Runs what takes long on a thread that may: not on those that answer probes, and no more at
    /// once than there are cores.
    ///
    /// # Errors
    /// When `work` panics.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.preparing.clone().acquire_owned().await;
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::internal(format!("the request could not be prepared: {e}")))
    }

    /// Answers that were given before, if the server keeps them.
    pub fn responses(&self) -> Option<&Arc<ResponseCache>> {
        self.responses.as_ref()
    }

    /// The keys that clients must show.
    pub fn api_keys(&self) -> &ApiKeys {
        &self.parts.api_keys
    }

    pub fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// Counters in Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        for (model, EngineStatus { load, .. }) in self.chat_status() {
            let gauge = |name, value| metrics::gauge!(name, "model_name" => model.id.clone()).set(value);
            gauge(telemetry::WAITING, load.n_waiting as f64);
            gauge(telemetry::RUNNING, load.n_running as f64);
            gauge(telemetry::KV_USAGE, load.kv_usage);
            metrics::gauge!(
                telemetry::KV_CONFIG,
                "model_name" => model.id.clone(),
                "block_size" => BLOCK_TOKENS.to_string(),
                "num_gpu_blocks" => load.n_blocks.to_string()
            )
            .set(1.0);
        }
        self.parts.metrics.render()
    }

    /// How busy each chat model in memory is.
    pub fn chat_status(&self) -> Vec<(&ServedModel, EngineStatus)> {
        self.parts.chat_models.status()
    }

    /// From now on the server is not healthy, so that new clients go elsewhere.
    pub fn start_draining(&self) {
        self.phase.draining.store(true, Ordering::Release);
    }

    /// Ends the requests that still run, each with an error.
    pub fn stop_generating(&self) {
        self.parts.chat_models.stop_generating();
        self.text_models().for_each(|model| model.embedder.stop());
    }

    /// Whether requests can be answered at once.
    ///
    /// # Errors
    /// When the server is shutting down, its models are still being loaded, or one stands still.
    pub fn check_health(&self) -> Result<()> {
        if self.phase.draining.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Unavailable, "the server is shutting down"));
        }
        if self.phase.loading.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Unavailable, "the server is loading its models; try again later"));
        }
        self.parts.chat_models.check_health()
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<String> = self.models().map(|model| format!("`{}`", model.served.id)).collect();
        let message = format!("model `{name}` is not served here; served are {}", names.join(", "));
        Error::new(Kind::ModelNotFound, message).with_param("model")
    }
}

impl ServedModel {
    /// A model that answers to `id` and to each of `aliases`; `owner` made it, where that is known.
    pub fn new(id: String, aliases: Vec<String>, owner: Option<&str>) -> Self {
        Self { id, aliases, owner: owner.map(str::to_owned), created: unix_time() }
    }

    /// The model that a reference names.
    fn of(reference: &ModelRef) -> Self {
        let (id, aliases) = reference.names();
        Self::new(id, aliases, reference.owner())
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn created(&self) -> u64 {
        self.created
    }

    /// Who made it; we, if nobody knows.
    pub fn owner(&self) -> &str {
        self.owner.as_deref().unwrap_or("predict-otron-9000")
    }

    /// Names are compared without case, as the hub does.
    fn answers_to(&self, name: &str) -> bool {
        let mut names = self.aliases.iter().chain([&self.id]);
        names.any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// Gives models the aliases that users chose for them.
///
/// # Errors
/// When a name would mean two models, or an alias means none.
fn name_models(mut models: Vec<&mut ServedModel>, aliases: &[(String, String)]) -> Result<()> {
    let config = |message: String| Error::new(Kind::Config, message);
    for (alias, target) in aliases {
        if is_default(alias) || models.iter().any(|model| model.answers_to(alias)) {
            return Err(config(format!("--alias {alias}={target}: `{alias}` is taken; choose another name")));
        }
        let model = models.iter_mut().find(|model| model.answers_to(target)).ok_or_else(|| {
            config(format!(
                "--alias {alias}={target}: `{target}` is not served; serve it with --model {target}"
            ))
        })?;
        model.aliases.push(alias.clone());
    }
    for (idx, model) in models.iter().enumerate() {
        if models[..idx].iter().any(|other| other.answers_to(&model.id)) {
            return Err(config(format!(
                "two models are called `{}`; serve one of them, or give their files different names",
                model.id
            )));
        }
    }
    Ok(())
}

fn is_default(name: &str) -> bool {
    name.eq_ignore_ascii_case(DEFAULT)
}

fn not_for_this(name: &str, what: &str, route: &str) -> Error {
    let message = format!("model `{name}` is {what}; it answers on {route}");
    Error::new(Kind::ModelNotFound, message).with_param("model")
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
