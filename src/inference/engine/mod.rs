//! The engine: one thread that owns the model and the keys and values, and the handle to it.
//!
//! Invariants: every accepted request gets exactly one last event; a request whose receiver is
//! gone is dropped before the next batch, wherever it is; the engine never waits for a client,
//! because every channel has room for all the events its generation can send.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc as events};

use crate::error::{Error, Kind, Result};
use crate::inference::grammar::{Constraint, Grammar, Grammars};
use crate::inference::scheduler::{
    Batch, BlockGroup, ContextShift, NewSequence, Scheduler, SchedulerLoad, SchedulerOptions,
};
use crate::inference::text_generation::{Step, TextGeneration};
use crate::inference::{Event, FinishReason, Finished, GenerationRequest, Timings};
use crate::kernels::attention::kv_block::{BLOCK_TOKENS, KvFormat};
use crate::kernels::threads::pool;
use crate::models::{Decoder, ForwardInput, KvCache, ModelConfig, SequenceChunk, SequenceId};
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Tokens that one answer has at most, whatever is asked for and however it is cut.
const MAX_TOKENS: usize = 1 << 20;

/// More cannot be counted.
const MAX_QUEUED_TOKENS: usize = u32::MAX as usize >> 3;

/// Bounds of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Requests waiting beyond those running.
    pub queued_requests: usize,
    /// Prompt tokens of all requests that wait; one alone may have more.
    pub queued_tokens: usize,
    /// For how long a request waits at most.
    pub queue_timeout: Duration,
    /// Requests computed at once.
    pub running_requests: usize,
    /// Time for a batch: an engine that is busy with one for longer, and for three times as long as with any
    /// before, counts as stuck.
    pub batch_time: Duration,
    /// Prompt tokens computed per batch.
    pub prefill_chunk_tokens: usize,
    /// Bytes that keys and values may take, all requests together.
    pub kv_bytes: usize,
    /// How they are stored.
    pub kv_format: KvFormat,
    /// Whether what comes next is guessed at from the text itself, where that makes answers come faster.
    pub speculative: bool,
    /// Whether an answer goes on when the context is full, without the middle of what came before.
    pub context_shift: bool,
}

/// The handle to an engine's thread, which ends with it.
pub struct Engine {
    sender: mpsc::Sender<Arrival>,
    thread: thread::JoinHandle<()>,
    shared: Arc<Shared>,
    context_length: usize,
    n_vocab: usize,
    grammars: Grammars,
}

