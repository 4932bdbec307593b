//! `pull`: downloads a model and prints the paths of its files.

use std::io::Write;

use super::output::cannot_print;
use crate::config::RegistryConfig;
use crate::embeddings::EmbeddingSource;
use crate::error::Result;
use crate::registry::Registry;

/// Downloads the model `name` unless it is on disk, and writes the path of each of its files to `out`,
/// the main file first.
///
/// # Errors
/// When the model cannot be found or downloaded, or `out` is closed.
pub fn run(config: RegistryConfig, name: &str, out: &mut impl Write) -> Result<()> {
    let registry = Registry::new(config);
    let (main, files) = if EmbeddingSource::is_fastembed_only(name) {
        let source = EmbeddingSource::locate(name, &registry)?;
        (source.main().to_owned(), source.files().clone())
    } else {
        let model = registry.resolve(name, None)?;
        (model.main, model.files)
    };
    let others = files.values().filter(|&path| *path != main);
    for path in [&main].into_iter().chain(others) {
        writeln!(out, "{}", path.display()).map_err(cannot_print)?;
    }
    Ok(())
}
