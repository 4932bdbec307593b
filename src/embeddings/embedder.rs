//! The embedding thread and the handle to it.
//!
//! Batches are filled from all waiting requests, with an equal share of tokens for each. A large request
//! therefore delays a small one by a single batch, not by all of its own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::OnceCell;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::backend::TokenizedInput;
use super::batch::{BatchOutput, EmbeddingOutput, EmbeddingRequest, PreparedBatch};
use super::cache::{DiskCache, EmbeddingCache};
use super::text_embedding::{TEXT_EMBEDDING, TextEmbedding};
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// Requests up to this size are tokenized on the spot, which is faster than handing them to another thread.
const INLINE_BYTES: usize = 1024;

/// Loads the model when it is first needed.
pub type Loader = dyn Fn() -> Result<TextEmbedding> + Send + Sync;

/// Limits of an [`Embedder`], and its cache.
#[derive(Clone)]
pub struct EmbedderOptions {
    /// Requests that may wait or run at once; further ones are refused as overloaded.
    pub max_requests: usize,
    /// Budget of the memory cache in bytes; 0 disables it.
    pub cache_bytes: usize,
    /// How long a cached embedding is valid.
    pub cache_ttl: Duration,
    /// The disk cache behind the memory cache, if any.
    pub disk_cache: Option<Arc<DiskCache>>,
}

/// A handle to the embedding thread. Cheap to clone; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Embedder {
    cell: &'static OnceCell<TextEmbedding>,
    sender: mpsc::Sender<EmbedderCommand>,
    /// One permit for each request that waits or runs.
    slots: Arc<Semaphore>,
    /// One permit per core for cache look-up and tokenization.
    prepare_permits: Arc<Semaphore>,
    max_requests: usize,
    cache: Option<Arc<EmbeddingCache>>,
    stopped: watch::Sender<bool>,
}

/// A message to the embedding thread.
enum EmbedderCommand {
    /// Loads the model.
    Load { arrived: Instant, reply: oneshot::Sender<Result<&'static TextEmbedding>> },
    /// Computes the inputs of a request.
    Embed(EmbedJob),
}

/// A request in the queue of the embedding thread.
struct EmbedJob {
    /// Inputs not computed yet with their indices in the job, longest first. Batches take them from the end, so
    /// that each batch has inputs of similar length.
    pending: Vec<(usize, TokenizedInput)>,
    /// Results by index; empty where not computed yet.
    vectors: Vec<Vec<f32>>,
    n_remaining: usize,
    reply: oneshot::Sender<Result<JobOutput>>,
    arrived: Instant,
    /// How long it waited for its first batch, once that has started.
    queue_time: Option<Duration>,
    /// How long its batches have taken.
    compute_time: Duration,
    /// Released when the job is dropped, in whichever way it ends.
    _slot: Arc<OwnedSemaphorePermit>,
}

/// The result of a job.
#[derive(Default)]
struct JobOutput {
    vectors: Vec<Vec<f32>>,
    queue_time: Duration,
    compute_time: Duration,
}

impl Embedder {
    /// Starts the thread. The first request runs `loader` to fill [`TEXT_EMBEDDING`].
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(loader: Box<Loader>, options: EmbedderOptions) -> Result<Self> {
        Self::spawn_with_cell(&TEXT_EMBEDDING, loader, options)
    }