/// What the handles and the thread both see.
struct Shared {
    options: EngineOptions,
    /// One for each request accepted and not finished.
    places: Arc<Semaphore>,
    /// One for each prompt token that may wait.
    waiting_tokens: Arc<Semaphore>,
    alive: AtomicBool,
    /// Set once: every generation is to end now.
    stopping: AtomicBool,
    /// Moving average of the time between two finished requests.
    time_per_request: Mutex<Duration>,
    status: Mutex<EngineStatus>,
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStatus {
    pub load: SchedulerLoad,
    /// Requests computed at most at once.
    pub max_running: usize,
    /// Tokens generated a second, of late.
    pub tokens_per_second: f64,
    /// When the current batch began, if there is work.
    pub batch_began: Option<Instant>,
    /// What a batch has taken at most.
    pub longest_batch: Duration,
    /// Tokens of all prompts so far, and of those what did not have to be computed.
    pub n_prompt_tokens: u64,
    pub n_cached_tokens: u64,
}

impl Shared {
    /// How long it takes to finish all requests there are, at the rate of late.
    fn time_to_drain(&self) -> Duration {
        let EngineOptions { queued_requests, running_requests, .. } = self.options;
        let n_requests = queued_requests + running_requests - self.places.available_permits();
        let each = *self.time_per_request.lock().unwrap_or_else(PoisonError::into_inner);
        each.saturating_mul(u32::try_from(n_requests).unwrap_or(u32::MAX))
            .clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    fn status(&self) -> MutexGuard<'_, EngineStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineOptions {
    /// Most tokens of one sequence of this model: its context, or as much of it as the memory for
    /// keys and values holds.
    pub fn context_length(&self, config: &ModelConfig) -> usize {
        let limits = self.groups(config).into_iter().map(|group| {
            let is_enough =
                group.n_blocks >= BlockGroup::most_blocks(group.window, self.prefill_chunk_tokens);
            if is_enough { usize::MAX } else { group.n_blocks * BLOCK_TOKENS }
        });
        limits.fold(config.context_length, usize::min)
    }

    /// Blocks of keys and values that fit into memory, all sequences together: where layers have a window as many
    /// as those see that run at once, and the rest for the layers that see farthest.
    fn groups(&self, config: &ModelConfig) -> Vec<BlockGroup> {
        let block_bytes = config.kv_block_bytes(self.kv_format);
        let n_alike = self.kv_bytes / block_bytes.iter().sum::<usize>().max(1);
        let windows = config.kv_groups().into_iter().map(|group| group.window);
        let mut groups: Vec<BlockGroup> = windows
            .map(|window| {
                let most = BlockGroup::most_blocks(window, self.prefill_chunk_tokens);
                // One more for each, which the scheduler wants to be free when another starts.
                let n_blocks = n_alike.min(most.saturating_add(1).saturating_mul(self.running_requests));
                BlockGroup { n_blocks, window }
            })
            .collect();
        let others = groups.iter().zip(&block_bytes).skip(1).map(|(group, bytes)| group.n_blocks * bytes);
        let rest = self.kv_bytes - others.sum::<usize>().min(self.kv_bytes);
        if let (Some(first), Some(bytes)) = (groups.first_mut(), block_bytes.first()) {
            first.n_blocks = rest / (*bytes).max(1);
        }
        groups
    }

    /// Those of the scheduler of a model with this context.
    fn scheduler(&self, config: &ModelConfig, context_length: usize) -> SchedulerOptions {
        SchedulerOptions {
            max_running: self.running_requests.max(1),
            prefill_chunk: self.prefill_chunk_tokens.max(1),
            groups: self.groups(config),
            speculative: self.speculative,
            context_shift: self.context_shift.then_some(ContextShift { context_length }),
        }
    }
}

/// The events of one generation. Dropping it cancels the generation.
pub struct Generation {
    events: events::Receiver<Event>,
}

/// A request on its way to the thread.
struct Arrival {
    request: GenerationRequest,
    events: events::Sender<Event>,
    arrived: Instant,
    admission: Admission,
    waiting_tokens: Arc<OwnedSemaphorePermit>,
}

/// A place in the engine's queue, taken before any work is done for a request; given back when
/// dropped, whatever becomes of it.
pub struct Admission {
    _place: OwnedSemaphorePermit,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(model: Box<dyn Decoder>, tokenizer: Arc<Tokenizer>, options: EngineOptions) -> Result<Self> {
        let (sender, arrivals) = mpsc::channel();
        let shared = Arc::new(Shared {
            options,
            places: Arc::new(Semaphore::new(options.queued_requests + options.running_requests)),
            waiting_tokens: Arc::new(Semaphore::new(options.queued_tokens.min(MAX_QUEUED_TOKENS))),
            alive: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            time_per_request: Mutex::new(Duration::from_secs(1)),
            status: Mutex::new(EngineStatus {
                max_running: options.running_requests,
                ..EngineStatus::default()
            }),
        });
        let n_vocab = model.config().n_vocab;
        let context_length = options.context_length(model.config());
        if context_length < model.config().context_length {
            tracing::warn!(
                context = context_length,
                of = model.config().context_length,
                "memory for keys and values limits the context"
            );
        }
        let grammars = Grammars::new(tokenizer.clone(), n_vocab)?;
        let scheduler = options.scheduler(model.config(), context_length);
        let n_sequences = scheduler.groups.iter().map(|group| {
            let most = BlockGroup::most_blocks(group.window, options.prefill_chunk_tokens);
            group.n_blocks / context_length.div_ceil(BLOCK_TOKENS).clamp(1, most)
        });
        tracing::info!(
            sequences = n_sequences.min(),
            tokens = context_length,
            "memory for keys and values has room for this many sequences of this length"
        );
        let kv = KvCache::new(model.config().kv_layouts(options.kv_format));
        let worker = Worker {
            scheduler: Scheduler::new(scheduler),
            model,
            tokenizer,
            kv,
            sequences: HashMap::new(),
            n_sequences_seen: 0,
            last_finish: None,
            shared: shared.clone(),
        };
        let thread = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run(&arrivals))
            .map_err(|e| Error::internal(format!("cannot start the engine thread: {e}")))?;
        Ok(Self { sender, thread, shared, context_length, n_vocab, grammars })
    }

