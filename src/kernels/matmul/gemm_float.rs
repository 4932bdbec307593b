//! Projection of floats: of rows of activations with panels of sixteen rows of weights, or of queries with
//! keys.
//!
//! Numbers lie in dwords of four bytes: one float32, or two bfloat16 where the processor multiplies these
//! twice as fast. A row is its dwords one after the other, a panel the dwords of its sixteen rows side by side,
//! which is also how the tiles of AMX want them. Sums are float32.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{FloatTile, TILE_DWORDS};
use super::super::norm::{Norm, Transform};
use super::super::simd::{Kernel, LANES, Simd, dispatch_float};
use super::super::threads::disjoint::DisjointSlice;
use super::super::threads::pool;
use super::epilogue::{Epilogue, Panel};

/// FloatActivations of a block.
const BLOCK_ROWS: usize = 64;

/// Blocks that meet a panel before the next does: so many stay in the second-level cache.
pub const BLOCKS_AT_ONCE: usize = 4;

/// Units of a panel that are fetched ahead.
const DWORDS_AHEAD: usize = 24;

/// Units that `n` numbers take with what fills them up.
pub fn padded_dwords(n: usize, unit_len: usize) -> usize {
    n.next_multiple_of(TILE_DWORDS * unit_len) / unit_len
}

/// Units from a row of `n` numbers to the next, which should not share the same few places of a cache.
fn stride_of(n: usize, unit_len: usize) -> usize {
    const PAGE_QUARTER: usize = 256;
    let n_dwords = padded_dwords(n, unit_len);
    if n_dwords.is_multiple_of(PAGE_QUARTER) { n_dwords + TILE_DWORDS } else { n_dwords }
}

/// FloatActivations of activations as dwords.
#[derive(Debug, Default)]
pub struct FloatActivations {
    n_rows: usize,
    n_in: usize,
    in_bf16: bool,
    /// Units from a row to the next.
    stride: usize,
    dwords: Vec<f32>,
}

