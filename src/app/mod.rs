//! The composition root: locates the models, starts what serves them, and finds them by name.

mod accounts;
mod admission;
mod api_keys;
mod chat_models;
mod chat_templates;
mod checkpoint;
mod fair_queue;
mod management;
mod memory_budget;
mod precision;
mod served_model;
mod state;
mod text_models;
mod tokens;
mod weights_hash;
mod work_queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use metrics_exporter_prometheus::PrometheusHandle;

pub use accounts::check_limits;
pub use admission::{AdmissionControl, AdmissionGuard, RequestClass};
pub use api_keys::ApiKeys;
pub use chat_models::{ChatModels, ChatSlot, LoadPlan};
pub use checkpoint::{kv_format, read_headers};
use management::ModelManagement;
pub use management::PulledModel;
use memory_budget::MemoryBudget;
pub use precision::PrecisionRecord;
use served_model::{DEFAULT, assign_aliases, is_default, nearest_name, plain_name};
pub use served_model::{ModelInfo, ModelStatus, Residence, ServedModel, unix_time};
pub use text_models::{TextModel, embedder_options};
pub use weights_hash::hash_weights;
use work_queue::WorkQueue;

use crate::chat::{ChatModel, ChatStream, CompletionStream, ContinuationScores, ResponseCache};
use crate::config::{AccessConfig, Config, Limits};
use crate::decisions::DecisionTask;
use crate::embeddings::{DiskCache, EmbedderOptions, TextEmbedding};
use crate::error::{Error, Kind, Result, quote};
use crate::inference::Caller;
use crate::inference::EngineStatus;
use crate::kernels::attention::kv_block::BLOCK_TOKENS;
use crate::kernels::threads::pool;
use crate::metering::Metering;
use crate::openai::chat::ChatCompletionRequest;
use crate::openai::completions::CompletionRequest;
use crate::registry::{ModelKind, ModelRef, Registry};
use crate::responses::ResponseState;
use crate::store::files::FileStore;
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Everything that requests share. Cheap to clone.
#[derive(Clone)]
pub struct App {
    parts: Arc<Parts>,
    admission: AdmissionControl,
    queues: Arc<WorkQueues>,
    /// The response cache, if enabled.
    responses: Option<Arc<ResponseCache>>,
    /// Stored responses and conversations.
    state: Arc<ResponseState>,
    /// Files, and the batches that make some of them.
    files: Arc<FileStore>,
    lifecycle: Arc<Lifecycle>,
    /// Management of models, if clients may.
    management: Option<Arc<ModelManagement>>,
}