    /// Takes a place for a request, before anything is computed for it.
    ///
    /// # Errors
    /// When the queue is full; the error says when to come back.
    pub fn admit(&self) -> Result<Admission> {
        let EngineOptions { queued_requests, running_requests, .. } = self.shared.options;
        let bound = queued_requests + running_requests;
        let place = self.shared.places.clone().try_acquire_owned().map_err(|_| {
            metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
            Error::new(
                Kind::Overloaded { retry_after: self.shared.time_to_drain() },
                format!("{bound} requests are queued or running, and that is the limit; try again later"),
            )
        })?;
        Ok(Admission { _place: place })
    }

    /// What keeps a text to a grammar.
    ///
    /// # Errors
    /// When the grammar is too large or too complex, cannot be read, or says what cannot be enforced.
    pub fn compile_constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        self.grammars.compile(grammar)
    }

    /// Hands in a request that has a place, to be answered once for each place it has.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, the bias names an unknown token, too many tokens
    /// wait already, or the engine has died.
    pub fn submit(&self, places: Vec<Admission>, mut request: GenerationRequest) -> Result<Vec<Generation>> {
        let n_prompt = request.prompt.len();
        if n_prompt == 0 {
            return Err(Error::new(Kind::InvalidRequest, "the prompt has no tokens; send some text"));
        }
        if n_prompt >= self.context_length {
            return Err(self.prompt_too_long(&n_prompt.to_string()));
        }
        request.sampling.check(self.n_vocab)?;
        if let Some(id) = request.stop_tokens.iter().find(|&&id| id as usize >= self.n_vocab) {
            let n_vocab = self.n_vocab;
            let message = format!("`stop_token_ids` has {id}, but the vocabulary has {n_vocab} tokens");
            return Err(Error::invalid("stop_token_ids", message));
        }
        let room = self.context_length - n_prompt;
        // Who names no limit does not ask for an endless answer.
        let has_no_end = self.shared.options.context_shift && request.max_tokens < usize::MAX;
        request.max_tokens = request.max_tokens.clamp(1, if has_no_end { MAX_TOKENS } else { room });
        let waiting_tokens = Arc::new(self.wait_with(n_prompt)?);
        let arrived = Instant::now();
        let submit = |(choice, admission): (usize, Admission)| {
            let mut request = request.clone();
            // Each draws its own way, and the same way again.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
            let (sender, receiver) = events::channel(request.max_tokens + 1);
            let waiting_tokens = waiting_tokens.clone();
            let arrival = Arrival { request, events: sender, arrived, admission, waiting_tokens };
            self.sender.send(arrival).map_err(|_| engine_died())?;
            Ok(Generation { events: receiver })
        };
        places.into_iter().enumerate().map(submit).collect()
    }

