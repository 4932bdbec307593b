//! Converts the blocks of a tensor on all cores, chunk by chunk.

use rayon::prelude::*;

use crate::error::Result;
use crate::gguf::TensorType;

/// The number of elements that one thread converts at once. Its input and output stay in the cache.
const CHUNK_LEN: usize = 1 << 14;

/// Converts whole blocks by `convert(blocks, output)` into `n_out` values per block.
///
/// # Errors
/// Those of `convert`.
pub fn convert_in_chunks<T: Clone + Default + Send>(
    tensor_type: TensorType,
    blocks: &[u8],
    n_out: usize,
    convert: impl Fn(&[u8], &mut [T]) -> Result<()> + Sync,
) -> Result<Vec<T>> {
    let block_bytes = tensor_type.block_bytes();
    let chunk_blocks = CHUNK_LEN / tensor_type.block_len();
    let mut out = vec![T::default(); blocks.len() / block_bytes * n_out];
    out.par_chunks_mut(chunk_blocks * n_out)
        .zip(blocks.par_chunks(chunk_blocks * block_bytes))
        .try_for_each(|(out, blocks)| convert(blocks, out))?;
    Ok(out)
}
