//! `completions` and `man`: scripts for shells, and manual pages.

use std::io::Write;

use clap_complete::Shell;
use clap_mangen::Man;

use super::output::cannot_print;
use crate::config::Args;
use crate::error::Result;

/// Writes the script that completes commands and flags in `shell`.
///
/// # Errors
/// When `out` is closed.
pub fn completions(shell: Shell, out: &mut impl Write) -> Result<()> {
    let mut command = Args::definition();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script).map_err(cannot_print)
}

/// Writes the manual page of a command, or of the whole program, as roff. Exits the process if there is no such command.
///
/// # Errors
/// When `out` is closed.
pub fn man(command: Option<&str>, out: &mut impl Write) -> Result<()> {
    let mut root = Args::definition();
    root.build();
    let version = format!("{} {}", root.get_name(), root.get_version().unwrap_or_default());
    let page = match command {
        None => &root,
        Some(name) => root.find_subcommand(name).unwrap_or_else(|| {
            let names = root.get_subcommands().map(|command| command.get_name());
            let names: Vec<&str> = names.filter(|&name| name != "help").collect();
            Args::exit_with_usage("man", format!("no command `{name}`; there are {}", names.join(", ")))
        }),
    };
    let mut text = Vec::new();
    Man::new(page.clone())
        .source(version)
        .render(&mut text)
        .and_then(|()| out.write_all(&text))
        .map_err(cannot_print)
}
