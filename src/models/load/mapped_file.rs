//! Memory-mapped model files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A memory-mapped file; its pages are read when they are first accessed.
pub struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let in_file = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
        let file = std::fs::File::open(path).map_err(in_file)?;
        // SAFETY: the bytes behind the map must not change while it exists. The registry downloads a model
        // file under another name and renames it when it is complete, and nothing in this program writes to
        // it afterwards. Another process that truncates a mapped file ends this one with SIGBUS; no program
        // that maps files can rule that out.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(in_file)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path the file was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Releases the pages of a part that is no longer needed; a later access reads the file again.
    pub fn release(&self, part: Range<usize>) {
        // SAFETY: `DONTNEED` discards pages, which loses data in private mappings that were written to. This
        // mapping is a `memmap2::Mmap`, which is shared and read-only, so discarded pages are read from the
        // file again.
        let released = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len())
        };
        // A failure costs memory only.
        if let Err(e) = released {
            tracing::debug!(error = %e, "cannot release the memory of a model file");
        }
    }
}
