//! The handle to an engine's thread: admission control, checks of a request, and its events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc as events};

use super::kv_budget::KvBudget;
use super::worker::EngineWorker;
use super::{Admission, EngineOptions, EngineShared, EngineStatus, QueuedRequest};
use crate::error::{Error, Kind, Result};
use crate::inference::Priority;
use crate::inference::divergence::PrecisionTrial;
use crate::inference::grammar::{CompiledGrammar, Grammar, GrammarCompiler};
use crate::inference::scheduler::{ContextShift, MAX_SCORED_ROWS};
use crate::inference::{Event, GenerationRequest, Scoring};
use crate::models::Decoder;
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Most tokens of one generation, whatever is requested and however the context is shifted.
const MAX_TOKENS: usize = 1 << 20;

/// The handle to an engine's thread. Dropping it ends the thread.
pub struct Engine {
    sender: mpsc::Sender<QueuedRequest>,
    thread: thread::JoinHandle<()>,
    shared: Arc<EngineShared>,
    context_length: usize,
    n_vocab: usize,
    grammars: GrammarCompiler,
}

/// The events of one generation. Dropping it cancels the generation.
pub struct Generation {
    events: events::Receiver<Event>,
    has_ended: bool,
    /// Tells the thread to end the text.
    is_ended: Arc<AtomicBool>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(model: Box<dyn Decoder>, tokenizer: Arc<Tokenizer>, options: EngineOptions) -> Result<Self> {
        Self::spawn_with_trial(model, tokenizer, options, None)
    }