thread_local! {
    /// Room for the next rows, and for sums.
    static SPARE_DWORDS: RefCell<Vec<Vec<f32>>> = RefCell::default();
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl FloatActivations {
    /// What `norm` makes of the rows of `x`, each `n_in` long, in bfloat16 or not.
    pub fn new(isa: Isa, in_bf16: bool, x: &[f32], n_in: usize, norm: Option<&Norm>) -> Self {
        if let Some(norm) = norm {
            norm.check(n_in);
        }
        let mut rows = Self::room(in_bf16, x.len() / n_in, n_in);
        let (n_rows, stride) = (rows.n_rows, rows.stride);
        {
            let dwords = DisjointSlice::new(&mut rows.dwords[..n_rows * stride]);
            let fill = |row: usize| {
                // SAFETY: each row is claimed once.
                let to = unsafe { dwords.slice(row * stride, stride) };
                let fill = NormFloatRow { x: &x[row * n_in..][..n_in], norm, to };
                dispatch_float(isa, in_bf16, fill);
            };
            const AT_ONCE: usize = 8;
            const FEW_NUMBERS: usize = 1 << 15;
            if n_rows * n_in <= FEW_NUMBERS {
                (0..n_rows).for_each(fill);
            } else {
                pool::run(|team| team.claim_chunks(n_rows, AT_ONCE).flatten().for_each(fill));
            }
        }
        rows
    }

    /// FloatActivations to be collect_rows, with zeros behind what will be.
    pub fn zeros(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let mut rows = Self::room(in_bf16, n_rows, n_in);
        let n_written = n_in.next_multiple_of(LANES) / if in_bf16 { 2 } else { 1 };
        for row in rows.dwords[..n_rows * rows.stride].chunks_exact_mut(rows.stride) {
            row[n_written..].fill(0.0);
        }
        rows
    }

    /// FloatActivations that hold whatever.
    fn room(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let stride = stride_of(n_in, if in_bf16 { 2 } else { 1 });
        let mut dwords = SPARE_DWORDS.with_borrow_mut(Vec::pop).unwrap_or_default();
        // They only grow: what is there need not be written again. Tiles of AMX are read as if they were
        // full.
        dwords.resize(dwords.len().max((n_rows + amx::FLOAT_TILE_ROWS) * stride), 0.0);
        Self { n_rows, n_in, in_bf16, stride, dwords }
    }

    /// From a row to the next, and all dwords.
    pub fn dwords_mut(&mut self) -> (usize, DisjointSlice<'_, MaybeUninit<f32>>) {
        let dwords = self.dwords.as_mut_ptr().cast();
        // SAFETY: what is initialised may be taken for what need not be, as long as nothing else is written.
        (
            self.stride,
            DisjointSlice::new(unsafe { std::slice::from_raw_parts_mut(dwords, self.dwords.len()) }),
        )
    }

    /// Leaves the room to the next.
    pub fn recycle(self) {
        SPARE_DWORDS.with_borrow_mut(|spare| spare.push(self.dwords));
    }

    /// How many pieces the rows are cut into.
    pub fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    /// Computes the products of a block of the rows with one or two panels of dwords; `epilogue` gets some of the
    /// rows and for each panel their products with its rows, until it has had all of the block.
    ///
    /// # Panics
    /// When a panel is not there, of another length, or of other dwords.
    pub fn products(
        &self,
        isa: Isa,
        amx: &mut Option<amx::TileConfig>,
        block: usize,
        panels: &[Panel],
        epilogue: &impl Epilogue,
    ) {
        assert!(matches!(panels.len(), 1 | 2) && block < self.n_blocks());
        assert!(panels.iter().all(|(matrix, _)| matrix.n_in() == self.n_in));
        let dwords = |(matrix, panel): &Panel| matrix.panel_units(*panel, self.in_bf16).as_ptr().cast();
        let rows = block * self.n_rows / self.n_blocks()..(block + 1) * self.n_rows / self.n_blocks();
        let panels: [*const f32; 2] = [dwords(&panels[0]), panels.get(1).map_or(std::ptr::null(), dwords)];
        let n_panels = 1 + usize::from(!panels[1].is_null());
        if amx.is_none() {
            *amx = amx::TileConfig::for_floats(isa, self.in_bf16);
        }
        SUMS.with_borrow_mut(|sums| {
            let kernel =
                FloatBlockKernel { rows: self, of_block: rows, panels, n_panels, amx, sums, epilogue };
            dispatch_float(isa, self.in_bf16, kernel);
        });
    }
}

struct NormFloatRow<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    to: &'a mut [f32],
}

impl Kernel for NormFloatRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, to } = self;
        let n_whole = x.len() / LANES * LANES;
        // SAFETY: the caller's promise: the row's dwords and those that fill it up.
        unsafe {
            let transform = Transform::new(simd, x, norm);
            let to = to.as_mut_ptr();
            for start in (0..n_whole).step_by(LANES) {
                simd.store_dwords(transform.apply(x, start), to.add(start / S::FLOATS_PER_DWORD));
            }
            let end = padded_dwords(x.len(), S::FLOATS_PER_DWORD) * S::FLOATS_PER_DWORD;
            for start in (n_whole..end).step_by(LANES) {
                let mut rest = [0.0; LANES];
                if start < x.len() {
                    simd.store(transform.apply(x, start), rest.as_mut_ptr());
                    rest[x.len() - start..].fill(0.0);
                }
                simd.store_dwords(simd.load(rest.as_ptr()), to.add(start / S::FLOATS_PER_DWORD));
            }
        }
    }
}

/// The products of a block of rows with one or two panels.
struct FloatBlockKernel<'a, T> {
    rows: &'a FloatActivations,
    of_block: Range<usize>,
    panels: [*const f32; 2],
    n_panels: usize,
    amx: &'a Option<amx::TileConfig>,
    sums: &'a mut [Vec<[f32; LANES]>; 2],
    epilogue: &'a T,
}

