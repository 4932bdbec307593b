//! A file on its way in.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::verify::{Digest, Hasher};

/// A file on its way in: the bytes so far and their digest.
pub struct Transfer {
    pub path: PathBuf,
    file: File,
    pub n_bytes: u64,
    size_bytes: u64,
    pub hasher: Hasher,
    fresh_hasher: Hasher,
}

impl Transfer {
    /// Goes on with the file at `path`, if there is one that is not too long.
    pub fn take_up(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
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

    pub fn anew(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
        File::create(path)?;
        Self::take_up(path, digest, size_bytes)
    }

    pub fn rewind(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        std::io::Seek::rewind(&mut self.file)?;
        self.n_bytes = 0;
        self.hasher = self.fresh_hasher.clone();
        Ok(())
    }

    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    pub fn is_right(&self, digest: &Digest) -> bool {
        self.n_bytes == self.size_bytes && self.hasher.clone().finish() == *digest
    }
}
