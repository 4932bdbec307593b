//! Linear layers and the operations fused around them: norms before, activations and residuals after. Each is
//! computed by a kernel on packed weights or by plain candle operations on dense ones.

use std::sync::Arc;

use candle_core::{D, Tensor};

use super::norm::{RmsNorm, RowNorm};
use crate::error::{Error, Result};
use crate::kernels::custom_ops::{LinearOp, MlpOp};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::ActivationFn;
use crate::kernels::matmul::{Projection, ResidualWeight, WeightWithBias};
use crate::kernels::weights::PackedMatrix;
use crate::models::backend::DEVICE;

/// `y = x Wᵀ + b`, `x` being `[n_rows, n_in]` and `y` `[n_rows, n_out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// `[n_out]`
    bias: Option<Vec<f32>>,
}

/// The weight of a linear layer.
#[derive(Debug, Clone)]
pub enum Weight {
    /// For the reference backend: float32 `[n_out, n_in]`.
    Dense(Tensor),
    /// For the kernels: repacked in the checkpoint's own precision.
    Packed {
        /// The repacked weights.
        matrix: Arc<PackedMatrix>,
        /// The instruction set of the kernels.
        isa: Isa,
    },
}

impl Weight {
    /// Looks up rows by their indices, dequantized to float32, `[n_rows, n_in]`.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => {
                Ok(weight.index_select(&Tensor::from_slice(rows, rows.len(), &DEVICE)?, 0)?)
            }
            Self::Packed { matrix, .. } => {
                let n_in = matrix.n_in();
                let mut values = vec![0.0; rows.len() * n_in];
                for (&row, values) in rows.iter().zip(values.chunks_exact_mut(n_in)) {
                    if row as usize >= matrix.n_out() {
                        return Err(Error::internal(format!("row {row} of a matrix of {}", matrix.n_out())));
                    }
                    matrix.dequantize_row(row as usize, values);
                }
                Ok(Tensor::from_vec(values, (rows.len(), n_in), &DEVICE)?)
            }
        }
    }
}

/// The numbers of rows for which the weight is the left side of candle's matmul, which splits the rows of
/// its left side over the cores: 29 instead of 42 to 63 ms for 350 MB of weights with 2 to 16 rows
/// (2026-11-23). One row is memory-bound either way; with many rows transposing the result costs more.
const FEW_ROWS: std::ops::RangeInclusive<usize> = 2..=32;

/// The most rows for which matrices of different kinds are multiplied together.
const MAX_GEMV_ROWS: usize = 32;

impl Linear {
    /// A layer of a weight and an optional bias, `[n_out]`.
    pub fn new(weight: Weight, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    /// Computes `x Wᵀ + b`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => self.reference(x, weight),
            Weight::Packed { .. } => concat_linear(None, &[self], x),
        }
    }

    fn reference(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let y = if FEW_ROWS.contains(&x.dims()[0]) {
            weight.matmul(&x.t()?)?.t()?.contiguous()?
        } else {
            x.matmul(&weight.t()?)?
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(&Tensor::new(bias.as_slice(), &DEVICE)?)?),
            None => Ok(y),
        }
    }

    /// The number of weights in the matrix, and their size in bytes.
    pub fn size(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Dense(weight) => (weight.elem_count(), weight.elem_count() * size_of::<f32>()),
            Weight::Packed { matrix, .. } => (matrix.n_out() * matrix.n_in(), matrix.n_bytes()),
        }
    }

    /// The parameters of the kernels, if the weight is packed for them.
    pub fn packed(&self) -> Option<(Isa, WeightWithBias<'_>)> {
        match &self.weight {
            Weight::Dense(_) => None,
            Weight::Packed { matrix, isa } => {
                Some((*isa, WeightWithBias { matrix, bias: self.bias.as_deref() }))
            }
        }
    }
}

