//! Records of tenants in one file of the embedded key-value store redb, or in memory: bounded in bytes and in time.
//!
//! A commit is atomic and durable. Records that are not used for the time to live are removed. Beyond the byte
//! budget, the least recently used are: those of the writing tenant if it has more than an equal share, else those of
//! a tenant that has. Shared by all that must survive a restart. Files are in [`files`].

mod database;
pub mod files;

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableTable, ReadableTableMetadata, StorageError, Table,
    TableDefinition, WriteTransaction,
};

use self::database::ReopenedDatabase;
use crate::error::{Error, Kind, Result, quote};

/// When the record was used last in milliseconds since 1970, the number of that use, and its value.
type RecordRow<'a> = (u64, u64, &'a [u8]);
/// Rows by tenant and id.
const RECORDS: TableDefinition<(&str, &str), RecordRow> = TableDefinition::new("records");
/// Tenants and ids by the number of their last use: the first is the least recently used.
const RECENCY: TableDefinition<u64, (&str, &str)> = TableDefinition::new("recency");
/// Ids by tenant and number of their last use.
const TENANT_RECENCY: TableDefinition<(&str, u64), &str> = TableDefinition::new("tenant_recency");
/// Bytes of the records of each tenant, and of all under the empty name.
const SIZES: TableDefinition<&str, u64> = TableDefinition::new("sizes");
/// Values of the store itself.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// The name under which [`SIZES`] has the total.
const ALL: &str = "";

/// Memory for pages of the file.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// The least recently used records among which one of a tenant with more than its share is looked for.
const MAX_EXAMINED: usize = 64;

/// Uses of a record within this share of the time to live do not count again: noting a use costs a write.
const TOUCH_SHARE: u32 = 16;

/// Settings of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLimits {
    /// Approximate bytes of all records.
    pub max_bytes: u64,
    /// Bytes of a record.
    pub max_record_bytes: usize,
    /// How long a record is kept after its last use.
    pub time_to_live: Duration,
}

/// Records of tenants.
pub struct RecordStore {
    database: ReopenedDatabase,
    limits: StoreLimits,
}

impl RecordStore {
    /// Opens or creates the store `name` in a folder. A damaged file is renamed, and a new one is begun.
    ///
    /// # Errors
    /// When another process has it open, or the file system refuses.
    pub fn open(folder: &Path, name: &str, limits: StoreLimits) -> Result<Self> {
        Self::new(open_in(folder, name)?, limits).map_err(failed)
    }

