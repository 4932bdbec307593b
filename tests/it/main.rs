//! The integration tests, one module per area. Tests that need a process of their own are
//! binaries beside this one: `metrics`, `mutated_headers` and `real_models`.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod admission;
mod agents;
mod auth;
mod batches;
mod batching;
mod cli;
mod context;
mod decisions;
mod disk_cache;
mod documents;
mod examples;
mod fastembed;
mod gguf_families;
mod gguf_files;
mod gguf_header;
mod http_chat;
mod http_completions;
mod http_connections;
mod http_embeddings;
mod http_wire;
mod hub;
mod hybrids;
mod kernels;
mod layers;
mod local_models;
mod logs;
mod messages;
mod metering;
mod model_management;
mod model_parity;
mod ollama;
mod openai_parameters;
mod openapi;
mod readiness;
mod reasoning;
mod registry;
mod rerank;
mod response_cache;
mod responses;
mod retries;
mod safetensors_files;
mod scoring;
mod several_models;
mod sites;
mod structured_output;
mod template_parity;
mod terminal;
mod tls;
mod tokenizer_parity;
mod tools;

#[path = "../support/mod.rs"]
mod support;
