//! Graceful shutdown: how connections and requests learn that the server stops, and how it waits for them.

use std::time::Duration;

use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::app::App;

/// Time for the last errors to reach their clients.
const FINAL_WRITE_GRACE: Duration = Duration::from_secs(2);

/// A signal that tells connections and requests that the server is shutting down.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// The sending half of [`Shutdown`].
pub struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    /// A signal that is not given yet, and what gives it.
    pub fn channel() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Whether the server is shutting down.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the server shuts down.
    pub async fn begun(&mut self) {
        // The channel closes only when the server has gone.
        let _ = self.0.wait_for(|&begun| begun).await;
    }
}

impl ShutdownTrigger {
    /// Closes the connections gracefully: idle ones at once, the others after the request that they serve.
    /// Requests that still run after `grace` are stopped with an error.
    pub async fn drain(self, connections: GracefulShutdown, app: &App, grace: Duration) {
        // Before hyper tells the connections, so that their reads see it.
        self.0.send_replace(true);
        let mut finished = std::pin::pin!(connections.shutdown());
        if timeout(grace, &mut finished).await.is_err() {
            tracing::warn!("requests still running after {} s; stopping them", grace.as_secs());
            app.stop_generating();
            // Long enough to send the errors; clients that do not read by then are cut off.
            let _ = timeout(FINAL_WRITE_GRACE, finished).await;
        }
    }
}
