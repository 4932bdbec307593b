//! How many threads compute.
//!
//! candle multiplies matrices on rayon's global pool and on a pool of its own; both read their
//! size from the environment when they are first used, so it is settled here, once, before any
//! other thread exists.

use std::env;
use std::thread;

/// Settles the number of compute threads: `requested`, else what the environment already says,
/// else the cores this process may use.
///
/// Call it first in `main`, before any thread is started. Returns the number.
pub fn configure(requested: Option<usize>) -> usize {
    let from_environment = || env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|&n| n > 0);
    let n_threads = requested
        .or_else(from_environment)
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: the caller is `main` before it starts a thread, so nothing reads the
        // environment while it changes.
        unsafe { env::set_var(name, n_threads.to_string()) };
    }
    n_threads
}
