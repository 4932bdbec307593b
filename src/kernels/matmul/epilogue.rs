//! Epilogues: what is done with the output tile of a matrix product while it is in the L1 cache.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::layout::PANEL_ROWS;
use super::super::simd::{LANES, Simd, load_masked};
use super::super::threads::disjoint::DisjointSlice;
use super::activation_fns::ActivationFn;
use super::projection::{PanelRef, Projection, ResidualWeight};

/// Work items of a product for each thread: few, since claiming costs, and several, since cores are not always
/// equally fast.
pub const ITEMS_PER_THREAD: usize = 8;

/// The consumer of the output tiles of a matrix product.
pub trait Epilogue: Sync {
    /// Prefetches the memory that [`Epilogue::apply`] will write, which is seldom in the cache.
    fn prefetch<S: Simd>(&self, simd: S, rows: Range<usize>);

    /// Consumes the products of some rows with one or two panels.
    ///
    /// # Safety
    /// No other thread writes the results of these rows with these panels.
    unsafe fn apply<S: Simd>(&self, simd: S, rows: Range<usize>, tiles: [&[[f32; LANES]]; 2]);
}

/// The rows that products are written to.
pub struct OutputRows<'a> {
    /// Numbers of a row.
    pub n_out: usize,
    /// Elements of `values` from one row to the next.
    pub stride: usize,
    /// Whether elements are dwords of two bfloat16 instead of float32.
    pub in_bf16: bool,
    /// The elements.
    pub values: DisjointSlice<'a, MaybeUninit<f32>>,
    /// Added to the products: `[n_rows, n_out]`.
    pub residual: Option<&'a [f32]>,
}

impl<'a> OutputRows<'a> {
    /// Contiguous rows of `n_out` float32.
    pub fn for_floats(
        n_out: usize,
        values: DisjointSlice<'a, MaybeUninit<f32>>,
        residual: Option<&'a [f32]>,
    ) -> Self {
        Self { n_out, stride: n_out, in_bf16: false, values, residual }
    }
}

/// The products of some rows with a panel.
type PanelTile<'a> = (PanelRef<'a>, &'a [[f32; LANES]]);

/// An epilogue that adds bias and residual, applies activation function and gate, and stores the results.
pub struct StoreEpilogue<'a> {
    /// The projection that is computed.
    pub projection: &'a Projection<'a>,
    /// The rows that results are written to.
    pub output: &'a OutputRows<'a>,
    /// The first panel's column in the output.
    pub column: usize,
    /// The first panel.
    pub first: PanelRef<'a>,
    /// The second panel: the neighbor of the first, or the panel that a gate multiplies.
    pub second: Option<PanelRef<'a>>,
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

impl Epilogue for StoreEpilogue<'_> {
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Self { output, column, second, .. } = *self;
        let per_dword = if output.in_bf16 { S::FLOATS_PER_DWORD } else { 1 };
        let n_panels = if matches!(self.projection, Projection::Gated { .. }) {
            1
        } else {
            1 + usize::from(second.is_some())
        };
        let n_bytes = n_panels * LANES / per_dword * size_of::<f32>();
        for row in rows {
            let start = output.values.start().wrapping_add(row * output.stride + column / per_dword);
            for offset in (0..n_bytes + LINE_BYTES).step_by(LINE_BYTES) {
                simd.prefetch_l1(start.cast::<u8>().wrapping_add(offset));
            }
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, simd: S, rows: Range<usize>, [tile, other]: [&[[f32; LANES]]; 2]) {
        let Self { projection, output, column, first, second } = *self;
        let scale =
            if let Projection::Residual(ResidualWeight { scale, .. }) = projection { *scale } else { 1.0 };
        let store = TileStore { output, column, function: None, tile: (first, tile), factors: None, scale };
        let neighbor = second.map(|second| (second, other));
        // SAFETY: no other thread writes the results of these rows with these panels, as the trait requires.
        unsafe {
            // One arm for each form, so that each is compiled without the branches of the others.
            match (*projection, neighbor) {
                (Projection::Gated { function, .. }, Some(factors)) => {
                    let store = TileStore { function: Some(function), factors: Some(factors), ..store };
                    store.store_tile(simd, rows);
                }
                (Projection::Activated(_, function), neighbor) => {
                    let store = TileStore { function: Some(function), ..store };
                    store.store_tile(simd, rows.clone());
                    if let Some(tile) = neighbor {
                        TileStore { column: column + PANEL_ROWS, tile, ..store }.store_tile(simd, rows);
                    }
                }
                (_, neighbor) => {
                    store.store_tile(simd, rows.clone());
                    if let Some(tile) = neighbor {
                        TileStore { column: column + PANEL_ROWS, tile, ..store }.store_tile(simd, rows);
                    }
                }
            }
        }
    }
}