/// The parts of an [`App`].
pub struct Parts {
    /// The chat models.
    pub chat_models: Arc<ChatModels>,
    /// The embedding model.
    pub embedding: TextModel,
    /// The reranker; without one, the embedding model's vectors score texts.
    pub reranker: Option<TextModel>,
    /// The keys that clients must send.
    pub api_keys: ApiKeys,
    /// Quotas, usage and the audit log.
    pub metering: Arc<Metering>,
    /// Hosts and web pages that are served besides the server's own.
    pub access: AccessConfig,
    /// Whether the log has a line for every request.
    pub logs_every_request: bool,
    /// Limits of requests, queues and caches.
    pub limits: Limits,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// The queues for work that would hold up the I/O threads.
struct WorkQueues {
    /// Rendering and tokenizing of prompts.
    preparation: WorkQueue,
    /// `/tokenize` and `/detokenize`, at the priority of the compute threads: they never delay a prompt.
    tools: WorkQueue,
}

/// The stage of the server's life.
#[derive(Default)]
struct Lifecycle {
    loading: AtomicBool,
    draining: AtomicBool,
}

/// A chat model found by name, in memory or not, for one request.
pub struct ServedChat {
    app: App,
    slot: Arc<ChatSlot>,
    /// Bytes of the request's body, by which its preparation is scheduled.
    n_bytes: usize,
    /// Whether the model was chosen although the client's name for it is unknown.
    is_name_ignored: bool,
}

/// A loaded model of any kind.
pub enum LoadedModel {
    /// A chat model.
    Chat(Arc<ChatModel>),
    /// An embedding model or reranker.
    Text(&'static TextEmbedding),
}

/// A served model of any kind, in memory or not.
#[derive(Clone)]
enum Slot<'a> {
    Chat(Arc<ChatSlot>),
    Text(&'a TextModel, ModelKind),
}

/// A name as sent, and without what clients add to it.
fn spellings(name: &str) -> impl Iterator<Item = &str> {
    [Some(name), plain_name(name)].into_iter().flatten()
}

/// All kinds of models, in the order in which names are resolved.
const ANY_KIND: [ModelKind; 3] = [ModelKind::Chat, ModelKind::Embedding, ModelKind::Reranker];

impl App {
    /// Assembles the server for the models of `config`. Loads nothing yet (see [`App::preload`]).
    ///
    /// # Errors
    /// When a key is invalid, a model reference is invalid or occurs twice, or a thread cannot be started.
    pub fn new(config: &Config) -> Result<Self> {
        let api_keys = ApiKeys::new(&config.api_keys, config.api_key_file.as_deref())?;
        if !api_keys.are_required() && !config.host.is_loopback() && !config.allow_unauthenticated {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "--host {} accepts other machines, and no API key is set; set one with --api-key or --api-key-file, \
                     or pass --no-auth to serve everyone who can reach the server",
                    config.host
                ),
            ));
        }
        let metrics = telemetry::start_metrics();
        let registry = Registry::new(config.registry.clone());
        let limits = config.limits.clone();
        let budget = MemoryBudget::new(config.residency.memory_budget);
        let n_text_models = 1 + u64::from(config.rerank_model.is_some());
        let cache_bytes =
            limits.response_cache_bytes as u64 + n_text_models * limits.embedding_cache_bytes as u64;
        let state_bytes = match config.state_dir {
            None => limits.state_bytes + limits.files_bytes,
            Some(_) => 0,
        };
        budget.reserve("the caches", cache_bytes + state_bytes)?;
        let disk_cache = config.disk_cache.as_ref().map(DiskCache::open).transpose()?.map(Arc::new);
        let key_owners = api_keys.list_digest();
        let options = EmbedderOptions { disk_cache, key_owners, ..embedder_options(&limits) };
        let text_model = |reference: &str, kind| {
            let backend = config.embedding_backend;
            TextModel::new(reference, kind, backend, registry.clone(), options.clone(), budget.clone())
        };
        let mut embedding = text_model(&config.embedding_model, ModelKind::Embedding)?;
        let reranker = config.rerank_model.as_deref();
        let mut reranker = reranker.map(|name| text_model(name, ModelKind::Reranker)).transpose()?;
        let mut served = config
            .models
            .iter()
            .map(|reference| Ok(ServedModel::from_reference(&ModelRef::parse(reference)?)))
            .collect::<Result<Vec<_>>>()?;
        let text_models = [&mut embedding].into_iter().chain(&mut reranker).map(|model| &mut model.served);
        assign_aliases(served.iter_mut().chain(text_models).collect(), &config.aliases)?;
        let templates = chat_templates::assign(&served, &config.chat_templates)?;
        let management = ModelManagement::new(registry, limits.clone(), budget.clone());
        let slots = served.into_iter().zip(config.models.iter().zip(templates));
        let slots = slots
            .map(|(served, (reference, template))| management.chat_slot(served, reference.clone(), template))
            .collect();
        let chat_models = ChatModels::with_budget(slots, config.residency.idle_unload, budget);
        chat_models.start_idle_reaper()?;
        let access = config.access.clone();
        let metering = accounts::start_metering(config, &api_keys)?;
        let state = state::open(config.state_dir.as_deref(), &limits)?;
        let files = state::open_files(config.state_dir.as_deref(), &limits)?;
        let app = Self::from_parts(Parts {
            chat_models,
            embedding,
            reranker,
            api_keys,
            metering,
            access,
            logs_every_request: config.access_log,
            limits,
            metrics,
        })?;
        let is_managed = config.manage_models || config.host.is_loopback();
        let management = is_managed.then(|| Arc::new(management));
        let app = Self { state, files, management, ..app };
        app.lifecycle.loading.store(true, Ordering::Release);
        Ok(app)
    }

    /// Assembles the server from its parts. It counts as loaded.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn from_parts(parts: Parts) -> Result<Self> {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let n_text_models = 1 + usize::from(parts.reranker.is_some());
        let admission = AdmissionControl::new(&parts.limits, parts.chat_models.slots().len(), n_text_models);
        // The engine keeps a core for itself.
        let preparation = WorkQueue::start("preparation", n_cores.saturating_sub(1), || {})?;
        let tools = WorkQueue::start("tools", n_cores / 4, pool::lower_priority)?;
        let Limits { response_cache_bytes, response_cache_ttl, .. } = parts.limits;
        let responses = || Arc::new(ResponseCache::new(response_cache_bytes, response_cache_ttl));
        Ok(Self {
            responses: (response_cache_bytes > 0).then(responses),
            state: state::open(None, &parts.limits)?,
            files: state::open_files(None, &parts.limits)?,
            parts: Arc::new(parts),
            admission,
            queues: Arc::new(WorkQueues { preparation, tools }),
            lifecycle: Arc::default(),
            management: None,
        })
    }

    /// Loads the first chat model, the embedding model and the reranker, so that a mistake shows at once. With `all`, loads the others too;
    /// without, only fetches their missing files. Blocks.
    ///
    /// # Errors
    /// When the only chat model cannot be loaded, an option must be changed for one, or the embedding model or the
    /// reranker cannot be served ([`TextModel::preload`]). With several chat models, other failures are logged, and
    /// requests for the model try again.
    pub fn preload(&self, all: bool) -> Result<()> {
        let slots = self.parts.chat_models.slots();
        for (idx, slot) in slots.iter().enumerate() {
            let result = if idx == 0 || all {
                self.parts.chat_models.load(slot, Instant::now()).map(drop)
            } else {
                slot.locate().map(drop)
            };
            if idx == 0 {
                self.text_models().try_for_each(TextModel::preload)?;
            }
            match result {
                // A mistake in the options does not mend itself.
                Err(e) if slots.len() == 1 || e.kind() == Kind::Config => return Err(e),
                Err(e) => tracing::warn!(model = slot.served().id(), error = %e, "chat model not available"),
                Ok(()) => {}
            }
            if idx == 0 || all {
                self.lifecycle.loading.store(all && idx + 1 < slots.len(), Ordering::Release);
            }
        }
        Ok(())
    }

    /// The chat model called `name`, for a request with a body of `n_bytes`; no name means the default one.
    ///
    /// # Errors
    /// When no chat model has this name.
    pub fn chat(&self, name: Option<&str>, n_bytes: usize) -> Result<ServedChat> {
        match self.resolve(name, &[ModelKind::Chat])? {
            Slot::Chat(slot) => {
                Ok(ServedChat { app: self.clone(), slot, n_bytes, is_name_ignored: self.ignores_name(name) })
            }
            Slot::Text(..) => Err(self.not_served(name.unwrap_or(DEFAULT))),
        }
    }

    /// The embedding model called `name`; no name means the only one.
    ///
    /// # Errors
    /// When it has another name.
    pub fn embedder(&self, name: Option<&str>) -> Result<&TextModel> {
        self.text_model(name, &[ModelKind::Embedding])
    }

    /// The model called `name` for scoring pairs of texts; no name means the reranker or, without one, the embedding
    /// model.
    ///
    /// # Errors
    /// When neither has this name.
    pub fn scorer(&self, name: Option<&str>) -> Result<&TextModel> {
        self.text_model(name, &[ModelKind::Reranker, ModelKind::Embedding])
    }

    /// The model of any kind called `name`, loaded now if necessary; no name means the default chat model.
    ///
    /// # Errors
    /// When no model has this name, or it cannot be loaded.
    pub async fn load_any(&self, name: Option<&str>) -> Result<LoadedModel> {
        Ok(match self.resolve(name, &ANY_KIND)? {
            Slot::Chat(slot) => LoadedModel::Chat(self.parts.chat_models.acquire(&slot).await?),
            Slot::Text(model, _) => LoadedModel::Text(model.embedder.model().await?),
        })
    }

    /// The state of the model of any kind called `name`.
    ///
    /// # Errors
    /// When no model has this name.
    pub fn model_status(&self, name: &str) -> Result<ModelStatus> {
        Ok(self.resolve(Some(name), &ANY_KIND)?.status())
    }

    /// The states of all served models.
    pub fn models(&self) -> impl Iterator<Item = ModelStatus> {
        self.slots().map(|slot| slot.status())
    }

    fn text_model(&self, name: Option<&str>, kinds: &[ModelKind]) -> Result<&TextModel> {
        match self.resolve(name, kinds)? {
            Slot::Text(model, _) => Ok(model),
            Slot::Chat(_) => Err(self.not_served(name.unwrap_or(DEFAULT))),
        }
    }

    /// Finds a model of one of `kinds` by name, with earlier kinds first. No name, and the name `default`, mean the
    /// first model.
    ///
    /// # Errors
    /// When no model of these kinds has this name.
    fn resolve(&self, name: Option<&str>, kinds: &[ModelKind]) -> Result<Slot<'_>> {
        let name = name.unwrap_or(DEFAULT);
        let mut candidates = Vec::new();
        for kind in kinds {
            candidates.extend(self.slots().filter(|slot| slot.kind() == *kind));
        }
        for name in spellings(name) {
            let named = candidates.iter().find(|slot| slot.served().is_called(name));
            if let Some(slot) = named.or(candidates.first().filter(|_| is_default(name))) {
                return Ok(slot.clone());
            }
        }
        match (self.slot_called(name), candidates.first()) {
            (Some(other), _) => Err(other.wrong_route(name)),
            (None, Some(first)) if self.limits().any_model_name => Ok(first.clone()),
            (None, _) => Err(self.not_served(name)),
        }
    }

    /// Whether a request gets a default model although it names one that is not served.
    pub fn ignores_name(&self, name: Option<&str>) -> bool {
        let is_known = |name| spellings(name).any(is_default) || self.slot_called(name).is_some();
        self.limits().any_model_name && name.is_some_and(|name| !is_known(name))
    }

    /// The model of any kind that has this name.
    fn slot_called(&self, name: &str) -> Option<Slot<'_>> {
        spellings(name).find_map(|name| self.slots().find(|slot| slot.served().is_called(name)))
    }

    /// All served models: chat models, the embedding model, the reranker.
    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let kinds = [ModelKind::Embedding, ModelKind::Reranker];
        let text = self.text_models().zip(kinds).map(|(model, kind)| Slot::Text(model, kind));
        self.parts.chat_models.slots().into_iter().map(Slot::Chat).chain(text)
    }

    /// The models that read whole texts.
    fn text_models(&self) -> impl Iterator<Item = &TextModel> {
        [&self.parts.embedding].into_iter().chain(&self.parts.reranker)
    }

    fn not_served(&self, name: &str) -> Error {
        let ids: Vec<String> = self.slots().map(|slot| format!("`{}`", slot.served().id())).collect();
        let slots = self.parts.chat_models.slots();
        let models = slots.iter().map(|slot| slot.served());
        let models = models.chain(self.text_models().map(|model| &model.served));
        let names = models.flat_map(|served| [served.id()].into_iter().chain(served.aliases()));
        let hint = match nearest_name(name, names) {
            Some(nearest) => format!("did you mean `{nearest}`? Served are "),
            None => "served are ".to_owned(),
        };
        let message = format!(
            "model `{}` is not served here; {hint}{}; a server started with --any-model-name takes any name",
            quote(name),
            ids.join(", ")
        );
        Error::new(Kind::ModelNotFound, message).with_param("model")
    }

    /// Admits a request of a tenant by its head, which announces a body of `n_bytes`. A retry may join a running attempt, so it is
    /// admitted although the engines are full.
    ///
    /// # Errors
    /// When the server is full; the error says when to retry.
    pub fn admit(
        &self,
        class: RequestClass,
        tenant: &Arc<str>,
        n_bytes: usize,
        is_retry: bool,
    ) -> Result<AdmissionGuard> {
        // A response in the cache needs no slot either.
        if class == RequestClass::Generation && !is_retry && self.responses.is_none() {
            self.parts.chat_models.check_room()?;
        }
        self.admission.admit(class, tenant, n_bytes)
    }

    /// The keys that clients must send.
    pub fn api_keys(&self) -> &ApiKeys {
        &self.parts.api_keys
    }

    /// Hosts and web pages that are served besides the server's own.
    pub fn access(&self) -> &AccessConfig {
        &self.parts.access
    }

    /// Whether the log has a line for every request.
    pub fn logs_every_request(&self) -> bool {
        self.parts.logs_every_request
    }

    /// Limits of requests, queues and caches.
    pub fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// The metrics in Prometheus's text format.
    pub fn render_metrics(&self) -> String {
        for (class, n_requests, n_bytes) in self.admission.load() {
            let gauge = |name, value| metrics::gauge!(name, "class" => class.name()).set(value);
            gauge(telemetry::REQUESTS_IN_PROGRESS, n_requests as f64);
            gauge(telemetry::BODY_BYTES, n_bytes as f64);
        }
        let WorkQueues { preparation, tools } = &*self.queues;
        for (name, queue) in [("preparation", preparation), ("tools", tools)] {
            metrics::gauge!(telemetry::PREPARATIONS_WAITING, "queue" => name).set(queue.n_waiting() as f64);
        }
        for (slot, EngineStatus { load, .. }) in self.chat_status() {
            let model = slot.served();
            let gauge = |name, value| metrics::gauge!(name, "model_name" => model.id().to_owned()).set(value);
            gauge(telemetry::WAITING, load.n_waiting as f64);
            gauge(telemetry::RUNNING, load.n_running as f64);
            gauge(telemetry::KV_USAGE, load.kv_usage);
            metrics::gauge!(
                telemetry::KV_CONFIG,
                "model_name" => model.id().to_owned(),
                "block_size" => BLOCK_TOKENS.to_string(),
                "num_gpu_blocks" => load.n_blocks.to_string()
            )
            .set(1.0);
        }
        self.parts.metrics.render()
    }

    /// The load of each chat model in memory.
    pub fn chat_status(&self) -> Vec<(Arc<ChatSlot>, EngineStatus)> {
        self.parts.chat_models.status()
    }

    /// Whether the server is shutting down.
    pub fn is_draining(&self) -> bool {
        self.lifecycle.draining.load(Ordering::Acquire)
    }

    /// Whether anybody waits for a model.
    pub fn is_busy(&self) -> bool {
        let uses_model = |class: RequestClass| class != RequestClass::Tokens;
        self.admission.load().iter().any(|&(class, n_requests, _)| uses_model(class) && n_requests > 0)
    }

    /// Makes the server report that it is not ready, so that load balancers send new clients elsewhere.
    pub fn start_draining(&self) {
        self.lifecycle.draining.store(true, Ordering::Release);
    }

    /// Ends all running requests with an error.
    pub fn stop_generating(&self) {
        self.parts.chat_models.stop_generating();
        self.text_models().for_each(|model| model.embedder.stop());
    }

    /// Checks that the server is ready for requests.
    ///
    /// # Errors
    /// When the server is shutting down or still loading its models, a default model cannot be loaded, a thread that
    /// runs a model is stuck, or a request has been in preparation for too long.
    pub fn check_health(&self) -> Result<()> {
        if self.is_draining() {
            return Err(Error::new(Kind::Unavailable, "the server is shutting down"));
        }
        if self.lifecycle.loading.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Unavailable, "the server is loading its models; try again later"));
        }
        self.parts.chat_models.check_health()?;
        self.text_models().try_for_each(|model| model.embedder.check_health())?;
        let waited = self.queues.preparation.oldest();
        if waited > self.parts.limits.preparation_time {
            return Err(Error::new(
                Kind::Unavailable,
                format!("a request has been in preparation for {} s; try again later", waited.as_secs()),
            ));
        }
        Ok(())
    }
}

