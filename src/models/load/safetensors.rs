//! safetensors files, memory-mapped, one or several shards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;

use super::MappedFile;
use crate::error::{Error, Result};

/// The shards of one checkpoint.
pub struct SafetensorsFiles {
    shards: Vec<MappedFile>,
    tensors: HashMap<String, Location>,
}

/// Where a tensor's bytes are.
struct Location {
    shard: usize,
    /// Offset of the shard's first tensor byte, behind the header.
    data_start: usize,
    info: TensorInfo,
}

impl SafetensorsFiles {
    /// Opens all shards and reads their headers.
    ///
    /// # Errors
    /// When a file cannot be read or is not safetensors.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Self { shards: Vec::new(), tensors: HashMap::new() };
        for (shard, path) in paths.iter().enumerate() {
            let map = MappedFile::open(path)?;
            let (header_bytes, metadata) =
                SafeTensors::read_metadata(map.bytes()).map_err(|e| not_safetensors(path, &e))?;
            let data_start = size_of::<u64>() + header_bytes;
            for (name, info) in metadata.tensors() {
                files.tensors.insert(name, Location { shard, data_start, info: info.clone() });
            }
            files.shards.push(map);
        }
        Ok(files)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn n_rows(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).and_then(|location| location.info.shape.first().copied())
    }

    /// All tensors as float32.
    pub(super) fn memory_bytes(&self) -> u64 {
        let n_elements = |location: &Location| location.info.shape.iter().product::<usize>() as u64;
        self.tensors.values().map(n_elements).sum::<u64>() * size_of::<f32>() as u64
    }

    /// A tensor in the file's own type.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let Location { shard, data_start, info } = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::model(format!("the checkpoint has no tensor `{name}`")))?;
        let (start, end) = info.data_offsets;
        let bytes =
            self.shards[*shard].bytes().get(data_start + start..data_start + end).ok_or_else(|| {
                Error::model(format!("tensor `{name}` reaches beyond its file; the file is cut short"))
            })?;
        let dtype = DType::try_from(info.dtype)
            .map_err(|e| Error::model(format!("tensor `{name}` has an unsupported type: {e}")))?;
        Ok(Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

fn not_safetensors(path: &Path, e: &safetensors::SafeTensorError) -> Error {
    Error::model(format!("`{}` is not a readable safetensors file: {e}", path.display()))
}
