//! GEMM with quantized weights: many rows of activations.
//!
//! [GEMV](super::gemv) multiplies codes as it reads them. With many rows, it is better to unpack two panels, one K chunk
//! at a time, into the L1 cache: all rows share that work, and a tile of activations, once loaded, is multiplied with both
//! panels. [`ActivationForm`] says what activations and weights become: integers, or bfloat16.

use std::cell::RefCell;
use std::iter;
use std::ops::Range;
use std::thread::LocalKey;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{ActivationTile, CodeWidth, GROUP_LEN, K_CHUNK_GROUPS, UnpackedPanel};
use super::super::norm::{Norm, Transform};
use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::super::threads::disjoint::DisjointSlice;
use super::super::threads::pool;
use super::epilogue::Epilogue;
use super::gemm::{GemmActivations, PanelPair};
use super::projection::InputRows;

/// How many groups ahead activations are prefetched.
pub(super) const GROUPS_AHEAD: usize = 4;

/// A form of rounded activations, and the products of its tiles.
pub trait ActivationForm: Sized + 'static {
    /// The numbers of a row's group.
    type Group: Copy + Send + Sync;
    /// The factors that turn their products into floats.
    type Scale: Copy + Default + Send + Sync;
    /// Rows of a block, at most, which share an unpacked panel: their sums stay in the L2 cache.
    const BLOCK_ROWS: usize;
    /// A group of zeros.
    const ZEROS: Self::Group;

    /// The width of the codes that panels are unpacked to.
    fn code_width(isa: Isa) -> CodeWidth;

    /// Rows of a tile.
    fn tile_rows(isa: Isa) -> usize;

    /// The buffers for the next activations.
    fn spare() -> &'static LocalKey<RefCell<TiledActivations<Self>>>;

    /// The bytes of a row of an AMX tile, by whose length tiles are configured; `None` if AMX is not used.
    fn amx_row_bytes(isa: Isa, scale_len: usize) -> Option<usize>;

    /// Rounds 32 numbers to the group of row `row` of a tile, whose groups are given.
    fn round<S: Simd>(
        simd: S,
        isa: Isa,
        halves: [S::Floats; 2],
        row: usize,
        of_tile: &mut [Self::Group],
    ) -> Self::Scale;

    /// Adds the products of `n_rows` rows with one or two panels to their sums, of which there are as many as a whole tile
    /// has rows. With AMX in use, `tile_config` is its configuration.
    fn multiply_tile<S: Simd>(
        simd: S,
        tile_config: Option<&amx::TileConfig>,
        n_rows: usize,
        x: ActivationTile<Self::Group, Self::Scale>,
        panels: &[UnpackedPanel],
        sums: [&mut [[f32; LANES]]; 2],
    );
}

/// Rounded rows of activations, in the order in which they are read: K chunk by K chunk, in a chunk tile by
/// tile, in a tile the first group of each row, then the second.
#[derive(Debug)]
pub struct TiledActivations<F: ActivationForm> {
    n_rows: usize,
    n_tiles: usize,
    n_groups: usize,
    groups: Vec<F::Group>,
    scales: Vec<F::Scale>,
}

impl<F: ActivationForm> Default for TiledActivations<F> {
    fn default() -> Self {
        Self { n_rows: 0, n_tiles: 0, n_groups: 0, groups: Vec::new(), scales: Vec::new() }
    }
}

