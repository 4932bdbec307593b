//! `config`: prints the options of `serve` in effect.

use std::io::Write;

use super::output::cannot_print;
use crate::config::Setting;
use crate::error::Result;

/// Writes the settings to `out`, as a config file with the source of each.
///
/// # Errors
/// When `out` is closed.
pub fn run(settings: &[Setting], out: &mut impl Write) -> Result<()> {
    let printed = settings.iter().try_for_each(|setting| writeln!(out, "{setting}"));
    printed.map_err(cannot_print)
}
