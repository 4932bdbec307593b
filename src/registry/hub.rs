//! Files of the Hugging Face hub, in the cache folders that all of its clients share.
//!
//! `hf_hub` speaks to the hub. What is done here instead of by its `download_file`: the digest is
//! checked before a file gets its name, a broken transfer goes on where it stopped, and whoever
//! comes second waits for the first however long that takes.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::repository::{HFRepository, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use super::layout::WantedFile;
use super::local::files_under;
use super::progress::{Progress, megabytes, note};
use super::reference::check_relative_path;
use super::verify::{self, Digest, Verifier, create_parent, io_error, put_in_place, write_whole};
use crate::config::RegistryConfig;
use crate::error::{Error, Kind, Result};

/// The branch meant when none is named.
pub const MAIN: &str = "main";

/// A question about a file is answered within this time, or the hub counts as not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a transfer that broke is taken up again within one call.
const MAX_RESUMPTIONS: usize = 4;

/// As many as Hugging Face's own clients follow.
const MAX_REDIRECTS: usize = 10;

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// The hub, and the part of it that is on disk.
pub struct Hub<'a> {
    config: &'a RegistryConfig,
    verifier: &'a Verifier,
}

/// What a repository holds at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoListing {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Relative paths of all files.
    pub files: Vec<String>,
    /// What the model card says.
    pub license: Option<String>,
}

/// Logical names of files and where they are.
pub type Found = BTreeMap<String, PathBuf>;

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
                self.save_listing(repo, revision, &listing)?;
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
                let commit = self.commit_on_disk(&repo, MAIN)?;
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

    fn save_ref(&self, repo: &str, revision: &str, commit: &str) -> Result<()> {
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

    fn save_listing(&self, repo: &str, revision: &str, listing: &RepoListing) -> Result<()> {
        let path = self.listing_path(repo, &listing.commit);
        let text = serde_json::to_vec(listing).map_err(|error| Error::internal(error.to_string()))?;
        write_whole(&path, &text).map_err(|error| io_error("write", &path, &error))?;
        self.save_ref(repo, revision, &listing.commit)
    }
}

/// An open line to the hub. Blocking; its futures run on a runtime of its own.
struct Session {
    runtime: Runtime,
    client: HFClient,
    /// Follows no redirect: the answer that carries a file's digest and commit is the hub's own,
    /// before it sends the client on to where the bytes are. `HFRepository::get_file_metadata`
    /// asks the place at the end, which knows neither.
    asker: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    read_timeout: Duration,
}

/// A file as the hub describes it.
struct RemoteFile {
    /// The hub's name for the content: a digest, if the hub is one.
    etag: String,
    commit: String,
    size_bytes: u64,
}

/// What the hub says about a file.
enum Answer {
    Here(RemoteFile),
    /// There is none; at this commit, if it is a hub that says so and not just any server.
    Absent(Option<String>),
}