thread_local! {
    /// Buffers for unpacked panels, and for sums.
    static PANELS: RefCell<Box<[UnpackedPanel; 2]>> = RefCell::new(Box::new([UnpackedPanel::EMPTY; 2]));
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl<F: ActivationForm> TiledActivations<F> {
    /// Rounds the rows of an input, after the norm.
    pub fn new(isa: Isa, InputRows { x, n_in, norm }: InputRows) -> Self {
        if let Some(norm) = norm {
            norm.check_len(n_in);
        }
        let tile_rows = F::tile_rows(isa);
        let (n_rows, n_groups) = (x.len() / n_in, n_in / GROUP_LEN);
        let mut rows = Self { n_rows, n_tiles: n_rows.div_ceil(tile_rows), n_groups, ..F::spare().take() };
        let n = n_rows * n_groups;
        // Buffers only grow, so that old contents need not be overwritten. AMX reads whole tiles.
        rows.groups.resize(rows.groups.len().max(n + tile_rows), F::ZEROS);
        rows.scales.resize(rows.scales.len().max(n), F::Scale::default());
        {
            let tiles = TilePartition { n_rows, n_tiles: rows.n_tiles };
            let groups = DisjointSlice::new(&mut rows.groups[..n]);
            let scales = DisjointSlice::new(&mut rows.scales[..n]);
            pool::run(|team| {
                for tile in team.claim_chunks(tiles.n_tiles, 1).flatten() {
                    let of_tile = tiles.rows(tile);
                    for (row, idx) in of_tile.clone().enumerate() {
                        let x = &x[idx * n_in..][..n_in];
                        let of_tile = of_tile.clone();
                        let fill = RoundTiledRow::<F> { isa, x, norm, row, of_tile, n_rows, groups, scales };
                        dispatch(isa, fill);
                    }
                }
            });
        }
        rows
    }

    /// Returns the buffers for reuse.
    pub fn recycle(self) {
        F::spare().replace(self);
    }
}

impl<F: ActivationForm> GemmActivations for TiledActivations<F> {
    const PAIRS_AT_ONCE: usize = 8;

    fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(F::BLOCK_ROWS)
    }

    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        pairs: &[PanelPair],
    ) {
        assert!(block < self.n_blocks());
        let tiles = TilePartition { n_rows: self.n_rows, n_tiles: self.n_tiles };
        let of_block = block * self.n_tiles / self.n_blocks()..(block + 1) * self.n_tiles / self.n_blocks();
        let tile_rows = F::tile_rows(isa);
        let sums_of_pair = of_block.len() * tile_rows;
        PANELS.with_borrow_mut(|unpacked| {
            SUMS.with_borrow_mut(|sums| {
                for sums in sums.iter_mut() {
                    sums.clear();
                    sums.resize(pairs.len() * sums_of_pair, [0.0; LANES]);
                }
                // All pairs of panels are multiplied with a K chunk of the rows while it is in the L2 cache.
                for (groups, (idx, pair)) in k_chunks(self.n_groups)
                    .flat_map(|groups| iter::repeat(groups).zip(pairs.iter().enumerate()))
                {
                    let panels = pair.panels();
                    assert!(panels.iter().all(|(matrix, _)| matrix.n_in() == self.n_groups * GROUP_LEN));
                    assert!(panels.iter().all(|(matrix, _)| matrix.format() == panels[0].0.format()));
                    for ((matrix, panel), unpacked) in panels.iter().zip(unpacked.iter_mut()) {
                        matrix.unpack_panel(isa, *panel, groups.clone(), F::code_width(isa), unpacked);
                    }
                    let kernel = KChunkKernel {
                        rows: self,
                        tiles,
                        of_block: of_block.clone(),
                        tile_rows,
                        panels: &unpacked[..panels.len()],
                        epilogue: (groups.end == self.n_groups).then_some(&pair.epilogue),
                        groups,
                        tile_config: F::amx_row_bytes(isa, panels[0].0.scale_len())
                            .map(|row_bytes| amx::TileConfig::reconfigure(tile_config, row_bytes)),
                        sums: sums.each_mut().map(|sums| &mut sums[idx * sums_of_pair..][..sums_of_pair]),
                    };
                    dispatch(isa, kernel);
                }
            });
        });
    }
}

/// Rows of a tile of integers without AMX, and rows from which on unpacking panels is profitable.
pub(super) fn simd_rows(isa: Isa) -> (usize, usize) {
    struct TileRows;
    impl Kernel for TileRows {
        type Output = (usize, usize);

        fn run<S: Simd>(self, _: S) -> (usize, usize) {
            (S::I16_TILE_ROWS, S::MIN_GEMM_ROWS)
        }
    }
    dispatch(isa, TileRows)
}

