//! HTTP requests to the hub: listings, file metadata and downloads.

use std::error::Error as StdError;
use std::fs;
use std::future::Future;
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

use super::super::names::{DEFAULT_REVISION, check_relative_path, is_commit};
use super::super::progress::{DownloadWatch, Progress, notify, readable_size};
use super::super::verify::{Digest, create_parent, io_error, persist};
use super::transfer::Transfer;
use crate::config::RegistryConfig;
use crate::error::{Error, Kind, Result};

/// Time limit for a request of metadata; beyond it, the hub counts as unreachable.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an interrupted transfer is resumed within one call.
const MAX_RESUMES: usize = 4;

/// The limit of Hugging Face's own clients.
const MAX_REDIRECTS: usize = 10;

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A client of the hub. Its methods block; its futures run on its own runtime.
pub struct Session {
    runtime: Runtime,
    client: HFClient,
    /// A client that follows no redirects, for file metadata: the response with a file's digest and commit is the
    /// hub's own, before the redirect to the file's bytes. `HFRepository::get_file_metadata` follows the redirect,
    /// and so gets neither.
    metadata_client: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    read_timeout: Duration,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoListing {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Relative paths of all files.
    pub files: Vec<String>,
    /// The license in the model card.
    pub license: Option<String>,
}

/// A file on the hub.
pub struct RemoteFile {
    /// Its repository.
    pub repo: String,
    /// Its path in the repository.
    pub path: String,
    /// The ETag of its content, which is a digest on a real hub.
    pub etag: String,
    /// The commit of its repository.
    pub commit: String,
    /// Its size.
    pub size_bytes: u64,
}

/// The hub's response about a file.
pub enum HubResponse {
    /// The repository has the file.
    Found(RemoteFile),
    /// The repository does not have the file. The commit is known if a real hub says so, and not some other server.
    Absent(Option<String>),
}

impl Session {
    /// Sets up the clients; opens no connection yet.
    ///
    /// # Errors
    /// When the endpoint is malformed, or a client cannot be set up.
    pub fn open(config: &RegistryConfig) -> Result<Self> {
        let endpoint = Url::parse(&config.hub_endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format!("HF_ENDPOINT is `{}`, which is not an http or https URL", config.hub_endpoint),
                )
            })?;
        let client = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .connect_timeout(config.hub_connect_timeout)
                .read_timeout(config.hub_read_timeout)
        };
        let setup_error = |error: &dyn StdError| {
            Error::internal(format!("cannot set up the hub client: {}", error_chain(error)))
        };
        let metadata_client = client()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| setup_error(&error))?;
        let mut builder = HFClient::builder()
            .endpoint(&config.hub_endpoint)
            .cache_dir(&config.hub_cache)
            .client(client().build().map_err(|error| setup_error(&error))?)
            // Retries are done here, where an interrupted transfer can be resumed.
            .retry_max_attempts(0);
        if let Some(token) = &config.hub_token {
            builder = builder.token(token);
        }
        Ok(Self {
            runtime: runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| setup_error(&error))?,
            client: builder.build().map_err(|error| setup_error(&error))?,
            metadata_client,
            endpoint,
            token: config.hub_token.clone(),
            read_timeout: config.hub_read_timeout,
        })
    }

    fn repo(&self, repo: &str) -> HFRepository<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(repo);
        self.client.model(owner, name)
    }

    /// Runs a request with a time limit.
    fn wait<T>(&self, limit: Duration, request: impl Future<Output = T>) -> Result<T> {
        self.runtime.block_on(async { timeout(limit, request).await }).map_err(|_| {
            Error::registry(format!("the hub at {} did not respond within {limit:?}", self.endpoint))
        })
    }

    fn metadata_timeout(&self) -> Duration {
        METADATA_TIMEOUT.min(self.read_timeout)
    }

    /// Lists the files of a repository at a revision.
    ///
    /// # Errors
    /// When the repository or revision does not exist or is not accessible, or the hub is unreachable.
    pub fn list(&self, repo: &str, revision: &str) -> Result<RepoListing> {
        let handle = self.repo(repo);
        let info = self
            .wait(self.metadata_timeout(), handle.info().revision(revision).send())?
            .map_err(|error| self.hub_error(repo, revision, error))?;
        let commit = info.sha.filter(|commit| is_commit(commit)).ok_or_else(|| self.not_a_hub("commit"))?;
        let card = info.card_data.unwrap_or_default();
        // Names become paths on this disk, and the hub is not trusted to stay in its folder.
        let is_safe = |name: &String| check_relative_path(name).is_ok();
        let siblings = info.siblings.unwrap_or_default().into_iter();
        Ok(RepoListing {
            commit,
            files: siblings.map(|sibling| sibling.rfilename).filter(is_safe).collect(),
            license: card.get("license").and_then(|license| license.as_str()).map(str::to_owned),
        })
    }

    /// Requests digest, commit and size of one file.
    ///
    /// # Errors
    /// When the repository or revision does not exist or is not accessible, or the hub is unreachable.
    pub fn describe(&self, repo: &str, revision: &str, path: &str) -> Result<HubResponse> {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(repo.split('/')).push("resolve").push(revision);
            segments.extend(path.split('/'));
        }
        let response = self.wait(self.metadata_timeout(), self.head(url))??;
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let header_commit = text("x-repo-commit").filter(|commit| is_commit(commit)).map(str::to_owned);
        match response.status() {
            status if status.is_success() || status.is_redirection() => {}
            StatusCode::NOT_FOUND => {
                return match text("x-error-code") {
                    Some("RepoNotFound") => Err(no_repo(repo)),
                    Some("RevisionNotFound") => Err(no_revision(repo, revision)),
                    Some("EntryNotFound") => Ok(HubResponse::Absent(header_commit)),
                    _ => Ok(HubResponse::Absent(None)),
                };
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.access_denied(repo)),
            status => return Err(self.unexpected_status(repo, status)),
        }
        let etag = etag_of(headers).ok_or_else(|| self.not_a_hub("digest"))?;
        let commit = header_commit.or_else(|| is_commit(revision).then(|| revision.to_owned()));
        let size = text("x-linked-size").or_else(|| text(header::CONTENT_LENGTH.as_str()));
        Ok(HubResponse::Found(RemoteFile {
            repo: repo.to_owned(),
            path: path.to_owned(),
            etag,
            commit: commit.ok_or_else(|| self.not_a_hub("commit"))?,
            size_bytes: size.and_then(|size| size.parse().ok()).ok_or_else(|| self.not_a_hub("size"))?,
        }))
    }

    /// Sends a HEAD request, and follows redirects up to the response with the file's metadata. The token is sent to
    /// the hub only.
    async fn head(&self, mut url: Url) -> Result<Response> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.metadata_client.head(url.clone());
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            let has_metadata = response.headers().contains_key("x-linked-etag");
            if !response.status().is_redirection() || has_metadata {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            url = location
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| self.not_a_hub("redirect location"))?;
        }
        Err(Error::registry(format!(
            "the hub at {} redirects more than {MAX_REDIRECTS} times",
            self.endpoint
        )))
    }

    /// Downloads a file to `blob`, by way of `<blob>.incomplete`. Resumes what an earlier attempt left there.
    ///
    /// # Errors
    /// When the connection breaks without progress or too often, the digest is wrong, the file system refuses, or
    /// `watch` cancels the download.
    pub fn download(
        &self,
        remote: &RemoteFile,
        digest: &Digest,
        blob: &Path,
        watch: &DownloadWatch,
    ) -> Result<()> {
        let RemoteFile { repo, path, .. } = remote;
        let partial = PathBuf::from(format!("{}.incomplete", blob.display()));
        let cannot_write = |error: std::io::Error| io_error("write", &partial, &error);
        create_parent(&partial).map_err(cannot_write)?;
        let mut transfer = Transfer::resume(&partial, digest, remote.size_bytes).map_err(cannot_write)?;
        let mut is_resumed = transfer.n_bytes > 0;
        let what = format!("{repo}/{path}");
        let progress = Progress::for_bytes(&what, remote.size_bytes, transfer.n_bytes, watch);
        for attempt in 0.. {
            let before = transfer.n_bytes;
            let outcome = self.receive(remote, &mut transfer, &progress);
            match outcome {
                Ok(()) if transfer.is_complete(digest) => break,
                // The part from an earlier process may be damaged: try once from the start.
                Ok(()) if is_resumed => {
                    notify(&format!("the partial download of {repo}/{path} is damaged; starting over"));
                    transfer =
                        Transfer::restart(&partial, digest, remote.size_bytes).map_err(cannot_write)?;
                    is_resumed = false;
                }
                Ok(()) => {
                    let found = transfer.hasher.into_digest();
                    fs::remove_file(&partial).map_err(cannot_write)?;
                    return Err(Error::registry(format!(
                        "`{path}` of hub repository `{repo}` arrived with a wrong digest and was deleted: its {} \
                         is {}, expected {}; check the connection to {}: a proxy may alter files",
                        digest.algorithm(),
                        found.hex(),
                        digest.hex(),
                        self.endpoint
                    )));
                }
                Err(TransferError::Fatal(error)) => return Err(error),
                Err(TransferError::Connection(error))
                    if attempt == MAX_RESUMES || transfer.n_bytes == before =>
                {
                    return Err(Error::registry(format!(
                        "{error} after {} of {} of `{path}` from hub repository `{repo}`; run again to resume",
                        readable_size(transfer.n_bytes),
                        readable_size(remote.size_bytes)
                    )));
                }
                Err(TransferError::Connection(error)) => {
                    tracing::debug!("resuming {repo}/{path} at {}: {error}", transfer.n_bytes);
                }
            }
        }
        persist(&partial, blob).map_err(|error| io_error("write", blob, &error))?;
        progress.complete(remote.size_bytes);
        Ok(())
    }

    /// Appends to the transfer until it is complete or the connection breaks.
    fn receive(
        &self,
        remote: &RemoteFile,
        transfer: &mut Transfer,
        progress: &Progress,
    ) -> Result<(), TransferError> {
        let RemoteFile { repo, path, .. } = remote;
        let start = transfer.n_bytes;
        if start == remote.size_bytes {
            return Ok(());
        }
        let handle = self.repo(repo);
        let range = (start > 0).then_some(start..remote.size_bytes);
        let request =
            handle.download_file_stream().filename(path).revision(&remote.commit).maybe_range(range);
        // Two round trips, since the hub may redirect to another host.
        let (length, mut stream) = self
            .wait(self.read_timeout * 2, request.send())
            .map_err(TransferError::Fatal)?
            .map_err(|error| match error {
                HFError::Request { source, .. } => TransferError::Connection(root_cause(source)),
                other => TransferError::Fatal(self.hub_error(repo, &remote.commit, other)),
            })?;
        if start > 0 && length != Some(remote.size_bytes - start) {
            // The server ignored the range.
            drop(stream);
            transfer
                .rewind()
                .map_err(|error| TransferError::Fatal(io_error("write", &transfer.path, &error)))?;
            return self.receive(remote, transfer, progress);
        }
        while transfer.n_bytes < remote.size_bytes {
            let next = self.runtime.block_on(async { timeout(self.read_timeout, stream.next()).await });
            let bytes = match next {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(HFError::Request { source, .. }))) => {
                    return Err(TransferError::Connection(format!(
                        "the connection broke ({})",
                        root_cause(source)
                    )));
                }
                Ok(Some(Err(error))) => return Err(TransferError::Connection(error_chain(&error))),
                Ok(None) => return Err(TransferError::Connection("the connection closed".into())),
                Err(_) => {
                    let limit = self.read_timeout;
                    return Err(TransferError::Connection(format!("nothing arrived for {limit:?}")));
                }
            };
            let room = usize::try_from(remote.size_bytes - transfer.n_bytes).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(room)];
            transfer
                .append(bytes)
                .map_err(|error| TransferError::Fatal(io_error("write", &transfer.path, &error)))?;
            progress.set_position(transfer.n_bytes).map_err(TransferError::Fatal)?;
        }
        Ok(())
    }

    fn hub_error(&self, repo: &str, revision: &str, error: HFError) -> Error {
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => self.access_denied(repo),
            HFError::RepoNotFound { .. } => no_repo(repo),
            // The hub responds 404 to a missing repository too.
            HFError::RevisionNotFound { .. } if revision == DEFAULT_REVISION => no_repo(repo),
            HFError::RevisionNotFound { .. } => no_revision(repo, revision),
            HFError::EntryNotFound { path, .. } => no_file(repo, revision, &path),
            HFError::Request { source, .. } => self.unreachable(source),
            HFError::Http { context } => self.unexpected_status(repo, context.status),
            other => Error::registry(format!("hub repository `{repo}`: {}", error_chain(&other))),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::registry(format!("cannot reach the hub at {}: {}", self.endpoint, root_cause(error)))
    }

    fn access_denied(&self, repo: &str) -> Error {
        let remedy = match self.token {
            Some(_) => "accept its terms on the hub, or set HF_TOKEN to a token with read access",
            None => "set HF_TOKEN to a token with read access",
        };
        Error::registry(format!(
            "the hub denies access to `{repo}`, which is private or gated, or does not exist; {remedy}"
        ))
    }

    fn unexpected_status(&self, repo: &str, status: StatusCode) -> Error {
        Error::registry(format!(
            "the hub at {} responded {status} for `{repo}`; try again later",
            self.endpoint
        ))
    }

    fn not_a_hub(&self, lacks: &str) -> Error {
        Error::registry(format!(
            "the response of {} has no {lacks}; check that HF_ENDPOINT is a Hugging Face hub or a mirror of it",
            self.endpoint
        ))
    }
}

/// A failed transfer.
enum TransferError {
    /// The connection broke; a new one may resume.
    Connection(String),
    /// Retrying does not help.
    Fatal(Error),
}

/// The ETag of a response, without quotes and the `W/` of a weak tag.
fn etag_of(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG))?.to_str().ok()?;
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned())
}

/// The error for a file that is not in its repository.
pub fn no_file(repo: &str, revision: &str, path: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no file `{path}` at revision `{revision}`"))
}

fn no_repo(repo: &str) -> Error {
    Error::registry(format!("the hub has no repository `{repo}`, or it is private and HF_TOKEN is not set"))
}

fn no_revision(repo: &str, revision: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no revision `{revision}`"))
}

/// The reason why a request failed. Leaves out the URL, since redirects of the hub carry signatures.
fn root_cause(error: reqwest::Error) -> String {
    error_chain(&error.without_url())
}

/// The message of an error with those of its causes, the last of which is usually the most specific.
fn error_chain(error: &dyn StdError) -> String {
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
