//! The program: parses the command line and runs the command.

use std::process::ExitCode;

use predict_otron_9000::config::Args;
use predict_otron_9000::inference::grammar::trial;
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

/// Limits the processor time and the memory of a process that compiles a grammar.
///
/// # Safety
/// No other thread may run.
#[cfg(unix)]
unsafe fn limit_trial() {
    let limits = [
        (libc::RLIMIT_CPU, trial::TRIAL_SECONDS),
        (libc::RLIMIT_AS, trial::trial_address_space()),
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, most) in limits {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` lives during the call. A failure leaves the limit that the server has.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    }
}

#[cfg(not(unix))]
unsafe fn limit_trial() {}

fn main() -> ExitCode {
    if trial::is_trial(std::env::args_os().nth(1).as_deref()) {
        // SAFETY: no thread has been started yet.
        unsafe { limit_trial() };
        return trial::serve_trial();
    }
    if let Some(program) = trial::own_program() {
        trial::set_trial_program(program);
    }
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