impl ServedChat {
    /// The model's id.
    pub fn id(&self) -> &str {
        self.slot.served().id()
    }

    /// The model, loaded now if necessary.
    ///
    /// # Errors
    /// The same as for [`ChatModels::acquire`].
    pub async fn load(&self) -> Result<Arc<ChatModel>> {
        self.app.parts.chat_models.acquire(&self.slot).await
    }

    /// The model, if it is in memory.
    pub fn loaded(&self) -> Option<Arc<ChatModel>> {
        self.slot.loaded()
    }

    /// Starts the response to a conversation, or replays it from the response cache.
    ///
    /// # Errors
    /// When the model cannot be loaded, the queue is full, or the request is invalid.
    pub async fn start_chat(&self, mut request: ChatCompletionRequest, caller: Caller) -> Result<ChatStream> {
        request.options.default_max_tokens = self.app.limits().default_max_tokens;
        let cached = self.app.responses.as_ref();
        let cached =
            cached.and_then(|cache| Some((cache, ResponseCache::key(&caller.tenant, self.id(), &request)?)));
        if let Some((cache, key)) = &cached
            && let Some(hit) = ChatStream::from_cache(cache, key, self.slot.fingerprint().as_deref())
        {
            return Ok(hit);
        }
        let model = self.load().await?;
        let admission = model.admit(caller.priority).await?;
        let (request, spec) = match request.tools.is_some() || request.options.has_grammar() {
            false => (request, None),
            true => {
                let model = model.clone();
                let find = move || model.chat_grammar(&request).map(|spec| (request, spec));
                self.prepare(&caller.tenant, find).await??
            }
        };
        let grammar = model.compile(spec).await?;
        let tenant = caller.tenant.clone();
        let start = move || model.start_chat(admission, &request, grammar.as_ref(), caller);
        let mut stream = self.prepare(&tenant, start).await??;
        self.name_ignored_model(&mut stream);
        if let Some((cache, key)) = cached {
            stream.record_into(cache, key);
        }
        Ok(stream)
    }

