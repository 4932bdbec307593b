//! The kernels as candle custom operations on float32 tensors.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, bail};

use super::attention::{EncoderAttention, PagedAttention, SequenceKv};
use super::isa::Isa;
use super::matmul::{Projection, ResidualWeight, RoutedExpert, experts, linear, mlp};
use super::norm::{Norm, norm_rows};
use super::recurrent::linear_attention::LinearAttention;
use super::recurrent::short_conv::short_conv;
use super::recurrent::{CausalConv, LayerRows, SequenceState, StateLayout, with_layer_rows};

/// A [`Projection`] of `[n_rows, n_in]` to `[n_rows, n_out]`. As a [`CustomOp2`] it takes the residual as the
/// second tensor.
#[derive(Debug)]
pub struct LinearOp<'a> {
    /// Instruction set of the kernel.
    pub isa: Isa,
    /// Norm of the input rows.
    pub norm: Option<Norm<'a>>,
    /// The matrices, and how their products are combined.
    pub projection: Projection<'a>,
}

impl LinearOp<'_> {
    fn run(&self, x: &[f32], shape: &Shape, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (n_rows, n_in) = shape.dims2()?;
        if let Some(weight) = self.projection.matrices().find(|weight| weight.matrix.n_in() != n_in) {
            bail!("the input has {n_in} columns, but a matrix takes {}", weight.matrix.n_in());
        }
        let n_out = self.projection.n_out();
        if residual.is_some_and(|residual| residual.len() != n_rows * n_out) {
            bail!("the residual is not of shape [{n_rows}, {n_out}]");
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
        self.run(contiguous_f32(x, layout)?, layout.shape(), None)
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
        let residual = contiguous_f32(residual, residual_layout)?;
        self.run(contiguous_f32(x, layout)?, layout.shape(), Some(residual))
    }
}

/// An MLP with a residual connection: `x + scale * down(inner(norm(x)))` of `x`, `[n_rows, n_in]`.
#[derive(Debug)]
pub struct MlpOp<'a> {
    /// Instruction set of the kernel.
    pub isa: Isa,
    /// Norm of the input rows.
    pub norm: Option<Norm<'a>>,
    /// First layer, with its activation function.
    pub inner: Projection<'a>,
    /// Second layer, back to `n_in` columns, and its scale.
    pub down: ResidualWeight<'a>,
}

impl CustomOp1 for MlpOp<'_> {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_in) = layout.shape().dims2()?;
        let down = self.down.weight.matrix;
        if down.n_out() != n_in || down.n_in() != self.inner.n_out() {
            bail!("the matrices of an MLP over {n_in} columns do not fit each other");
        }
        let y = mlp(self.isa, contiguous_f32(x, layout)?, self.norm, &self.inner, self.down);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// The weighted sum of the outputs of experts for each row of `[n_rows, n_columns]`.
pub struct ExpertsOp<'a> {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// The experts that rows are routed to.
    pub experts: &'a [RoutedExpert<'a>],
}

impl CustomOp1 for ExpertsOp<'_> {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_columns) = layout.shape().dims2()?;
        let y = experts(self.isa, contiguous_f32(x, layout)?, n_columns, self.experts);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// The norm of each row of `[n_rows, n_columns]`.
pub struct NormOp<'a> {
    /// Instruction set of the kernel.
    pub isa: Isa,
    /// The norm, over `n_columns` columns.
    pub norm: Norm<'a>,
}

impl CustomOp1 for NormOp<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_columns) = layout.shape().dims2()?;
        let y = norm_rows(self.isa, contiguous_f32(x, layout)?, n_columns, &self.norm);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// [`EncoderAttention`] of `[n_tokens, 3 * hidden]` to `[n_tokens, hidden]`.
pub struct EncoderAttentionOp<'a> {
    /// Instruction set of the kernel.
    pub isa: Isa,
    /// The layer's attention.
    pub attention: EncoderAttention<'a>,
    /// Tokens of each text.
    pub lengths: &'a [usize],
}

impl CustomOp1 for EncoderAttentionOp<'_> {
    fn name(&self) -> &'static str {
        "encoder-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let EncoderAttention { n_heads, head_dim, .. } = self.attention;
        let hidden = n_heads * head_dim;
        let (n_tokens, row_len) = layout.shape().dims2()?;
        if row_len != 3 * hidden {
            bail!(
                "rows of {row_len} columns are not queries, keys and values of {n_heads} heads of {head_dim}"
            );
        }
        let y = self.attention.forward(self.isa, contiguous_f32(qkv, layout)?, self.lengths);
        Ok((CpuStorage::F32(y), (n_tokens, hidden).into()))
    }
}

