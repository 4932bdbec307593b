//! Lists and descriptions of models, and the progress of downloads, in Ollama's form. What this server does not know is an empty string, or left out.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cache::name_digest;
use crate::openai::models::PullProgress;

/// A list of models.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "{M}List")]
pub struct OllamaModels<M> {
    /// The models.
    pub models: Vec<M>,
}

/// A served model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaModel {
    /// Id or alias of the model.
    pub name: String,
    /// Equal to `name`.
    pub model: String,
    /// Time since which the model is served, as in RFC 3339.
    pub modified_at: String,
    /// Bytes of the model's files, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// A digest of the model's id, not of its files.
    pub digest: String,
    /// Facts from the model's files.
    pub details: OllamaModelDetails,
}

/// A model in memory.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaLoadedModel {
    /// Id of the model.
    pub name: String,
    /// Equal to `name`.
    pub model: String,
    /// Bytes of memory that the weights and the KV cache of a chat model take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes of GPU memory; always 0.
    pub size_vram: u64,
    /// A digest of the model's id, not of its files.
    pub digest: String,
    /// Facts from the model's files.
    pub details: OllamaModelDetails,
    /// The most tokens of a prompt and its completion, or of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<usize>,
}

/// Facts from a model's files.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct OllamaModelDetails {
    /// Always empty.
    pub parent_model: String,
    /// File format: `gguf`, `safetensors` or `onnx`.
    pub format: String,
    /// Architecture.
    pub family: String,
    /// The architecture alone, if known.
    pub families: Vec<String>,
    /// Always empty.
    pub parameter_size: String,
    /// Type of most of the weights in the file, if known.
    pub quantization_level: String,
}

/// The description of a model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaModelDescription {
    /// License, if the model's files name one.
    pub license: String,
    /// Always empty: models have no modelfile here.
    pub modelfile: String,
    /// Always empty: models have no parameters of their own here.
    pub parameters: String,
    /// The chat template (Jinja) of a chat model in memory.
    pub template: String,
    /// Facts from the model's files.
    pub details: OllamaModelDetails,
    /// `general.architecture`, and the most tokens as `context_length` after the architecture's name.
    pub model_info: Map<String, Value>,
    /// Purposes of the model.
    pub capabilities: Vec<Capability>,
    /// Time since which the model is served, as in RFC 3339.
    pub modified_at: String,
}

/// A purpose of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Chat and text completions.
    Completion,
    /// Calls of functions.
    Tools,
    /// Reasoning apart from the text.
    Thinking,
    /// Filling in the text before a suffix.
    Insert,
    /// Embeddings.
    Embedding,
    /// Scores of pairs of texts; not one of Ollama's.
    Reranking,
}

/// A line about a download. The last one has the status `success`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OllamaPullProgress {
    /// `pulling manifest`, then `pulling` with the name of a file or package, and at last `success`.
    pub status: String,
    /// A digest of the file's name, not of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes of the file, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes of the file so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

impl OllamaPullProgress {
    /// The first line, before the files are known.
    pub fn first() -> Self {
        Self::with_status("pulling manifest")
    }

    fn with_status(status: &str) -> Self {
        Self { status: status.to_owned(), digest: None, total: None, completed: None }
    }
}

impl From<PullProgress> for OllamaPullProgress {
    fn from(progress: PullProgress) -> Self {
        let PullProgress { status, file, completed, total, .. } = progress;
        match file {
            Some(file) => Self {
                status: format!("pulling {file}"),
                digest: Some(name_digest(file.as_bytes())),
                total,
                completed,
            },
            None => Self::with_status(status),
        }
    }
}

/// The version of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OllamaVersion {
    /// The version of predict-otron-9000, not of Ollama.
    pub version: &'static str,
}