    /// Takes room in the queue for a prompt.
    fn wait_with(&self, n_prompt: usize) -> Result<OwnedSemaphorePermit> {
        let most = self.shared.options.queued_tokens.min(MAX_QUEUED_TOKENS);
        let n_tokens = u32::try_from(n_prompt.min(most)).unwrap_or(u32::MAX);
        self.shared.waiting_tokens.clone().try_acquire_many_owned(n_tokens).map_err(|_| {
            metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
            Error::new(
                Kind::Overloaded { retry_after: self.shared.time_to_drain() },
                format!(
                    "there is no room for {n_prompt} prompt tokens more in the queue, which holds {most}; try again \
                     later"
                ),
            )
        })
    }

    /// The error of a prompt of `n_tokens` tokens, too many for the context.
    pub fn prompt_too_long(&self, n_tokens: &str) -> Error {
        let message = format!(
            "the prompt has {n_tokens} tokens, and the context is {} tokens, prompt and answer together; shorten \
             the messages",
            self.context_length
        );
        Error::new(Kind::ContextLengthExceeded, message).with_param("messages")
    }

    /// Most tokens of a prompt and its answer together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// How texts that are too long are cut, if they are not refused.
    pub fn context_shift(&self) -> Option<ContextShift> {
        let shift = ContextShift { context_length: self.context_length };
        self.shared.options.context_shift.then_some(shift)
    }

    /// Whether it gets on with its work.
    ///
    /// # Errors
    /// When it has been busy with one batch for too long.
    pub fn check_health(&self) -> Result<()> {
        let EngineStatus { batch_began, longest_batch, .. } = self.status();
        let busy = batch_began.map(|began| began.elapsed()).unwrap_or_default();
        // A large model may take its time.
        if busy <= self.shared.options.batch_time.max(3 * longest_batch) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("the engine has been busy with one batch for {} s; try again later", busy.as_secs()),
        ))
    }

    /// How busy it is.
    pub fn status(&self) -> EngineStatus {
        *self.shared.status()
    }

    /// Whether the thread still works.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Ends every generation with an error, those to come too. For a shutdown that has waited long
    /// enough.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Ends the thread, once it has finished what it has, and waits until the model's memory is
    /// free.
    pub fn shut_down(self) {
        drop(self.sender);
        // A thread that has died of a fault has freed it too.
        let _ = self.thread.join();
    }
}

impl Generation {
    /// The next event, if there is one; `None` after the last.
    pub fn poll_next(&mut self, context: &mut Context) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// The next event, waiting on an ordinary thread.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

fn engine_died() -> Error {
    Error::new(Kind::Unavailable, "the engine has stopped after a fault; restart the server")
}

/// The thread's state.
struct Worker {
    model: Box<dyn Decoder>,
    tokenizer: Arc<Tokenizer>,
    scheduler: Scheduler,
    kv: KvCache,
    sequences: HashMap<SequenceId, Sequence>,
    n_sequences_seen: u64,
    /// When the last request ended, if there was work ever since.
    last_finish: Option<Instant>,
    shared: Arc<Shared>,
}

/// A request the thread knows of.
struct Sequence {
    n_prompt: usize,
    generation: TextGeneration,
    events: events::Sender<Event>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    _admission: Admission,
    /// Held until it starts.
    waiting_tokens: Option<Arc<OwnedSemaphorePermit>>,
}

impl Worker {
    fn run(mut self, arrivals: &mpsc::Receiver<Arrival>) {
        pool::lower_priority();
        // Seen by the handles even when this thread unwinds.
        let _alive = OnDrop(self.shared.clone());
        loop {
            self.shared.status().load = self.scheduler.load();
            if self.scheduler.is_idle() {
                self.last_finish = None;
                let mut status = self.shared.status();
                (status.tokens_per_second, status.batch_began) = (0.0, None);
                drop(status);
                match arrivals.recv() {
                    Ok(arrival) => self.accept(arrival),
                    Err(mpsc::RecvError) => return,
                }
            }
            while let Ok(arrival) = arrivals.try_recv() {
                self.accept(arrival);
            }
            self.drop_cancelled();
            self.refuse_late();
            if self.shared.stopping.load(Ordering::Acquire) {
                self.end_all(&Error::new(
                    Kind::Unavailable,
                    "the server is shutting down; send the request again",
                ));
                continue;
            }
            let batch = self.scheduler.next_batch();
            if batch.sequences.is_empty() {
                continue;
            }
            metrics::histogram!(telemetry::BATCH_SEQUENCES).record(batch.sequences.len() as f64);
            let start = Instant::now();
            let load = self.scheduler.load();
            let mut status = self.shared.status();
            metrics::counter!(telemetry::PREEMPTIONS).increment(load.n_preempted - status.load.n_preempted);
            (status.load, status.batch_began) = (load, Some(start));
            drop(status);
            let n_generated = self.step(&batch);
            let time = start.elapsed();
            let rate = n_generated as f64 / time.as_secs_f64().max(1e-9);
            let mut status = self.shared.status();
            status.longest_batch = status.longest_batch.max(time);
            let average = &mut status.tokens_per_second;
            *average = if *average == 0.0 { rate } else { 0.9 * *average + 0.1 * rate };
        }
    }

