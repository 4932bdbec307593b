//! `models`: lists the known models.

use std::io::Write;

use super::output::cannot_print;
use crate::config::RegistryConfig;
use crate::embeddings::EmbeddingSource;
use crate::error::Result;
use crate::registry::{Registry, readable_size};

/// Writes one line per model to `out`: name, kind, size, whether it fits into `memory_bytes`, license, what of it was
/// tested, and its path on disk.
///
/// # Errors
/// When `out` is closed.
pub fn run(config: RegistryConfig, memory_bytes: Option<u64>, out: &mut impl Write) -> Result<()> {
    let models = Registry::new(config).list();
    let name_width = models.iter().map(|model| model.name.len()).max().unwrap_or_default();
    let license_width =
        models.iter().filter_map(|model| model.license.as_ref()).map(String::len).max().unwrap_or_default();
    let mut line = |[name, kind, size, fits, license, tested, place]: [&str; 7]| {
        writeln!(
            out,
            "{name:name_width$}  {kind:9}  {size:>9}  {fits:4}  {license:license_width$}  {tested:15}  {place}"
        )
        .map_err(cannot_print)
    };
    line(["NAME", "KIND", "SIZE", "FITS", "LICENSE", "TESTED", "ON DISK"])?;
    for model in &models {
        let kind = model.kind.map_or_else(|| "-".to_owned(), |kind| kind.to_string());
        let tested = match (model.tested, model.kind) {
            (true, _) => "family and file",
            (false, Some(_)) => "family",
            (false, None) => "-",
        };
        let place = model.path.as_ref().map_or_else(|| "no".to_owned(), |path| path.display().to_string());
        let fits = match memory_bytes {
            None => "-",
            Some(memory_bytes) if model.size_bytes <= memory_bytes => "yes",
            Some(_) => "no",
        };
        let license = model.license.as_deref().unwrap_or("-");
        line([&model.name, &kind, &readable_size(model.size_bytes), fits, license, tested, &place])?;
    }
    if let Some(memory_bytes) = memory_bytes {
        let size = readable_size(memory_bytes);
        writeln!(
            out,
            "\nFITS: whether the weights fit into the {size} that models may take on this machine now."
        )
        .map_err(cannot_print)?;
    }
    let mut catalog = EmbeddingSource::fastembed_catalog();
    catalog.sort();
    let names: Vec<String> = catalog.into_iter().map(|(name, repo)| format!("  {name} ({repo})")).collect();
    writeln!(
        out,
        "\nembedding models from fastembed, run by ONNX Runtime (--embedding-model NAME):\n{}",
        names.join("\n")
    )
    .map_err(cannot_print)
}
