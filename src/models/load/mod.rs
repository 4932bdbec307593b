//! Weights from files.
//!
//! Families ask for tensors by the name their checkpoint gives them; [`Weights`] hides whether a
//! GGUF or a safetensors file answers.

mod gguf;
mod safetensors;

use std::path::Path;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Tensor};

pub use gguf::GgufFile;
pub use safetensors::SafetensorsFiles;

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
        let tensor = match self {
            Self::Gguf(file) => file.tensor(name)?.dequantize(&Device::Cpu)?,
            Self::Safetensors(files) => files.tensor(name)?.to_dtype(DType::F32)?,
        };
        check_shape(name, tensor.dims(), shape)?;
        Ok(tensor)
    }

    /// A matrix to multiply with: `name.weight` `[n_out, n_in]`, and `name.bias` where there is one.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn linear(&self, name: &str, n_out: usize, n_in: usize) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let weight = match self {
            Self::Gguf(file) if !file.expands() => {
                quantized(&weight_name, file.tensor(&weight_name)?, &[n_out, n_in])?
            }
            _ => Weight::Dense(self.tensor(&weight_name, &[n_out, n_in])?),
        };
        let bias_name = format!("{name}.bias");
        let bias = if self.contains(&bias_name) { Some(self.tensor(&bias_name, &[n_out])?) } else { None };
        Ok(Linear::new(weight, bias))
    }

    /// Like [`Weights::linear`], for a matrix whose query or key heads a GGUF file of the llama
    /// family stores with the two halves of each head interleaved; they are put back side by side.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn rotary_linear(&self, name: &str, n_heads: usize, head_dim: usize, n_in: usize) -> Result<Linear> {
        let Self::Gguf(file) = self else { return self.linear(name, n_heads * head_dim, n_in) };
        let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        let shape = [n_heads * head_dim, n_in];
        let rows = halves_apart(n_heads, head_dim);
        let row_idx = Tensor::from_slice(&rows, shape[0], &Device::Cpu)?;
        let bias = if self.contains(&bias_name) {
            Some(self.tensor(&bias_name, &shape[..1])?.index_select(&row_idx, 0)?)
        } else {
            None
        };
        if !file.expands() {
            let weight = quantized(&weight_name, file.tensor_rows(&weight_name, &rows)?, &shape)?;
            return Ok(Linear::new(weight, bias));
        }
        let weight = self.tensor(&weight_name, &shape)?.index_select(&row_idx, 0)?;
        Ok(Linear::new(Weight::Dense(weight), bias))
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.contains(name),
            Self::Safetensors(files) => files.contains(name),
        }
    }
}

/// Source rows, in order, that turn interleaved pairs `(0, 1), (2, 3), …` of each head into two
/// halves `0, 2, … 1, 3, …`.
fn halves_apart(n_heads: usize, head_dim: usize) -> Vec<u32> {
    let half = head_dim / 2;
    (0..n_heads)
        .flat_map(|head| (0..head_dim).map(move |i| (head * head_dim + 2 * (i % half) + i / half) as u32))
        .collect()
}

fn quantized(name: &str, tensor: QTensor, shape: &[usize]) -> Result<Weight> {
    check_shape(name, tensor.shape().dims(), shape)?;
    Ok(Weight::Quantized(QMatMul::from_qtensor(tensor)?))
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::model(format!(
        "tensor `{name}` has shape {found:?} where the configuration asks for {expected:?}; the file is damaged or of another model"
    )))
}

/// Maps a file into memory.
///
/// # Errors
/// When the file cannot be opened or mapped.
fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let in_file = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(in_file)?;
    // SAFETY: the one mapping outside `kernels`. Model files are written under another name and
    // renamed when complete, and never changed in place afterwards; a file that someone else
    // truncates while it is mapped ends the process with SIGBUS, as in every program that maps.
    unsafe { memmap2::Mmap::map(&file) }.map_err(in_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_come_apart() {
        assert_eq!(halves_apart(2, 6), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
