//! The wire: OpenAI's JSON as types, and which parameters are honoured. serde only.

pub mod chat;
pub mod embeddings;
pub mod error;
pub mod models;
pub mod params;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// Reads a request of type `T`; an error names the field.
///
/// # Errors
/// When `body` does not have the form of `T`.
pub fn from_value<T: DeserializeOwned>(body: Value) -> Result<T> {
    serde_path_to_error::deserialize(body).map_err(|e| {
        let message = e.inner().to_string();
        match e.path().to_string() {
            path if path == "." => Error::new(crate::error::Kind::InvalidRequest, message),
            path => Error::invalid(path.clone(), format!("`{path}`: {message}")),
        }
    })
}
