//! GGUF files, read by candle from a memory map.

use std::collections::HashMap;
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{QStorage, QTensor};

use super::super::DecoderConfig;
use super::map_file;
use crate::error::{Error, Result};

/// An open GGUF file: its header in memory, its tensors on disk until they are asked for.
pub struct GgufFile {
    path: PathBuf,
    map: memmap2::Mmap,
    content: Content,
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
        let unreadable =
            |why: &str| Error::model(format!("`{}` is not a readable GGUF file: {why}", path.display()));
        // candle computes with some of the header's numbers before it checks them (it divides by the
        // alignment), so a damaged header may panic.
        let content = catch_unwind(|| Content::read(&mut Cursor::new(&map[..])))
            .map_err(|_| unreadable("its header is damaged"))?
            .map_err(|e| unreadable(&e.to_string()))?;
        let mut expanded_bytes = 0usize;
        for (name, info) in &content.tensor_infos {
            let dims =
                info.shape.dims().iter().try_fold(size_of::<f32>(), |product, &n| product.checked_mul(n));
            expanded_bytes = dims
                .filter(|&n_bytes| n_bytes > 0)
                .and_then(|n_bytes| expanded_bytes.checked_add(n_bytes))
                .ok_or_else(|| unreadable(&format!("tensor `{name}` has impossible dimensions")))?;
        }
        Ok(Self { path: path.to_owned(), map, content, expands: expanded_bytes <= EXPAND_BYTES })
    }

    /// The same file with its matrices left as they are.
    pub fn unexpanded(self) -> Self {
        Self { expands: false, ..self }
    }

    /// The header's keys and values.
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.content.metadata
    }

    /// What the header says of the model.
    ///
    /// # Errors
    /// When it lacks a key or contradicts itself.
    pub fn decoder_config(&self) -> Result<DecoderConfig> {
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let n_vocab = embedding
            .and_then(|info| info.shape.dims().first().copied())
            .ok_or_else(|| Error::model("GGUF file has no tensor `token_embd.weight`"))?;
        let rope_divisors = if self.contains("rope_freqs.weight") {
            Some(self.tensor("rope_freqs.weight")?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?)
        } else {
            None
        };
        DecoderConfig::from_gguf(self.metadata(), n_vocab, rope_divisors)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    pub(super) fn expands(&self) -> bool {
        self.expands
    }

    pub(super) fn tensor(&self, name: &str) -> Result<QTensor> {
        self.content.tensor(&mut Cursor::new(&self.map[..]), name, &Device::Cpu).map_err(|e| {
            Error::model(format!("cannot read tensor `{name}` of `{}`: {e}", self.path.display()))
        })
    }

    /// A matrix made of the given rows of a tensor, still quantized: rows are whole blocks.
    pub(super) fn tensor_rows(&self, name: &str, rows: &[u32]) -> Result<QTensor> {
        let tensor = self.tensor(name)?;
        let (n_rows, n_in) = tensor.shape().dims2()?;
        let data = tensor.data()?;
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
        let storage = QStorage::from_data(picked.into(), &Device::Cpu, tensor.dtype())?;
        Ok(QTensor::new(storage, (rows.len(), n_in))?)
    }
}
