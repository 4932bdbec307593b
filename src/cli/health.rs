//! `health`: asks a running server whether it is ready, for health checks of containers, which have no shell.

use std::time::Duration;

use tokio::time::timeout;

use super::client::ApiClient;
use super::executor::Executor;
use crate::config::HealthArgs;
use crate::error::{Error, Kind, Result};

/// Time for the server to answer.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Checks that the server is ready for requests.
///
/// # Errors
/// When it is not; the error says why.
pub fn run(args: &HealthArgs) -> Result<()> {
    let client = match &args.server {
        Some(url) => ApiClient::new(url, None)?,
        None => ApiClient::unverified(args.port, args.tls_cert.is_some())?,
    };
    let ready = async {
        let late = || format!("the server at {} did not answer within {} s", client.url(), TIMEOUT.as_secs());
        let answer = timeout(TIMEOUT, client.readiness()).await;
        answer.unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, late())))
    };
    Executor::start()?.run(ready).map(drop)
}
