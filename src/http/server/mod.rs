//! The HTTP server: the accept loop, connections with timeouts, and graceful shutdown.

mod accept;
mod connection;
pub mod shutdown;

pub use accept::serve;
