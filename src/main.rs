use std::process::ExitCode;

use predict_otron_9000::config::Args;
use predict_otron_9000::kernels::pool;
use predict_otron_9000::{cli, telemetry};

fn main() -> ExitCode {
    let args = Args::of_process();
    // SAFETY: nothing has started a thread yet.
    unsafe { pool::configure(args.n_threads()) };
    telemetry::start_logging();
    match cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
