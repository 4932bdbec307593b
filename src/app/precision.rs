//! The precision of a chat model's prompts, and what is remembered about it from one start to the next.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::Sha256;

use super::weights_hash::short_hex;
use crate::config::PromptActivations;
use crate::error::Result;
use crate::inference::divergence::{Divergence, PrecisionTrial};
use crate::kernels::isa::Isa;
use crate::tokenizer::Tokenizer;

/// The file that remembers what rounded activations do to a model's predictions.
#[derive(Debug, Clone)]
pub struct PrecisionRecord {
    path: PathBuf,
}

impl PrecisionRecord {
    /// The record of the model with this hash of its weights, under the folder of downloads. It holds for one form of
    /// rounded activations.
    pub fn new(cache_dir: &Path, weights: Sha256) -> Self {
        let name = format!("{}-{}.json", short_hex(weights), Isa::current().rounded_form());
        Self { path: cache_dir.join("activations").join(name) }
    }

    /// Whether activations of prompts are rounded. `auto` waits for a measurement, and rounds nothing before it.
    pub fn rounds_prompts(&self, activations: PromptActivations, is_faster: bool) -> bool {
        match activations {
            PromptActivations::Int8 => true,
            PromptActivations::Int16 => false,
            PromptActivations::Auto => is_faster && self.read().is_some_and(|found| found.is_small()),
        }
    }

    /// A trial for the engine's idle moments, if the choice waits for one.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn trial(
        self,
        activations: PromptActivations,
        is_faster: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Option<PrecisionTrial>> {
        if activations != PromptActivations::Auto || !is_faster || self.read().is_some() {
            return Ok(None);
        }
        let on_end = move |divergence: Divergence| {
            let Divergence { mean_kl, .. } = divergence;
            let bits = if divergence.is_small() { 8 } else { 16 };
            tracing::info!(
                mean_kl,
                bits,
                "activations of prompts will have this many bits from the next start on"
            );
            self.write(&divergence);
        };
        Ok(Some(PrecisionTrial::new(tokenizer, Box::new(on_end))?))
    }

    /// The divergence measured at an earlier start.
    fn read(&self) -> Option<Divergence> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Remembers a measurement. If it cannot be written, the next start measures again.
    fn write(&self, divergence: &Divergence) {
        let write = || {
            fs::create_dir_all(self.path.parent()?).ok()?;
            fs::write(&self.path, serde_json::to_vec(divergence).ok()?).ok()
        };
        if write().is_none() {
            tracing::debug!(path = %self.path.display(), "cannot remember the effect of rounded activations");
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;

    #[test]
    fn a_measurement_is_remembered_for_its_model_and_decides() {
        let folder = tempfile::tempdir().unwrap();
        let record_of = |weights: &str| PrecisionRecord::new(folder.path(), Sha256::new_with_prefix(weights));
        let record = record_of("one");
        let auto = |record: &PrecisionRecord| record.rounds_prompts(PromptActivations::Auto, true);
        assert!(record.read().is_none() && !auto(&record));
        let divergence = Divergence { positions: 96, mean_kl: 0.0002, largest_kl: 0.01, top_1: 1.0 };
        record.write(&divergence);
        assert_eq!(record.read(), Some(divergence));
        assert!(auto(&record) && !record.rounds_prompts(PromptActivations::Auto, false));
        assert!(!record.rounds_prompts(PromptActivations::Int16, true));
        assert!(!auto(&record_of("two")), "another model");
        record.write(&Divergence { mean_kl: 0.0006, ..divergence });
        assert!(!auto(&record), "the divergence is too large");
        assert!(record.rounds_prompts(PromptActivations::Int8, true));
        fs::write(&record.path, "{").unwrap();
        assert_eq!(record.read(), None, "a damaged record is measured again");
    }
}