    fn accept(&mut self, arrival: Arrival) {
        let Arrival { request, events, arrived, admission, waiting_tokens } = arrival;
        let n_vocab = self.model.config().n_vocab;
        let generation =
            caught("a request", || TextGeneration::new(&request, self.tokenizer.clone(), n_vocab));
        match generation {
            Ok(generation) => {
                self.n_sequences_seen += 1;
                let id = SequenceId(self.n_sequences_seen);
                let n_prompt = request.prompt.len();
                let is_long = self.model.config().is_long_prompt(n_prompt);
                let salt = request.cache_salt.as_deref().unwrap_or_default();
                self.scheduler.add(NewSequence {
                    id,
                    prompt: request.prompt,
                    prediction: request.prediction,
                    max_tokens: request.max_tokens,
                    // The length tells where the key ends, whatever is in it.
                    cache_namespace: format!("{is_long}|{}|{}|{salt}", request.tenant.len(), request.tenant)
                        .into(),
                    tenant: request.tenant,
                });
                let sequence = Sequence {
                    n_prompt,
                    generation,
                    events,
                    arrived,
                    started: None,
                    first_token: None,
                    _admission: admission,
                    waiting_tokens: Some(waiting_tokens),
                };
                self.sequences.insert(id, sequence);
            }
            Err(e) => send(&events, Event::Failed(e)),
        }
    }

    /// The sequences of which something is true.
    fn those(&self, is_one: impl Fn(&Sequence) -> bool) -> Vec<SequenceId> {
        self.sequences.iter().filter(|(_, sequence)| is_one(sequence)).map(|(&id, _)| id).collect()
    }

    fn drop_cancelled(&mut self) {
        for id in self.those(|sequence| sequence.events.is_closed()) {
            metrics::counter!(telemetry::REQUESTS_CANCELLED).increment(1);
            self.remove(id, false);
        }
    }

    /// Refuses what has waited for too long.
    fn refuse_late(&mut self) {
        let limit = self.shared.options.queue_timeout;
        let is_late = |sequence: &Sequence| sequence.started.is_none() && sequence.arrived.elapsed() > limit;
        for id in self.those(is_late) {
            metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
            let error = Error::new(
                Kind::Overloaded { retry_after: self.shared.time_to_drain() },
                format!(
                    "the request waited for {} s, and that is the limit; try again later",
                    limit.as_secs_f64()
                ),
            );
            if let Some(sequence) = self.remove(id, false) {
                send(&sequence.events, Event::Failed(error));
            }
        }
    }

    fn end_all(&mut self, reason: &Error) {
        for id in self.those(|_| true) {
            self.finish(id, Event::Failed(reason.clone()), false);
        }
    }

