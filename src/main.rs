//! The program: parses the command line and runs the command.

use std::process::ExitCode;

use predict_otron_9000::config::Args;
use predict_otron_9000::inference::grammar::trial;
use predict_otron_9000::kernels::threads::pool;
use predict_otron_9000::{cli, telemetry};

/// Arenas of the allocator at most. By default there are eight per processor, each of which reserves 64 MB of address
/// space at a time and keeps what its threads freed: after many large requests, 16 arenas had reserved 1.4 GB, and in a
/// limited address space no thread could be started.
#[cfg(target_env = "gnu")]
const MAX_ARENAS: libc::c_int = 4;

/// Makes the allocator keep freed memory instead of returning it to the system at once, and keep it in few places. A
/// forward pass frees and allocates megabytes hundreds of times, and page faults on fresh memory would take a quarter
/// of its time. Weights and the KV cache have pages of their own.
///
/// # Safety
/// No other thread may run.
#[cfg(target_env = "gnu")]
unsafe fn set_up_allocator() {
    // SAFETY: `mallopt` is not thread-safe, and this is the only thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
        libc::mallopt(libc::M_ARENA_MAX, MAX_ARENAS);
    }
}

#[cfg(not(target_env = "gnu"))]
unsafe fn set_up_allocator() {}

/// Freed memory that the allocator may keep for long; above what a forward pass uses again and again.
#[cfg(target_env = "gnu")]
const MAX_KEPT_BYTES: usize = 48 << 20;

/// Starts a thread that returns freed memory to the system once a second, where there is much of it. A large
/// request leaves holes of hundreds of megabytes in the arenas of the threads that served it, which the allocator
/// itself would never return.
#[cfg(target_env = "gnu")]
fn return_freed_memory() -> std::io::Result<()> {
    let resident_bytes = || predict_otron_9000::config::resident_bytes().unwrap_or_default();
    let upkeep = move || {
        // Free bytes, and resident bytes, after the last return. What is returned stays in the allocator's lists.
        let (mut returned, mut resident_after) = (0, 0);
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            // SAFETY: `mallinfo` has no requirements; it locks each arena while it looks at it.
            let free = unsafe { libc::mallinfo() }.fordblks.cast_unsigned() as usize;
            let resident = resident_bytes();
            returned = free.min(returned);
            resident_after = resident.min(resident_after);
            let kept = (free - returned).max(free.min(resident - resident_after));
            if kept > MAX_KEPT_BYTES {
                // SAFETY: `malloc_trim` has no requirements; it locks each arena while it changes it.
                unsafe { libc::malloc_trim(0) };
                (returned, resident_after) = (free, resident_bytes());
            }
        }
    };
    std::thread::Builder::new().name("memory-upkeep".to_owned()).spawn(upkeep).map(drop)
}

#[cfg(not(target_env = "gnu"))]
fn return_freed_memory() -> std::io::Result<()> {
    Ok(())
}

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
    unsafe { set_up_allocator() };
    // SAFETY: no thread has been started yet.
    let too_many_threads = unsafe { pool::configure(args.compute().threads.map(usize::from)) };
    let started = telemetry::start_logging(args.log_format(), args.log_level());
    if let Err(e) = return_freed_memory() {
        tracing::warn!(error = %e, "cannot start the thread that returns freed memory");
    }
    if let Some(asked) = too_many_threads {
        let used = pool::n_threads();
        tracing::warn!(
            "{asked} compute threads would slow each other down; using {used}, twice the processors"
        );
    }
    match started.and_then(|()| cli::run(args)) {
        Ok(code) => {
            telemetry::flush_log();
            code
        }
        Err(e) => {
            telemetry::print_error(&e);
            ExitCode::FAILURE
        }
    }
}
