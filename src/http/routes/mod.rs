//! Request handlers, one file per group of routes.

pub mod chat;
pub mod completions;
pub mod decisions;
pub mod embeddings;
pub mod generation;
pub mod models;
pub mod probes;
pub mod rerank;
pub mod tokens;
