//! GGUF files, memory-mapped: headers by our own reader, blocks by candle's decoders and ours.

use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::super::layers::linear::Weight;
use super::{MappedFile, Rows, blocks, check_shape};
use crate::error::{Error, Result};
use crate::gguf::{Header, Metadata, TensorInfo, TensorType};

/// An open GGUF file: its header in memory, its tensors on disk until they are asked for.
pub struct GgufFile {
    path: PathBuf,
    map: MappedFile,
    header: Header,
    /// Whether matrices are expanded to float32.
    expands: bool,
}

/// Up to this many bytes of float32, quantized matrices are expanded at load.
///
/// candle's float32 product runs on all cores and keeps every bit of the activations; its
/// quantized product rounds them to 8 bits and has fast code for few formats only. Measured on
/// SmolLM2-135M Q4_1 with 2 threads (2026-11-23): prefill 17 times and decode 2.3 times as fast
/// expanded, at 540 MB instead of 96. Larger models stay as the file has them.
const EXPAND_BYTES: usize = 3 << 30;

/// Numbers expanded at once by one thread.
const CHUNK_LEN: usize = 1 << 16;

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// When it cannot be read or is not GGUF in good order.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes())
            .map_err(|e| e.context(format_args!("`{}` is not a readable GGUF file", path.display())))?;
        // Sizes are bounded by the file's, so the sum cannot overflow.
        let n_elements: usize = header.tensors().map(TensorInfo::n_elements).sum();
        let expands = n_elements.saturating_mul(size_of::<f32>()) <= EXPAND_BYTES;
        Ok(Self { path: path.to_owned(), map, header, expands })
    }

    /// The same file with its matrices left as they are.
    pub fn unexpanded(self) -> Self {
        Self { expands: false, ..self }
    }

    /// The header's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The name of the model's architecture.
    ///
    /// # Errors
    /// When the header does not say.
    pub fn architecture(&self) -> Result<&str> {
        let name = self.metadata().string("general.architecture")?;
        name.ok_or_else(|| Error::model("GGUF file has no `general.architecture`"))
    }

    /// How many rows a matrix has.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn n_rows(&self, name: &str) -> Result<usize> {
        Ok(self.info(name)?.shape[0])
    }

    /// The numbers of a one-dimensional tensor, if there is one of this name.
    ///
    /// # Errors
    /// When it is of another form.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.header.tensor(name) else { return Ok(None) };
        check_shape(name, &info.shape, &[info.n_elements()])?;
        Ok(Some(self.tensor(name)?.to_vec1::<f32>()?))
    }

    /// Bytes that the tensors take in memory once they are loaded.
    pub(super) fn memory_bytes(&self) -> u64 {
        let of_tensor = |info: &TensorInfo| {
            if self.expands { info.n_elements() * size_of::<f32>() } else { info.bytes.len() }
        };
        self.header.tensors().map(of_tensor).sum::<usize>() as u64
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.header.tensor(name).is_some()
    }

    /// A tensor as float32, in its own shape.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let numbers = expand(info.tensor_type, &self.map.bytes()[info.bytes.clone()]);
        let numbers = numbers.map_err(|e| self.in_tensor(name, e))?;
        self.map.release(info.bytes.clone());
        Ok(Tensor::from_vec(numbers, info.shape.as_slice(), &Device::Cpu)?)
    }

    /// Rows of a matrix to multiply with: rows are whole blocks. A tensor of more than two dimensions
    /// is taken as the rows of all its matrices.
    pub(super) fn matrix(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Weight> {
        let info = self.info(name)?;
        let (row_len, outer) = info.shape.split_last().unwrap_or((&1, &[]));
        check_shape(name, &[outer.iter().product(), *row_len], &[rows.n_stored, n_in])?;
        let row_bytes = n_in / info.tensor_type.block_len() * info.tensor_type.block_bytes();
        let stored = &self.map.bytes()[info.bytes.clone()];
        let picked = rows.pick_bytes(stored, row_bytes);
        let shape = (picked.len() / row_bytes, n_in);
        let weight = match candle_type(info.tensor_type) {
            Some(dtype) if !self.expands => {
                let storage = QStorage::from_data(picked, &Device::Cpu, dtype)?;
                Weight::quantized(QTensor::new(storage, shape)?)?
            }
            _ => {
                let numbers = expand(info.tensor_type, &picked).map_err(|e| self.in_tensor(name, e))?;
                let dense = Tensor::from_vec(numbers, shape, &Device::Cpu)?;
                if self.expands {
                    Weight::Dense(dense)
                } else {
                    // Nearest to a type that candle does not multiply with, at twice its size.
                    Weight::quantized(QTensor::quantize(&dense, GgmlDType::Q8_0)?)?
                }
            }
        };
        self.map.release(info.bytes.clone());
        Ok(weight)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::model(format!("`{}` has no tensor `{name}`", self.path.display()));
        self.header.tensor(name).ok_or_else(missing)
    }

    fn in_tensor(&self, name: &str, e: Error) -> Error {
        e.context(format_args!("tensor `{name}` of `{}`", self.path.display()))
    }
}

/// The numbers of whole blocks, on all cores.
fn expand(tensor_type: TensorType, blocks: &[u8]) -> Result<Vec<f32>> {
    let (block_len, block_bytes) = (tensor_type.block_len(), tensor_type.block_bytes());
    let mut numbers = vec![0f32; blocks.len() / block_bytes * block_len];
    let chunk_blocks = CHUNK_LEN / block_len;
    let chunks = numbers.par_chunks_mut(chunk_blocks * block_len);
    chunks.zip(blocks.par_chunks(chunk_blocks * block_bytes)).try_for_each(|(numbers, blocks)| {
        if let Some(decode) = blocks::decoder(tensor_type) {
            decode(blocks, numbers);
            return Ok::<_, Error>(());
        }
        let dtype = candle_type(tensor_type).ok_or_else(|| {
            Error::model(format!(
                "it is of type {tensor_type}, which is not supported; use a file of another quantization, such as \
                 Q4_K_M or Q8_0"
            ))
        })?;
        let storage = QStorage::from_data(blocks.into(), &Device::Cpu, dtype)?;
        let tensor = QTensor::new(storage, numbers.len())?.dequantize(&Device::Cpu)?;
        numbers.copy_from_slice(&tensor.to_vec1::<f32>()?);
        Ok(())
    })?;
    Ok(numbers)
}

/// candle's name for a type, if it has one.
fn candle_type(tensor_type: TensorType) -> Option<GgmlDType> {
    Some(match tensor_type {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::Bf16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}