/// Several linear layers of the norm of `x`, with their outputs concatenated.
///
/// # Errors
/// When a tensor operation fails.
pub fn concat_linear(norm: Option<&dyn RowNorm>, linears: &[&Linear], x: &Tensor) -> Result<Tensor> {
    let packed: Option<Vec<_>> = linears.iter().map(|linear| linear.packed()).collect();
    if let Some([(isa, _), ..]) = packed.as_deref() {
        let isa = *isa;
        let weights: Vec<WeightWithBias> = packed.iter().flatten().map(|(_, weight)| *weight).collect();
        // A GEMM is of quantized matrices or of floats; few rows are multiplied by GEMV, which takes both.
        let is_quantized = |weight: &WeightWithBias| weight.matrix.format().is_quantized();
        let runs: Vec<&[WeightWithBias]> =
            weights.chunk_by(|a, b| is_quantized(a) == is_quantized(b)).collect();
        if runs.len() == 1 || x.dims()[0] <= MAX_GEMV_ROWS {
            return linear_kernel(isa, norm, Projection::Concat(&weights), x);
        }
        let outputs = runs.iter().map(|run| linear_kernel(isa, norm, Projection::Concat(run), x));
        return Ok(Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, D::Minus1)?);
    }
    let x = normalize(norm, x)?;
    let outputs = linears.iter().map(|linear| linear.forward(&x)).collect::<Result<Vec<_>>>()?;
    match outputs.as_slice() {
        [single] => Ok(single.clone()),
        several => Ok(Tensor::cat(several, D::Minus1)?),
    }
}

/// `activation(gate(norm(x))) * up(norm(x))`
///
/// # Errors
/// When a tensor operation fails.
pub fn gated(
    norm: Option<&dyn RowNorm>,
    gate: &Linear,
    up: &Linear,
    activation: ActivationFn,
    x: &Tensor,
) -> Result<Tensor> {
    if let (Some((isa, gate)), Some((_, up))) = (gate.packed(), up.packed()) {
        return linear_kernel(isa, norm, Projection::Gated { gate, up, function: activation }, x);
    }
    let x = normalize(norm, x)?;
    Ok((activation.forward(&gate.forward(&x)?)? * activation.factor_reference(up.forward(&x)?)?)?)
}

/// The first projections of an MLP and their activation.
#[derive(Debug, Clone, Copy)]
pub enum UpProjection<'a> {
    /// `activation(up(x))`
    Plain {
        /// `[intermediate, hidden]`
        up: &'a Linear,
        /// The function applied to the projection.
        activation: ActivationFn,
    },
    /// `activation(gate(x)) * up(x)`
    Gated {
        /// `[intermediate, hidden]`
        gate: &'a Linear,
        /// `[intermediate, hidden]`
        up: &'a Linear,
        /// The function applied to the gate.
        activation: ActivationFn,
    },
    /// `activation(relu(gate(x) - t)) * up(x)` with `t` the mean of `gate(x)` plus `cutoff` times its standard deviation:
    /// of normally distributed gates, a fixed part stays above zero ("Gaussian top-k").
    Sparse {
        /// `[intermediate, hidden]`
        gate: &'a Linear,
        /// `[intermediate, hidden]`
        up: &'a Linear,
        /// The function applied to the gate.
        activation: ActivationFn,
        /// The standard deviations above the mean.
        cutoff: f64,
    },
}

impl UpProjection<'_> {
    /// Computes the projections of the norm of `x` and their activation.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(self, norm: Option<&dyn RowNorm>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { up, activation } => match up.packed() {
                Some((isa, up)) => linear_kernel(isa, norm, Projection::Activated(up, activation), x),
                None => activation.forward(&up.forward(&normalize(norm, x)?)?),
            },
            Self::Gated { gate, up, activation } => gated(norm, gate, up, activation, x),
            Self::Sparse { gate, up, activation, cutoff } => {
                let x = normalize(norm, x)?;
                let gate = gaussian_top_k(&gate.forward(&x)?, cutoff)?;
                Ok((activation.forward(&gate)? * up.forward(&x)?)?)
            }
        }
    }
}

