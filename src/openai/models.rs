//! `/v1/models`.

use schemars::JsonSchema;
use serde::Serialize;

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