    /// Like [`Embedder::spawn`], with another cell for the model.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_with_cell(
        cell: &'static OnceCell<TextEmbedding>,
        loader: Box<Loader>,
        options: EmbedderOptions,
    ) -> Result<Self> {
        let EmbedderOptions { max_requests, cache_bytes, cache_ttl, disk_cache } = options;
        let is_cached = cache_bytes > 0 || disk_cache.is_some();
        let (sender, commands) = mpsc::channel();
        thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || {
                EmbedderWorker { cell, loader, load_failure: None, queue: VecDeque::new() }.run(&commands)
            })
            .map_err(|e| Error::internal(format!("cannot start the embedding thread: {e}")))?;
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            cell,
            sender,
            slots: Arc::new(Semaphore::new(max_requests)),
            prepare_permits: Arc::new(Semaphore::new(n_cores)),
            max_requests,
            cache: is_cached.then(|| Arc::new(EmbeddingCache::new(cache_bytes, cache_ttl, disk_cache))),
            stopped: watch::Sender::new(false),
        })
    }

    /// The model, if it is loaded.
    pub fn loaded(&self) -> Option<&'static TextEmbedding> {
        self.cell.get()
    }

    /// The model, loaded first if necessary.
    ///
    /// # Errors
    /// When it cannot be loaded, or the server shuts down.
    pub async fn model(&self) -> Result<&'static TextEmbedding> {
        if let Some(model) = self.loaded() {
            return Ok(model);
        }
        let (reply, response) = oneshot::channel();
        self.send(EmbedderCommand::Load { arrived: Instant::now(), reply })?;
        self.wait_for(response).await
    }

    /// Embeds the inputs of a request. Dropping the future cancels the work that has not started.
    ///
    /// # Errors
    /// See [`TextEmbedding::embed`]; also when the queue is full, the model cannot be loaded, or the
    /// server shuts down.
    pub async fn embed(&self, request: EmbeddingRequest) -> Result<EmbeddingOutput> {
        let dimensions = request.dimensions;
        let output = self.compute(request).await?;
        EmbeddingOutput::new(output, dimensions)
    }

    /// The raw output for a request: cached where possible, computed otherwise.
    pub(super) async fn compute(&self, request: EmbeddingRequest) -> Result<BatchOutput> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::Overloaded { retry_after: Duration::from_secs(1) },
                format!("the queue is full with {} embedding requests; try again later", self.max_requests),
            )
        })?;
        let slot = Arc::new(slot);
        let model = self.model().await?;
        let mut prepared = self.prepare(request, model, slot.clone()).await?;
        let n_hits = prepared.n_hits;
        let n_tokens: Vec<usize> = prepared.inputs.iter().map(|input| input.ids.len()).collect();
        let inputs = std::mem::take(&mut prepared.inputs);
        let output =
            if inputs.is_empty() { JobOutput::default() } else { self.run_job(inputs, slot).await? };
        let JobOutput { vectors, queue_time, compute_time } = output;
        let now = SystemTime::now();
        let embeddings = prepared.into_embeddings(n_tokens, vectors, self.cache.as_deref(), now);
        Ok(BatchOutput { embeddings, n_hits, queue_time, compute_time })
    }

    /// Looks up and tokenizes the inputs: large requests, and those that read the disk, on a blocking thread.
    async fn prepare(
        &self,
        request: EmbeddingRequest,
        model: &'static TextEmbedding,
        slot: Arc<OwnedSemaphorePermit>,
    ) -> Result<PreparedBatch> {
        let has_disk = self.cache.as_ref().is_some_and(|cache| cache.has_disk());
        if request.n_bytes() <= INLINE_BYTES && !has_disk {
            return model.prepare(request, self.cache.as_deref(), SystemTime::now());
        }
        let permit = self.prepare_permits.clone().acquire_owned().await;
        let cache = self.cache.clone();
        let work = move || {
            let _held = (permit, slot);
            model.prepare(request, cache.as_deref(), SystemTime::now())
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::internal(format!("the embedding request could not be prepared: {e}")))?
    }

    /// Has the embedding thread compute `inputs`.
    async fn run_job(
        &self,
        inputs: Vec<TokenizedInput>,
        slot: Arc<OwnedSemaphorePermit>,
    ) -> Result<JobOutput> {
        let (reply, response) = oneshot::channel();
        let n_inputs = inputs.len();
        let mut pending: Vec<(usize, TokenizedInput)> = inputs.into_iter().enumerate().collect();
        pending.sort_by_key(|(_, input)| std::cmp::Reverse(input.ids.len()));
        self.send(EmbedderCommand::Embed(EmbedJob {
            pending,
            vectors: vec![Vec::new(); n_inputs],
            n_remaining: n_inputs,
            reply,
            arrived: Instant::now(),
            queue_time: None,
            compute_time: Duration::ZERO,
            _slot: slot,
        }))?;
        self.wait_for(response).await
    }

    fn send(&self, command: EmbedderCommand) -> Result<()> {
        self.sender.send(command).map_err(|_| thread_died())
    }

    /// Waits for the thread's response, or for the end of the server.
    async fn wait_for<T>(&self, response: oneshot::Receiver<Result<T>>) -> Result<T> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            // Returning drops the receiver, and the thread drops jobs that nobody waits for.
            _ = stopped.wait_for(|&stopped| stopped) => {
                Err(Error::new(Kind::Unavailable, "the server is shutting down; send the request again"))
            }
            response = response => response.map_err(|_| thread_died())?,
        }
    }

    /// Fails all running and future requests, for a graceful shutdown that has run out of time.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

