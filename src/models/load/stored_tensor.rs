//! A tensor in a mapped file.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::mapped_file::MappedFile;
use super::unpack::dequantize;
use crate::error::{Error, Result};
use crate::gguf::TensorType;

/// The location, type and shape of a tensor in a mapped file.
pub struct StoredTensor<'a> {
    /// The file.
    pub map: &'a MappedFile,
    /// The type of its elements.
    pub tensor_type: TensorType,
    /// The dimensions, outermost first.
    pub shape: &'a [usize],
    /// The range of its bytes in the file.
    pub bytes: Range<usize>,
}

impl StoredTensor<'_> {
    /// The tensor's bytes: whole blocks of its type.
    pub fn blocks(&self) -> &[u8] {
        &self.map.bytes()[self.bytes.clone()]
    }

    /// Dequantizes all elements to float32, in the tensor's own shape, and releases its pages.
    ///
    /// # Errors
    /// When the type is not supported.
    pub fn dequantize(&self) -> Result<Tensor> {
        let values = dequantize(self.tensor_type, self.blocks())?;
        self.release();
        Ok(Tensor::from_vec(values, self.shape, &Device::Cpu)?)
    }

    /// Releases the tensor's pages.
    pub fn release(&self) {
        self.map.release(self.bytes.clone());
    }

    /// Adds the tensor's name and file to an error.
    pub fn in_tensor(&self, name: &str, e: Error) -> Error {
        e.context(format_args!("tensor `{name}` of `{}`", self.map.path().display()))
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
