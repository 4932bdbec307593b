//! The chat models of the server: loading, and eviction from memory.
//!
//! A model is loaded by the first request for it, one model at a time, each with its own engine. It is unloaded
//! after it has been idle for some time, or when another needs its memory, but never while a request uses it: a
//! request holds an `Arc` of its [`ChatModel`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::memory_budget::{BudgetStep, MemoryBudget, Resident};
use super::served_model::{ModelInfo, ServedModel, cannot_load};
use crate::chat::ChatModel;
use crate::config::Residency;
use crate::error::{Error, Kind, Result};
use crate::inference::EngineStatus;
use crate::telemetry;

/// All chat models, the default first.
pub struct ChatModels {
    slots: RwLock<Vec<Arc<ChatSlot>>>,
    /// Models from the start, which are never removed.
    n_configured: usize,
    idle_unload: Option<Duration>,
    budget: Arc<MemoryBudget>,
    /// Held while a model is loaded, so that two models never claim the same memory.
    load_lock: Mutex<()>,
}

/// A served chat model, in memory or not.
pub struct ChatSlot {
    served: ServedModel,
    /// The reference of the model's files; empty if they have none.
    reference: String,
    locator: Box<Locator>,
    /// Whether the model stays in memory.
    is_pinned: AtomicBool,
    info: OnceLock<ModelInfo>,
    state: Mutex<SlotState>,
    /// Held by the request that loads the model, while others wait for it.
    load_lock: tokio::sync::Mutex<()>,
    /// Permits of requests that wait for the model to be loaded.
    waiting_permits: Semaphore,
    max_waiting: usize,
}

/// Locates a model's files, fetches missing ones, and reads their headers.
pub type Locator = dyn Fn() -> Result<LoadPlan> + Send + Sync;

/// A model that is ready to be loaded.
pub struct LoadPlan {
    /// Facts from the model's files.
    pub info: ModelInfo,
    /// Memory that the weights and the KV cache will take.
    pub n_bytes: u64,
    /// Loads the model.
    pub load: Box<dyn FnOnce() -> Result<ChatModel>>,
}

#[derive(Default)]
struct SlotState {
    resident: Option<ResidentModel>,
    /// Time and error of the last failure to load the model.
    failed: Option<(Instant, Error)>,
}

struct ResidentModel {
    model: Arc<ChatModel>,
    n_bytes: u64,
    last_used: Instant,
}

impl ChatModels {
    /// The given models, the default one first.
    pub fn new(slots: Vec<ChatSlot>, residency: Residency) -> Arc<Self> {
        let Residency { memory_budget, idle_unload } = residency;
        Self::with_budget(slots, idle_unload, MemoryBudget::new(memory_budget))
    }

    /// The given models, which share a memory budget with other models and with caches.
    pub fn with_budget(
        slots: Vec<ChatSlot>,
        idle_unload: Option<Duration>,
        budget: Arc<MemoryBudget>,
    ) -> Arc<Self> {
        let slots: Vec<Arc<ChatSlot>> = slots.into_iter().map(Arc::new).collect();
        let (n_configured, slots) = (slots.len(), RwLock::new(slots));
        let load_lock = Mutex::new(());
        let models = Arc::new(Self { slots, n_configured, idle_unload, budget, load_lock });
        let others = Arc::downgrade(&models);
        models.budget.on_shortage(Box::new(move || {
            if let Some(models) = others.upgrade() {
                models.evict_idle();
            }
        }));
        models
    }

