//! GEMM with quantized weights: many rows of activations, as 16-bit integers.
//!
//! [GEMV](super::gemv) multiplies codes as it reads them. With many rows, it is better to unpack two panels to
//! 16-bit integers, one K chunk at a time, into the L1 cache: all rows share that work, and a tile of
//! activations, once loaded, is multiplied with both panels. The integers are the same either way and are
//! rounded to float32 at the same places, so the results are the same bit by bit.
//!
//! With AMX a tile is larger, and codes and activations are bytes; the rest is the same.

use std::cell::RefCell;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{
    CodeWidth, GROUP_LEN, GroupScale, I16Group, I16Tile, K_CHUNK_GROUPS, UnpackedPanel,
};
use super::super::norm::{Norm, Transform};
use super::super::simd::{Kernel, LANES, Simd, dispatch, with_rows};
use super::super::threads::disjoint::DisjointSlice;
use super::super::threads::pool;
use super::epilogue::Epilogue;
use super::gemm::GemmActivations;
use super::projection::{InputRows, Panel};
use super::quantize::quantization_scale;

/// Rows of a block, at most, which share an unpacked panel: their sums stay in the L2 cache.
pub const BLOCK_ROWS: usize = 256;

/// The two planes of bytes of a tile's rows of a group.
fn plane_bytes(tile: &mut [I16Group]) -> &mut [i8] {
    // SAFETY: a 16-bit integer is two bytes, any bytes are valid integers, and the slice is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(tile.as_mut_ptr().cast(), size_of_val(tile)) }
}

/// The width of unpacked codes: AMX multiplies bytes.
fn code_width(isa: Isa) -> CodeWidth {
    if isa == Isa::Amx { CodeWidth::Byte } else { CodeWidth::Word }
}

/// Rows of a tile, and rows from which on unpacking panels is profitable.
fn tile_rows(isa: Isa) -> (usize, usize) {
    struct TileRows;
    impl Kernel for TileRows {
        type Output = (usize, usize);

        fn run<S: Simd>(self, _: S) -> (usize, usize) {
            (S::I16_TILE_ROWS, S::MIN_GEMM_ROWS)
        }
    }
    match isa {
        Isa::Amx => (amx::TILE_ROWS, amx::MIN_GEMM_ROWS),
        _ => dispatch(isa, TileRows),
    }
}

/// Whether this GEMM is faster than GEMV for `n_rows` rows.
pub fn is_profitable(isa: Isa, n_rows: usize) -> bool {
    n_rows >= tile_rows(isa).1
}

/// Quantized rows of activations, in the order in which they are read: K chunk by K chunk, in a chunk tile by
/// tile, in a tile the first group of each row, then the second.
#[derive(Debug, Default)]
pub struct Int16Activations {
    n_rows: usize,
    n_tiles: usize,
    n_groups: usize,
    groups: Vec<I16Group>,
    scales: Vec<GroupScale>,
}

