//! Projection of rows of activations with matrices, with what comes before and after them in the same
//! go: a norm in front, a bias, a gate or a residual behind.

use std::mem::MaybeUninit;
use std::ops::Range;

mod activation_fns;
pub(super) mod epilogue;
pub(super) mod gemm_float;
pub(super) mod gemm_int16;
mod gemv;
mod mlp;
pub(super) mod quantize;

pub use self::activation_fns::ActivationFn;
use self::epilogue::{Epilogue, OutputRows, Panel, PanelRef, StoreEpilogue};
use self::gemv::gemv;
pub use self::mlp::mlp;
use super::amx;
use super::isa::Isa;
use super::layout::{MAX_TILE_ROWS, PANEL_ROWS};
use super::norm::Norm;
use super::threads::disjoint::{DisjointSlice, collect_rows};
use super::threads::pool;
use super::weights::{PackedMatrix, WeightFormat};

/// A matrix and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct WeightWithBias<'a> {
    pub matrix: &'a PackedMatrix,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

/// What becomes of the products.
#[derive(Debug, Clone, Copy)]
pub enum Projection<'a> {
    /// Those of several matrices, side by side.
    Concat(&'a [WeightWithBias<'a>]),
    /// Those of one matrix, through a function.
    Activated(WeightWithBias<'a>, ActivationFn),
    /// `gate(x) * up(x)`
    Gated { gate: WeightWithBias<'a>, up: WeightWithBias<'a>, function: ActivationFn },
    /// Those of one matrix, to be added to something.
    Residual(WeightWithBias<'a>),
}

/// Pieces of work for each thread: few, since sharing out costs, and several, since cores are not
/// always equally fast.
const PIECES_PER_THREAD: usize = 8;

impl Projection<'_> {
    pub(super) fn matrices(&self) -> impl Iterator<Item = &WeightWithBias<'_>> {
        let (first, second, several) = match self {
            Self::Concat(several) => (None, None, *several),
            Self::Gated { gate, up, .. } => (Some(gate), Some(up), &[][..]),
            Self::Activated(weighted, _) | Self::Residual(weighted) => (Some(weighted), None, &[][..]),
        };
        several.iter().chain(first).chain(second)
    }

    /// Length of a row of the result.
    pub(super) fn n_out(&self) -> usize {
        match self {
            Self::Concat(several) => several.iter().map(|weighted| weighted.matrix.n_out()).sum(),
            Self::Gated { gate, .. } => gate.matrix.n_out(),
            Self::Activated(weighted, _) | Self::Residual(weighted) => weighted.matrix.n_out(),
        }
    }

    /// Groups of `at_once` panels: neighbours of a matrix, whose last may be fewer; or those of gate and up.
    fn n_groups(&self, at_once: usize) -> usize {
        match self {
            Self::Gated { gate, .. } => gate.matrix.n_panels(),
            _ => self.matrices().map(|weighted| weighted.matrix.n_panels().div_ceil(at_once)).sum(),
        }
    }

    /// A group's first column of the result, and its one or two panels.
    fn group(&self, mut idx: usize, at_once: usize) -> (usize, PanelRef<'_>, Option<PanelRef<'_>>) {
        if let Self::Gated { gate, up, .. } = self {
            let of = |weighted| PanelRef { weighted, panel: idx };
            return (idx * PANEL_ROWS, of(gate), Some(of(up)));
        }
        let mut column = 0;
        for weighted in self.matrices() {
            let n_panels = weighted.matrix.n_panels();
            let panel = at_once * idx;
            if panel < n_panels {
                let second = (at_once > 1 && panel + 1 < n_panels).then_some(panel + 1);
                let of = |panel| PanelRef { weighted, panel };
                return (column + panel * PANEL_ROWS, of(panel), second.map(of));
            }
            idx -= n_panels.div_ceil(at_once);
            column += weighted.matrix.n_out();
        }
        unreachable!("a group beyond the last matrix")
    }

    /// Whether many rows may meet two panels at a time as whole numbers.
    fn suit_whole_numbers(&self) -> bool {
        let same = |gate: &WeightWithBias, up: &WeightWithBias| gate.matrix.format() == up.matrix.format();
        self.matrices().all(|weighted| weighted.matrix.format().is_quantized())
            && !matches!(self, Self::Gated { gate, up, .. } if !same(gate, up))
    }

    /// Whether so many rows are multiplied in units, and then, whether these are of bfloat16.
    fn units(&self, n_rows: usize) -> Option<bool> {
        let all_are = |format| self.matrices().all(|weighted| weighted.matrix.format() == format);
        let in_float32 = n_rows > MAX_TILE_ROWS && all_are(WeightFormat::F32);
        if all_are(WeightFormat::Bf16Pairs) { Some(true) } else { in_float32.then_some(false) }
    }

    /// Gives the number of rows of `x`.
    ///
    /// # Panics
    /// When a length does not fit the others.
    fn check(&self, x: &[f32], n_in: usize) -> usize {
        assert!(x.len().is_multiple_of(n_in), "{} numbers are no rows of {n_in}", x.len());
        let fits = |weighted: &WeightWithBias| {
            weighted.matrix.n_in() == n_in
                && weighted.bias.is_none_or(|bias| bias.len() == weighted.matrix.n_out())
        };
        assert!(self.matrices().all(fits));
        if let Self::Gated { gate, up, .. } = self {
            assert_eq!(gate.matrix.n_out(), up.matrix.n_out());
        }
        x.len() / n_in
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
    products: &Projection,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let n_rows = products.check(x, n_in);
    let n_out = products.n_out();
    assert!(residual.is_none_or(|residual| residual.len() == n_rows * n_out));
    let norm = norm.as_ref();
    let write = |numbers: DisjointSlice<MaybeUninit<f32>>| {
        let result = OutputRows::of_floats(n_out, numbers, residual);
        if let Some(in_bf16) = products.units(n_rows) {
            let rows = gemm_float::FloatActivations::new(isa, in_bf16, x, n_in, norm);
            gemm(isa, &rows, 0..rows.n_blocks(), products, &result);
            rows.recycle();
        } else if gemm_int16::is_profitable(isa, n_rows) && products.suit_whole_numbers() {
            let rows = gemm_int16::Int16Activations::new(isa, x, n_in, norm);
            gemm(isa, &rows, 0..rows.n_blocks(), products, &result);
            rows.recycle();
        } else {
            gemv(isa, x, n_in, norm, products, &result);
        }
    };
    // SAFETY: every panel is multiplied with every row.
    unsafe { collect_rows(n_rows * n_out, write) }
}

