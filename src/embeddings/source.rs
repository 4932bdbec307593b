//! Locating the files of an embedding model by its reference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::backend::onnx_catalog::{FastembedEntry, FastembedFiles, OnnxConfig};
use super::entry::Fingerprint;
use crate::config::EmbeddingBackend;
use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::registry::{
    CatalogEntry, EmbeddingSpec, ModelFiles, ModelFormat, ModelKind, ModelRef, Purpose, Registry,
    catalog_entries, read_file,
};

/// The row of our own catalog that a reference names.
fn catalog_row(reference: &str) -> Option<&'static CatalogEntry> {
    match ModelRef::parse(reference) {
        Ok(ModelRef::Catalog(entry)) => Some(entry),
        _ => None,
    }
}

/// The specification of the embedding model that a GGUF file names in `general.name`, if the catalog has it. Names
/// differ in case and in the marks between words.
pub fn spec_by_name(name: &str) -> Option<EmbeddingSpec> {
    let plain = |name: &str| -> String {
        let last = name.rsplit('/').next().unwrap_or(name);
        last.chars().filter(|c| c.is_alphanumeric() || *c == '.').flat_map(char::to_lowercase).collect()
    };
    let wanted = plain(name);
    let is_called = |row: &&CatalogEntry| row.other_names().chain([row.name]).any(|own| plain(own) == wanted);
    catalog_entries().filter(is_called).find_map(|row| row.embedding)
}

/// An embedding model whose files are on disk.
pub struct EmbeddingSource {
    id: String,
    kind: ModelKind,
    aliases: Vec<String>,
    files: BTreeMap<String, PathBuf>,
    main: PathBuf,
    format: ModelFormat,
    /// The specification in its catalog row, if it has one.
    spec: Option<EmbeddingSpec>,
    onnx: Option<OnnxConfig>,
    license: Option<String>,
    /// Whether the built-in encoder must compute in float32.
    is_float32: bool,
}

impl EmbeddingSource {
    /// Locates the files of the model that `reference` names, and downloads those that are missing. The
    /// reference is looked up in our own catalog, then in fastembed's, then by the registry.
    ///
    /// # Errors
    /// When the name is unknown, or its files are not available.
    pub fn locate(reference: &str, registry: &Registry) -> Result<Self> {
        Self::locate_for_backend(reference, EmbeddingBackend::Auto, registry)
    }

    /// Like [`EmbeddingSource::locate`], for the backend that the user chose.
    ///
    /// # Errors
    /// See [`EmbeddingSource::locate`]; also when the backend cannot run the model.
    pub fn locate_for_backend(
        reference: &str,
        backend: EmbeddingBackend,
        registry: &Registry,
    ) -> Result<Self> {
        let row = catalog_row(reference);
        let backend_error = |why: String| Error::registry(format!("--embedding-backend {backend}: {why}"));
        match (backend, row, FastembedEntry::find(reference)) {
            (EmbeddingBackend::Encoder | EmbeddingBackend::EncoderF32, None, Some(_)) => Err(backend_error(
                format!("`{reference}` is in fastembed's catalog only; use `auto`, or another model"),
            )),
            (EmbeddingBackend::Fastembed, Some(row), _) => {
                row.check_kind(ModelKind::Embedding)?;
                let entry = row.aliases.iter().find_map(|alias| FastembedEntry::find(alias));
                let entry = entry.ok_or_else(|| {
                    backend_error(format!(
                        "fastembed's catalog has no `{}`; use `auto`, or name a repository or folder that has its \
                         model.onnx",
                        row.name
                    ))
                })?;
                Ok(Self::from_fastembed(entry, registry)?.with_catalog_row(row))
            }
            (_, None, Some(entry)) => Self::from_fastembed(entry, registry),
            (_, _, _) => {
                let formats = match backend {
                    EmbeddingBackend::Auto => Purpose::from(ModelKind::Embedding).formats,
                    EmbeddingBackend::Encoder | EmbeddingBackend::EncoderF32 => {
                        &[ModelFormat::Safetensors, ModelFormat::Gguf]
                    }
                    EmbeddingBackend::Fastembed => &[ModelFormat::Onnx],
                };
                let purpose = Purpose { kind: Some(ModelKind::Embedding), formats };
                let found = Self::resolve(reference, purpose, registry).map_err(|e| {
                    if backend == EmbeddingBackend::Auto { e } else { backend_error(e.to_string()) }
                })?;
                Ok(Self { is_float32: backend == EmbeddingBackend::EncoderF32, ..found })
            }
        }
    }

    /// Like [`EmbeddingSource::locate`], for a reranker.
    ///
    /// # Errors
    /// See [`EmbeddingSource::locate`].
    pub fn locate_reranker(reference: &str, registry: &Registry) -> Result<Self> {
        Self::resolve(reference, ModelKind::Reranker.into(), registry)
    }