impl<'a> UpProjection<'a> {
    /// The instruction set and the parameters of the kernels, if the weights are packed for them.
    pub fn packed(self) -> Option<(Isa, Projection<'a>)> {
        match self {
            Self::Plain { up, activation } => {
                up.packed().map(|(isa, up)| (isa, Projection::Activated(up, activation)))
            }
            Self::Gated { gate, up, activation } => {
                let ((isa, gate), (_, up)) = gate.packed().zip(up.packed())?;
                Some((isa, Projection::Gated { gate, up, function: activation }))
            }
            Self::Sparse { .. } => None,
        }
    }
}

/// Subtracts the mean plus `cutoff` standard deviations from each row, and keeps what is above zero.
fn gaussian_top_k(x: &Tensor, cutoff: f64) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = centered.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
    Ok(centered.broadcast_sub(&(deviation * cutoff)?)?.relu()?)
}

/// How the output of a part of a layer is added to the residual: `residual + scale * norm(output)`.
#[derive(Debug, Clone, Copy)]
pub struct ResidualAdd<'a> {
    /// The norm of the output.
    pub norm: Option<&'a RmsNorm>,
    /// The factor of the output.
    pub scale: f32,
}

impl ResidualAdd<'_> {
    /// A plain sum.
    pub const PLAIN: Self = Self { norm: None, scale: 1.0 };

    /// Adds `output` to `residual` in plain candle operations.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(self, output: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let normed = self.norm.map(|norm| norm.forward(output)).transpose()?;
        let output = normed.as_ref().unwrap_or(output);
        if self.scale == 1.0 {
            return Ok((output + residual)?);
        }
        Ok(((output * f64::from(self.scale))? + residual)?)
    }
}

/// `x + scale * post_norm(down(up(norm(x))))`
///
/// # Errors
/// When a tensor operation fails.
pub fn mlp(
    norm: Option<&dyn RowNorm>,
    up_projection: UpProjection,
    down: &Linear,
    add: ResidualAdd,
    x: &Tensor,
) -> Result<Tensor> {
    if let (Some((isa, inner)), Some((_, down)), None) = (up_projection.packed(), down.packed(), add.norm) {
        return Ok(x.apply_op1_no_bwd(&MlpOp {
            isa,
            norm: norm.map(RowNorm::kernel_params),
            inner,
            down: ResidualWeight { weight: down, scale: add.scale },
        })?);
    }
    linear_residual(down, add, &up_projection.forward(norm, x)?, x)
}

/// `residual + scale * norm(linear(x))`
///
/// # Errors
/// When a tensor operation fails.
pub fn linear_residual(linear: &Linear, add: ResidualAdd, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
    match (linear.packed(), add.norm) {
        (Some((isa, weight)), None) => {
            let projection = Projection::Residual(ResidualWeight { weight, scale: add.scale });
            let op = LinearOp { isa, norm: None, projection };
            Ok(x.apply_op2_no_bwd(residual, &op)?)
        }
        _ => add.forward(&linear.forward(x)?, residual),
    }
}

