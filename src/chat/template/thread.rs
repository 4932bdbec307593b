//! A thread with a large stack, on which templates are compiled and rendered.

use std::thread;

use crate::error::{Error, Kind, Result, catch_panic};

/// Stack of the thread. minijinja recurses over nested expressions, values and macros, whose depths are limited to
/// what takes a small part of this.
const STACK_BYTES: usize = 16 << 20;

/// Runs `work` on a thread of its own, and waits for it.
///
/// # Errors
/// When the thread cannot be started, or `work` panics.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
        let running = builder.spawn_scoped(scope, || catch_panic(work)).map_err(|e| {
            Error::new(
                Kind::Unavailable,
                format!("cannot start a thread for the chat template: {e}; try again later"),
            )
        })?;
        match running.join() {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(place)) => {
                tracing::warn!(place, "the template engine fails");
                Err(Error::model(
                    "the model's chat template makes the template engine fail; see the server's log",
                ))
            }
            Err(_) => Err(Error::internal("the thread of the chat template ended")),
        }
    })
}