    /// A store in memory.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn in_memory(limits: StoreLimits) -> Result<Self> {
        Self::new(in_memory()?, limits).map_err(failed)
    }

    /// Creates the tables of a database that lacks them.
    fn new(database: ReopenedDatabase, limits: StoreLimits) -> Result<Self, redb::Error> {
        let store = Self { database, limits };
        let transaction = store.database.begin_write()?;
        RecordTables::open(&transaction)?;
        transaction.open_table(META)?;
        transaction.commit()?;
        Ok(store)
    }

    /// A record that has not expired at `now`. Counts as a use of it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, tenant: &str, id: &str, now: SystemTime) -> Result<Option<Vec<u8>>> {
        let found = self.read(tenant, id).map_err(failed)?;
        let Some((used_ms, value)) = found else { return Ok(None) };
        let age = Duration::from_millis(unix_ms(now).saturating_sub(used_ms));
        if age >= self.limits.time_to_live {
            return Ok(None);
        }
        if age >= self.limits.time_to_live / TOUCH_SHARE {
            self.update(tenant, id, now, |value| Ok((value, ())))?;
        }
        Ok(Some(value))
    }

    /// Stores a record.
    ///
    /// # Errors
    /// When it is too large, or the file cannot be written.
    pub fn put(&self, tenant: &str, id: &str, value: Vec<u8>, now: SystemTime) -> Result<()> {
        self.update(tenant, id, now, |_| Ok((Some(value), ())))
    }

    /// Removes a record; returns whether there was one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove(&self, tenant: &str, id: &str, now: SystemTime) -> Result<bool> {
        self.update(tenant, id, now, |value| Ok((None, value.is_some())))
    }

    /// Replaces a record by what `change` makes of it, in one transaction. Nothing changes if `change` fails.
    ///
    /// # Errors
    /// When `change` fails, the new value is too large, or the file cannot be written.
    pub fn update<T>(
        &self,
        tenant: &str,
        id: &str,
        now: SystemTime,
        change: impl FnOnce(Option<Vec<u8>>) -> Result<(Option<Vec<u8>>, T)>,
    ) -> Result<T> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let result = {
            let mut tables = RecordTables::open(&transaction).map_err(failed)?;
            let old = tables.remove(tenant, id).map_err(failed)?;
            let old = old.filter(|(used_ms, _)| !self.is_expired(*used_ms, now)).map(|(_, value)| value);
            let (new, result) = change(old)?;
            if let Some(value) = new {
                self.check_size(value.len())?;
                tables.insert(tenant, id, unix_ms(now), &value).map_err(failed)?;
            }
            self.evict(&mut tables, tenant, id, now).map_err(failed)?;
            result
        };
        transaction.commit().map_err(failed)?;
        Ok(result)
    }

    /// The value of the store itself called `name`, made by `make` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn meta(&self, name: &str, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>> {
        let run = || -> Result<Vec<u8>, redb::Error> {
            let transaction = self.database.begin_write()?;
            let value = {
                let mut table = transaction.open_table(META)?;
                let found = table.get(name)?.map(|value| value.value().to_vec());
                match found {
                    Some(found) => found,
                    None => {
                        let made = make();
                        table.insert(name, &*made)?;
                        made
                    }
                }
            };
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(failed)
    }

    fn read(&self, tenant: &str, id: &str) -> Result<Option<(u64, Vec<u8>)>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let records = transaction.open_table(RECORDS)?;
        let row = records.get((tenant, id))?;
        Ok(row.map(|row| {
            let (used_ms, _, value) = row.value();
            (used_ms, value.to_vec())
        }))
    }

    fn check_size(&self, n_bytes: usize) -> Result<()> {
        let max = self.limits.max_record_bytes;
        if n_bytes <= max && record_bytes(n_bytes) <= self.limits.max_bytes {
            return Ok(());
        }
        let message =
            format!("this would be {n_bytes} bytes to store, and {max} is the limit; begin a new one");
        Err(Error::new(Kind::InvalidRequest, message))
    }

    fn is_expired(&self, used_ms: u64, now: SystemTime) -> bool {
        Duration::from_millis(unix_ms(now).saturating_sub(used_ms)) >= self.limits.time_to_live
    }

    /// Removes what has expired, and what exceeds the budget; never the record that is written.
    fn evict(
        &self,
        tables: &mut RecordTables,
        tenant: &str,
        id: &str,
        now: SystemTime,
    ) -> Result<(), StorageError> {
        while let Some((owner, oldest, used_ms)) = tables.oldest()?
            && self.is_expired(used_ms, now)
        {
            tables.remove(&owner, &oldest)?;
        }
        while tables.size_of(ALL)? > self.limits.max_bytes {
            let n_tenants = tables.sizes.len()?.saturating_sub(1).max(1);
            let share = self.limits.max_bytes / n_tenants;
            let is_ours = tables.size_of(tenant)? > share;
            let victim = if is_ours { tables.oldest_of(tenant)? } else { tables.oldest_beyond(share)? };
            match victim {
                Some((owner, victim)) if (&*owner, &*victim) != (tenant, id) => {
                    tables.remove(&owner, &victim)?
                }
                _ => break,
            };
        }
        Ok(())
    }
}

/// The tables of one write transaction, kept consistent with each other.
struct RecordTables<'t> {
    records: Table<'t, (&'static str, &'static str), RecordRow<'static>>,
    recency: Table<'t, u64, (&'static str, &'static str)>,
    tenant_recency: Table<'t, (&'static str, u64), &'static str>,
    sizes: Table<'t, &'static str, u64>,
}

