//! Products of rows of activations with matrices, with what comes before and after them in the same
//! go: a norm in front, a bias, a gate or a residual behind.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{Activations, Norm};
use super::isa::Isa;
use super::pool;
use super::shared_rows::SharedMut;
use super::simd::{Kernel, LANES, Simd, dispatch, exp, tanh};
use super::weights::{MAX_TILE_ROWS, PANEL_ROWS, PackedMatrix};
use super::wide;

/// A matrix and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct Weighted<'a> {
    pub matrix: &'a PackedMatrix,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

/// What a gate is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh formula.
    GeluTanh,
    Tanh,
}

/// What becomes of the products.
#[derive(Debug, Clone, Copy)]
pub enum Products<'a> {
    /// Those of several matrices, side by side.
    SideBySide(&'a [Weighted<'a>]),
    /// `gate(x) * up(x)`
    Gated { gate: Weighted<'a>, up: Weighted<'a>, function: Gate },
    /// Those of one matrix, to be added to something.
    Added(Weighted<'a>),
}

/// Bytes of activations that one pass over the matrices uses, so that they stay in the second-level
/// cache.
const BLOCK_BYTES: usize = 512 << 10;

/// Pieces of work for each thread: few, since sharing out costs, and several, since cores are not
/// always equally fast.
const PIECES_PER_THREAD: usize = 8;

impl Products<'_> {
    pub(super) fn matrices(&self) -> impl Iterator<Item = &Weighted<'_>> {
        let (first, second, several) = match self {
            Self::SideBySide(several) => (None, None, *several),
            Self::Gated { gate, up, .. } => (Some(gate), Some(up), &[][..]),
            Self::Added(weighted) => (Some(weighted), None, &[][..]),
        };
        several.iter().chain(first).chain(second)
    }

    /// Length of a row of the result.
    pub(super) fn n_out(&self) -> usize {
        match self {
            Self::SideBySide(several) => several.iter().map(|weighted| weighted.matrix.n_out()).sum(),
            Self::Gated { gate, .. } => gate.matrix.n_out(),
            Self::Added(weighted) => weighted.matrix.n_out(),
        }
    }

    fn n_panels(&self) -> usize {
        match self {
            Self::SideBySide(several) => several.iter().map(|weighted| weighted.matrix.n_panels()).sum(),
            Self::Gated { gate, .. } => gate.matrix.n_panels(),
            Self::Added(weighted) => weighted.matrix.n_panels(),
        }
    }

    /// Pairs of panels: neighbours, or those of gate and up.
    fn n_pairs(&self) -> usize {
        match self {
            Self::Gated { gate, .. } => gate.matrix.n_panels(),
            _ => self.matrices().map(|weighted| weighted.matrix.n_panels().div_ceil(2)).sum(),
        }
    }

    /// A pair's first column of the result, and its panels; a matrix's last may be alone.
    fn pair(&self, mut idx: usize) -> (usize, (&Weighted<'_>, usize), Option<(&Weighted<'_>, usize)>) {
        if let Self::Gated { gate, up, .. } = self {
            return (idx * PANEL_ROWS, (gate, idx), Some((up, idx)));
        }
        let mut column = 0;
        for weighted in self.matrices() {
            let n_panels = weighted.matrix.n_panels();
            let panel = 2 * idx;
            if panel < n_panels {
                let second = (panel + 1 < n_panels).then_some((weighted, panel + 1));
                return (column + panel * PANEL_ROWS, (weighted, panel), second);
            }
            idx -= n_panels.div_ceil(2);
            column += weighted.matrix.n_out();
        }
        unreachable!("a pair beyond the last matrix")
    }

    /// Whether many rows may meet two panels at a time.
    fn suit_many_rows(&self) -> bool {
        let same = |gate: &Weighted, up: &Weighted| gate.matrix.format() == up.matrix.format();
        self.matrices().all(|weighted| weighted.matrix.format().is_quantized())
            && !matches!(self, Self::Gated { gate, up, .. } if !same(gate, up))
    }
}

/// `products` of the rows of `x`, each `n_in` long and first passed through `norm`; the result is
/// `[n_rows, n_out]`, added to `residual` where there is one.
///
/// # Panics
/// When a length does not fit the others.
pub fn linear(
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<Norm>,
    products: &Products,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let n_rows = x.len() / n_in;
    let n_out = products.n_out();
    assert!(x.len() == n_rows * n_in, "{} numbers are no rows of {n_in}", x.len());
    assert!(
        products.matrices().all(|weighted| weighted.bias.is_none_or(|b| b.len() == weighted.matrix.n_out()))
    );
    if let Products::Gated { gate, up, .. } = products {
        assert_eq!(gate.matrix.n_out(), up.matrix.n_out());
    }
    assert!(residual.is_none_or(|residual| residual.len() == n_rows * n_out));
    let mut y = Vec::with_capacity(n_rows * n_out);
    let result =
        Product { n_out, numbers: SharedMut::new(&mut y.spare_capacity_mut()[..n_rows * n_out]), residual };
    if wide::pays(isa, n_rows) && products.suit_many_rows() {
        many_rows(isa, x, n_in, norm.as_ref(), products, &result);
    } else {
        few_rows(isa, x, n_in, norm.as_ref(), products, &result);
    }
    // SAFETY: every panel has been multiplied with every row, and all their numbers were written.
    unsafe { y.set_len(n_rows * n_out) };
    y
}