    /// Starts the thread, which conducts a trial of 8-bit activations when it is idle.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_with_trial(
        model: Box<dyn Decoder>,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
        trial: Option<PrecisionTrial>,
    ) -> Result<Self> {
        let config = model.config();
        let n_vocab = config.n_vocab;
        let budget = KvBudget::new(&options, config);
        let context_length = budget.context_length;
        if context_length < config.context_length {
            tracing::warn!(
                context = context_length,
                of = config.context_length,
                "the memory for the KV cache limits the context"
            );
        }
        tracing::info!(
            sequences = budget.n_full_sequences(),
            tokens = context_length,
            "the KV cache has room for this many sequences of this length"
        );
        let grammars = GrammarCompiler::new(tokenizer.clone(), n_vocab)?;
        let shared = Arc::new(EngineShared::new(options));
        let worker = EngineWorker::new(model, tokenizer, budget, shared.clone(), trial);
        let (sender, requests) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run(&requests))
            .map_err(|e| Error::internal(format!("cannot start the engine thread: {e}")))?;
        Ok(Self { sender, thread, shared, context_length, n_vocab, grammars })
    }

    /// Bits of the activations of prompts.
    pub fn prompt_activation_bits(&self) -> u8 {
        if self.shared.options.rounded_prompts { 8 } else { 16 }
    }

    /// If all slots are taken, how long a refused client should wait.
    pub fn retry_after_if_full(&self) -> Option<Duration> {
        (self.shared.slots.available_permits() == 0).then(|| self.shared.retry_after())
    }

    /// Admits a request: takes a slot for it before anything is computed.
    ///
    /// # Errors
    /// When all slots are taken; the error says when to try again.
    pub fn admit(&self) -> Result<Admission> {
        let slot = self.shared.slots.clone().try_acquire_owned().map_err(|_| {
            let n_slots = self.shared.options.n_slots();
            self.overloaded(format!(
                "the queue is full: {n_slots} requests are queued or running; try again later"
            ))
        })?;
        Ok(Admission { _slot: slot })
    }

    /// Admits a background request: waits for a slot.
    ///
    /// # Errors
    /// When the engine has died.
    pub async fn admit_later(&self) -> Result<Admission> {
        let slot = self.shared.slots.clone().acquire_owned().await.map_err(|_| engine_died())?;
        Ok(Admission { _slot: slot })
    }

    /// Compiles a grammar, from which constraints of generations are made. Dropping the future ends the work.
    ///
    /// # Errors
    /// When the grammar is too large or too complex, is malformed, or uses a feature that cannot be enforced; when too
    /// many grammars wait.
    pub async fn compile_grammar(&self, grammar: &Grammar) -> Result<Arc<CompiledGrammar>> {
        self.grammars.compile(grammar).await
    }

    /// Submits an admitted request; it gets one generation for each of its `admissions`.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, a token id is out of range, too many tokens wait already,
    /// or the engine has died.
    pub fn submit(
        &self,
        admissions: Vec<Admission>,
        mut request: GenerationRequest,
    ) -> Result<Vec<Generation>> {
        if matches!(request.scoring, Some(Scoring::Continuations { .. })) {
            request.max_tokens = 0;
        }
        self.validate(&request)?;
        let n_prompt = request.prompt.len();
        let room = self.context_length - n_prompt;
        // A request without a limit does not ask for an endless generation.
        let may_shift = self.shared.options.context_shift && request.max_tokens < usize::MAX;
        request.max_tokens = request.max_tokens.min(if may_shift { MAX_TOKENS } else { room });
        // Few background requests wait at a time, and they wait for long.
        let is_interactive = request.caller.priority == Priority::Interactive;
        let queued_tokens =
            is_interactive.then(|| self.reserve_queue_tokens(n_prompt)).transpose()?.map(Arc::new);
        let arrived = Instant::now();
        let submit = |(choice, admission): (usize, Admission)| {
            let mut request = request.clone();
            // Each choice samples differently, and repeatably.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
            // The choices share one prompt, which is scored once.
            request.scoring.take_if(|_| choice > 0);
            let n_score_events = usize::from(request.scoring.is_some());
            let (sender, receiver) = events::channel(request.max_tokens + 1 + n_score_events);
            let queued_tokens = queued_tokens.clone();
            let is_ended = Arc::new(AtomicBool::new(false));
            let queued = QueuedRequest {
                request,
                events: sender,
                arrived,
                admission,
                queued_tokens,
                is_ended: is_ended.clone(),
            };
            self.sender.send(queued).map_err(|_| engine_died())?;
            Ok(Generation { events: receiver, has_ended: false, is_ended })
        };
        admissions.into_iter().enumerate().map(submit).collect()
    }

    fn validate(&self, request: &GenerationRequest) -> Result<()> {
        let n_prompt = request.prompt.len();
        if n_prompt == 0 {
            return Err(Error::new(Kind::InvalidRequest, "the prompt has no tokens; send some text"));
        }
        let is_generated = request.max_tokens > 0;
        if n_prompt + usize::from(is_generated) > self.context_length {
            return Err(self.prompt_too_long(&n_prompt.to_string()));
        }
        if let Some(Scoring::Continuations { texts, .. }) = &request.scoring {
            self.validate_continuations(n_prompt, texts)?;
        }
        request.sampling.validate(self.n_vocab)?;
        match request.stop_tokens.iter().find(|&&id| id as usize >= self.n_vocab) {
            Some(id) => {
                let n_vocab = self.n_vocab;
                let message = format!("`stop_token_ids` has {id}, but the vocabulary has {n_vocab} tokens");
                Err(Error::invalid("stop_token_ids", message))
            }
            None => Ok(()),
        }
    }

    fn validate_continuations(&self, n_prompt: usize, texts: &[Vec<u32>]) -> Result<()> {
        let n_tokens = texts.iter().map(Vec::len).max().unwrap_or_default();
        if texts.iter().any(Vec::is_empty) {
            return Err(Error::new(Kind::InvalidRequest, "a text to be scored has no tokens"));
        }
        if n_tokens > MAX_SCORED_ROWS {
            return Err(Error::new(
                Kind::InvalidRequest,
                format!(
                    "a text to be scored has {n_tokens} tokens, and {MAX_SCORED_ROWS} is the limit; shorten it"
                ),
            ));
        }
        if n_prompt + n_tokens > self.context_length {
            return Err(self.prompt_too_long(&(n_prompt + n_tokens).to_string()));
        }
        Ok(())
    }

    /// Refuses a response with too many log probabilities of prompt tokens. `param` asks for `n_top` of the most likely
    /// tokens at each of the positions of `n_tokens` tokens.
    ///
    /// # Errors
    /// When they are more than [`EngineOptions::prompt_logprobs`].
    pub fn check_prompt_logprobs(&self, param: &str, n_tokens: usize, n_top: usize) -> Result<()> {
        let (each, most) = (n_top + 1, self.shared.options.prompt_logprobs);
        if n_tokens.saturating_mul(each) <= most {
            return Ok(());
        }
        let message = format!(
            "`{param}` asks for {each} log probabilities at each of {n_tokens} prompt tokens, and a response has at most \
             {most} in all; send fewer or shorter prompts"
        );
        Err(Error::invalid(param, message))
    }

    /// Reserves room in the queue for the tokens of a prompt.
    fn reserve_queue_tokens(&self, n_prompt: usize) -> Result<OwnedSemaphorePermit> {
        let most = self.shared.options.max_queued_tokens();
        let n_tokens = u32::try_from(n_prompt.min(most)).unwrap_or(u32::MAX);
        self.shared.queued_tokens.clone().try_acquire_many_owned(n_tokens).map_err(|_| {
            self.overloaded(format!(
                "the queue is full: it holds {most} prompt tokens, and {n_prompt} more do not fit; try again later"
            ))
        })
    }

    /// The error of a request that the queue has no room for.
    fn overloaded(&self, message: String) -> Error {
        metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
        Error::new(Kind::Overloaded { retry_after: self.shared.retry_after() }, message)
    }

    /// The error of a prompt of `n_tokens` tokens, too many for the context. It begins with Anthropic's words, by which
    /// clients of all APIs recognize it, in order to shorten the conversation.
    pub fn prompt_too_long(&self, n_tokens: &str) -> Error {
        let message = format!(
            "prompt is too long: {n_tokens} tokens > {} maximum for prompt and completion together; shorten the \
             messages",
            self.context_length
        );
        Error::new(Kind::ContextLengthExceeded, message).with_param("messages")
    }

    /// Most tokens of a prompt and its completion together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// How texts that exceed the context are cut; `None` if they are refused.
    pub fn context_shift(&self) -> Option<ContextShift> {
        let shift = ContextShift { context_length: self.context_length };
        self.shared.options.context_shift.then_some(shift)
    }

    /// Whether the engine makes progress.
    ///
    /// # Errors
    /// When its thread has ended, starts over after a fault, or has been busy with one batch for too long.
    pub fn check_health(&self) -> Result<()> {
        if self.shared.restarting.load(Ordering::Acquire) {
            return Err(restarted());
        }
        let EngineStatus { batch_began, longest_batch, .. } = self.status();
        let busy = batch_began.map(|began| began.elapsed()).unwrap_or_default();
        // A large model may take its time.
        let max_busy = self.shared.options.batch_time.max(3 * longest_batch);
        if busy <= max_busy {
            self.shared.pulse.check("engine", max_busy)?;
            return self.grammars.check_health();
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("the engine has been busy with one batch for {} s; try again later", busy.as_secs()),
        ))
    }

    /// How busy the engine is.
    pub fn status(&self) -> EngineStatus {
        *self.shared.status()
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        self.shared.pulse.is_alive()
    }

    /// Ends every generation with an error, future ones included. Called when a graceful shutdown's grace period ends.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Ends the thread once it has finished its requests, and waits until the model's memory is free.
    pub fn shut_down(self) {
        drop(self.sender);
        // A thread that has panicked has freed it too.
        let _ = self.thread.join();
    }
}

impl Generation {
    /// Ends the text where it is. [`Event::Finished`] still comes, perhaps after more text.
    pub fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
    }

    /// Polls the next event; `None` after the last.
    pub fn poll_next(&mut self, context: &mut Context) -> Poll<Option<Event>> {
        let event = ready!(self.events.poll_recv(context));
        // The thread drops what it works on when it starts over.
        let event = event.or_else(|| (!self.has_ended).then(|| Event::Failed(restarted())));
        self.has_ended |= matches!(event, Some(Event::Finished(_) | Event::Failed(_)));
        Poll::Ready(event)
    }
}

/// The error of requests that a fault of the engine has ended.
fn restarted() -> Error {
    Error::new(Kind::Unavailable, "the engine starts over after a fault; send the request again")
}

fn engine_died() -> Error {
    Error::new(Kind::Unavailable, "the engine has stopped after a fault; restart the server")
}