impl<T: Epilogue> Kernel for FloatBlockKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, of_block, panels, n_panels, amx, sums: [first, second], epilogue } = self;
        let tile = if amx.is_some() { amx::FLOAT_TILE_ROWS } else { S::FLOAT_TILE.0 };
        for sums in [&mut *first, &mut *second] {
            sums.resize(sums.len().max(tile), [0.0; LANES]);
        }
        // Tiles are about equally large: few rows take longer than their share.
        let n_tiles = of_block.len().div_ceil(tile);
        let edge = |idx: usize| of_block.start + idx * of_block.len() / n_tiles;
        for idx in 0..n_tiles {
            let of_tile = edge(idx)..edge(idx + 1);
            let m = of_tile.len();
            let factors = FloatTile {
                rows: rows.dwords[of_tile.start * rows.stride..].as_ptr(),
                n_rows: m,
                stride: rows.stride,
                n_dwords: rows.n_in.div_ceil(S::FLOATS_PER_DWORD),
                fetches: true,
            };
            let (first, second) = (&mut first[..tile], &mut second[..tile]);
            // SAFETY: the caller's promise.
            unsafe {
                epilogue.fetch(simd, of_tile.clone());
                if n_panels == 1 {
                    factors.products::<S, 1>(simd, amx.as_ref(), [panels[0]], [&mut *first]);
                } else {
                    factors.products::<S, 2>(simd, amx.as_ref(), panels, [&mut *first, &mut *second]);
                }
            }
            // SAFETY: the caller's promise.
            unsafe { epilogue.take(simd, of_tile, [&first[..m], &second[..m]]) };
        }
    }
}

impl FloatTile {
    /// The products with the rows of `P` panels of as many dwords: `sums[p][i][j]` is that of row `i` with row
    /// `j` of panel `p`.
    ///
    /// # Safety
    /// As [`Simd`]; rows and panels can be read, and there is room for the sums, with AMX up to whole tiles.
    #[inline(always)]
    pub unsafe fn products<S: Simd, const P: usize>(
        self,
        simd: S,
        amx: Option<&amx::TileConfig>,
        panels: [*const f32; P],
        sums: [&mut [[f32; LANES]]; P],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(amx) = amx {
                return amx::float_products(amx, self, panels, sums);
            }
            let sums = sums.map(|sums| sums.as_mut_ptr());
            let (tile_rows, tile_panels) = S::FLOAT_TILE;
            let n_tiles = self.n_rows.div_ceil(tile_rows);
            let edge = |idx: usize| idx * self.n_rows / n_tiles;
            for idx in 0..n_tiles {
                let (start, m) = (edge(idx), edge(idx + 1) - edge(idx));
                let tile = Self { rows: self.rows.add(start * self.stride), n_rows: m, ..self };
                let sums = sums.map(|sums| sums.add(start));
                if P <= tile_panels {
                    tile.of_rows::<S, P>(simd, panels, sums);
                } else {
                    for p in 0..P {
                        tile.of_rows::<S, 1>(simd, [panels[p]], [sums[p]]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn of_rows<S: Simd, const P: usize>(
        self,
        simd: S,
        panels: [*const f32; P],
        sums: [*mut [f32; LANES]; P],
    ) {
        macro_rules! tile {
            ($($m:literal),*) => {
                match self.n_rows {
                    $($m if $m <= S::FLOAT_TILE.0 && self.fetches => self.tile::<S, $m, P, true>(simd, panels, sums),
                    $m if $m <= S::FLOAT_TILE.0 => self.tile::<S, $m, P, false>(simd, panels, sums),)*
                    _ => unreachable!("a tile of more rows than there are registers for"),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe { tile!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12) }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const P: usize, const FETCHES: bool>(
        self,
        simd: S,
        panels: [*const f32; P],
        to: [*mut [f32; LANES]; P],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[simd.splat(0.0); P]; M];
            for unit in 0..self.n_dwords {
                if FETCHES {
                    panels.iter().for_each(|panel| {
                        simd.prefetch_l1(panel.wrapping_add((unit + DWORDS_AHEAD) * LANES).cast());
                    });
                }
                let weights = panels.map(|panel| simd.load(panel.add(unit * LANES)));
                for m in 0..M {
                    let of_row = self.rows.add(m * self.stride + unit);
                    for p in 0..P {
                        sums[m][p] = simd.dot_dwords(sums[m][p], weights[p], of_row);
                    }
                }
            }
            for m in 0..M {
                for p in 0..P {
                    simd.store(sums[m][p], to[p].add(m).cast());
                }
            }
        }
    }
}
