//! A client connection: keep-alive, and the timeouts of its reads and writes.
//!
//! hyper has one timer for the whole time between two requests. Here the wait for a first request, the keep-alive
//! wait for the next one and the reading of its head have separate limits, and a client that does not take its
//! response, or takes it too slowly, is disconnected.
//!
//! One case goes unnoticed: a client that disconnects after it has pipelined another request. hyper
//! reads no further than that request while it writes a response, so the response runs on until a
//! write fails. A client that closes only its sending side counts as disconnected, as in hyper.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::connection_table::CloseReason;
use super::connections::Activity;
use super::head_error::HeadError;
use super::linger::Linger;
use super::pace::Pace;
use super::shutdown::Shutdown;
use crate::config::Limits;

/// A stream whose reads and writes fail when they take too long.
///
/// The limits are those of a connection's phase while it waits for a request, and a least rate for responses.
pub struct TimedStream<S> {
    stream: S,
    activity: Activity,
    shutdown: Shutdown,
    write_pace: Pace,
    /// The limit on the head of a request.
    head_bytes: usize,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Pin<Box<Sleep>>,
    /// Whether the write timer runs.
    is_stalled: bool,
    /// Present once the sending side is closed.
    linger: Option<Linger>,
    /// The error that is being sent in place of hyper's own.
    head_error: Option<HeadError>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedStream<S> {
    /// Wraps `stream` with the timeouts of `limits`.
    pub fn new(stream: S, activity: Activity, limits: &Limits, shutdown: Shutdown) -> Self {
        Self {
            stream,
            activity,
            shutdown,
            write_pace: Pace::new(limits.response_bytes_per_second, limits.write_stall),
            head_bytes: limits.head_bytes,
            read_timer: Box::pin(sleep(limits.head_timeout)),
            write_timer: Box::pin(sleep(limits.write_stall)),
            is_stalled: false,
            linger: None,
            head_error: None,
        }
    }

    /// Resolves when a read without data has waited too long. Never while a request is served.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some((deadline, reason)) = self.activity.read_deadline(cx) else { return Poll::Pending };
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
        reason.count();
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no request received in time"))
    }

    /// Turns a write that has waited too long for the client into an error. `n_bytes` tells how many a result stands
    /// for.
    fn check_write_pace<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
        n_bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        if let Poll::Ready(result) = write {
            self.write_pace.advance(result.as_ref().map_or(0, n_bytes), now);
            if std::mem::take(&mut self.is_stalled) {
                self.activity.resume();
            }
            return Poll::Ready(result);
        }
        if !self.is_stalled {
            self.is_stalled = true;
            let deadline = self.write_pace.wait(now);
            self.activity.wait_for_client(deadline);
            self.write_timer.as_mut().reset(deadline);
        }
        ready!(self.write_timer.as_mut().poll(cx));
        CloseReason::SlowReader.count();
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take its response in time",
        )))
    }

    /// Sends an error in OpenAI's envelope if `bytes` are hyper's own answer to a head that it cannot parse.
    fn poll_write_head_error(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.head_error.is_none() {
            let error = HeadError::in_place_of(bytes, self.head_bytes);
            self.head_error = error.filter(|_| self.activity.is_before_request());
            if self.head_error.is_some() {
                tracing::info!("request refused: its head cannot be parsed or is too long");
            }
        }
        while let Some(error) = &mut self.head_error {
            if error.unsent().is_empty() {
                self.head_error = None;
                return Some(Poll::Ready(Ok(bytes.len())));
            }
            let write = Pin::new(&mut self.stream).poll_write(cx, error.unsent());
            match self.check_write_pace(cx, write, |&n| n) {
                Poll::Ready(Ok(n)) if n > 0 => self.head_error.iter_mut().for_each(|error| error.advance(n)),
                other => return Some(other),
            }
        }
        None
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buffer) else {
            return self.poll_read_deadline(cx).map(Err);
        };
        if buffer.filled().len() > n_before {
            self.activity.received();
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(write) = self.poll_write_head_error(cx, bytes) {
            return write;
        }
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_write_pace(cx, write, |&n| n)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(write) = slices.first().and_then(|slice| self.poll_write_head_error(cx, slice)) {
            return write;
        }
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check_write_pace(cx, write, |&n| n)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        ready!(self.check_write_pace(cx, flush, |()| 0))?;
        // hyper flushes when it has written everything.
        self.activity.sent();
        Poll::Ready(Ok(()))
    }

    /// Closes the sending side, then reads on for a while, as [`Linger`] describes.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let close = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.check_write_pace(cx, close, |()| 0))?;
            self.activity.closing();
        }
        if self.shutdown.has_begun() {
            return Poll::Ready(Ok(()));
        }
        let Self { stream, linger, .. } = &mut *self;
        linger.get_or_insert_with(Linger::new).poll(cx, stream).map(Ok)
    }
}
