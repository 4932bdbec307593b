//! The kernels as candle's custom operations on float32 tensors.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, bail};

use super::attention::{EncoderAttention, PagedAttention, SequenceKv};
use super::isa::Isa;
use super::matmul::{Projection, WeightWithBias, linear, mlp};
use super::norm::Norm;
use super::norm::norm_rows;

/// Projection of `[n_rows, n_in]`; a second tensor is what they are added to.
#[derive(Debug)]
pub struct LinearOp<'a> {
    pub isa: Isa,
    pub norm: Option<Norm<'a>>,
    pub projection: Projection<'a>,
}

impl LinearOp<'_> {
    fn run(&self, x: &[f32], shape: &Shape, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (n_rows, n_in) = shape.dims2()?;
        if let Some(weighted) = self.projection.matrices().find(|weighted| weighted.matrix.n_in() != n_in) {
            bail!("rows of {n_in} numbers meet a matrix of {}", weighted.matrix.n_in());
        }
        let n_out = self.projection.n_out();
        if residual.is_some_and(|residual| residual.len() != n_rows * n_out) {
            bail!("a residual of another shape than [{n_rows}, {n_out}]");
        }
        let y = linear(self.isa, x, n_in, self.norm, &self.projection, residual);
        Ok((CpuStorage::F32(y), (n_rows, n_out).into()))
    }
}

impl CustomOp1 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(numbers(x, layout)?, layout.shape(), None)
    }
}

impl CustomOp2 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(numbers(x, layout)?, layout.shape(), Some(numbers(residual, residual_layout)?))
    }
}

/// Two layers of products of the norm of `[n_rows, n_in]`, added to it.
#[derive(Debug)]
pub struct MlpOp<'a> {
    pub isa: Isa,
    pub norm: Option<Norm<'a>>,
    pub inner: Projection<'a>,
    pub down: WeightWithBias<'a>,
}

impl CustomOp1 for MlpOp<'_> {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_in) = layout.shape().dims2()?;
        if self.down.matrix.n_out() != n_in || self.down.matrix.n_in() != self.inner.n_out() {
            bail!("rows of {n_in} numbers, the inner and the outer matrices do not fit each other");
        }
        let y = mlp(self.isa, numbers(x, layout)?, self.norm, &self.inner, self.down);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// The norm of each row of `[n_rows, n_columns]`.
pub struct NormOp<'a> {
    pub isa: Isa,
    pub norm: Norm<'a>,
}

impl CustomOp1 for NormOp<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_columns) = layout.shape().dims2()?;
        let y = norm_rows(self.isa, numbers(x, layout)?, n_columns, &self.norm);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// PagedAttention within texts of some lengths, `[n_tokens, 3 * hidden]` to `[n_tokens, hidden]`.
pub struct EncoderAttentionOp<'a> {
    pub isa: Isa,
    pub attention: EncoderAttention<'a>,
    pub lengths: &'a [usize],
}

impl CustomOp1 for EncoderAttentionOp<'_> {
    fn name(&self) -> &'static str {
        "encoder-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = self.attention.n_heads * self.attention.head_dim;
        let (n_tokens, row_len) = layout.shape().dims2()?;
        if row_len != 3 * hidden {
            bail!("rows of {row_len} numbers are not those of three times {} heads", self.attention.n_heads);
        }
        let y = self.attention.forward(self.isa, numbers(qkv, layout)?, self.lengths);
        Ok((CpuStorage::F32(y), (n_tokens, hidden).into()))
    }
}

/// PagedAttention of `[n_tokens, (n_heads + 2 * n_kv_heads) * head_dim]`, whose keys and values it writes.
pub struct PagedAttentionOp<'a, 'b> {
    isa: Isa,
    attention: PagedAttention<'a>,
    /// A tensor operation is shared, and this one writes.
    sequences: RefCell<&'a mut [SequenceKv<'b>]>,
}

impl<'a, 'b> PagedAttentionOp<'a, 'b> {
    pub fn new(isa: Isa, attention: PagedAttention<'a>, sequences: &'a mut [SequenceKv<'b>]) -> Self {
        Self { isa, attention, sequences: RefCell::new(sequences) }
    }
}

impl CustomOp1 for PagedAttentionOp<'_, '_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let PagedAttention { n_heads, layout: kv, .. } = self.attention;
        let (n_tokens, row_len) = layout.shape().dims2()?;
        if row_len != (n_heads + 2 * kv.n_kv_heads) * kv.head_dim {
            bail!("rows of {row_len} numbers are not those of {n_heads} and {} heads", kv.n_kv_heads);
        }
        let y = self.attention.forward(self.isa, numbers(qkv, layout)?, &mut self.sequences.borrow_mut());
        Ok((CpuStorage::F32(y), (n_tokens, n_heads * kv.head_dim).into()))
    }
}

/// The numbers of a contiguous float32 tensor.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel was given a tensor that is not contiguous"),
    }
}
