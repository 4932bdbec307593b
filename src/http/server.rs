//! The accept loop, with the timers that axum's own lacks, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::router;
use crate::app::App;

/// Connections open at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;

/// How long to rest when the system cannot accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last errors to reach their clients.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves `app` on `listener` until `shutdown` comes; then accepts nothing new and waits for the
/// running requests, at most as long as the limits say.
pub async fn serve(listener: TcpListener, app: App, shutdown: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(router(app.clone()));
    let limits = app.limits().clone();
    let mut http = http1::Builder::new();
    // A client that trickles its headers holds a connection this long and no longer.
    http.timer(TokioTimer::new()).header_read_timeout(limits.read_timeout);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = &mut shutdown => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Tokens are small and should not wait for each other; a socket that refuses still works.
        let _ = stream.set_nodelay(true);
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection broke");
            }
            drop(place);
        });
    }
    drop(listener);
    app.start_draining();
    tracing::info!("shutting down: finishing what runs");
    let mut finished = std::pin::pin!(connections.shutdown());
    if timeout(limits.shutdown_grace, &mut finished).await.is_err() {
        tracing::warn!("requests still run after {} s; they are ended", limits.shutdown_grace.as_secs());
        app.stop_generating();
        // Long enough to tell the clients; whoever does not read by then is cut off.
        let _ = timeout(FAREWELL, finished).await;
    }
}
