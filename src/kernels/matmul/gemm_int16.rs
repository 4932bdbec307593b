//! Projection of many rows of activations with quantized matrices.
//!
//! A few rows are multiplied as the weights are read ([`super::weights`]). Where there are many, two
//! panels are expanded to whole numbers of 16 bits, a stretch of their inner dimension at a time, into
//! the first-level cache: all rows share that work, and a tile of them, once read, meets both panels.
//! The whole numbers are the same in both ways and are rounded to float32 at the same places, so the
//! results are the same bit by bit.
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
use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::super::threads::disjoint::DisjointSlice;
use super::super::threads::pool;
use super::epilogue::{Epilogue, Panel};
use super::quantize::quantization_scale;

/// Int16Activations that share an expanded panel at most: so many sums stay in the second-level cache.
pub const BLOCK_ROWS: usize = 256;

/// The bytes of a tile's rows of a group.
fn plane_bytes(tile: &mut [I16Group]) -> &mut [i8] {
    // SAFETY: whole numbers of 16 bits are two bytes each, and any bytes are such numbers.
    unsafe { std::slice::from_raw_parts_mut(tile.as_mut_ptr().cast(), size_of_val(tile)) }
}

/// What differs with AMX.
fn code_width(isa: Isa) -> CodeWidth {
    if isa == Isa::Amx { CodeWidth::Byte } else { CodeWidth::Word }
}

/// Int16Activations of a tile, and rows from which on it is_profitable to expand panels.
fn tile_rows(isa: Isa) -> (usize, usize) {
    struct TileRows;
    impl Kernel for TileRows {
        type Output = (usize, usize);

        fn run<S: Simd>(self, _: S) -> (usize, usize) {
            (S::I16_TILE_ROWS, S::MIN_GEMM_ROWS)
        }
    }
    match isa {
        Isa::Amx => (amx::TILE_ROWS, amx::MANY_ROWS),
        _ => dispatch(isa, TileRows),
    }
}

/// Whether so many rows are better multiplied here than as the weights are read.
pub fn is_profitable(isa: Isa, n_rows: usize) -> bool {
    n_rows >= tile_rows(isa).1
}

/// Int16Activations of activations, in the order in which they are read: stretch by stretch, of a stretch tile by tile,
/// of a tile the first group of each row, epilogue the second.
#[derive(Debug, Default)]
pub struct Int16Activations {
    n_rows: usize,
    n_tiles: usize,
    n_groups: usize,
    words: Vec<I16Group>,
    factors: Vec<GroupScale>,
}

thread_local! {
    /// Buffers for the next rows, for panels, and for sums.
    static SPARE_ROWS: RefCell<Int16Activations> = RefCell::default();
    static PANELS: RefCell<Box<[UnpackedPanel; 2]>> = RefCell::new(Box::new([UnpackedPanel::EMPTY; 2]));
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl Int16Activations {
    /// What `norm` makes of the rows of `x`, each `n_in` long.
    pub fn new(isa: Isa, x: &[f32], n_in: usize, norm: Option<&Norm>) -> Self {
        let (tile_rows, _) = tile_rows(isa);
        let (n_rows, n_groups) = (x.len() / n_in, n_in / GROUP_LEN);
        let mut rows = Self { n_rows, n_tiles: n_rows.div_ceil(tile_rows), n_groups, ..SPARE_ROWS.take() };
        let n = n_rows * n_groups;
        // They only grow: what is there need not be written again. TilePartition of AMX are read as if they were
        // full.
        rows.words.resize(rows.words.len().max(n + tile_rows), I16Group([0; GROUP_LEN]));
        rows.factors.resize(rows.factors.len().max(n), GroupScale::default());
        {
            let tiles = TilePartition { n_rows, n_tiles: rows.n_tiles };
            let words = DisjointSlice::new(&mut rows.words[..n]);
            let factors = DisjointSlice::new(&mut rows.factors[..n]);
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
                            words,
                            factors,
                        };
                        dispatch(isa, fill);
                    }
                }
            });
        }
        rows
    }

    /// Leaves the room to the next.
    pub fn recycle(self) {
        SPARE_ROWS.replace(self);
    }

    /// How many pieces the rows are cut into.
    pub fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    /// Computes the products of a block of the rows with one or two panels of as many inner elements; `epilogue`
    /// gets some of the rows and for each panel their products with its rows, until it has had all of the
    /// block. What `amx` holds serves the thread's next call.
    ///
    /// # Panics
    /// When a panel is not there, of another length, or of another format than the other.
    pub fn products(
        &self,
        isa: Isa,
        amx: &mut Option<amx::TileConfig>,
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
        let amx = (isa == Isa::Amx).then(|| amx::TileConfig::reconfigure(amx, panels[0].0.n_scaled()));
        PANELS.with_borrow_mut(|expanded| {
            SUMS.with_borrow_mut(|sums| {
                for sums in sums.iter_mut().take(panels.len()) {
                    sums.clear();
                    sums.resize(n_rows, [0.0; LANES]);
                }
                let [first, second] = sums;
                for groups in k_chunks(self.n_groups) {
                    for ((matrix, panel), expanded) in panels.iter().zip(expanded.iter_mut()) {
                        matrix.expand(isa, *panel, groups.clone(), code_width(isa), expanded);
                    }
                    let kernel = KChunkKernel {
                        rows: self,
                        tiles,
                        of_block: of_block.clone(),
                        panels: &expanded[..panels.len()],
                        epilogue: (groups.end == self.n_groups).then_some(epilogue),
                        groups,
                        amx,
                        sums: [&mut *first, &mut *second],
                    };
                    dispatch(isa, kernel);
                }
            });
        });
    }
}

