//! Weights from files.
//!
//! Families ask for tensors by the name their checkpoint gives them; [`Weights`] hides whether a
//! GGUF or a safetensors file answers.

mod blocks;
mod expand;
mod gguf;
mod pack;
mod safetensors;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

pub use gguf::GgufFile;
pub use safetensors::{SafetensorsFiles, SafetensorsHeader};

use self::expand::expand;
use self::pack::pack;
use super::Arithmetic;
use super::layers::linear::{Linear, Weight};
use crate::error::{Error, Result};
use crate::gguf::TensorType;

/// A checkpoint's tensors by name.
pub enum Weights {
    Gguf(GgufFile),
    Safetensors(SafetensorsFiles),
}

/// A tensor in a file.
struct StoredTensor<'a> {
    map: &'a MappedFile,
    tensor_type: TensorType,
    /// Outermost dimension first.
    shape: &'a [usize],
    bytes: Range<usize>,
}

impl StoredTensor<'_> {
    fn blocks(&self) -> &[u8] {
        &self.map.bytes()[self.bytes.clone()]
    }

    /// All numbers as float32, in its own shape. Its pages are given back.
    fn expand(&self) -> Result<Tensor> {
        let numbers = expand(self.tensor_type, self.blocks())?;
        self.map.release(self.bytes.clone());
        Ok(Tensor::from_vec(numbers, self.shape, &Device::Cpu)?)
    }

    fn in_tensor(&self, name: &str, e: Error) -> Error {
        e.context(format_args!("tensor `{name}` of `{}`", self.map.path.display()))
    }

    /// The shape of all its matrices, one below the other.
    fn matrix_shape(&self) -> [usize; 2] {
        let (n_in, outer) = self.shape.split_last().unwrap_or((&1, &[]));
        [outer.iter().product(), *n_in]
    }
}

impl Weights {
    /// A tensor as float32.
    ///
    /// # Errors
    /// When the checkpoint has no such tensor or it is not of `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.stored(name)?;
        check_shape(name, stored.shape, shape)?;
        stored.expand().map_err(|e| stored.in_tensor(name, e))
    }

    /// A matrix to multiply with: those `rows` of the tensor `name`, each of `n_in` numbers. A tensor
    /// of more than two dimensions is taken as the rows of all its matrices.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn matrix(&self, name: &str, rows: &Rows, n_in: usize, arithmetic: Arithmetic) -> Result<Weight> {
        let stored = self.stored(name)?;
        check_shape(name, &stored.matrix_shape(), &[rows.n_stored, n_in])?;
        let weight = match arithmetic {
            Arithmetic::Reference => stored.expand().and_then(|all| {
                let all = all.reshape((rows.n_stored, n_in))?;
                Ok(Weight::Dense(rows.pick(&all)?))
            }),
            Arithmetic::Kernels(isa) | Arithmetic::Rounding(isa) => {
                let packed = pack(stored.tensor_type, stored.blocks(), rows, n_in, arithmetic.rounds());
                packed.map(|matrix| {
                    stored.map.release(stored.bytes.clone());
                    Weight::Packed { matrix: Arc::new(matrix), isa }
                })
            }
        };
        weight.map_err(|e| stored.in_tensor(name, e))
    }

    /// `name.weight` with `name.bias` where there is one.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn linear(&self, name: &str, rows: &Rows, n_in: usize, arithmetic: Arithmetic) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), rows, n_in, arithmetic)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.contains(&bias_name) {
            Some(rows.pick(&self.tensor(&bias_name, &[rows.n_stored])?)?.to_vec1()?)
        } else {
            None
        };
        Ok(Linear::new(weight, bias))
    }

    /// How many rows a tensor has, if there is one of this name.
    pub fn n_rows(&self, name: &str) -> Option<usize> {
        self.stored(name).ok().and_then(|stored| stored.shape.first().copied())
    }

    /// Bytes that a decoder's weights take in memory once they are loaded for the kernels.
    pub fn memory_bytes(&self) -> u64 {
        let of_tensor = |stored: StoredTensor| {
            let [n_out, n_in] = stored.matrix_shape();
            match pack::format_of(stored.tensor_type) {
                Some(format) if stored.shape.len() > 1 => format.matrix_bytes(n_out, n_in),
                _ => n_out * n_in * size_of::<f32>(),
            }
        };
        let all: usize = match self {
            Self::Gguf(file) => file.all_stored().map(of_tensor).sum(),
            Self::Safetensors(files) => files.all_stored().map(of_tensor).sum(),
        };
        all as u64
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.contains(name),
            Self::Safetensors(files) => files.contains(name),
        }
    }

    fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self {
            Self::Gguf(file) => file.stored(name),
            Self::Safetensors(files) => files.stored(name),
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

    /// How many there are.
    fn len(&self) -> usize {
        match &self.picked {
            Picked::Range(range) => range.len(),
            Picked::Each(rows) => rows.len(),
        }
    }

    /// Which of the stored rows is row `idx`.
    fn stored(&self, idx: usize) -> usize {
        match &self.picked {
            Picked::Range(range) => range.start + idx,
            Picked::Each(rows) => rows[idx] as usize,
        }
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
struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

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
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(in_file)?;
        Ok(Self { path: path.to_owned(), map })
    }

    fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives back the memory of a part that has been read; reading it again reads the file again.
    fn release(&self, part: Range<usize>) {
        // SAFETY: the mapping is of a file, shared and never written to, so the pages that are
        // dropped come back with the same bytes.
        let released = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len())
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