/// Where the products go.
struct Product<'a> {
    n_out: usize,
    numbers: SharedMut<'a, MaybeUninit<f32>>,
    residual: Option<&'a [f32]>,
}

impl Product<'_> {
    /// Writes a panel's part of some rows, from `column` on.
    ///
    /// # Safety
    /// Nobody else writes it.
    unsafe fn write(&self, rows: Range<usize>, column: usize, width: usize, tile: &[[f32; LANES]]) {
        for (row, tile) in rows.zip(tile) {
            let start = row * self.n_out + column;
            // SAFETY: the caller's promise.
            let y = unsafe { self.numbers.slice(start, width) };
            let residual = self.residual.map(|residual| &residual[start..start + width]);
            // A whole panel's width is known beforehand, which is much faster.
            match (<&mut [_; LANES]>::try_from(&mut *y), residual) {
                (Ok(y), None) => *y = tile.map(MaybeUninit::new),
                (Ok(y), Some(residual)) => {
                    for i in 0..LANES {
                        y[i].write(tile[i] + residual[i]);
                    }
                }
                (Err(_), None) => {
                    y.write_copy_of_slice(&tile[..width]);
                }
                (Err(_), Some(residual)) => {
                    for ((y, product), residual) in y.iter_mut().zip(tile).zip(residual) {
                        y.write(product + residual);
                    }
                }
            }
        }
    }
}

/// Multiplies two panels at a time with all rows.
fn many_rows(isa: Isa, x: &[f32], n_in: usize, norm: Option<&Norm>, products: &Products, result: &Product) {
    let rows = wide::Rows::new(isa, x, n_in, norm);
    let (n_blocks, n_pairs) = (rows.n_blocks(), products.n_pairs());
    pool::run(|team| {
        let at_once = n_pairs.div_ceil(PIECES_PER_THREAD * team.n_threads());
        for piece in team.share(n_blocks * n_pairs, at_once).flatten() {
            let (block, pair) = (piece / n_pairs, piece % n_pairs);
            let (column, (first, panel), second) = products.pair(pair);
            let mut panels = [(first.matrix, panel); 2];
            let mut n_panels = 1;
            if let Some((second, panel)) = second {
                panels[1] = (second.matrix, panel);
                n_panels = 2;
            }
            rows.products(isa, block, &panels[..n_panels], |rows, [tile, other]| {
                first.add_bias(panel, tile);
                if let Some((second, panel)) = second {
                    second.add_bias(panel, other);
                }
                if let Products::Gated { function, .. } = *products {
                    // SAFETY: the instructions are there.
                    unsafe { dispatch(isa, GateTile { function, tile, factors: other }) };
                } else if let Some((second, panel)) = second {
                    // SAFETY: each pair of panels of each block is claimed once.
                    unsafe { result.write(rows.clone(), column + PANEL_ROWS, second.width(panel), other) };
                }
                // SAFETY: as above.
                unsafe { result.write(rows, column, first.width(panel), tile) };
            });
        }
    });
    rows.put_back();
}

/// Multiplies the weights as they are read.
fn few_rows(isa: Isa, x: &[f32], n_in: usize, norm: Option<&Norm>, products: &Products, result: &Product) {
    let n_rows = x.len() / n_in;
    let n_panels = products.n_panels();
    let wants = |quantized: bool| {
        products.matrices().any(|weighted| weighted.matrix.format().is_quantized() == quantized)
    };
    let mut activations = Activations::take(n_rows, n_in, wants(false), wants(true));
    {
        let filling = activations.shared();
        let n_tiles = n_rows.div_ceil(MAX_TILE_ROWS);
        // SAFETY: each tile is filled once.
        let fill = |tile| unsafe { filling.fill(isa, tile, x, norm) };
        if n_tiles == 1 {
            fill(0);
        } else {
            pool::run(|team| team.share(n_tiles, 1).flatten().for_each(fill));
        }
    }
    let block_rows = (BLOCK_BYTES / (3 * n_in)).next_multiple_of(MAX_TILE_ROWS).min(n_rows);
    let n_blocks = n_rows.div_ceil(block_rows.max(1));
    pool::run(|team| {
        let n_pieces = n_blocks * n_panels;
        let at_once = n_panels.div_ceil(PIECES_PER_THREAD * team.n_threads());
        for piece in team.share(n_pieces, at_once).flatten() {
            let (block, panel) = (piece / n_panels, piece % n_panels);
            let end = n_rows.min((block + 1) * block_rows);
            for start in (block * block_rows..end).step_by(MAX_TILE_ROWS) {
                let rows = start..end.min(start + MAX_TILE_ROWS);
                let mut tile = [[0.0; LANES]; MAX_TILE_ROWS];
                let tile = &mut tile[..rows.len()];
                // Whoever comes after finds the panel in the cache.
                let fetches = start == block * block_rows;
                let (column, width) = products.tile(isa, panel, &activations, rows.clone(), tile, fetches);
                // SAFETY: each panel of each block is claimed once.
                unsafe { result.write(rows, column, width, tile) };
            }
        }
    });
    activations.put_back();
}