    /// Computes one batch and gives each sequence its logits; says how many tokens came of it. After a fault,
    /// even a panic in the model, each sequence is computed alone, so that only the one at fault ends.
    fn step(&mut self, batch: &Batch) -> usize {
        let start = Instant::now();
        let input = self.forward_input(batch);
        match self.forward(&input) {
            Ok(logits) => {
                let n_generated = self.advance_all(&input, &logits);
                self.scheduler.learn(batch, start.elapsed().as_secs_f64());
                n_generated
            }
            Err(e) if input.spans.len() == 1 => {
                self.fail(&input, &e);
                0
            }
            Err(e) => {
                tracing::warn!(error = %e, "a batch failed; its sequences are computed one by one");
                // What the batch wrote of keys and values is written again.
                let compute_alone = |alone: ForwardInput| match self.forward(&alone) {
                    Ok(logits) => self.advance_all(&alone, &logits),
                    Err(e) => {
                        self.fail(&alone, &e);
                        0
                    }
                };
                input.split().into_iter().map(compute_alone).sum()
            }
        }
    }

    /// The logits that `input` asks for, a row for each.
    fn forward(&mut self, input: &ForwardInput) -> Result<Vec<Tensor>> {
        let (model, kv) = (&mut self.model, &mut self.kv);
        caught("the batch", || {
            let logits = model.forward(kv, input)?;
            (0..input.logit_rows.len()).map(|row| Ok(logits.get(row)?)).collect()
        })
    }

    fn fail(&mut self, input: &ForwardInput, e: &Error) {
        tracing::error!(error = %e, "a sequence failed");
        for span in &input.spans {
            self.finish(span.sequence, Event::Failed(e.clone()), true);
        }
    }

    /// The batch as the model wants it.
    fn forward_input(&mut self, batch: &Batch) -> ForwardInput {
        let mut input = ForwardInput::default();
        for part in &batch.sequences {
            if let Some(sequence) = self.sequences.get_mut(&part.id) {
                sequence.started.get_or_insert_with(Instant::now);
                sequence.waiting_tokens = None;
            }
            input.push(SequenceChunk {
                sequence: part.id,
                n_prompt: part.n_prompt,
                start: part.start,
                tables: &part.block_tables,
                token_ids: &part.tokens,
                n_logits: part.n_logits(),
            });
        }
        input
    }

    /// Samples each sequence's next token, on all compute threads, and the one after it as long as what was
    /// guessed is what is sampled; reports what they add and says how many there are.
    fn advance_all(&mut self, input: &ForwardInput, logits: &[Tensor]) -> usize {
        let mut sampled: HashMap<SequenceId, _> =
            input.sampled_spans().map(|(id, rows, guesses)| (id, (&logits[rows], guesses))).collect();
        let advancing = self.sequences.iter_mut().filter_map(|(id, sequence)| {
            let (logits, guesses) = sampled.remove(id)?;
            sequence.first_token.get_or_insert_with(Instant::now);
            let generation = &mut sequence.generation;
            Some(Mutex::new(Advance { id: *id, generation, logits, guesses, n_right: 0, steps: Vec::new() }))
        });
        let advancing: Vec<_> = advancing.collect();
        let advance = |idx: usize| advancing[idx].lock().unwrap_or_else(PoisonError::into_inner).run();
        match advancing.len() {
            0 => return 0,
            1 => advance(0),
            n => pool::run(|team| team.claim_chunks(n, 1).flatten().for_each(advance)),
        }
        let advanced: Vec<_> = advancing
            .into_iter()
            .map(|advancing| advancing.into_inner().unwrap_or_else(PoisonError::into_inner))
            .map(|Advance { id, guesses, n_right, steps, .. }| (id, guesses.len() as u64, n_right, steps))
            .collect();
        let n_generated = advanced.iter().map(|(.., steps)| steps.len()).sum();
        for (id, n_guesses, n_right, steps) in advanced {
            metrics::counter!(telemetry::DRAFT_TOKENS).increment(n_guesses);
            metrics::counter!(telemetry::ACCEPTED_DRAFT_TOKENS).increment(n_right);
            self.report(id, steps);
        }
        n_generated
    }

