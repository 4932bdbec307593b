//! Files of tenants, and records of the jobs that make some of them, in one file of the embedded key-value store redb,
//! or in memory: bounded in bytes.
//!
//! A file is a sequence of parts. One that a job makes has a part for each of its steps, written together with the
//! job's record in one transaction, so that a job that was killed goes on where it was. Nothing is removed to make
//! room: what does not fit is refused.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::database::ReopenedDatabase;
use super::{failed, in_memory, open_in};
use crate::error::{Error, Kind, Result};

/// Descriptions of files by tenant and id.
const FILES: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("files");
/// Parts by the id of their file and their index.
const PARTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("parts");
/// Records of jobs by tenant and id.
const JOBS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("jobs");

/// Bytes of a part of an uploaded file: with its key it fits a page of 64 KiB.
const PART_BYTES: usize = 63 << 10;

/// Bytes of an upload that are written in one transaction.
const WRITE_BYTES: usize = 1 << 20;

/// Most files of a tenant, and most of its jobs.
const MAX_ENTRIES: usize = 10_000;

/// Bounds of a store of files.
#[derive(Debug, Clone, Copy)]
pub struct FileLimits {
    /// Bytes of all files.
    pub max_bytes: u64,
    /// Bytes of a file.
    pub max_file_bytes: u64,
}

/// The description of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Unique id.
    pub id: String,
    /// The name that the client gave it.
    pub filename: String,
    /// Its purpose, as the client said.
    pub purpose: String,
    /// Size in bytes.
    pub n_bytes: u64,
    /// Unix time at which it was created, in seconds.
    pub created_at: u64,
    /// Unix time at which it is removed, in seconds.
    pub expires_at: Option<u64>,
}

/// A part that a step of a job adds to a file.
#[derive(Debug, Clone)]
pub struct NewPart {
    /// The id of the file.
    pub file: String,
    /// The number of the step.
    pub index: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Files and jobs of tenants.
pub struct FileStore {
    database: ReopenedDatabase,
    limits: FileLimits,
    used: Mutex<UsedBytes>,
}

/// Bytes of all files, and of the files of each tenant.
#[derive(Debug, Default)]
struct UsedBytes {
    total: u64,
    by_tenant: HashMap<String, u64>,
}

/// A file while it is uploaded. Nothing of it remains if it is dropped before [`FileUpload::finish`].
pub struct FileUpload {
    store: Arc<FileStore>,
    tenant: Arc<str>,
    id: String,
    buffer: Vec<u8>,
    n_parts: u64,
    n_bytes: u64,
    is_finished: bool,
}

impl FileStore {
    /// Opens or creates the store `name` in a folder. A damaged one is renamed, and a new one is begun.
    ///
    /// # Errors
    /// When another process has it open, or the file system refuses.
    pub fn open(folder: &Path, name: &str, limits: FileLimits) -> Result<Arc<Self>> {
        Self::new(open_in(folder, name)?, limits)
    }

    /// A store in memory.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn in_memory(limits: FileLimits) -> Result<Arc<Self>> {
        Self::new(in_memory()?, limits)
    }

    /// Creates the tables, removes what uploads have left that were cut off, and counts the bytes.
    fn new(database: ReopenedDatabase, limits: FileLimits) -> Result<Arc<Self>> {
        let store = Self { database, limits, used: Mutex::default() };
        store.write(|transaction| {
            transaction.open_table(FILES)?;
            transaction.open_table(JOBS)?;
            transaction.open_table(PARTS)?;
            Ok(())
        })?;
        Ok(Arc::new(store))
    }

