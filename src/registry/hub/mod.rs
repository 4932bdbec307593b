//! Files of the Hugging Face hub, in the cache folders that all of its clients share.
//!
//! `hf_hub` speaks to the hub (in `session`). What is done here instead of by its `download_file`:
//! the digest is checked before a file gets its name, a broken transfer goes on where it stopped
//! (`transfer`), and whoever comes second waits for the first however long that takes.

mod session;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{Found, WantedFile};
use super::local::files_under;
use super::names::{DEFAULT_REVISION, is_commit};
use super::progress::note;
use super::verify::{self, Digest, Verifier, create_parent, io_error, write_whole};
use crate::config::RegistryConfig;
use crate::error::{Error, Result};
use session::{Answer, RemoteFile, RepoListing, Session, no_file};

/// The hub, and the part of it that is on disk.
pub struct Hub<'a> {
    config: &'a RegistryConfig,
    verifier: &'a Verifier,
}

/// What the disk has of a file.
enum OnDisk {
    Intact(PathBuf),
    /// Optional, and known to be absent from the repository at this commit.
    Absent,
    Missing,
    Damaged(PathBuf),
}

impl<'a> Hub<'a> {
    pub fn new(config: &'a RegistryConfig, verifier: &'a Verifier) -> Self {
        Self { config, verifier }
    }

