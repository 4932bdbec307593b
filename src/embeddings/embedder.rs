//! The embedding thread and the handle to it.
//!
//! Texts of all requests that wait are computed together: a batch takes as many tokens of each as of the
//! others, so that a large request keeps a small one waiting for a batch, not for all of its own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use once_cell::sync::OnceCell;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::backend::Tokenized;
use super::batch::{Answer, EmbeddingRequest, Embeddings, Prepared};
use super::cache::{DiskCache, EmbeddingCache};
use super::text_embedding::{TEXT_EMBEDDING, TextEmbedding};
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// Bytes of texts that are tokenized sooner than another thread would have begun.
const FEW_BYTES: usize = 1024;

/// How a model is loaded when it is first needed.
pub type Loader = dyn Fn() -> Result<TextEmbedding> + Send + Sync;

/// Bounds of an [`Embedder`].
#[derive(Clone)]
pub struct EmbedderOptions {
    /// Requests that wait or run at once.
    pub max_requests: usize,
    /// Bytes of vectors that are kept for those who ask again; none are where there is no room.
    pub cache_bytes: usize,
    /// How long they are kept at most.
    pub cache_ttl: Duration,
    /// Where they are kept beyond that room and beyond the process, if anywhere.
    pub disk_cache: Option<Arc<DiskCache>>,
}

/// A handle to the embedding thread. Cheap to clone; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Embedder {
    cell: &'static OnceCell<TextEmbedding>,
    sender: mpsc::Sender<Order>,
    /// One for each request that waits or runs.
    places: Arc<Semaphore>,
    /// Permits to look up and tokenize: one per core.
    preparing: Arc<Semaphore>,
    max_requests: usize,
    cache: Option<Arc<EmbeddingCache>>,
    stopped: watch::Sender<bool>,
}

/// What the thread is asked for.
enum Order {
    /// The model, which is not loaded yet.
    Load {
        arrived: Instant,
        reply: oneshot::Sender<Result<&'static TextEmbedding>>,
    },
    Embed(Job),
}

/// The texts of a request in the hands of the thread.
struct Job {
    /// Those to come with their places in the request, the longest first: they are taken from the end, so that
    /// a batch has texts of like length.
    rest: Vec<(usize, Tokenized)>,
    vectors: Vec<Vec<f32>>,
    n_left: usize,
    reply: oneshot::Sender<Result<Computed>>,
    arrived: Instant,
    /// How long it waited for its first batch.
    queue: Option<Duration>,
    /// How long its batches took.
    compute: Duration,
    /// Given back when the job is dropped, whatever becomes of it.
    _place: Arc<OwnedSemaphorePermit>,
}

/// What the texts of a job have become.
#[derive(Default)]
struct Computed {
    vectors: Vec<Vec<f32>>,
    queue: Duration,
    compute: Duration,
}

