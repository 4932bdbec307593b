//! The disk tier of the embedding cache. It survives restarts and crashes.
//!
//! One file of the embedded key-value store redb, whose transactions are atomic and durable. Requests read
//! concurrently; one thread writes, and merges all queued writes into one transaction. After a failure, such as a full
//! disk, the file is closed, nothing is found in it, and writes are dropped until it can be opened again.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use super::super::entry::{CacheHit, Embedding, EmbeddingKey};
use crate::config::DiskCacheConfig;
use crate::error::{Error, Kind, Result};
use crate::store::{is_damage, open_database, unix_ms};
use crate::telemetry;

/// When the embedding was computed in milliseconds since 1970, the sequence number of its last use, the tokens
/// of the input, and the values as little-endian float32.
type VectorRow<'a> = (u64, u64, u32, &'a [u8]);
/// Rows by key.
const VECTORS: TableDefinition<&[u8; 32], VectorRow> = TableDefinition::new("vectors");
/// Keys by the sequence number of their last use: the first is the least recently used.
const RECENCY: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("uses");
/// One row: the bytes of all vectors.
const SIZE: TableDefinition<(), u64> = TableDefinition::new("size");

/// Memory for pages of the file. Small, since frequent keys are in the memory tier.
const PAGE_CACHE_BYTES: usize = 16 << 20;
/// Requests whose writes may be queued; those of further requests are dropped.
const MAX_QUEUED_REQUESTS: usize = 64;
/// Writes after which a transaction takes no further request: until it is committed, the file holds the pages
/// that it changes twice.
const MAX_TRANSACTION_WRITES: usize = 512;

/// How long the cache is left alone after a failure; doubled by each further one, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A disk cache for the embeddings of all models. Dropping it waits until queued writes are committed.
pub struct DiskCache {
    file: Arc<OpenFile>,
    sender: Option<SyncSender<Vec<CacheWrite>>>,
    writer: Option<JoinHandle<()>>,
}

/// The file while it is open; `None` after a failure.
type OpenFile = RwLock<Option<VectorFile>>;

/// Opens the file again after a failure.
type FileOpener = dyn Fn() -> Result<VectorFile> + Send;

/// The writer thread: commits queued writes, and opens the file again after a failure.
struct CacheWriter {
    file: Arc<OpenFile>,
    open: Box<FileOpener>,
    /// The pause after the latest failure; zero if the latest attempt succeeded.
    pause: Duration,
    first_pause: Duration,
    /// Writes before this moment are dropped.
    next_attempt: Instant,
}

/// A queued write.
pub enum CacheWrite {
    /// Stores a newly computed embedding.
    Insert(EmbeddingKey, CacheHit),
    /// Marks an embedding as the most recently used.
    Touch(EmbeddingKey),
}

/// The database file: vectors by key, and their LRU order.
struct VectorFile {
    database: Database,
    max_bytes: u64,
    time_to_live: Duration,
}

impl DiskCache {
    /// Opens or creates the cache in a folder. A damaged file is renamed, and a new one is begun. On a full disk the
    /// cache is opened later.
    ///
    /// # Errors
    /// When another process has it open, or the file system refuses.
    pub fn open(config: &DiskCacheConfig) -> Result<Self> {
        let file = match VectorFile::open(config) {
            Ok(file) => Some(file),
            Err(CacheOpenError { error, is_full: true }) => {
                tracing::warn!(%error, "the embedding cache is opened later, once the disk has room");
                None
            }
            Err(CacheOpenError { error, is_full: false }) => return Err(error),
        };
        let config = config.clone();
        Self::start(file, Box::new(move || VectorFile::open(&config).map_err(|e| e.error)), FIRST_PAUSE)
    }

    /// Starts the writer thread of a cache that is open, or will be opened after a pause.
    fn start(file: Option<VectorFile>, open: Box<FileOpener>, first_pause: Duration) -> Result<Self> {
        let file = Arc::new(RwLock::new(file));
        let (sender, writes) = mpsc::sync_channel(MAX_QUEUED_REQUESTS);
        let writer = CacheWriter {
            file: file.clone(),
            open,
            pause: Duration::ZERO,
            first_pause,
            next_attempt: Instant::now(),
        };
        let writer = thread::Builder::new()
            .name("embedding-cache".to_owned())
            .spawn(move || writer.run(&writes))
            .map_err(|e| Error::internal(format!("cannot start the embedding cache's writer thread: {e}")))?;
        Ok(Self { file, sender: Some(sender), writer: Some(writer) })
    }