impl Session {
    fn open(config: &RegistryConfig) -> Result<Self> {
        let endpoint = Url::parse(&config.hub_endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format!("HF_ENDPOINT `{}` is not an http address", config.hub_endpoint),
                )
            })?;
        let client = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .connect_timeout(config.hub_connect_timeout)
                .read_timeout(config.hub_read_timeout)
        };
        let broken = |error: &dyn StdError| Error::internal(format!("hub client: {}", chain(error)));
        let asker =
            client().redirect(reqwest::redirect::Policy::none()).build().map_err(|error| broken(&error))?;
        let mut builder = HFClient::builder()
            .endpoint(&config.hub_endpoint)
            .cache_dir(&config.hub_cache)
            .client(client().build().map_err(|error| broken(&error))?)
            // What is worth trying again is tried again here, with what has arrived in hand.
            .retry_max_attempts(0);
        if let Some(token) = &config.hub_token {
            builder = builder.token(token);
        }
        Ok(Self {
            runtime: runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| broken(&error))?,
            client: builder.build().map_err(|error| broken(&error))?,
            asker,
            endpoint,
            token: config.hub_token.clone(),
            read_timeout: config.hub_read_timeout,
        })
    }

    fn repo(&self, repo: &str) -> HFRepository<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(repo);
        self.client.model(owner, name)
    }

    /// Runs a request to its end, or to `limit`.
    fn wait<T>(&self, limit: Duration, request: impl Future<Output = T>) -> Result<T> {
        self.runtime.block_on(async { timeout(limit, request).await }).map_err(|_| {
            Error::registry(format!("the hub at {} did not answer within {limit:?}", self.endpoint))
        })
    }

    fn answer_timeout(&self) -> Duration {
        ANSWER_TIMEOUT.min(self.read_timeout)
    }

    /// What the repository holds at a revision.
    fn list(&self, repo: &str, revision: &str) -> Result<RepoListing> {
        let handle = self.repo(repo);
        let info = self
            .wait(self.answer_timeout(), handle.info().revision(revision).send())?
            .map_err(|error| self.explain(repo, revision, error))?;
        let commit = info.sha.filter(|commit| is_commit(commit)).ok_or_else(|| self.not_a_hub("commit"))?;
        let card = info.card_data.unwrap_or_default();
        // Names become paths on this disk, and a hub is not trusted to climb out of its folder.
        let is_safe = |name: &String| check_relative_path(name).is_ok();
        let siblings = info.siblings.unwrap_or_default().into_iter();
        Ok(RepoListing {
            commit,
            files: siblings.map(|sibling| sibling.rfilename).filter(is_safe).collect(),
            license: card.get("license").and_then(|license| license.as_str()).map(str::to_owned),
        })
    }

    /// Digest, commit and size of one file.
    fn describe(&self, repo: &str, revision: &str, path: &str) -> Result<Answer> {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(repo.split('/')).push("resolve").push(revision);
            segments.extend(path.split('/'));
        }
        let response = self.wait(self.answer_timeout(), self.ask(url))??;
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let named = text("x-repo-commit").filter(|commit| is_commit(commit)).map(str::to_owned);
        match response.status() {
            status if status.is_success() || status.is_redirection() => {}
            StatusCode::NOT_FOUND => {
                return match text("x-error-code") {
                    Some("RepoNotFound") => Err(no_repo(repo)),
                    Some("RevisionNotFound") => Err(no_revision(repo, revision)),
                    Some("EntryNotFound") => Ok(Answer::Absent(named)),
                    _ => Ok(Answer::Absent(None)),
                };
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.refused(repo)),
            status => return Err(self.odd_status(repo, status)),
        }
        let etag = etag_of(headers).ok_or_else(|| self.not_a_hub("digest"))?;
        let commit = named.or_else(|| is_commit(revision).then(|| revision.to_owned()));
        let size = text("x-linked-size").or_else(|| text(header::CONTENT_LENGTH.as_str()));
        Ok(Answer::Here(RemoteFile {
            etag,
            commit: commit.ok_or_else(|| self.not_a_hub("commit"))?,
            size_bytes: size.and_then(|size| size.parse().ok()).ok_or_else(|| self.not_a_hub("size"))?,
        }))
    }

    /// Asks for the headers at `url`, following redirects up to the answer that describes the
    /// file. The token goes to the hub alone.
    async fn ask(&self, mut url: Url) -> Result<Response> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.asker.head(url.clone());
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            let describes = response.headers().contains_key("x-linked-etag");
            if !response.status().is_redirection() || describes {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            url = location
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| self.not_a_hub("place to go on to"))?;
        }
        Err(Error::registry(format!("the hub at {} redirects in circles", self.endpoint)))
    }

    /// Fetches a file to `blob` by way of `<blob>.incomplete`, going on from what an earlier try
    /// left there.
    fn download(
        &self,
        repo: &str,
        remote: &RemoteFile,
        path: &str,
        digest: &Digest,
        blob: &Path,
    ) -> Result<()> {
        let partial = PathBuf::from(format!("{}.incomplete", blob.display()));
        let cannot_write = |error: std::io::Error| io_error("write", &partial, &error);
        create_parent(&partial).map_err(cannot_write)?;
        let mut transfer = Transfer::take_up(&partial, digest, remote.size_bytes).map_err(cannot_write)?;
        let mut is_resumed = transfer.n_bytes > 0;
        let progress = Progress::of_bytes(&format!("{repo}/{path}"), remote.size_bytes, transfer.n_bytes);
        for attempt in 0.. {
            let before = transfer.n_bytes;
            let outcome = self.receive(repo, remote, path, &mut transfer, &progress);
            match outcome {
                Ok(()) if transfer.is_right(digest) => break,
                // What an earlier process left may be what is wrong: once more from the start.
                Ok(()) if is_resumed => {
                    note(&format!("the earlier part of {repo}/{path} is damaged; starting over"));
                    transfer = Transfer::anew(&partial, digest, remote.size_bytes).map_err(cannot_write)?;
                    is_resumed = false;
                }
                Ok(()) => {
                    let found = transfer.hasher.finish();
                    fs::remove_file(&partial).map_err(cannot_write)?;
                    return Err(Error::registry(format!(
                        "`{path}` of hub repository `{repo}` arrived with a wrong digest and was deleted: its {} \
                         is {}, expected {}; something between here and {} changes files",
                        digest.algorithm(),
                        found.hex(),
                        digest.hex(),
                        self.endpoint
                    )));
                }
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Connection(error))
                    if attempt == MAX_RESUMPTIONS || transfer.n_bytes == before =>
                {
                    return Err(Error::registry(format!(
                        "{error} after {} of {} MB of `{path}` from hub repository `{repo}`; run again to go on \
                         from there",
                        megabytes(transfer.n_bytes),
                        megabytes(remote.size_bytes)
                    )));
                }
                Err(Broken::Connection(error)) => {
                    tracing::debug!("going on with {repo}/{path} at {}: {error}", transfer.n_bytes);
                }
            }
        }
        put_in_place(&partial, blob).map_err(|error| io_error("write", blob, &error))?;
        progress.done(remote.size_bytes);
        Ok(())
    }

    /// Appends to the transfer until it is complete or the connection breaks.
    fn receive(
        &self,
        repo: &str,
        remote: &RemoteFile,
        path: &str,
        transfer: &mut Transfer,
        progress: &Progress,
    ) -> Result<(), Broken> {
        let start = transfer.n_bytes;
        if start == remote.size_bytes {
            return Ok(());
        }
        let handle = self.repo(repo);
        let range = (start > 0).then_some(start..remote.size_bytes);
        let request =
            handle.download_file_stream().filename(path).revision(&remote.commit).maybe_range(range);
        // Two round trips, the second of which may be sent on to another host.
        let (length, mut stream) = self
            .wait(self.read_timeout * 2, request.send())
            .map_err(Broken::Fatal)?
            .map_err(|error| match error {
            HFError::Request { source, .. } => Broken::Connection(cause(source)),
            other => Broken::Fatal(self.explain(repo, &remote.commit, other)),
        })?;
        if start > 0 && length != Some(remote.size_bytes - start) {
            // Asked for the rest, the server sends something else.
            drop(stream);
            transfer.rewind().map_err(|error| Broken::Fatal(io_error("write", &transfer.path, &error)))?;
            return self.receive(repo, remote, path, transfer, progress);
        }
        while transfer.n_bytes < remote.size_bytes {
            let next = self.runtime.block_on(async { timeout(self.read_timeout, stream.next()).await });
            let bytes = match next {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(HFError::Request { source, .. }))) => {
                    return Err(Broken::Connection(format!("the connection broke ({})", cause(source))));
                }
                Ok(Some(Err(error))) => return Err(Broken::Connection(chain(&error))),
                Ok(None) => return Err(Broken::Connection("the connection closed".into())),
                Err(_) => {
                    let limit = self.read_timeout;
                    return Err(Broken::Connection(format!("nothing arrived for {limit:?}")));
                }
            };
            let room = usize::try_from(remote.size_bytes - transfer.n_bytes).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(room)];
            transfer
                .append(bytes)
                .map_err(|error| Broken::Fatal(io_error("write", &transfer.path, &error)))?;
            progress.reached(transfer.n_bytes);
        }
        Ok(())
    }

    fn explain(&self, repo: &str, revision: &str, error: HFError) -> Error {
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => self.refused(repo),
            HFError::RepoNotFound { .. } => no_repo(repo),
            // The hub's answer is 404 for either.
            HFError::RevisionNotFound { .. } if revision == MAIN => no_repo(repo),
            HFError::RevisionNotFound { .. } => no_revision(repo, revision),
            HFError::EntryNotFound { path, .. } => no_file(repo, revision, &path),
            HFError::Request { source, .. } => self.unreachable(source),
            HFError::Http { context } => self.odd_status(repo, context.status),
            other => Error::registry(format!("hub repository `{repo}`: {}", chain(&other))),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::registry(format!("cannot reach the hub at {}: {}", self.endpoint, cause(error)))
    }

    fn refused(&self, repo: &str) -> Error {
        let remedy = match self.token {
            Some(_) => "accept its terms on the hub, or set HF_TOKEN to a token that may read it",
            None => "set HF_TOKEN to a token that may read it",
        };
        Error::registry(format!(
            "the hub refuses access to `{repo}`: it is private or gated, or does not exist; {remedy}"
        ))
    }

    fn odd_status(&self, repo: &str, status: StatusCode) -> Error {
        Error::registry(format!("the hub at {} answered {status} for `{repo}`; try later", self.endpoint))
    }

    fn not_a_hub(&self, lacks: &str) -> Error {
        Error::registry(format!(
            "the answer of {} carries no {lacks}; is HF_ENDPOINT a Hugging Face hub or a mirror of it",
            self.endpoint
        ))
    }
}