    /// Number of tokens of the prompt of a conversation.
    ///
    /// # Errors
    /// When the model cannot be loaded, or the request is invalid.
    pub async fn count_prompt_tokens(&self, request: ChatCompletionRequest, caller: Caller) -> Result<usize> {
        let model = self.load().await?;
        self.prepare(&caller.tenant, move || Ok(model.prompt(&request)?.tokens.len())).await?
    }

    /// Starts a text completion.
    ///
    /// # Errors
    /// When the model cannot be loaded, the queue is full, or the request is invalid.
    pub async fn start_completion(
        &self,
        mut request: CompletionRequest,
        caller: Caller,
    ) -> Result<CompletionStream> {
        let options = &mut request.options;
        options.max_tokens = options.max_tokens.or(self.app.limits().default_max_tokens);
        let model = self.load().await?;
        let admission = model.admit(caller.priority).await?;
        let grammar = model.compile(model.completion_grammar(&request)?).await?;
        let tenant = caller.tenant.clone();
        let start = move || model.start_completion(admission, &request, grammar.as_ref(), caller);
        let mut completion = self.prepare(&tenant, start).await??;
        self.name_ignored_model(&mut completion.stream);
        Ok(completion)
    }

    /// Adds the model's name to the fields that had no effect, if it had none.
    fn name_ignored_model(&self, stream: &mut ChatStream) {
        if self.is_name_ignored {
            stream.add_ignored_field("model");
        }
    }