    /// Starts the thread that unloads idle models, if configured. It ends with the last handle.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_idle_reaper(self: &Arc<Self>) -> Result<()> {
        let Some(limit) = self.idle_unload else { return Ok(()) };
        let models = Arc::downgrade(self);
        let reap = move || {
            while let Some(models) = models.upgrade() {
                for slot in models.slots() {
                    if slot.idle_for().is_some_and(|idle| idle >= limit) && slot.unload() {
                        tracing::info!(model = slot.served.id(), "chat model unloaded: idle");
                    }
                }
                drop(models);
                thread::sleep((limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
            }
        };
        thread::Builder::new()
            .name("idle-reaper".to_owned())
            .spawn(reap)
            .map(drop)
            .map_err(|e| Error::internal(format!("cannot start a thread to unload models: {e}")))
    }

    /// All models, the default one first.
    pub fn slots(&self) -> Vec<Arc<ChatSlot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a model, unless one with its id is there; returns the one that is.
    pub fn add(&self, slot: ChatSlot) -> Arc<ChatSlot> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = slots.iter().find(|found| found.served.id() == slot.served.id()) {
            return found.clone();
        }
        let slot = Arc::new(slot);
        slots.push(slot.clone());
        slot
    }

    /// Removes a model that was added.
    pub fn remove_added(&self, slot: &Arc<ChatSlot>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(idx) = slots.iter().position(|found| Arc::ptr_eq(found, slot))
            && idx >= self.n_configured
        {
            slots.remove(idx);
        }
    }

    /// The model of a slot, loaded now if necessary.
    ///
    /// # Errors
    /// When it cannot be located or loaded, there is no memory for it, or too many requests wait for it.
    pub async fn acquire(self: &Arc<Self>, slot: &Arc<ChatSlot>) -> Result<Arc<ChatModel>> {
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        let arrived = Instant::now();
        let _permit = slot.waiting_permits.try_acquire().map_err(|_| {
            Error::new(
                Kind::Overloaded { retry_after: Duration::from_secs(10) },
                format!(
                    "{} requests are already waiting for `{}` to be loaded; try again later",
                    slot.max_waiting,
                    slot.served.id()
                ),
            )
        })?;
        let _guard = slot.load_lock.lock().await;
        let (models, slot) = (self.clone(), slot.clone());
        tokio::task::spawn_blocking(move || models.load(&slot, arrived))
            .await
            .map_err(|e| Error::internal(format!("the model could not be loaded: {e}")))?
    }

    /// Loads the model of a slot if necessary. Blocks. Returns the error of an attempt that failed after `arrived`
    /// instead of trying again.
    ///
    /// # Errors
    /// When the model cannot be located or loaded, or there is no memory for it.
    pub fn load(&self, slot: &ChatSlot, arrived: Instant) -> Result<Arc<ChatModel>> {
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        if let Some((when, e)) = &slot.state().failed
            && arrived < *when
        {
            return Err(e.clone());
        }
        self.load_now(slot)
            .map_err(|e| cannot_load(e, slot.served.id()))
            .inspect_err(|e| slot.state().failed = Some((Instant::now(), e.clone())))
    }

    /// The load of each model in memory.
    pub fn status(&self) -> Vec<(Arc<ChatSlot>, EngineStatus)> {
        let status = |slot: &ChatSlot| {
            let state = slot.state();
            state.resident.as_ref().map(|resident| resident.model.engine().status())
        };
        self.slots().into_iter().filter_map(|slot| status(&slot).map(|status| (slot, status))).collect()
    }

    /// Checks that the default model can be used, and that the engine of each model in memory makes progress.
    ///
    /// # Errors
    /// When the default model could not be loaded, or an engine has died or is stuck.
    pub fn check_health(&self) -> Result<()> {
        self.slots().iter().enumerate().try_for_each(|(idx, slot)| {
            let state = slot.state();
            let health = match (&state.resident, &state.failed) {
                (Some(resident), _) => resident.model.engine().check_health(),
                (None, Some((_, e))) if idx == 0 => Err(Error::new(Kind::Unavailable, e.to_string())),
                // It may have been unloaded because it was idle.
                (None, _) => Ok(()),
            };
            health.map_err(|e| e.context(slot.served.id()))
        })
    }