    /// The embeddings under `keys` that have not expired at the time `now`.
    pub fn get_all(&self, keys: &[&EmbeddingKey], now: SystemTime) -> Vec<Option<CacheHit>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let found = file.as_ref().map(|file| file.get_all(keys, now));
        drop(file);
        let nothing = || vec![None; keys.len()];
        match found {
            None => nothing(),
            Some(Ok(found)) => {
                let hits = keys.iter().zip(&found).filter(|(_, found)| found.is_some());
                let touched: Vec<CacheWrite> = hits.map(|(key, _)| CacheWrite::Touch(**key)).collect();
                if !touched.is_empty() {
                    self.enqueue(touched);
                }
                found
            }
            Some(Err(e)) => {
                tracing::debug!(error = %e, "cannot read the embedding cache on disk");
                // The writer will find the file unusable, and open it again.
                self.enqueue(Vec::new());
                nothing()
            }
        }
    }

    /// Queues writes for the writer thread. They are dropped when its queue is full: a cache may forget.
    pub fn enqueue(&self, writes: Vec<CacheWrite>) {
        if let Some(sender) = &self.sender
            && sender.try_send(writes).is_err()
        {
            tracing::debug!("the embedding cache on disk does not keep up; writes were dropped");
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.sender = None;
        // A writer that panicked has been logged.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

impl CacheWriter {
    /// Commits queued writes until the channel closes.
    fn run(mut self, queue: &Receiver<Vec<CacheWrite>>) {
        while let Ok(mut writes) = queue.recv() {
            while writes.len() < MAX_TRANSACTION_WRITES
                && let Ok(more) = queue.try_recv()
            {
                writes.extend(more);
            }
            if Instant::now() < self.next_attempt {
                continue;
            }
            // A panic of the store must not end the thread.
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(writes)));
            let result = committed.unwrap_or_else(|_| Err("the store panicked; see the log".to_owned()));
            self.record(result);
        }
    }

    /// Commits writes, to a file that is opened first if it is not open.
    fn commit(&self, writes: Vec<CacheWrite>) -> Result<(), String> {
        let open = self.file.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*open {
            return file.commit(writes, SystemTime::now()).map_err(|e| e.to_string());
        }
        drop(open);
        let file = (self.open)().map_err(|e| e.to_string())?;
        let committed = file.commit(writes, SystemTime::now()).map_err(|e| e.to_string());
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = Some(file);
        committed
    }

    /// After a failure, closes the file and waits longer each time.
    fn record(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) if self.pause.is_zero() => {}
            Ok(()) => {
                tracing::info!("the embedding cache on disk works again");
                self.pause = Duration::ZERO;
            }
            Err(e) => {
                metrics::counter!(telemetry::EMBEDDING_CACHE_FAILURES).increment(1);
                self.pause = (self.pause * 2).clamp(self.first_pause, MAX_PAUSE.max(self.first_pause));
                self.next_attempt = Instant::now() + self.pause;
                tracing::warn!(
                    error = e,
                    "cannot write the embedding cache, so nothing is stored there for now; check the disk (next \
                     attempt in {} s)",
                    self.pause.as_secs()
                );
                // redb refuses everything after a failed write until the file is opened again.
                let failed = self.file.write().unwrap_or_else(PoisonError::into_inner).take();
                let _ = catch_unwind(AssertUnwindSafe(|| drop(failed)));
            }
        }
    }
}

/// The failure to open the file.
struct CacheOpenError {
    error: Error,
    /// Whether the disk was full, which may pass.
    is_full: bool,
}