    /// Reports what steps of a sequence came to.
    fn report(&mut self, id: SequenceId, steps: Vec<Result<Step>>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let mut tokens = Vec::with_capacity(steps.len());
        for step in steps {
            let Step { token, delta, finish } = match step {
                Ok(step) => step,
                Err(e) => return self.finish(id, Event::Failed(e), true),
            };
            tokens.push(token);
            if !delta.text.is_empty() || !delta.logprobs.is_empty() {
                send(&sequence.events, Event::Text(delta));
            }
            if let Some(reason) = finish {
                let finished = sequence.finished(reason, self.scheduler.n_cached(id));
                record(&finished);
                return self.finish(id, Event::Finished(finished), false);
            }
        }
        self.scheduler.push(id, &tokens);
        sequence.generation.prepare();
    }

    /// Ends a sequence; `failed` says that the last batch did not compute it.
    fn finish(&mut self, id: SequenceId, last: Event, failed: bool) {
        // Whoever reads the last event finds the counts complete.
        if let Some(sequence) = self.remove(id, failed) {
            send(&sequence.events, last);
        }
        if let Some(last) = self.last_finish.replace(Instant::now()) {
            let mut average = self.shared.time_per_request.lock().unwrap_or_else(PoisonError::into_inner);
            *average = (*average * 7 + last.elapsed()) / 8;
        }
    }

    fn remove(&mut self, id: SequenceId, failed: bool) -> Option<Sequence> {
        let sequence = self.sequences.remove(&id);
        if let Some(sequence) = &sequence {
            let stats = sequence.generation.repeat_penalty_stats();
            metrics::counter!(telemetry::REPEAT_PENALTY_HITS).increment(stats.hits);
            metrics::counter!(telemetry::REPEAT_PENALTY_UPDATES).increment(stats.updates);
            metrics::counter!(telemetry::REPEAT_PENALTY_SKIPPED).increment(stats.skipped);
            metrics::counter!(telemetry::PROMPT_TOKENS).increment(sequence.n_prompt as u64);
            let n_cached = self.scheduler.n_cached(id) as u64;
            metrics::counter!(telemetry::PREFIX_CACHE_TOKENS).increment(n_cached);
            let mut status = self.shared.status();
            status.n_prompt_tokens += sequence.n_prompt as u64;
            status.n_cached_tokens += n_cached;
            metrics::counter!(telemetry::COMPLETION_TOKENS)
                .increment(sequence.generation.n_generated() as u64);
        }
        self.scheduler.remove(id, failed);
        sequence
    }
}

/// What a batch brings to a sequence.
struct Advance<'a> {
    id: SequenceId,
    generation: &'a mut TextGeneration,
    /// Of its newest token, and of each guess after it.
    logits: &'a [Tensor],
    guesses: &'a [u32],
    n_right: u64,
    steps: Vec<Result<Step>>,
}

impl Advance<'_> {
    /// Samples as far as the guesses are right.
    fn run(&mut self) {
        for (row, logits) in self.logits.iter().enumerate() {
            let step = caught("sampling", || self.generation.advance(logits));
            let is_right = step.as_ref().is_ok_and(|step| self.guesses.get(row) == Some(&step.token));
            let goes_on = is_right && step.as_ref().is_ok_and(|step| step.finish.is_none());
            self.n_right += u64::from(is_right);
            self.steps.push(step);
            if !goes_on {
                return;
            }
        }
    }
}

