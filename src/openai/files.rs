//! Wire types of `/v1/files`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The form of an upload.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct FileUploadForm {
    /// The file, with its name.
    #[schemars(extend("contentMediaType" = "application/octet-stream"))]
    pub file: String,
    /// Its purpose; `batch` for the requests of a batch.
    #[schemars(length(min = 1, max = 1024), example = &"batch")]
    pub purpose: String,
    /// Always `created_at`.
    #[serde(default, rename = "expires_after[anchor]")]
    #[schemars(extend("const" = "created_at"))]
    pub anchor: Option<String>,
    /// Seconds after which the file is removed, from 3,600 to 2,592,000. Files for `batch` are kept for 30 days, others
    /// until they are deleted.
    #[serde(default, rename = "expires_after[seconds]")]
    #[schemars(range(min = 3600, max = 2_592_000))]
    pub seconds: Option<u64>,
}

/// A file that was uploaded, or that a batch has made.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct FileObject {
    /// Unique id of the file.
    pub id: String,
    /// Always `file`.
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// Unix time at which it was created, in seconds.
    pub created_at: u64,
    /// Unix time at which it is removed, in seconds.
    pub expires_at: Option<u64>,
    /// The name that the client gave it.
    pub filename: String,
    /// Its purpose: `batch`, `batch_output`, or whatever else the client said.
    pub purpose: String,
    /// Always `processed`.
    #[schemars(extend("const" = "processed"))]
    pub status: &'static str,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct ListPage<T> {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The entries.
    pub data: Vec<T>,
    /// Id of the first of them.
    pub first_id: Option<String>,
    /// Id of the last of them.
    pub last_id: Option<String>,
    /// Whether more follow.
    pub has_more: bool,
}
