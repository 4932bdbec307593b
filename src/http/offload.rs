//! Work on large bodies, away from the threads that serve connections.

use std::sync::{Arc, LazyLock};
use std::thread;

use tokio::sync::Semaphore;

use crate::error::{Error, Result};

/// Bodies up to this size are parsed and written on the spot, in less than a millisecond. Larger ones would hold up
/// other connections.
const INLINE_BYTES: usize = 64 << 10;

/// Half of the cores work on large bodies at the same time.
static PERMITS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let n_cores = thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(n_cores.div_ceil(2)))
});

/// Runs `work` on a body of `n_bytes`: on a thread for that if it is large.
///
/// # Errors
/// When `work` fails or panics.
pub async fn run<T: Send + 'static>(
    n_bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if n_bytes <= INLINE_BYTES {
        return work();
    }
    let permit = PERMITS.clone().acquire_owned().await;
    let work = move || {
        let _permit = permit;
        work()
    };
    let failed = |e| Error::internal(format!("a large body could not be processed: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
