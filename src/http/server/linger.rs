//! The last reads of a connection: the rest of a request that was answered before its end.
//!
//! A socket that closes with unread data is reset, and the client's system would discard the response.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::PollSemaphore;

/// How long to read the rest of a request after its response.
const LINGER: Duration = Duration::from_secs(2);

/// How much is read before other connections have their turn.
const READ_BYTES: usize = 64 << 10;

/// The connections that are read at the same time: the rests of thousands of refused bodies must not delay the
/// requests that are served.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(2)));

/// Reads and discards what a client still sends, until it closes the connection or [`LINGER`] has passed.
pub struct Linger {
    deadline: Pin<Box<Sleep>>,
    turns: PollSemaphore,
    /// Held while there is something to read.
    turn: Option<OwnedSemaphorePermit>,
}

impl Linger {
    /// Starts the time.
    pub fn new() -> Self {
        let turns = PollSemaphore::new(TURNS.clone());
        Self { deadline: Box::pin(sleep(LINGER)), turns, turn: None }
    }

    /// Reads from `stream` when it is its turn; ready when the connection can be closed.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncRead + Unpin)) -> Poll<()> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if self.turn.is_none() {
            self.turn = ready!(self.turns.poll_acquire(cx));
        }
        let mut scratch = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        let Poll::Ready(read) = Pin::new(stream).poll_read(cx, &mut buffer) else {
            self.turn = None;
            return Poll::Pending;
        };
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
