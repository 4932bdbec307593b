//! Products of floats: of rows of activations with panels of sixteen rows of weights, or of queries with
//! keys.
//!
//! Numbers lie in units of four bytes: one float32, or two bfloat16 where the processor multiplies these
//! twice as fast. A row is its units one after the other, a panel the units of its sixteen rows side by side,
//! which is also how the tiles of AMX want them. Sums are float32.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{FloatTile, TILE_UNITS};
use super::super::norm::{Norm, Transform};
use super::super::simd::{Kernel, LANES, Simd, dispatch_float};
use super::super::threads::disjoint::SharedMut;
use super::super::threads::pool;
use super::epilogue::{Panel, Then};

/// Rows of a block.
const BLOCK_ROWS: usize = 64;

/// Blocks that meet a panel before the next does: so many stay in the second-level cache.
pub const BLOCKS_AT_ONCE: usize = 4;

/// Units of a panel that are fetched ahead.
const UNITS_AHEAD: usize = 24;

/// Units that `n` numbers take with what fills them up.
pub fn padded_units(n: usize, unit_len: usize) -> usize {
    n.next_multiple_of(TILE_UNITS * unit_len) / unit_len
}

/// Units from a row of `n` numbers to the next, which should not share the same few places of a cache.
fn stride_of(n: usize, unit_len: usize) -> usize {
    const PAGE_QUARTER: usize = 256;
    let n_units = padded_units(n, unit_len);
    if n_units.is_multiple_of(PAGE_QUARTER) { n_units + TILE_UNITS } else { n_units }
}

/// Rows of activations as units.
#[derive(Debug, Default)]
pub struct Rows {
    n_rows: usize,
    n_in: usize,
    in_bf16: bool,
    /// Units from a row to the next.
    stride: usize,
    units: Vec<f32>,
}

thread_local! {
    /// Room for the next rows, and for sums.
    static SPARE_ROWS: RefCell<Vec<Vec<f32>>> = RefCell::default();
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl Rows {
    /// What `norm` makes of the rows of `x`, each `n_in` long, in bfloat16 or not.
    pub fn new(isa: Isa, in_bf16: bool, x: &[f32], n_in: usize, norm: Option<&Norm>) -> Self {
        if let Some(norm) = norm {
            norm.check(n_in);
        }
        let mut rows = Self::room(in_bf16, x.len() / n_in, n_in);
        let (n_rows, stride) = (rows.n_rows, rows.stride);
        {
            let units = SharedMut::new(&mut rows.units[..n_rows * stride]);
            let fill = |row: usize| {
                // SAFETY: each row is claimed once.
                let to = unsafe { units.slice(row * stride, stride) };
                let fill = FillRow { x: &x[row * n_in..][..n_in], norm, to };
                dispatch_float(isa, in_bf16, fill);
            };
            const AT_ONCE: usize = 8;
            const FEW_NUMBERS: usize = 1 << 15;
            if n_rows * n_in <= FEW_NUMBERS {
                (0..n_rows).for_each(fill);
            } else {
                pool::run(|team| team.share(n_rows, AT_ONCE).flatten().for_each(fill));
            }
        }
        rows
    }

    /// Rows to be written, with zeros behind what will be.
    pub fn zeros(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let mut rows = Self::room(in_bf16, n_rows, n_in);
        let n_written = n_in.next_multiple_of(LANES) / if in_bf16 { 2 } else { 1 };
        for row in rows.units[..n_rows * rows.stride].chunks_exact_mut(rows.stride) {
            row[n_written..].fill(0.0);
        }
        rows
    }

    /// Rows that hold whatever.
    fn room(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let stride = stride_of(n_in, if in_bf16 { 2 } else { 1 });
        let mut units = SPARE_ROWS.with_borrow_mut(Vec::pop).unwrap_or_default();
        // They only grow: what is there need not be written again. Tiles of AMX are read as if they were
        // full.
        units.resize(units.len().max((n_rows + amx::UNIT_ROWS) * stride), 0.0);
        Self { n_rows, n_in, in_bf16, stride, units }
    }

    /// From a row to the next, and all units.
    pub fn units_mut(&mut self) -> (usize, SharedMut<'_, MaybeUninit<f32>>) {
        let units = self.units.as_mut_ptr().cast();
        // SAFETY: what is initialised may be taken for what need not be, as long as nothing else is written.
        (self.stride, SharedMut::new(unsafe { std::slice::from_raw_parts_mut(units, self.units.len()) }))
    }

    /// Leaves the room to the next.
    pub fn put_back(self) {
        SPARE_ROWS.with_borrow_mut(|spare| spare.push(self.units));
    }

    /// How many pieces the rows are cut into.
    pub fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    /// Computes the products of a block of the rows with one or two panels of units; `then` gets some of the
    /// rows and for each panel their products with its rows, until it has had all of the block.
    ///
    /// # Panics
    /// When a panel is not there, of another length, or of other units.
    pub fn products(
        &self,
        isa: Isa,
        amx: &mut Option<amx::Configured>,
        block: usize,
        panels: &[Panel],
        then: &impl Then,
    ) {
        assert!(matches!(panels.len(), 1 | 2) && block < self.n_blocks());
        assert!(panels.iter().all(|(matrix, _)| matrix.n_in() == self.n_in));
        let units = |(matrix, panel): &Panel| matrix.panel_units(*panel, self.in_bf16).as_ptr().cast();
        let rows = block * self.n_rows / self.n_blocks()..(block + 1) * self.n_rows / self.n_blocks();
        let panels: [*const f32; 2] = [units(&panels[0]), panels.get(1).map_or(std::ptr::null(), units)];
        let n_panels = 1 + usize::from(!panels[1].is_null());
        if amx.is_none() {
            *amx = amx::Configured::for_units(isa, self.in_bf16);
        }
        SUMS.with_borrow_mut(|sums| {
            let kernel = BlockProducts { rows: self, of_block: rows, panels, n_panels, amx, sums, then };
            dispatch_float(isa, self.in_bf16, kernel);
        });
    }
}

struct FillRow<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    to: &'a mut [f32],
}