    /// Removes the parts of files that neither have a description nor belong to one of `unfinished`, files with their
    /// tenants that jobs still write to; counts the bytes of the others.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn recover(&self, unfinished: &[(Arc<str>, String)]) -> Result<()> {
        let mut owners: HashMap<String, String> =
            unfinished.iter().map(|(tenant, id)| (id.clone(), tenant.to_string())).collect();
        let mut used = UsedBytes::default();
        self.write(|transaction| {
            for entry in transaction.open_table(FILES)?.iter()? {
                let (key, _) = entry?;
                let (tenant, id) = key.value();
                owners.insert(id.to_owned(), tenant.to_owned());
            }
            let mut parts = transaction.open_table(PARTS)?;
            parts.retain(|(id, _), bytes| {
                let owner = owners.get(id);
                owner.into_iter().for_each(|tenant| used.add(tenant, bytes.len() as u64));
                owner.is_some()
            })?;
            Ok(())
        })?;
        *self.used() = used;
        Ok(())
    }

    /// Begins an upload of a tenant.
    ///
    /// # Errors
    /// When the tenant has too many files.
    pub fn upload(self: &Arc<Self>, tenant: Arc<str>, id: String) -> Result<FileUpload> {
        if self.files(&tenant)?.len() >= MAX_ENTRIES {
            let message = format!("there are {MAX_ENTRIES} files, which is the limit; delete some");
            return Err(Error::new(Kind::InvalidRequest, message));
        }
        Ok(FileUpload {
            store: self.clone(),
            tenant,
            id,
            buffer: Vec::new(),
            n_parts: 0,
            n_bytes: 0,
            is_finished: false,
        })
    }

    /// The description of a file that has not expired at `now`, a Unix time in seconds.
    ///
    /// # Errors
    /// When there is none, or the store cannot be read.
    pub fn file(&self, tenant: &str, id: &str, now: u64) -> Result<Option<FileRecord>> {
        let found = self.read(|transaction| {
            let row = transaction.open_table(FILES)?.get((tenant, id))?;
            Ok(row.map(|row| row.value().to_vec()))
        })?;
        let record: Option<FileRecord> = found.map(|json| from_json(&json)).transpose()?;
        Ok(record.filter(|record| !record.is_expired(now)))
    }

    /// All files of a tenant, the oldest first, expired ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn files(&self, tenant: &str) -> Result<Vec<FileRecord>> {
        let rows = self.read(|transaction| rows_of(&transaction.open_table(FILES)?, tenant))?;
        let mut files: Vec<FileRecord> = rows.iter().map(|json| from_json(json)).collect::<Result<_>>()?;
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(files)
    }

    /// The part of a file at `index` or the next one after it, with its index.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn part(&self, file: &str, index: u64) -> Result<Option<(u64, Vec<u8>)>> {
        self.read(|transaction| {
            let parts = transaction.open_table(PARTS)?;
            let next = parts.range((file, index)..=(file, u64::MAX))?.next().transpose()?;
            Ok(next.map(|(key, bytes)| (key.value().1, bytes.value().to_vec())))
        })
    }

    /// The indices of the parts of a file.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn part_indices(&self, file: &str) -> Result<Vec<u64>> {
        self.read(|transaction| {
            let parts = transaction.open_table(PARTS)?;
            parts.range((file, 0)..=(file, u64::MAX))?.map(|entry| Ok(entry?.0.value().1)).collect()
        })
    }

    /// Removes a file, described or not; returns whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn remove_file(&self, tenant: &str, id: &str) -> Result<bool> {
        let (was_there, n_bytes) = self.write(|transaction| {
            let was_there = transaction.open_table(FILES)?.remove((tenant, id))?.is_some();
            let mut n_bytes = 0;
            let mut parts = transaction.open_table(PARTS)?;
            parts.retain_in((id, 0)..=(id, u64::MAX), |_, bytes| {
                n_bytes += bytes.len() as u64;
                false
            })?;
            Ok((was_there, n_bytes))
        })?;
        self.used().remove(tenant, n_bytes);
        Ok(was_there)
    }

    /// Removes the files that have expired at `now`, a Unix time in seconds.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn remove_expired(&self, now: u64) -> Result<()> {
        let rows: Vec<(String, Vec<u8>)> = self.read(|transaction| {
            let owned = |entry: Result<(_, _), redb::StorageError>| {
                let (key, json): (redb::AccessGuard<(&str, &str)>, redb::AccessGuard<&[u8]>) = entry?;
                Ok((key.value().0.to_owned(), json.value().to_vec()))
            };
            transaction.open_table(FILES)?.iter()?.map(owned).collect()
        })?;
        for (tenant, json) in rows {
            let record: FileRecord = from_json(&json)?;
            if record.is_expired(now) {
                self.remove_file(&tenant, &record.id)?;
            }
        }
        Ok(())
    }

    /// The record of a job.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn job(&self, tenant: &str, id: &str) -> Result<Option<Vec<u8>>> {
        self.read(|transaction| {
            let row = transaction.open_table(JOBS)?.get((tenant, id))?;
            Ok(row.map(|row| row.value().to_vec()))
        })
    }

    /// The records of all jobs of a tenant, in no order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn jobs(&self, tenant: &str) -> Result<Vec<Vec<u8>>> {
        self.read(|transaction| rows_of(&transaction.open_table(JOBS)?, tenant))
    }

    /// The records of all jobs, in no order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all_jobs(&self) -> Result<Vec<Vec<u8>>> {
        self.read(|transaction| {
            transaction.open_table(JOBS)?.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        })
    }

    /// Adds a job.
    ///
    /// # Errors
    /// When the tenant has too many, or the store cannot be written.
    pub fn add_job(&self, tenant: &str, id: &str, record: &[u8]) -> Result<()> {
        if self.jobs(tenant)?.len() >= MAX_ENTRIES {
            let message = format!("there are {MAX_ENTRIES} batches, which is the limit; delete some");
            return Err(Error::new(Kind::InvalidRequest, message));
        }
        self.update_job(tenant, id, record, &[], &[])
    }

    /// Replaces the record of a job, adds the parts of its steps, and describes files that are complete, in one
    /// transaction.
    ///
    /// # Errors
    /// When there is no room, or the store cannot be written.
    pub fn update_job(
        &self,
        tenant: &str,
        id: &str,
        record: &[u8],
        new_parts: &[NewPart],
        complete: &[FileRecord],
    ) -> Result<()> {
        let n_bytes = new_parts.iter().map(|part| part.bytes.len() as u64).sum();
        // The job was admitted; so its results may take more than the tenant's share.
        self.used().reserve(tenant, n_bytes, self.limits.max_bytes, self.limits.max_bytes)?;
        let written = self.write(|transaction| {
            transaction.open_table(JOBS)?.insert((tenant, id), record)?;
            let mut parts = transaction.open_table(PARTS)?;
            for NewPart { file, index, bytes } in new_parts {
                parts.insert((&**file, *index), &**bytes)?;
            }
            let mut files = transaction.open_table(FILES)?;
            for file in complete {
                files.insert((tenant, &*file.id), &*to_json(file))?;
            }
            Ok(())
        });
        if written.is_err() {
            self.used().remove(tenant, n_bytes);
        }
        written
    }

    /// Removes the record of a job.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn remove_job(&self, tenant: &str, id: &str) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(JOBS)?.remove((tenant, id))?;
            Ok(())
        })
    }

    fn used(&self) -> MutexGuard<'_, UsedBytes> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T> {
        let run = || read(&self.database.begin_read()?);
        run().map_err(failed)
    }

    fn write<T>(&self, write: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T> {
        let run = || {
            let transaction = self.database.begin_write()?;
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok::<_, redb::Error>(written)
        };
        run().map_err(failed)
    }
}