impl Embedder {
    /// Starts the thread; `loader` fills the process's singleton when the first request comes.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(loader: Box<Loader>, options: EmbedderOptions) -> Result<Self> {
        Self::spawn_on(&TEXT_EMBEDDING, loader, options)
    }

    /// As [`Embedder::spawn`], with a cell of the caller's for the model.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_on(
        cell: &'static OnceCell<TextEmbedding>,
        loader: Box<Loader>,
        options: EmbedderOptions,
    ) -> Result<Self> {
        let EmbedderOptions { max_requests, cache_bytes, cache_ttl, disk_cache } = options;
        let is_cached = cache_bytes > 0 || disk_cache.is_some();
        let (sender, arrivals) = mpsc::channel();
        thread::Builder::new()
            .name("embedder".to_owned())
            .spawn(move || Worker { cell, loader, failed: None, queue: VecDeque::new() }.run(&arrivals))
            .map_err(|e| Error::internal(format!("cannot start the embedding thread: {e}")))?;
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            cell,
            sender,
            places: Arc::new(Semaphore::new(max_requests)),
            preparing: Arc::new(Semaphore::new(n_cores)),
            max_requests,
            cache: is_cached.then(|| Arc::new(EmbeddingCache::new(cache_bytes, cache_ttl, disk_cache))),
            stopped: watch::Sender::new(false),
        })
    }

    /// The model, if it has been loaded.
    pub fn loaded(&self) -> Option<&'static TextEmbedding> {
        self.cell.get()
    }

    /// The model, loaded now if it is not yet.
    ///
    /// # Errors
    /// When it cannot be loaded, or the server ends.
    pub async fn model(&self) -> Result<&'static TextEmbedding> {
        if let Some(model) = self.loaded() {
            return Ok(model);
        }
        let (reply, answer) = oneshot::channel();
        self.send(Order::Load { arrived: Instant::now(), reply })?;
        self.unless_stopped(answer).await
    }

    /// Embeds the texts of a request. Dropping the future cancels what is not computed yet.
    ///
    /// # Errors
    /// As [`TextEmbedding::embed`]; and when the queue is full, the model cannot be loaded, or the
    /// server ends.
    pub async fn embed(&self, request: EmbeddingRequest) -> Result<Embeddings> {
        let dimensions = request.dimensions;
        let answer = self.compute(request).await?;
        Embeddings::new(answer, dimensions)
    }

    /// What the texts of a request become, and how it was done.
    pub(super) async fn compute(&self, request: EmbeddingRequest) -> Result<Answer> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::Overloaded { retry_after: Duration::from_secs(1) },
                format!(
                    "{} embedding requests are queued, and that is the limit; try again later",
                    self.max_requests
                ),
            )
        })?;
        let place = Arc::new(place);
        let model = self.model().await?;
        let mut prepared = self.prepare(request, model, place.clone()).await?;
        let n_hits = prepared.n_hits;
        let n_tokens: Vec<usize> = prepared.texts.iter().map(|text| text.ids.len()).collect();
        let texts = std::mem::take(&mut prepared.texts);
        let computed = if texts.is_empty() { Computed::default() } else { self.run(texts, place).await? };
        let Computed { vectors, queue, compute } = computed;
        let embedded = prepared.finish(n_tokens, vectors, self.cache.as_deref(), SystemTime::now());
        Ok(Answer { embedded, n_hits, queue, compute })
    }

    /// Looks up and tokenizes; what takes long, on a thread that may take its time.
    async fn prepare(
        &self,
        request: EmbeddingRequest,
        model: &'static TextEmbedding,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Result<Prepared> {
        let reads_disk = self.cache.as_ref().is_some_and(|cache| cache.reads_disk());
        if request.n_bytes() <= FEW_BYTES && !reads_disk {
            return model.prepare(request, self.cache.as_deref(), SystemTime::now());
        }
        let permit = self.preparing.clone().acquire_owned().await;
        let cache = self.cache.clone();
        let work = move || {
            let _held = (permit, place);
            model.prepare(request, cache.as_deref(), SystemTime::now())
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::internal(format!("the request could not be prepared: {e}")))?
    }

    /// Has the thread compute texts.
    async fn run(&self, texts: Vec<Tokenized>, place: Arc<OwnedSemaphorePermit>) -> Result<Computed> {
        let (reply, answer) = oneshot::channel();
        let n_texts = texts.len();
        let mut rest: Vec<(usize, Tokenized)> = texts.into_iter().enumerate().collect();
        rest.sort_by_key(|(_, text)| std::cmp::Reverse(text.ids.len()));
        self.send(Order::Embed(Job {
            rest,
            vectors: vec![Vec::new(); n_texts],
            n_left: n_texts,
            reply,
            arrived: Instant::now(),
            queue: None,
            compute: Duration::ZERO,
            _place: place,
        }))?;
        self.unless_stopped(answer).await
    }

    fn send(&self, order: Order) -> Result<()> {
        self.sender.send(order).map_err(|_| died())
    }

    /// The thread's answer, unless the server ends before.
    async fn unless_stopped<T>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
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

fn died() -> Error {
    Error::new(Kind::Unavailable, "the embedding thread has stopped after a fault; restart the server")
}

/// The thread's state.
struct Worker {
    cell: &'static OnceCell<TextEmbedding>,
    loader: Box<Loader>,
    /// When the last try to load the model failed, and how.
    failed: Option<(Instant, Error)>,
    queue: VecDeque<Job>,
}

/// Texts that are computed together, each with its job's place in the queue and its own in the job.
type Batch = Vec<(usize, usize, Tokenized)>;

impl Worker {
    fn run(mut self, arrivals: &mpsc::Receiver<Order>) {
        loop {
            if self.queue.is_empty() {
                let Ok(order) = arrivals.recv() else { return };
                self.take(order);
            }
            for order in arrivals.try_iter() {
                self.take(order);
            }
            self.queue.retain(|job| !job.reply.is_closed());
            // A job comes only after the model.
            if let Some(model) = self.cell.get()
                && !self.queue.is_empty()
            {
                self.compute_batch(model);
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Embed(job) => self.queue.push_back(job),
            Order::Load { arrived, reply } => {
                let model = catch_unwind(AssertUnwindSafe(|| self.model(arrived)));
                let fault =
                    || Error::internal("the embedding model could not be loaded; the fault was logged");
                // The client may have gone away meanwhile.
                let _ = reply.send(model.unwrap_or_else(|_| Err(fault())));
            }
        }
    }

    /// Computes a batch, and answers the jobs of which it was the last.
    fn compute_batch(&mut self, model: &TextEmbedding) {
        let started = Instant::now();
        let batch = next_batch(&mut self.queue, model.batch_tokens());
        let jobs: Vec<usize> = {
            let mut jobs: Vec<usize> = batch.iter().map(|(job, ..)| *job).collect();
            jobs.dedup();
            jobs
        };
        for &job in &jobs {
            let job = &mut self.queue[job];
            job.queue.get_or_insert_with(|| started - job.arrived);
        }
        let mut failed = vec![None; self.queue.len()];
        match compute(model, &batch) {
            Ok(vectors) => self.hand_out(&batch, vectors),
            // A fault costs the request that it comes from.
            Err(_) if jobs.len() > 1 => {
                for &job in &jobs {
                    let own: Batch = batch.iter().filter(|(of, ..)| *of == job).cloned().collect();
                    match compute(model, &own) {
                        Ok(vectors) => self.hand_out(&own, vectors),
                        Err(e) => failed[job] = Some(e),
                    }
                }
            }
            Err(e) => jobs.iter().for_each(|&job| failed[job] = Some(e.clone())),
        }
        let took = started.elapsed();
        // Those that got nothing are the first next time.
        let mut served = VecDeque::new();
        for (idx, mut job) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            if jobs.contains(&idx) {
                job.compute += took;
            }
            match failed[idx].take() {
                // The client may have gone away meanwhile.
                Some(e) => drop(job.reply.send(Err(e))),
                None if job.n_left == 0 => {
                    let Job { vectors, queue, compute, .. } = job;
                    let computed = Computed { vectors, queue: queue.unwrap_or_default(), compute };
                    let _ = job.reply.send(Ok(computed));
                }
                None if jobs.contains(&idx) => served.push_back(job),
                None => self.queue.push_back(job),
            }
        }
        self.queue.append(&mut served);
    }