    /// Starts to answer questions by the probabilities of their labels.
    ///
    /// # Errors
    /// When the model cannot be loaded, the queue is full, or the questions do not fit the context.
    pub async fn start_decision(
        &self,
        task: Arc<DecisionTask>,
        caller: Caller,
    ) -> Result<impl Future<Output = Result<ContinuationScores>> + Send + 'static> {
        let model = self.load().await?;
        let admission = model.admit(caller.priority).await?;
        let max_tokens = self.app.limits().decision_tokens;
        let (for_model, tenant) = (model.clone(), caller.tenant.clone());
        let prepare = move || task.prepare(&for_model, caller, max_tokens);
        let request = self.prepare(&tenant, prepare).await??;
        Ok(async move { model.score_continuations(admission, request).await })
    }

    /// Prepares the request on a thread for that.
    async fn prepare<T: Send + 'static>(
        &self,
        tenant: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.app.queues.preparation.run(tenant, self.n_bytes, work).await
    }
}

impl LoadedModel {
    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Chat(model) => model.tokenizer(),
            Self::Text(model) => model.tokenizer(),
        }
    }

    /// Maximum number of tokens of a prompt and its response, or of a text.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Chat(model) => model.engine().context_length(),
            Self::Text(model) => model.max_tokens(),
        }
    }
}

