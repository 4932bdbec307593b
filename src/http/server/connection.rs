//! A client's connection: what goes on on it, and how long that may take.
//!
//! hyper has one timer, for the whole time between two requests; here waiting for a request and
//! reading its head are told apart, and a client that does not read its answers is noticed.
//!
//! What this cannot see: a client that went away after it had sent another request ahead. hyper
//! reads no further than that request while an answer is written, so the answer goes on until a
//! write fails. A client that closes only its sending side counts as gone, as hyper has it.

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

use super::shutdown::Closing;
use crate::config::Limits;

/// How long the rest of a request is read after its answer, so that a client that still sends gets
/// to see the answer: closing at once would make its system throw the answer away.
const LINGER: Duration = Duration::from_secs(2);

/// What a connection does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for a request.
    Idle,
    /// A request has begun to come.
    Head,
    /// A request is being answered.
    Busy,
}

/// A connection's phase, known to its socket and to its requests.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<State>>);

struct State {
    phase: Phase,
    since: Instant,
    /// The connection's task, where it waits without a deadline.
    waker: Option<Waker>,
}

/// Keeps its connection busy until it is dropped.
pub struct Busy(Activity);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State { phase: Phase::Idle, since: Instant::now(), waker: None })))
    }

    /// A request has come; its answer ends when the guard is dropped.
    pub fn start_request(&self) -> Busy {
        self.enter(Phase::Busy);
        Busy(self.clone())
    }

    fn enter(&self, phase: Phase) -> Option<Waker> {
        let mut state = self.state();
        (state.phase, state.since) = (phase, Instant::now());
        state.waker.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // From now on there is a deadline, which the task must come to know.
        if let Some(waker) = self.0.enter(Phase::Idle) {
            waker.wake();
        }
    }
}

/// The body of an answer; its connection is busy until it is sent.
pub struct Answer {
    body: axum::body::Body,
    _busy: Busy,
}

impl Answer {
    pub fn new(body: axum::body::Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl Body for Answer {
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
pub struct TimedStream {
    stream: TcpStream,
    activity: Activity,
    closing: Closing,
    keep_alive_idle: Duration,
    head_timeout: Duration,
    write_stall: Duration,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Pin<Box<Sleep>>,
    /// Whether the write timer runs.
    stalled: bool,
    /// Whether the sending side is closed.
    is_shut_down: bool,
}

impl TimedStream {
    pub fn new(stream: TcpStream, limits: &Limits, closing: Closing) -> Self {
        Self {
            stream,
            activity: Activity::new(),
            closing,
            keep_alive_idle: limits.keep_alive_idle,
            head_timeout: limits.head_timeout,
            write_stall: limits.write_stall,
            read_timer: Box::pin(sleep(limits.keep_alive_idle)),
            write_timer: Box::pin(sleep(limits.write_stall)),
            stalled: false,
            is_shut_down: false,
        }
    }

    /// What goes on on this connection.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Whether a read that has nothing yet has waited too long.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = {
            let mut state = self.activity.state();
            let limit = match state.phase {
                Phase::Busy => {
                    state.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Phase::Idle => self.keep_alive_idle,
                Phase::Head => self.head_timeout,
            };
            state.since + limit
        };
        if self.closing.is_now() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is closing"));
        }
        if self.read_timer.deadline() != deadline {
            self.read_timer.as_mut().reset(deadline);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no request came in time"))
    }

    /// Makes a write that waits too long for the client an error.
    fn within_stall<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = false;
            return write;
        }
        if !self.stalled {
            self.stalled = true;
            self.write_timer.as_mut().reset(Instant::now() + self.write_stall);
        }
        ready!(self.write_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers")))
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
        if buffer.filled().len() > n_before && self.activity.state().phase == Phase::Idle {
            self.activity.enter(Phase::Head);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within_stall(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.within_stall(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes the sending side, then reads on for [`LINGER`].
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.is_shut_down = true;
            self.read_timer.as_mut().reset(Instant::now() + LINGER);
        }
        let mut scratch = [0; 4096];
        while !self.closing.is_now() && self.read_timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
