//! Safetensors files, one or several shards.

mod header;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::model_file::ModelFile;
use super::stored_tensor::StoredTensor;
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use header::{LENGTH_BYTES, MAX_HEADER_BYTES, SafetensorsTensorInfo, UniqueMap};

pub use header::SafetensorsHeader;

/// The type of bytes, which stand for numbers of a type that the format lacks.
const BYTE: &str = "U8";

/// The shards of one checkpoint.
pub struct SafetensorsFiles {
    shards: Vec<ModelFile>,
    tensors: HashMap<String, TensorLocation>,
}

/// The location of a tensor's bytes.
struct TensorLocation {
    shard_idx: usize,
    info: SafetensorsTensorInfo,
}

/// `model.safetensors.index.json`: the shard of each tensor.
#[derive(Deserialize)]
struct ShardIndex {
    /// File names by tensor names.
    weight_map: UniqueMap<String>,
}

impl SafetensorsFiles {
    /// Opens a `.safetensors` file, or all shards listed in an index (`.json`) beside them, and
    /// reads the headers.
    ///
    /// # Errors
    /// When a file cannot be read or is not valid safetensors, or the index and the shards
    /// contradict each other.
    pub fn open(path: &Path) -> Result<Self> {
        let mut files = Self { shards: Vec::new(), tensors: HashMap::new() };
        if path.extension().is_some_and(|extension| extension == "json") {
            files.add_indexed(path).map_err(|e| e.context(format_args!("`{}`", path.display())))?;
        } else {
            files.add(path.to_owned())?;
        }
        Ok(files)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = ModelFile::open(&path)?;
        let header = SafetensorsHeader::n_bytes(&file.read_start(LENGTH_BYTES)?, file.n_bytes())
            .and_then(|n_bytes| SafetensorsHeader::parse_start(&file.read_start(n_bytes)?, file.n_bytes()))
            .map_err(|e| e.context(format_args!("`{}` is not a valid safetensors file", path.display())))?;
        for (name, info) in header.into_tensors() {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(TensorLocation { shard_idx: self.shards.len(), info }),
                Entry::Occupied(entry) => {
                    let (name, first) = (entry.key(), self.shards[entry.get().shard_idx].path().display());
                    return Err(Error::model(format!(
                        "tensor `{name}` is in `{first}` and in `{}`",
                        path.display()
                    )));
                }
            };
        }
        self.shards.push(file);
        Ok(())
    }

    fn add_indexed(&mut self, index: &Path) -> Result<()> {
        let damaged = |e: &dyn std::fmt::Display| Error::model(format!("cannot read the index: {e}"));
        let file = ModelFile::open(index)?;
        if file.n_bytes() > MAX_HEADER_BYTES {
            return Err(damaged(&format!("it has {} bytes; {MAX_HEADER_BYTES} are allowed", file.n_bytes())));
        }
        let json = file.read_start(file.n_bytes())?;
        let ShardIndex { weight_map: UniqueMap(weight_map) } =
            serde_json::from_slice(&json).map_err(|e| damaged(&e))?;
        let mut names: Vec<&String> = weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            self.add(shard_path(index, name)?)?;
        }
        for (tensor, name) in &weight_map {
            let path = self.tensors.get(tensor).map(|location| self.shards[location.shard_idx].path());
            if path.and_then(Path::file_name).is_none_or(|found| found != name.as_str()) {
                return Err(Error::model(format!(
                    "tensor `{tensor}` is not in `{name}`; download the model again"
                )));
            }
        }
        Ok(())
    }

    /// Whether there is a tensor of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Locates a tensor.
    ///
    /// # Errors
    /// When there is none of this name, or its type is not supported.
    pub(super) fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        let location = self.location(name)?;
        self.stored_at(location).ok_or_else(|| {
            Error::model(format!(
                "tensor `{name}` is of type {}, which is not supported; use a checkpoint in BF16, F16 or F32",
                location.info.dtype
            ))
        })
    }

    /// All tensors of supported types by name.
    pub(super) fn all_stored(&self) -> impl Iterator<Item = (&str, StoredTensor<'_>)> {
        self.tensors.iter().filter_map(|(name, location)| Some((name.as_str(), self.stored_at(location)?)))
    }

    /// Locates a tensor of bytes.
    ///
    /// # Errors
    /// When there is none of this name, or its type is another.
    pub(super) fn bytes(&self, name: &str) -> Result<StoredTensor<'_>> {
        let TensorLocation { shard_idx, info } = self.location(name)?;
        if info.dtype != BYTE {
            return Err(Error::model(format!("tensor `{name}` is of type {} instead of {BYTE}", info.dtype)));
        }
        let file = &self.shards[*shard_idx];
        Ok(StoredTensor { file, tensor_type: TensorType::I8, shape: &info.shape, bytes: info.bytes.clone() })
    }

    /// The size of all tensors of bytes.
    pub(super) fn n_bytes_of_bytes(&self) -> usize {
        let infos = self.tensors.values().map(|location| &location.info);
        infos.filter(|info| info.dtype == BYTE).map(|info| info.bytes.len()).sum()
    }

    fn stored_at<'a>(
        &'a self,
        TensorLocation { shard_idx, info }: &'a TensorLocation,
    ) -> Option<StoredTensor<'a>> {
        let tensor_type = match info.dtype {
            "F64" => TensorType::F64,
            "F32" => TensorType::F32,
            "F16" => TensorType::F16,
            "BF16" => TensorType::Bf16,
            _ => return None,
        };
        let file = &self.shards[*shard_idx];
        Some(StoredTensor { file, tensor_type, shape: &info.shape, bytes: info.bytes.clone() })
    }

    fn location(&self, name: &str) -> Result<&TensorLocation> {
        self.tensors.get(name).ok_or_else(|| Error::model(format!("the checkpoint has no tensor `{name}`")))
    }
}

/// The path of the file `name` in the folder of `index`.
fn shard_path(index: &Path, name: &str) -> Result<PathBuf> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) if !name.contains(['/', '\\']) => Ok(index.with_file_name(name)),
        _ => Err(Error::model(format!("`{name}` in the index is not a plain file name"))),
    }
}
