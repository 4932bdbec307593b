//! Weights from files.
//!
//! Families ask for tensors by the name their checkpoint gives them; [`Weights`] hides whether a
//! GGUF or a safetensors file answers.

mod blocks;
mod expand;
mod gguf;
mod safetensors;

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};

pub use gguf::GgufFile;
pub use safetensors::{SafetensorsFiles, SafetensorsHeader};

use super::layers::linear::{Linear, Weight};
use crate::error::{Error, Result};

/// A checkpoint's tensors by name.
pub enum Weights {
    Gguf(GgufFile),
    Safetensors(SafetensorsFiles),
}

impl Weights {
    /// A tensor as float32.
    ///
    /// # Errors
    /// When the checkpoint has no such tensor or it is not of `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::Gguf(file) => {
                check_shape(name, file.shape(name)?, shape)?;
                file.tensor(name)
            }
            Self::Safetensors(files) => {
                check_shape(name, files.shape(name)?, shape)?;
                files.tensor(name)
            }
        }
    }

    /// A matrix to multiply with: those `rows` of `name.weight`, each of `n_in` numbers, and of
    /// `name.bias` where there is one.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn linear(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let weight = match self {
            Self::Gguf(file) => file.matrix(&weight_name, rows, n_in)?,
            Self::Safetensors(_) => {
                Weight::Dense(rows.pick(&self.tensor(&weight_name, &[rows.n_stored, n_in])?)?)
            }
        };
        let bias_name = format!("{name}.bias");
        let bias = if self.contains(&bias_name) {
            Some(rows.pick(&self.tensor(&bias_name, &[rows.n_stored])?)?)
        } else {
            None
        };
        Ok(Linear::new(weight, bias))
    }

    /// How many rows a tensor has, if there is one of this name.
    pub fn n_rows(&self, name: &str) -> Option<usize> {
        match self {
            Self::Gguf(file) => file.n_rows(name).ok(),
            Self::Safetensors(files) => files.n_rows(name),
        }
    }

    /// Bytes that the model's weights take in memory once they are loaded.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Gguf(file) => file.memory_bytes(),
            Self::Safetensors(files) => files.memory_bytes(),
        }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.contains(name),
            Self::Safetensors(files) => files.contains(name),
        }
    }
}

/// Which rows of a stored matrix make up the one that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    n_stored: usize,
    picked: Picked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Picked {
    Range(Range<usize>),
    /// The stored rows by number, in the wanted order.
    Each(Vec<u32>),
}

impl Rows {
    /// All `n` rows.
    pub fn all(n: usize) -> Self {
        Self::range(0..n, n)
    }

    /// Some of `n_stored` rows.
    pub fn range(range: Range<usize>, n_stored: usize) -> Self {
        Self { n_stored, picked: Picked::Range(range) }
    }

    /// All rows, in which the pairs of each head lie interleaved, `(0, 1), (2, 3), …`, put in the
    /// order of two halves, `0, 2, … 1, 3, …`.
    pub fn halves_apart(n_heads: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let row = move |head: usize, i: usize| (head * head_dim + 2 * (i % half) + i / half) as u32;
        let rows = (0..n_heads).flat_map(|head| (0..head_dim).map(move |i| row(head, i)));
        Self { n_stored: n_heads * head_dim, picked: Picked::Each(rows.collect()) }
    }

    /// The picked part of a tensor along its first dimension.
    fn pick(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match &self.picked {
            Picked::Range(range) if range.len() == self.n_stored => tensor.clone(),
            Picked::Range(range) => tensor.narrow(0, range.start, range.len())?.copy()?,
            Picked::Each(rows) => tensor.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)?,
        })
    }

    /// The same for rows of `row_bytes` bytes each.
    fn pick_bytes<'a>(&self, bytes: &'a [u8], row_bytes: usize) -> Cow<'a, [u8]> {
        match &self.picked {
            Picked::Range(range) => Cow::Borrowed(&bytes[range.start * row_bytes..range.end * row_bytes]),
            Picked::Each(rows) => {
                let mut picked = Vec::with_capacity(rows.len() * row_bytes);
                for &row in rows {
                    picked.extend_from_slice(&bytes[row as usize * row_bytes..][..row_bytes]);
                }
                Cow::Owned(picked)
            }
        }
    }
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::model(format!(
        "tensor `{name}` has shape {found:?} where the configuration asks for {expected:?}; the file is damaged or of another model"
    )))
}

/// A file in memory, read where it is touched.
struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    fn open(path: &Path) -> Result<Self> {
        let in_file = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
        let file = std::fs::File::open(path).map_err(in_file)?;
        // SAFETY: model files are written under another name and renamed when complete, and never
        // changed in place afterwards; a file that someone else truncates while it is mapped ends
        // the process with SIGBUS, as in every program that maps.
        Ok(Self(unsafe { memmap2::Mmap::map(&file) }.map_err(in_file)?))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives back the memory of a part that has been read; reading it again reads the file again.
    fn release(&self, part: Range<usize>) {
        // SAFETY: the mapping is of a file, shared and never written to, so the pages that are
        // dropped come back with the same bytes.
        let released = unsafe {
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len())
        };
        // Only memory is at stake.
        if let Err(e) = released {
            tracing::debug!(error = %e, "memory of a model file was not given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_come_apart() {
        let rows = Rows::halves_apart(2, 6);
        assert_eq!(
            rows.pick_bytes(&(0..12).collect::<Vec<u8>>(), 1)[..],
            [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
        );
    }
}
