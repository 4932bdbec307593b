//! `models`: lists the known models.

use std::io::Write;

use super::output::cannot_print;
use crate::config::RegistryConfig;
use crate::embeddings::EmbeddingSource;
use crate::error::Result;
use crate::registry::{Registry, readable_size};

/// Writes one line per model to `out`: name, kind, size, license, what of it was tested, and its path on disk.
///
/// # Errors
/// When `out` is closed.
pub fn run(config: RegistryConfig, out: &mut impl Write) -> Result<()> {
    let models = Registry::new(config).list();
    let name_width = models.iter().map(|model| model.name.len()).max().unwrap_or_default();
    let license_width =
        models.iter().filter_map(|model| model.license.as_ref()).map(String::len).max().unwrap_or_default();
    let mut line = |[name, kind, size, license, tested, place]: [&str; 6]| {
        writeln!(
            out,
            "{name:name_width$}  {kind:9}  {size:>9}  {license:license_width$}  {tested:15}  {place}"
        )
        .map_err(cannot_print)
    };
    line(["NAME", "KIND", "SIZE", "LICENSE", "TESTED", "ON DISK"])?;
    for model in &models {
        let kind = model.kind.map_or_else(|| "-".to_owned(), |kind| kind.to_string());
        let tested = match (model.tested, model.kind) {
            (true, _) => "family and file",
            (false, Some(_)) => "family",
            (false, None) => "-",
        };
        let place = model.path.as_ref().map_or_else(|| "no".to_owned(), |path| path.display().to_string());
        let license = model.license.as_deref().unwrap_or("-");
        line([&model.name, &kind, &readable_size(model.size_bytes), license, tested, &place])?;
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
