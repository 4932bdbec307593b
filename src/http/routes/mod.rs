//! Request handlers, one file per group of routes.

pub mod batches;
pub mod chat;
pub mod completions;
pub mod conversations;
pub mod decisions;
pub mod embeddings;
pub mod files;
pub mod generation;
pub mod message_batches;
pub mod messages;
pub mod model_management;
pub mod models;
pub mod ollama;
pub mod ollama_embeddings;
pub mod ollama_models;
pub mod probes;
pub mod rerank;
pub mod responses;
pub mod stored_responses;
pub mod tokens;
pub mod usage;