/// Groups of a row, evenly cut.
fn k_chunks(n_groups: usize) -> impl Iterator<Item = Range<usize>> {
    let n = n_groups.div_ceil(K_CHUNK_GROUPS);
    (0..n).map(move |idx| idx * n_groups / n..(idx + 1) * n_groups / n)
}

/// How rows are shared out among tiles: evenly.
#[derive(Debug, Clone, Copy)]
struct TilePartition {
    n_rows: usize,
    n_tiles: usize,
}

impl TilePartition {
    fn rows(&self, tile: usize) -> Range<usize> {
        tile * self.n_rows / self.n_tiles..(tile + 1) * self.n_rows / self.n_tiles
    }
}

struct QuantizeI16Row<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    /// Which row of its tile it is, and that tile's among how many rows.
    row: usize,
    of_tile: Range<usize>,
    n_rows: usize,
    width: CodeWidth,
    words: DisjointSlice<'a, I16Group>,
    factors: DisjointSlice<'a, GroupScale>,
}

impl Kernel for QuantizeI16Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, row, of_tile, n_rows, width, words, factors } = self;
        // SAFETY: the processor has the instructions, and nobody else has the places of this row.
        unsafe {
            let transform = Transform::new(simd, x, norm);
            for groups in k_chunks(x.len() / GROUP_LEN) {
                let first_place = groups.start * n_rows + of_tile.start * groups.len();
                for (idx, group) in groups.enumerate() {
                    let place = first_place + idx * of_tile.len();
                    let factors = &mut factors.slice(place + row, 1)[0];
                    let start = group * GROUP_LEN;
                    let halves = [transform.apply(x, start), transform.apply(x, start + LANES)];
                    let (scale, inverse) = quantization_scale(simd, halves.into_iter());
                    let inverse = inverse.map(|inverse| simd.splat(inverse));
                    let numbers = inverse.map(|inverse| halves.map(|half| simd.mul(half, inverse)));
                    let numbers = numbers.unwrap_or([simd.splat(0.0); 2]);
                    // SAFETY: other threads have other tiles.
                    let sums = match width {
                        CodeWidth::Word => store_words(simd, numbers, &mut words.slice(place + row, 1)[0]),
                        CodeWidth::Byte => store_bytes(simd, numbers, row, words.slice(place, of_tile.len())),
                    };
                    *factors = GroupScale { scale, ..GroupScale::default() };
                    if inverse.is_some() {
                        factors.sum = (sums[0] + sums[1]) as f32 * scale;
                        factors.half_sums = sums.map(|sum| sum as f32 * scale);
                    }
                }
            }
        }
    }
}

/// Rounds 32 numbers into whole ones; gives the sum of each half.
#[inline(always)]
unsafe fn store_words<S: Simd>(simd: S, [first, second]: [S::Floats; 2], to: &mut I16Group) -> [i32; 2] {
    let (of_first, of_second) = to.0.split_at_mut(LANES);
    // SAFETY: the processor has the instructions; there is room for a vector in each half.
    unsafe {
        [simd.quantize_i16(first, of_first.as_mut_ptr()), simd.quantize_i16(second, of_second.as_mut_ptr())]
    }
}

/// The same into the bytes of a row of a tile.
#[inline(always)]
unsafe fn store_bytes<S: Simd>(
    simd: S,
    halves: [S::Floats; 2],
    row: usize,
    tile: &mut [I16Group],
) -> [i32; 2] {
    let n_bytes = tile.len() * GROUP_LEN;
    let (high, low) = plane_bytes(tile).split_at_mut(n_bytes);
    let place = row * GROUP_LEN..(row + 1) * GROUP_LEN;
    let (high, low) = (&mut high[place.clone()], &mut low[place]);
    let mut sums = [0; 2];
    for (idx, (half, sum)) in halves.into_iter().zip(&mut sums).enumerate() {
        let (high, low) = (&mut high[idx * LANES..], &mut low[idx * LANES..]);
        // SAFETY: the processor has the instructions; the slices have room for a half's bytes.
        *sum = unsafe { simd.quantize_i8_planes(half, high.as_mut_ptr(), low.as_mut_ptr()) };
    }
    sums
}