thread_local! {
    /// Buffers for the next activations, for unpacked panels, and for sums.
    static SPARE_ROWS: RefCell<Int16Activations> = RefCell::default();
    static PANELS: RefCell<Box<[UnpackedPanel; 2]>> = RefCell::new(Box::new([UnpackedPanel::EMPTY; 2]));
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl Int16Activations {
    /// Quantizes the rows of an input, after the norm.
    pub fn new(isa: Isa, InputRows { x, n_in, norm }: InputRows) -> Self {
        if let Some(norm) = norm {
            norm.check_len(n_in);
        }
        let (tile_rows, _) = tile_rows(isa);
        let (n_rows, n_groups) = (x.len() / n_in, n_in / GROUP_LEN);
        let mut rows = Self { n_rows, n_tiles: n_rows.div_ceil(tile_rows), n_groups, ..SPARE_ROWS.take() };
        let n = n_rows * n_groups;
        // Buffers only grow, so that old contents need not be overwritten. AMX reads whole tiles.
        rows.groups.resize(rows.groups.len().max(n + tile_rows), I16Group([0; GROUP_LEN]));
        rows.scales.resize(rows.scales.len().max(n), GroupScale::default());
        {
            let tiles = TilePartition { n_rows, n_tiles: rows.n_tiles };
            let groups = DisjointSlice::new(&mut rows.groups[..n]);
            let scales = DisjointSlice::new(&mut rows.scales[..n]);
            pool::run(|team| {
                for tile in team.claim_chunks(tiles.n_tiles, 1).flatten() {
                    let of_tile = tiles.rows(tile);
                    for (row, idx) in of_tile.clone().enumerate() {
                        let x = &x[idx * n_in..][..n_in];
                        let fill = QuantizeI16Row {
                            x,
                            norm,
                            row,
                            of_tile: of_tile.clone(),
                            n_rows,
                            width: code_width(isa),
                            groups,
                            scales,
                        };
                        dispatch(isa, fill);
                    }
                }
            });
        }
        rows
    }

    /// Returns the buffers for reuse.
    pub fn recycle(self) {
        SPARE_ROWS.replace(self);
    }
}

impl GemmActivations for Int16Activations {
    const BLOCKS_AT_ONCE: usize = 1;

    fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        panels: &[Panel],
        epilogue: &impl Epilogue,
    ) {
        assert!(matches!(panels.len(), 1 | 2) && block < self.n_blocks());
        assert!(panels.iter().all(|(matrix, _)| matrix.n_in() == self.n_groups * GROUP_LEN));
        assert!(panels.iter().all(|(matrix, _)| matrix.format() == panels[0].0.format()));
        let tiles = TilePartition { n_rows: self.n_rows, n_tiles: self.n_tiles };
        let of_block = block * self.n_tiles / self.n_blocks()..(block + 1) * self.n_tiles / self.n_blocks();
        let n_rows = tiles.rows(of_block.end - 1).end - tiles.rows(of_block.start).start;
        let tile_config =
            (isa == Isa::Amx).then(|| amx::TileConfig::reconfigure(tile_config, panels[0].0.scale_len()));
        PANELS.with_borrow_mut(|unpacked| {
            SUMS.with_borrow_mut(|sums| {
                for sums in sums.iter_mut().take(panels.len()) {
                    sums.clear();
                    sums.resize(n_rows, [0.0; LANES]);
                }
                let [first, second] = sums;
                for groups in k_chunks(self.n_groups) {
                    for ((matrix, panel), unpacked) in panels.iter().zip(unpacked.iter_mut()) {
                        matrix.unpack_panel(isa, *panel, groups.clone(), code_width(isa), unpacked);
                    }
                    let kernel = KChunkKernel {
                        rows: self,
                        tiles,
                        of_block: of_block.clone(),
                        panels: &unpacked[..panels.len()],
                        epilogue: (groups.end == self.n_groups).then_some(epilogue),
                        groups,
                        tile_config,
                        sums: [&mut *first, &mut *second],
                    };
                    dispatch(isa, kernel);
                }
            });
        });
    }
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

struct QuantizeI16Row<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    /// The row's index in its tile, the rows of that tile, and the number of all rows.
    row: usize,
    of_tile: Range<usize>,
    n_rows: usize,
    width: CodeWidth,
    groups: DisjointSlice<'a, I16Group>,
    scales: DisjointSlice<'a, GroupScale>,
}

