//! The accept loop, with the timers that axum's own lacks, and an orderly end.
//!
//! A request whose head hyper cannot read (400), or whose head (431) or path (414) is too long, never
//! gets as far as a route: hyper answers it itself, with an empty body in place of the envelope.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::connection::{Answer, TimedStream};
use super::shutdown::Closing;
use crate::app::App;

/// Connections open at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;

/// How long to rest when the system cannot accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last errors to reach their clients.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves `app` on `listener` until `shutdown` comes, which says how long to go on: meanwhile
/// `/health` sends new clients elsewhere. Then accepts nothing new and waits for the running
/// requests, at most as long as the limits say.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    app: App,
    shutdown: impl Future<Output = Duration>,
) {
    let router = TowerToHyperService::new(router);
    let limits = app.limits().clone();
    let (close, closing) = watch::channel(false);
    let closing = Closing(closing);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut shutdown = std::pin::pin!(async {
        let delay = shutdown.await;
        app.start_draining();
        tracing::info!("shutting down after {} s: finishing what runs", delay.as_secs());
        sleep(delay).await;
    });
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
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Tokens are small and should not wait for each other; a socket that refuses still works.
        let _ = stream.set_nodelay(true);
        let stream = TimedStream::new(stream, &limits, closing.clone());
        let (router, closing, activity) = (router.clone(), closing.clone(), stream.activity());
        let answer = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(closing.clone());
            let busy = activity.start_request();
            let answer = router.call(request);
            async { Ok::<_, Infallible>(answer.await?.map(|body| Answer::new(body, busy))) }
        });
        let connection =
            connections.watch(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection broke");
            }
            drop(place);
        });
    }
    drop(listener);
    // Before the connections are told, so that they know.
    close.send_replace(true);
    let mut finished = std::pin::pin!(connections.shutdown());
    if timeout(limits.shutdown_grace, &mut finished).await.is_err() {
        tracing::warn!("requests still run after {} s; they are ended", limits.shutdown_grace.as_secs());
        app.stop_generating();
        // Long enough to tell the clients; whoever does not read by then is cut off.
        let _ = timeout(FAREWELL, finished).await;
    }
}