impl Products<'_> {
    /// Computes a panel's part of some rows; gives its first column of the result and its width.
    fn tile(
        &self,
        isa: Isa,
        panel: usize,
        x: &Activations,
        rows: Range<usize>,
        tile: &mut [[f32; LANES]],
        fetches: bool,
    ) -> (usize, usize) {
        match self {
            Self::SideBySide(several) => {
                let (mut panel, mut column) = (panel, 0);
                for weighted in *several {
                    if panel < weighted.matrix.n_panels() {
                        let (start, width) = weighted.tile(isa, panel, x, rows, tile, fetches);
                        return (column + start, width);
                    }
                    panel -= weighted.matrix.n_panels();
                    column += weighted.matrix.n_out();
                }
                unreachable!("a panel beyond the last matrix")
            }
            Self::Gated { gate, up, function } => {
                let place = gate.tile(isa, panel, x, rows.clone(), tile, fetches);
                let mut factors = [[0.0; LANES]; MAX_TILE_ROWS];
                let factors = &mut factors[..tile.len()];
                up.tile(isa, panel, x, rows, factors, fetches);
                // SAFETY: the instructions are there.
                unsafe { dispatch(isa, GateTile { function: *function, tile, factors }) };
                place
            }
            Self::Added(weighted) => weighted.tile(isa, panel, x, rows, tile, fetches),
        }
    }
}

impl Weighted<'_> {
    fn tile(
        &self,
        isa: Isa,
        panel: usize,
        x: &Activations,
        rows: Range<usize>,
        tile: &mut [[f32; LANES]],
        fetches: bool,
    ) -> (usize, usize) {
        self.matrix.panel_products(isa, panel, x, rows, tile, fetches);
        self.add_bias(panel, tile);
        (panel * PANEL_ROWS, self.width(panel))
    }

    /// Rows that a panel has.
    fn width(&self, panel: usize) -> usize {
        PANEL_ROWS.min(self.matrix.n_out() - panel * PANEL_ROWS)
    }

    fn add_bias(&self, panel: usize, tile: &mut [[f32; LANES]]) {
        if let Some(bias) = self.bias {
            let bias = &bias[panel * PANEL_ROWS..][..self.width(panel)];
            for row in tile {
                for (product, bias) in row.iter_mut().zip(bias) {
                    *product += bias;
                }
            }
        }
    }
}

/// `gate(tile) * factors`
struct GateTile<'a> {
    function: Gate,
    tile: &'a mut [[f32; LANES]],
    factors: &'a [[f32; LANES]],
}

impl Kernel for GateTile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (gate, factors) in self.tile.iter_mut().zip(self.factors) {
            // SAFETY: arrays of a vector's length.
            unsafe {
                let x = S::load(gate.as_ptr());
                let passed = match self.function {
                    Gate::Silu => silu::<S>(x),
                    Gate::Gelu => gelu::<S>(x),
                    Gate::GeluTanh => gelu_tanh::<S>(x),
                    Gate::Tanh => tanh::<S>(x),
                };
                S::store(S::mul(passed, S::load(factors.as_ptr())), gate.as_mut_ptr());
            }
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
unsafe fn silu<S: Simd>(x: S::Floats) -> S::Floats {
    // SAFETY: the processor has the instructions.
    unsafe {
        let one = S::splat(1.0);
        S::div(x, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`, which is `x / (1 + e^-2a)` for that `a`.
#[inline(always)]
unsafe fn gelu_tanh<S: Simd>(x: S::Floats) -> S::Floats {
    // SAFETY: the processor has the instructions.
    unsafe {
        let cubic = S::mul_add(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
        let minus_2a = S::mul(S::mul(x, cubic), S::splat(-2.0 * 0.797_884_6));
        S::div(x, S::add(S::splat(1.0), exp::<S>(minus_2a)))
    }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`. The error function is formula 7.1.26 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions", right to 1.5e-7.
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::Floats) -> S::Floats {
    // SAFETY: the processor has the instructions.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let magnitude = S::mul(S::max(x, S::sub(zero, x)), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(one, S::mul_add(magnitude, S::splat(0.327_591_1), one));
        let mut sum = S::splat(1.061_405_4);
        for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6] {
            sum = S::mul_add(sum, t, S::splat(coefficient));
        }
        let square = S::mul(magnitude, magnitude);
        // 1 - erf of the magnitude, halved: what is left of x, or of nothing where x is negative.
        let rest = S::mul(S::mul(S::mul(sum, t), exp::<S>(S::sub(zero, square))), S::splat(0.5));
        S::sub(S::max(x, zero), S::mul(S::mul(magnitude, S::splat(std::f32::consts::SQRT_2)), rest))
    }
}
