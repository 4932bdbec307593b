//! Middleware: hosts and origins, authentication, metering, admission, request ids, traces and the request log.

pub mod admission;
pub mod anthropic;
pub mod auth;
pub mod metering;
pub mod ollama;
pub mod request_id;
pub mod site;
pub mod trace_context;
