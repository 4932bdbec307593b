//! GGUF files, memory-mapped, one or several parts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{MappedFile, StoredTensor, check_shape};
use crate::error::{Error, Result};
use crate::gguf::{Header, Metadata, TensorInfo};

/// An open GGUF file: its header in memory, its tensors on disk until they are asked for.
pub struct GgufFile {
    path: PathBuf,
    /// The file itself, and the parts that follow it where the model is split.
    parts: Vec<Part>,
}

struct Part {
    map: MappedFile,
    header: Header,
}

impl GgufFile {
    /// Opens a file, or the first part of a model and with it the parts beside it, and reads the
    /// headers.
    ///
    /// # Errors
    /// When it cannot be read, is not GGUF in good order, or parts are missing.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self { path: path.to_owned(), parts: vec![Part::open(path)?] };
        file.add_parts().map_err(|e| e.context(format_args!("`{}`", path.display())))?;
        Ok(file)
    }

    /// Opens the parts that follow the first.
    fn add_parts(&mut self) -> Result<()> {
        let n_parts = self.metadata().count("split.count")?.unwrap_or(1);
        for number in 1..=n_parts {
            if number > 1 {
                self.parts.push(Part::open(&sibling(&self.path, number, n_parts)?)?);
            }
            let metadata = &self.parts[number - 1].header.metadata;
            let says = (metadata.count("split.no")?, metadata.count("split.count")?);
            if n_parts > 1 && says != (Some(number - 1), Some(n_parts)) {
                return Err(Error::model(format!(
                    "what stands in the place of part {number} of {n_parts} is another; name the first part"
                )));
            }
        }
        let names: HashSet<&str> = self.tensors().map(|(name, _)| name).collect();
        let n_tensors = self.tensors().count();
        if names.len() != n_tensors {
            return Err(Error::model("a tensor is in two of its parts"));
        }
        match self.metadata().count("split.tensors.count")? {
            Some(expected) if n_parts > 1 && expected != n_tensors => Err(Error::model(format!(
                "its {n_parts} parts have {n_tensors} tensors and should have {expected}"
            ))),
            _ => Ok(()),
        }
    }

    /// The header's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].header.metadata
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
        Ok(self.stored(name)?.matrix_shape()[0])
    }

    /// The numbers of a one-dimensional tensor, if there is one of this name.
    ///
    /// # Errors
    /// When it is of another form.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        let stored = self.stored(name)?;
        check_shape(name, stored.shape, &[stored.shape.iter().product()])?;
        Ok(Some(stored.expand()?.to_vec1::<f32>()?))
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.header.tensor(name).is_some())
    }

    /// Where a tensor is.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(super) fn stored(&self, name: &str) -> Result<StoredTensor<'_>> {
        let found = self.parts.iter().find_map(|part| Some(part.stored(part.header.tensor(name)?)));
        found.ok_or_else(|| Error::model(format!("`{}` has no tensor `{name}`", self.path.display())))
    }

    pub(super) fn all_stored(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.parts.iter().flat_map(|part| part.header.tensors().values().map(|info| part.stored(info)))
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.parts.iter().flat_map(|part| part.header.tensors()).map(|(name, info)| (name.as_str(), info))
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes())
            .map_err(|e| e.context(format_args!("`{}` is not a readable GGUF file", path.display())))?;
        Ok(Self { map, header })
    }

    fn stored<'a>(&'a self, info: &'a TensorInfo) -> StoredTensor<'a> {
        let TensorInfo { tensor_type, shape, bytes, .. } = info;
        StoredTensor { map: &self.map, tensor_type: *tensor_type, shape, bytes: bytes.clone() }
    }
}

/// The name of another part of the model whose first part is `first`.
fn sibling(first: &Path, number: usize, n_parts: usize) -> Result<PathBuf> {
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-00001-of-{n_parts:05}.gguf")).ok_or_else(|| {
        Error::model(format!(
            "it has {n_parts} parts, and its name is not that of the first, which ends in -00001-of-{n_parts:05}.gguf"
        ))
    })?;
    Ok(first.with_file_name(format!("{stem}-{number:05}-of-{n_parts:05}.gguf")))
}