/// The K chunks of a row: ranges of groups, evenly cut.
fn k_chunks(n_groups: usize) -> impl Iterator<Item = Range<usize>> {
    let n = n_groups.div_ceil(K_CHUNK_GROUPS);
    (0..n).map(move |idx| idx * n_groups / n..(idx + 1) * n_groups / n)
}

/// An even partition of rows into tiles.
#[derive(Debug, Clone, Copy)]
struct TilePartition {
    n_rows: usize,
    n_tiles: usize,
}

impl TilePartition {
    /// The rows of a tile.
    fn rows(&self, tile: usize) -> Range<usize> {
        tile * self.n_rows / self.n_tiles..(tile + 1) * self.n_rows / self.n_tiles
    }
}

struct RoundTiledRow<'a, F: ActivationForm> {
    isa: Isa,
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    /// The row's index in its tile, the rows of that tile, and the number of all rows.
    row: usize,
    of_tile: Range<usize>,
    n_rows: usize,
    groups: DisjointSlice<'a, F::Group>,
    scales: DisjointSlice<'a, F::Scale>,
}

impl<F: ActivationForm> Kernel for RoundTiledRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { isa, x, norm, row, of_tile, n_rows, groups: all_groups, scales } = self;
        let transform = Transform::new(simd, x, norm);
        for groups in k_chunks(x.len() / GROUP_LEN) {
            let first = groups.start * n_rows + of_tile.start * groups.len();
            for (idx, group) in groups.enumerate() {
                let at = first + idx * of_tile.len();
                // SAFETY: the thread has claimed the whole tile.
                let (of_group, scale) =
                    unsafe { (all_groups.slice(at, of_tile.len()), &mut scales.slice(at + row, 1)[0]) };
                let start = group * GROUP_LEN;
                let halves = [transform.apply(x, start), transform.apply(x, start + LANES)];
                *scale = F::round(simd, isa, halves, row, of_group);
            }
        }
    }
}

/// Multiplies the tiles of a block with a K chunk of one or two panels.
struct KChunkKernel<'a, F: ActivationForm, T> {
    rows: &'a TiledActivations<F>,
    tiles: TilePartition,
    of_block: Range<usize>,
    tile_rows: usize,
    panels: &'a [UnpackedPanel],
    /// The groups of the chunk.
    groups: Range<usize>,
    tile_config: Option<&'a amx::TileConfig>,
    /// For each panel, the sums of each tile of the block, with room for whole tiles.
    sums: [&'a mut [[f32; LANES]]; 2],
    /// Consumes the sums, if this chunk is the last.
    epilogue: Option<&'a T>,
}

impl<F: ActivationForm, T: Epilogue> Kernel for KChunkKernel<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, tiles, of_block, tile_rows, panels, groups, tile_config, sums, epilogue } = self;
        let [mut first, mut second] = sums;
        for tile in of_block {
            let of_tile = tiles.rows(tile);
            let m = of_tile.len();
            let start = groups.start * rows.n_rows + of_tile.start * groups.len();
            let x = ActivationTile {
                groups: &rows.groups[start..],
                scales: &rows.scales[start..],
                n_groups: groups.len(),
            };
            let sums;
            (sums, first) = first.split_at_mut(tile_rows);
            let others;
            (others, second) = second.split_at_mut(tile_rows.min(second.len()));
            if let Some(epilogue) = epilogue {
                epilogue.prefetch(simd, of_tile.clone());
            }
            F::multiply_tile(simd, tile_config, m, x, panels, [&mut *sums, &mut *others]);
            if let Some(epilogue) = epilogue {
                // SAFETY: the thread has claimed this block with these panels.
                unsafe { epilogue.apply(simd, of_tile, [&sums[..m], &others[..m.min(others.len())]]) };
            }
        }
    }
}
