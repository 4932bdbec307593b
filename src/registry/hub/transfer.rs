//! A resumable file transfer.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::verify::{Digest, Hasher};

/// A partial download: the bytes so far and their hash.
pub struct Transfer {
    /// The partial file.
    pub path: PathBuf,
    file: File,
    /// Bytes so far.
    pub n_bytes: u64,
    size_bytes: u64,
    /// The hash of the bytes so far.
    pub hasher: Hasher,
    fresh_hasher: Hasher,
}

impl Transfer {
    /// Resumes the partial file at `path`; starts from nothing if it does not exist or is too long.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn resume(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let fresh_hasher = digest.hasher(size_bytes);
        let mut hasher = fresh_hasher.clone();
        let n_bytes = match file.metadata()?.len() {
            n_bytes if n_bytes <= size_bytes => hasher.update_from(&mut file)?,
            _ => 0,
        };
        let mut transfer = Self { path: path.to_owned(), file, n_bytes, size_bytes, hasher, fresh_hasher };
        if n_bytes == 0 {
            transfer.rewind()?;
        }
        Ok(transfer)
    }

    /// Starts from nothing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn restart(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
        File::create(path)?;
        Self::resume(path, digest, size_bytes)
    }

    /// Drops all bytes so far.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn rewind(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        std::io::Seek::rewind(&mut self.file)?;
        self.n_bytes = 0;
        self.hasher = self.fresh_hasher.clone();
        Ok(())
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Whether all bytes are there and have the digest.
    pub fn is_complete(&self, digest: &Digest) -> bool {
        self.n_bytes == self.size_bytes && self.hasher.clone().into_digest() == *digest
    }
}
