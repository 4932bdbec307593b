//! `pull`: downloads a model and prints the paths of its files.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::output::cannot_print;
use crate::config::RegistryConfig;
use crate::embeddings::EmbeddingSource;
use crate::error::Result;
use crate::registry::{DownloadWatch, Registry, readable_size};

/// Downloads the model `name` unless it is on disk, and writes the path of each of its files to `out`, the main file
/// first. Warns on stderr, before a file is downloaded, that it does not fit into `memory_bytes`.
///
/// # Errors
/// When the model cannot be found or downloaded, or `out` is closed.
pub fn run(
    config: RegistryConfig,
    memory_bytes: Option<u64>,
    name: &str,
    out: &mut impl Write,
) -> Result<()> {
    let has_warned = Arc::new(AtomicBool::new(false));
    let warn_if_too_large = move |size_bytes| {
        if let Some(warning) = too_large(size_bytes, memory_bytes)
            && !has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("{warning}");
        }
    };
    let warn_of_model = warn_if_too_large.clone();
    let watch = DownloadWatch::new(move |state| {
        warn_if_too_large(state.size_bytes.unwrap_or_default());
        ControlFlow::Continue(())
    });
    let registry = Registry::new(config).watched(watch);
    let (main, files) = if EmbeddingSource::is_fastembed_only(name) {
        let source = EmbeddingSource::locate(name, &registry)?;
        (source.main().to_owned(), source.files().clone())
    } else {
        let model = registry.resolve(name, None)?;
        // A model may be too large only as a whole.
        warn_of_model(model.size_bytes);
        (model.main, model.files)
    };
    let others = files.values().filter(|&path| *path != main);
    for path in [&main].into_iter().chain(others) {
        writeln!(out, "{}", path.display()).map_err(cannot_print)?;
    }
    Ok(())
}

/// The warning that weights of `size_bytes` do not fit into `memory_bytes`.
fn too_large(size_bytes: u64, memory_bytes: Option<u64>) -> Option<String> {
    let memory_bytes = memory_bytes.filter(|&memory_bytes| size_bytes > memory_bytes)?;
    Some(format!(
        "the model takes {} of memory, but models may take only {} on this machine now; `models` shows which ones fit",
        readable_size(size_bytes),
        readable_size(memory_bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_larger_than_memory_gets_a_warning_with_both_numbers() {
        let warning = too_large(17_000_000_000, Some(16_500_000_000)).unwrap();
        assert!(warning.contains("17.00 GB") && warning.contains("16.50 GB"), "{warning}");
        assert_eq!(too_large(16_500_000_000, Some(16_500_000_000)), None);
        assert_eq!(too_large(17_000_000_000, None), None);
    }
}
