//! One layer of an encoder: attention within each text, then the MLP.

use candle_core::{D, Tensor};

use super::config::{EncoderConfig, EncoderLayerConfig, NormPlacement};
use super::relative_bias::RelativeBias;
use crate::error::Result;
use crate::kernels::attention::{EncoderAttention, RelativePositionBias};
use crate::kernels::custom_ops::EncoderAttentionOp;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::ActivationFn;
use crate::models::backend::Backend;
use crate::models::forward_input::{EncoderInput, SequenceId, Span};
use crate::models::layers::attention::{AttentionParams, attention, sliding_window_mask};
use crate::models::layers::linear::{Linear, ResidualAdd, UpProjection, concat_linear, linear_residual, mlp};
use crate::models::layers::mlp::Mlp;
use crate::models::layers::norm::{LayerNorm, RowNorm};
use crate::models::layers::rope::CosSinCache;

/// The weights of one layer.
pub struct EncoderLayer {
    /// The norm before or after attention; absent if the input is already normalized.
    pub attention_norm: Option<LayerNorm>,
    /// `[hidden, hidden]`
    pub query: Linear,
    /// `[hidden, hidden]`
    pub key: Linear,
    /// `[hidden, hidden]`
    pub value: Linear,
    /// `[hidden, hidden]`
    pub output: Linear,
    /// The norm before or after the MLP.
    pub mlp_norm: LayerNorm,
    /// The MLP.
    pub mlp: EncoderMlp,
}

/// The MLP of a layer.
pub enum EncoderMlp {
    /// `down(activation(up(x)))`
    Plain {
        /// `[intermediate, hidden]`
        up: Linear,
        /// The function between the projections.
        activation: ActivationFn,
        /// `[hidden, intermediate]`
        down: Linear,
    },
    /// An MLP with a gate.
    Gated(Mlp),
}

/// The inputs of a batch that are the same for every layer.
pub struct EncoderContext<'a> {
    config: &'a EncoderConfig,
    backend: Backend,
    /// The number of tokens in each text.
    lengths: Vec<usize>,
    /// The rotary table of each of the model's ropes.
    cos_sin: Vec<CosSinCache>,
    /// For the kernels: the relative attention biases by distance, and the largest distance.
    distance_bias: Option<(Vec<f32>, usize)>,
    /// For the reference backend.
    biases: Vec<TextBiases>,
}

/// The values added to the attention scores of one text.
struct TextBiases {
    /// The relative biases, in layers without a window.
    relative: Option<Tensor>,
    /// The mask, in layers with a window.
    window_mask: Option<Tensor>,
}

impl<'a> EncoderContext<'a> {
    /// Prepares a batch.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn new(
        config: &'a EncoderConfig,
        backend: Backend,
        relative_bias: Option<&RelativeBias>,
        texts: &[EncoderInput],
    ) -> Result<Self> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.token_ids.len()).collect();
        let spans: Vec<Span> = lengths
            .iter()
            .map(|&len| Span { sequence: SequenceId(0), start: 0, len, n_prompt: len, n_rounded: 0 })
            .collect();
        let has_kernels = backend.isa().is_some();
        let distance_bias = relative_bias.filter(|_| has_kernels).map(|bias| {
            let max_distance = lengths.iter().max().map_or(0, |&longest| longest.saturating_sub(1));
            (bias.by_distance(max_distance), max_distance)
        });
        let window = config.layers.iter().find_map(|layer| layer.window);
        let text_biases = |&len: &usize| -> Result<TextBiases> {
            Ok(TextBiases {
                relative: relative_bias.map(|bias| bias.for_length(len)).transpose()?,
                window_mask: window.map(|window| sliding_window_mask(len, window)).transpose()?.flatten(),
            })
        };
        let biases =
            if has_kernels { Vec::new() } else { lengths.iter().map(text_biases).collect::<Result<_>>()? };
        let cos_sin = config.ropes.iter().map(|rope| CosSinCache::new(rope, &spans)).collect();
        Ok(Self { config, backend, lengths, cos_sin, distance_bias, biases })
    }

    /// The factor that attention scores are scaled by.
    fn attention_scale(&self) -> f64 {
        1.0 / (self.config.head_dim() as f64).sqrt()
    }
}

