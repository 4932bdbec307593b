//! The runner of batches: a task for each batch, which starts the next line as soon as there is a place for one.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::line::{BatchLine, CheckedLines, LineReader, Unanswered, check_lines};
use super::record::{BatchApi, BatchCounts, BatchRecord, BatchState, CallResult, RESULTS_TTL};
use crate::error::{Error, Kind, Result, quote};
use crate::openai::batches::BatchError;
use crate::store::files::{FileRecord, FileStore, NewPart};
use crate::store::run_blocking;

/// Lines that are answered at the same time, of all batches.
const N_PLACES: usize = 8;

/// How often a line that waits for a quiet server looks again.
const QUIET_INTERVAL: Duration = Duration::from_millis(50);

/// How long a line waits that the server refused because it is too busy.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often expired files and batches are removed.
const CLEANING_INTERVAL: Duration = Duration::from_secs(60);

/// Lines without an answer whose results are written in one transaction.
const LINES_PER_WRITE: usize = 500;

/// The server that answers the lines of batches.
pub trait BatchServer: Send + Sync + 'static {
    /// Answers a request of a tenant as if it had been sent to `path`.
    fn call(&self, owner: &str, path: &str, body: String)
    -> Pin<Box<dyn Future<Output = CallResult> + Send>>;

    /// Whether anybody waits for the server, so that batches wait.
    fn is_busy(&self) -> bool;

    /// Whether the server is shutting down.
    fn is_stopping(&self) -> bool;

    /// The Unix time in seconds.
    fn now(&self) -> u64;
}

/// Bounds of batches.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Bytes of a line.
    pub line_bytes: usize,
}

/// Runs batches. Cheap to clone.
#[derive(Clone)]
pub struct BatchRunner {
    shared: Arc<RunnerShared>,
}

struct RunnerShared {
    files: Arc<FileStore>,
    server: Arc<dyn BatchServer>,
    limits: BatchLimits,
    places: Arc<Semaphore>,
    active: Mutex<HashMap<String, Arc<ActiveBatch>>>,
}

/// A batch that has not ended.
struct ActiveBatch {
    /// Held while a change is written.
    record: tokio::sync::Mutex<BatchRecord>,
    /// The record as it was last written.
    written: Mutex<BatchRecord>,
    cancel: watch::Sender<bool>,
}

/// Why a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Unanswered(Unanswered),
    /// Not at all: the server is shutting down, and the batch goes on when it starts again.
    Stopping,
}

/// The answer to a line; `None` if the server is shutting down.
type LineOutcome = (BatchLine, Option<CallResult>);

impl BatchRunner {
    /// Goes on with the batches in `files` that have not ended. What cannot be read is logged and left alone.
    pub fn start(files: Arc<FileStore>, server: Arc<dyn BatchServer>, limits: BatchLimits) -> Self {
        let places = Arc::new(Semaphore::new(N_PLACES));
        let runner = Self {
            shared: Arc::new(RunnerShared { files, server, limits, places, active: Mutex::default() }),
        };
        match runner.shared.unfinished() {
            Ok(unfinished) => unfinished.into_iter().for_each(|record| runner.spawn(record)),
            Err(e) => tracing::error!(error = %e, "the batches that have not ended cannot go on"),
        }
        let shared = Arc::downgrade(&runner.shared);
        tokio::spawn(async move {
            let mut ticks = interval(CLEANING_INTERVAL);
            loop {
                ticks.tick().await;
                let Some(shared) = shared.upgrade() else { return };
                if let Err(e) = run_blocking(move || shared.clean()).await {
                    tracing::error!(error = %e, "expired files could not be removed");
                }
            }
        });
        runner
    }

    /// Adds a batch and begins it.
    ///
    /// # Errors
    /// When its owner has too many, or the store cannot be written.
    pub async fn create(&self, record: BatchRecord) -> Result<()> {
        let (files, stored) = (self.shared.files.clone(), record.clone());
        run_blocking(move || files.add_job(&stored.owner, &stored.id, &to_json(&stored))).await?;
        self.spawn(record);
        Ok(())
    }