impl<'t> RecordTables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            recency: transaction.open_table(RECENCY)?,
            tenant_recency: transaction.open_table(TENANT_RECENCY)?,
            sizes: transaction.open_table(SIZES)?,
        })
    }

    fn insert(&mut self, tenant: &str, id: &str, used_ms: u64, value: &[u8]) -> Result<(), StorageError> {
        let number = self.recency.last()?.map_or(0, |(last, _)| last.value() + 1);
        self.records.insert((tenant, id), (used_ms, number, value))?;
        self.recency.insert(number, (tenant, id))?;
        self.tenant_recency.insert((tenant, number), id)?;
        let n_bytes = record_bytes(value.len());
        for name in [tenant, ALL] {
            let size = self.size_of(name)? + n_bytes;
            self.sizes.insert(name, size)?;
        }
        Ok(())
    }

    /// Removes a record; returns its last use and its value.
    fn remove(&mut self, tenant: &str, id: &str) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
        let Some(row) = self.records.remove((tenant, id))? else { return Ok(None) };
        let (used_ms, number, value) = row.value();
        let value = value.to_vec();
        drop(row);
        self.recency.remove(number)?;
        self.tenant_recency.remove((tenant, number))?;
        for name in [tenant, ALL] {
            let size = self.size_of(name)?.saturating_sub(record_bytes(value.len()));
            match size {
                0 => drop(self.sizes.remove(name)?),
                size => drop(self.sizes.insert(name, size)?),
            }
        }
        Ok(Some((used_ms, value)))
    }

    fn size_of(&self, tenant: &str) -> Result<u64, StorageError> {
        Ok(self.sizes.get(tenant)?.map_or(0, |size| size.value()))
    }

    /// The least recently used record, and when that was.
    fn oldest(&self) -> Result<Option<(String, String, u64)>, StorageError> {
        let Some((_, key)) = self.recency.first()? else { return Ok(None) };
        let (tenant, id) = key.value();
        let used_ms = self.records.get((tenant, id))?.map_or(0, |row| row.value().0);
        Ok(Some((tenant.to_owned(), id.to_owned(), used_ms)))
    }

    /// The least recently used record of a tenant.
    fn oldest_of(&self, tenant: &str) -> Result<Option<(String, String)>, StorageError> {
        let mut range = self.tenant_recency.range((tenant, 0)..=(tenant, u64::MAX))?;
        Ok(range.next().transpose()?.map(|(_, id)| (tenant.to_owned(), id.value().to_owned())))
    }

    /// The least recently used record of a tenant with more than `share` bytes, or else of any.
    fn oldest_beyond(&self, share: u64) -> Result<Option<(String, String)>, StorageError> {
        let mut first = None;
        for entry in self.recency.iter()?.take(MAX_EXAMINED) {
            let (_, key) = entry?;
            let (tenant, id) = key.value();
            if self.size_of(tenant)? > share {
                return Ok(Some((tenant.to_owned(), id.to_owned())));
            }
            first.get_or_insert_with(|| (tenant.to_owned(), id.to_owned()));
        }
        Ok(first)
    }
}

/// An upper estimate of a record's bytes on disk: pages are half full at worst.
fn record_bytes(n_bytes: usize) -> u64 {
    2 * (n_bytes as u64 + 256)
}

/// The error of a store that cannot be read or written.
fn failed(e: impl Into<redb::Error>) -> Error {
    let e = e.into();
    let message = format!(
        "the state cannot be read or written: {}; check the disk of --state-dir",
        quote(&e.to_string())
    );
    Error::new(Kind::Internal, message)
        .with_public("the server's state cannot be read or written; see its log")
}

/// Runs `work` on a thread that may wait for the disk or the network.
///
/// # Errors
/// When `work` fails or panics.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let failed = |e| Error::internal(format!("work on the disk has failed: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Whether a database file itself is damaged, rather than inaccessible.
pub fn is_damage(e: &DatabaseError) -> bool {
    match e {
        DatabaseError::UpgradeRequired(_) | DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(e)) => {
            matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// The database `name` in a folder.
fn open_in(folder: &Path, name: &str) -> Result<ReopenedDatabase> {
    let (folder, name) = (folder.to_owned(), name.to_owned());
    ReopenedDatabase::new(move || open_or_replace(&folder, &name))
}

/// A database in memory.
fn in_memory() -> Result<ReopenedDatabase> {
    ReopenedDatabase::new(|| {
        let database =
            Builder::new().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(InMemoryBackend::new());
        database.map_err(|e| Error::internal(format!("cannot create a store in memory: {e}")))
    })
}

/// Opens or creates the database `name` in a folder. A damaged one is renamed, and a new one is begun.
fn open_or_replace(folder: &Path, name: &str) -> Result<Database> {
    let failed = |action: &str, e: &dyn std::error::Error| {
        let message = format!(
            "cannot {action} the state in {}: {e}; pass a writable folder as --state-dir, or leave the option out",
            folder.display()
        );
        Error::new(Kind::Config, message)
    };
    fs::create_dir_all(folder).map_err(|e| failed("create", &e))?;
    let path = folder.join(name);
    let database = match open_database(&path, PAGE_CACHE_BYTES) {
        Err(e) if is_damage(&e) => {
            let aside = path.with_extension("damaged");
            tracing::warn!(
                error = %e,
                "the state is damaged; starting an empty one and keeping the old file as {}",
                aside.display()
            );
            fs::rename(&path, &aside).map_err(|e| failed("rename", &e))?;
            open_database(&path, PAGE_CACHE_BYTES)
        }
        other => other,
    };
    database.map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => Error::new(
            Kind::Config,
            format!(
                "another server uses the state in {}; give each server its own --state-dir",
                folder.display()
            ),
        ),
        e => failed("open", &e),
    })
}