    /// The files, if all of them are on disk and intact. Opens no connection.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub fn on_disk(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<Option<Found>> {
        let mut found = Found::new();
        for file in files {
            match self.state(repo, revision, file)? {
                OnDisk::Intact(path) => found.insert(file.name.clone(), path),
                OnDisk::Absent => None,
                OnDisk::Missing | OnDisk::Damaged(_) => return Ok(None),
            };
        }
        Ok(Some(found))
    }

    /// The files, all at one commit, fetched where they are not on disk. Optional ones that the
    /// repository lacks are left out; so are those never asked for when the hub is out of reach.
    ///
    /// # Errors
    /// When a file is not to be had, or its bytes are not what they should be.
    pub fn get(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<Found> {
        if let Some(found) = self.on_disk(repo, revision, files)? {
            return Ok(found);
        }
        if self.config.offline {
            return self.get_offline(repo, revision, files);
        }
        self.get_online(repo, revision, files).or_else(|error| {
            let found = self.get_offline(repo, revision, files).map_err(|_| error.clone())?;
            tracing::warn!("{error}; going on with what is on disk");
            Ok(found)
        })
    }

    fn get_online(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<Found> {
        let session = Session::open(self.config)?;
        // A branch may move on between two files.
        let commit = match files.first() {
            Some(first) if !is_commit(revision) => match session.describe(repo, revision, &first.path)? {
                Answer::Here(RemoteFile { commit, .. }) | Answer::Absent(Some(commit)) => commit,
                Answer::Absent(None) => return Err(no_file(repo, revision, &first.path)),
            },
            _ => revision.to_owned(),
        };
        let mut found = Found::new();
        for file in files {
            let path = match self.state(repo, &commit, file)? {
                OnDisk::Intact(path) => Some(path),
                OnDisk::Absent => None,
                OnDisk::Missing => self.fetch(&session, repo, &commit, file)?,
                OnDisk::Damaged(path) => {
                    note(&format!("{} is damaged; fetching it again", path.display()));
                    self.fetch(&session, repo, &commit, file)?
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

    /// What the disk has, without the optional files it lacks; or what to say about it.
    fn get_offline(&self, repo: &str, revision: &str, files: &[WantedFile]) -> Result<Found> {
        let mut found = Found::new();
        for file in files {
            match self.state(repo, revision, file)? {
                OnDisk::Intact(path) => {
                    found.insert(file.name.clone(), path);
                }
                OnDisk::Damaged(path) => {
                    return Err(Error::registry(format!(
                        "{} is damaged: its digest is not what it should be; fetch it again without --offline",
                        path.display()
                    )));
                }
                OnDisk::Absent | OnDisk::Missing if file.optional => {}
                OnDisk::Absent | OnDisk::Missing => {
                    return Err(Error::registry(format!(
                        "`{}` of hub repository `{repo}` is not in {}, and --offline is set",
                        file.path,
                        self.config.hub_cache.display()
                    )));
                }
            }
        }
        Ok(found)
    }

    /// What the repository holds: as listed before if that commit is the one on disk, else as the
    /// hub says, else (offline, or with the hub out of reach) as far as the disk knows.
    ///
    /// # Errors
    /// When nothing of it is on disk and the hub does not say.
    pub fn listing(&self, repo: &str, revision: &str) -> Result<RepoListing> {
        let commit = self.commit_on_disk(repo, revision);
        if let Some(known) = commit.as_ref().and_then(|commit| self.load_listing(repo, commit)) {
            return Ok(known);
        }
        let partly = || {
            let commit = commit.clone()?;
            let files = files_under(&self.repo_dir(repo).join("snapshots").join(&commit));
            (!files.is_empty()).then_some(RepoListing { commit, files, license: None })
        };
        if self.config.offline {
            return partly().ok_or_else(|| {
                Error::registry(format!("hub repository `{repo}` is not on disk, and --offline is set"))
            });
        }
        match Session::open(self.config)?.list(repo, revision) {
            Ok(listing) => {
                self.save_listing(repo, &listing)?;
                Ok(listing)
            }
            Err(error) => partly().ok_or(error),
        }
    }

    /// Every model repository in the cache that has a `main` branch, with what is on disk of it.
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

    /// Where the file is, were it on disk; whether it is intact is not asked.
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

    fn state(&self, repo: &str, revision: &str, file: &WantedFile) -> Result<OnDisk> {
        let Some(commit) = self.commit_on_disk(repo, revision) else { return Ok(OnDisk::Missing) };
        if file.optional && self.repo_dir(repo).join(".no_exist").join(&commit).join(&file.path).exists() {
            return Ok(OnDisk::Absent);
        }
        let path = self.repo_dir(repo).join("snapshots").join(commit).join(&file.path);
        if !path.is_file() {
            return Ok(OnDisk::Missing);
        }
        // Links lead to a blob named by its digest. A plain file (made where links are not
        // allowed) without a digest in the catalog has nothing to be held against.
        let digest = file.sha256.clone().map(Digest::Sha256).or_else(|| {
            let target = fs::read_link(&path).ok()?;
            Digest::from_etag(target.file_name()?.to_str()?)
        });
        match digest {
            Some(digest) if !self.verifier.is_intact(&path, &digest)? => Ok(OnDisk::Damaged(path)),
            Some(_) | None => Ok(OnDisk::Intact(path)),
        }
    }

    /// Fetches one file and links it into its snapshot. `None` means that the repository has none.
    fn fetch(
        &self,
        session: &Session,
        repo: &str,
        commit: &str,
        file: &WantedFile,
    ) -> Result<Option<PathBuf>> {
        let remote = match session.describe(repo, commit, &file.path)? {
            Answer::Here(remote) => remote,
            Answer::Absent(commit) => {
                // The mark other clients leave too. Without it the hub is only asked again.
                if let Some(commit) = commit {
                    let mark = self.repo_dir(repo).join(".no_exist").join(&commit).join(&file.path);
                    let _ = write_whole(&mark, b"");
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
                    "the hub at {} names no digest for `{}` of `{repo}`, so it cannot be checked; fetch it \
                     yourself and pass its path",
                    self.config.hub_endpoint, file.path
                )));
            }
        };
        let blob_name = from_etag.as_ref().unwrap_or(&digest).hex();
        let blob = self.repo_dir(repo).join("blobs").join(blob_name);
        let what = format!("{repo}/{}", file.path);
        // The lock file of Hugging Face's own clients, so that they and we wait for each other.
        let locks = self.config.hub_cache.join(".locks").join(folder_name(repo));
        let _lock = verify::lock(&locks.join(format!("{blob_name}.lock")), &what)?;
        if !(blob.is_file() && self.verifier.is_intact(&blob, &digest)?) {
            session.download(repo, &remote, &file.path, &digest, &blob)?;
            self.verifier.remember(&blob, &digest);
        }
        let snapshot = self.repo_dir(repo).join("snapshots").join(commit);
        let path = snapshot.join(&file.path);
        link(&blob, &path, file.path.split('/').count()).map_err(|error| io_error("write", &path, &error))?;
        Ok(Some(path))
    }

    /// Makes `revision` mean `commit` on this disk; once all of its files are there, not before.
    pub fn save_ref(&self, repo: &str, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.repo_dir(repo).join("refs").join(revision);
        write_whole(&path, commit.as_bytes()).map_err(|error| io_error("write", &path, &error))
    }

    fn listing_path(&self, repo: &str, commit: &str) -> PathBuf {
        self.config.cache_dir.join("listings").join(folder_name(repo)).join(format!("{commit}.json"))
    }

    fn load_listing(&self, repo: &str, commit: &str) -> Option<RepoListing> {
        serde_json::from_slice(&fs::read(self.listing_path(repo, commit)).ok()?).ok()
    }

    fn save_listing(&self, repo: &str, listing: &RepoListing) -> Result<()> {
        let path = self.listing_path(repo, &listing.commit);
        let text = serde_json::to_vec(listing).map_err(|error| Error::internal(error.to_string()))?;
        write_whole(&path, &text).map_err(|error| io_error("write", &path, &error))
    }
}

/// `models--owner--name`, the cache's folder of a repository.
fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// Makes `path`, `depth` folders below a snapshot's own, stand for `blob`: by a relative link, or
/// by a second name or a copy where links are not to be had.
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
