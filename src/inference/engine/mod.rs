//! The engine of one model: a thread that owns the weights and the KV cache, and the handle to it.
//!
//! [`Engine`] is the handle; it applies admission control and hands requests to the thread through a channel. The
//! thread's loop is in `worker`: schedule, forward, sample, emit. The number of KV cache blocks comes from
//! `kv_budget`.
//!
//! A panic costs the sequence that caused it. One that escapes a step leaves a state that nobody can trust: then all
//! requests end with an error, and the thread starts over with an empty KV cache and the same weights.
//!
//! Invariants: every accepted request gets exactly one last event; a request whose receiver is gone is dropped before
//! the next batch, in whatever phase it is; the engine never waits for a client, because every channel has room for
//! all the events its generation can send.

mod handle;
mod kv_budget;
mod worker;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use handle::{Engine, Generation};

use crate::inference::scheduler::SchedulerLoad;
use crate::inference::{Event, GenerationRequest};
use crate::kernels::attention::kv_block::KvFormat;
use crate::pulse::Pulse;

/// Bounds of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Requests that may wait beside those that run.
    pub queued_requests: usize,
    /// Prompt tokens of all waiting requests together; a single request may have more.
    pub queued_tokens: usize,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// Requests that run at once.
    pub running_requests: usize,
    /// How long a batch may take before the engine counts as stuck; a model whose batches take longer gets three times
    /// its longest one.
    pub batch_time: Duration,
    /// Prompt tokens computed per batch.
    pub prefill_chunk_tokens: usize,
    /// Bytes of the KV cache, all sequences together.
    pub kv_bytes: usize,
    /// Number format of the KV cache.
    pub kv_format: KvFormat,
    /// Whether draft tokens are computed where they make a generation faster (speculative decoding).
    pub speculative: bool,
    /// Whether activations of prompts are rounded to 8 bits.
    pub rounded_prompts: bool,
    /// Whether a generation continues when the context is full, without the middle of what came before.
    pub context_shift: bool,
    /// Log probabilities of prompt tokens in one response: tokens, each with those at its position that are asked for.
    pub prompt_logprobs: usize,
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStatus {
    /// Sequences and KV cache blocks in use.
    pub load: SchedulerLoad,
    /// Requests that run at once, at most.
    pub max_running: usize,
    /// Tokens generated per second, averaged over the latest batches that generated any, even if the engine is idle now:
    /// load balancers divide what waits by it.
    pub tokens_per_second: f64,
    /// When the current batch began; `None` when idle.
    pub batch_began: Option<Instant>,
    /// Duration of the longest batch so far.
    pub longest_batch: Duration,
    /// Prompt tokens of all requests so far.
    pub n_prompt_tokens: u64,
    /// How many of them came from the prefix cache.
    pub n_cached_tokens: u64,
}

/// A slot for one request, queued or running. It is taken before any work is done for the request and given back when
/// dropped, however the request ends.
pub struct Admission {
    _slot: OwnedSemaphorePermit,
}

/// A request on its way to the thread.
struct QueuedRequest {
    request: GenerationRequest,
    events: mpsc::Sender<Event>,
    arrived: Instant,
    admission: Admission,
    /// Its prompt's share of [`EngineOptions::queued_tokens`], held until it starts; background requests have none.
    queued_tokens: Option<Arc<OwnedSemaphorePermit>>,
    /// Set when its text is to end where it is.
    is_ended: Arc<AtomicBool>,
}

/// State that the handle and the thread share.
struct EngineShared {
    options: EngineOptions,
    /// Admission control: one permit for each request that may be queued or running.
    slots: Arc<Semaphore>,
    /// One permit for each prompt token that may wait.
    queued_tokens: Arc<Semaphore>,
    pulse: Pulse,
    /// Whether the thread starts over after a fault.
    restarting: AtomicBool,
    /// Set once, when every generation is to end.
    stopping: AtomicBool,
    /// Moving average of the time between two finished requests.
    time_per_request: Mutex<Duration>,
    status: Mutex<EngineStatus>,
}

impl EngineShared {
    fn new(options: EngineOptions) -> Self {
        Self {
            options,
            slots: Arc::new(Semaphore::new(options.n_slots())),
            queued_tokens: Arc::new(Semaphore::new(options.max_queued_tokens())),
            pulse: Pulse::new(),
            restarting: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            time_per_request: Mutex::new(Duration::from_secs(1)),
            status: Mutex::new(EngineStatus {
                max_running: options.running_requests,
                ..EngineStatus::default()
            }),
        }
    }

    fn status(&self) -> MutexGuard<'_, EngineStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Backpressure: how long a refused client should wait. The time to finish all requests at the recent rate, from
    /// 1 s to 60 s.
    fn retry_after(&self) -> Duration {
        let n_requests = self.options.n_slots() - self.slots.available_permits();
        let each = *self.time_per_request.lock().unwrap_or_else(PoisonError::into_inner);
        each.saturating_mul(u32::try_from(n_requests).unwrap_or(u32::MAX))
            .clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// Updates the moving average of the time between two finished requests.
    fn record_request_time(&self, elapsed: Duration) {
        let mut average = self.time_per_request.lock().unwrap_or_else(PoisonError::into_inner);
        *average = (*average * 7 + elapsed) / 8;
    }
}

impl EngineOptions {
    /// Requests that may wait or run: those of the options, and an eighth more, which admission control keeps for
    /// tenants that hold few.
    fn n_slots(&self) -> usize {
        let n_requests = self.queued_requests + self.running_requests;
        n_requests + n_requests / 8
    }

    /// [`EngineOptions::queued_tokens`] as far as a semaphore can count.
    fn max_queued_tokens(&self) -> usize {
        const MAX_PERMITS: usize = u32::MAX as usize >> 3;
        self.queued_tokens.min(MAX_PERMITS)
    }
}
