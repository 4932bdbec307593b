//! The embedding thread: loads the model, and computes batches of the inputs of all waiting requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use tokio::sync::oneshot;

use super::backend::TokenizedInput;
use super::job_queue::{BatchItem, EmbedJob, JobQueue, jobs_of};
use super::ledger::RequestLedger;
use super::text_embedding::TextEmbedding;
use crate::error::{Error, Result};
use crate::telemetry;

/// Loads the model when it is first needed.
pub type Loader = dyn Fn() -> Result<TextEmbedding> + Send + Sync;

/// A message to the embedding thread.
pub enum EmbedderCommand {
    /// Loads the model.
    Load {
        /// When the request for it arrived.
        arrived: Instant,
        /// Receives the model.
        reply: oneshot::Sender<Result<&'static TextEmbedding>>,
    },
    /// Computes the inputs of a request.
    Embed(EmbedJob),
}

/// How busy the embedding thread is.
#[derive(Debug, Default)]
pub struct WorkerStatus(Mutex<BatchTimes>);

#[derive(Debug, Default, Clone, Copy)]
struct BatchTimes {
    /// When the batch that is being computed began.
    began: Option<Instant>,
    longest: Duration,
}

impl WorkerStatus {
    /// How long the current batch has been computed, and how long the longest one before it took.
    pub fn busy(&self) -> (Duration, Duration) {
        let BatchTimes { began, longest } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (began.map(|began| began.elapsed()).unwrap_or_default(), longest)
    }

    fn begin(&self, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).began = Some(now);
    }

    fn end(&self) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let took = times.began.take().map(|began| began.elapsed()).unwrap_or_default();
        times.longest = times.longest.max(took);
    }
}

/// The state of the embedding thread.
pub struct EmbedderWorker {
    cell: &'static OnceCell<TextEmbedding>,
    loader: Box<Loader>,
    /// When the last attempt to load the model failed, and its error.
    load_failure: Option<(Instant, Error)>,
    queue: JobQueue,
    ledger: Arc<RequestLedger>,
    status: Arc<WorkerStatus>,
}

impl EmbedderWorker {
    /// A worker without jobs.
    pub fn new(
        cell: &'static OnceCell<TextEmbedding>,
        loader: Box<Loader>,
        ledger: Arc<RequestLedger>,
        status: Arc<WorkerStatus>,
    ) -> Self {
        Self { cell, loader, load_failure: None, queue: JobQueue::default(), ledger, status }
    }

    /// Serves commands until all senders are gone. A panic costs the waiting requests, not the thread.
    pub fn run(mut self, commands: &mpsc::Receiver<EmbedderCommand>) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve(commands))) {
            // The message was logged by the panic hook.
            drop(panic);
            self.queue = JobQueue::default();
            self.status.end();
        }
    }

    fn serve(&mut self, commands: &mpsc::Receiver<EmbedderCommand>) {
        loop {
            if !self.queue.drop_abandoned() {
                let Ok(command) = commands.recv() else { return };
                self.handle_command(command);
            }
            for command in commands.try_iter() {
                self.handle_command(command);
            }
            // A request sends its job only after it has the model.
            if self.queue.drop_abandoned()
                && let Some(model) = self.cell.get()
            {
                self.compute_batch(model);
            }
        }
    }

    fn handle_command(&mut self, command: EmbedderCommand) {
        match command {
            EmbedderCommand::Embed(job) => self.queue.push(job),
            EmbedderCommand::Load { arrived, reply } => {
                let model = catch_unwind(AssertUnwindSafe(|| self.load_model(arrived)));
                let panicked =
                    || Error::internal("the embedding model could not be loaded; the panic was logged");
                // The client may have disconnected.
                let _ = reply.send(model.unwrap_or_else(|_| Err(panicked())));
            }
        }
    }

    /// Computes one batch, and replies to the jobs that it completes.
    fn compute_batch(&mut self, model: &TextEmbedding) {
        let started = Instant::now();
        self.status.begin(started);
        let batch = self.queue.next_batch(model.batch_tokens());
        self.queue.begin(&batch, started);
        let jobs = jobs_of(&batch);
        let mut failures = Vec::new();
        match run_model(model, &batch) {
            Ok(vectors) => self.scatter(&batch, vectors),
            // Compute each job alone, so that only the one at fault fails.
            Err(_) if jobs.len() > 1 => {
                for job in jobs {
                    let alone: Vec<BatchItem> =
                        batch.iter().filter(|item| item.job_idx == job).cloned().collect();
                    match run_model(model, &alone) {
                        Ok(vectors) => self.scatter(&alone, vectors),
                        Err(e) => failures.push((job, e)),
                    }
                }
            }
            Err(e) => failures.extend(jobs.into_iter().map(|job| (job, e.clone()))),
        }
        let took = started.elapsed();
        self.status.end();
        self.ledger.record_batch(batch.iter().map(|item| item.input.ids.len()).sum(), took);
        self.queue.finish(&batch, failures, took);
    }

    fn scatter(&mut self, batch: &[BatchItem], vectors: Vec<Vec<f32>>) {
        let n_tokens: usize = batch.iter().map(|item| item.input.ids.len()).sum();
        metrics::counter!(telemetry::EMBEDDED_TEXTS).increment(batch.len() as u64);
        metrics::counter!(telemetry::EMBEDDED_TOKENS).increment(n_tokens as u64);
        self.queue.scatter(batch, vectors);
    }

    /// The model, loaded first if necessary. A failed load is the answer to every request that arrived
    /// before it failed; later ones try again.
    fn load_model(&mut self, arrived: Instant) -> Result<&'static TextEmbedding> {
        if let Some((when, e)) = &self.load_failure
            && arrived < *when
        {
            return Err(e.clone());
        }
        self.cell
            .get_or_try_init(&*self.loader)
            .inspect_err(|e| self.load_failure = Some((Instant::now(), e.clone())))
    }
}

/// Computes one vector per item, all of them finite; a panic becomes an error.
fn run_model(model: &TextEmbedding, batch: &[BatchItem]) -> Result<Vec<Vec<f32>>> {
    let inputs: Vec<&TokenizedInput> = batch.iter().map(|item| &item.input).collect();
    catch_unwind(AssertUnwindSafe(|| model.compute(&inputs)))
        .unwrap_or_else(|_| Err(Error::internal("embedding failed; the panic was logged")))
}