impl Slot<'_> {
    fn served(&self) -> &ServedModel {
        match self {
            Self::Chat(slot) => slot.served(),
            Self::Text(model, _) => &model.served,
        }
    }

    fn kind(&self) -> ModelKind {
        match self {
            Self::Chat(_) => ModelKind::Chat,
            Self::Text(_, kind) => *kind,
        }
    }

    /// The error of a route that does not take this kind of model.
    fn wrong_route(&self, name: &str) -> Error {
        let (what, route) = match self.kind() {
            ModelKind::Chat => ("a chat model", "/v1/chat/completions"),
            ModelKind::Embedding => ("an embedding model", "/v1/embeddings"),
            ModelKind::Reranker => ("a reranker", "/v1/rerank"),
        };
        let message = format!("model `{}` is {what}; it answers on {route}", quote(name));
        Error::new(Kind::ModelNotFound, message).with_param("model")
    }
}

impl Slot<'_> {
    fn status(&self) -> ModelStatus {
        match self {
            Self::Chat(slot) => ModelStatus {
                served: slot.served().clone(),
                kind: ModelKind::Chat,
                info: slot.info().cloned(),
                residence: match slot.is_loaded() {
                    true => Residence::Loaded,
                    false if slot.is_loading() => Residence::Loading,
                    false if slot.has_failed() => Residence::Failed,
                    false => Residence::Unloaded,
                },
                memory_bytes: slot.memory_bytes(),
                is_pinned: slot.is_pinned(),
                prompt_activation_bits: slot.prompt_activation_bits(),
            },
            Self::Text(model, kind) => {
                let loaded = model.embedder.loaded();
                let info = loaded.map(|model| ModelInfo {
                    family: model.family().to_owned(),
                    format: model.format().name(),
                    context_length: model.max_tokens(),
                    license: model.license().map(str::to_owned),
                    quantization: None,
                    size_bytes: None,
                });
                let residence = if loaded.is_some() { Residence::Loaded } else { Residence::Unloaded };
                ModelStatus {
                    served: model.served.clone(),
                    kind: *kind,
                    info,
                    residence,
                    memory_bytes: None,
                    is_pinned: true,
                    prompt_activation_bits: None,
                }
            }
        }
    }
}
