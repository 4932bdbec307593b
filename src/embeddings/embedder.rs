//! The embedding thread and the handle to it.
//!
//! Requests take turns: each turn computes one batch of one of them, so that a large request keeps
//! a small one waiting for a batch, not for all of its own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{EmbeddingInput, Embeddings, TextEmbedding, Work};
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// The embedding model of this process.
static TEXT_EMBEDDING: OnceCell<TextEmbedding> = OnceCell::new();

/// How a model is loaded when it is first needed.
pub type Loader = dyn Fn() -> Result<TextEmbedding> + Send + Sync;

/// A handle to the embedding thread. Cheap to clone; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Embedder {
    cell: &'static OnceCell<TextEmbedding>,
    sender: mpsc::Sender<Job>,
    /// One for each request that waits or runs.
    places: Arc<Semaphore>,
    max_requests: usize,
    stopped: watch::Sender<bool>,
}

/// A request in the hands of the thread.
struct Job {
    stage: Stage,
    reply: oneshot::Sender<Result<Embeddings>>,
    arrived: Instant,
    /// How long it waited for its first turn.
    queue: Option<Duration>,
    /// How long its turns took.
    compute: Duration,
    /// Given back when the job is dropped, whatever becomes of it.
    _place: OwnedSemaphorePermit,
}

/// How far a request has come.
enum Stage {
    New { inputs: Vec<EmbeddingInput>, dimensions: Option<usize> },
    Started(Work),
}

impl Embedder {
    /// Starts the thread; `loader` fills the process's singleton when the first request comes. At
    /// most `max_requests` wait or run at once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(loader: Box<Loader>, max_requests: usize) -> Result<Self> {
        Self::spawn_on(&TEXT_EMBEDDING, loader, max_requests)
    }

    /// As [`Embedder::spawn`], with a cell of the caller's for the model.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_on(
        cell: &'static OnceCell<TextEmbedding>,
        loader: Box<Loader>,
        max_requests: usize,
    ) -> Result<Self> {
        let (sender, arrivals) = mpsc::channel();
        thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || Worker { cell, loader, failed: None }.run(&arrivals))
            .map_err(|e| Error::internal(format!("cannot start the embedding thread: {e}")))?;
        let places = Arc::new(Semaphore::new(max_requests));
        Ok(Self { cell, sender, places, max_requests, stopped: watch::Sender::new(false) })
    }

    /// The model, if it has been loaded.
    pub fn loaded(&self) -> Option<&'static TextEmbedding> {
        self.cell.get()
    }

    /// Embeds `inputs`, each vector cut to `dimensions` where given. Dropping the future cancels
    /// what is not computed yet.
    ///
    /// # Errors
    /// As [`TextEmbedding::embed`]; and when the queue is full, the model cannot be loaded, or the
    /// server ends.
    pub async fn embed(&self, inputs: Vec<EmbeddingInput>, dimensions: Option<usize>) -> Result<Embeddings> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::Overloaded { retry_after: Duration::from_secs(1) },
                format!(
                    "{} embedding requests are queued, and that is the limit; try again later",
                    self.max_requests
                ),
            )
        })?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            stage: Stage::New { inputs, dimensions },
            reply,
            arrived: Instant::now(),
            queue: None,
            compute: Duration::ZERO,
            _place: place,
        };
        let died = || {
            Error::new(
                Kind::Unavailable,
                "the embedding thread has stopped after a fault; restart the server",
            )
        };
        self.sender.send(job).map_err(|_| died())?;
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            // Leaving drops the receiver, and the thread drops what nobody waits for.
            _ = stopped.wait_for(|&stopped| stopped) => {
                Err(Error::new(Kind::Unavailable, "the server is shutting down; send the request again"))
            }
            answer = answer => answer.map_err(|_| died())?,
        }
    }

    /// Ends every request with an error, those to come too. For a shutdown that has waited long
    /// enough.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

/// The thread's state.
struct Worker {
    cell: &'static OnceCell<TextEmbedding>,
    loader: Box<Loader>,
    /// When the last try to load the model failed, and how.
    failed: Option<(Instant, Error)>,
}

impl Worker {
    fn run(mut self, arrivals: &mpsc::Receiver<Job>) {
        let mut queue = VecDeque::new();
        loop {
            let Some(job) = queue.pop_front().or_else(|| arrivals.recv().ok()) else { return };
            let unfinished = self.turn(job);
            // Those that came meanwhile are before it.
            queue.extend(arrivals.try_iter());
            queue.extend(unfinished);
        }
    }

    /// Computes one batch of a request and answers it if that was its last; a panic costs this
    /// request only.
    fn turn(&mut self, mut job: Job) -> Option<Job> {
        if job.reply.is_closed() {
            return None;
        }
        let started = Instant::now();
        let queue = *job.queue.get_or_insert_with(|| job.arrived.elapsed());
        let (stage, arrived) = (job.stage, job.arrived);
        let work = catch_unwind(AssertUnwindSafe(|| self.advance(stage, arrived)))
            .unwrap_or_else(|_| Err(Error::internal("embedding failed; the fault was logged")));
        let compute = job.compute + started.elapsed();
        let answer = match work {
            Ok(work) if !work.is_done() => {
                return Some(Job { stage: Stage::Started(work), compute, ..job });
            }
            Ok(Work { vectors, n_tokens, .. }) => {
                metrics::counter!(telemetry::EMBEDDED_TEXTS).increment(vectors.len() as u64);
                metrics::counter!(telemetry::EMBEDDED_TOKENS).increment(n_tokens as u64);
                Ok(Embeddings { vectors, n_tokens, queue, compute })
            }
            Err(e) => Err(e),
        };
        // The client may have gone away meanwhile.
        let _ = job.reply.send(answer);
        None
    }

    fn advance(&mut self, stage: Stage, arrived: Instant) -> Result<Work> {
        let model = self.model(arrived)?;
        let mut work = match stage {
            Stage::New { inputs, dimensions } => model.prepare(inputs, dimensions)?,
            Stage::Started(work) => work,
        };
        model.embed_batch(&mut work)?;
        Ok(work)
    }

    /// The model, loaded now if it is not yet. A load that fails answers every request that came
    /// before it ended; later ones try again.
    fn model(&mut self, arrived: Instant) -> Result<&'static TextEmbedding> {
        if let Some((when, e)) = &self.failed
            && arrived < *when
        {
            return Err(e.clone());
        }
        self.cell
            .get_or_try_init(&*self.loader)
            .inspect_err(|e| self.failed = Some((Instant::now(), e.clone())))
    }
}
