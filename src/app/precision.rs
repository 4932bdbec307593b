//! The precision of a chat model's prompts, and what is remembered about it from one start to the next.

use std::fs;
use std::path::{Path, PathBuf};

use super::weights_hash::{hash_weights, short_hex};
use crate::config::PromptActivations;
use crate::error::Result;
use crate::inference::divergence::{Divergence, PrecisionTrial};
use crate::tokenizer::Tokenizer;

/// The file that remembers what 8-bit activations do to a model's predictions.
#[derive(Debug, Clone)]
pub struct PrecisionRecord {
    path: PathBuf,
}

impl PrecisionRecord {
    /// The record of the model with these weights, under the folder of downloads.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn new(cache_dir: &Path, weights: &Path) -> Result<Self> {
        let name = short_hex(hash_weights(weights)?);
        Ok(Self { path: cache_dir.join("activations").join(format!("{name}.json")) })
    }

    /// The divergence measured at an earlier start.
    pub fn read(&self) -> Option<Divergence> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Remembers a measurement. If it cannot be written, the next start measures again.
    pub fn write(&self, divergence: &Divergence) {
        let write = || {
            fs::create_dir_all(self.path.parent()?).ok()?;
            fs::write(&self.path, serde_json::to_vec(divergence).ok()?).ok()
        };
        if write().is_none() {
            tracing::debug!(path = %self.path.display(), "cannot remember the effect of 8-bit activations");
        }
    }
}

/// Decides whether activations of prompts are rounded to 8 bits. If that depends on a measurement that is still to be made,
/// they are not, and the second result is a trial for the engine's idle moments.
///
/// # Errors
/// When the tokenizer fails.
pub fn round_prompts(
    activations: PromptActivations,
    is_faster: bool,
    record: PrecisionRecord,
    tokenizer: &Tokenizer,
) -> Result<(bool, Option<PrecisionTrial>)> {
    match activations {
        PromptActivations::Int8 => return Ok((true, None)),
        PromptActivations::Auto if is_faster => {}
        PromptActivations::Int16 | PromptActivations::Auto => return Ok((false, None)),
    }
    if let Some(divergence) = record.read() {
        return Ok((divergence.is_small(), None));
    }
    let on_end = move |divergence: Divergence| {
        let Divergence { mean_kl, .. } = divergence;
        let bits = if divergence.is_small() { 8 } else { 16 };
        tracing::info!(
            mean_kl,
            bits,
            "activations of prompts will have this many bits from the next start on"
        );
        record.write(&divergence);
    };
    Ok((false, Some(PrecisionTrial::new(tokenizer, Box::new(on_end))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_remembered_for_its_model() {
        let folder = tempfile::tempdir().unwrap();
        let weights = [1, 2].map(|n| folder.path().join(format!("{n}.gguf")));
        weights.iter().zip(["one", "two"]).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        let record = PrecisionRecord::new(folder.path(), &weights[0]).unwrap();
        assert_eq!(record.read(), None);
        let divergence = Divergence { positions: 96, mean_kl: 0.0002, largest_kl: 0.01, top_1: 1.0 };
        record.write(&divergence);
        assert_eq!(record.read(), Some(divergence));
        assert!(divergence.is_small() && !Divergence { mean_kl: 0.0006, ..divergence }.is_small());
        assert_eq!(PrecisionRecord::new(folder.path(), &weights[1]).unwrap().read(), None, "another model");
        fs::write(&record.path, "{").unwrap();
        assert_eq!(record.read(), None, "a damaged record is measured again");
    }
}