fn thread_died() -> Error {
    Error::new(Kind::Unavailable, "the embedding thread has stopped after a fault; restart the server")
}

/// The state of the embedding thread.
struct EmbedderWorker {
    cell: &'static OnceCell<TextEmbedding>,
    loader: Box<Loader>,
    /// When the last attempt to load the model failed, and its error.
    load_failure: Option<(Instant, Error)>,
    queue: VecDeque<EmbedJob>,
}

/// One input of a batch.
#[derive(Clone)]
struct BatchItem {
    /// The job's index in the queue.
    job_idx: usize,
    /// The input's index in the job.
    input_idx: usize,
    input: TokenizedInput,
}

impl EmbedderWorker {
    fn run(mut self, commands: &mpsc::Receiver<EmbedderCommand>) {
        loop {
            if self.queue.is_empty() {
                let Ok(command) = commands.recv() else { return };
                self.handle_command(command);
            }
            for command in commands.try_iter() {
                self.handle_command(command);
            }
            self.queue.retain(|job| !job.reply.is_closed());
            // A request sends its job only after it has the model.
            if let Some(model) = self.cell.get()
                && !self.queue.is_empty()
            {
                self.compute_batch(model);
            }
        }
    }

    fn handle_command(&mut self, command: EmbedderCommand) {
        match command {
            EmbedderCommand::Embed(job) => self.queue.push_back(job),
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
        let batch = next_batch(&mut self.queue, model.batch_tokens());
        let jobs: Vec<usize> = {
            let mut jobs: Vec<usize> = batch.iter().map(|item| item.job_idx).collect();
            jobs.dedup();
            jobs
        };
        for &job in &jobs {
            let job = &mut self.queue[job];
            job.queue_time.get_or_insert_with(|| started - job.arrived);
        }
        let mut errors = vec![None; self.queue.len()];
        match run_model(model, &batch) {
            Ok(vectors) => self.scatter(&batch, vectors),
            // Compute each job alone, so that only the one at fault fails.
            Err(_) if jobs.len() > 1 => {
                for &job in &jobs {
                    let alone: Vec<BatchItem> =
                        batch.iter().filter(|item| item.job_idx == job).cloned().collect();
                    match run_model(model, &alone) {
                        Ok(vectors) => self.scatter(&alone, vectors),
                        Err(e) => errors[job] = Some(e),
                    }
                }
            }
            Err(e) => jobs.iter().for_each(|&job| errors[job] = Some(e.clone())),
        }
        let took = started.elapsed();
        // Jobs that were not in this batch move to the front.
        let mut served = VecDeque::new();
        for (idx, mut job) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            if jobs.contains(&idx) {
                job.compute_time += took;
            }
            match errors[idx].take() {
                // The client may have disconnected.
                Some(e) => drop(job.reply.send(Err(e))),
                None if job.n_remaining == 0 => {
                    let EmbedJob { vectors, queue_time, compute_time, .. } = job;
                    let queue_time = queue_time.unwrap_or_default();
                    let _ = job.reply.send(Ok(JobOutput { vectors, queue_time, compute_time }));
                }
                None if jobs.contains(&idx) => served.push_back(job),
                None => self.queue.push_back(job),
            }
        }
        self.queue.append(&mut served);
    }

