//! Epilogues: what is done with the output tile of a matrix product while it is in registers or the first-level cache.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::layout::PANEL_ROWS;
use super::super::simd::{LANES, Simd, load_masked};
use super::super::threads::disjoint::DisjointSlice;
use super::super::weights::PackedMatrix;
use super::activation_fns::ActivationFn;
use super::{Projection, WeightWithBias};

/// A matrix's panel.
pub type Panel<'a> = (&'a PackedMatrix, usize);

/// What becomes of products.
pub trait Epilogue: Sync {
    /// Fetches the places that [`Epilogue::take`] will write to, which are seldom in the cache.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn fetch<S: Simd>(&self, simd: S, rows: Range<usize>);

    /// Takes the products of some rows with one or two panels.
    ///
    /// # Safety
    /// As [`Simd`], and nobody else takes those of these rows with these panels.
    unsafe fn take<S: Simd>(&self, simd: S, rows: Range<usize>, products: [&[[f32; LANES]]; 2]);
}

/// Where the products go.
pub struct OutputRows<'a> {
    pub n_out: usize,
    /// From a row to the next.
    pub stride: usize,
    /// Whether they become units of two bfloat16 instead of float32.
    pub in_bf16: bool,
    pub numbers: DisjointSlice<'a, MaybeUninit<f32>>,
    pub residual: Option<&'a [f32]>,
}

impl<'a> OutputRows<'a> {
    /// Rows of `n_out` numbers, one behind the other.
    pub fn of_floats(
        n_out: usize,
        numbers: DisjointSlice<'a, MaybeUninit<f32>>,
        residual: Option<&'a [f32]>,
    ) -> Self {
        Self { n_out, stride: n_out, in_bf16: false, numbers, residual }
    }
}

/// A panel of a matrix, with what is added to its products.
#[derive(Clone, Copy)]
pub struct PanelRef<'a> {
    pub weighted: &'a WeightWithBias<'a>,
    pub panel: usize,
}

impl<'a> PanelRef<'a> {
    pub fn key(self) -> Panel<'a> {
        (self.weighted.matrix, self.panel)
    }

    /// The panel so many further.
    pub fn after(self, n: usize) -> Self {
        Self { panel: self.panel + n, ..self }
    }

    /// Rows of the matrix that it has.
    pub fn width(self) -> usize {
        PANEL_ROWS.min(self.weighted.matrix.n_out() - self.panel * PANEL_ROWS)
    }

    pub fn bias(self) -> Option<&'a [f32]> {
        self.weighted.bias.map(|bias| &bias[self.panel * PANEL_ROWS..][..self.width()])
    }
}

/// Projection of some rows with a panel.
pub type PanelTile<'a> = (PanelRef<'a>, &'a [[f32; LANES]]);

/// Makes results of products with one or two panels and writes them.
pub struct StoreEpilogue<'a> {
    pub products: &'a Projection<'a>,
    pub result: &'a OutputRows<'a>,
    /// Where those of the first panel go.
    pub column: usize,
    pub first: PanelRef<'a>,
    pub second: Option<PanelRef<'a>>,
}

/// Bytes of a line of the cache.
const LINE_BYTES: usize = 64;

