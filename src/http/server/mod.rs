//! The HTTP server: accept loop, the table of connections, keep-alive and timeouts, TLS, graceful shutdown.

mod accept;
pub mod body;
mod connection;
mod connection_table;
mod connections;
mod file_limit;
mod head_error;
mod linger;
mod pace;
pub mod shutdown;
mod tls;

pub use accept::{Listener, serve};
pub use tls::Tls;
