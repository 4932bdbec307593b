//! The files that a copy of a model needs in the cache folder of another machine.

use std::path::{Path, PathBuf};

use super::hub::LISTINGS;
use super::layout::FoundFiles;
use super::local::files_under;
use super::verify::{Digest, io_error};
use super::wheel::CONTENTS;
use super::{Registry, names};
use crate::error::{Error, Result};

/// The folder of a cache folder with the hub's files.
const HUB: &str = "hub";

/// The folder with models that come from no cache.
const LOCAL: &str = "local";

/// A file for another cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Path below the other cache folder, with `/` between its parts.
    pub place: String,
    /// The file on this machine.
    pub path: PathBuf,
}

/// The files of a model for another cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedModel {
    /// All files.
    pub files: Vec<ExportedFile>,
    /// For a model from no cache: its file or folder below the other cache folder. The same reference finds all others.
    pub local_main: Option<String>,
}

impl Registry {
    /// The files of the model called `id`, with what the registry needs to find them without a network.
    ///
    /// # Errors
    /// When a path is not UTF-8, or cannot be resolved.
    pub fn export(&self, id: &str, main: &Path, files: &FoundFiles) -> Result<ExportedModel> {
        let mut exported = ExportedModel { files: Vec::new(), local_main: None };
        let in_hub = main.strip_prefix(&self.config.hub_cache).ok();
        let hub_repo = in_hub.and_then(|rest| Some(Path::new(rest.components().next()?.as_os_str())));
        for (name, path) in files {
            let place = match (path.strip_prefix(&self.config.hub_cache), path.strip_prefix(self.cache_dir()))
            {
                (Ok(rest), _) => format!("{HUB}/{}", as_place(rest)?),
                (_, Ok(rest)) => as_place(rest)?,
                _ => {
                    let folder = format!("{LOCAL}/{}", id.replace('/', "--"));
                    let place = format!("{folder}/{name}");
                    if path == main {
                        // A folder with a file of the usual name gives the model its own name.
                        let is_found = name.starts_with("model.");
                        exported.local_main = Some(if is_found { folder } else { place.clone() });
                    }
                    place
                }
            };
            exported.files.push(ExportedFile { place, path: path.clone() });
        }
        // A repository of the hub has more than its files: branches, what it is known to lack, and listings.
        if let Some(repo) = hub_repo {
            let repo = as_place(repo)?;
            let listings = self.cache_dir().join(LISTINGS);
            let folders = [(self.config.hub_cache.join(&repo), format!("{HUB}/{repo}"))]
                .into_iter()
                .chain([(listings.join(&repo), format!("{LISTINGS}/{repo}"))]);
            for (folder, place) in folders {
                let is_record =
                    |name: &String| !name.starts_with("snapshots/") && !name.starts_with("blobs/");
                exported.files.extend(
                    files_under(&folder).into_iter().filter(is_record).map(|name| ExportedFile {
                        place: format!("{place}/{name}"),
                        path: folder.join(name),
                    }),
                );
            }
        }
        // A wheel's list of its files lies above them.
        if let Ok(rest) = main.strip_prefix(self.cache_dir()) {
            let record = rest.ancestors().skip(1).map(|folder| folder.join(CONTENTS));
            if let Some(record) = record.into_iter().find(|record| self.cache_dir().join(record).is_file()) {
                let path = self.cache_dir().join(&record);
                exported.files.push(ExportedFile { place: as_place(&record)?, path });
            }
        }
        exported.files.iter().try_for_each(|file| names::check_relative_path(&file.place))?;
        Ok(exported)
    }

    /// Records that the file at `path` has been hashed just now, with this SHA-256 in hex.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn record_sha256(&self, path: &Path, sha256: &str) -> Result<()> {
        let path = path.canonicalize().map_err(|error| io_error("read", path, &error))?;
        self.verifier.record(&path, &Digest::Sha256(sha256.to_owned()));
        Ok(())
    }
}

fn as_place(path: &Path) -> Result<String> {
    let place = path.to_str().ok_or_else(|| {
        Error::registry(format!("the name of {} is not UTF-8, so it cannot be copied", path.display()))
    })?;
    Ok(place.replace(std::path::MAIN_SEPARATOR, "/"))
}