    /// Checks that a model has a slot for another request: one that is in memory with a slot to spare, or one that is
    /// not in memory.
    ///
    /// # Errors
    /// When there is none; the error says when to retry.
    pub fn check_room(&self) -> Result<()> {
        let mut shortest_wait: Option<Duration> = None;
        for slot in self.slots() {
            let state = slot.state();
            let wait =
                state.resident.as_ref().and_then(|resident| resident.model.engine().retry_after_if_full());
            let Some(wait) = wait else { return Ok(()) };
            shortest_wait = Some(shortest_wait.map_or(wait, |shortest| shortest.min(wait)));
        }
        let Some(retry_after) = shortest_wait else { return Ok(()) };
        metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
        Err(Error::new(
            Kind::Overloaded { retry_after },
            "the queue of every chat model is full; try again later",
        ))
    }

    /// Ends all running generations with an error.
    pub fn stop_generating(&self) {
        for slot in self.slots() {
            if let Some(resident) = &slot.state().resident {
                resident.model.engine().stop();
            }
        }
    }

    fn load_now(&self, slot: &ChatSlot) -> Result<Arc<ChatModel>> {
        // Outside of the lock: fetching files can take long and must not delay other models.
        let plan = slot.locate()?;
        let _guard = self.load_lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = slot.loaded() {
            return Ok(model);
        }
        self.evict_until_fits(slot, plan.n_bytes)?;
        let model = Arc::new((plan.load)()?);
        let resident =
            ResidentModel { model: model.clone(), n_bytes: plan.n_bytes, last_used: Instant::now() };
        *slot.state() = SlotState { resident: Some(resident), failed: None };
        Ok(model)
    }

    /// Unloads idle models until `n_bytes` fit into the memory budget.
    fn evict_until_fits(&self, slot: &ChatSlot, n_bytes: u64) -> Result<()> {
        let max_bytes = self.budget.for_chat();
        if n_bytes > max_bytes {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "`{}` takes {n_bytes} bytes of memory with its KV cache, but the budget has {max_bytes} for chat \
                     models; restart the server with a larger --memory-budget or a smaller --kv-memory, or use a \
                     smaller model",
                    slot.served.id()
                ),
            ));
        }
        loop {
            match self.evict_next(n_bytes) {
                BudgetStep::Fits => return Ok(()),
                BudgetStep::Evict(_) => {}
                BudgetStep::AllInUse => {
                    return Err(Error::new(
                        Kind::Overloaded { retry_after: Duration::from_secs(10) },
                        format!(
                            "there is no memory for `{}` while other models are in use; try again later, or restart the server \
                             with a larger --memory-budget",
                            slot.served.id()
                        ),
                    ));
                }
            }
        }
    }

    /// Unloads idle models until the others fit into the memory budget, or are all in use.
    fn evict_idle(&self) {
        let _guard = self.load_lock.lock().unwrap_or_else(PoisonError::into_inner);
        while let BudgetStep::Evict(_) = self.evict_next(0) {}
    }

    /// Takes the next step to fit `n_bytes` more into the memory budget.
    fn evict_next(&self, n_bytes: u64) -> BudgetStep {
        let slots = self.slots();
        let residents: Vec<Resident> = slots.iter().map(|slot| slot.resident()).collect();
        let step = self.budget.next_step(&residents, n_bytes);
        if let BudgetStep::Evict(idx) = step
            && slots[idx].unload()
        {
            tracing::info!(
                model = slots[idx].served.id(),
                "chat model unloaded: another model needs its memory"
            );
        }
        step
    }
}

impl ChatSlot {
    /// A model that `locator` locates. At most `max_waiting` requests wait while it is loaded.
    pub fn new(served: ServedModel, max_waiting: usize, locator: Box<Locator>) -> Self {
        Self {
            served,
            reference: String::new(),
            locator,
            is_pinned: AtomicBool::new(false),
            info: OnceLock::new(),
            state: Mutex::default(),
            load_lock: tokio::sync::Mutex::new(()),
            waiting_permits: Semaphore::new(max_waiting),
            max_waiting,
        }
    }