impl EncoderLayer {
    /// Computes the layer's output; `x` and the result are `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        layer_config: &EncoderLayerConfig,
        x: &Tensor,
        context: &EncoderContext,
    ) -> Result<Tensor> {
        let isa = context.backend.isa();
        let (norm, mlp_norm) = (self.attention_norm.as_ref(), &self.mlp_norm);
        let attend = |norm: Option<&dyn RowNorm>| -> Result<Tensor> {
            let qkv = concat_linear(norm, &[&self.query, &self.key, &self.value], x)?;
            let attended = match isa {
                Some(isa) => attend_by_kernel(isa, &qkv, layer_config, context)?,
                None => attend_reference(&qkv, layer_config, context)?,
            };
            linear_residual(&self.output, ResidualAdd::PLAIN, &attended, x)
        };
        match context.config.norm_placement {
            NormPlacement::Pre => {
                let x = attend(norm.map(|norm| norm as &dyn RowNorm))?;
                self.mlp.forward(Some(mlp_norm), &x)
            }
            NormPlacement::Post => {
                let x = attend(None)?;
                let x = norm.map_or(Ok(x.clone()), |norm| norm.apply(isa, &x))?;
                mlp_norm.apply(isa, &self.mlp.forward(None, &x)?)
            }
        }
    }
}

impl EncoderMlp {
    /// `x + mlp(norm(x))`
    fn forward(&self, norm: Option<&LayerNorm>, x: &Tensor) -> Result<Tensor> {
        let norm = norm.map(|norm| norm as &dyn RowNorm);
        match self {
            Self::Plain { up, activation, down } => {
                mlp(norm, UpProjection::Plain { up, activation: *activation }, down, ResidualAdd::PLAIN, x)
            }
            Self::Gated(gated) => mlp(norm, gated.up_projection(), &gated.down, ResidualAdd::PLAIN, x),
        }
    }
}

/// Attention of all texts by the kernel: `[n_tokens, 3 * hidden]` to `[n_tokens, hidden]`.
fn attend_by_kernel(
    isa: Isa,
    qkv: &Tensor,
    layer_config: &EncoderLayerConfig,
    context: &EncoderContext,
) -> Result<Tensor> {
    let attention = EncoderAttention {
        n_heads: context.config.n_heads,
        head_dim: context.config.head_dim(),
        scale: context.attention_scale() as f32,
        window: layer_config.window,
        rope: layer_config.rope.map(|idx| context.cos_sin[idx].kernel_params()),
        bias: context
            .distance_bias
            .as_ref()
            .map(|(values, max_distance)| RelativePositionBias { values, max_distance: *max_distance }),
        in_bf16: context.backend.is_bf16(),
    };
    Ok(qkv.apply_op1_no_bwd(&EncoderAttentionOp { isa, attention, lengths: &context.lengths })?)
}

/// Attention in plain candle operations, text by text; see [`attend_by_kernel`].
fn attend_reference(
    qkv: &Tensor,
    layer_config: &EncoderLayerConfig,
    context: &EncoderContext,
) -> Result<Tensor> {
    let EncoderConfig { n_heads, hidden_size, .. } = *context.config;
    let head_dim = context.config.head_dim();
    let n_tokens = qkv.dims()[0];
    let heads = |third: usize| -> Result<Tensor> {
        let part = qkv.narrow(D::Minus1, third * hidden_size, hidden_size)?.contiguous()?;
        Ok(part.reshape((n_tokens, n_heads, head_dim))?)
    };
    let (mut query, mut key, value) = (heads(0)?, heads(1)?, heads(2)?);
    if let Some(cos_sin) = layer_config.rope.map(|idx| &context.cos_sin[idx]) {
        (query, key) = (cos_sin.apply(&query)?, cos_sin.apply(&key)?);
    }
    let params = AttentionParams { scale: context.attention_scale(), softcap: None, sinks: None };
    let mut first_row = 0;
    let outputs = context
        .lengths
        .iter()
        .zip(&context.biases)
        .map(|(&len, TextBiases { relative, window_mask })| {
            let heads_first = |x: &Tensor| x.narrow(0, first_row, len)?.transpose(0, 1)?.contiguous();
            let bias = if layer_config.window.is_some() { window_mask } else { relative };
            let [query, key, value] = [heads_first(&query)?, heads_first(&key)?, heads_first(&value)?];
            first_row += len;
            attention(&query, &key, &value, params, bias.as_ref())
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&outputs, 0)?)
}