    fn hand_out(&mut self, batch: &Batch, vectors: Vec<Vec<f32>>) {
        let n_tokens: usize = batch.iter().map(|(_, _, text)| text.ids.len()).sum();
        metrics::counter!(telemetry::EMBEDDED_TEXTS).increment(batch.len() as u64);
        metrics::counter!(telemetry::EMBEDDED_TOKENS).increment(n_tokens as u64);
        for ((job, place, _), vector) in batch.iter().zip(vectors) {
            let job = &mut self.queue[*job];
            job.vectors[*place] = vector;
            job.n_left -= 1;
        }
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

/// One vector per text, all of them finite.
fn compute(model: &TextEmbedding, batch: &Batch) -> Result<Vec<Vec<f32>>> {
    let texts: Vec<&Tokenized> = batch.iter().map(|(_, _, text)| text).collect();
    catch_unwind(AssertUnwindSafe(|| model.compute(&texts)))
        .unwrap_or_else(|_| Err(Error::internal("embedding failed; the fault was logged")))
}

/// Takes texts of up to `max_tokens` out of the queue, in the order of their jobs: of each as much as of the
/// others, then what there is room for; at least one text.
fn next_batch(queue: &mut VecDeque<Job>, max_tokens: usize) -> Batch {
    let share = max_tokens / queue.len().max(1);
    let mut taken: Vec<(usize, usize, Tokenized)> = Vec::new();
    let mut n_tokens = 0;
    for most in [share, max_tokens] {
        for (idx, job) in queue.iter_mut().enumerate() {
            let mut n_own = 0;
            let fits = |own: usize, n: usize, all: usize, is_first: bool| {
                is_first || all + n <= max_tokens && (own == 0 || own + n <= most)
            };
            while let Some((place, text)) =
                job.rest.pop_if(|(_, text)| fits(n_own, text.ids.len(), n_tokens, n_tokens == 0))
            {
                n_own += text.ids.len();
                n_tokens += text.ids.len();
                taken.push((idx, place, text));
            }
        }
    }
    taken.sort_by_key(|(job, ..)| *job);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of jobs with texts of these lengths.
    fn queue(jobs: &[&[usize]]) -> VecDeque<Job> {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().map(Arc::new).unwrap();
        let job = |lengths: &&[usize]| {
            let text = |(place, &n): (usize, &usize)| {
                (place, Tokenized { text: None, ids: vec![0; n], n_first: None })
            };
            Job {
                rest: lengths.iter().enumerate().map(text).collect(),
                vectors: Vec::new(),
                n_left: lengths.len(),
                reply: oneshot::channel().0,
                arrived: Instant::now(),
                queue: None,
                compute: Duration::ZERO,
                _place: place.clone(),
            }
        };
        jobs.iter().map(job).collect()
    }

    /// Of each text of the next batch its job and its length.
    fn batch(queue: &mut VecDeque<Job>, max_tokens: usize) -> Vec<(usize, usize)> {
        next_batch(queue, max_tokens).iter().map(|(job, _, text)| (*job, text.ids.len())).collect()
    }

    #[test]
    fn a_batch_takes_of_each_job_as_much_as_of_the_others() {
        let mut jobs = queue(&[&[10; 50], &[10; 2], &[10; 50]]);
        let mut counts = [0; 3];
        batch(&mut jobs, 120).iter().for_each(|(job, _)| counts[*job] += 1);
        assert_eq!(counts, [6, 2, 4], "four for each, then what there is room for");
        let mut jobs = queue(&[&[10; 4], &[100], &[10; 4]]);
        assert_eq!(batch(&mut jobs, 60), [(0, 10), (0, 10), (0, 10), (0, 10), (2, 10), (2, 10)]);
    }

    #[test]
    fn a_batch_has_a_text_however_long_it_is() {
        let mut jobs = queue(&[&[500], &[3, 2]]);
        assert_eq!(batch(&mut jobs, 100), [(0, 500)]);
        assert_eq!(batch(&mut jobs, 100), [(1, 2), (1, 3)]);
        assert!(batch(&mut jobs, 100).is_empty());
        assert!(batch(&mut VecDeque::new(), 100).is_empty());
    }
}