/// The bias of a panel; zeros if it has none.
#[inline(always)]
fn load_bias<S: Simd>(simd: S, panel: PanelRef) -> S::Floats {
    panel.bias().map_or(simd.splat(0.0), |bias| load_masked(simd, bias, 0))
}

/// Finishes and stores the products of some rows with one panel: `function(tile + bias) * (factors + bias)`, or
/// `scale * (tile + bias) + residual`.
struct TileStore<'a> {
    output: &'a OutputRows<'a>,
    column: usize,
    function: Option<ActivationFn>,
    tile: PanelTile<'a>,
    factors: Option<PanelTile<'a>>,
    /// Factor of what is added to a residual.
    scale: f32,
}

impl TileStore<'_> {
    /// Stores the results of `rows`.
    ///
    /// # Safety
    /// No other thread writes these rows' results of this panel.
    #[inline(always)]
    unsafe fn store_tile<S: Simd>(&self, simd: S, rows: Range<usize>) {
        const AT_ONCE: usize = 4;
        let mut row = 0;
        // SAFETY: the rows are this call's, as this function requires.
        unsafe {
            while row + AT_ONCE <= rows.len() {
                self.store_rows::<S, AT_ONCE>(simd, rows.start, row);
                row += AT_ONCE;
            }
            while row < rows.len() {
                self.store_rows::<S, 1>(simd, rows.start, row);
                row += 1;
            }
        }
    }

    /// Stores the results of `N` rows from `row` of the tile on.
    ///
    /// # Safety
    /// No other thread writes these rows' results of this panel.
    #[inline(always)]
    unsafe fn store_rows<S: Simd, const N: usize>(&self, simd: S, first_row: usize, row: usize) {
        let Self { output, column, function, tile: (panel, tile), factors, scale } = *self;
        let mut x = [load_bias(simd, panel); N];
        for i in 0..N {
            x[i] = simd.add(simd.load_array(&tile[row + i]), x[i]);
        }
        if let Some(function) = function {
            x = function.apply::<S, N>(simd, x, output.in_bf16);
        }
        if let Some((panel, factors)) = factors {
            let bias = load_bias(simd, panel);
            for i in 0..N {
                let factor = simd.add(simd.load_array(&factors[row + i]), bias);
                x[i] = simd.mul(x[i], function.map_or(factor, |function| function.factor(simd, factor)));
            }
        }
        let (width, first_row) = (panel.width(), first_row + row);
        if let Some(residual) = output.residual {
            for i in 0..N {
                let start = (first_row + i) * output.n_out + column;
                let residual = load_masked(simd, &residual[start..start + width], 0);
                x[i] = simd.mul_add(x[i], simd.splat(scale), residual);
            }
        }
        // SAFETY: the rows' results of this panel are this call's, as this function requires; `slice` checks that
        // they lie within the output, and each is as long as what is stored.
        let slice = |i: usize, column: usize, len: usize| unsafe {
            output.values.slice((first_row + i) * output.stride + column, len)
        };
        if output.in_bf16 {
            for i in 0..N {
                let x = if width == LANES { x[i] } else { keep_lanes(simd, x[i], width) };
                let y = slice(i, column / S::FLOATS_PER_DWORD, LANES / S::FLOATS_PER_DWORD);
                // SAFETY: the slice has room for the dwords of a vector.
                unsafe { simd.store_dwords(x, y.as_mut_ptr().cast()) };
            }
        } else if width == LANES {
            for i in 0..N {
                // SAFETY: the slice has room for a vector.
                unsafe { simd.store(x[i], slice(i, column, LANES).as_mut_ptr().cast()) };
            }
        } else {
            for i in 0..N {
                let mut numbers = [0.0; LANES];
                simd.store_array(x[i], &mut numbers);
                slice(i, column, width).write_copy_of_slice(&numbers[..width]);
            }
        }
    }
}

/// Sets the lanes from `width` on to zero.
#[inline(always)]
fn keep_lanes<S: Simd>(simd: S, x: S::Floats, width: usize) -> S::Floats {
    let mut numbers = [0.0; LANES];
    simd.store_array(x, &mut numbers);
    numbers[width..].fill(0.0);
    simd.load_array(&numbers)
}
