//! Files of the Hugging Face hub, in the cache folder that all of its clients share.
//!
//! The `hf_hub` crate talks to the hub (`session`), but its `download_file` is not used. Unlike it, this module
//! verifies a file's digest before the file gets its final name, resumes an interrupted transfer (`transfer`),
//! and waits without a time limit for another process that downloads the same file.

mod session;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{FoundFiles, WantedFile};
use super::local::files_under;
use super::names::{DEFAULT_REVISION, is_commit};
use super::progress::{DownloadWatch, notify};
use super::verify::{Digest, Verifier, create_parent, io_error, lock_file, write_atomically};
use crate::config::RegistryConfig;
use crate::error::{Error, Result};
use session::{HubResponse, RemoteFile, RepoListing, Session, no_file};

/// The hub and its cache on disk.
pub struct Hub<'a> {
    config: &'a RegistryConfig,
    verifier: &'a Verifier,
    watch: &'a DownloadWatch,
}

/// The state of a file in the cache.
enum CachedFile {
    Intact(PathBuf),
    /// Optional, and known to be absent from the repository at this commit.
    AbsentOnHub,
    Missing,
    Damaged(PathBuf),
}

impl<'a> Hub<'a> {
    /// The hub at the configured endpoint. `watch` follows its downloads.
    pub fn new(config: &'a RegistryConfig, verifier: &'a Verifier, watch: &'a DownloadWatch) -> Self {
        Self { config, verifier, watch }
    }

