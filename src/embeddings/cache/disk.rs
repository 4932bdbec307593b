//! What became of texts before, on disk: it outlives the process, whatever ends that.
//!
//! One file of the embedded store redb, whose transactions are whole or not there at all. Requests read it
//! where they are; one thread writes, a transaction for all that came meanwhile.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use super::super::entry::{Embedded, Key, Known};
use crate::config::DiskCacheConfig;
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// By key: since when it is known in milliseconds since 1970, its last use, tokens of the text, and the numbers
/// as little-endian float32.
type Row<'a> = (u64, u64, u32, &'a [u8]);
const VECTORS: TableDefinition<&[u8; 32], Row> = TableDefinition::new("vectors");
/// Keys by the last use, which is counted: the first was used longest ago.
const USES: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("uses");
/// One row: bytes of all vectors.
const SIZE: TableDefinition<(), u64> = TableDefinition::new("size");

/// Memory for pages of the file; what is asked for often is in the memory tier.
const PAGE_CACHE_BYTES: usize = 16 << 20;
/// Requests whose vectors wait to be written; those of more are not kept.
const MAX_WAITING: usize = 64;
/// Vectors and uses of one transaction, beyond those of its last request: the pages that it changes are there
/// twice until it ends.
const MANY_NOTES: usize = 512;

/// The vectors of all models' texts. Dropping it waits until what came is written.
pub struct DiskCache {
    file: Arc<VectorFile>,
    sender: Option<SyncSender<Vec<Note>>>,
    writer: Option<JoinHandle<()>>,
}

/// What is to be written.
pub enum Note {
    /// A text that is known now.
    New(Key, Known),
    /// One that was asked for again.
    Used(Key),
}

/// Vectors by their keys, with those that were used longest ago in front.
struct VectorFile {
    database: Database,
    max_bytes: u64,
    time_to_live: Duration,
}

impl DiskCache {
    /// Opens the cache in a folder, or makes one there. A file that is damaged is put aside.
    ///
    /// # Errors
    /// When another process has it open, or the file system refuses.
    pub fn open(config: &DiskCacheConfig) -> Result<Self> {
        let file = Arc::new(VectorFile::open(config)?);
        let (sender, notes) = mpsc::sync_channel(MAX_WAITING);
        let of_writer = file.clone();
        let writer = thread::Builder::new()
            .name("embedding-cache".to_owned())
            .spawn(move || of_writer.write_all(&notes))
            .map_err(|e| Error::internal(format!("cannot start the thread of the embedding cache: {e}")))?;
        Ok(Self { file, sender: Some(sender), writer: Some(writer) })
    }