impl Kernel for FillRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, to } = self;
        let n_whole = x.len() / LANES * LANES;
        // SAFETY: the caller's promise: the row's units and those that fill it up.
        unsafe {
            let transform = Transform::new(simd, x, norm);
            let to = to.as_mut_ptr();
            for start in (0..n_whole).step_by(LANES) {
                simd.store_dwords(transform.apply(x, start), to.add(start / S::FLOATS_PER_DWORD));
            }
            let end = padded_units(x.len(), S::FLOATS_PER_DWORD) * S::FLOATS_PER_DWORD;
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
struct BlockProducts<'a, T> {
    rows: &'a Rows,
    of_block: Range<usize>,
    panels: [*const f32; 2],
    n_panels: usize,
    amx: &'a Option<amx::Configured>,
    sums: &'a mut [Vec<[f32; LANES]>; 2],
    then: &'a T,
}

impl<T: Then> Kernel for BlockProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, of_block, panels, n_panels, amx, sums: [first, second], then } = self;
        let tile = if amx.is_some() { amx::UNIT_ROWS } else { S::FLOAT_TILE.0 };
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
                rows: rows.units[of_tile.start * rows.stride..].as_ptr(),
                n_rows: m,
                stride: rows.stride,
                n_units: rows.n_in.div_ceil(S::FLOATS_PER_DWORD),
                fetches: true,
            };
            let (first, second) = (&mut first[..tile], &mut second[..tile]);
            // SAFETY: the caller's promise.
            unsafe {
                then.fetch(simd, of_tile.clone());
                if n_panels == 1 {
                    factors.products::<S, 1>(simd, amx.as_ref(), [panels[0]], [&mut *first]);
                } else {
                    factors.products::<S, 2>(simd, amx.as_ref(), panels, [&mut *first, &mut *second]);
                }
            }
            // SAFETY: the caller's promise.
            unsafe { then.take(simd, of_tile, [&first[..m], &second[..m]]) };
        }
    }
}

impl FloatTile {
    /// The products with the rows of `P` panels of as many units: `sums[p][i][j]` is that of row `i` with row
    /// `j` of panel `p`.
    ///
    /// # Safety
    /// As [`Simd`]; rows and panels can be read, and there is room for the sums, with AMX up to whole tiles.
    #[inline(always)]
    pub unsafe fn products<S: Simd, const P: usize>(
        self,
        simd: S,
        amx: Option<&amx::Configured>,
        panels: [*const f32; P],
        sums: [&mut [[f32; LANES]]; P],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(amx) = amx {
                return amx::unit_products(amx, self, panels, sums);
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
            for unit in 0..self.n_units {
                if FETCHES {
                    panels.iter().for_each(|panel| {
                        simd.prefetch_l1(panel.wrapping_add((unit + UNITS_AHEAD) * LANES).cast());
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
