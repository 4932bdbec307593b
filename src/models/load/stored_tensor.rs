//! A tensor in a model file.

use std::ops::Range;

use candle_core::Tensor;

use super::model_file::ModelFile;
use super::unpack::dequantize;
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::models::backend::DEVICE;

/// Elements that are read and dequantized at once, whole blocks of every type: bytes and values stay in the cache.
const CHUNK_LEN: usize = 1 << 16;

/// The location, type and shape of a tensor in a model file.
pub struct StoredTensor<'a> {
    /// The file.
    pub file: &'a ModelFile,
    /// The type of its elements.
    pub tensor_type: TensorType,
    /// The dimensions, outermost first.
    pub shape: &'a [usize],
    /// The range of its bytes in the file: whole blocks of its type.
    pub bytes: Range<usize>,
}

impl StoredTensor<'_> {
    /// Fills `buffer` with the tensor's bytes from its `start` on.
    ///
    /// # Errors
    /// When the file cannot be read, or has been cut short.
    ///
    /// # Panics
    /// When the tensor has fewer bytes.
    pub fn read(&self, start: usize, buffer: &mut [u8]) -> Result<()> {
        assert!(start + buffer.len() <= self.bytes.len(), "{start} + {} of {:?}", buffer.len(), self.bytes);
        self.file.read(self.bytes.start + start, buffer)
    }

    /// Dequantizes all elements to float32, in the tensor's own shape.
    ///
    /// # Errors
    /// When the type is not supported, or the file cannot be read.
    pub fn dequantize(&self) -> Result<Tensor> {
        let Self { tensor_type, .. } = *self;
        let mut values = vec![0.0; self.shape.iter().product()];
        let mut blocks = Vec::new();
        let mut start = 0;
        for values in values.chunks_mut(CHUNK_LEN) {
            blocks.resize(values.len() / tensor_type.block_len() * tensor_type.block_bytes(), 0);
            self.read(start, &mut blocks)?;
            dequantize(tensor_type, &blocks, values)?;
            start += blocks.len();
        }
        Ok(Tensor::from_vec(values, self.shape, &DEVICE)?)
    }

    /// Adds the tensor's name and file to an error.
    pub fn in_tensor(&self, name: &str, e: Error) -> Error {
        e.context(format_args!("tensor `{name}` of `{}`", self.file.path().display()))
    }

    /// The shape `[n_out, n_in]` of all matrices of the tensor, one below the other.
    pub fn matrix_shape(&self) -> [usize; 2] {
        let (n_in, outer) = self.shape.split_last().unwrap_or((&1, &[]));
        [outer.iter().product(), *n_in]
    }
}

/// Checks that the tensor `name` has the shape that the configuration requires.
///
/// # Errors
/// When it has another.
pub fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::model(format!(
        "tensor `{name}` has shape {found:?} where the configuration requires {expected:?}; the file is damaged \
         or of another model"
    )))
}
