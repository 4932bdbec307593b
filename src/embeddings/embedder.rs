//! The handle to the embedding thread: admits requests, looks them up in the cache, tokenizes them, and waits for
//! their vectors.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::OnceCell;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use super::batch::{BatchOutput, EmbeddingOutput, EmbeddingRequest, PreparedBatch};
use super::cache::{DiskCache, EmbeddingCache};
use super::entry::Fingerprint;
use super::fairness::FairTurns;
use super::job_queue::{EmbedJob, JobOutput};
use super::ledger::{LedgerLimits, RequestLedger, Ticket};
use super::text_embedding::{PrepareContext, TEXT_EMBEDDING, TextEmbedding};
use super::worker::{EmbedderCommand, EmbedderWorker, Loader, WorkerStatus};
use crate::error::{Error, Kind, Result};

/// Requests up to this size are tokenized on the spot, which is faster than handing them to another thread.
const INLINE_BYTES: usize = 1024;

/// Requests up to this size do not wait for the preparation of larger ones.
const SMALL_BYTES: usize = 16 << 10;

/// How long a batch may take before the thread counts as stuck, unless it has taken a third of that before.
const MAX_BATCH_TIME: Duration = Duration::from_secs(10);

/// Limits of an [`Embedder`], and its cache.
#[derive(Clone)]
pub struct EmbedderOptions {
    /// Bounds on all requests that wait or run at once; beyond them, requests are refused as overloaded.
    pub queue: LedgerLimits,
    /// How long a request may wait for its first batch.
    pub queue_timeout: Duration,
    /// Most tokens of one request.
    pub max_request_tokens: usize,
    /// Budget of the memory cache in bytes; 0 disables it.
    pub cache_bytes: usize,
    /// How long a cached embedding is valid.
    pub cache_ttl: Duration,
    /// Whether tenants share the cache.
    pub is_cache_shared: bool,
    /// A digest of what tenants' names depend on, such as the list of keys. Entries on disk are found only as long as
    /// it is the same, so that a name never leads to the entries of another tenant.
    pub key_owners: Fingerprint,
    /// The disk cache behind the memory cache, if any.
    pub disk_cache: Option<Arc<DiskCache>>,
}

/// A handle to the embedding thread. Cheap to clone; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Embedder {
    cell: &'static OnceCell<TextEmbedding>,
    sender: mpsc::Sender<EmbedderCommand>,
    ledger: Arc<RequestLedger>,
    /// Turns for cache look-up and tokenization, one per core.
    large_turns: Arc<FairTurns>,
    /// Turns of small requests.
    small_turns: Arc<FairTurns>,
    options: Arc<EmbedderOptions>,
    cache: Option<Arc<EmbeddingCache>>,
    status: Arc<WorkerStatus>,
    stopped: watch::Sender<bool>,
}

/// An admitted request: its place in the queue, and whether anybody still waits for it.
pub(super) struct AdmittedRequest {
    tenant: Arc<str>,
    ticket: Arc<Ticket>,
    /// Set when nobody waits any more.
    is_abandoned: Arc<AtomicBool>,
}