impl Kernel for QuantizeI16Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, row, of_tile, n_rows, width, groups: all_groups, scales } = self;
        let transform = Transform::new(simd, x, norm);
        for groups in k_chunks(x.len() / GROUP_LEN) {
            let first = groups.start * n_rows + of_tile.start * groups.len();
            for (idx, group) in groups.enumerate() {
                let at = first + idx * of_tile.len();
                // SAFETY: the thread has claimed the whole tile.
                let (of_group, group_scale) =
                    unsafe { (all_groups.slice(at, of_tile.len()), &mut scales.slice(at + row, 1)[0]) };
                let start = group * GROUP_LEN;
                let halves = [transform.apply(x, start), transform.apply(x, start + LANES)];
                let (scale, inverse) = quantization_scale(simd, halves.into_iter());
                // No closures: the compiler would not inline vector operations into them.
                let scaled = if let Some(inverse) = inverse {
                    let inverse = simd.splat(inverse);
                    [simd.mul(halves[0], inverse), simd.mul(halves[1], inverse)]
                } else {
                    [simd.splat(0.0); 2]
                };
                let sums = match width {
                    CodeWidth::Word => store_words(simd, scaled, &mut of_group[row]),
                    CodeWidth::Byte => store_bytes(simd, scaled, row, of_group),
                };
                *group_scale = GroupScale { scale, ..GroupScale::default() };
                if inverse.is_some() {
                    group_scale.sum = (sums[0] + sums[1]) as f32 * scale;
                    group_scale.half_sums = sums.map(|sum| sum as f32 * scale);
                }
            }
        }
    }
}

/// Rounds 32 numbers to 16-bit integers; returns the sum of each half.
#[inline(always)]
fn store_words<S: Simd>(simd: S, [first, second]: [S::Floats; 2], to: &mut I16Group) -> [i32; 2] {
    let (of_first, of_second) = to.0.split_at_mut(LANES);
    // SAFETY: each half has room for sixteen integers.
    unsafe {
        [simd.quantize_i16(first, of_first.as_mut_ptr()), simd.quantize_i16(second, of_second.as_mut_ptr())]
    }
}

/// Rounds 32 numbers to integers and stores their two bytes in the planes of a tile; returns the sum of each
/// half.
#[inline(always)]
fn store_bytes<S: Simd>(simd: S, halves: [S::Floats; 2], row: usize, tile: &mut [I16Group]) -> [i32; 2] {
    let n_bytes = tile.len() * GROUP_LEN;
    let (high, low) = plane_bytes(tile).split_at_mut(n_bytes);
    let place = row * GROUP_LEN..(row + 1) * GROUP_LEN;
    let (high, low) = (&mut high[place.clone()], &mut low[place]);
    let mut sums = [0; 2];
    for (idx, (half, sum)) in halves.into_iter().zip(&mut sums).enumerate() {
        let (high, low) = (&mut high[idx * LANES..], &mut low[idx * LANES..]);
        // SAFETY: the slices have room for the sixteen bytes of a half.
        *sum = unsafe { simd.quantize_i8_planes(half, high.as_mut_ptr(), low.as_mut_ptr()) };
    }
    sums
}

/// Multiplies the tiles of a block with a K chunk of one or two panels.
struct KChunkKernel<'a, T> {
    rows: &'a Int16Activations,
    tiles: TilePartition,
    of_block: Range<usize>,
    panels: &'a [UnpackedPanel],
    /// The groups of the chunk.
    groups: Range<usize>,
    tile_config: Option<&'a amx::TileConfig>,
    /// For each panel, the sums of each row of the block.
    sums: [&'a mut [[f32; LANES]]; 2],
    /// Consumes the sums, if this chunk is the last.
    epilogue: Option<&'a T>,
}

impl<T: Epilogue> Kernel for KChunkKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, tiles, of_block, panels, groups, tile_config, sums, epilogue } = self;
        let [mut first, mut second] = sums;
        for tile in of_block {
            let of_tile = tiles.rows(tile);
            let m = of_tile.len();
            let start = groups.start * rows.n_rows + of_tile.start * groups.len();
            let x = I16Tile {
                groups: &rows.groups[start..],
                scales: &rows.scales[start..],
                n_groups: groups.len(),
            };
            let sums;
            (sums, first) = first.split_at_mut(m);
            let others;
            (others, second) = second.split_at_mut(m.min(second.len()));
            if let Some(epilogue) = epilogue {
                epilogue.prefetch(simd, of_tile.clone());
            }
            match (tile_config, panels) {
                (Some(config), [a, b]) => amx::tile(config, m, x, [a, b], [&mut *sums, &mut *others]),
                (Some(config), _) => amx::tile(config, m, x, [&panels[0]], [&mut *sums]),
                (None, [a, b]) => tile_of_rows::<S, 2>(simd, m, x, [a, b], [&mut *sums, &mut *others]),
                (None, _) => tile_of_rows::<S, 1>(simd, m, x, [&panels[0]], [&mut *sums]),
            }
            if let Some(epilogue) = epilogue {
                // SAFETY: the thread has claimed this block with these panels.
                unsafe { epilogue.apply(simd, of_tile, [sums, others]) };
            }
        }
    }
}