impl Sequence {
    fn finished(&self, reason: FinishReason, n_cached: usize) -> Finished {
        let started = self.started.unwrap_or(self.arrived);
        let first_token = self.first_token.unwrap_or(started);
        Finished {
            reason,
            prompt_tokens: self.n_prompt,
            cached_tokens: n_cached,
            completion_tokens: self.generation.n_generated(),
            timings: Timings {
                queue: started - self.arrived,
                prefill: first_token - started,
                decode: first_token.elapsed(),
            },
            repeat_penalty: self.generation.repeat_penalty_stats(),
        }
    }
}

/// Measures of a request that has been answered.
fn record(finished: &Finished) {
    let Finished { timings, completion_tokens, prompt_tokens, .. } = finished;
    let first = timings.queue + timings.prefill;
    metrics::histogram!(telemetry::QUEUE_SECONDS).record(timings.queue.as_secs_f64());
    metrics::histogram!(telemetry::FIRST_TOKEN_SECONDS).record(first.as_secs_f64());
    metrics::histogram!(telemetry::REQUEST_SECONDS).record((first + timings.decode).as_secs_f64());
    metrics::histogram!(telemetry::REQUEST_PROMPT_TOKENS).record(*prompt_tokens as f64);
    metrics::histogram!(telemetry::REQUEST_COMPLETION_TOKENS).record(*completion_tokens as f64);
    if *completion_tokens > 1 {
        let each = timings.decode.as_secs_f64() / (completion_tokens - 1) as f64;
        metrics::histogram!(telemetry::TOKEN_SECONDS).record(each);
    }
}

/// Runs `work`; a panic becomes an error. Its message is in the log.
fn caught<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::internal(format!("{what} failed; the fault was logged"))))
}

/// Sends an event; one that nobody waits for is dropped, and so is its sequence, in time.
fn send(events: &events::Sender<Event>, event: Event) {
    if let Err(events::error::TrySendError::Full(_)) = events.try_send(event) {
        tracing::error!("a generation sent more events than it has tokens");
    }
}

/// Marks the engine as dead when its thread ends.
struct OnDrop(Arc<Shared>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        self.0.status().batch_began = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_a_window_take_what_they_see_and_the_others_the_rest() {
        let config = |window: Option<usize>| {
            // Five of six layers slide.
            let fields = serde_json::json!({
                "model_type": "gemma3_text", "hidden_size": 2, "intermediate_size": 2, "head_dim": 16,
                "num_hidden_layers": 6, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 16,
                "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": window,
                "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh",
            });
            ModelConfig::from_json(fields.to_string().as_bytes()).unwrap()
        };
        let options = EngineOptions {
            queued_requests: 1,
            queued_tokens: 1,
            queue_timeout: Duration::ZERO,
            running_requests: 2,
            batch_time: Duration::ZERO,
            prefill_chunk_tokens: 64,
            kv_bytes: 1 << 19,
            kv_format: KvFormat::F16,
            speculative: false,
            context_shift: false,
        };
        let sliding = config(Some(128));
        let layer_bytes = sliding.kv_block_bytes(KvFormat::F16)[0];
        assert_eq!(sliding.kv_block_bytes(KvFormat::F16), [layer_bytes, 5 * layer_bytes]);
        let groups = options.groups(&sliding);
        assert_eq!(groups.iter().map(|group| group.window).collect::<Vec<_>>(), [None, Some(128)]);
        // Each of two sequences sees eight blocks, writes four, and begins and ends within one; one is to spare.
        assert_eq!(groups[1].n_blocks, 2 * (14 + 1));
        assert_eq!(groups[0].n_blocks, (1 << 19) / layer_bytes - 5 * 30);
        // In the same memory six layers that see all have room for a fraction of that.
        let whole = config(None);
        assert_eq!(options.groups(&whole)[0].n_blocks, (1 << 19) / (6 * layer_bytes));
        assert!(options.context_length(&whole) * 4 < options.context_length(&sliding));
        // Too little for a window is too little for the context.
        let tight = EngineOptions { kv_bytes: 6 * layer_bytes * 10, ..options };
        assert_eq!(tight.context_length(&sliding), 160);
    }
}
