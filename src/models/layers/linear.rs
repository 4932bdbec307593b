//! The matrix product with a checkpoint's weights, and the operations of a layer that are one: each
//! in plain tensor operations and as a kernel.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::activation::Activation;
use super::norm::{RmsNorm, RowNorm};
use crate::error::{Error, Result};
use crate::kernels::custom_ops::{LinearOp, MlpOp};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{Projection, WeightWithBias};
use crate::kernels::weights::PackedMatrix;

/// `y = x Wᵀ + b`, `x` being `[n_rows, n_in]` and `y` `[n_rows, n_out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// `[n_out]`
    bias: Option<Vec<f32>>,
}

/// How the weight is kept.
#[derive(Debug, Clone)]
pub enum Weight {
    /// float32 `[n_out, n_in]`
    Dense(Tensor),
    /// As the checkpoint has it, in the kernels' order.
    Packed { matrix: Arc<PackedMatrix>, isa: Isa },
}

impl Weight {
    /// Some of its rows as float32, `[n_rows, n_in]`.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => {
                Ok(weight.index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0)?)
            }
            Self::Packed { matrix, .. } => {
                let n_in = matrix.n_in();
                let mut numbers = vec![0.0; rows.len() * n_in];
                for (&row, numbers) in rows.iter().zip(numbers.chunks_exact_mut(n_in)) {
                    if row as usize >= matrix.n_out() {
                        return Err(Error::internal(format!("row {row} of a matrix of {}", matrix.n_out())));
                    }
                    matrix.unpack_row(row as usize, numbers);
                }
                Ok(Tensor::from_vec(numbers, (rows.len(), n_in), &Device::Cpu)?)
            }
        }
    }
}

/// With this many rows the weight goes on the left of candle's product, which splits the rows of
/// its left side over the cores: 29 instead of 42 to 63 ms for 350 MB of weights with 2 to 16 rows
/// (2026-11-23). One row is bound by memory either way; many pay more for turning the result.
const FEW_ROWS: std::ops::RangeInclusive<usize> = 2..=32;

impl Linear {
    pub fn new(weight: Weight, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    /// `x` through the matrix.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => self.reference(x, weight),
            Weight::Packed { .. } => side_by_side(None, &[self], x),
        }
    }

    fn reference(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let y = if FEW_ROWS.contains(&x.dims()[0]) {
            weight.matmul(&x.t()?)?.t()?.contiguous()?
        } else {
            x.matmul(&weight.t()?)?
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(&Tensor::new(bias.as_slice(), &Device::Cpu)?)?),
            None => Ok(y),
        }
    }

    /// Weights of the matrix, and the bytes they take.
    pub fn size(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Dense(weight) => (weight.elem_count(), weight.elem_count() * size_of::<f32>()),
            Weight::Packed { matrix, .. } => (matrix.n_out() * matrix.n_in(), matrix.n_bytes()),
        }
    }

    /// What the kernels need of it, where they are to be used.
    fn packed(&self) -> Option<(Isa, WeightWithBias<'_>)> {
        match &self.weight {
            Weight::Dense(_) => None,
            Weight::Packed { matrix, isa } => {
                Some((*isa, WeightWithBias { matrix, bias: self.bias.as_deref() }))
            }
        }
    }
}

/// The norm of `x` through several matrices, their results side by side.
pub fn side_by_side(norm: Option<&dyn RowNorm>, linears: &[&Linear], x: &Tensor) -> Result<Tensor> {
    let packed: Option<Vec<_>> = linears.iter().map(|linear| linear.packed()).collect();
    if let Some([(isa, _), ..]) = packed.as_deref() {
        let isa = *isa;
        let weighted: Vec<WeightWithBias> = packed.iter().flatten().map(|(_, weighted)| *weighted).collect();
        return kernel(isa, norm, Projection::Concat(&weighted), x);
    }
    let x = normed(norm, x)?;
    let each = linears.iter().map(|linear| linear.forward(&x)).collect::<Result<Vec<_>>>()?;
    match each.as_slice() {
        [single] => Ok(single.clone()),
        several => Ok(Tensor::cat(several, D::Minus1)?),
    }
}

/// `activation(gate(x)) * up(x)` of the norm of `x`.
pub fn gated(
    norm: Option<&dyn RowNorm>,
    gate: &Linear,
    up: &Linear,
    activation: Activation,
    x: &Tensor,
) -> Result<Tensor> {
    if let (Some((isa, gate)), Some((_, up))) = (gate.packed(), up.packed()) {
        return kernel(isa, norm, Projection::Gated { gate, up, function: activation.gate() }, x);
    }
    let x = normed(norm, x)?;
    Ok((activation.forward(&gate.forward(&x)?)? * up.forward(&x)?)?)
}

/// The first products of an MLP.
#[derive(Debug, Clone, Copy)]
pub enum Inner<'a> {
    /// `activation(up(x))`
    Plain { up: &'a Linear, activation: Activation },
    /// `activation(gate(x)) * up(x)`
    Gated { gate: &'a Linear, up: &'a Linear, activation: Activation },
}