impl VectorFile {
    fn open(config: &DiskCacheConfig) -> Result<Self, CacheOpenError> {
        let DiskCacheConfig { folder, max_bytes, time_to_live } = config;
        let failed = |action: &str, e: &dyn std::error::Error, kind: Option<io::ErrorKind>| CacheOpenError {
            error: Error::new(
                Kind::Config,
                format!(
                    "cannot {action} the embedding cache in {}: {e}; pass a writable folder as \
                     --embedding-cache-dir, or leave the option out",
                    folder.display()
                ),
            ),
            is_full: kind.is_some_and(is_full),
        };
        fs::create_dir_all(folder).map_err(|e| failed("create", &e, Some(e.kind())))?;
        let path = folder.join("vectors.redb");
        let database = match open_database(&path, PAGE_CACHE_BYTES) {
            Err(e) if is_damage(&e) => {
                let aside = path.with_extension("damaged");
                tracing::warn!(
                    error = %e,
                    "the embedding cache is damaged; starting an empty one and keeping the old file as {}",
                    aside.display()
                );
                fs::rename(&path, &aside).map_err(|e| failed("rename", &e, Some(e.kind())))?;
                open_database(&path, PAGE_CACHE_BYTES)
            }
            other => other,
        };
        let database = database.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => CacheOpenError {
                error: Error::new(
                    Kind::Config,
                    format!(
                        "another server uses the embedding cache in {}; give each server its own \
                         --embedding-cache-dir",
                        folder.display()
                    ),
                ),
                is_full: false,
            },
            DatabaseError::Storage(StorageError::Io(e)) => failed("open", &e, Some(e.kind())),
            e => failed("open", &e, None),
        })?;
        Self::new(database, *max_bytes, *time_to_live).map_err(|e| match &e {
            redb::Error::Io(io) => failed("write", &e, Some(io.kind())),
            _ => failed("write", &e, None),
        })
    }

    /// Creates the tables of a database that lacks them.
    fn new(database: Database, max_bytes: u64, time_to_live: Duration) -> Result<Self, redb::Error> {
        let file = Self { database, max_bytes, time_to_live };
        // An empty commit creates the tables.
        file.commit(Vec::new(), SystemTime::now())?;
        Ok(file)
    }

    fn get_all(&self, keys: &[&EmbeddingKey], now: SystemTime) -> Result<Vec<Option<CacheHit>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let vectors = transaction.open_table(VECTORS)?;
        let get = |key: &&EmbeddingKey| {
            let Some(row) = vectors.get(key.bytes())? else { return Ok(None) };
            let (computed_ms, _, n_tokens, bytes) = row.value();
            if self.is_expired(computed_ms, now) {
                return Ok(None);
            }
            let values = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let embedding = Arc::new(Embedding { values, n_tokens: n_tokens as usize });
            Ok(Some(CacheHit { embedding, computed_at: UNIX_EPOCH + Duration::from_millis(computed_ms) }))
        };
        keys.iter().map(get).collect()
    }

    /// Whether an embedding computed at `computed_ms` is past its time to live.
    fn is_expired(&self, computed_ms: u64, now: SystemTime) -> bool {
        let age = Duration::from_millis(unix_ms(now).saturating_sub(computed_ms));
        age >= self.time_to_live
    }

    /// Applies all writes in one transaction, and evicts what has expired or exceeds the byte budget.
    fn commit(&self, writes: Vec<CacheWrite>, now: SystemTime) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut tables = VectorTables {
                vectors: transaction.open_table(VECTORS)?,
                recency: transaction.open_table(RECENCY)?,
                n_bytes: 0,
            };
            let mut size = transaction.open_table(SIZE)?;
            tables.n_bytes = size.get(())?.map_or(0, |n| n.value());
            for write in writes {
                match write {
                    CacheWrite::Insert(key, CacheHit { embedding, computed_at }) => {
                        let values: Vec<u8> = embedding.values.iter().flat_map(|x| x.to_le_bytes()).collect();
                        tables.remove(key.bytes())?;
                        let n_tokens = embedding.n_tokens as u32;
                        tables.insert(key.bytes(), unix_ms(computed_at), n_tokens, &values)?;
                    }
                    CacheWrite::Touch(key) => {
                        if let Some((computed_ms, n_tokens, values)) = tables.remove(key.bytes())? {
                            tables.insert(key.bytes(), computed_ms, n_tokens, &values)?;
                        }
                    }
                }
            }
            while let Some((key, computed_ms)) = tables.least_recently_used()?
                && (tables.n_bytes > self.max_bytes || self.is_expired(computed_ms, now))
            {
                tables.remove(&key)?;
            }
            size.insert((), tables.n_bytes)?;
            metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES, "tier" => "disk").set(tables.n_bytes as f64);
        }
        transaction.commit()?;
        Ok(())
    }
}

