//! GEMM: many rows of activations, multiplied with two panels of weights at a time.

use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::threads::pool;
use super::epilogue::{ITEMS_PER_THREAD, OutputRows, StoreEpilogue};
use super::projection::{Panel, Projection};

/// One or two panels that rows are multiplied with together, and what becomes of the products.
pub struct PanelPair<'a> {
    panels: [Panel<'a>; 2],
    n_panels: usize,
    /// Consumes the products.
    pub epilogue: StoreEpilogue<'a>,
}

impl<'a> PanelPair<'a> {
    /// Pair `idx` of a projection.
    fn new(projection: &'a Projection, idx: usize, output: &'a OutputRows<'a>) -> Self {
        let (column, first, second) = projection.group(idx, 2);
        Self {
            panels: [first.panel(), second.unwrap_or(first).panel()],
            n_panels: 1 + usize::from(second.is_some()),
            epilogue: StoreEpilogue { projection, output, column, first, second },
        }
    }

    /// The panels.
    pub fn panels(&self) -> &[Panel<'a>] {
        &self.panels[..self.n_panels]
    }
}

/// Rows of activations, prepared for a GEMM and cut into blocks.
pub trait GemmActivations: Sync {
    /// Blocks that are multiplied with a pair of panels before the next pair is.
    const BLOCKS_AT_ONCE: usize = 1;
    /// Pairs of panels that [`GemmActivations::multiply_block`] takes at once, at most.
    const PAIRS_AT_ONCE: usize = 1;

    /// The number of blocks.
    fn n_blocks(&self) -> usize;

    /// Multiplies a block of rows with pairs of panels, tile by tile; the epilogues consume the products of each tile.
    /// `tile_config` keeps the thread's AMX configuration from call to call.
    ///
    /// # Panics
    /// When a panel does not exist, or differs in length or format from what the rows were prepared for.
    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        pairs: &[PanelPair],
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
        for mut items in team.claim_chunks(n_items, at_once) {
            while !items.is_empty() {
                let (of_pair, pair) = (items.start % blocks_at_once, items.start / blocks_at_once % n_pairs);
                let block =
                    blocks.start + items.start / (n_pairs * blocks_at_once) * blocks_at_once + of_pair;
                let n = R::PAIRS_AT_ONCE.min(items.len()).min(n_pairs - pair);
                items.start += n;
                if block < blocks.end {
                    let pairs = (pair..pair + n).map(|idx| PanelPair::new(projection, idx, output));
                    rows.multiply_block(isa, &mut tile_config, block, &pairs.collect::<Vec<_>>());
                }
            }
        }
    });
}
