//! `pull`: fetch a model's files and print where they are.

use std::io::Write;

use crate::config::RegistryConfig;
use crate::error::{Error, Result};
use crate::registry::Registry;

/// Fetches the model `name` where it is not on disk, and writes the path of each of its files to
/// `out`, the one to load first.
///
/// # Errors
/// When the model is not to be had, or `out` is closed.
pub fn run(config: RegistryConfig, name: &str, out: &mut impl Write) -> Result<()> {
    let model = Registry::new(config).resolve(name, None)?;
    let others = model.files.values().filter(|&path| *path != model.main);
    for path in [&model.main].into_iter().chain(others) {
        writeln!(out, "{}", path.display())
            .map_err(|error| Error::internal(format!("cannot print: {error}")))?;
    }
    Ok(())
}