impl Drop for AdmittedRequest {
    fn drop(&mut self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }
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
        let EmbedderOptions { cache_bytes, cache_ttl, .. } = options;
        let is_cached = cache_bytes > 0 || options.disk_cache.is_some();
        let cache = || Arc::new(EmbeddingCache::new(cache_bytes, cache_ttl, options.disk_cache.clone()));
        let cache = is_cached.then(cache);
        let (sender, commands) = mpsc::channel();
        let ledger = RequestLedger::new(options.queue);
        let status = Arc::new(WorkerStatus::default());
        let worker = EmbedderWorker::new(cell, loader, ledger.clone(), status.clone());
        thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || worker.run(&commands))
            .map_err(|e| Error::internal(format!("cannot start the embedding thread: {e}")))?;
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            cell,
            sender,
            ledger,
            large_turns: FairTurns::new(n_cores),
            small_turns: FairTurns::new(n_cores),
            options: Arc::new(options),
            cache,
            status,
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
        match self.loaded() {
            Some(model) => Ok(model),
            None => self.unless_stopped(received(self.start_loading()?)).await,
        }
    }

    /// Like [`Embedder::model`], for a thread that may block.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(&self) -> Result<&'static TextEmbedding> {
        match self.loaded() {
            Some(model) => Ok(model),
            None => self.start_loading()?.blocking_recv().map_err(|_| request_lost())?,
        }
    }

    /// Whether the thread makes progress.
    ///
    /// # Errors
    /// When it has been busy with one batch for too long.
    pub fn check_health(&self) -> Result<()> {
        let (busy, longest) = self.status.busy();
        if busy <= MAX_BATCH_TIME.max(3 * longest) {
            return Ok(());
        }
        let message = format!(
            "the embedding model has been busy with one batch for {} s; try again later",
            busy.as_secs()
        );
        Err(Error::new(Kind::Unavailable, message))
    }

    /// Embeds the inputs of a request. Dropping the future cancels the work that has not started.
    ///
    /// # Errors
    /// See [`TextEmbedding::embed`]; also when there are too many requests or tokens, the request waits too long,
    /// the model cannot be loaded, or the server shuts down.
    pub async fn embed(&self, request: EmbeddingRequest) -> Result<EmbeddingOutput> {
        let dimensions = request.dimensions;
        let (tenant, n_bytes) = (request.tenant.clone(), request.n_bytes());
        let (admitted, gave_way) = self.admit(tenant, n_bytes)?;
        let output = self.unless_refused(&admitted, gave_way, self.compute(request, &admitted)).await?;
        EmbeddingOutput::new(output, dimensions)
    }

    /// Admits a request with this many bytes of inputs. The receiver resolves when it has to give way.
    pub(super) fn admit(
        &self,
        tenant: Arc<str>,
        n_bytes: usize,
    ) -> Result<(AdmittedRequest, oneshot::Receiver<()>)> {
        let (ticket, gave_way) = self.ledger.admit(&tenant, n_bytes)?;
        Ok((AdmittedRequest { tenant, ticket: Arc::new(ticket), is_abandoned: Arc::default() }, gave_way))
    }

    /// Does the work of an admitted request, unless it has to give way or waits too long.
    pub(super) async fn unless_refused<T>(
        &self,
        admitted: &AdmittedRequest,
        mut gave_way: oneshot::Receiver<()>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = pin!(self.unless_stopped(work));
        let mut deadline = pin!(sleep(self.options.queue_timeout));
        let mut is_waiting = true;
        loop {
            tokio::select! {
                result = &mut work => return result,
                Ok(()) = &mut gave_way => {
                    let message = "the queue is full, and this request gave way to one of another client; try again \
                                   later";
                    return Err(self.ledger.overloaded(message.to_owned()));
                }
                () = &mut deadline, if is_waiting => {
                    is_waiting = false;
                    if !admitted.ticket.has_begun() {
                        return Err(self.waited_too_long());
                    }
                }
            }
        }
    }

    /// The raw output for an admitted request: cached where possible, computed otherwise.
    pub(super) async fn compute(
        &self,
        request: EmbeddingRequest,
        admitted: &AdmittedRequest,
    ) -> Result<BatchOutput> {
        let model = self.model().await?;
        let mut prepared = self.prepare(request, model, admitted).await?;
        let is_prompt_known = prepared.is_prompt_known;
        let n_hits = prepared.n_hits;
        let truncated = std::mem::take(&mut prepared.truncated);
        let n_tokens: Vec<usize> = prepared.inputs.iter().map(|input| input.ids.len()).collect();
        let inputs = std::mem::take(&mut prepared.inputs);
        let output = if inputs.is_empty() {
            JobOutput::default()
        } else {
            let n_bytes = inputs.iter().map(|input| input.n_bytes()).sum();
            admitted.ticket.set_tokens(&admitted.tenant, n_tokens.iter().sum(), n_bytes)?;
            let (reply, response) = oneshot::channel();
            let job = EmbedJob::new(inputs, admitted.tenant.clone(), admitted.ticket.clone(), reply);
            self.send(EmbedderCommand::Embed(job))?;
            received(response).await?
        };
        let JobOutput { vectors, queue_time, compute_time } = output;
        let now = SystemTime::now();
        let embeddings = prepared.into_embeddings(n_tokens, vectors, self.cache.as_deref(), now);
        Ok(BatchOutput { embeddings, n_hits, queue_time, compute_time, is_prompt_known, truncated })
    }

    /// Looks up and tokenizes the inputs: large requests, and those that read the disk, on a blocking thread.
    async fn prepare(
        &self,
        request: EmbeddingRequest,
        model: &'static TextEmbedding,
        admitted: &AdmittedRequest,
    ) -> Result<PreparedBatch> {
        let cache = self.cache.clone();
        let is_abandoned = admitted.is_abandoned.clone();
        let n_bytes = request.n_bytes();
        let has_disk = cache.as_ref().is_some_and(|cache| cache.has_disk());
        let EmbedderOptions { max_request_tokens, is_cache_shared, .. } = *self.options;
        let prepare = move || {
            let context = PrepareContext {
                cache: cache.as_deref(),
                is_cache_shared,
                now: SystemTime::now(),
                max_request_tokens,
                is_abandoned: &is_abandoned,
            };
            model.prepare(request, &context)
        };
        if n_bytes <= INLINE_BYTES && !has_disk {
            return prepare();
        }
        let turns = if n_bytes <= SMALL_BYTES { &self.small_turns } else { &self.large_turns };
        let turn = turns.wait(&admitted.tenant, n_bytes as u64).await;
        let ticket = admitted.ticket.clone();
        let work = move || {
            // The work may outlive the request; until it ends, it takes its turn and its place.
            let _held = (turn, ticket);
            prepare()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::internal(format!("the embedding request could not be prepared: {e}")))?
    }

    fn waited_too_long(&self) -> Error {
        let waited = self.options.queue_timeout.as_secs();
        match self.loaded() {
            Some(_) => self.ledger.overloaded(format!(
                "the request waited for {waited} s in the queue of the embedding model; try again later"
            )),
            None => Error::new(
                Kind::Unavailable,
                format!("the embedding model has not been loaded for {waited} s; try again later"),
            ),
        }
    }

    /// Asks the thread to load the model.
    fn start_loading(&self) -> Result<oneshot::Receiver<Result<&'static TextEmbedding>>> {
        let (reply, response) = oneshot::channel();
        self.send(EmbedderCommand::Load { arrived: Instant::now(), reply })?;
        Ok(response)
    }

    fn send(&self, command: EmbedderCommand) -> Result<()> {
        self.sender.send(command).map_err(|_| request_lost())
    }

    /// Does `work`, or fails at the end of the server. Dropping the work drops the job's receiver, and the thread
    /// drops jobs that nobody waits for.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            _ = stopped.wait_for(|&stopped| stopped) => {
                Err(Error::new(Kind::Unavailable, "the server is shutting down; send the request again"))
            }
            result = work => result,
        }
    }

    /// Fails all running and future requests, for a graceful shutdown that has run out of time.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

/// The thread's response.
async fn received<T>(response: oneshot::Receiver<Result<T>>) -> Result<T> {
    response.await.map_err(|_| request_lost())?
}

fn request_lost() -> Error {
    Error::new(Kind::Unavailable, "the embedding thread failed at this request; send it again")
}
