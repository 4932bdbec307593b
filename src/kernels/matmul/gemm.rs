//! GEMM: many rows of activations, multiplied with two panels of weights at a time.

use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::threads::pool;
use super::epilogue::{Epilogue, ITEMS_PER_THREAD, OutputRows, StoreEpilogue};
use super::projection::{Panel, Projection};

/// Rows of activations, prepared for a GEMM and cut into blocks.
pub trait GemmActivations: Sync {
    /// Blocks that are multiplied with a pair of panels before the next pair is.
    const BLOCKS_AT_ONCE: usize;

    /// The number of blocks.
    fn n_blocks(&self) -> usize;

    /// Multiplies a block of rows with one or two panels, tile by tile; `epilogue` consumes the products of
    /// each tile. `tile_config` keeps the thread's AMX configuration from call to call.
    ///
    /// # Panics
    /// When a panel does not exist, or differs in length or format from what the rows were prepared for.
    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        panels: &[Panel],
        epilogue: &impl Epilogue,
    );
}

/// Multiplies blocks of `rows` with all panels of `projection`.
pub fn gemm<R: GemmActivations>(
    isa: Isa,
    rows: &R,
    blocks: Range<usize>,
    projection: &Projection,
    output: &OutputRows,
) {
    let n_pairs = projection.n_groups(2);
    if blocks.is_empty() || n_pairs == 0 {
        return;
    }
    let blocks_at_once = R::BLOCKS_AT_ONCE.min(blocks.len());
    let n_items = blocks.len().next_multiple_of(blocks_at_once) * n_pairs;
    pool::run(|team| {
        let at_once = (n_pairs / (ITEMS_PER_THREAD * team.n_threads())).max(1);
        let mut tile_config = None;
        for item in team.claim_chunks(n_items, at_once).flatten() {
            let (of_pair, pair) = (item % blocks_at_once, item / blocks_at_once % n_pairs);
            let block = blocks.start + item / (n_pairs * blocks_at_once) * blocks_at_once + of_pair;
            if block >= blocks.end {
                continue;
            }
            let (column, first, second) = projection.group(pair, 2);
            let panels = [first.panel(), second.unwrap_or(first).panel()];
            let panels = &panels[..1 + usize::from(second.is_some())];
            let epilogue = StoreEpilogue { projection, output, column, first, second };
            rows.multiply_block(isa, &mut tile_config, block, panels, &epilogue);
        }
    });
}
