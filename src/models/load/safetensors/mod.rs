//! safetensors files, memory-mapped, one or several shards.

mod header;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{MappedFile, StoredTensor};
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use header::{TensorInfo, UniqueMap};

pub use header::SafetensorsHeader;

/// The shards of one checkpoint.
pub struct SafetensorsFiles {
    shards: Vec<MappedFile>,
    tensors: HashMap<String, Location>,
}

/// Where a tensor's bytes are.
struct Location {
    shard: usize,
    info: TensorInfo,
}

/// `model.safetensors.index.json`: which shard holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl SafetensorsFiles {
    /// Opens a `.safetensors` file, or all shards that an index (`.json`) beside them names, and
    /// reads the headers.
    ///
    /// # Errors
    /// When a file cannot be read or is not safetensors in good order, or the index and the shards
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
        let map = MappedFile::open(&path)?;
        let header = SafetensorsHeader::parse(map.bytes()).map_err(|e| {
            e.context(format_args!("`{}` is not a readable safetensors file", path.display()))
        })?;
        for (name, info) in header.into_tensors() {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(Location { shard: self.shards.len(), info }),
                Entry::Occupied(entry) => {
                    let (name, first) = (entry.key(), self.shards[entry.get().shard].path.display());
                    return Err(Error::model(format!(
                        "tensor `{name}` is in `{first}` and in `{}`",
                        path.display()
                    )));
                }
            };
        }
        self.shards.push(map);
        Ok(())
    }

    fn add_indexed(&mut self, index: &Path) -> Result<()> {
        let damaged = |e: &dyn std::fmt::Display| Error::model(format!("the index cannot be read: {e}"));
        let json = std::fs::read(index).map_err(|e| damaged(&e))?;
        let Index { weight_map: UniqueMap(shard_of) } =
            serde_json::from_slice(&json).map_err(|e| damaged(&e))?;
        let mut names: Vec<&String> = shard_of.values().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            self.add(beside(index, name)?)?;
        }
        for (tensor, name) in &shard_of {
            let shard = self.tensors.get(tensor).map(|location| &self.shards[location.shard].path);
            if shard.and_then(|path| path.file_name()).is_none_or(|found| found != name.as_str()) {
                return Err(Error::model(format!(
                    "tensor `{tensor}` is not in `{name}`; fetch the model again"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Where a tensor is.
    ///
    /// # Errors
    /// When there is none of this name, or it is of a type that is not supported.
    pub(super) fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        let location = self.location(name)?;
        self.at(location).ok_or_else(|| {
            Error::model(format!(
                "tensor `{name}` is of type {}, which is not supported; use a checkpoint in BF16, F16 or F32",
                location.info.dtype
            ))
        })
    }

    /// All tensors of types that are supported.
    pub(super) fn all_stored(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.values().filter_map(|location| self.at(location))
    }

    fn at<'a>(&'a self, Location { shard, info }: &'a Location) -> Option<StoredTensor<'a>> {
        let tensor_type = match info.dtype {
            "F64" => TensorType::F64,
            "F32" => TensorType::F32,
            "F16" => TensorType::F16,
            "BF16" => TensorType::Bf16,
            _ => return None,
        };
        let map = &self.shards[*shard];
        Some(StoredTensor { map, tensor_type, shape: &info.shape, bytes: info.bytes.clone() })
    }

    fn location(&self, name: &str) -> Result<&Location> {
        self.tensors.get(name).ok_or_else(|| Error::model(format!("the checkpoint has no tensor `{name}`")))
    }
}

/// The file `name` in the folder of `index`.
fn beside(index: &Path, name: &str) -> Result<PathBuf> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) if !name.contains(['/', '\\']) => Ok(index.with_file_name(name)),
        _ => Err(Error::model(format!("`{name}` is not the name of a file beside the index"))),
    }
}
