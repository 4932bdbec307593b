//! The engine's thread: a loop of steps. Each step schedules a batch, runs the model forward, samples every sequence's
//! next tokens and emits their text.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use tokio::sync::{OwnedSemaphorePermit, mpsc as events};

use super::kv_budget::KvBudget;
use super::{Admission, EngineOptions, EngineShared, QueuedRequest};
use crate::error::{Error, Kind, Result};
use crate::inference::Caller;
use crate::inference::Priority;
use crate::inference::divergence::PrecisionTrial;
use crate::inference::scheduler::{
    AnsweredText, Batch, ContextShift, NewSequence, Scheduler, SchedulerOptions,
};
use crate::inference::scoring::{Scorer, Scoring};
use crate::inference::text_generation::{GenerationStep, TextGeneration};
use crate::inference::{DraftCounts, Event, FinishReason, Finished, GenerationRequest, Timings};
use crate::kernels::attention::kv_block::KvFormat;
use crate::kernels::threads::pool;
use crate::models::{
    Decoder, ForwardInput, LogitSpan, ModelConfig, SequenceChunk, SequenceId, SequenceStates,
};
use crate::pulse::BEAT_INTERVAL;
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// How long a step waits for grammars, as a share of its batch: a text with a slow grammar slows down the others by no
/// more than this.
const PATIENCE_PER_BATCH: u32 = 16;
const MIN_PATIENCE: Duration = Duration::from_millis(1);
const MAX_PATIENCE: Duration = Duration::from_millis(5);

/// How long the engine waits for a grammar before it looks for new requests.
const MAX_PARK_TIME: Duration = Duration::from_millis(5);

/// Most answers that wait to be computed again.
const MAX_ANSWERS: usize = 8;

/// The state of an engine's thread.
pub struct EngineWorker {
    model: Box<dyn Decoder>,
    tokenizer: Arc<Tokenizer>,
    scheduler: Scheduler,
    states: SequenceStates,
    /// How to make the scheduler and the state of sequences anew.
    initial: InitialState,
    sequences: HashMap<SequenceId, ActiveSequence>,
    /// Answers that are to be computed again as parts of prompts, the newest last.
    answers: VecDeque<AnsweredText>,
    /// The one that is being computed.
    recomputed: Option<(SequenceId, AnsweredText)>,
    trial: Option<PrecisionTrial>,
    n_sequences_seen: u64,
    /// When the last request finished; `None` after a time without work.
    last_finish: Option<Instant>,
    shared: Arc<EngineShared>,
}

/// The options of the scheduler and of the state of sequences that a worker starts with.
struct InitialState {
    scheduler: SchedulerOptions,
    kv_format: KvFormat,
}

/// A sequence that waits or runs, from its arrival to its last event.
struct ActiveSequence {
    n_prompt: usize,
    generation: TextGeneration,
    drafts: DraftCounts,
    events: events::Sender<Event>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    /// Logits from which tokens are still to be sampled. While its grammar has no answer, the sequence sits out.
    unsampled: Option<UnsampledLogits>,
    /// Given tokens that are still to be scored.
    scorer: Option<Scorer>,
    /// Whether nothing is to be generated after the prompt.
    is_prompt_only: bool,
    _admission: Admission,
    /// Whether it may wait for as long as others run.
    is_background: bool,
    /// Held until it starts.
    queued_tokens: Option<Arc<OwnedSemaphorePermit>>,
    /// Set when its text is to end where it is.
    is_ended: Arc<AtomicBool>,
}

/// The logits of one batch for a sequence, and what has been sampled from them so far.
struct UnsampledLogits {
    /// The logits after the newest token and after each draft token.
    rows: Vec<Tensor>,
    drafts: Vec<u32>,
    n_accepted: usize,
    /// One for each sampled token; an error is the last.
    steps: Vec<Result<GenerationStep>>,
    state: SamplingState,
}

/// Whether more can be sampled from a batch's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SamplingState {
    /// Nothing is sampled yet.
    New,
    /// The grammar has been asked in this step.
    Asked,
    /// The grammar has been asked in an earlier step.
    SitsOut,
    Done,
}

/// The tokens that one batch yields for a sequence.
struct SampledTokens {
    id: SequenceId,
    n_drafts: usize,
    n_accepted: usize,
    /// One for each token; an error is the last.
    steps: Vec<Result<GenerationStep>>,
}

