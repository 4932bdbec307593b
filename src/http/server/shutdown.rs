//! Graceful shutdown: how connections and requests learn that the server stops.

use tokio::sync::watch;

/// Tells connections and requests that the server is closing.
#[derive(Clone)]
pub struct Closing(pub watch::Receiver<bool>);

impl Closing {
    pub fn is_now(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the server closes.
    pub async fn wait(&mut self) {
        // Without its sender, the server has closed.
        let _ = self.0.wait_for(|&closing| closing).await;
    }
}
