//! Request handlers, one file per group of routes.

pub mod chat;
pub mod completions;
pub mod conversations;
pub mod decisions;
pub mod embeddings;
pub mod generation;
pub mod messages;
pub mod models;
pub mod probes;
pub mod rerank;
pub mod responses;
pub mod stored_responses;
pub mod tokens;