/// How many groups ahead activations are prefetched.
const GROUPS_AHEAD: usize = 4;

#[inline(always)]
fn tile_of_rows<S: Simd, const P: usize>(
    simd: S,
    m: usize,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    with_rows!(m, M in [1, 2, 3, 4, 5, 6] => tile::<S, M, P>(simd, x, panels, sums));
}

/// Adds the products of `M` rows of activations with `P` panels to their sums.
#[inline(always)]
fn tile<S: Simd, const M: usize, const P: usize>(
    simd: S,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    all_sums: [&mut [[f32; LANES]]; P],
) {
    assert!(x.groups.len() >= M * x.n_groups && x.scales.len() >= M * x.n_groups);
    assert!(all_sums.iter().all(|sums| sums.len() == M) && x.n_groups <= K_CHUNK_GROUPS);
    let (groups, scales) = (x.groups.as_ptr(), x.scales.as_ptr());
    let (n_parts, has_mins) = (panels[0].scales_per_group, panels[0].has_mins);
    let n_pairs = GROUP_LEN / 2 / n_parts;
    // SAFETY: everything lies within the lengths asserted above, and panels hold `K_CHUNK_GROUPS` groups.
    unsafe {
        let mut sums = [[simd.splat(0.0); M]; P];
        for p in 0..P {
            for m in 0..M {
                sums[p][m] = simd.load(all_sums[p][m].as_ptr());
            }
        }
        for group in 0..x.n_groups {
            let (groups, scales) = (groups.add(group * M), scales.add(group * M));
            for m in 0..M {
                simd.prefetch_l1(groups.wrapping_add(GROUPS_AHEAD * M + m).cast());
            }
            simd.prefetch_l1(scales.wrapping_add(GROUPS_AHEAD * M).cast());
            simd.prefetch_l1(scales.wrapping_add(GROUPS_AHEAD * M + 4).cast());
            for part in 0..n_parts {
                let mut products = [[simd.zero_i16_sums(); M]; P];
                for pair in part * n_pairs..(part + 1) * n_pairs {
                    let of_panel = |p: usize| {
                        panels[p].codes(group, CodeWidth::Word).cast::<i16>().add(pair * 2 * LANES)
                    };
                    let mut weights = [simd.load_i16_pairs(of_panel(0)); P];
                    for p in 1..P {
                        weights[p] = simd.load_i16_pairs(of_panel(p));
                    }
                    for m in 0..M {
                        let activations = groups.add(m).cast::<i16>().add(2 * pair);
                        for p in 0..P {
                            products[p][m] = simd.dot_i16_pairs(products[p][m], weights[p], activations);
                        }
                    }
                }
                for p in 0..P {
                    let at = group * n_parts + part;
                    let scale = simd.load(panels[p].scales[at].as_ptr());
                    for m in 0..M {
                        let product = simd
                            .mul(simd.i16_sums_to_floats(products[p][m]), simd.splat((*scales.add(m)).scale));
                        sums[p][m] = simd.mul_add(product, scale, sums[p][m]);
                    }
                    if has_mins {
                        let min = simd.load(panels[p].mins[at].as_ptr());
                        for m in 0..M {
                            let sum = (*scales.add(m)).sum_of(part, n_parts);
                            sums[p][m] = simd.mul_add(min, simd.splat(sum), sums[p][m]);
                        }
                    }
                }
            }
        }
        for p in 0..P {
            for m in 0..M {
                simd.store(sums[p][m], all_sums[p][m].as_mut_ptr());
            }
        }
    }
}
