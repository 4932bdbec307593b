//! GGUF files, read by candle from a memory map.

use std::collections::HashMap;
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::quantized::{QStorage, QTensor};

use super::{Rows, check_shape, map_file};
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

    /// Bytes that the tensors take in memory once they are loaded.
    pub(super) fn memory_bytes(&self) -> u64 {
        let of_tensor = |info: &TensorInfo| {
            let n_elements = info.shape.elem_count();
            if self.expands {
                n_elements * size_of::<f32>()
            } else {
                n_elements / info.ggml_dtype.block_size() * info.ggml_dtype.type_size()
            }
        };
        self.content.tensor_infos.values().map(of_tensor).sum::<usize>() as u64
    }

    /// The name of the model's architecture.
    ///
    /// # Errors
    /// When the header does not say.
    pub fn architecture(&self) -> Result<&str> {
        let value = self.metadata().get("general.architecture");
        let name = value.and_then(|value| value.to_string().ok());
        name.map(String::as_str).ok_or_else(|| Error::model("GGUF file has no `general.architecture`"))
    }

    /// The token id under a key.
    ///
    /// # Errors
    /// When something else stands there.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.metadata().get(key) else { return Ok(None) };
        gguf_integer(value)
            .and_then(|id| u32::try_from(id).ok())
            .map(Some)
            .ok_or_else(|| Error::model(format!("`{key}` of the GGUF file is not a token id")))
    }

    /// How many rows a matrix has.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn n_rows(&self, name: &str) -> Result<usize> {
        let rows = self.content.tensor_infos.get(name).and_then(|info| info.shape.dims().first().copied());
        rows.ok_or_else(|| Error::model(format!("GGUF file has no tensor `{name}`")))
    }

    /// The numbers of a one-dimensional tensor, if there is one of this name.
    ///
    /// # Errors
    /// When it is of another form.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        Ok(Some(self.tensor(name)?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?))
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

    /// Rows of a matrix, as the file has them: rows are whole blocks. A tensor of more than two
    /// dimensions is taken as the rows of all its matrices.
    pub(super) fn matrix(&self, name: &str, rows: &Rows, n_in: usize) -> Result<QTensor> {
        let missing = || Error::model(format!("`{}` has no tensor `{name}`", self.path.display()));
        let info = self.content.tensor_infos.get(name).ok_or_else(missing)?;
        let dims = info.shape.dims();
        let (&row_len, outer) = dims.split_last().ok_or_else(missing)?;
        let n_rows: usize = outer.iter().product();
        check_shape(name, &[n_rows, row_len], &[rows.n_stored, n_in])?;
        let row_bytes = n_in / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
        let start = self.content.tensor_data_offset as usize + info.offset as usize;
        let bytes = self.map.get(start..start + n_rows * row_bytes).ok_or_else(missing)?;
        let picked = rows.pick_bytes(bytes, row_bytes);
        let shape = (picked.len() / row_bytes, n_in);
        Ok(QTensor::new(QStorage::from_data(picked, &Device::Cpu, info.ggml_dtype)?, shape)?)
    }
}

/// A whole number of any type.
pub fn gguf_integer(value: &Value) -> Option<usize> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => usize::try_from(v).ok(),
        Value::U64(v) => usize::try_from(v).ok(),
        Value::I8(v) => usize::try_from(v).ok(),
        Value::I16(v) => usize::try_from(v).ok(),
        Value::I32(v) => usize::try_from(v).ok(),
        Value::I64(v) => usize::try_from(v).ok(),
        _ => None,
    }
}