/// Opens or creates a database file. Verifies every page, which takes about a second for a few gigabytes.
///
/// # Errors
/// When it is damaged, in use, or the file system refuses.
pub fn open_database(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(cache_bytes).set_check_integrity_on_open(true).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_bytes: u64) -> StoreLimits {
        StoreLimits { max_bytes, max_record_bytes: 4096, time_to_live: Duration::from_secs(60) }
    }

    /// Seconds after some moment.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn has(store: &RecordStore, tenant: &str, id: &str, now: SystemTime) -> bool {
        store.get(tenant, id, now).unwrap().is_some()
    }

    #[test]
    fn records_belong_to_one_tenant() {
        let store = RecordStore::in_memory(limits(1 << 20)).unwrap();
        store.put("a", "x", b"1".to_vec(), at(0)).unwrap();
        assert_eq!(store.get("a", "x", at(0)).unwrap().as_deref(), Some(&b"1"[..]));
        assert!(!has(&store, "b", "x", at(0)));
        assert!(!store.remove("b", "x", at(0)).unwrap() && store.remove("a", "x", at(0)).unwrap());
        assert!(!has(&store, "a", "x", at(0)));
        assert!(store.put("a", "x", vec![0; 5000], at(0)).unwrap_err().to_string().contains("4096"));
    }

    #[test]
    fn records_expire_after_their_last_use() {
        let store = RecordStore::in_memory(limits(1 << 20)).unwrap();
        store.put("a", "used", b"1".to_vec(), at(0)).unwrap();
        store.put("a", "left", b"2".to_vec(), at(0)).unwrap();
        assert!(has(&store, "a", "used", at(40)));
        assert!(!has(&store, "a", "left", at(60)) && has(&store, "a", "used", at(60)));
        store.put("a", "new", b"3".to_vec(), at(61)).unwrap();
        assert!(store.read("a", "left").unwrap().is_none(), "it is gone from the file");
    }

    #[test]
    fn a_full_store_evicts_from_those_who_have_most() {
        let store = RecordStore::in_memory(limits(20 * record_bytes(100))).unwrap();
        store.put("small", "old", vec![0; 100], at(0)).unwrap();
        for n in 0..40 {
            store.put("large", &n.to_string(), vec![0; 100], at(1)).unwrap();
        }
        assert!(has(&store, "small", "old", at(2)), "the large tenant evicts its own");
        assert!(has(&store, "large", "39", at(2)) && !has(&store, "large", "0", at(2)));
        for n in 0..5 {
            store.put("small", &n.to_string(), vec![0; 100], at(3)).unwrap();
        }
        assert!(has(&store, "small", "old", at(4)), "a small tenant evicts those of the large one");
        assert!(has(&store, "large", "39", at(4)) && !has(&store, "large", "24", at(4)));
    }

    #[test]
    fn a_failed_change_changes_nothing() {
        let store = RecordStore::in_memory(limits(1 << 20)).unwrap();
        store.put("a", "x", b"1".to_vec(), at(0)).unwrap();
        let failed = store
            .update("a", "x", at(0), |_| -> Result<(Option<Vec<u8>>, ())> { Err(Error::internal("no")) });
        assert!(failed.is_err() && has(&store, "a", "x", at(0)));
    }

    #[test]
    fn records_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || RecordStore::open(folder.path(), "state.redb", limits(1 << 20));
        let store = open().unwrap();
        store.put("a", "x", b"1".to_vec(), at(0)).unwrap();
        let key = store.meta("key", || vec![1, 2]).unwrap();
        assert!(open().err().unwrap().to_string().contains("--state-dir"), "one server at a time");
        drop(store);
        let store = open().unwrap();
        assert!(has(&store, "a", "x", at(0)));
        assert_eq!(store.meta("key", || vec![3]).unwrap(), key);
    }
}
