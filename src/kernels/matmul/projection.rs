//! Projections: what a fused product computes from rows of activations, as data.

use super::super::isa::Isa;
use super::super::layout::{MAX_TILE_ROWS, PANEL_ROWS};
use super::super::norm::Norm;
use super::super::weights::{PackedMatrix, WeightFormat};
use super::activation_fns::ActivationFn;

/// A matrix, and the bias that is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct WeightWithBias<'a> {
    /// `[n_out, n_in]`
    pub matrix: &'a PackedMatrix,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

/// Rows of activations, and the norm that they pass through before a product.
#[derive(Clone, Copy)]
pub struct InputRows<'a> {
    /// `[n_rows, n_in]`
    pub x: &'a [f32],
    /// The length of a row.
    pub n_in: usize,
    /// The norm, if there is one.
    pub norm: Option<&'a Norm<'a>>,
}

impl InputRows<'_> {
    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.x.len() / self.n_in
    }
}

/// One or more matrices that the same activations are multiplied with, and how their products are combined.
#[derive(Debug, Clone, Copy)]
pub enum Projection<'a> {
    /// The products with several matrices, concatenated.
    Concat(&'a [WeightWithBias<'a>]),
    /// The products with one matrix, passed through an activation function.
    Activated(WeightWithBias<'a>, ActivationFn),
    /// `function(gate(x)) * up(x)`
    Gated {
        /// The matrix of the gate.
        gate: WeightWithBias<'a>,
        /// The matrix that the gate multiplies.
        up: WeightWithBias<'a>,
        /// The activation function of the gate.
        function: ActivationFn,
    },
    /// The products with one matrix, scaled and added to a residual.
    Residual(ResidualWeight<'a>),
}

/// A matrix whose products, bias included, are scaled and added to a residual.
#[derive(Debug, Clone, Copy)]
pub struct ResidualWeight<'a> {
    /// The matrix and its bias.
    pub weight: WeightWithBias<'a>,
    /// Factor of the products.
    pub scale: f32,
}

impl<'a> From<WeightWithBias<'a>> for ResidualWeight<'a> {
    fn from(weight: WeightWithBias<'a>) -> Self {
        Self { weight, scale: 1.0 }
    }
}

/// A panel of a matrix.
pub type Panel<'a> = (&'a PackedMatrix, usize);

/// A panel of a matrix, with its part of the bias.
#[derive(Clone, Copy)]
pub struct PanelRef<'a> {
    /// The matrix.
    pub weight: &'a WeightWithBias<'a>,
    /// The index of the panel.
    pub panel: usize,
}

impl<'a> PanelRef<'a> {
    /// The panel without its bias.
    pub fn panel(self) -> Panel<'a> {
        (self.weight.matrix, self.panel)
    }

    /// The panel `n` further on.
    pub fn offset(self, n: usize) -> Self {
        Self { panel: self.panel + n, ..self }
    }

    /// Rows of the matrix in the panel: sixteen, but for the last panel.
    pub fn width(self) -> usize {
        PANEL_ROWS.min(self.weight.matrix.n_out() - self.panel * PANEL_ROWS)
    }

    /// The bias of the panel's rows.
    pub fn bias(self) -> Option<&'a [f32]> {
        self.weight.bias.map(|bias| &bias[self.panel * PANEL_ROWS..][..self.width()])
    }
}

impl Projection<'_> {
    /// All its matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &WeightWithBias<'_>> {
        let (first, second, several) = match self {
            Self::Concat(several) => (None, None, *several),
            Self::Gated { gate, up, .. } => (Some(gate), Some(up), &[][..]),
            Self::Activated(weight, _) | Self::Residual(ResidualWeight { weight, .. }) => {
                (Some(weight), None, &[][..])
            }
        };
        several.iter().chain(first).chain(second)
    }

    /// The length of a row of the result.
    pub fn n_out(&self) -> usize {
        match self {
            Self::Concat(several) => several.iter().map(|weight| weight.matrix.n_out()).sum(),
            Self::Gated { gate, .. } => gate.matrix.n_out(),
            Self::Activated(weight, _) | Self::Residual(ResidualWeight { weight, .. }) => {
                weight.matrix.n_out()
            }
        }
    }

    /// The number of groups of `at_once` panels (one or two): neighbors in a matrix, whose last group may be
    /// smaller; or a panel of the gate with one of the up projection.
    pub(super) fn n_groups(&self, at_once: usize) -> usize {
        match self {
            Self::Gated { gate, .. } => gate.matrix.n_panels(),
            _ => self.matrices().map(|weight| weight.matrix.n_panels().div_ceil(at_once)).sum(),
        }
    }

    /// The first column of a group in the result, and its one or two panels.
    pub(super) fn group(
        &self,
        mut idx: usize,
        at_once: usize,
    ) -> (usize, PanelRef<'_>, Option<PanelRef<'_>>) {
        if let Self::Gated { gate, up, .. } = self {
            let of = |weight| PanelRef { weight, panel: idx };
            return (idx * PANEL_ROWS, of(gate), Some(of(up)));
        }
        let mut column = 0;
        for weight in self.matrices() {
            let n_panels = weight.matrix.n_panels();
            let panel = at_once * idx;
            if panel < n_panels {
                let second = (at_once > 1 && panel + 1 < n_panels).then_some(panel + 1);
                let of = |panel| PanelRef { weight, panel };
                return (column + panel * PANEL_ROWS, of(panel), second.map(of));
            }
            idx -= n_panels.div_ceil(at_once);
            column += weight.matrix.n_out();
        }
        unreachable!("the group is one of `n_groups`")
    }

    /// Whether the 16-bit GEMM can multiply the matrices, two panels at a time.
    pub(super) fn is_int16_gemm(&self) -> bool {
        let same = |gate: &WeightWithBias, up: &WeightWithBias| gate.matrix.format() == up.matrix.format();
        self.matrices().all(|weight| weight.matrix.format().is_quantized())
            && !matches!(self, Self::Gated { gate, up, .. } if !same(gate, up))
    }

    /// Whether activations can be rounded: for matrices that the 16-bit GEMM can multiply, some of them with rounded
    /// activations, too.
    pub(super) fn is_rounded(&self, isa: Isa) -> bool {
        self.is_int16_gemm() && self.matrices().any(|weight| weight.matrix.format().is_rounded(isa))
    }

    /// Whether `n_rows` rows are multiplied by the float GEMM: `Some(true)` with dwords of two bfloat16,
    /// `Some(false)` with float32.
    pub(super) fn float_gemm_bf16(&self, n_rows: usize) -> Option<bool> {
        let all_are = |format| self.matrices().all(|weight| weight.matrix.format() == format);
        let in_float32 = n_rows > MAX_TILE_ROWS && all_are(WeightFormat::F32);
        if all_are(WeightFormat::Bf16Pairs) { Some(true) } else { in_float32.then_some(false) }
    }

    /// Checks that the matrices fit rows of length `n_in`, and returns the number of rows of `x`.
    ///
    /// # Panics
    /// When a length does not match the others.
    pub(super) fn check_rows(&self, x: &[f32], n_in: usize) -> usize {
        assert!(x.len().is_multiple_of(n_in), "{} numbers are not whole rows of {n_in}", x.len());
        let fits = |weight: &WeightWithBias| {
            weight.matrix.n_in() == n_in && weight.bias.is_none_or(|bias| bias.len() == weight.matrix.n_out())
        };
        assert!(self.matrices().all(fits));
        if let Self::Gated { gate, up, .. } = self {
            assert_eq!(gate.matrix.n_out(), up.matrix.n_out());
        }
        x.len() / n_in
    }
}
