//! GEMM with floats: rows of activations with panels of weights, or queries with keys.
//!
//! Operands are made of dwords: one float32, or two bfloat16 where the processor multiplies those twice as fast.
//! A row is its dwords in order; a panel holds the dwords of its sixteen rows side by side, as AMX tiles want
//! them. Sums are float32.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{FloatTile, TILE_DWORDS};
use super::super::norm::{Norm, Transform};
use super::super::simd::{Kernel, LANES, Simd, dispatch_float, with_rows};
use super::super::threads::disjoint::DisjointSlice;
use super::super::threads::pool;
use super::epilogue::Epilogue;
use super::gemm::{GemmActivations, PanelPair};
use super::projection::{InputRows, Panel};

/// FloatActivations of a block.
const BLOCK_ROWS: usize = 64;

/// Blocks that are multiplied with a panel before the next panel is: they stay in the L2 cache.
pub const BLOCKS_AT_ONCE: usize = 4;

/// Dwords of a panel row that are prefetched ahead of their use.
const DWORDS_AHEAD: usize = 24;

/// Dwords of `n` numbers, padded to whole AMX tiles.
pub fn padded_dwords(n: usize, floats_per_dword: usize) -> usize {
    n.next_multiple_of(TILE_DWORDS * floats_per_dword) / floats_per_dword
}

/// Dwords from one row of `n` numbers to the next, chosen so that rows do not compete for the same cache sets.
fn stride_of(n: usize, floats_per_dword: usize) -> usize {
    const PAGE_QUARTER: usize = 256;
    let n_dwords = padded_dwords(n, floats_per_dword);
    if n_dwords.is_multiple_of(PAGE_QUARTER) { n_dwords + TILE_DWORDS } else { n_dwords }
}

/// Rows of activations as dwords.
#[derive(Debug, Default)]
pub struct FloatActivations {
    n_rows: usize,
    n_in: usize,
    in_bf16: bool,
    /// Dwords from one row to the next.
    stride: usize,
    dwords: Vec<f32>,
}

thread_local! {
    /// Buffers for the next rows, and for sums.
    static SPARE_DWORDS: RefCell<Vec<Vec<f32>>> = RefCell::default();
    static SUMS: RefCell<[Vec<[f32; LANES]>; 2]> = RefCell::default();
}

impl FloatActivations {
    /// Rounds the rows of `input` to dwords of bfloat16 or float32, after the norm.
    pub fn new(isa: Isa, in_bf16: bool, input: InputRows) -> Self {
        let InputRows { x, n_in, norm } = input;
        if let Some(norm) = norm {
            norm.check_len(n_in);
        }
        let mut rows = Self::with_capacity(in_bf16, input.n_rows(), n_in);
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

    /// Rows to be written, padded with zeros.
    pub fn zeros(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let mut rows = Self::with_capacity(in_bf16, n_rows, n_in);
        let n_written = n_in.next_multiple_of(LANES) / if in_bf16 { 2 } else { 1 };
        for row in rows.dwords[..n_rows * rows.stride].chunks_exact_mut(rows.stride) {
            row[n_written..].fill(0.0);
        }
        rows
    }

    /// Rows with arbitrary contents.
    fn with_capacity(in_bf16: bool, n_rows: usize, n_in: usize) -> Self {
        let stride = stride_of(n_in, if in_bf16 { 2 } else { 1 });
        let mut dwords = SPARE_DWORDS.with_borrow_mut(Vec::pop).unwrap_or_default();
        // Buffers only grow, so that old contents need not be overwritten. AMX reads whole tiles.
        dwords.resize(dwords.len().max((n_rows + amx::FLOAT_TILE_ROWS) * stride), 0.0);
        Self { n_rows, n_in, in_bf16, stride, dwords }
    }

    /// The stride of rows in dwords, and all dwords, to be written.
    pub fn dwords_mut(&mut self) -> (usize, DisjointSlice<'_, MaybeUninit<f32>>) {
        let dwords = self.dwords.as_mut_ptr().cast();
        // SAFETY: the buffer is borrowed exclusively; callers write only initialized dwords.
        (
            self.stride,
            DisjointSlice::new(unsafe { std::slice::from_raw_parts_mut(dwords, self.dwords.len()) }),
        )
    }

    /// Returns the buffer for reuse.
    pub fn recycle(self) {
        SPARE_DWORDS.with_borrow_mut(|spare| spare.push(self.dwords));
    }
}

impl GemmActivations for FloatActivations {
    const BLOCKS_AT_ONCE: usize = BLOCKS_AT_ONCE;

    fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        pairs: &[PanelPair],
    ) {
        assert!(block < self.n_blocks());
        for pair in pairs {
            self.multiply_pair(isa, tile_config, block, pair);
        }
    }
}

impl FloatActivations {
    /// Multiplies a block of rows with a pair of panels.
    fn multiply_pair(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        pair: &PanelPair,
    ) {
        let panels = pair.panels();
        assert!(panels.iter().all(|(matrix, _)| matrix.n_in() == self.n_in));
        let dwords = |(matrix, panel): &Panel| matrix.panel_dwords(*panel, self.in_bf16).as_ptr().cast();
        let rows = block * self.n_rows / self.n_blocks()..(block + 1) * self.n_rows / self.n_blocks();
        let panels: [*const f32; 2] = [dwords(&panels[0]), panels.get(1).map_or(std::ptr::null(), dwords)];
        let n_panels = 1 + usize::from(!panels[1].is_null());
        if tile_config.is_none() {
            *tile_config = amx::TileConfig::for_floats(isa, self.in_bf16);
        }
        SUMS.with_borrow_mut(|sums| {
            let kernel = FloatBlockKernel {
                rows: self,
                of_block: rows,
                panels,
                n_panels,
                tile_config,
                sums,
                epilogue: &pair.epilogue,
            };
            dispatch_float(isa, self.in_bf16, kernel);
        });
    }
}

/// Norms a row and rounds it to dwords; `to` has room for the padded row.
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
        let transform = Transform::new(simd, x, norm);
        let end = padded_dwords(x.len(), S::FLOATS_PER_DWORD) * S::FLOATS_PER_DWORD;
        assert!(to.len() * S::FLOATS_PER_DWORD >= end);
        let to = to.as_mut_ptr();
        // SAFETY: the padded row fits, as asserted.
        unsafe {
            for start in (0..n_whole).step_by(LANES) {
                simd.store_dwords(transform.apply(x, start), to.add(start / S::FLOATS_PER_DWORD));
            }
            for start in (n_whole..end).step_by(LANES) {
                let mut rest = [0.0; LANES];
                if start < x.len() {
                    simd.store_array(transform.apply(x, start), &mut rest);
                    rest[x.len() - start..].fill(0.0);
                }
                simd.store_dwords(simd.load_array(&rest), to.add(start / S::FLOATS_PER_DWORD));
            }
        }
    }
}

/// Multiplies a block of rows with one or two panels, whose dwords and lengths have been checked.
struct FloatBlockKernel<'a, T> {
    rows: &'a FloatActivations,
    of_block: Range<usize>,
    panels: [*const f32; 2],
    n_panels: usize,
    tile_config: &'a Option<amx::TileConfig>,
    sums: &'a mut [Vec<[f32; LANES]>; 2],
    epilogue: &'a T,
}

