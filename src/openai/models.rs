//! `/v1/models`.

use schemars::JsonSchema;
use serde::Serialize;

/// One model that is served here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Model {
    pub id: String,
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    /// Unix time in seconds.
    pub created: u64,
    pub owned_by: String,
    /// What it is for: `chat`, `embedding` or `reranking`. This and what follows is ours.
    pub kind: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// These four are null until its files are at hand.
    pub context_length: Option<usize>,
    pub family: Option<String>,
    pub format: Option<&'static str>,
    pub license: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<Model>,
}
