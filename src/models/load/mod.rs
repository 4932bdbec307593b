//! Loads weights from GGUF and safetensors files.
//!
//! Model families ask for tensors by their names in the checkpoint; [`Weights`] hides the file format.

mod codebook;
mod experts;
mod gguf;
mod i_quant_grids;
mod i_quants;
mod model_file;
mod repack;
mod row_selection;
mod safetensors;
mod stored_tensor;
mod unpack;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

pub use gguf::GgufFile;
pub use row_selection::RowSelection;
pub use safetensors::{SafetensorsFiles, SafetensorsHeader};

use self::repack::{format_for, pack_floats, repack};
use self::stored_tensor::{StoredTensor, check_shape};
use super::backend::Backend;
use super::layers::linear::{Linear, Weight};
use crate::error::Result;
use crate::gguf::TensorType;

/// A checkpoint's tensors by name.
pub enum Weights {
    /// The tensors of a GGUF file.
    Gguf(GgufFile),
    /// The tensors of safetensors files.
    Safetensors(SafetensorsFiles),
}

impl Weights {
    /// Loads a tensor as float32.
    ///
    /// # Errors
    /// When the checkpoint has no such tensor, or it has another shape or an unsupported type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.stored(name)?;
        check_shape(name, stored.shape, shape)?;
        stored.dequantize().map_err(|e| stored.in_tensor(name, e))
    }

    /// Loads a weight matrix: the selected `rows` of the tensor `name`, each of `n_in` elements. A tensor
    /// with more than two dimensions counts as all its matrices, one below the other.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn matrix(&self, name: &str, rows: &RowSelection, n_in: usize, backend: Backend) -> Result<Weight> {
        let stored = self.stored(name)?;
        check_shape(name, &stored.matrix_shape(), &[rows.n_stored(), n_in])?;
        let weight = match backend {
            Backend::Reference => stored.dequantize().and_then(|all| {
                let all = all.reshape((rows.n_stored(), n_in))?;
                Ok(Weight::Dense(rows.select(&all)?))
            }),
            Backend::Kernels(isa) | Backend::KernelsBf16(isa) => {
                let read = |start: usize, buffer: &mut [u8]| stored.read(start, buffer);
                let repacked = repack(stored.tensor_type, &read, rows, n_in, backend.is_bf16());
                repacked.map(|matrix| Weight::Packed { matrix: Arc::new(matrix), isa })
            }
        };
        weight.map_err(|e| stored.in_tensor(name, e))
    }

    /// Loads the transposes of ranges of rows of the tensor `name`, which has `n_stored` rows of `n_in` elements. For the
    /// kernels they keep the precision of floats; quantized numbers become float32.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn transposed_ranges(
        &self,
        name: &str,
        ranges: impl Iterator<Item = Range<usize>>,
        n_stored: usize,
        n_in: usize,
        backend: Backend,
    ) -> Result<Vec<Weight>> {
        let stored = self.stored(name)?;
        check_shape(name, &stored.matrix_shape(), &[n_stored, n_in])?;
        let transposed = || {
            let all = stored.dequantize()?.reshape((n_stored, n_in))?;
            let transpose = |range: Range<usize>| {
                let part = all.narrow(0, range.start, range.len())?.t()?.contiguous()?;
                match backend {
                    Backend::Reference => Ok(Weight::Dense(part)),
                    Backend::Kernels(isa) | Backend::KernelsBf16(isa) => {
                        let matrix = Arc::new(pack_floats(stored.tensor_type, &part)?);
                        Ok(Weight::Packed { matrix, isa })
                    }
                }
            };
            ranges.map(transpose).collect::<Result<Vec<_>>>()
        };
        transposed().map_err(|e| stored.in_tensor(name, e))
    }

    /// Loads a linear layer: the matrix `name.weight`, and the bias `name.bias` if there is one.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn linear(&self, name: &str, rows: &RowSelection, n_in: usize, backend: Backend) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), rows, n_in, backend)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.contains(&bias_name) {
            Some(rows.select(&self.vector(&bias_name, rows.n_stored())?)?.to_vec1()?)
        } else {
            None
        };
        Ok(Linear::new(weight, bias))
    }

    /// Loads a tensor of `n` elements in whatever shape as float32, `[n]`.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        let stored = self.stored(name)?;
        check_shape(name, &[stored.shape.iter().product()], &[n])?;
        stored.dequantize().and_then(|all| Ok(all.flatten_all()?)).map_err(|e| stored.in_tensor(name, e))
    }

    /// The number of rows of a tensor, if there is one of this name.
    pub fn n_rows(&self, name: &str) -> Option<usize> {
        self.stored(name).ok().and_then(|stored| stored.shape.first().copied())
    }

    /// The memory that a decoder's weights take once they are loaded for the kernels, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.sum_bytes(|_| true)
    }

    /// The memory that an encoder's weights take, whose embedding tables are dequantized.
    pub fn encoder_memory_bytes(&self) -> u64 {
        self.sum_bytes(|name| !["embeddings.", "embd."].iter().any(|table| name.contains(table)))
    }

    /// The memory of all tensors, of which only those whose names `is_packed` accepts are packed.
    fn sum_bytes(&self, is_packed: impl Fn(&str) -> bool) -> u64 {
        let tensor_bytes = |(name, stored): (&str, StoredTensor)| {
            let [n_out, n_in] = stored.matrix_shape();
            match format_for(stored.tensor_type) {
                Some(format) if stored.shape.len() > 1 && is_packed(name) => format.matrix_bytes(n_out, n_in),
                _ => n_out * n_in * size_of::<f32>(),
            }
        };
        let total: usize = match self {
            Self::Gguf(file) => file.all_stored().map(tensor_bytes).sum(),
            // Bytes are the codes of MXFP4 and its scales, whose packed form has 18 bytes for 17.
            Self::Safetensors(files) => {
                let mxfp4_bytes = files.n_bytes_of_bytes();
                files.all_stored().map(tensor_bytes).sum::<usize>() + mxfp4_bytes + mxfp4_bytes / 17
            }
        };
        total as u64
    }

    /// The name of the type that most weights have.
    pub fn main_type(&self) -> Option<String> {
        let mut n_elements: HashMap<TensorType, usize> = HashMap::new();
        let mut count = |(_, stored): (&str, StoredTensor)| {
            *n_elements.entry(stored.tensor_type).or_default() += stored.shape.iter().product::<usize>();
        };
        match self {
            Self::Gguf(file) => file.all_stored().for_each(&mut count),
            Self::Safetensors(files) => files.all_stored().for_each(&mut count),
        }
        n_elements.into_iter().max_by_key(|&(_, n)| n).map(|(tensor_type, _)| tensor_type.to_string())
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.contains(name),
            Self::Safetensors(files) => files.contains(name),
        }
    }

    /// Locates a tensor of bytes.
    fn bytes(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self {
            Self::Gguf(file) => file.stored(name),
            Self::Safetensors(files) => files.bytes(name),
        }
    }

    fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        match self {
            Self::Gguf(file) => file.stored(name),
            Self::Safetensors(files) => files.stored(name),
        }
    }
}
