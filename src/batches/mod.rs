//! Batches of requests: the lines of a file, or the requests of a Messages batch, each answered as if it had been sent
//! to its endpoint, when nobody else waits for the server.
//!
//! A batch is a job of the [`FileStore`](crate::store::files::FileStore): the result of each line is written together
//! with the batch's record, so a server that was killed goes on where it was, with no line lost or answered twice.

mod line;
mod objects;
mod record;
mod runner;

pub use line::message_lines;
pub use objects::{batch_object, message_batch};
pub use record::{BatchApi, BatchRecord, BatchState, CallResult, new_file_id};
pub use runner::{BatchLimits, BatchRunner, BatchServer};