impl FileRecord {
    /// Whether it has expired at `now`, a Unix time in seconds.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

impl UsedBytes {
    /// Counts `n_bytes` more of a tenant.
    ///
    /// # Errors
    /// When the tenant would have more than `max_tenant` bytes, or all together more than `max_total`.
    fn reserve(&mut self, tenant: &str, n_bytes: u64, max_tenant: u64, max_total: u64) -> Result<()> {
        let used = self.by_tenant.get(tenant).copied().unwrap_or_default();
        if used + n_bytes > max_tenant || self.total + n_bytes > max_total {
            let message = format!(
                "there is no room for more files: you have {used} bytes of at most {max_tenant}, and all together have {} \
                 of {max_total}; delete files, or ask the server's operator for a larger --files-size",
                self.total
            );
            return Err(Error::new(Kind::InvalidRequest, message));
        }
        self.add(tenant, n_bytes);
        Ok(())
    }

    fn add(&mut self, tenant: &str, n_bytes: u64) {
        self.total += n_bytes;
        *self.by_tenant.entry(tenant.to_owned()).or_default() += n_bytes;
    }

    fn remove(&mut self, tenant: &str, n_bytes: u64) {
        self.total = self.total.saturating_sub(n_bytes);
        if let Some(used) = self.by_tenant.get_mut(tenant) {
            *used = used.saturating_sub(n_bytes);
            if *used == 0 {
                self.by_tenant.remove(tenant);
            }
        }
    }
}

impl FileUpload {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// When there is no room, or the store cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let FileLimits { max_bytes, max_file_bytes } = self.store.limits;
        let n_bytes = bytes.len() as u64;
        if self.n_bytes + n_bytes > max_file_bytes {
            let message = format!("the file is longer than {max_file_bytes} bytes; split it");
            return Err(Error::invalid("file", message));
        }
        // The other half is for other tenants.
        self.store.used().reserve(&self.tenant, n_bytes, max_bytes / 2, max_bytes)?;
        self.n_bytes += n_bytes;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush(None) } else { Ok(()) }
    }

    /// Completes the file; returns its description.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish(
        mut self,
        filename: String,
        purpose: String,
        created_at: u64,
        expires_at: Option<u64>,
    ) -> Result<FileRecord> {
        let (id, n_bytes) = (self.id.clone(), self.n_bytes);
        let record = FileRecord { id, filename, purpose, n_bytes, created_at, expires_at };
        self.flush(Some(&record))?;
        self.is_finished = true;
        Ok(record)
    }

    /// Completes the file without a description: it belongs to a job.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish_hidden(mut self) -> Result<()> {
        self.flush(None)?;
        self.is_finished = true;
        Ok(())
    }

    fn flush(&mut self, record: Option<&FileRecord>) -> Result<()> {
        let (buffer, id, first) = (std::mem::take(&mut self.buffer), &*self.id, self.n_parts);
        self.n_parts += buffer.len().div_ceil(PART_BYTES) as u64;
        self.store.write(|transaction| {
            let mut parts = transaction.open_table(PARTS)?;
            for (index, part) in (first..).zip(buffer.chunks(PART_BYTES)) {
                parts.insert((id, index), part)?;
            }
            if let Some(record) = record {
                transaction.open_table(FILES)?.insert((&*self.tenant, id), &*to_json(record))?;
            }
            Ok(())
        })
    }
}

