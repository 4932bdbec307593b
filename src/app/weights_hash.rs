//! Hashes that identify a model's weights.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The beginning of a hash, in hexadecimal digits.
pub fn short_hex(hash: Sha256) -> String {
    hash.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// Begins a hash with the program's version and with the weights: their size, the beginning (with names and offsets of all
/// tensors) and the end, because hashing a large file would take longer than loading it.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_weights(weights: &Path) -> Result<Sha256> {
    const SAMPLE_BYTES: u64 = 1 << 16;
    let sample = || {
        let mut file = File::open(weights)?;
        let size_bytes = file.metadata()?.len();
        let mut bytes = Vec::new();
        (&file).take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(size_bytes.saturating_sub(SAMPLE_BYTES)))?;
        (&file).take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        let version = env!("CARGO_PKG_VERSION");
        Ok(Sha256::new().chain_update(version).chain_update(size_bytes.to_le_bytes()).chain_update(bytes))
    };
    sample().map_err(|e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", weights.display())))
}
