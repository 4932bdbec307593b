//! The commands of the program.
//!
//! `serve`, `pull`, `models` and `bench` do their work themselves. `chat`, `run`, `embed` and `rerank` are clients of a
//! server: a running one, or one that they start in their own process (`connect`).

mod answer;
mod audit;
mod bench;
mod bundle;
mod chat;
mod client;
mod command;
mod config;
mod connect;
mod embed;
mod event_stream;
mod executor;
mod health;
mod local_server;
mod manual;
pub mod models;
mod npy;
mod one_shot;
mod output;
mod parameters;
mod progress;
mod prompt;
mod prompt_input;
pub mod pull;
mod rerank;
mod serve;
mod session;
mod stdin;

use std::process::ExitCode;

use crate::config::{Args, Command, Config, RegistryConfig, ServeArgs, memory_for_models};
use crate::error::Result;
use crate::kernels::isa::Isa;
use crate::kernels::threads::pool;
use output::Output;

/// Runs the command, `serve` if none is given, and returns the process's exit code.
///
/// # Errors
/// When the command fails, or the processor lacks the instruction set of `--isa`.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(isa) = &args.compute().isa {
        isa.parse::<Isa>()?.choose()?;
    }
    let out = &mut Output::new();
    match args.command {
        None => serve(args.serve)?,
        Some(Command::Serve(serve_args)) => serve(*serve_args)?,
        Some(Command::Chat(chat)) => return chat::run(*chat),
        Some(Command::Run(chat)) => return one_shot::run(*chat, "run"),
        Some(Command::Embed(embed)) => return embed::run(*embed),
        Some(Command::Rerank(rank)) => return rerank::run(*rank),
        Some(Command::Pull { name, registry }) => {
            pull::run(RegistryConfig::resolve(registry)?, memory_for_models(), &name, out)?
        }
        Some(Command::Bench(bench)) => bench::run(bench, out)?,
        Some(Command::Config(config)) => config::run(&config.settings, out)?,
        Some(Command::Bundle(args)) => bundle::pack(args, out)?,
        Some(Command::Unbundle(args)) => bundle::unpack(&args, out)?,
        Some(Command::Audit { command }) => audit::run(&command, out)?,
        Some(Command::Health(args)) => health::run(&args)?,
        Some(Command::Models { registry }) => {
            models::run(RegistryConfig::resolve(registry)?, memory_for_models(), out)?
        }
        Some(Command::Completions { shell }) => manual::completions(shell, out)?,
        Some(Command::Man { command }) => manual::man(command.as_deref(), out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: ServeArgs) -> Result<()> {
    serve::serve(&Config::resolve(args)?, pool::n_threads())
}
