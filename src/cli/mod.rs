//! The commands of the program.

mod bench;
mod config;
pub mod models;
pub mod pull;
mod serve;

use std::io::stdout;

use crate::config::{Args, Command, Config, RegistryConfig, ServeArgs};
use crate::error::Result;
use crate::kernels::isa::Isa;
use crate::kernels::threads::pool;

/// Runs the command, `serve` if none is given.
///
/// # Errors
/// When the command fails, or the processor lacks the instruction set of `--isa`.
pub fn run(args: Args) -> Result<()> {
    if let Some(isa) = &args.compute().isa {
        isa.parse::<Isa>()?.choose()?;
    }
    match args.command {
        None => serve(args.serve),
        Some(Command::Serve(serve_args)) => serve(*serve_args),
        Some(Command::Pull { name, registry }) => {
            pull::run(RegistryConfig::resolve(registry)?, &name, &mut stdout())
        }
        Some(Command::Bench(bench)) => bench::run(bench, &mut stdout()),
        Some(Command::Config(config)) => config::run(&config.settings, &mut stdout()),
        Some(Command::Models { registry }) => models::run(RegistryConfig::resolve(registry)?, &mut stdout()),
    }
}

fn serve(args: ServeArgs) -> Result<()> {
    serve::serve(&Config::resolve(args)?, pool::n_threads())
}