    /// This slot with the reference of the model's files.
    pub fn with_reference(self, reference: String) -> Self {
        Self { reference, ..self }
    }

    /// Names and owner of the model.
    pub fn served(&self) -> &ServedModel {
        &self.served
    }

    /// The reference of the model's files; empty if they have none.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Keeps the model in memory once it is loaded, or no longer.
    pub fn pin(&self, is_pinned: bool) {
        self.is_pinned.store(is_pinned, Ordering::Release);
    }

    /// Whether the model stays in memory.
    pub fn is_pinned(&self) -> bool {
        self.is_pinned.load(Ordering::Acquire)
    }

    /// Bytes of the weights and the KV cache; `None` while the model is not in memory.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.state().resident.as_ref().map(|resident| resident.n_bytes)
    }

    /// Bits of the activations of prompts; `None` while the model is not in memory.
    pub fn prompt_activation_bits(&self) -> Option<u8> {
        self.state().resident.as_ref().map(|resident| resident.model.engine().prompt_activation_bits())
    }

    /// Whether a request is loading the model.
    pub fn is_loading(&self) -> bool {
        self.load_lock.try_lock().is_err() && !self.is_loaded()
    }

    /// Whether the last attempt to load the model failed.
    pub fn has_failed(&self) -> bool {
        self.state().failed.is_some()
    }

    /// Facts from the model's files, once they have been located.
    pub fn info(&self) -> Option<&ModelInfo> {
        self.info.get()
    }

    /// The model's fingerprint, if it is in memory.
    pub fn fingerprint(&self) -> Option<String> {
        self.state().resident.as_ref().map(|resident| resident.model.fingerprint().to_owned())
    }

    /// Whether the model is in memory.
    pub fn is_loaded(&self) -> bool {
        self.state().resident.is_some()
    }

    /// Locates the model's files, fetches missing ones, and reads their headers.
    ///
    /// # Errors
    /// When the files cannot be fetched or read.
    pub fn locate(&self) -> Result<LoadPlan> {
        let plan = (self.locator)()?;
        // A concurrent call may have set it already, to the same value.
        let _ = self.info.set(plan.info.clone());
        Ok(plan)
    }

    /// The model, if it is in memory. Drops a model whose engine has died.
    pub(super) fn loaded(&self) -> Option<Arc<ChatModel>> {
        let mut state = self.state();
        let resident = state.resident.as_mut()?;
        if !resident.model.engine().is_alive() {
            state.resident = None;
            return None;
        }
        resident.last_used = Instant::now();
        Some(resident.model.clone())
    }

    fn resident(&self) -> Resident {
        let n_bytes = self.state().resident.as_ref().map_or(0, |resident| resident.n_bytes);
        Resident { n_bytes, idle: self.idle_for() }
    }

    /// How long no request has used the model; `None` while one does, or while it is not in memory or pinned.
    fn idle_for(&self) -> Option<Duration> {
        if self.is_pinned() {
            return None;
        }
        let mut state = self.state();
        let resident = state.resident.as_mut()?;
        if Arc::strong_count(&resident.model) > 1 {
            resident.last_used = Instant::now();
            return None;
        }
        Some(resident.last_used.elapsed())
    }

    /// Unloads the model unless a request uses it. Returns whether it did.
    pub fn unload(&self) -> bool {
        // Handles are only cloned under this lock, so the last one stays the last.
        let model = {
            let mut state = self.state();
            let Some(resident) = state.resident.take() else { return false };
            match Arc::try_unwrap(resident.model) {
                Ok(model) => model,
                Err(model) => {
                    state.resident = Some(ResidentModel { model, ..resident });
                    return false;
                }
            }
        };
        model.shut_down();
        true
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