fn normalize(norm: Option<&dyn RowNorm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

fn linear_kernel(isa: Isa, norm: Option<&dyn RowNorm>, projection: Projection, x: &Tensor) -> Result<Tensor> {
    Ok(x.apply_op1_no_bwd(&LinearOp { isa, norm: norm.map(RowNorm::kernel_params), projection })?)
}

#[cfg(test)]
mod tests {
    use super::super::norm::LayerNorm;
    use super::*;
    use crate::kernels::weights::WeightFormat;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
    }

    /// One float32 layer for the reference and for the kernels.
    fn pair(n_out: usize, n_in: usize, seed: usize, isa: Isa) -> [Linear; 2] {
        let weights = values(n_out * n_in, seed);
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let row = |idx: usize| &bytes[4 * idx * n_in..4 * (idx + 1) * n_in];
        let matrix = PackedMatrix::pack(WeightFormat::F32, n_out, n_in, row).unwrap();
        let bias = values(n_out, seed + 1);
        let dense = Tensor::from_vec(weights, (n_out, n_in), &DEVICE).unwrap();
        [Weight::Dense(dense), Weight::Packed { matrix: Arc::new(matrix), isa }]
            .map(|weight| Linear::new(weight, Some(bias.clone())))
    }

    fn assert_close(what: &str, [reference, kernel]: [Result<Tensor>; 2]) {
        let [reference, kernel] = [reference, kernel].map(|y| y.unwrap());
        assert_eq!(reference.dims(), kernel.dims());
        let [reference, kernel] =
            [reference, kernel].map(|y| y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let largest = reference.iter().fold(1f32, |largest, a| largest.max(a.abs()));
        for (a, b) in reference.iter().zip(&kernel) {
            assert!((a - b).abs() <= 2e-5 * largest, "{what}: {b} is not {a}");
        }
    }

    #[test]
    fn the_kernels_equal_the_reference() {
        let (n_in, n_out) = (50, 37);
        let norm = RmsNorm { weight: values(n_in, 11), eps: 1e-5 };
        let layer_norm = LayerNorm { weight: values(n_in, 13), bias: values(n_in, 14), eps: 1e-5 };
        let post_norm = RmsNorm { weight: values(n_out, 12), eps: 1e-5 };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let [a, b, c] =
                [(n_out, 1), (20, 3), (n_out, 5)].map(|(n_out, seed)| pair(n_out, n_in, seed, isa));
            let down = pair(n_in, n_out, 9, isa);
            for n_rows in [1, 2, 7, 8, 9, 31, 64] {
                let x = Tensor::from_vec(values(n_rows * n_in, 7), (n_rows, n_in), &DEVICE).unwrap();
                let residual = Tensor::from_vec(values(n_rows * n_out, 8), (n_rows, n_out), &DEVICE);
                let residual = residual.unwrap();
                let what = format!("{isa}, {n_rows} rows");
                let layer_norm: &dyn RowNorm = &layer_norm;
                for norm in [None, Some(&norm as &dyn RowNorm), Some(layer_norm)] {
                    let concat = |idx: usize| concat_linear(norm, &[&a[idx], &b[idx], &c[idx]], &x);
                    assert_close(&what, [concat(0), concat(1)]);
                    for activation in [
                        ActivationFn::Silu,
                        ActivationFn::Gelu,
                        ActivationFn::GeluTanh,
                        ActivationFn::Tanh,
                        ActivationFn::ClampedSwiGlu { alpha: 1.702, limit: 0.9 },
                    ] {
                        let gated = |idx: usize| gated(norm, &a[idx], &c[idx], activation, &x);
                        assert_close(&format!("{what}, {activation:?}"), [gated(0), gated(1)]);
                        let mlp = |idx: usize, is_gated: bool| {
                            let (gate, up) = (&a[idx], &c[idx]);
                            let up_projection = if is_gated {
                                UpProjection::Gated { gate, up, activation }
                            } else {
                                UpProjection::Plain { up, activation }
                            };
                            mlp(norm, up_projection, &down[idx], ResidualAdd { norm: None, scale: 0.75 }, &x)
                        };
                        for is_gated in [false, true] {
                            let what = format!("MLP, {what}, {activation:?}, {is_gated}");
                            assert_close(&what, [mlp(0, is_gated), mlp(1, is_gated)]);
                        }
                    }
                }
                for (norm, scale) in
                    [(None, 1.0), (Some(&post_norm), 1.0), (None, 0.3), (Some(&post_norm), 0.3)]
                {
                    let add = ResidualAdd { norm, scale };
                    let residual = |idx: usize| linear_residual(&a[idx], add, &x, &residual);
                    assert_close(&what, [residual(0), residual(1)]);
                }
            }
        }
    }
}