impl<T: Epilogue> Kernel for FloatBlockKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, of_block, panels, n_panels, tile_config, sums: [first, second], epilogue } = self;
        let tile = if tile_config.is_some() { amx::FLOAT_TILE_ROWS } else { S::FLOAT_TILE.0 };
        for sums in [&mut *first, &mut *second] {
            sums.resize(sums.len().max(tile), [0.0; LANES]);
        }
        // Tiles are evenly cut: a small one would take longer than its share.
        let n_tiles = of_block.len().div_ceil(tile);
        let edge = |idx: usize| of_block.start + idx * of_block.len() / n_tiles;
        for idx in 0..n_tiles {
            let of_tile = edge(idx)..edge(idx + 1);
            let m = of_tile.len();
            let x = FloatTile {
                rows: rows.dwords[of_tile.start * rows.stride..].as_ptr(),
                n_rows: m,
                stride: rows.stride,
                n_dwords: rows.n_in.div_ceil(S::FLOATS_PER_DWORD),
                prefetch: true,
            };
            let (first, second) = (&mut first[..tile], &mut second[..tile]);
            epilogue.prefetch(simd, of_tile.clone());
            // SAFETY: rows and panels are as long as `multiply_block` has checked; sums have room for a tile. The
            // thread has claimed this block with these panels.
            unsafe {
                if n_panels == 1 {
                    x.multiply::<S, 1>(simd, tile_config.as_ref(), [panels[0]], [&mut *first]);
                } else {
                    x.multiply::<S, 2>(simd, tile_config.as_ref(), panels, [&mut *first, &mut *second]);
                }
                epilogue.apply(simd, of_tile, [&first[..m], &second[..m]]);
            }
        }
    }
}

impl FloatTile {
    /// Multiplies the rows with the rows of `P` panels: `sums[p][i][j]` becomes the product of row `i` and row `j`
    /// of panel `p`.
    ///
    /// # Safety
    /// All dwords of rows and panels can be read, with AMX up to whole tiles, and there are sums for as many rows.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd, const P: usize>(
        self,
        simd: S,
        tile_config: Option<&amx::TileConfig>,
        panels: [*const f32; P],
        sums: [&mut [[f32; LANES]]; P],
    ) {
        // SAFETY: rows, panels and sums are those that this function requires, cut into tiles.
        unsafe {
            if let Some(config) = tile_config {
                return amx::multiply_floats(config, self, panels, sums);
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
                    tile.multiply_rows::<S, P>(simd, panels, sums);
                } else {
                    for p in 0..P {
                        tile.multiply_rows::<S, 1>(simd, [panels[p]], [sums[p]]);
                    }
                }
            }
        }
    }

    /// Multiplies as many rows as a tile has.
    ///
    /// # Safety
    /// As [`FloatTile::multiply`].
    #[inline(always)]
    unsafe fn multiply_rows<S: Simd, const P: usize>(
        self,
        simd: S,
        panels: [*const f32; P],
        sums: [*mut [f32; LANES]; P],
    ) {
        // SAFETY: rows, panels and sums are those that this function requires.
        unsafe {
            with_rows!(self.n_rows, M in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] => {
                // Larger tiles than the registers have room for are not compiled.
                match self.prefetch {
                    _ if M > S::FLOAT_TILE.0 => unreachable!("no tile of {M} rows"),
                    true => self.tile::<S, M, P, true>(simd, panels, sums),
                    false => self.tile::<S, M, P, false>(simd, panels, sums),
                }
            })
        }
    }

    /// Multiplies `M` rows, whose sums stay in registers.
    ///
    /// # Safety
    /// As [`FloatTile::multiply`].
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const P: usize, const PREFETCH: bool>(
        self,
        simd: S,
        panels: [*const f32; P],
        to: [*mut [f32; LANES]; P],
    ) {
        // SAFETY: rows, panels and sums are those that this function requires.
        unsafe {
            let mut sums = [[simd.splat(0.0); P]; M];
            for dword in 0..self.n_dwords {
                if PREFETCH {
                    panels.iter().for_each(|panel| {
                        simd.prefetch_l1(panel.wrapping_add((dword + DWORDS_AHEAD) * LANES).cast());
                    });
                }
                let weights = panels.map(|panel| simd.load(panel.add(dword * LANES)));
                for m in 0..M {
                    let of_row = self.rows.add(m * self.stride + dword);
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