    /// Hands the vectors of a batch to their jobs.
    fn scatter(&mut self, batch: &[BatchItem], vectors: Vec<Vec<f32>>) {
        let n_tokens: usize = batch.iter().map(|item| item.input.ids.len()).sum();
        metrics::counter!(telemetry::EMBEDDED_TEXTS).increment(batch.len() as u64);
        metrics::counter!(telemetry::EMBEDDED_TOKENS).increment(n_tokens as u64);
        for (item, vector) in batch.iter().zip(vectors) {
            let job = &mut self.queue[item.job_idx];
            job.vectors[item.input_idx] = vector;
            job.n_remaining -= 1;
        }
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

/// Takes inputs of up to `max_tokens` in all out of the queue, but at least one: first an equal share of each
/// job, then whatever still fits. Items are in the order of their jobs.
fn next_batch(queue: &mut VecDeque<EmbedJob>, max_tokens: usize) -> Vec<BatchItem> {
    let share = max_tokens / queue.len().max(1);
    let mut batch: Vec<BatchItem> = Vec::new();
    let mut n_tokens = 0;
    for max_job_tokens in [share, max_tokens] {
        for (job_idx, job) in queue.iter_mut().enumerate() {
            let mut n_job_tokens = 0;
            while let Some((input_idx, input)) = job.pending.pop_if(|(_, input)| {
                let n = input.ids.len();
                let is_first = n_tokens == 0;
                let fits_job = n_job_tokens == 0 || n_job_tokens + n <= max_job_tokens;
                is_first || n_tokens + n <= max_tokens && fits_job
            }) {
                n_job_tokens += input.ids.len();
                n_tokens += input.ids.len();
                batch.push(BatchItem { job_idx, input_idx, input });
            }
        }
    }
    batch.sort_by_key(|item| item.job_idx);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of jobs with inputs of these lengths.
    fn queue(jobs: &[&[usize]]) -> VecDeque<EmbedJob> {
        let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().map(Arc::new).unwrap();
        let job = |lengths: &&[usize]| {
            let input = |(idx, &n): (usize, &usize)| {
                (idx, TokenizedInput { text: None, ids: vec![0; n], n_first: None })
            };
            EmbedJob {
                pending: lengths.iter().enumerate().map(input).collect(),
                vectors: Vec::new(),
                n_remaining: lengths.len(),
                reply: oneshot::channel().0,
                arrived: Instant::now(),
                queue_time: None,
                compute_time: Duration::ZERO,
                _slot: slot.clone(),
            }
        };
        jobs.iter().map(job).collect()
    }

    /// The job and the length of each input of the next batch.
    fn batch(queue: &mut VecDeque<EmbedJob>, max_tokens: usize) -> Vec<(usize, usize)> {
        next_batch(queue, max_tokens).iter().map(|item| (item.job_idx, item.input.ids.len())).collect()
    }

    #[test]
    fn a_batch_shares_its_tokens_equally_among_jobs() {
        let mut jobs = queue(&[&[10; 50], &[10; 2], &[10; 50]]);
        let mut counts = [0; 3];
        batch(&mut jobs, 120).iter().for_each(|(job, _)| counts[*job] += 1);
        assert_eq!(counts, [6, 2, 4], "four for each, then whatever still fits");
        let mut jobs = queue(&[&[10; 4], &[100], &[10; 4]]);
        assert_eq!(batch(&mut jobs, 60), [(0, 10), (0, 10), (0, 10), (0, 10), (2, 10), (2, 10)]);
    }

    #[test]
    fn a_batch_has_at_least_one_input() {
        let mut jobs = queue(&[&[500], &[3, 2]]);
        assert_eq!(batch(&mut jobs, 100), [(0, 500)]);
        assert_eq!(batch(&mut jobs, 100), [(1, 2), (1, 3)]);
        assert!(batch(&mut jobs, 100).is_empty());
        assert!(batch(&mut VecDeque::new(), 100).is_empty());
    }
}
