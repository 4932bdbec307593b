//! The HTTP server: accept loop, connections with keep-alive and timeouts, graceful shutdown.

mod accept;
mod connection;
pub mod shutdown;

pub use accept::serve;
