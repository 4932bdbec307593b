//! The commands.

mod bench;
pub mod models;
pub mod pull;
mod serve;

use std::io::stdout;

use crate::config::{Args, Command, Config, RegistryConfig};
use crate::error::Result;
use crate::kernels::isa::Isa;
use crate::kernels::threads::pool;

/// Runs the command that was typed; `serve` when none was.
///
/// # Errors
/// As the command's own.
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
        Some(Command::Models { registry }) => models::run(RegistryConfig::resolve(registry)?, &mut stdout()),
    }
}

fn serve(args: crate::config::ServeArgs) -> Result<()> {
    serve::serve(&Config::resolve(args)?, pool::n_threads())
}
