//! A model whose files are on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::catalog::EmbeddingSpec;
use super::layout::{Layout, ModelFormat};
use crate::error::{Error, Result};

/// Where a model's files came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    Local(PathBuf),
    Hub { repo: String, revision: String },
    Wheel { package: String, version: String },
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
    /// Other names that clients may use: the repository's, and the reference as it was written.
    pub aliases: Vec<String>,
    pub format: ModelFormat,
    /// The file to load: the GGUF file, `model.safetensors` or its index, the ONNX graph.
    pub main: PathBuf,
    /// Every file, `main` included, by the name its readers know it by (`config.json`,
    /// `tokenizer.json`, `1_Pooling/config.json`, …), wherever in its source it was.
    pub files: BTreeMap<String, PathBuf>,
    pub source: ModelSource,
    /// As the catalog or the model card says.
    pub license: Option<String>,
    /// How texts become vectors, if it is a catalog row for embedding.
    pub embedding: Option<EmbeddingSpec>,
    /// Bytes of all files together.
    pub size_bytes: u64,
}

impl ModelFiles {
    /// The file known as `name`, if the model has one.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// The file known as `name`.
    ///
    /// # Errors
    /// When the model has none.
    pub fn require(&self, name: &str) -> Result<&Path> {
        self.file(name).ok_or_else(|| Error::model(format!("model `{}` has no file `{name}`", self.id)))
    }

    /// Puts together what was found for `layout`.
    pub(super) fn new(
        id: String,
        aliases: Vec<String>,
        layout: &Layout,
        files: BTreeMap<String, PathBuf>,
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

/// The bytes of one of a model's files.
///
/// # Errors
/// When they cannot be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::model(format!("cannot read `{}`: {e}", path.display())))
}
