//! Request handlers, one file per family of routes.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod probes;
pub mod rerank;
pub mod tokens;