/// Why a transfer stopped.
enum Broken {
    /// It may go on with a new connection.
    Connection(String),
    Fatal(Error),
}

/// A file on its way in: the bytes so far and their digest.
struct Transfer {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    size_bytes: u64,
    hasher: verify::Hasher,
    fresh_hasher: verify::Hasher,
}

impl Transfer {
    /// Goes on with the file at `path`, if there is one that is not too long.
    fn take_up(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let fresh_hasher = digest.hasher(size_bytes);
        let mut hasher = fresh_hasher.clone();
        let n_bytes = match file.metadata()?.len() {
            n_bytes if n_bytes <= size_bytes => hasher.update_from(&mut file)?,
            _ => 0,
        };
        let mut transfer = Self { path: path.to_owned(), file, n_bytes, size_bytes, hasher, fresh_hasher };
        if n_bytes == 0 {
            transfer.rewind()?;
        }
        Ok(transfer)
    }

    fn anew(path: &Path, digest: &Digest, size_bytes: u64) -> std::io::Result<Self> {
        File::create(path)?;
        Self::take_up(path, digest, size_bytes)
    }

    fn rewind(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        std::io::Seek::rewind(&mut self.file)?;
        self.n_bytes = 0;
        self.hasher = self.fresh_hasher.clone();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    fn is_right(&self, digest: &Digest) -> bool {
        self.n_bytes == self.size_bytes && self.hasher.clone().finish() == *digest
    }
}

/// `models--owner--name`, the cache's folder of a repository.
fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hub's name for the content behind an answer, without quotes and weakness mark.
fn etag_of(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG))?.to_str().ok()?;
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned())
}

fn no_file(repo: &str, revision: &str, path: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no file `{path}` at revision `{revision}`"))
}

fn no_repo(repo: &str) -> Error {
    Error::registry(format!("the hub has no repository `{repo}`, or it is private and HF_TOKEN is not set"))
}

fn no_revision(repo: &str, revision: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no revision `{revision}`"))
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

/// What went wrong with a request. Its address is left out: the hub signs those it sends on to.
fn cause(error: reqwest::Error) -> String {
    chain(&error.without_url())
}

/// An error with its causes; the last of them is the one that says what happened.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
