//! Bodies of requests as their connection sees them.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection_table::CloseReason;
use super::connections::Activity;
use super::pace::Pace;
use crate::config::Limits;

/// A request body that fails when it arrives too slowly. Only the time in which somebody reads it counts.
pub struct PacedBody {
    body: Incoming,
    activity: Activity,
    pace: Pace,
    timer: Option<Pin<Box<Sleep>>>,
    too_slow: SlowBody,
}

/// The error of a request body that arrives too slowly.
#[derive(Debug, Clone, Copy)]
pub struct SlowBody {
    bytes_per_second: u64,
    max_pause: Duration,
}

impl PacedBody {
    /// Wraps `body` with the least rate of `limits`.
    pub fn new(body: Incoming, activity: Activity, limits: &Limits) -> Self {
        let Limits { body_bytes_per_second: bytes_per_second, body_idle, body_grace, .. } = *limits;
        Self {
            body,
            activity,
            pace: Pace::new(bytes_per_second, body_idle).starting_with(body_grace),
            timer: None,
            too_slow: SlowBody { bytes_per_second, max_pause: body_idle },
        }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let now = Instant::now();
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.pace.advance(data.map_or(0, Bytes::len), now);
            if self.timer.take().is_some() {
                self.activity.resume();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.timer.is_none() {
            let deadline = self.pace.wait(now);
            self.activity.wait_for_client(deadline);
            self.timer = Some(Box::pin(sleep_until(deadline)));
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
        }
        CloseReason::SlowBody.count();
        Poll::Ready(Some(Err(self.too_slow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        if self.timer.is_some() {
            self.activity.resume();
        }
    }
}

impl SlowBody {
    /// The slow body that caused `error`, if one did.
    pub fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        causes.filter_map(|error| error.downcast_ref()).next()
    }
}

impl fmt::Display for SlowBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes_per_second, max_pause } = self;
        let seconds = max_pause.as_secs_f32();
        write!(
            f,
            "the body arrives too slowly; send at least {bytes_per_second} bytes per second, and pause for at most \
             {seconds} s"
        )
    }
}

impl StdError for SlowBody {}