/// `x + post_norm(down(inner(norm(x))))`
pub fn mlp(
    norm: Option<&dyn RowNorm>,
    inner: Inner,
    down: &Linear,
    post_norm: Option<&RmsNorm>,
    x: &Tensor,
) -> Result<Tensor> {
    let products = match inner {
        Inner::Plain { up, activation } => {
            up.packed().map(|(_, up)| Projection::Activated(up, activation.gate()))
        }
        Inner::Gated { gate, up, activation } => gate
            .packed()
            .zip(up.packed())
            .map(|((_, gate), (_, up))| Projection::Gated { gate, up, function: activation.gate() }),
    };
    if let (Some(inner), Some((isa, down)), None) = (products, down.packed(), post_norm) {
        return Ok(x.apply_op1_no_bwd(&MlpOp { isa, norm: norm.map(RowNorm::kernel), inner, down })?);
    }
    let y = match inner {
        Inner::Plain { up, activation } => activation.forward(&up.forward(&normed(norm, x)?)?)?,
        Inner::Gated { gate, up, activation } => gated(norm, gate, up, activation, x)?,
    };
    added(down, post_norm, &y, x)
}

/// `residual + norm(linear(x))`
pub fn added(linear: &Linear, norm: Option<&RmsNorm>, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
    match (linear.packed(), norm) {
        (Some((isa, weighted)), None) => {
            let op = LinearOp { isa, norm: None, products: Projection::Residual(weighted) };
            Ok(x.apply_op2_no_bwd(residual, &op)?)
        }
        (_, None) => Ok((linear.forward(x)? + residual)?),
        (_, Some(norm)) => Ok((norm.forward(&linear.forward(x)?)? + residual)?),
    }
}

fn normed(norm: Option<&dyn RowNorm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

fn kernel(isa: Isa, norm: Option<&dyn RowNorm>, products: Projection, x: &Tensor) -> Result<Tensor> {
    Ok(x.apply_op1_no_bwd(&LinearOp { isa, norm: norm.map(RowNorm::kernel), products })?)
}

#[cfg(test)]
mod tests {
    use super::super::norm::LayerNorm;
    use super::*;
    use crate::kernels::weights::WeightFormat;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
    }

    /// The same float32 matrix for plain tensor operations and for the kernels.
    fn pair(n_out: usize, n_in: usize, seed: usize, isa: Isa) -> [Linear; 2] {
        let weights = numbers(n_out * n_in, seed);
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let row = |idx: usize| &bytes[4 * idx * n_in..4 * (idx + 1) * n_in];
        let matrix = PackedMatrix::pack(WeightFormat::F32, n_out, n_in, row).unwrap();
        let bias = numbers(n_out, seed + 1);
        let dense = Tensor::from_vec(weights, (n_out, n_in), &Device::Cpu).unwrap();
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
    fn kernels_equal_plain_tensor_operations() {
        let (n_in, n_out) = (50, 37);
        let norm = RmsNorm { weight: numbers(n_in, 11), eps: 1e-5 };
        let layer_norm = LayerNorm { weight: numbers(n_in, 13), bias: numbers(n_in, 14), eps: 1e-5 };
        let post_norm = RmsNorm { weight: numbers(n_out, 12), eps: 1e-5 };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let [a, b, c] =
                [(n_out, 1), (20, 3), (n_out, 5)].map(|(n_out, seed)| pair(n_out, n_in, seed, isa));
            let down = pair(n_in, n_out, 9, isa);
            for n_rows in [1, 2, 7, 8, 9, 31, 64] {
                let x = Tensor::from_vec(numbers(n_rows * n_in, 7), (n_rows, n_in), &Device::Cpu).unwrap();
                let residual = Tensor::from_vec(numbers(n_rows * n_out, 8), (n_rows, n_out), &Device::Cpu);
                let residual = residual.unwrap();
                let what = format!("{isa}, {n_rows} rows");
                let layer_norm: &dyn RowNorm = &layer_norm;
                for norm in [None, Some(&norm as &dyn RowNorm), Some(layer_norm)] {
                    let side_by_side = |idx: usize| side_by_side(norm, &[&a[idx], &b[idx], &c[idx]], &x);
                    assert_close(&what, [side_by_side(0), side_by_side(1)]);
                    for activation in
                        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh]
                    {
                        let gated = |idx: usize| gated(norm, &a[idx], &c[idx], activation, &x);
                        assert_close(&format!("{what}, {activation:?}"), [gated(0), gated(1)]);
                        let mlp = |idx: usize, is_gated: bool| {
                            let (gate, up) = (&a[idx], &c[idx]);
                            let inner = if is_gated {
                                Inner::Gated { gate, up, activation }
                            } else {
                                Inner::Plain { up, activation }
                            };
                            mlp(norm, inner, &down[idx], None, &x)
                        };
                        for is_gated in [false, true] {
                            let what = format!("MLP, {what}, {activation:?}, {is_gated}");
                            assert_close(&what, [mlp(0, is_gated), mlp(1, is_gated)]);
                        }
                    }
                }
                for norm in [None, Some(&post_norm)] {
                    let added = |idx: usize| added(&a[idx], norm, &x, &residual);
                    assert_close(&what, [added(0), added(1)]);
                }
            }
        }
    }
}