/// The products of some tiles with a stretch of one or two panels.
struct KChunkKernel<'a, T> {
    rows: &'a Int16Activations,
    tiles: TilePartition,
    of_block: Range<usize>,
    panels: &'a [UnpackedPanel],
    /// Which groups of the rows the panels hold.
    groups: Range<usize>,
    amx: Option<&'a amx::TileConfig>,
    /// Of each panel those of each row of the block.
    sums: [&'a mut [[f32; LANES]]; 2],
    /// Gets them, if this stretch is the last.
    epilogue: Option<&'a T>,
}

impl<T: Epilogue> Kernel for KChunkKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, tiles, of_block, panels, groups, amx, sums: [mut first, mut second], epilogue } =
            self;
        for tile in of_block {
            let of_tile = tiles.rows(tile);
            let m = of_tile.len();
            let place = groups.start * rows.n_rows + of_tile.start * groups.len();
            let x = I16Tile {
                words: &rows.words[place..],
                factors: &rows.factors[place..],
                n_groups: groups.len(),
            };
            let sums;
            (sums, first) = first.split_at_mut(m);
            let others;
            (others, second) = second.split_at_mut(m.min(second.len()));
            // SAFETY: the caller's promise.
            unsafe {
                if let Some(epilogue) = epilogue {
                    epilogue.fetch(simd, of_tile.clone());
                }
                match (amx, panels) {
                    (Some(amx), [a, b]) => amx::tile(amx, m, x, [a, b], [&mut *sums, &mut *others]),
                    (Some(amx), _) => amx::tile(amx, m, x, [&panels[0]], [&mut *sums]),
                    (None, [a, b]) => tile_of_rows::<S, 2>(simd, m, x, [a, b], [&mut *sums, &mut *others]),
                    (None, _) => tile_of_rows::<S, 1>(simd, m, x, [&panels[0]], [&mut *sums]),
                }
            }
            if let Some(epilogue) = epilogue {
                // SAFETY: the caller's promise.
                unsafe { epilogue.take(simd, of_tile, [sums, others]) };
            }
        }
    }
}

const AHEAD: usize = 4;

#[inline(always)]
unsafe fn tile_of_rows<S: Simd, const P: usize>(
    simd: S,
    m: usize,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match m {
            1 => tile::<S, 1, P>(simd, x, panels, sums),
            2 => tile::<S, 2, P>(simd, x, panels, sums),
            3 => tile::<S, 3, P>(simd, x, panels, sums),
            4 => tile::<S, 4, P>(simd, x, panels, sums),
            5 => tile::<S, 5, P>(simd, x, panels, sums),
            _ => tile::<S, 6, P>(simd, x, panels, sums),
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const P: usize>(
    simd: S,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    all_sums: [&mut [[f32; LANES]]; P],
) {
    assert!(x.words.len() >= M * x.n_groups && x.factors.len() >= M * x.n_groups);
    assert!(all_sums.iter().all(|sums| sums.len() == M) && x.n_groups <= K_CHUNK_GROUPS);
    let (words, factors) = (x.words.as_ptr(), x.factors.as_ptr());
    let (n_parts, has_mins) = (panels[0].scales_per_group, panels[0].has_mins);
    let n_pairs = GROUP_LEN / 2 / n_parts;
    // SAFETY: the processor has the instructions; the lengths are as asserted.
    unsafe {
        let mut sums = [[simd.splat(0.0); M]; P];
        for p in 0..P {
            for m in 0..M {
                sums[p][m] = simd.load(all_sums[p][m].as_ptr());
            }
        }
        for group in 0..x.n_groups {
            let (words, factors) = (words.add(group * M), factors.add(group * M));
            for m in 0..M {
                simd.prefetch_l1(words.wrapping_add(AHEAD * M + m).cast());
            }
            simd.prefetch_l1(factors.wrapping_add(AHEAD * M).cast());
            simd.prefetch_l1(factors.wrapping_add(AHEAD * M + 4).cast());
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
                        let activations = words.add(m).cast::<i16>().add(2 * pair);
                        for p in 0..P {
                            products[p][m] = simd.dot_i16_pairs(products[p][m], weights[p], activations);
                        }
                    }
                }
                for p in 0..P {
                    let at = group * n_parts + part;
                    let scale = simd.load(panels[p].scales[at].as_ptr());
                    for m in 0..M {
                        let product = simd.mul(
                            simd.i16_sums_to_floats(products[p][m]),
                            simd.splat((*factors.add(m)).scale),
                        );
                        sums[p][m] = simd.mul_add(product, scale, sums[p][m]);
                    }
                    if has_mins {
                        let min = simd.load(panels[p].mins[at].as_ptr());
                        for m in 0..M {
                            let sum = (*factors.add(m)).sum_of(part, n_parts);
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
