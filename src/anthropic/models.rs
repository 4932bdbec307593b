//! Wire types of `/v1/models` for clients of Anthropic's API.

use schemars::JsonSchema;
use serde::Serialize;

/// A model, in Anthropic's form.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ModelInfo")]
pub struct AnthropicModel {
    /// Id of the model.
    pub id: String,
    /// Always `model`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "model"))]
    pub kind: &'static str,
    /// The model's name for people, which is its id.
    pub display_name: String,
    /// Since when the server has the model, as in RFC 3339.
    pub created_at: String,
    /// Always `active`.
    #[schemars(extend("const" = "active"))]
    pub lifecycle: &'static str,
    /// The most tokens of a prompt and its completion. Null until the model's files are available.
    pub max_input_tokens: Option<usize>,
    /// The most tokens of a completion. Null until the model's files are available.
    pub max_tokens: Option<usize>,
}

/// The models of this server, in Anthropic's form: all on one page.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ModelInfoPage")]
pub struct AnthropicModelList {
    /// The models.
    pub data: Vec<AnthropicModel>,
    /// Always false.
    pub has_more: bool,
    /// Id of the first model.
    pub first_id: Option<String>,
    /// Id of the last model.
    pub last_id: Option<String>,
}

/// A response in the form of the API that the client speaks.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum InApiForm<O, A> {
    /// In OpenAI's form.
    OpenAi(O),
    /// In Anthropic's form.
    Anthropic(A),
}
