//! Model files, read part by part.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// An open model file. A part is read when it is loaded, into memory that the loader owns. It is never mapped: a file
/// that another process cuts short meanwhile is then an error, and not a SIGBUS that ends this process.
pub struct ModelFile {
    path: PathBuf,
    file: File,
    n_bytes: usize,
}

impl ModelFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened, or is something else than a file: opening a pipe would wait for a writer.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot_read = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
        if !fs::metadata(path).map_err(cannot_read)?.is_file() {
            return Err(Error::model(format!("`{}` is not a file; name a model file", path.display())));
        }
        let file = File::open(path).map_err(cannot_read)?;
        let n_bytes = file.metadata().map_err(cannot_read)?.len();
        let n_bytes = usize::try_from(n_bytes)
            .map_err(|_| Error::model(format!("`{}` is too large for this machine", path.display())))?;
        Ok(Self { path: path.to_owned(), file, n_bytes })
    }

    /// The path the file was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file when it was opened.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Fills `buffer` with the bytes from `start` on.
    ///
    /// # Errors
    /// When the file cannot be read, or has been cut short since it was opened.
    pub fn read(&self, start: usize, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, start as u64).map_err(|e| {
            let path = self.path.display();
            match e.kind() {
                ErrorKind::UnexpectedEof => Error::model(format!(
                    "`{path}` was cut short while it was read: it had {} bytes; download it again, and replace a \
                     model file by renaming a new one instead of writing to it",
                    self.n_bytes
                )),
                _ => Error::model(format!("cannot read `{path}`: {e}")),
            }
        })
    }

    /// Reads the first `n` bytes, or the whole file if it is shorter.
    ///
    /// # Errors
    /// Those of [`ModelFile::read`].
    pub fn read_start(&self, n: usize) -> Result<Vec<u8>> {
        let mut start = vec![0; n.min(self.n_bytes)];
        self.read(0, &mut start)?;
        Ok(start)
    }
}
