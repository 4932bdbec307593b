//! Wire types of `/v1/conversations`, and of lists of items.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::JsonMap;

/// A request to create or change a conversation.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A conversation's first items and its metadata.")]
pub struct ConversationRequest {
    /// Items to begin with, up to 20.
    #[schemars(length(max = 20))]
    pub items: Option<Vec<JsonMap>>,
    /// Up to 16 pairs of a key and a text.
    #[schemars(extend("maxProperties" = 16))]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A request to change a conversation.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A conversation's new metadata.")]
pub struct ConversationUpdate {
    /// Up to 16 pairs of a key and a text, which replace the former ones.
    #[schemars(extend("maxProperties" = 16))]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A request to add items to a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(description = "Items to add to a conversation.")]
pub struct ItemsRequest {
    /// The items, up to 20.
    #[schemars(length(max = 20))]
    pub items: Vec<JsonMap>,
}

/// A conversation.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ConversationObject {
    /// Unique id of the conversation.
    pub id: String,
    /// Always `conversation`.
    #[schemars(extend("const" = "conversation"))]
    pub object: &'static str,
    /// Unix time at which it was created, in seconds.
    pub created_at: u64,
    /// Pairs of a key and a text.
    pub metadata: Value,
}

/// The confirmation that something is deleted.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Deleted {
    /// The id of what was deleted.
    pub id: String,
    /// `response` or `conversation.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// A page of a list of items.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ItemList {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The items.
    pub data: Vec<JsonMap>,
    /// Id of the first of these items.
    pub first_id: Option<String>,
    /// Id of the last of these items.
    pub last_id: Option<String>,
    /// Whether more items follow.
    pub has_more: bool,
}

impl ItemList {
    /// A page of items.
    pub fn new(data: Vec<JsonMap>, has_more: bool) -> Self {
        let id = |item: Option<&JsonMap>| item.and_then(id_of_item).map(str::to_owned);
        Self { object: "list", first_id: id(data.first()), last_id: id(data.last()), data, has_more }
    }
}

/// The id of an item.
pub fn id_of_item(item: &JsonMap) -> Option<&str> {
    item.get("id")?.as_str()
}
