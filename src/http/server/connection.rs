//! A client connection: keep-alive, and the timeouts of its reads and writes.
//!
//! hyper has one timer for the whole time between two requests. Here the keep-alive wait for a request
//! and the reading of its head have separate limits, and a client that stops reading its response is
//! disconnected.
//!
//! One case goes unnoticed: a client that disconnects after it has pipelined another request. hyper
//! reads no further than that request while it writes a response, so the response runs on until a
//! write fails. A client that closes only its sending side counts as disconnected, as in hyper.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::shutdown::Shutdown;
use crate::config::Limits;

/// How long to read the rest of a request after its response. A socket that closes with unread data
/// is reset, and the client's system would discard the response.
const LINGER: Duration = Duration::from_secs(2);

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionPhase {
    /// Keep-alive: waiting for the next request.
    Idle,
    /// Reading the head of a request.
    Head,
    /// Serving a request.
    Busy,
}

/// A connection's phase, shared by its socket and its requests.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<PhaseSince>>);

/// A phase and when it began.
struct PhaseSince {
    phase: ConnectionPhase,
    since: Instant,
    /// The connection's task, if it waits without a deadline.
    waker: Option<Waker>,
}

/// A guard that keeps its connection busy until it is dropped.
pub struct BusyGuard(Activity);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(PhaseSince {
            phase: ConnectionPhase::Idle,
            since: Instant::now(),
            waker: None,
        })))
    }

    /// Marks the connection as busy until the guard is dropped.
    pub fn start_request(&self) -> BusyGuard {
        self.enter(ConnectionPhase::Busy);
        BusyGuard(self.clone())
    }

    /// Changes the phase. Returns the task that now has a deadline to wait for.
    fn enter(&self, phase: ConnectionPhase) -> Option<Waker> {
        let mut current = self.lock();
        (current.phase, current.since) = (phase, Instant::now());
        current.waker.take()
    }

    fn lock(&self) -> MutexGuard<'_, PhaseSince> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        // An idle connection has a deadline, which its task must learn of.
        if let Some(waker) = self.0.enter(ConnectionPhase::Idle) {
            waker.wake();
        }
    }
}

/// A response body that keeps its connection busy until it is sent.
pub struct BusyBody {
    body: axum::body::Body,
    _busy: BusyGuard,
}

impl BusyBody {
    /// Ties `busy` to `body`.
    pub fn new(body: axum::body::Body, busy: BusyGuard) -> Self {
        Self { body, _busy: busy }
    }
}

impl Body for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket whose reads and writes fail when they take too long.
///
/// The limits are the keep-alive timeout while idle, the head timeout while a request's head arrives,
/// and the write stall while the client does not read.
pub struct TimedStream {
    stream: TcpStream,
    activity: Activity,
    shutdown: Shutdown,
    keep_alive_idle: Duration,
    head_timeout: Duration,
    write_stall: Duration,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Pin<Box<Sleep>>,
    /// Whether the write timer runs.
    is_stalled: bool,
    /// Whether the sending side is closed.
    is_write_closed: bool,
}

impl TimedStream {
    /// Wraps `stream` with the timeouts of `limits`.
    pub fn new(stream: TcpStream, limits: &Limits, shutdown: Shutdown) -> Self {
        Self {
            stream,
            activity: Activity::new(),
            shutdown,
            keep_alive_idle: limits.keep_alive_idle,
            head_timeout: limits.head_timeout,
            write_stall: limits.write_stall,
            read_timer: Box::pin(sleep(limits.keep_alive_idle)),
            write_timer: Box::pin(sleep(limits.write_stall)),
            is_stalled: false,
            is_write_closed: false,
        }
    }

    /// The connection's phase, for its requests.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Resolves when a read without data has waited too long. Never while a request is served.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = {
            let mut current = self.activity.lock();
            let limit = match current.phase {
                ConnectionPhase::Busy => {
                    current.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                ConnectionPhase::Idle => self.keep_alive_idle,
                ConnectionPhase::Head => self.head_timeout,
            };
            current.since + limit
        };
        if self.shutdown.has_begun() {
            return Poll::Ready(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server is shutting down",
            ));
        }
        if self.read_timer.deadline() != deadline {
            self.read_timer.as_mut().reset(deadline);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no request received in time"))
    }

    /// Turns a write that has waited too long for the client into an error.
    fn check_write_stall<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.is_stalled = false;
            return write;
        }
        if !self.is_stalled {
            self.is_stalled = true;
            self.write_timer.as_mut().reset(Instant::now() + self.write_stall);
        }
        ready!(self.write_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its response")))
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buffer) else {
            return self.poll_read_deadline(cx).map(Err);
        };
        if buffer.filled().len() > n_before && self.activity.lock().phase == ConnectionPhase::Idle {
            self.activity.enter(ConnectionPhase::Head);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_write_stall(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check_write_stall(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes the sending side, then reads on for [`LINGER`].
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.is_write_closed = true;
            self.read_timer.as_mut().reset(Instant::now() + LINGER);
        }
        let mut scratch = [0; 4096];
        while !self.shutdown.has_begun() && self.read_timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
