//! Wire types of `/v1/messages/batches`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A request to answer many requests for messages.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct MessageBatchRequest {
    /// The requests, at least one.
    #[schemars(length(min = 1))]
    pub requests: Vec<MessageBatchItem>,
}

/// A request of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MessageBatchItem {
    /// The name of the request, unique in the batch.
    #[schemars(length(min = 1, max = 512))]
    pub custom_id: String,
    /// The body of the request, as for `/v1/messages`.
    pub params: Map<String, Value>,
}

/// A batch.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct MessageBatchObject {
    /// Unique id of the batch.
    pub id: String,
    /// Always `message_batch`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message_batch"))]
    pub kind: &'static str,
    /// `in_progress`, `canceling` or `ended`.
    pub processing_status: &'static str,
    /// Its requests.
    pub request_counts: MessageBatchCounts,
    /// When it ended, as all others in RFC 3339.
    pub ended_at: Option<String>,
    /// When it was created.
    pub created_at: String,
    /// When it ends at the latest.
    pub expires_at: String,
    /// Always null: results are kept until they are deleted with the batch.
    pub archived_at: Option<String>,
    /// When the client wanted no more of it.
    pub cancel_initiated_at: Option<String>,
    /// The path of its results, once it has ended.
    pub results_url: Option<String>,
}

/// Requests of a batch, by how they ended. Until the batch has ended, all of them are processing.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct MessageBatchCounts {
    /// Requests without an answer so far.
    pub processing: u64,
    /// Requests that were answered with a message.
    pub succeeded: u64,
    /// Requests that were answered with an error.
    pub errored: u64,
    /// Requests that a cancellation left unanswered.
    pub canceled: u64,
    /// Requests that were left unanswered when time was over.
    pub expired: u64,
}

/// A page of a list of batches.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct MessageBatchList {
    /// The batches, the newest first.
    pub data: Vec<MessageBatchObject>,
    /// Id of the first of them.
    pub first_id: Option<String>,
    /// Id of the last of them.
    pub last_id: Option<String>,
    /// Whether there are more.
    pub has_more: bool,
}

/// The confirmation that a batch is deleted.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DeletedMessageBatch {
    /// Its id.
    pub id: String,
    /// Always `message_batch_deleted`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message_batch_deleted"))]
    pub kind: &'static str,
}