impl Drop for FileUpload {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // What is not written yet is counted, too.
        self.store.used().remove(&self.tenant, self.buffer.len() as u64);
        if self.n_parts > 0
            && let Err(e) = self.store.remove_file(&self.tenant, &self.id)
        {
            tracing::error!(error = %e, "what was uploaded of a file could not be removed");
        }
    }
}

/// The values of a tenant's rows.
fn rows_of(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    tenant: &str,
) -> Result<Vec<Vec<u8>>, redb::Error> {
    let mut rows = Vec::new();
    for entry in table.range((tenant, "")..)? {
        let (key, value) = entry?;
        if key.value().0 != tenant {
            break;
        }
        rows.push(value.value().to_vec());
    }
    Ok(rows)
}

fn to_json(record: &FileRecord) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

fn from_json(json: &[u8]) -> Result<FileRecord> {
    serde_json::from_slice(json)
        .map_err(|e| Error::internal(format!("the description of a file cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LIMITS: FileLimits = FileLimits { max_bytes: 4 << 20, max_file_bytes: 2 << 20 };

    fn store() -> Arc<FileStore> {
        FileStore::in_memory(LIMITS).unwrap()
    }

    fn upload(store: &Arc<FileStore>, tenant: &str, id: &str, n_bytes: usize) -> Result<FileRecord> {
        let mut upload = store.upload(tenant.into(), id.into())?;
        for chunk in vec![b'x'; n_bytes].chunks(100_000) {
            upload.append(chunk)?;
        }
        upload.finish("f.jsonl".into(), "batch".into(), 7, Some(100))
    }

    fn content(store: &FileStore, id: &str) -> Vec<u8> {
        let (mut bytes, mut index) = (Vec::new(), 0);
        while let Some((at, part)) = store.part(id, index).unwrap() {
            bytes.extend(part);
            index = at + 1;
        }
        bytes
    }

    #[test]
    fn files_belong_to_one_tenant_and_expire() {
        let store = store();
        let record = upload(&store, "a", "f1", 1_300_000).unwrap();
        assert_eq!(record.n_bytes, 1_300_000);
        assert_eq!(store.file("a", "f1", 99).unwrap(), Some(record.clone()));
        assert_eq!(content(&store, "f1"), vec![b'x'; 1_300_000]);
        assert_eq!(store.file("b", "f1", 0).unwrap(), None);
        assert!(!store.remove_file("b", "f2").unwrap());
        assert_eq!(store.files("a").unwrap(), [record]);
        assert!(store.files("").unwrap().is_empty() && store.files("b").unwrap().is_empty());
        assert_eq!(store.file("a", "f1", 100).unwrap(), None);
        store.remove_expired(100).unwrap();
        assert!(store.files("a").unwrap().is_empty() && content(&store, "f1").is_empty());
        assert_eq!(store.used().total, 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_leaves_nothing() {
        let store = store();
        let too_long = upload(&store, "a", "f1", (2 << 20) + 1).unwrap_err();
        assert!(too_long.to_string().contains("2097152"), "{too_long}");
        assert_eq!((store.used().total, content(&store, "f1").len()), (0, 0));
        upload(&store, "a", "f2", 1_500_000).unwrap();
        let half = upload(&store, "a", "f3", 700_000).unwrap_err();
        assert!(half.to_string().contains("--files-size"), "{half}");
        upload(&store, "b", "f4", 700_000).unwrap();
        assert!(store.remove_file("a", "f2").unwrap());
        upload(&store, "a", "f5", 700_000).unwrap();
        assert_eq!(store.used().total, 1_400_000);
    }

    #[test]
    fn a_job_and_its_part_are_written_together_and_survive() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(folder.path(), "files.redb", LIMITS).unwrap();
        store.add_job("a", "j", b"0").unwrap();
        for (record, file, index) in [(b"1", "out", 4), (b"2", "out", 1), (b"3", "other", 0)] {
            let part = NewPart { file: file.into(), index, bytes: b"line\n".to_vec() };
            store.update_job("a", "j", record, &[part], &[]).unwrap();
        }
        // An upload that is cut off.
        let mut cut = store.upload("a".into(), "cut".into()).unwrap();
        cut.append(&vec![0; WRITE_BYTES]).unwrap();
        std::mem::forget(cut.store.clone());
        std::mem::forget(cut);
        drop(store);
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.path().join("files.redb"), copy.path().join("files.redb")).unwrap();
        let store = FileStore::open(copy.path(), "files.redb", LIMITS).unwrap();
        assert_eq!(store.all_jobs().unwrap(), [b"3"]);
        assert_eq!(store.part_indices("out").unwrap(), [1, 4]);
        assert_eq!(content(&store, "cut").len(), WRITE_BYTES);
        store.recover(&[("a".into(), "out".into())]).unwrap();
        assert_eq!((content(&store, "cut").len(), content(&store, "other").len()), (0, 0));
        assert_eq!((content(&store, "out").len(), store.used().total), (10, 10));
        let record = FileRecord {
            id: "out".into(),
            filename: "o".into(),
            purpose: "batch_output".into(),
            n_bytes: 10,
            created_at: 1,
            expires_at: None,
        };
        store.update_job("a", "j", b"4", &[], std::slice::from_ref(&record)).unwrap();
        assert_eq!(store.file("a", "out", 5).unwrap(), Some(record));
    }
}
