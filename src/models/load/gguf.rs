//! GGUF files, whole or split into shards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::model_file::ModelFile;
use super::stored_tensor::{StoredTensor, check_shape};
use crate::error::{Error, Result};
use crate::gguf::{GgufHeader, GgufTensorInfo, Metadata, ParsedStart};

/// Bytes in which a header is looked for first; most fit, those of large vocabularies do not.
const START_BYTES: usize = 1 << 20;

/// An open GGUF file: the header in memory, the tensors on disk until they are loaded.
pub struct GgufFile {
    path: PathBuf,
    /// The file itself, and the shards that follow it if the model is split.
    shards: Vec<GgufShard>,
}

/// One file of a model.
struct GgufShard {
    file: ModelFile,
    header: GgufHeader,
}

impl GgufFile {
    /// Opens a file and reads its header. If it is the first shard of a model, opens the others beside it.
    ///
    /// # Errors
    /// When a file cannot be read or is not valid GGUF, or a shard is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self { path: path.to_owned(), shards: vec![GgufShard::open(path)?] };
        file.add_shards().map_err(|e| e.context(format_args!("`{}`", path.display())))?;
        Ok(file)
    }

    /// Opens the shards that follow the first, and checks that all belong together.
    fn add_shards(&mut self) -> Result<()> {
        let n_shards = self.metadata().count("split.count")?.unwrap_or(1);
        for number in 1..=n_shards {
            if number > 1 {
                self.shards.push(GgufShard::open(&shard_path(&self.path, number, n_shards)?)?);
            }
            let metadata = &self.shards[number - 1].header.metadata;
            let stated = (metadata.count("split.no")?, metadata.count("split.count")?);
            if n_shards > 1 && stated != (Some(number - 1), Some(n_shards)) {
                return Err(Error::model(format!(
                    "the file named as shard {number} of {n_shards} is not that shard; name the first shard"
                )));
            }
        }
        let names: HashSet<&str> = self.tensors().map(|(name, _)| name).collect();
        let n_tensors = self.tensors().count();
        if names.len() != n_tensors {
            return Err(Error::model("a tensor is in two shards"));
        }
        match self.metadata().count("split.tensors.count")? {
            Some(expected) if n_shards > 1 && expected != n_tensors => Err(Error::model(format!(
                "its {n_shards} shards have {n_tensors} tensors and should have {expected}"
            ))),
            _ => Ok(()),
        }
    }

    /// The metadata in the header.
    pub fn metadata(&self) -> &Metadata {
        &self.shards[0].header.metadata
    }

    /// The name of the model's architecture.
    ///
    /// # Errors
    /// When the header does not state it.
    pub fn architecture(&self) -> Result<&str> {
        let name = self.metadata().string("general.architecture")?;
        name.ok_or_else(|| Error::model("the GGUF file has no `general.architecture`"))
    }

    /// The number of rows of a matrix.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn n_rows(&self, name: &str) -> Result<usize> {
        Ok(self.stored(name)?.matrix_shape()[0])
    }

    /// Loads the elements of a one-dimensional tensor, if there is one of this name.
    ///
    /// # Errors
    /// When it has more dimensions or an unsupported type.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        let stored = self.stored(name)?;
        check_shape(name, stored.shape, &[stored.shape.iter().product()])?;
        Ok(Some(stored.dequantize()?.to_vec1::<f32>()?))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.shards.iter().any(|shard| shard.header.tensor(name).is_some())
    }

    /// Locates a tensor.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(super) fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        let found = self.shards.iter().find_map(|shard| Some(shard.stored(shard.header.tensor(name)?)));
        found.ok_or_else(|| Error::model(format!("`{}` has no tensor `{name}`", self.path.display())))
    }

    /// All tensors by name.
    pub(super) fn all_stored(&self) -> impl Iterator<Item = (&str, StoredTensor<'_>)> {
        let tensors =
            self.shards.iter().flat_map(|shard| shard.header.tensors().iter().map(move |it| (shard, it)));
        tensors.map(|(shard, (name, info))| (name.as_str(), shard.stored(info)))
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensorInfo)> {
        self.shards.iter().flat_map(|shard| shard.header.tensors()).map(|(name, info)| (name.as_str(), info))
    }
}

impl GgufShard {
    fn open(path: &Path) -> Result<Self> {
        let file = ModelFile::open(path)?;
        let mut n_bytes = START_BYTES;
        loop {
            let parsed = GgufHeader::parse_start(&file.read_start(n_bytes)?, file.n_bytes())
                .map_err(|e| e.context(format_args!("`{}` is not a valid GGUF file", path.display())))?;
            match parsed {
                ParsedStart::Header(header) => return Ok(Self { file, header }),
                ParsedStart::NeedsBytes(needed) => n_bytes = needed.max(4 * n_bytes),
            }
        }
    }

    fn stored<'a>(&'a self, info: &'a GgufTensorInfo) -> StoredTensor<'a> {
        let GgufTensorInfo { tensor_type, shape, bytes, .. } = info;
        StoredTensor { file: &self.file, tensor_type: *tensor_type, shape, bytes: bytes.clone() }
    }
}

/// The path of another shard of the model whose first shard is `first`.
fn shard_path(first: &Path, number: usize, n_shards: usize) -> Result<PathBuf> {
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-00001-of-{n_shards:05}.gguf")).ok_or_else(|| {
        Error::model(format!(
            "it is split into {n_shards} shards and must be named like the first, ending in \
             -00001-of-{n_shards:05}.gguf"
        ))
    })?;
    Ok(first.with_file_name(format!("{stem}-{number:05}-of-{n_shards:05}.gguf")))
}