    /// A batch of a tenant in its present state.
    ///
    /// # Errors
    /// When there is none, or the store cannot be read.
    pub async fn find(&self, owner: &str, id: &str, api: BatchApi) -> Result<BatchRecord> {
        let active = self.shared.active().get(id).cloned();
        let found = match active {
            Some(batch) => Some(batch.snapshot()),
            None => {
                let (files, owner, id) = (self.shared.files.clone(), owner.to_owned(), id.to_owned());
                let record = run_blocking(move || files.job(&owner, &id)).await?;
                record.map(|record| parse_record(&record)).transpose()?
            }
        };
        found.filter(|record| record.owner == owner && record.api == api).ok_or_else(|| no_batch(id))
    }

    /// The batches of a tenant that were created by `api`, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self, owner: &str, api: BatchApi) -> Result<Vec<BatchRecord>> {
        let (files, for_owner) = (self.shared.files.clone(), owner.to_owned());
        let stored = run_blocking(move || files.jobs(&for_owner)).await?;
        let mut records = stored.iter().map(|record| parse_record(record)).collect::<Result<Vec<_>>>()?;
        records.retain(|record| record.api == api);
        let active = self.shared.active();
        for record in &mut records {
            if let Some(batch) = active.get(&record.id) {
                *record = batch.snapshot();
            }
        }
        records.sort_by(|a, b| (b.created_at(), &b.id).cmp(&(a.created_at(), &a.id)));
        Ok(records)
    }

    /// Begins to cancel a batch: no further request of it is answered.
    ///
    /// # Errors
    /// When there is none, it has ended, or the store cannot be written.
    pub async fn cancel(&self, owner: &str, id: &str, api: BatchApi) -> Result<BatchRecord> {
        let record = self.find(owner, id, api).await?;
        let active = self.shared.active().get(id).cloned();
        let Some(batch) = active.filter(|_| !record.state.is_final()) else {
            let message = format!("the batch `{}` has ended; it cannot be cancelled", quote(id));
            return Err(Error::new(Kind::InvalidRequest, message));
        };
        let now = self.shared.server.now();
        let enter = |record: &mut BatchRecord| {
            if !matches!(record.state, BatchState::Cancelling | BatchState::Finalizing)
                && !record.state.is_final()
            {
                record.enter(BatchState::Cancelling, now);
            }
        };
        self.shared.update(&batch, enter, Vec::new(), Vec::new()).await?;
        batch.cancel.send_replace(true);
        Ok(batch.snapshot())
    }

    /// Deletes a Messages batch that has ended, with its requests and results.
    ///
    /// # Errors
    /// When there is none, it has not ended, or the store cannot be written.
    pub async fn delete(&self, owner: &str, id: &str) -> Result<()> {
        let record = self.find(owner, id, BatchApi::Anthropic).await?;
        if !record.state.is_final() {
            let message = format!("the batch `{}` has not ended; cancel it first", quote(id));
            return Err(Error::new(Kind::InvalidRequest, message));
        }
        let shared = self.shared.clone();
        run_blocking(move || shared.remove(&record)).await
    }

    fn spawn(&self, record: BatchRecord) {
        let batch = Arc::new(ActiveBatch {
            written: Mutex::new(record.clone()),
            cancel: watch::Sender::new(record.state == BatchState::Cancelling),
            record: tokio::sync::Mutex::new(record),
        });
        let id = batch.snapshot().id;
        self.shared.active().insert(id.clone(), batch.clone());
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(e) = shared.run(&batch).await {
                tracing::error!(batch = id, error = %e, "a batch has failed");
                let error = BatchError {
                    code: "batch_failed".to_owned(),
                    message: e.public().map_or_else(|| e.to_string(), str::to_owned),
                    param: None,
                    line: None,
                };
                if let Err(e) = shared.finish(&batch, BatchState::Failed, vec![error]).await {
                    tracing::error!(batch = id, error = %e, "the failure of a batch could not be stored");
                }
            }
            shared.active().remove(&id);
        });
    }
}

