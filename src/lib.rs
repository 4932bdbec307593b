//! predict-otron-9000
pub mod app;
pub mod chat;
pub mod cli;
pub mod config;
pub mod embeddings;
pub mod error;
pub mod http;
pub mod inference;
pub mod kernels;
pub mod models;
pub mod openai;
pub mod registry;
pub mod telemetry;
pub mod tokenizer;
