//! The accept loop, with backpressure, socket timeouts and graceful shutdown, which axum's own lacks.
//!
//! A request whose head hyper cannot parse (400), or whose head (431) or path (414) is too long, never
//! reaches the router: hyper answers it itself, with an empty body in place of the error envelope.

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
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::connection::{BusyBody, TimedStream};
use super::shutdown::Shutdown;
use crate::app::App;

/// Backpressure: the most connections open at once; further clients wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;

/// Pause after the system refused to accept a connection (out of file descriptors, for example).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` resolves, then shuts down gracefully, as
/// [`crate::http::serve`] describes.
pub async fn serve(listener: TcpListener, router: Router, app: App, stop: impl Future<Output = Duration>) {
    let router = TowerToHyperService::new(router);
    let limits = app.limits().clone();
    let (trigger, shutdown) = Shutdown::channel();
    let connections = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(async {
        let delay = stop.await;
        app.start_draining();
        tracing::info!("shutting down in {} s; finishing running requests", delay.as_secs());
        sleep(delay).await;
    });
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = &mut stop => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Streamed tokens are small packets that should not wait for each other. A socket that
        // refuses the option still works.
        let _ = stream.set_nodelay(true);
        let stream = TimedStream::new(stream, &limits, shutdown.clone());
        let (router, shutdown, activity) = (router.clone(), shutdown.clone(), stream.activity());
        let respond = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(shutdown.clone());
            let busy = activity.start_request();
            let response = router.call(request);
            async { Ok::<_, Infallible>(response.await?.map(|body| BusyBody::new(body, busy))) }
        });
        let connection =
            connections.watch(http1::Builder::new().serve_connection(TokioIo::new(stream), respond));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection failed");
            }
            drop(permit);
        });
    }
    drop(listener);
    trigger.drain(connections, &app, limits.shutdown_grace).await;
}