/// The tables of one write transaction, kept consistent with each other.
struct VectorTables<'t> {
    vectors: Table<'t, &'static [u8; 32], VectorRow<'static>>,
    recency: Table<'t, u64, &'static [u8; 32]>,
    n_bytes: u64,
}

impl VectorTables<'_> {
    fn insert(
        &mut self,
        key: &[u8; 32],
        computed_ms: u64,
        n_tokens: u32,
        values: &[u8],
    ) -> Result<(), StorageError> {
        let use_number = self.recency.last()?.map_or(0, |(last, _)| last.value() + 1);
        self.vectors.insert(key, (computed_ms, use_number, n_tokens, values))?;
        self.recency.insert(use_number, key)?;
        self.n_bytes += row_bytes(values);
        Ok(())
    }

    /// Removes a row; returns its time of computation, tokens and values.
    fn remove(&mut self, key: &[u8; 32]) -> Result<Option<(u64, u32, Vec<u8>)>, StorageError> {
        let Some(row) = self.vectors.remove(key)? else { return Ok(None) };
        let (computed_ms, use_number, n_tokens, values) = row.value();
        self.recency.remove(use_number)?;
        self.n_bytes -= row_bytes(values);
        Ok(Some((computed_ms, n_tokens, values.to_vec())))
    }

    /// The least recently used key, and when its embedding was computed.
    fn least_recently_used(&self) -> Result<Option<([u8; 32], u64)>, StorageError> {
        let Some((_, key)) = self.recency.first()? else { return Ok(None) };
        let computed_ms = self.vectors.get(key.value())?.map_or(0, |row| row.value().0);
        Ok(Some((*key.value(), computed_ms)))
    }
}

/// An upper estimate of a row's bytes on disk: pages are half full at worst, and the pages of large vectors
/// have sizes that are powers of two.
fn row_bytes(values: &[u8]) -> u64 {
    2 * (values.len() as u64 + 128)
}

