//! The accept loop, with limits on connections, socket timeouts, TLS and graceful shutdown, which axum's own lacks.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::body::PacedBody;
use super::connection::TimedStream;
use super::connection_table::CloseReason;
use super::connections::{Activity, BusyGuard, Connections, Place};
use super::file_limit;
use super::shutdown::Shutdown;
use super::tls::{Tls, is_not_tls};
use crate::app::App;
use crate::config::Limits;
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::guarded_body::GuardedBody;
use crate::http::middleware::request_id::PeerAddress;
use crate::http::route::PROBES;

/// Pause after the system refused to accept a connection (out of file descriptors, for example).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Bytes that hyper buffers for each direction of a connection.
const BUFFER_BYTES: usize = 128 << 10;

/// Bytes that the system buffers of what is sent on a connection. What it has taken counts as taken by the client, so
/// a larger buffer would hide for minutes that a client does not read.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// A bound socket, with or without TLS.
pub struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }
}

impl Listener {
    /// A listener whose clients speak TLS if `tls` is given.
    pub fn new(socket: TcpListener, tls: Option<Tls>) -> Self {
        Self { socket, tls }
    }
}

/// Serves `router` on `listener` until `stop` resolves, then shuts down gracefully, as
/// [`crate::http::serve`] describes.
pub async fn serve(listener: Listener, router: Router, app: App, stop: impl Future<Output = Duration>) {
    let limits = fit_to_open_files(app.limits().clone());
    let (trigger, shutdown) = Shutdown::channel();
    let connections = GracefulShutdown::new();
    let table = Connections::new(&limits);
    let mut http = http1::Builder::new();
    http.max_header_size(limits.head_bytes).max_buf_size(BUFFER_BYTES.max(limits.head_bytes));
    let grace = limits.shutdown_grace;
    let server = ConnectionServer { router: TowerToHyperService::new(router), limits, shutdown, http };
    let mut stop = std::pin::pin!(async {
        let delay = stop.await;
        app.start_draining();
        tracing::info!("shutting down in {} s; finishing running requests", delay.as_secs());
        sleep(delay).await;
    });
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, address)) => (stream, address.ip()),
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    table.end_longest_idle();
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Where not even a probe has a place, the connection is closed.
        if let Some(place) = table.admit(peer) {
            let (server, tls) = (server.clone(), listener.tls.clone());
            tokio::spawn(server.run(stream, peer, tls, place, connections.watcher()));
        }
    }
    drop(listener);
    trigger.drain(connections, &app, grace).await;
}

/// Lowers the number of connections to what the limit on open files allows.
fn fit_to_open_files(mut limits: Limits) -> Limits {
    let wanted = limits.connections + limits.probe_connections;
    let n_fitting = file_limit::fit_connections(wanted);
    if n_fitting < wanted {
        limits.connections = n_fitting.saturating_sub(limits.probe_connections).max(1);
        tracing::warn!(
            "the system's limit on open files allows only {} connections; raise it (ulimit -n)",
            limits.connections
        );
    }
    limits
}

/// The parts that all connections share.
#[derive(Clone)]
struct ConnectionServer {
    router: TowerToHyperService<Router>,
    limits: Limits,
    shutdown: Shutdown,
    http: http1::Builder,
}

impl ConnectionServer {
    /// Serves a connection until either side closes it or the table ends it.
    async fn run(self, stream: TcpStream, peer: IpAddr, tls: Option<Tls>, place: Place, watcher: Watcher) {
        // Streamed tokens are small packets that should not wait for each other. A socket that
        // refuses the options still works.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES);
        let connection = async {
            match tls {
                None => self.serve_http(stream, peer, &place, watcher).await,
                Some(tls) => self.serve_tls(stream, peer, &tls, &place, watcher).await,
            }
        };
        tokio::select! {
            () = connection => {}
            () = place.ended() => {}
        }
    }

    /// Makes the TLS handshake, which takes no longer than the head of a request may, and serves HTTP.
    async fn serve_tls(&self, stream: TcpStream, peer: IpAddr, tls: &Tls, place: &Place, watcher: Watcher) {
        let mut shutdown = self.shutdown.clone();
        let handshake = tokio::select! {
            handshake = timeout(self.limits.head_timeout, tls.acceptor().accept(stream)) => handshake,
            () = shutdown.begun() => return,
        };
        match handshake {
            Ok(Ok(stream)) => {
                place.activity().handshake_done();
                self.serve_http(stream, peer, place, watcher).await;
            }
            Ok(Err(e)) if is_not_tls(&e) => {
                tracing::info!(%peer, "connection closed: the client does not speak TLS; use https:// URLs");
            }
            Ok(Err(e)) => tracing::debug!(%peer, error = %e, "TLS handshake failed"),
            Err(_) => CloseReason::NoRequest.count(),
        }
    }

    async fn serve_http<S>(&self, stream: S, peer: IpAddr, place: &Place, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = place.activity();
        let stream = TimedStream::new(stream, activity.clone(), &self.limits, self.shutdown.clone());
        let respond = service_fn(|request| self.respond(request, peer, place));
        let connection = watcher.watch(self.http.serve_connection(TokioIo::new(stream), respond));
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "connection failed");
        }
    }

    /// Passes a request to the router, unless its connection is only for probes.
    fn respond(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        place: &Place,
    ) -> impl Future<Output = Result<Response<GuardedBody<BusyGuard>>, Infallible>> + use<> {
        let activity = place.activity().clone();
        let busy = activity.start_request();
        let is_for_probes = place.is_for_probes();
        let is_refused = is_for_probes && !PROBES.contains(&request.uri().path());
        let mut request = request.map(|body| PacedBody::new(body, activity.clone(), &self.limits));
        request.extensions_mut().insert(self.shutdown.clone());
        request.extensions_mut().insert(PeerAddress(peer));
        let response = (!is_refused).then(|| self.router.call(request));
        async move {
            let mut response = match response {
                Some(response) => hold(response.await?, &activity),
                None => ApiError::from(activity.no_place()).into_response(),
            };
            if is_for_probes {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| GuardedBody::new(body, busy)))
        }
    }
}

/// Counts the bytes of a response until they are sent, or replaces it with an error where there are too many.
fn hold(response: Response, activity: &Activity) -> Response {
    // What is streamed is not in memory yet.
    let n_bytes = response.body().size_hint().exact().unwrap_or(0);
    match activity.hold_response(usize::try_from(n_bytes).unwrap_or(usize::MAX)) {
        Ok(()) => response,
        Err(e) => ApiError::from(e).into_response(),
    }
}