impl ActiveBatch {
    fn snapshot(&self) -> BatchRecord {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RunnerShared {
    fn active(&self) -> MutexGuard<'_, HashMap<String, Arc<ActiveBatch>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record of a batch, and writes it with results and complete files in one transaction.
    async fn update(
        &self,
        batch: &ActiveBatch,
        change: impl FnOnce(&mut BatchRecord),
        parts: Vec<NewPart>,
        complete: Vec<FileRecord>,
    ) -> Result<()> {
        let mut record = batch.record.lock().await;
        let mut changed = record.clone();
        change(&mut changed);
        let (files, stored) = (self.files.clone(), changed.clone());
        run_blocking(move || {
            files.update_job(&stored.owner, &stored.id, &to_json(&stored), &parts, &complete)
        })
        .await?;
        *batch.written.lock().unwrap_or_else(PoisonError::into_inner) = changed.clone();
        *record = changed;
        Ok(())
    }

    /// Removes what belongs to no file or batch, and returns the batches that have not ended.
    fn unfinished(&self) -> Result<Vec<BatchRecord>> {
        let (mut kept, mut unfinished) = (Vec::new(), Vec::new());
        for record in self.files.all_jobs()? {
            let record = parse_record(&record)?;
            // The files of a Messages batch are never described.
            if !record.state.is_final() || record.api == BatchApi::Anthropic {
                for id in [&record.results.id, &record.failures.id, &record.input_file] {
                    kept.push((record.owner.as_str().into(), id.clone()));
                }
            }
            if !record.state.is_final() {
                unfinished.push(record);
            }
        }
        self.files.recover(&kept)?;
        Ok(unfinished)
    }

    /// Carries out a batch from wherever it is.
    async fn run(&self, batch: &Arc<ActiveBatch>) -> Result<()> {
        if batch.snapshot().state == BatchState::Validating {
            let (record, lines) = (batch.snapshot(), self.lines(&batch.snapshot()));
            let now = self.server.now();
            let CheckedLines { n_lines, model, mistakes } =
                run_blocking(move || check_lines(&record, lines)).await?;
            if !mistakes.is_empty() {
                return self.finish(batch, BatchState::Failed, mistakes).await;
            }
            let begin = |record: &mut BatchRecord| {
                record.counts.total = n_lines;
                record.model = model;
                if record.state == BatchState::Validating {
                    record.enter(BatchState::InProgress, now);
                }
            };
            self.update(batch, begin, Vec::new(), Vec::new()).await?;
        }
        let state = match self.answer_lines(batch).await? {
            End::Stopping => return Ok(()),
            End::Complete => BatchState::Completed,
            End::Unanswered(why) => {
                self.write_unanswered(batch, why).await?;
                match why {
                    Unanswered::Cancelled => BatchState::Cancelled,
                    Unanswered::Expired => BatchState::Expired,
                }
            }
        };
        self.finish(batch, state, Vec::new()).await
    }

    /// Answers the lines that have no result yet, as many at a time as there are places.
    async fn answer_lines(&self, batch: &Arc<ActiveBatch>) -> Result<End> {
        let record = batch.snapshot();
        let done = self.done_lines(&record).await?;
        let mut lines = self.lines(&record);
        let mut cancelled = batch.cancel.subscribe();
        let left = Duration::from_secs(record.expires_at.saturating_sub(self.server.now()));
        let mut deadline = std::pin::pin!(sleep(left));
        let mut running: JoinSet<LineOutcome> = JoinSet::new();
        let mut n_seen = 0;
        let mut next = None;
        let mut is_at_end = false;
        loop {
            while next.is_none() && !is_at_end {
                let (read, reader) = run_blocking(move || {
                    let read = lines.next_line()?;
                    Ok((read, lines))
                })
                .await?;
                lines = reader;
                match read {
                    Some((index, text)) => {
                        n_seen += 1;
                        if !done.contains(&index) {
                            let line = BatchLine::parse(&record, index, &text);
                            // All lines were checked, so one that is none now is cut off.
                            next = Some(line.map_err(|_| input_deleted())?);
                        }
                    }
                    None => is_at_end = true,
                }
            }
            if is_at_end && n_seen < record.counts.total {
                return Err(input_deleted());
            }
            let (has_next, is_running) = (next.is_some(), !running.is_empty());
            if !has_next && !is_running {
                return Ok(End::Complete);
            }
            tokio::select! {
                biased;
                () = is_set(&mut cancelled) => {
                    running.shutdown().await;
                    return Ok(End::Unanswered(Unanswered::Cancelled));
                }
                () = &mut deadline => {
                    running.shutdown().await;
                    return Ok(End::Unanswered(Unanswered::Expired));
                }
                Some(outcome) = running.join_next(), if is_running => {
                    let outcome = outcome.map_err(|e| Error::internal(format!("a line of a batch failed: {e}")))?;
                    let (line, Some(result)) = outcome else { return Ok(End::Stopping) };
                    self.record_result(batch, &line, &result).await?;
                }
                Ok(place) = self.places.clone().acquire_owned(), if has_next => {
                    if let Some(line) = next.take() {
                        running.spawn(answer(self.server.clone(), record.clone(), line, place));
                    }
                }
            }
        }
    }

    /// Writes the result of a line.
    async fn record_result(&self, batch: &ActiveBatch, line: &BatchLine, result: &CallResult) -> Result<()> {
        #[derive(Deserialize)]
        struct WithUsage {
            usage: Option<Value>,
        }
        let record = batch.snapshot();
        let bytes = line.result(record.api, result);
        let n_bytes = bytes.len() as u64;
        let usage = serde_json::from_slice::<WithUsage>(&result.body).ok().and_then(|body| body.usage);
        let is_failure = !result.is_success();
        let is_apart = is_failure && record.api == BatchApi::OpenAi;
        let file = if is_apart { record.failures.id } else { record.results.id };
        let part = NewPart { file, index: line.index, bytes };
        let count = |record: &mut BatchRecord| {
            let file = if is_apart { &mut record.failures } else { &mut record.results };
            file.n_bytes += n_bytes;
            let BatchCounts { succeeded, errored, .. } = &mut record.counts;
            *(if is_failure { errored } else { succeeded }) += 1;
            usage.iter().for_each(|usage| record.add_usage(usage));
        };
        self.update(batch, count, vec![part], Vec::new()).await
    }

    /// Writes results for the lines that have none.
    async fn write_unanswered(&self, batch: &ActiveBatch, why: Unanswered) -> Result<()> {
        let record = batch.snapshot();
        let done = self.done_lines(&record).await?;
        let n_left = record.counts.total.saturating_sub(done.len() as u64);
        // OpenAI's files have nothing of requests that were cancelled.
        if record.api == BatchApi::OpenAi && why == Unanswered::Cancelled {
            let count = |record: &mut BatchRecord| record.counts.cancelled = n_left;
            return self.update(batch, count, Vec::new(), Vec::new()).await;
        }
        let mut lines = self.lines(&record);
        loop {
            let (for_parse, skipped) = (record.clone(), done.clone());
            let (parts, reader) = run_blocking(move || {
                let mut parts = Vec::new();
                while parts.len() < LINES_PER_WRITE
                    && let Some((index, text)) = lines.next_line()?
                {
                    if !skipped.contains(&index)
                        && let Ok(line) = BatchLine::parse(&for_parse, index, &text)
                    {
                        let file = match for_parse.api {
                            BatchApi::OpenAi => for_parse.failures.id.clone(),
                            BatchApi::Anthropic => for_parse.results.id.clone(),
                        };
                        parts.push(NewPart { file, index, bytes: line.unanswered(for_parse.api, why) });
                    }
                }
                Ok((parts, lines))
            })
            .await?;
            if parts.is_empty() {
                return Ok(());
            }
            lines = reader;
            let n_bytes: u64 = parts.iter().map(|part| part.bytes.len() as u64).sum();
            let n_parts = parts.len() as u64;
            let count = |record: &mut BatchRecord| {
                match record.api {
                    BatchApi::OpenAi => record.failures.n_bytes += n_bytes,
                    BatchApi::Anthropic => record.results.n_bytes += n_bytes,
                }
                match why {
                    Unanswered::Cancelled => record.counts.cancelled += n_parts,
                    Unanswered::Expired => record.counts.expired += n_parts,
                }
            };
            self.update(batch, count, parts, Vec::new()).await?;
        }
    }

    /// Ends a batch in a state, with mistakes if it has failed, and makes files of its results.
    async fn finish(&self, batch: &ActiveBatch, state: BatchState, errors: Vec<BatchError>) -> Result<()> {
        let record = batch.snapshot();
        let now = self.server.now();
        let files = [(&record.results, "output"), (&record.failures, "error")];
        let described =
            files.into_iter().filter(|(file, _)| file.n_bytes > 0 && record.api == BatchApi::OpenAi);
        let complete = described.map(|(file, name)| FileRecord {
            id: file.id.clone(),
            filename: format!("{}_{name}.jsonl", record.id),
            purpose: "batch_output".to_owned(),
            n_bytes: file.n_bytes,
            created_at: now,
            expires_at: Some(now + record.results_ttl),
        });
        let finish = |record: &mut BatchRecord| {
            if state != BatchState::Failed {
                record.enter(BatchState::Finalizing, now);
            }
            record.enter(state, now);
            record.errors = errors;
        };
        self.update(batch, finish, Vec::new(), complete.collect()).await?;
        let BatchCounts { total, succeeded, errored, .. } = record.counts;
        tracing::info!(batch = record.id, total, succeeded, errored, state = ?state, "batch ended");
        Ok(())
    }

    fn lines(&self, record: &BatchRecord) -> LineReader {
        LineReader::new(self.files.clone(), record.input_file.clone(), self.limits.line_bytes)
    }

    /// The numbers of the lines that have a result.
    async fn done_lines(&self, record: &BatchRecord) -> Result<HashSet<u64>> {
        let (files, ids) = (self.files.clone(), [record.results.id.clone(), record.failures.id.clone()]);
        run_blocking(move || {
            let indices = ids.iter().map(|id| files.part_indices(id)).collect::<Result<Vec<_>>>()?;
            Ok(indices.into_iter().flatten().collect())
        })
        .await
    }

    /// Removes files that have expired, and batches that ended long ago.
    fn clean(&self) -> Result<()> {
        let now = self.server.now();
        self.files.remove_expired(now)?;
        for record in self.files.all_jobs()? {
            let record = parse_record(&record)?;
            if record.state.is_final() && record.created_at() + 2 * RESULTS_TTL <= now {
                self.remove(&record)?;
            }
        }
        Ok(())
    }

    /// Removes a batch that has ended, with the files that nobody else sees.
    fn remove(&self, record: &BatchRecord) -> Result<()> {
        if record.api == BatchApi::Anthropic {
            for id in [&record.input_file, &record.results.id, &record.failures.id] {
                self.files.remove_file(&record.owner, id)?;
            }
        }
        self.files.remove_job(&record.owner, &record.id)
    }
}

/// Waits until a flag is set.
async fn is_set(flag: &mut watch::Receiver<bool>) {
    // The sender lives as long as the batch.
    let _ = flag.wait_for(|is_set| *is_set).await;
}

/// Answers a line: waits until the server is quiet, and tries again while it is too busy.
async fn answer(
    server: Arc<dyn BatchServer>,
    batch: BatchRecord,
    line: BatchLine,
    place: OwnedSemaphorePermit,
) -> LineOutcome {
    let _place = place;
    loop {
        while server.is_busy() && !server.is_stopping() {
            sleep(QUIET_INTERVAL).await;
        }
        if server.is_stopping() {
            return (line, None);
        }
        let result = server.call(&batch.owner, &batch.endpoint, line.body.get().to_owned()).await;
        // What was answered while the server was shutting down may be an error because of that.
        if server.is_stopping() && !result.is_success() {
            return (line, None);
        }
        if !result.is_too_busy() {
            return (line, Some(result));
        }
        sleep(RETRY_INTERVAL).await;
    }
}

fn to_json(record: &BatchRecord) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

fn parse_record(json: &[u8]) -> Result<BatchRecord> {
    serde_json::from_slice(json)
        .map_err(|e| Error::internal(format!("the record of a batch cannot be read: {e}")))
}

/// The error of a batch whose requests are gone.
fn input_deleted() -> Error {
    let message = "the file with the requests was deleted before all were answered";
    Error::new(Kind::InvalidRequest, message)
}

fn no_batch(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no batch `{}`; it may have been removed", quote(id)))
}