    /// What each text became, as far as it is known at the time `now`.
    pub fn get_all(&self, keys: &[&Key], now: SystemTime) -> Vec<Option<Known>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let found = self.file.get_all(keys, now).unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the embedding cache on disk cannot be read");
            vec![None; keys.len()]
        });
        let used = keys.iter().zip(&found).filter(|(_, found)| found.is_some());
        self.note(used.map(|(key, _)| Note::Used(**key)).collect());
        found
    }

    /// Has these written, soon; not while too many wait already, since a cache may forget.
    pub fn note(&self, notes: Vec<Note>) {
        if !notes.is_empty()
            && let Some(sender) = &self.sender
            && sender.try_send(notes).is_err()
        {
            tracing::debug!("the embedding cache on disk does not keep up");
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

impl VectorFile {
    fn open(config: &DiskCacheConfig) -> Result<Self> {
        let DiskCacheConfig { folder, max_bytes, time_to_live } = config;
        let refused = |doing: &str, e: &dyn std::error::Error| {
            Error::new(
                Kind::Config,
                format!(
                    "cannot {doing} the embedding cache in {}: {e}; name a folder that can be written with \
                     --embedding-cache-dir, or leave that out",
                    folder.display()
                ),
            )
        };
        fs::create_dir_all(folder).map_err(|e| refused("make", &e))?;
        let path = folder.join("vectors.redb");
        let database = match open_database(&path) {
            Err(e) if is_damage(&e) => {
                let aside = path.with_extension("damaged");
                tracing::warn!(
                    error = %e,
                    "the embedding cache is damaged and begins anew; the old file is {}", aside.display()
                );
                fs::rename(&path, &aside).map_err(|e| refused("put aside", &e))?;
                open_database(&path)
            }
            other => other,
        };
        let database = database.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::new(
                Kind::Config,
                format!(
                    "another server uses the embedding cache in {}; give each a folder of its own with \
                     --embedding-cache-dir",
                    folder.display()
                ),
            ),
            e => refused("open", &e),
        })?;
        let file = Self { database, max_bytes: *max_bytes, time_to_live: *time_to_live };
        // Makes the tables.
        file.commit(Vec::new(), SystemTime::now()).map_err(|e| refused("write", &e))?;
        Ok(file)
    }

    /// Writes what comes until nothing more can.
    fn write_all(&self, arrivals: &Receiver<Vec<Note>>) {
        while let Ok(mut notes) = arrivals.recv() {
            while notes.len() < MANY_NOTES
                && let Ok(more) = arrivals.try_recv()
            {
                notes.extend(more);
            }
            if let Err(e) = self.commit(notes, SystemTime::now()) {
                tracing::warn!(
                    error = %e,
                    "the embedding cache cannot be written, so nothing more is kept there; see to the disk and \
                     restart the server"
                );
                return;
            }
        }
    }

    fn get_all(&self, keys: &[&Key], now: SystemTime) -> Result<Vec<Option<Known>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let vectors = transaction.open_table(VECTORS)?;
        let get = |key: &&Key| {
            let Some(row) = vectors.get(key.bytes())? else { return Ok(None) };
            let (since, _, n_tokens, bytes) = row.value();
            if self.is_over(since, now) {
                return Ok(None);
            }
            let numbers = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let embedded = Arc::new(Embedded { numbers, n_tokens: n_tokens as usize });
            Ok(Some(Known { embedded, since: UNIX_EPOCH + Duration::from_millis(since) }))
        };
        keys.iter().map(get).collect()
    }

    /// Whether what is known since a time is too old.
    fn is_over(&self, since: u64, now: SystemTime) -> bool {
        let age = Duration::from_millis(milliseconds(now).saturating_sub(since));
        age >= self.time_to_live
    }

    /// Writes all of it or nothing, and takes out what is too old or too much.
    fn commit(&self, notes: Vec<Note>, now: SystemTime) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut rows = Rows {
                vectors: transaction.open_table(VECTORS)?,
                uses: transaction.open_table(USES)?,
                n_bytes: 0,
            };
            let mut size = transaction.open_table(SIZE)?;
            rows.n_bytes = size.get(())?.map_or(0, |n| n.value());
            for note in notes {
                match note {
                    Note::New(key, Known { embedded, since }) => {
                        let numbers: Vec<u8> =
                            embedded.numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                        rows.remove(key.bytes())?;
                        rows.insert(key.bytes(), milliseconds(since), embedded.n_tokens as u32, &numbers)?;
                    }
                    Note::Used(key) => {
                        if let Some((since, n_tokens, numbers)) = rows.remove(key.bytes())? {
                            rows.insert(key.bytes(), since, n_tokens, &numbers)?;
                        }
                    }
                }
            }
            while let Some((key, since)) = rows.oldest()?
                && (rows.n_bytes > self.max_bytes || self.is_over(since, now))
            {
                rows.remove(&key)?;
            }
            size.insert((), rows.n_bytes)?;
            metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES, "tier" => "disk").set(rows.n_bytes as f64);
        }
        transaction.commit()?;
        Ok(())
    }
}

/// The tables in a transaction, which change together.
struct Rows<'t> {
    vectors: Table<'t, &'static [u8; 32], Row<'static>>,
    uses: Table<'t, u64, &'static [u8; 32]>,
    n_bytes: u64,
}

