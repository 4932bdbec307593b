//! The program: parses the command line and runs the command.

use std::process::ExitCode;

use predict_otron_9000::config::Args;
use predict_otron_9000::kernels::threads::pool;
use predict_otron_9000::{cli, telemetry};

/// Makes the allocator keep freed memory instead of returning it to the system. A forward pass frees and
/// allocates megabytes hundreds of times, and page faults on fresh memory would take a quarter of its time.
/// Weights and the KV cache have pages of their own.
///
/// # Safety
/// No other thread may run.
#[cfg(target_env = "gnu")]
unsafe fn keep_freed_memory() {
    // SAFETY: `mallopt` is not thread-safe, and this is the only thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
    }
}

#[cfg(not(target_env = "gnu"))]
unsafe fn keep_freed_memory() {}

fn main() -> ExitCode {
    let args = Args::from_process();
    // SAFETY: no thread has been started yet.
    unsafe { keep_freed_memory() };
    // SAFETY: no thread has been started yet.
    unsafe { pool::configure(args.compute().threads.map(usize::from)) };
    telemetry::start_logging();
    match cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
