use std::process::ExitCode;

use predict_otron_9000::config::Args;
use predict_otron_9000::kernels::threads::pool;
use predict_otron_9000::{cli, telemetry};

/// Keeps what is freed for the next request for memory: a forward pass frees and asks for megabytes
/// hundreds of times, and pages that come from the system anew cost a quarter of its time. Weights,
/// keys and values have pages of their own.
///
/// # Safety
/// No other thread may run.
#[cfg(target_env = "gnu")]
unsafe fn keep_memory() {
    // SAFETY: the caller says that no other thread runs.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
    }
}

#[cfg(not(target_env = "gnu"))]
unsafe fn keep_memory() {}

fn main() -> ExitCode {
    let args = Args::from_process();
    // SAFETY: nothing has started a thread yet.
    unsafe { keep_memory() };
    // SAFETY: as above.
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
