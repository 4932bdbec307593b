//! Middleware: authentication, request ids and the request log.

pub mod auth;
pub mod request_id;
