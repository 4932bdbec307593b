//! Tensors of a GGUF file, read from a memory map.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use super::super::DecoderConfig;
use super::map_file;
use crate::error::{Error, Result};
use crate::gguf::{Header, Metadata, TensorInfo, TensorType};

/// An open GGUF file: its header in memory, its tensors on disk until they are asked for.
pub struct GgufFile {
    path: PathBuf,
    map: memmap2::Mmap,
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

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// When it cannot be read or is not GGUF.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let header = Header::parse(&map)
            .map_err(|e| e.context(format_args!("`{}` is not a readable GGUF file", path.display())))?;
        let n_elements = header.tensors.values().map(TensorInfo::n_elements).fold(0, usize::saturating_add);
        let expands = n_elements <= EXPAND_BYTES / size_of::<f32>();
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

    /// What the header says of the model.
    ///
    /// # Errors
    /// When it lacks a key or contradicts itself.
    pub fn decoder_config(&self) -> Result<DecoderConfig> {
        let n_vocab = self.info("token_embd.weight")?.shape[0];
        let rope_divisors = if self.contains("rope_freqs.weight") {
            Some(self.tensor("rope_freqs.weight")?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?)
        } else {
            None
        };
        DecoderConfig::from_gguf(self.metadata(), n_vocab, rope_divisors)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    pub(super) fn expands(&self) -> bool {
        self.expands
    }

    pub(super) fn tensor(&self, name: &str) -> Result<QTensor> {
        let info = self.info(name)?;
        quantized(info, &self.map[info.range.clone()], &info.shape)
            .map_err(|e| e.context(format_args!("tensor `{name}` of `{}`", self.path.display())))
    }

    /// A matrix made of the given rows of a tensor, still quantized: rows are whole blocks.
    pub(super) fn tensor_rows(&self, name: &str, rows: &[u32]) -> Result<QTensor> {
        let info = self.info(name)?;
        let data = &self.map[info.range.clone()];
        let n_rows = info.shape[0];
        let row_bytes = data.len() / n_rows;
        let mut picked = Vec::with_capacity(rows.len() * row_bytes);
        for &row in rows {
            let start = row as usize * row_bytes;
            let bytes = data.get(start..start + row_bytes).ok_or_else(|| {
                Error::model(format!(
                    "tensor `{name}` has {n_rows} rows where the configuration asks for {}",
                    rows.len()
                ))
            })?;
            picked.extend_from_slice(bytes);
        }
        let shape = [&[rows.len()], &info.shape[1..]].concat();
        quantized(info, &picked, &shape)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.tensors.get(name).ok_or_else(|| {
            Error::model(format!("GGUF file `{}` has no tensor `{name}`", self.path.display()))
        })
    }
}

fn quantized(info: &TensorInfo, bytes: &[u8], shape: &[usize]) -> Result<QTensor> {
    let dtype = candle_type(info.kind)
        .ok_or_else(|| Error::model(format!("its type {} is not supported", info.kind)))?;
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
    Ok(QTensor::new(storage, shape)?)
}

fn candle_type(kind: TensorType) -> Option<GgmlDType> {
    Some(match kind {
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