impl Rows<'_> {
    fn insert(
        &mut self,
        key: &[u8; 32],
        since: u64,
        n_tokens: u32,
        numbers: &[u8],
    ) -> Result<(), StorageError> {
        let used = self.uses.last()?.map_or(0, |(used, _)| used.value() + 1);
        self.vectors.insert(key, (since, used, n_tokens, numbers))?;
        self.uses.insert(used, key)?;
        self.n_bytes += row_bytes(numbers);
        Ok(())
    }

    /// Takes a row out: since when it is known, tokens of the text, numbers.
    fn remove(&mut self, key: &[u8; 32]) -> Result<Option<(u64, u32, Vec<u8>)>, StorageError> {
        let Some(row) = self.vectors.remove(key)? else { return Ok(None) };
        let (since, used, n_tokens, numbers) = row.value();
        self.uses.remove(used)?;
        self.n_bytes -= row_bytes(numbers);
        Ok(Some((since, n_tokens, numbers.to_vec())))
    }

    /// What was used longest ago, and since when it is known.
    fn oldest(&self) -> Result<Option<([u8; 32], u64)>, StorageError> {
        let Some((_, key)) = self.uses.first()? else { return Ok(None) };
        let since = self.vectors.get(key.value())?.map_or(0, |row| row.value().0);
        Ok(Some((*key.value(), since)))
    }
}

/// Bytes of the disk that a row takes at most, about: pages are half full at worst, and those of large vectors
/// come in powers of two.
fn row_bytes(numbers: &[u8]) -> u64 {
    2 * (numbers.len() as u64 + 128)
}