/// Whether a disk is full, or the share of it that this user or process may fill.
fn is_full(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::embeddings::entry::{EmbeddingInput, KeyScope};

    fn config(folder: &Path) -> DiskCacheConfig {
        DiskCacheConfig {
            folder: folder.to_owned(),
            max_bytes: 1 << 30,
            time_to_live: Duration::from_secs(60),
        }
    }

    fn open(folder: &Path) -> VectorFile {
        open_config(&config(folder))
    }

    fn open_config(config: &DiskCacheConfig) -> VectorFile {
        VectorFile::open(config).map_err(|e| e.error).unwrap()
    }

    /// The key of a text of a model.
    fn key(model: u8, text: usize) -> EmbeddingKey {
        let scope =
            KeyScope { model: &[model; 32], tenant: "", truncate: false, max_text_tokens: None, prefix: "" };
        scope.keys(&[EmbeddingInput::Text(text.to_string().into())]).remove(0)
    }

    /// An embedding whose values identify its text.
    fn embedding(text: usize, n: usize) -> Arc<Embedding> {
        Arc::new(Embedding { values: (0..n).map(|i| (text * 31 + i) as f32).collect(), n_tokens: text })
    }

    fn insert(text: usize, n: usize, computed_at: SystemTime) -> CacheWrite {
        CacheWrite::Insert(key(0, text), CacheHit { embedding: embedding(text, n), computed_at })
    }

    /// The texts that are cached; their embeddings are checked.
    fn cached(file: &VectorFile, texts: &[usize], n: usize, now: SystemTime) -> Vec<usize> {
        let keys: Vec<EmbeddingKey> = texts.iter().map(|&text| key(0, text)).collect();
        let found = file.get_all(&keys.iter().collect::<Vec<_>>(), now).unwrap();
        let hits = texts.iter().zip(found).filter_map(|(&text, found)| Some((text, found?.embedding)));
        hits.map(|(text, found)| {
            assert_eq!(found, embedding(text, n));
            text
        })
        .collect()
    }

    #[test]
    fn entries_survive_a_restart_and_expire() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let cache = DiskCache::open(&config(folder.path())).unwrap();
        cache.enqueue(vec![insert(1, 5, now), insert(2, 5, at(30))]);
        drop(cache);
        let cache = DiskCache::open(&config(folder.path())).unwrap();
        let (one, two, other) = (key(0, 1), key(0, 2), key(1, 1));
        let found = cache.get_all(&[&one, &other, &two], at(59));
        let first = found[0].as_ref().unwrap();
        assert_eq!(first.embedding, embedding(1, 5));
        assert_eq!(unix_ms(first.computed_at), unix_ms(now), "a read does not extend the time to live");
        assert!(found[1].is_none() && found[2].is_some(), "models do not share entries");
        let found = cache.get_all(&[&one, &two], at(60));
        assert!(found[0].is_none() && found[1].is_some());
        drop(cache);
        let file = open(folder.path());
        file.commit(Vec::new(), at(90)).unwrap();
        let transaction = file.database.begin_read().unwrap();
        assert!(
            transaction.open_table(VECTORS).unwrap().first().unwrap().is_none(),
            "expired entries are evicted"
        );
        assert_eq!(transaction.open_table(SIZE).unwrap().get(()).unwrap().unwrap().value(), 0);
    }

    #[test]
    fn the_least_recently_used_is_evicted_and_the_disk_budget_is_kept() {
        let now = SystemTime::now();
        for n in [1, 384, 1024] {
            let folder = tempfile::tempdir().unwrap();
            let max_bytes = 8 << 20;
            let file = open_config(&DiskCacheConfig { max_bytes, ..config(folder.path()) });
            let n_texts = 3 * max_bytes as usize / (2 * (4 * n + 128));
            let texts: Vec<usize> = (0..n_texts).collect();
            for few in texts.chunks(300) {
                let mut writes: Vec<CacheWrite> = few.iter().map(|&text| insert(text, n, now)).collect();
                writes.push(CacheWrite::Touch(key(0, 7)));
                writes.push(CacheWrite::Touch(key(0, n_texts + 1)));
                file.commit(writes, now).unwrap();
            }
            let left = cached(&file, &texts, n, now);
            assert_eq!(left[0], 7, "it was used throughout");
            assert!(
                left[1..].windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "the others were evicted in order"
            );
            assert!((n_texts / 4..n_texts / 2).contains(&left.len()), "{} of {n_texts}", left.len());
            let on_disk = fs::metadata(folder.path().join("vectors.redb")).unwrap().blocks() * 512;
            assert!(on_disk < max_bytes + (4 << 20), "{on_disk} bytes with vectors of {n}");
        }
    }

    /// The folder that [`writes_until_it_is_killed`] writes to.
    const FOLDER: &str = "PREDICT_OTRON_TEST_FOLDER";

    #[test]
    #[ignore = "run by the next test, in a process of its own"]
    fn writes_until_it_is_killed() {
        let file = open(Path::new(&env::var(FOLDER).unwrap()));
        for text in (0..).step_by(4) {
            let writes = (text..text + 4).map(|text| insert(text, 384, SystemTime::now())).collect();
            file.commit(writes, SystemTime::now()).unwrap();
            println!("\nwritten {}", text + 4);
        }
    }

    #[test]
    fn a_kill_at_any_moment_loses_no_committed_entry() {
        let folder = tempfile::tempdir().unwrap();
        for n_lines in [1, 2, 7, 40, 111] {
            let name = "embeddings::cache::disk::tests::writes_until_it_is_killed";
            let mut child = Command::new(env::current_exe().unwrap())
                .args([name, "--exact", "--ignored", "--nocapture"])
                .env(FOLDER, folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let written = lines.filter_map(|line| line.strip_prefix("written ")?.parse::<usize>().ok());
            let n_written = written.take(n_lines).last().expect("it writes");
            child.kill().unwrap();
            child.wait().unwrap();
            let file = open(folder.path());
            let texts: Vec<usize> = (0..n_written + 400).collect();
            let left = cached(&file, &texts, 384, SystemTime::now());
            assert!(
                left.len() >= n_written && left[n_written - 1] == n_written - 1,
                "{left:?} of {n_written}"
            );
            assert_eq!(left.len() % 4, 0, "transactions are atomic");
        }
    }

    #[test]
    fn a_damaged_file_is_renamed() {
        let whole = {
            let folder = tempfile::tempdir().unwrap();
            let file = open(folder.path());
            file.commit(
                (0..200).map(|text| insert(text, 20, SystemTime::now())).collect(),
                SystemTime::now(),
            )
            .unwrap();
            drop(file);
            fs::read(folder.path().join("vectors.redb")).unwrap()
        };
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            bytes
        };
        let damaged =
            [vec![1; 100], vec![0; 5000], vec![9; 50_000], whole[..whole.len() / 3].to_vec(), flipped(3)];
        // The flipped byte may be in a used page or in an unused one; the cache must be sound after either.
        for bytes in damaged.into_iter().chain((0..whole.len()).step_by(997).map(flipped)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("vectors.redb"), &bytes).unwrap();
            let file = open(folder.path());
            let left = cached(&file, &(0..200).collect::<Vec<_>>(), 20, SystemTime::now());
            let aside = folder.path().join("vectors.damaged");
            match left.len() {
                0 => assert_eq!(fs::read(aside).unwrap(), bytes),
                n => assert!(n == 200 && !aside.exists()),
            }
            file.commit(vec![insert(1, 20, SystemTime::now())], SystemTime::now()).unwrap();
            assert_eq!(cached(&file, &[1], 20, SystemTime::now()), [1]);
        }
    }

    /// A store in memory whose disk can be full.
    #[derive(Debug)]
    struct FullDisk {
        store: Arc<InMemoryBackend>,
        is_full: Arc<AtomicBool>,
    }

    impl FullDisk {
        fn check(&self) -> io::Result<()> {
            if self.is_full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for FullDisk {
        fn len(&self) -> io::Result<u64> {
            self.store.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.store.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.store.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.store.write(offset, data)
        }
    }

    #[test]
    fn a_full_disk_is_survived_and_tried_again() {
        let store = Arc::new(InMemoryBackend::new());
        let is_full = Arc::new(AtomicBool::new(false));
        let n_opened = Arc::new(AtomicUsize::new(0));
        let open = {
            let (is_full, n_opened) = (is_full.clone(), n_opened.clone());
            move || {
                n_opened.fetch_add(1, Ordering::SeqCst);
                let disk = FullDisk { store: store.clone(), is_full: is_full.clone() };
                let database = Database::builder().create_with_backend(disk);
                let database = database.map_err(|e| Error::internal(e.to_string()))?;
                VectorFile::new(database, 1 << 30, Duration::from_secs(60))
                    .map_err(|e| Error::internal(e.to_string()))
            }
        };
        let cache =
            DiskCache::start(Some(open().unwrap()), Box::new(open), Duration::from_millis(20)).unwrap();
        let now = SystemTime::now();
        let wait_for = |what: &str, is_done: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !is_done() {
                assert!(started.elapsed() < Duration::from_secs(20), "{what}");
                thread::sleep(Duration::from_millis(5));
            }
        };
        let has = |text: usize| cache.get_all(&[&key(0, text)], now)[0].is_some();
        cache.enqueue(vec![insert(1, 5, now)]);
        wait_for("the first write", &|| has(1));
        is_full.store(true, Ordering::SeqCst);
        wait_for("the attempts to open it", &|| {
            cache.enqueue(vec![insert(2, 5, now)]);
            n_opened.load(Ordering::SeqCst) >= 3
        });
        assert!(!has(1) && !has(2), "nothing is found while it is closed");
        is_full.store(false, Ordering::SeqCst);
        wait_for("a write after there is room again", &|| {
            cache.enqueue(vec![insert(3, 5, now)]);
            has(3)
        });
        assert!(has(1), "what was stored before is still there");
        assert!(!has(2));
    }

    #[test]
    fn a_full_disk_is_told_from_a_wrong_folder() {
        assert!(is_full(io::Error::from_raw_os_error(28).kind()), "ENOSPC");
        assert!(is_full(io::Error::from_raw_os_error(27).kind()), "EFBIG");
        assert!(!is_full(io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn an_unusable_folder_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let first = DiskCache::open(&config(folder.path())).unwrap();
        let error = DiskCache::open(&config(folder.path())).err().unwrap().to_string();
        assert!(
            error.contains("another server") && error.contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        drop(first);
        let error = DiskCache::open(&config(&folder.path().join("vectors.redb"))).err().unwrap().to_string();
        assert!(error.contains("--embedding-cache-dir"), "{error}");
    }
}
