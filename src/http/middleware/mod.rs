//! Middleware: authentication, request ids and the access log.

pub mod auth;
pub mod request_id;