impl EngineWorker {
    /// The worker of an engine that starts with an empty KV cache of the size `budget`, and conducts a trial when it is
    /// idle.
    pub fn new(
        model: Box<dyn Decoder>,
        tokenizer: Arc<Tokenizer>,
        budget: KvBudget,
        shared: Arc<EngineShared>,
        trial: Option<PrecisionTrial>,
    ) -> Self {
        let EngineOptions {
            running_requests,
            prefill_chunk_tokens,
            kv_format,
            speculative,
            rounded_prompts,
            context_shift,
            ..
        } = shared.options;
        let KvBudget { groups, n_state_slots, context_length, .. } = budget;
        let scheduler = SchedulerOptions {
            max_running: running_requests.max(1),
            prefill_chunk: prefill_chunk_tokens.max(1),
            groups,
            n_state_slots,
            speculative,
            rounded_prompts,
            context_shift: context_shift.then_some(ContextShift { context_length }),
        };
        let initial = InitialState { scheduler, kv_format };
        let (scheduler, states) = initial.build(model.config());
        Self {
            states,
            scheduler,
            initial,
            model,
            tokenizer,
            sequences: HashMap::new(),
            answers: VecDeque::new(),
            recomputed: None,
            trial,
            n_sequences_seen: 0,
            last_finish: None,
            shared,
        }
    }

