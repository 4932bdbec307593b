//! How many threads compute.
//!
//! candle multiplies matrices on rayon's global pool and on a pool of its own; both read their
//! size from the environment when they are first used, so it is settled here, once, before any
//! other thread exists.

use std::env;
use std::thread;

/// The variable that says how many threads compute.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Settles the number of compute threads: `requested`, else what the environment already says,
/// else the cores this process may use.
///
/// # Safety
/// No other thread may run: the environment changes, and others may read it.
pub unsafe fn configure(requested: Option<usize>) {
    let n_threads = requested.unwrap_or_else(n_threads).to_string();
    for name in [VARIABLE, "CANDLE_NUM_THREADS"] {
        // SAFETY: the caller says that no other thread runs.
        unsafe { env::set_var(name, &n_threads) };
    }
}

/// How many threads compute.
pub fn n_threads() -> usize {
    let settled = env::var(VARIABLE).ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    settled.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
}
