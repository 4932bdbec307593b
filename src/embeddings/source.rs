//! Which files an embedding model's name leads to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::backend::onnx_catalog::{CatalogueEntry, CatalogueFiles, Recipe};
use super::entry::Fingerprint;
use crate::config::EmbeddingBackend;
use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::registry::{
    CatalogEntry, EmbeddingSpec, Format, ModelFiles, ModelKind, ModelRef, Purpose, Registry, read_file,
};

/// The row of our catalog that a reference names.
fn row(reference: &str) -> Option<&'static CatalogEntry> {
    match ModelRef::parse(reference) {
        Ok(ModelRef::Catalog(entry)) => Some(entry),
        _ => None,
    }
}

/// An embedding model whose files are on disk.
pub struct EmbeddingSource {
    id: String,
    kind: ModelKind,
    aliases: Vec<String>,
    files: BTreeMap<String, PathBuf>,
    main: PathBuf,
    format: Format,
    /// What its catalog row says of it, if it has one.
    spec: Option<EmbeddingSpec>,
    onnx: Option<Recipe>,
    license: Option<String>,
}

impl EmbeddingSource {
    /// Finds the files of the model that `reference` names, and fetches those that are missing:
    /// our catalog first, then fastembed's, then whatever the registry makes of it.
    ///
    /// # Errors
    /// When nothing is known under this name or its files cannot be had.
    pub fn locate(reference: &str, registry: &Registry) -> Result<Self> {
        Self::locate_for(reference, EmbeddingBackend::Auto, registry)
    }

    /// As [`EmbeddingSource::locate`], in the form that a backend computes.
    ///
    /// # Errors
    /// As there, and when the backend cannot compute the model.
    pub fn locate_for(reference: &str, backend: EmbeddingBackend, registry: &Registry) -> Result<Self> {
        let row = row(reference);
        let refused = |why: String| Error::registry(format!("--embedding-backend {backend}: {why}"));
        match (backend, row, CatalogueEntry::find(reference)) {
            (EmbeddingBackend::Encoder, None, Some(_)) => Err(refused(format!(
                "`{reference}` is of fastembed's catalogue; use `auto`, or a model of the catalog in README.md"
            ))),
            (EmbeddingBackend::Fastembed, Some(row), _) => {
                row.check_kind(ModelKind::Embedding)?;
                let entry = row.aliases.iter().find_map(|alias| CatalogueEntry::find(alias));
                let entry = entry.ok_or_else(|| {
                    refused(format!(
                        "fastembed's catalogue has no `{}`; use `auto`, or name a repository or folder with its \
                         model.onnx",
                        row.name
                    ))
                })?;
                Ok(Self::of_catalogue(entry, registry)?.of_row(row))
            }
            (_, None, Some(entry)) => Self::of_catalogue(entry, registry),
            (_, _, _) => {
                let formats = match backend {
                    EmbeddingBackend::Auto => Purpose::from(ModelKind::Embedding).formats,
                    EmbeddingBackend::Encoder => &[Format::Safetensors, Format::Gguf],
                    EmbeddingBackend::Fastembed => &[Format::Onnx],
                };
                Self::resolve(reference, Purpose { kind: Some(ModelKind::Embedding), formats }, registry)
                    .map_err(|e| if backend == EmbeddingBackend::Auto { e } else { refused(e.to_string()) })
            }
        }
    }

    /// As [`EmbeddingSource::locate`], of a model that scores texts against each other.
    ///
    /// # Errors
    /// As there.
    pub fn locate_reranker(reference: &str, registry: &Registry) -> Result<Self> {
        Self::resolve(reference, ModelKind::Reranker.into(), registry)
    }

    fn resolve(reference: &str, purpose: Purpose, registry: &Registry) -> Result<Self> {
        let ModelFiles { id, aliases, format, main, files, embedding: spec, license, .. } =
            registry.resolve(reference, purpose)?;
        let kind = purpose.kind.unwrap_or(ModelKind::Embedding);
        let onnx = match format {
            Format::Onnx => Some(Recipe::of_folder(&files)?),
            Format::Safetensors | Format::Gguf => None,
        };
        Ok(Self { id, kind, aliases, files, main, format, spec, onnx, license })
    }

    /// Whether `reference` names a model of fastembed's catalogue and none of ours.
    pub fn is_in_fastembed(reference: &str) -> bool {
        row(reference).is_none() && CatalogueEntry::find(reference).is_some()
    }

    /// The name that clients will see and the other names they may use, without the model's files.
    ///
    /// # Errors
    /// When the reference is malformed, or names a model for another use.
    pub fn names(reference: &str, kind: ModelKind) -> Result<(String, Vec<String>)> {
        match CatalogueEntry::find(reference) {
            Some(entry) if kind == ModelKind::Embedding && Self::is_in_fastembed(reference) => {
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

    /// Names and repositories of fastembed's catalogue.
    pub fn fastembed_catalogue() -> Vec<(String, String)> {
        CatalogueEntry::all().map(|entry| entry.names()).collect()
    }

    /// A model of fastembed's catalogue.
    fn of_catalogue(entry: CatalogueEntry, registry: &Registry) -> Result<Self> {
        let (own, id) = entry.names();
        let CatalogueFiles { files, main, recipe } = entry.locate(registry)?;
        Ok(Self {
            id,
            kind: ModelKind::Embedding,
            aliases: vec![own],
            files,
            main,
            format: Format::Onnx,
            spec: None,
            onnx: Some(recipe),
            license: None,
        })
    }

    /// The same files as those of a model of our catalog.
    fn of_row(self, row: &CatalogEntry) -> Self {
        let aliases = row.other_names().map(str::to_owned).collect();
        let license = Some(row.license.to_owned());
        Self { id: row.name.to_owned(), aliases, spec: row.embedding, license, ..self }
    }

    /// The name that clients see.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Other names that clients may use.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// What it is for.
    pub(super) fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Whether fastembed runs it.
    pub fn is_onnx(&self) -> bool {
        self.onnx.is_some()
    }

    /// The form of its weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The licence of its weights, where it is known.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// What its catalog row says of it, if it has one.
    pub(super) fn spec(&self) -> Option<EmbeddingSpec> {
        self.spec
    }

    pub(super) fn recipe(&self) -> Option<&Recipe> {
        self.onnx.as_ref()
    }

    /// Every file by the name its readers know it by.
    pub fn files(&self) -> &BTreeMap<String, PathBuf> {
        &self.files
    }

    /// What tells this model's vectors from another's, and from those that another version of the program or
    /// another processor would compute.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self, registry: &Registry) -> Result<Fingerprint> {
        let isa = if self.is_onnx() { "onnx".to_owned() } else { Isa::current().to_string() };
        let mut hash = Sha256::new();
        hash.update(format!("{} {isa}", env!("CARGO_PKG_VERSION")));
        for (name, path) in &self.files {
            hash.update(format!("\n{name} {}", registry.sha256(path)?));
        }
        Ok(hash.finalize().into())
    }

    /// The graph or the weights.
    pub fn main(&self) -> &Path {
        &self.main
    }

    pub(super) fn optional_file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    pub(super) fn file(&self, name: &str) -> Result<&Path> {
        self.optional_file(name)
            .ok_or_else(|| Error::model(format!("model `{}` has no file `{name}`; fetch it again", self.id)))
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        read_file(self.file(name)?)
    }
}
