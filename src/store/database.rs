//! A redb database that is opened again after a failure of the file system. redb refuses to write after one, so that a
//! disk that was full for a moment would otherwise end all writing until the server is restarted.

use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::error::Result;

/// A database, and the way to open it.
pub struct ReopenedDatabase {
    /// `None` while it could not be opened again.
    database: RwLock<Option<Database>>,
    open: Box<dyn Fn() -> Result<Database> + Send + Sync>,
}

impl ReopenedDatabase {
    /// The database that `open` opens.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(open: impl Fn() -> Result<Database> + Send + Sync + 'static) -> Result<Self> {
        Ok(Self { database: RwLock::new(Some(open()?)), open: Box::new(open) })
    }

    /// Begins to read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn begin_read(&self) -> Result<ReadTransaction, redb::Error> {
        self.begin(|database| Ok(database.begin_read()?))
    }

    /// Begins to write, once nobody else does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        self.begin(|database| Ok(database.begin_write()?))
    }

    fn begin<T>(&self, begin: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let try_now =
            |database: &Option<Database>| database.as_ref().map_or(Err(redb::Error::PreviousIo), &begin);
        let begun = try_now(&self.database.read().unwrap_or_else(PoisonError::into_inner));
        if !matches!(begun, Err(redb::Error::PreviousIo)) {
            return begun;
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have opened it meanwhile.
        let begun = try_now(&database);
        if !matches!(begun, Err(redb::Error::PreviousIo)) {
            return begun;
        }
        // Closes the file, which can be open once only.
        *database = None;
        match (self.open)() {
            Ok(opened) => {
                tracing::warn!("a store was opened again after a failure of the file system");
                *database = Some(opened);
                try_now(&database)
            }
            Err(e) => {
                tracing::error!(error = %e, "a store could not be opened again after a failure of the file system");
                Err(redb::Error::PreviousIo)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use redb::{Builder, StorageBackend, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<&str, u64> = TableDefinition::new("table");

    /// A file in memory on a disk that is full at times.
    #[derive(Debug, Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        is_full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let start = offset as usize;
            out.copy_from_slice(&self.bytes.lock().unwrap()[start..start + out.len()]);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.bytes.lock().unwrap().resize(len as usize, 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            let start = offset as usize;
            self.bytes.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    impl Disk {
        fn check(&self) -> io::Result<()> {
            if self.is_full.load(SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    fn write(database: &ReopenedDatabase, value: u64) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?.insert("key", value)?;
        transaction.commit()?;
        Ok(())
    }

    fn read(database: &ReopenedDatabase) -> Option<u64> {
        let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
        table.get("key").unwrap().map(|value| value.value())
    }

    #[test]
    fn writing_goes_on_once_the_disk_has_room_again() {
        let disk = Disk::default();
        let backend = disk.clone();
        let open = move || {
            let database = Builder::new().create_with_backend(backend.clone());
            database.map_err(|e| crate::error::Error::internal(e.to_string()))
        };
        let database = ReopenedDatabase::new(open).unwrap();
        write(&database, 1).unwrap();
        disk.is_full.store(true, SeqCst);
        assert!(write(&database, 2).is_err());
        assert!(write(&database, 3).is_err());
        disk.is_full.store(false, SeqCst);
        write(&database, 4).unwrap();
        assert_eq!(read(&database), Some(4));
    }
}