/// [`PagedAttention`] of `[n_tokens, (n_heads + 2 * n_kv_heads) * head_dim]`, or with shared values `[n_tokens,
/// (n_heads + n_kv_heads) * head_dim]`, to `[n_tokens, n_heads * head_dim]`. Writes the new keys and values into the KV cache.
pub struct PagedAttentionOp<'a, 'b> {
    isa: Isa,
    attention: PagedAttention<'a>,
    /// In a cell since candle runs operations by shared reference, and this one writes.
    sequences: RefCell<&'a mut [SequenceKv<'b>]>,
}

impl<'a, 'b> PagedAttentionOp<'a, 'b> {
    /// The attention of the new tokens of `sequences`.
    pub fn new(isa: Isa, attention: PagedAttention<'a>, sequences: &'a mut [SequenceKv<'b>]) -> Self {
        Self { isa, attention, sequences: RefCell::new(sequences) }
    }
}

impl CustomOp1 for PagedAttentionOp<'_, '_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let PagedAttention { n_heads, layout: kv, .. } = self.attention;
        let (n_tokens, row_len) = layout.shape().dims2()?;
        if row_len != self.attention.row_len() {
            let n_kv_heads = kv.n_kv_heads;
            bail!(
                "rows of {row_len} columns are not {n_heads} query heads and {n_kv_heads} heads of keys and values"
            );
        }
        let qkv = contiguous_f32(qkv, layout)?;
        let y = self.attention.forward(self.isa, qkv, &mut self.sequences.borrow_mut());
        Ok((CpuStorage::F32(y), (n_tokens, n_heads * kv.head_dim).into()))
    }
}

/// [`LinearAttention`] of `[n_tokens, n_columns]` to `[n_tokens, inner_len]`. Updates the states of the sequences.
pub struct LinearAttentionOp<'a, 'b> {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// The layer's linear attention.
    pub attention: LinearAttention<'a>,
    /// The states of the sequences.
    pub states: RecurrentLayer<'a, 'b>,
}

/// The short convolution of `[n_tokens, 3 * channels]` to `[n_tokens, channels]`. Updates the states of the sequences.
pub struct ShortConvOp<'a, 'b> {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// The convolution.
    pub conv: CausalConv<'a>,
    /// The states of the sequences.
    pub states: RecurrentLayer<'a, 'b>,
}

/// The states of the sequences of a batch in one recurrent layer.
pub struct RecurrentLayer<'a, 'b> {
    layout: &'a StateLayout,
    layer: usize,
    /// In a cell since candle runs operations by shared reference, and these write.
    sequences: RefCell<&'a mut [SequenceState<'b>]>,
}

impl<'a, 'b> RecurrentLayer<'a, 'b> {
    /// The states of `sequences` in recurrent layer `layer`.
    pub fn new(layout: &'a StateLayout, layer: usize, sequences: &'a mut [SequenceState<'b>]) -> Self {
        Self { layout, layer, sequences: RefCell::new(sequences) }
    }

    /// Passes the sequences' rows of `x` to `compute`.
    fn compute(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        n_columns: usize,
        n_out: usize,
        compute: impl FnOnce(&mut [LayerRows]) -> Vec<f32>,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_tokens, row_len) = x_layout.shape().dims2()?;
        if row_len != n_columns {
            bail!("rows of {row_len} columns are not the {n_columns} inputs of a recurrent layer");
        }
        let x = contiguous_f32(x, x_layout)?;
        let mut sequences = self.sequences.borrow_mut();
        let y = with_layer_rows(self.layout, self.layer, &mut sequences, x, n_columns, compute);
        Ok((CpuStorage::F32(y), (n_tokens, n_out).into()))
    }
}

impl CustomOp1 for LinearAttentionOp<'_, '_> {
    fn name(&self) -> &'static str {
        "linear-attention"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let LinearAttention { rule, shape, .. } = self.attention;
        self.states.compute(x, layout, rule.n_columns(&shape), shape.inner_len(), |sequences| {
            self.attention.forward(self.isa, self.states.layout, sequences)
        })
    }
}

impl CustomOp1 for ShortConvOp<'_, '_> {
    fn name(&self) -> &'static str {
        "short-conv"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let n_channels = self.states.layout.conv_channels;
        self.states.compute(x, layout, 3 * n_channels, n_channels, |sequences| {
            short_conv(self.isa, &self.conv, self.states.layout, sequences)
        })
    }
}

/// The elements of a contiguous float32 tensor.
fn contiguous_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        // A part of an empty tensor may begin behind its end.
        Some((start, end)) if start == end => Ok(&[]),
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel takes contiguous tensors only"),
    }
}