/// Rows of activations that meet two panels at a time.
trait GemmActivations: Sync {
    /// Blocks that meet a panel before the next does.
    const BLOCKS_AT_ONCE: usize;

    /// See [`gemm_int16::Int16Activations::products`].
    fn products(
        &self,
        isa: Isa,
        amx: &mut Option<amx::TileConfig>,
        block: usize,
        panels: &[Panel],
        epilogue: &impl Epilogue,
    );
}

macro_rules! gemm {
    ($($rows:ty, $blocks_at_once:expr;)*) => {$(
        impl GemmActivations for $rows {
            const BLOCKS_AT_ONCE: usize = $blocks_at_once;

            fn products(
                &self,
                isa: Isa,
                amx: &mut Option<amx::TileConfig>,
                block: usize,
                panels: &[Panel],
                epilogue: &impl Epilogue,
            ) {
                self.products(isa, amx, block, panels, epilogue);
            }
        }
    )*};
}

gemm! {
    gemm_int16::Int16Activations, 1;
    gemm_float::FloatActivations, gemm_float::BLOCKS_AT_ONCE;
}

/// Multiplies two panels at a time with all rows.
fn gemm<R: GemmActivations>(
    isa: Isa,
    rows: &R,
    blocks: Range<usize>,
    products: &Projection,
    result: &OutputRows,
) {
    let n_pairs = products.n_groups(2);
    let together = R::BLOCKS_AT_ONCE.min(blocks.len());
    let n_pieces = blocks.len().next_multiple_of(together) * n_pairs;
    pool::run(|team| {
        let at_once = (n_pairs / (PIECES_PER_THREAD * team.n_threads())).max(1);
        let mut amx = None;
        for piece in team.claim_chunks(n_pieces, at_once).flatten() {
            let (of_pair, pair) = (piece % together, piece / together % n_pairs);
            let block = blocks.start + piece / (n_pairs * together) * together + of_pair;
            if block >= blocks.end {
                continue;
            }
            let (column, first, second) = products.group(pair, 2);
            let both = [first.key(), second.unwrap_or(first).key()];
            let epilogue = StoreEpilogue { products, result, column, first, second };
            rows.products(isa, &mut amx, block, &both[..1 + usize::from(second.is_some())], &epilogue);
        }
    });
}
