//! Middleware: admission, authentication, request ids and the request log.

pub mod admission;
pub mod auth;
pub mod request_id;