/// Since 1970.
fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Whether the file is to blame, not the file system.
fn is_damage(e: &DatabaseError) -> bool {
    match e {
        DatabaseError::UpgradeRequired(_) | DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(e)) => {
            matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// Opens a file or makes it; checks every page of it, which takes a second for some gigabytes.
fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(PAGE_CACHE_BYTES).set_check_integrity_on_open(true).create(path)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::embeddings::entry::{EmbeddingInput, Fingerprint};

    fn config(folder: &Path) -> DiskCacheConfig {
        DiskCacheConfig {
            folder: folder.to_owned(),
            max_bytes: 1 << 30,
            time_to_live: Duration::from_secs(60),
        }
    }

    /// The key of a text of a model.
    fn key(model: u8, text: usize) -> Key {
        Key::new(&Fingerprint::from([model; 32]), &EmbeddingInput::Text(text.to_string()), false)
    }

    /// What a text has become: numbers that tell which it was.
    fn embedded(text: usize, n: usize) -> Arc<Embedded> {
        Arc::new(Embedded { numbers: (0..n).map(|i| (text * 31 + i) as f32).collect(), n_tokens: text })
    }

    fn new(text: usize, n: usize, since: SystemTime) -> Note {
        Note::New(key(0, text), Known { embedded: embedded(text, n), since })
    }

    /// The texts of which something is known, each of them right.
    fn known(file: &VectorFile, texts: &[usize], n: usize, now: SystemTime) -> Vec<usize> {
        let keys: Vec<Key> = texts.iter().map(|&text| key(0, text)).collect();
        let found = file.get_all(&keys.iter().collect::<Vec<_>>(), now).unwrap();
        let is_known = texts.iter().zip(found).filter_map(|(&text, found)| Some((text, found?.embedded)));
        is_known
            .map(|(text, found)| {
                assert_eq!(found, embedded(text, n));
                text
            })
            .collect()
    }

    #[test]
    fn what_is_known_outlives_the_process_until_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let cache = DiskCache::open(&config(folder.path())).unwrap();
        cache.note(vec![new(1, 5, now), new(2, 5, at(30))]);
        drop(cache);
        let cache = DiskCache::open(&config(folder.path())).unwrap();
        let (one, two, other) = (key(0, 1), key(0, 2), key(1, 1));
        let found = cache.get_all(&[&one, &other, &two], at(59));
        let first = found[0].as_ref().unwrap();
        assert_eq!(first.embedded, embedded(1, 5));
        assert_eq!(milliseconds(first.since), milliseconds(now), "being read does not make it younger");
        assert!(found[1].is_none() && found[2].is_some(), "another model's is another");
        let found = cache.get_all(&[&one, &two], at(60));
        assert!(found[0].is_none() && found[1].is_some());
        drop(cache);
        let file = VectorFile::open(&config(folder.path())).unwrap();
        file.commit(Vec::new(), at(90)).unwrap();
        let transaction = file.database.begin_read().unwrap();
        assert!(
            transaction.open_table(VECTORS).unwrap().first().unwrap().is_none(),
            "what is over is taken out"
        );
        assert_eq!(transaction.open_table(SIZE).unwrap().get(()).unwrap().unwrap().value(), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_disk_is_not_filled() {
        let now = SystemTime::now();
        for n in [1, 384, 1024] {
            let folder = tempfile::tempdir().unwrap();
            let max_bytes = 8 << 20;
            let file = VectorFile::open(&DiskCacheConfig { max_bytes, ..config(folder.path()) }).unwrap();
            let n_texts = 3 * max_bytes as usize / (2 * (4 * n + 128));
            let texts: Vec<usize> = (0..n_texts).collect();
            for few in texts.chunks(300) {
                let mut notes: Vec<Note> = few.iter().map(|&text| new(text, n, now)).collect();
                notes.push(Note::Used(key(0, 7)));
                notes.push(Note::Used(key(0, n_texts + 1)));
                file.commit(notes, now).unwrap();
            }
            let left = known(&file, &texts, n, now);
            assert_eq!(left[0], 7, "it was used all the time");
            assert!(
                left[1..].windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "the others went in their order"
            );
            assert!((n_texts / 4..n_texts / 2).contains(&left.len()), "{} of {n_texts}", left.len());
            let on_disk = fs::metadata(folder.path().join("vectors.redb")).unwrap().blocks() * 512;
            assert!(on_disk < max_bytes + (4 << 20), "{on_disk} bytes with vectors of {n}");
        }
    }

    /// Where [`writes_until_it_is_killed`] is to write.
    const FOLDER: &str = "PREDICT_OTRON_TEST_FOLDER";

    #[test]
    #[ignore = "the other half of the next test, in a process of its own"]
    fn writes_until_it_is_killed() {
        let file = VectorFile::open(&config(Path::new(&env::var(FOLDER).unwrap()))).unwrap();
        for text in (0..).step_by(4) {
            let notes = (text..text + 4).map(|text| new(text, 384, SystemTime::now())).collect();
            file.commit(notes, SystemTime::now()).unwrap();
            println!("\nwritten {}", text + 4);
        }
    }

    #[test]
    fn a_kill_at_any_moment_costs_nothing_that_was_written() {
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
            let file = VectorFile::open(&config(folder.path())).unwrap();
            let texts: Vec<usize> = (0..n_written + 400).collect();
            let left = known(&file, &texts, 384, SystemTime::now());
            assert!(
                left.len() >= n_written && left[n_written - 1] == n_written - 1,
                "{left:?} of {n_written}"
            );
            assert_eq!(left.len() % 4, 0, "a transaction is whole or not there");
        }
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let whole = {
            let folder = tempfile::tempdir().unwrap();
            let file = VectorFile::open(&config(folder.path())).unwrap();
            file.commit((0..200).map(|text| new(text, 20, SystemTime::now())).collect(), SystemTime::now())
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
        // A page that is in use or one that is not: both are sound afterwards.
        for bytes in damaged.into_iter().chain((0..whole.len()).step_by(997).map(flipped)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("vectors.redb"), &bytes).unwrap();
            let file = VectorFile::open(&config(folder.path())).unwrap();
            let left = known(&file, &(0..200).collect::<Vec<_>>(), 20, SystemTime::now());
            let aside = folder.path().join("vectors.damaged");
            match left.len() {
                0 => assert_eq!(fs::read(aside).unwrap(), bytes),
                n => assert!(n == 200 && !aside.exists()),
            }
            file.commit(vec![new(1, 20, SystemTime::now())], SystemTime::now()).unwrap();
            assert_eq!(known(&file, &[1], 20, SystemTime::now()), [1]);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
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
