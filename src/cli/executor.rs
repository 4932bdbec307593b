//! The HTTP threads of a command, and Ctrl-C while it waits for them.

use std::future::pending;
use std::process::ExitCode;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};

/// The exit code of a command that Ctrl-C ended, as of a shell.
const INTERRUPTED: u8 = 130;

/// Runs a command's asynchronous work. Dropping it waits for nothing, downloads included.
pub struct Executor {
    runtime: Option<Runtime>,
}

impl Executor {
    /// Starts the threads.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::internal(format!("cannot start the HTTP threads: {e}")))?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Runs `work` to its end; `None` if Ctrl-C ended it before.
    ///
    /// # Errors
    /// When `work` fails.
    pub fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        let Some(runtime) = &self.runtime else { return Ok(None) };
        runtime.block_on(async {
            tokio::select! {
                result = work => result.map(Some),
                () = interrupt() => Ok(None),
            }
        })
    }

    /// Runs a whole command.
    ///
    /// # Errors
    /// When it fails.
    pub fn command(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
        let done = Self::start()?.run(work)?;
        Ok(done.map_or(ExitCode::from(INTERRUPTED), |()| ExitCode::SUCCESS))
    }

    /// The exit code of a command that Ctrl-C ended.
    pub fn interrupted() -> ExitCode {
        ExitCode::from(INTERRUPTED)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Completes at the next Ctrl-C.
async fn interrupt() {
    match signal(SignalKind::interrupt()) {
        Ok(mut signal) => drop(signal.recv().await),
        // Without a handler, Ctrl-C ends the process by itself.
        Err(_) => pending().await,
    }
}
