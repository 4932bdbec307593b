//! The line to the hub: what it says of a file, and the file's bytes.

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
use super::super::progress::{Progress, note, readable_size};
use super::super::verify::{Digest, create_parent, io_error, put_in_place};
use super::transfer::Transfer;
use crate::config::RegistryConfig;
use crate::error::{Error, Kind, Result};

/// A question about a file is answered within this time, or the hub counts as not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a transfer that broke is taken up again within one call.
const MAX_RESUMPTIONS: usize = 4;

/// As many as Hugging Face's own clients follow.
const MAX_REDIRECTS: usize = 10;

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// An open line to the hub. Blocking; its futures run on a runtime of its own.
pub struct Session {
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

/// A file as the hub describes it.
pub struct RemoteFile {
    /// The hub's name for the content: a digest, if the hub is one.
    pub etag: String,
    pub commit: String,
    pub size_bytes: u64,
}

/// What the hub says about a file.
pub enum Answer {
    Here(RemoteFile),
    /// There is none; at this commit, if it is a hub that says so and not just any server.
    Absent(Option<String>),
}

impl Session {
    pub fn open(config: &RegistryConfig) -> Result<Self> {
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
    pub fn list(&self, repo: &str, revision: &str) -> Result<RepoListing> {
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
    pub fn describe(&self, repo: &str, revision: &str, path: &str) -> Result<Answer> {
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
    pub fn download(
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
                        "{error} after {} of {} of `{path}` from hub repository `{repo}`; run again to go on \
                         from there",
                        readable_size(transfer.n_bytes),
                        readable_size(remote.size_bytes)
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
            HFError::RevisionNotFound { .. } if revision == DEFAULT_REVISION => no_repo(repo),
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

/// The hub's name for the content behind an answer, without quotes and weakness mark.
fn etag_of(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG))?.to_str().ok()?;
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned())
}

/// The error of a file that a repository lacks.
pub fn no_file(repo: &str, revision: &str, path: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no file `{path}` at revision `{revision}`"))
}

fn no_repo(repo: &str) -> Error {
    Error::registry(format!("the hub has no repository `{repo}`, or it is private and HF_TOKEN is not set"))
}

fn no_revision(repo: &str, revision: &str) -> Error {
    Error::registry(format!("hub repository `{repo}` has no revision `{revision}`"))
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