impl Epilogue for StoreEpilogue<'_> {
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Self { result, column, second, .. } = *self;
        let unit_len = if result.in_bf16 { S::FLOATS_PER_DWORD } else { 1 };
        let n_panels = if matches!(self.products, Projection::Gated { .. }) {
            1
        } else {
            1 + usize::from(second.is_some())
        };
        let n_bytes = n_panels * LANES / unit_len * size_of::<f32>();
        for row in rows {
            let of_row = result.numbers.start().wrapping_add(row * result.stride + column / unit_len);
            for start in (0..n_bytes + LINE_BYTES).step_by(LINE_BYTES) {
                simd.prefetch_l1(of_row.cast::<u8>().wrapping_add(start));
            }
        }
    }

    #[inline(always)]
    unsafe fn take<S: Simd>(&self, simd: S, rows: Range<usize>, [tile, other]: [&[[f32; LANES]]; 2]) {
        let Self { products, column, first, second, .. } = *self;
        // SAFETY: the caller's promise; products are vectors.
        unsafe {
            match (*products, second) {
                (Projection::Gated { function, .. }, Some(second)) => {
                    let factors = Some((second, other));
                    self.write(simd, rows, column, (first, tile), Some(function), factors);
                }
                (products, second) => {
                    let function = match products {
                        Projection::Activated(_, function) => Some(function),
                        _ => None,
                    };
                    self.write(simd, rows.clone(), column, (first, tile), function, None);
                    if let Some(second) = second {
                        self.write(simd, rows, column + PANEL_ROWS, (second, other), function, None);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn bias_of<S: Simd>(simd: S, panel: PanelRef) -> S::Floats {
    panel.bias().map_or(simd.splat(0.0), |bias| load_masked(simd, bias, 0))
}

impl StoreEpilogue<'_> {
    /// Writes a panel's products with some rows and its bias, through a function, times others.
    ///
    /// # Safety
    /// As [`Epilogue::take`].
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        column: usize,
        of: PanelTile,
        function: Option<ActivationFn>,
        factors: Option<PanelTile>,
    ) {
        const AT_ONCE: usize = 4;
        let mut row = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while row + AT_ONCE <= rows.len() {
                self.write_rows::<S, AT_ONCE>(simd, rows.start, row, column, of, function, factors);
                row += AT_ONCE;
            }
            while row < rows.len() {
                self.write_rows::<S, 1>(simd, rows.start, row, column, of, function, factors);
                row += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn write_rows<S: Simd, const N: usize>(
        &self,
        simd: S,
        first_row: usize,
        row: usize,
        column: usize,
        (panel, tile): PanelTile,
        function: Option<ActivationFn>,
        factors: Option<PanelTile>,
    ) {
        let result = self.result;
        let width = panel.width();
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [bias_of(simd, panel); N];
            for i in 0..N {
                x[i] = simd.add(simd.load(tile[row + i].as_ptr()), x[i]);
            }
            if let Some(function) = function {
                x = function.of::<S, N>(simd, x, result.in_bf16);
            }
            if let Some((panel, factors)) = factors {
                let bias = bias_of(simd, panel);
                for i in 0..N {
                    x[i] = simd.mul(x[i], simd.add(simd.load(factors[row + i].as_ptr()), bias));
                }
            }
            for i in 0..N {
                let row = first_row + row + i;
                if let Some(residual) = result.residual {
                    let of_row = &residual[row * result.n_out..(row + 1) * result.n_out];
                    x[i] = simd.add(x[i], load_masked(simd, of_row, column));
                }
                if width == LANES {
                    let start = row * result.stride;
                    if result.in_bf16 {
                        let y = result
                            .numbers
                            .slice(start + column / S::FLOATS_PER_DWORD, LANES / S::FLOATS_PER_DWORD);
                        simd.store_dwords(x[i], y.as_mut_ptr().cast());
                    } else {
                        let y = result.numbers.slice(start + column, LANES);
                        simd.store(x[i], y.as_mut_ptr().cast());
                    }
                } else {
                    self.write_part(simd, x[i], row, column, width);
                }
            }
        }
    }

    /// Writes a row of the last panel.
    #[inline(always)]
    unsafe fn write_part<S: Simd>(&self, simd: S, x: S::Floats, row: usize, column: usize, width: usize) {
        let result = self.result;
        let start = row * result.stride;
        let mut numbers = [0.0; LANES];
        // SAFETY: the caller's promise.
        unsafe {
            simd.store(x, numbers.as_mut_ptr());
            if result.in_bf16 {
                numbers[width..].fill(0.0);
                let y =
                    result.numbers.slice(start + column / S::FLOATS_PER_DWORD, LANES / S::FLOATS_PER_DWORD);
                simd.store_dwords(simd.load(numbers.as_ptr()), y.as_mut_ptr().cast());
            } else {
                result.numbers.slice(start + column, width).write_copy_of_slice(&numbers[..width]);
            }
        }
    }
}
