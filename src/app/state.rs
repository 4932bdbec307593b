//! Stored responses, conversations and files: where they are, and to whom they belong.

use std::path::Path;
use std::sync::Arc;

use super::App;
use super::api_keys::key_index;
use crate::cache::name_digest;
use crate::config::Limits;
use crate::error::Result;
use crate::responses::ResponseState;
use crate::store::files::{FileLimits, FileStore};
use crate::store::{RecordStore, StoreLimits, run_blocking};

/// Opens the state in a folder or, without one, in memory.
///
/// # Errors
/// When another process has it open, or the file system refuses.
pub fn open(folder: Option<&Path>, limits: &Limits) -> Result<Arc<ResponseState>> {
    let store_limits = StoreLimits {
        max_bytes: limits.state_bytes,
        max_record_bytes: limits.state_record_bytes,
        time_to_live: limits.state_ttl,
    };
    let store = match folder {
        Some(folder) => RecordStore::open(folder, "state.redb", store_limits)?,
        None => RecordStore::in_memory(store_limits)?,
    };
    Ok(Arc::new(ResponseState::new(store)?))
}

/// Opens the store of files in a folder or, without one, in memory.
///
/// # Errors
/// When another process has it open, or the file system refuses.
pub fn open_files(folder: Option<&Path>, limits: &Limits) -> Result<Arc<FileStore>> {
    let file_limits = FileLimits { max_bytes: limits.files_bytes, max_file_bytes: limits.file_bytes };
    match folder {
        Some(folder) => FileStore::open(folder, "files.redb", file_limits),
        None => FileStore::in_memory(file_limits),
    }
}

impl App {
    /// The store of files and batches. Its methods wait for the disk.
    pub fn files(&self) -> &Arc<FileStore> {
        &self.files
    }

    /// Runs `work` on the store of files, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// When `work` fails or panics.
    pub async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<FileStore>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let files = self.files.clone();
        run_blocking(move || work(&files)).await
    }

    /// Runs `work` on the stored responses and conversations, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// When `work` fails or panics.
    pub async fn with_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ResponseState) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = self.state.clone();
        run_blocking(move || work(&state)).await
    }

    /// The name under which a tenant's state is stored. That of a key does not depend on its place in the list of
    /// keys, which may change between restarts.
    pub fn state_owner(&self, tenant: &str) -> Arc<str> {
        match key_index(tenant).and_then(|index| self.api_keys().digest(index)) {
            Some(digest) => name_digest(&digest).into(),
            None => tenant.into(),
        }
    }
}
