use std::process::ExitCode;

use clap::Parser;
use predict_otron_9000::config::Args;
use predict_otron_9000::{cli, telemetry};

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::start_logging();
    match cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