    /// The files, if all of them are on disk and intact. Opens no connection.
    ///
    /// # Errors
    /// When a file on disk cannot be read.
    pub fn on_disk(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<Option<FoundFiles>> {
        let mut found = FoundFiles::new();
        for file in files {
            match self.cached_file(repo, revision, file)? {
                CachedFile::Intact(path) => found.insert(file.name.clone(), path),
                CachedFile::AbsentOnHub => None,
                CachedFile::Missing | CachedFile::Damaged(_) => return Ok(None),
            };
        }
        Ok(Some(found))
    }

    /// The files, all of the same commit, downloaded if they are not on disk. Optional files that the repository
    /// lacks are left out; if the hub is unreachable, so are optional files that are not on disk.
    ///
    /// # Errors
    /// When a file is not available, or its digest is wrong.
    pub fn get(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<FoundFiles> {
        if let Some(found) = self.on_disk(repo, revision, files)? {
            return Ok(found);
        }
        if self.config.offline {
            return self.get_offline(repo, revision, files);
        }
        self.get_online(repo, revision, files).or_else(|error| {
            let found = self.get_offline(repo, revision, files).map_err(|_| error.clone())?;
            tracing::warn!("{error}; using the files on disk");
            Ok(found)
        })
    }

    fn get_online(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<FoundFiles> {
        let session = Session::open(self.config)?;
        // Resolve the branch once, since it may change between two files.
        let commit = match files.first() {
            Some(first) if !is_commit(revision) => match session.describe(repo, revision, &first.path)? {
                HubResponse::Found(RemoteFile { commit, .. }) | HubResponse::Absent(Some(commit)) => commit,
                HubResponse::Absent(None) => return Err(no_file(repo, revision, &first.path)),
            },
            _ => revision.to_owned(),
        };
        let mut found = FoundFiles::new();
        for file in files {
            let path = match self.cached_file(repo, &commit, file)? {
                CachedFile::Intact(path) => Some(path),
                CachedFile::AbsentOnHub => None,
                CachedFile::Missing => self.download(&session, repo, &commit, file)?,
                CachedFile::Damaged(path) => {
                    notify(&format!("{} is damaged; downloading it again", path.display()));
                    self.download(&session, repo, &commit, file)?
                }
            };
            match path {
                Some(path) => {
                    found.insert(file.name.clone(), path);
                }
                None if file.optional => {}
                None => return Err(no_file(repo, revision, &file.path)),
            }
        }
        self.save_ref(repo, revision, &commit)?;
        Ok(found)
    }

    /// The files on disk, without optional files that are missing.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    fn get_offline(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<FoundFiles> {
        let mut found = FoundFiles::new();
        for file in files {
            match self.cached_file(repo, revision, file)? {
                CachedFile::Intact(path) => {
                    found.insert(file.name.clone(), path);
                }
                CachedFile::Damaged(path) => {
                    return Err(Error::registry(format!(
                        "{} is damaged: its digest is wrong; run once without --offline to download it again",
                        path.display()
                    )));
                }
                CachedFile::AbsentOnHub | CachedFile::Missing if file.optional => {}
                CachedFile::AbsentOnHub | CachedFile::Missing => {
                    return Err(Error::registry(format!(
                        "`{}` of hub repository `{repo}` is not in {}, and --offline is set; run once without --offline",
                        file.path,
                        self.config.hub_cache.display()
                    )));
                }
            }
        }
        Ok(found)
    }

    /// The files of a repository: the saved listing of the commit on disk, else a new listing from the hub, else
    /// (offline or with the hub unreachable) the files on disk.
    ///
    /// # Errors
    /// When nothing is on disk, and the hub does not list it.
    pub fn listing(&self, repo: &str, revision: &str) -> Result<RepoListing> {
        let commit = self.commit_on_disk(repo, revision);
        if let Some(saved) = commit.as_ref().and_then(|commit| self.load_listing(repo, commit)) {
            return Ok(saved);
        }
        let from_disk = || {
            let commit = commit.clone()?;
            let files = files_under(&self.repo_dir(repo).join("snapshots").join(&commit));
            (!files.is_empty()).then_some(RepoListing { commit, files, license: None })
        };
        if self.config.offline {
            return from_disk().ok_or_else(|| {
                Error::registry(format!(
                    "hub repository `{repo}` is not on disk, and --offline is set; run once without --offline"
                ))
            });
        }
        match Session::open(self.config)?.list(repo, revision) {
            Ok(listing) => {
                self.save_listing(repo, &listing)?;
                Ok(listing)
            }
            Err(error) => from_disk().ok_or(error),
        }
    }

    /// Every model repository in the cache with a `main` branch: its name, snapshot folder and files on disk.
    pub fn repos_on_disk(&self) -> Vec<(String, PathBuf, Vec<String>)> {
        let entries = fs::read_dir(&self.config.hub_cache).into_iter().flatten().flatten();
        let mut repos: Vec<_> = entries
            .filter_map(|entry| {
                let repo = entry.file_name().to_str()?.strip_prefix("models--")?.replace("--", "/");
                let commit = self.commit_on_disk(&repo, DEFAULT_REVISION)?;
                let snapshot = entry.path().join("snapshots").join(commit);
                let files = files_under(&snapshot);
                Some((repo, snapshot, files))
            })
            .collect();
        repos.sort();
        repos
    }

    /// The path of a file on disk, without verifying it.
    pub fn path_on_disk(&self, repo: &str, revision: &str, path: &str) -> Option<PathBuf> {
        let commit = self.commit_on_disk(repo, revision)?;
        let path = self.repo_dir(repo).join("snapshots").join(commit).join(path);
        path.is_file().then_some(path)
    }

    fn repo_dir(&self, repo: &str) -> PathBuf {
        self.config.hub_cache.join(folder_name(repo))
    }

    fn commit_on_disk(&self, repo: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.repo_dir(repo).join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    fn cached_file(&self, repo: &str, revision: &str, file: &WantedFile) -> Result<CachedFile> {
        let Some(commit) = self.commit_on_disk(repo, revision) else { return Ok(CachedFile::Missing) };
        if file.optional && self.repo_dir(repo).join(".no_exist").join(&commit).join(&file.path).exists() {
            return Ok(CachedFile::AbsentOnHub);
        }
        let path = self.repo_dir(repo).join("snapshots").join(commit).join(&file.path);
        if !path.is_file() {
            return Ok(CachedFile::Missing);
        }
        // A link leads to a blob named by its digest. A plain file (on systems without links) can be verified
        // only if the catalog has its digest.
        let digest = file.sha256.clone().map(Digest::Sha256).or_else(|| {
            let target = fs::read_link(&path).ok()?;
            Digest::from_etag(target.file_name()?.to_str()?)
        });
        match digest {
            Some(digest) if !self.verifier.is_intact(&path, &digest)? => Ok(CachedFile::Damaged(path)),
            Some(_) | None => Ok(CachedFile::Intact(path)),
        }
    }

    /// Downloads one file, and links it into its snapshot. Returns `None` if the repository does not have it.
    fn download(
        &self,
        session: &Session,
        repo: &str,
        commit: &str,
        file: &WantedFile,
    ) -> Result<Option<PathBuf>> {
        let remote = match session.describe(repo, commit, &file.path)? {
            HubResponse::Found(remote) => remote,
            HubResponse::Absent(commit) => {
                // The marker that other clients use too. If it cannot be written, the hub is asked again.
                if let Some(commit) = commit {
                    let marker = self.repo_dir(repo).join(".no_exist").join(&commit).join(&file.path);
                    let _ = write_atomically(&marker, b"");
                }
                return Ok(None);
            }
        };
        let from_etag = Digest::from_etag(&remote.etag);
        let digest = match (&file.sha256, &from_etag) {
            (Some(sha256), Some(Digest::Sha256(hub))) if sha256 != hub => {
                return Err(Error::registry(format!(
                    "`{}` of hub repository `{repo}` is not the file the catalog names: its SHA-256 is {hub}, \
                     expected {sha256}",
                    file.path
                )));
            }
            (Some(sha256), _) => Digest::Sha256(sha256.clone()),
            (None, Some(digest)) => digest.clone(),
            (None, None) => {
                return Err(Error::registry(format!(
                    "the hub at {} gives no digest for `{}` of `{repo}`, so it cannot be verified; download it \
                     yourself and pass its path",
                    self.config.hub_endpoint, file.path
                )));
            }
        };
        let blob_name = from_etag.as_ref().unwrap_or(&digest).hex();
        let blob = self.repo_dir(repo).join("blobs").join(blob_name);
        let what = format!("{repo}/{}", file.path);
        // The same lock file as Hugging Face's own clients, so that all wait for each other.
        let locks = self.config.hub_cache.join(".locks").join(folder_name(repo));
        let _lock = lock_file(&locks.join(format!("{blob_name}.lock")), &what)?;
        if !(blob.is_file() && self.verifier.is_intact(&blob, &digest)?) {
            session.download(&remote, &digest, &blob, self.watch)?;
            self.verifier.record(&blob, &digest);
        }
        let snapshot = self.repo_dir(repo).join("snapshots").join(commit);
        let path = snapshot.join(&file.path);
        link(&blob, &path, file.path.split('/').count()).map_err(|error| io_error("write", &path, &error))?;
        Ok(Some(path))
    }

    /// Points `revision` to `commit` in the cache. Call it only after all files of the commit are on disk.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save_ref(&self, repo: &str, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.repo_dir(repo).join("refs").join(revision);
        write_atomically(&path, commit.as_bytes()).map_err(|error| io_error("write", &path, &error))
    }

    fn listing_path(&self, repo: &str, commit: &str) -> PathBuf {
        self.config.cache_dir.join(LISTINGS).join(folder_name(repo)).join(format!("{commit}.json"))
    }

    fn load_listing(&self, repo: &str, commit: &str) -> Option<RepoListing> {
        serde_json::from_slice(&fs::read(self.listing_path(repo, commit)).ok()?).ok()
    }

    fn save_listing(&self, repo: &str, listing: &RepoListing) -> Result<()> {
        let path = self.listing_path(repo, &listing.commit);
        let text = serde_json::to_vec(listing).map_err(|error| Error::internal(error.to_string()))?;
        write_atomically(&path, &text).map_err(|error| io_error("write", &path, &error))
    }
}

/// The folder of the listings of repositories, in the folder of downloads.
pub const LISTINGS: &str = "listings";

/// The cache folder of a repository: `models--owner--name`.
fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// Links `path` to `blob`; `depth` is the number of parts of the path within the snapshot. Uses a relative symbolic
/// link, or elsewhere than on Unix a hard link or a copy.
fn link(blob: &Path, path: &Path, depth: usize) -> std::io::Result<()> {
    create_parent(path)?;
    let temporary = path.with_file_name(format!(".{}.link", uuid::Uuid::new_v4().simple()));
    #[cfg(unix)]
    {
        let mut target = PathBuf::from("../".repeat(depth + 1)).join("blobs");
        target.extend(blob.file_name());
        std::os::unix::fs::symlink(target, &temporary)?;
    }
    #[cfg(not(unix))]
    {
        let _ = depth;
        fs::hard_link(blob, &temporary).or_else(|_| fs::copy(blob, &temporary).map(drop))?;
    }
    fs::rename(&temporary, path)
}