    fn resolve(reference: &str, purpose: Purpose, registry: &Registry) -> Result<Self> {
        let ModelFiles { id, aliases, format, main, files, embedding: spec, license, .. } =
            registry.resolve(reference, purpose)?;
        let kind = purpose.kind.unwrap_or(ModelKind::Embedding);
        let onnx = match format {
            ModelFormat::Onnx => Some(OnnxConfig::from_files(&files)?),
            ModelFormat::Safetensors | ModelFormat::Gguf => None,
        };
        let is_float32 = false;
        Ok(Self { id, kind, aliases, files, main, format, spec, onnx, license, is_float32 })
    }

    /// Whether the built-in encoder must compute in float32.
    pub fn is_float32(&self) -> bool {
        self.is_float32
    }

    /// Whether `reference` names a model of fastembed's catalog that is not in our own.
    pub fn is_fastembed_only(reference: &str) -> bool {
        catalog_row(reference).is_none() && FastembedEntry::find(reference).is_some()
    }

    /// The name that clients see and its aliases, for a model whose files are not here yet.
    ///
    /// # Errors
    /// When the reference is malformed, or names a model of another kind.
    pub fn names(reference: &str, kind: ModelKind) -> Result<(String, Vec<String>)> {
        match FastembedEntry::find(reference) {
            Some(entry) if kind == ModelKind::Embedding && Self::is_fastembed_only(reference) => {
                let (own, repo) = entry.names();
                Ok((repo, vec![own]))
            }
            _ => {
                let reference = ModelRef::parse(reference)?;
                if let ModelRef::Catalog(entry) = reference {
                    entry.check_kind(kind)?;
                }
                Ok(reference.names())
            }
        }
    }

    /// The name and repository of every model in fastembed's catalog.
    pub fn fastembed_catalog() -> Vec<(String, String)> {
        FastembedEntry::all().map(|entry| entry.names()).collect()
    }

    /// Locates a model of fastembed's catalog.
    fn from_fastembed(entry: FastembedEntry, registry: &Registry) -> Result<Self> {
        let (own, id) = entry.names();
        let FastembedFiles { files, main, config } = entry.locate(registry)?;
        Ok(Self {
            id,
            kind: ModelKind::Embedding,
            aliases: vec![own],
            files,
            main,
            format: ModelFormat::Onnx,
            spec: None,
            onnx: Some(config),
            license: None,
            is_float32: false,
        })
    }

    /// Takes the names and the specification of a row of our own catalog.
    fn with_catalog_row(self, row: &CatalogEntry) -> Self {
        let aliases = row.other_names().map(str::to_owned).collect();
        let license = Some(row.license.to_owned());
        Self { id: row.name.to_owned(), aliases, spec: row.embedding, license, ..self }
    }

    /// The name that clients see.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Other names that clients may use for it.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// Embedding or reranking.
    pub(super) fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Whether the ONNX Runtime backend runs it.
    pub fn is_onnx(&self) -> bool {
        self.onnx.is_some()
    }

    /// The format of its weights.
    pub fn format(&self) -> ModelFormat {
        self.format
    }

    /// The license of its weights, if known.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// The specification in its catalog row, if it has one.
    pub(super) fn spec(&self) -> Option<EmbeddingSpec> {
        self.spec
    }

    /// The settings of an ONNX model.
    pub(super) fn onnx_config(&self) -> Option<&OnnxConfig> {
        self.onnx.as_ref()
    }

    /// Every file by its logical name, such as `tokenizer.json`.
    pub fn files(&self) -> &BTreeMap<String, PathBuf> {
        &self.files
    }

    /// A hash of everything that the model's vectors and their owners depend on: the program's version, the backend or
    /// instruction set, the model's files, and `key_owners`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self, registry: &Registry, key_owners: &Fingerprint) -> Result<Fingerprint> {
        let isa = if self.is_onnx() { "onnx".to_owned() } else { Isa::current().to_string() };
        let mut hash = Sha256::new();
        hash.update(key_owners);
        hash.update(format!("{} {isa}", env!("CARGO_PKG_VERSION")));
        for (name, path) in &self.files {
            hash.update(format!("\n{name} {}", registry.sha256(path)?));
        }
        Ok(hash.finalize().into())
    }

    /// The file to load: the weights or the ONNX graph.
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// The path of a file, if the model has it.
    pub(super) fn optional_file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// The path of a file.
    ///
    /// # Errors
    /// When the model does not have it.
    pub(super) fn file(&self, name: &str) -> Result<&Path> {
        self.optional_file(name).ok_or_else(|| {
            Error::model(format!("model `{}` has no file `{name}`; download the model again", self.id))
        })
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// When the model does not have it, or it cannot be read.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        read_file(self.file(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_gguf_file_finds_its_catalog_row() {
        for name in ["nomic-embed-text-v1.5", "Nomic Embed Text v1.5", "nomic-ai/nomic-embed-text-v1.5"] {
            assert_eq!(spec_by_name(name).unwrap().prefixes.query, "search_query: ", "{name}");
        }
        assert_eq!(spec_by_name("Bge Small En v1.5").unwrap().prefixes.document, "");
        for other in ["", "smollm2-135m-instruct", "-"] {
            assert!(spec_by_name(other).is_none(), "{other}");
        }
    }
}