    /// Runs until the handle is dropped and all its requests are finished.
    pub fn run(mut self, requests: &mpsc::Receiver<QueuedRequest>) {
        pool::lower_priority();
        let _alive = self.shared.pulse.guard();
        while let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.serve(requests))) {
            // The panic was logged; dropping its payload could panic again.
            mem::forget(payload);
            self.start_over();
        }
    }

    /// Steps until the handle is dropped and all its requests are finished.
    fn serve(&mut self, requests: &mpsc::Receiver<QueuedRequest>) {
        while self.receive(requests) {
            self.drop_cancelled();
            self.finish_ended();
            self.expire_queued();
            if self.shared.stopping.load(Ordering::Acquire) {
                let message = "the server is shutting down; send the request again";
                self.fail_all(&Error::new(Kind::Unavailable, message));
                continue;
            }
            self.step();
        }
    }

    /// Receives all requests that have arrived; waits for one if there is no work. Returns false once the handle is
    /// gone and no work is left.
    fn receive(&mut self, requests: &mpsc::Receiver<QueuedRequest>) -> bool {
        self.shared.pulse.beat();
        self.shared.status().load = self.scheduler.load();
        if self.scheduler.is_idle() {
            self.last_finish = None;
            self.shared.status().batch_began = None;
            match self.wait(requests) {
                Some(request) => self.add(request),
                None => return false,
            }
        }
        while let Ok(request) = requests.try_recv() {
            self.add(request);
        }
        true
    }

    /// Waits for a request, and uses the time; `None` once the handle is gone.
    fn wait(&mut self, requests: &mpsc::Receiver<QueuedRequest>) -> Option<QueuedRequest> {
        let mut has_work = true;
        let request = loop {
            let patience = if has_work { Duration::ZERO } else { BEAT_INTERVAL };
            match requests.recv_timeout(patience) {
                Ok(request) => break Some(request),
                Err(mpsc::RecvTimeoutError::Timeout) => self.shared.pulse.beat(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break None,
            }
            has_work = self.recompute_answers() || self.advance_trial();
        };
        if let Some((id, text)) = self.recomputed.take() {
            self.scheduler.remove(id, false);
            self.answers.push_back(text);
        }
        request
    }

    /// Computes a chunk of the newest answer again, as the next prompt of its conversation will: rounded. So that prompt
    /// finds it in the prefix cache. Returns false if there is none.
    fn recompute_answers(&mut self) -> bool {
        let id = match &self.recomputed {
            Some((id, _)) => *id,
            None => {
                let Some(text) = self.answers.pop_back() else { return false };
                self.n_sequences_seen += 1;
                let id = SequenceId(self.n_sequences_seen);
                self.scheduler.add(text.as_prompt(id));
                self.recomputed = Some((id, text));
                id
            }
        };
        let batch = self.scheduler.next_batch();
        let input = self.forward_input(&batch);
        let failed = !batch.sequences.is_empty() && self.model.forward(&mut self.states, &input).is_err();
        if failed || batch.sequences.iter().all(|scheduled| scheduled.needs_logits) {
            self.scheduler.remove(id, failed);
            self.recomputed = None;
        }
        true
    }

    /// Advances the trial of 8-bit activations. Returns false if there is none.
    fn advance_trial(&mut self) -> bool {
        let Some(trial) = self.trial.take() else { return false };
        match trial.step(&mut *self.model, self.initial.kv_format) {
            Ok(trial) => self.trial = trial,
            Err(e) => tracing::warn!(error = %e, "the effect of 8-bit activations cannot be measured"),
        }
        true
    }

    /// Starts over after a panic that has escaped a step: nobody knows what state it has left. All requests end; their
    /// clients get an error when their channels close.
    fn start_over(&mut self) {
        self.shared.restarting.store(true, Ordering::Release);
        metrics::counter!(telemetry::ENGINE_RESTARTS).increment(1);
        tracing::error!(
            requests = self.sequences.len(),
            "the engine has failed: its requests end, and it starts over with an empty KV cache"
        );
        self.sequences.clear();
        (self.scheduler, self.states) = self.initial.build(self.model.config());
        self.answers.clear();
        self.recomputed = None;
        self.last_finish = None;
        self.shared.status().batch_began = None;
        self.shared.restarting.store(false, Ordering::Release);
    }

    /// Adds a request to the scheduler's waiting sequences.
    fn add(&mut self, queued: QueuedRequest) {
        let QueuedRequest { mut request, events, arrived, admission, queued_tokens, is_ended } = queued;
        let n_vocab = self.model.config().n_vocab;
        let generation =
            catch_panic("a request", || TextGeneration::new(&mut request, self.tokenizer.clone(), n_vocab));
        let mut generation = match generation {
            Ok(generation) => generation,
            Err(e) => return send(&events, Event::Failed(e)),
        };
        generation.set_waker(thread::current());
        let is_background = request.caller.priority == Priority::Background;
        self.n_sequences_seen += 1;
        let id = SequenceId(self.n_sequences_seen);
        let n_prompt = request.prompt.len();
        let scorer = request.scoring.clone().map(|scoring| Scorer::new(scoring, &request.prompt));
        let continuations = match &request.scoring {
            Some(Scoring::Continuations { texts, .. }) => texts.clone(),
            _ => [].into(),
        };
        self.scheduler.add(NewSequence {
            id,
            borders: self.borders(&request.prompt),
            cache_namespace: self.cache_namespace(&request),
            prompt: request.prompt,
            prediction: request.prediction,
            max_tokens: request.max_tokens,
            is_scored: matches!(request.scoring, Some(Scoring::Prompt { .. })),
            continuations,
            tenant: request.caller.tenant,
            priority: request.caller.priority,
        });
        let sequence = ActiveSequence {
            n_prompt,
            generation,
            drafts: DraftCounts::default(),
            events,
            arrived,
            started: None,
            first_token: None,
            unsampled: None,
            scorer,
            is_prompt_only: request.max_tokens == 0,
            _admission: admission,
            is_background,
            queued_tokens,
            is_ended,
        };
        self.sequences.insert(id, sequence);
    }

    /// The ends of the first and of the last message of a prompt: where prompts with the same instructions, and the next
    /// prompt of a conversation, begin to differ.
    fn borders(&self, prompt: &[u32]) -> Vec<usize> {
        let ends = &self.model.config().eos_token_ids;
        let is_end = |token: &u32| ends.contains(token);
        let first = prompt.iter().position(is_end);
        let last = prompt.iter().rposition(is_end).filter(|last| Some(*last) != first);
        first.into_iter().chain(last).map(|idx| idx + 1).collect()
    }

    /// The namespace of the prefix cache for a request: its tenant, its salt, and whether its positions are rotated as
    /// in a long prompt, on which the keys depend.
    fn cache_namespace(&self, request: &GenerationRequest) -> Arc<str> {
        let GenerationRequest { prompt, caller: Caller { tenant, .. }, cache_salt, .. } = request;
        let is_long = self.model.config().is_long_prompt(prompt.len());
        let salt = cache_salt.as_deref().unwrap_or_default();
        // The length marks where the tenant ends, whatever it contains.
        format!("{is_long}|{}|{tenant}|{salt}", tenant.len()).into()
    }

    /// One step of the loop: schedule, forward, sample, emit. Sequences whose grammar has no answer sit out.
    fn step(&mut self) {
        let sampled = self.sample(Duration::ZERO);
        self.emit(sampled);
        let batch = self.scheduler.next_batch();
        if batch.sequences.is_empty() {
            self.shared.status().batch_began = None;
            if !self.scheduler.is_idle() {
                // The grammar threads end the wait.
                thread::park_timeout(MAX_PARK_TIME);
            }
            return;
        }
        let began = self.record_start(&batch);
        let input = self.forward_input(&batch);
        let n_generated = match self.forward(&input) {
            Ok(logits) => {
                self.assign(&input, &logits);
                let patience = (began.elapsed() / PATIENCE_PER_BATCH).clamp(MIN_PATIENCE, MAX_PATIENCE);
                let sampled = self.sample(patience);
                let n_generated = self.emit(sampled);
                self.scheduler.record_duration(&batch, began.elapsed().as_secs_f64());
                n_generated
            }
            Err(e) => self.compute_separately(&input, &e),
        };
        self.record_end(began.elapsed(), n_generated);
    }

    /// The batch in the model's terms. Marks its sequences as started.
    fn forward_input(&mut self, batch: &Batch) -> ForwardInput {
        let mut input = ForwardInput::default();
        for scheduled in &batch.sequences {
            if let Some(sequence) = self.sequences.get_mut(&scheduled.id) {
                sequence.started.get_or_insert_with(Instant::now);
                sequence.queued_tokens = None;
            }
            input.push(SequenceChunk {
                sequence: scheduled.id,
                n_prompt: scheduled.n_prompt,
                n_rounded: scheduled.n_rounded,
                start: scheduled.start,
                tables: &scheduled.block_tables,
                state: scheduled.state.as_ref(),
                token_ids: &scheduled.tokens,
                n_logits: scheduled.n_logits(),
            });
        }
        input
    }

    /// Runs the model; one tensor `[n_vocab]` for each row of logits that `input` asks for.
    fn forward(&mut self, input: &ForwardInput) -> Result<Vec<Tensor>> {
        let (model, states) = (&mut self.model, &mut self.states);
        catch_panic("the batch", || {
            let logits = model.forward(states, input)?;
            (0..input.logit_rows.len()).map(|row| Ok(logits.get(row)?)).collect()
        })
    }

    /// Computes each sequence of a failed batch separately, so that only the one at fault ends. Returns the number of
    /// tokens generated. Recurrent states may have taken in some of the batch's tokens, so sequences that have them all
    /// end.
    fn compute_separately(&mut self, input: &ForwardInput, e: &Error) -> usize {
        if input.spans.len() == 1 || self.states.recurrent.layout().n_layers > 0 {
            self.fail(input, e);
            return 0;
        }
        tracing::warn!(error = %e, "a batch failed; its sequences are computed one by one");
        // Keys and values that the failed batch has written are overwritten.
        let compute = |separate: ForwardInput| match self.forward(&separate) {
            Ok(logits) => {
                self.assign(&separate, &logits);
                let sampled = self.sample(MIN_PATIENCE);
                self.emit(sampled)
            }
            Err(e) => {
                self.fail(&separate, &e);
                0
            }
        };
        input.split().into_iter().map(compute).sum()
    }

    /// Gives the logits of a batch to its sequences: rows of given tokens to their scorer, the others to be sampled from.
    /// A sequence that sits out keeps those that it has; they are the same.
    fn assign(&mut self, input: &ForwardInput, logits: &[Tensor]) {
        for span in input.logit_spans() {
            let id = span.sequence;
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            match sequence.score(&span, &logits[span.rows.clone()]) {
                Err(e) => self.finish(id, Event::Failed(e), true),
                Ok(None) => {}
                Ok(Some(n_scored)) => {
                    sequence.first_token.get_or_insert_with(Instant::now);
                    if sequence.is_prompt_only {
                        self.finish_as(id, FinishReason::Length, None);
                        continue;
                    }
                    let rows = logits[span.rows.start + n_scored..span.rows.end].to_vec();
                    let new = || UnsampledLogits::new(rows, span.following[n_scored..].to_vec());
                    sequence.unsampled.get_or_insert_with(new);
                }
            }
        }
    }

    /// Samples the next token of each sequence that has logits, and the one after it as long as draft tokens are
    /// accepted. The sequences are shared out among the compute threads. Waits for the answers of grammars, but only
    /// for as long as `patience`: sequences without an answer sit out the next batch.
    fn sample(&mut self, patience: Duration) -> Vec<SampledTokens> {
        let deadline = Instant::now() + patience;
        loop {
            let jobs = self.sequences.iter_mut().filter_map(|(_, sequence)| {
                let unsampled = sequence.unsampled.as_mut()?;
                Some(Mutex::new((unsampled, &mut sequence.generation)))
            });
            let jobs: Vec<_> = jobs.collect();
            let run = |idx: usize| {
                let mut job = jobs[idx].lock().unwrap_or_else(PoisonError::into_inner);
                let (unsampled, generation) = &mut *job;
                unsampled.sample(generation);
            };
            match jobs.len() {
                0 => return Vec::new(),
                1 => run(0),
                n => pool::run(|team| team.claim_chunks(n, 1).flatten().for_each(run)),
            }
            let is_awaited = jobs.into_iter().any(|job| {
                let (unsampled, generation) = job.into_inner().unwrap_or_else(PoisonError::into_inner);
                unsampled.state == SamplingState::Asked && !generation.is_slow()
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_awaited || left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        let mut sampled = Vec::new();
        for (&id, sequence) in &mut self.sequences {
            match sequence.unsampled.take() {
                Some(done) if done.state == SamplingState::Done => sampled.push(done.into_sampled(id)),
                waiting => sequence.unsampled = waiting.map(UnsampledLogits::sit_out),
            }
        }
        sampled
    }

    /// Emits the text of sampled tokens and gives the tokens to the scheduler. Returns how many there are.
    fn emit(&mut self, sampled: Vec<SampledTokens>) -> usize {
        let n_generated = sampled.iter().map(|sampled| sampled.steps.len()).sum();
        for SampledTokens { id, n_drafts, n_accepted, steps } in sampled {
            metrics::counter!(telemetry::DRAFT_TOKENS).increment(n_drafts as u64);
            metrics::counter!(telemetry::ACCEPTED_DRAFT_TOKENS).increment(n_accepted as u64);
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.drafts.accepted += n_accepted;
                sequence.drafts.rejected += n_drafts - n_accepted;
            }
            self.emit_steps(id, steps);
        }
        n_generated
    }

    fn emit_steps(&mut self, id: SequenceId, steps: Vec<Result<GenerationStep>>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let mut tokens = Vec::with_capacity(steps.len());
        for step in steps {
            let GenerationStep { token, delta, finish, stop } = match step {
                Ok(step) => step,
                Err(e) => return self.finish(id, Event::Failed(e), true),
            };
            tokens.push(token);
            if !delta.text.is_empty() || !delta.logprobs.is_empty() {
                send(&sequence.events, Event::Text(delta));
            }
            if let Some(reason) = finish {
                return self.finish_as(id, reason, stop);
            }
        }
        self.scheduler.append(id, &tokens);
        sequence.generation.prepare();
    }

    /// Publishes the state at the start of a batch; returns the time.
    fn record_start(&self, batch: &Batch) -> Instant {
        metrics::histogram!(telemetry::BATCH_SEQUENCES).record(batch.sequences.len() as f64);
        let began = Instant::now();
        let load = self.scheduler.load();
        let mut status = self.shared.status();
        metrics::counter!(telemetry::PREEMPTIONS).increment(load.n_preempted - status.load.n_preempted);
        (status.load, status.batch_began) = (load, Some(began));
        began
    }

    /// Publishes the duration and the yield of a batch.
    fn record_end(&self, duration: Duration, n_generated: usize) {
        let rate = n_generated as f64 / duration.as_secs_f64().max(1e-9);
        let mut status = self.shared.status();
        status.longest_batch = status.longest_batch.max(duration);
        if n_generated == 0 {
            return;
        }
        let average = &mut status.tokens_per_second;
        *average = if *average == 0.0 { rate } else { 0.9 * *average + 0.1 * rate };
    }

    fn ids_where(&self, predicate: impl Fn(&ActiveSequence) -> bool) -> Vec<SequenceId> {
        self.sequences.iter().filter(|(_, sequence)| predicate(sequence)).map(|(&id, _)| id).collect()
    }

    /// Drops the sequences whose client has gone.
    fn drop_cancelled(&mut self) {
        for id in self.ids_where(|sequence| sequence.events.is_closed()) {
            metrics::counter!(telemetry::REQUESTS_CANCELLED).increment(1);
            self.remove(id, false);
        }
    }

    /// Ends the sequences whose reader wants no more text.
    fn finish_ended(&mut self) {
        for id in self.ids_where(|sequence| sequence.is_ended.load(Ordering::Acquire)) {
            self.finish_as(id, FinishReason::Stop, None);
        }
    }

    /// Ends a complete sequence.
    fn finish_as(&mut self, id: SequenceId, reason: FinishReason, stop: Option<String>) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let finished = sequence.finished(reason, stop, self.scheduler.n_cached_tokens(id));
        record_finished(&finished);
        self.finish(id, Event::Finished(finished), false);
    }

    /// Refuses the sequences that have waited for longer than the queue timeout.
    fn expire_queued(&mut self) {
        let timeout = self.shared.options.queue_timeout;
        let is_expired = |sequence: &ActiveSequence| {
            sequence.started.is_none() && !sequence.is_background && sequence.arrived.elapsed() > timeout
        };
        for id in self.ids_where(is_expired) {
            metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
            let error = Error::new(
                Kind::Overloaded { retry_after: self.shared.retry_after() },
                format!(
                    "the request has waited for {} s, the queue timeout; try again later",
                    timeout.as_secs_f64()
                ),
            );
            if let Some(sequence) = self.remove(id, false) {
                send(&sequence.events, Event::Failed(error));
            }
        }
    }

    fn fail_all(&mut self, reason: &Error) {
        for id in self.ids_where(|_| true) {
            self.finish(id, Event::Failed(reason.clone()), false);
        }
    }

    /// Ends the sequences of a batch that could not be computed.
    fn fail(&mut self, input: &ForwardInput, e: &Error) {
        tracing::error!(error = %e, "a sequence failed");
        for span in &input.spans {
            self.finish(span.sequence, Event::Failed(e.clone()), true);
        }
    }

    /// Ends a sequence with its last event; `failed` if the last batch did not compute it.
    fn finish(&mut self, id: SequenceId, last: Event, failed: bool) {
        // The counters are complete before the client sees the last event.
        if let Some(sequence) = self.remove(id, failed) {
            send(&sequence.events, last);
        }
        if let Some(last) = self.last_finish.replace(Instant::now()) {
            self.shared.record_request_time(last.elapsed());
        }
    }

    fn remove(&mut self, id: SequenceId, failed: bool) -> Option<ActiveSequence> {
        let sequence = self.sequences.remove(&id);
        if let Some(sequence) = &sequence {
            let n_cached = self.scheduler.n_cached_tokens(id) as u64;
            sequence.record_counters(n_cached);
            let mut status = self.shared.status();
            status.n_prompt_tokens += sequence.n_prompt as u64;
            status.n_cached_tokens += n_cached;
        }
        if let Some(text) = self.scheduler.remove(id, failed)
            && self.model.config().is_long_prompt(text.n_prompt)
                == self.model.config().is_long_prompt(text.tokens.len())
        {
            self.answers.push_back(text);
            if self.answers.len() > MAX_ANSWERS {
                self.answers.pop_front();
            }
        }
        sequence
    }
}

impl InitialState {
    fn build(&self, config: &ModelConfig) -> (Scheduler, SequenceStates) {
        (Scheduler::new(self.scheduler.clone()), SequenceStates::new(config, self.kv_format))
    }
}

impl UnsampledLogits {
    fn new(rows: Vec<Tensor>, drafts: Vec<u32>) -> Self {
        Self { rows, drafts, n_accepted: 0, steps: Vec::new(), state: SamplingState::New }
    }

    /// Samples a token, and the next one as long as the draft token equals it, up to the first for which the grammar has
    /// no answer.
    fn sample(&mut self, generation: &mut TextGeneration) {
        while self.state != SamplingState::Done {
            let row = self.steps.len();
            let Some(logits) = self.rows.get(row) else {
                self.state = SamplingState::Done;
                return;
            };
            let step = match catch_panic("sampling", || Ok(generation.advance(logits))) {
                Ok(Poll::Ready(step)) => step,
                Ok(Poll::Pending) => {
                    if self.state == SamplingState::New {
                        self.state = SamplingState::Asked;
                    }
                    return;
                }
                Err(e) => Err(e),
            };
            let is_accepted = step.as_ref().is_ok_and(|step| self.drafts.get(row) == Some(&step.token));
            let is_finished = step.as_ref().is_ok_and(|step| step.finish.is_some());
            self.n_accepted += usize::from(is_accepted);
            self.steps.push(step);
            if !is_accepted || is_finished {
                self.state = SamplingState::Done;
            }
        }
    }

    /// Prepares for the time after the batch whose logits these are.
    fn sit_out(mut self) -> Self {
        if self.state != SamplingState::SitsOut {
            // The rows are views of the whole batch's logits.
            let copy = |row: &Tensor| row.force_contiguous().unwrap_or_else(|_| row.clone());
            self.rows = self.rows.iter().map(copy).collect();
            self.state = SamplingState::SitsOut;
        }
        self
    }

    fn into_sampled(self, id: SequenceId) -> SampledTokens {
        let Self { drafts, n_accepted, steps, .. } = self;
        SampledTokens { id, n_drafts: drafts.len(), n_accepted, steps }
    }
}

impl ActiveSequence {
    /// Scores given tokens with the logits of a batch, and reports the scores once they are complete. Returns how many of
    /// the rows it used; `None` if there are no others.
    fn score(&mut self, span: &LogitSpan, rows: &[Tensor]) -> Result<Option<usize>> {
        let n_scored = match &mut self.scorer {
            None => 0,
            Some(Scorer::Prompt(scorer)) => catch_panic("scoring", || scorer.push(span.start, rows))?,
            Some(Scorer::Continuations(scorer)) => {
                catch_panic("scoring", || scorer.push(span.start, rows))?;
                rows.len()
            }
        };
        let is_complete = self.scorer.as_ref().is_some_and(Scorer::is_complete);
        // Texts that may follow the prompt take the place of a generation.
        let ends = is_complete && matches!(self.scorer, Some(Scorer::Continuations(_)));
        if let Some(scorer) = self.scorer.take_if(|_| is_complete) {
            send(&self.events, scorer.into_event());
        }
        Ok((ends || n_scored < rows.len()).then_some(n_scored))
    }

    fn finished(&self, reason: FinishReason, stop: Option<String>, n_cached: usize) -> Finished {
        let started = self.started.unwrap_or(self.arrived);
        let first_token = self.first_token.unwrap_or(started);
        Finished {
            reason,
            stop,
            prompt_tokens: self.n_prompt,
            cached_tokens: n_cached,
            completion_tokens: self.generation.n_generated(),
            drafts: self.drafts,
            timings: Timings {
                queue: started - self.arrived,
                prefill: first_token - started,
                decode: first_token.elapsed(),
            },
            repeat_penalty: self.generation.repeat_penalty_stats(),
        }
    }

    fn record_counters(&self, n_cached: u64) {
        let stats = self.generation.repeat_penalty_stats();
        metrics::counter!(telemetry::REPEAT_PENALTY_HITS).increment(stats.hits);
        metrics::counter!(telemetry::REPEAT_PENALTY_UPDATES).increment(stats.updates);
        metrics::counter!(telemetry::REPEAT_PENALTY_SKIPPED).increment(stats.skipped);
        metrics::counter!(telemetry::PROMPT_TOKENS).increment(self.n_prompt as u64);
        metrics::counter!(telemetry::PREFIX_CACHE_TOKENS).increment(n_cached);
        metrics::counter!(telemetry::COMPLETION_TOKENS).increment(self.generation.n_generated() as u64);
    }
}

/// Records the histograms of a finished request.
fn record_finished(finished: &Finished) {
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

/// Runs `work` and turns a panic into an error. The panic's own message is in the log.
fn catch_panic<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::internal(format!("{what} failed; the server's log has the cause"))))
}

/// Sends an event without waiting. If the client has gone, the event is lost, and its sequence is dropped before the
/// next batch.
fn send(events: &events::Sender<Event>, event: Event) {
    if let Err(events::error::TrySendError::Full(_)) = events.try_send(event) {
        tracing::error!("a generation sent more events than it has tokens");
    }
}
