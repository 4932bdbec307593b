//! One layer of a decoder: mixers, in which the tokens of a sequence exchange information, and a feed-forward part. Each
//! has a norm before it, and its output, which may have another, is added to the residual. A layer has one mixer, two side
//! by side, or none; norms and parts that a family lacks are left out.

use candle_core::Tensor;

use super::attention::Attention;
use super::config::ModelConfig;
use super::latent_attention::LatentAttention;
use super::layer_context::{LayerContext, LayerStates};
use crate::error::Result;
use crate::models::layers::altup::AltUp;
use crate::models::layers::dense_moe::DenseMoE;
use crate::models::layers::laurel::Laurel;
use crate::models::layers::linear::{Linear, ResidualAdd, mlp};
use crate::models::layers::linear_attention::LinearAttentionMixer;
use crate::models::layers::mixer::MixerInput;
use crate::models::layers::mlp::{Mlp, MoE};
use crate::models::layers::norm::{RmsNorm, RowNorm};
use crate::models::layers::per_layer_input::PerLayerInput;
use crate::models::layers::short_conv::ShortConvMixer;
use crate::models::profile::ForwardOp;

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    /// The norm before the mixers.
    pub mixer_norm: Option<RmsNorm>,
    /// The mixers, all of the same input.
    pub mixers: Vec<Mixer>,
    /// The norm of a mixer's output before it is added to the residual.
    pub mixer_post_norm: Option<RmsNorm>,
    /// The augmentation of the residual after the mixers.
    pub laurel: Option<Laurel>,
    /// The norm before the MLP.
    pub mlp_norm: Option<RmsNorm>,
    /// The MLP or the mixture of experts.
    pub mlp: Option<FeedForward>,
    /// The norm of the MLP output before it is added to the residual.
    pub mlp_post_norm: Option<RmsNorm>,
    /// The part that adds the layer's own input to the residual.
    pub per_layer_input: Option<PerLayerInput>,
    /// The updates of residual streams, in models with several.
    pub altup: Option<AltUp>,
    /// The factor of the layer's output, residual included.
    pub output_scale: Option<f64>,
}

/// A part of a layer in which the tokens of a sequence exchange information.
#[derive(Debug, Clone)]
pub enum Mixer {
    /// Attention.
    Attention(Box<Attention>),
    /// Multi-head latent attention (MLA).
    LatentAttention(Box<LatentAttention>),
    /// The gated delta net, or Mamba-2.
    LinearAttention(Box<LinearAttentionMixer>),
    /// The short convolution of LFM2.
    ShortConv(Box<ShortConvMixer>),
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// One MLP for all tokens.
    Dense(Mlp),
    /// A mixture of experts.
    MoE(MoE),
    /// Both, side by side.
    DenseMoE(Box<DenseMoE>),
}

impl DecoderLayer {
    /// Computes the layer's output; `x` and the result are `[n_tokens, hidden]`, the new tokens of all sequences, or
    /// `[n_tokens, n_streams, hidden]` in models with several residual streams.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor, states: &mut LayerStates, context: &LayerContext) -> Result<Tensor> {
        let isa = context.backend.isa();
        let own_input = self.per_layer_input.as_ref().zip(context.per_layer_input);
        if let Some(altup) = &self.altup {
            let predicted = altup.predict(isa, x)?;
            let y = self.mix_and_feed(&altup.active_stream(&predicted)?, states, context)?;
            let mut streams = altup.correct(isa, &predicted, &y)?;
            if let Some((part, input)) = own_input {
                let addend = part.forward(isa, input, &altup.gate_stream(&streams)?)?;
                streams = altup.add_to_others(&streams, &addend)?;
            }
            context.profile.lap(ForwardOp::Mlp);
            return Ok(streams);
        }
        let mut y = self.mix_and_feed(x, states, context)?;
        if let Some((part, input)) = own_input {
            y = (part.forward(isa, input, &y)? + y)?;
            context.profile.lap(ForwardOp::Mlp);
        }
        match self.output_scale {
            Some(scale) => Ok((y * scale)?),
            None => Ok(y),
        }
    }

    /// Computes the mixers and the feed-forward part.
    fn mix_and_feed(&self, x: &Tensor, states: &mut LayerStates, context: &LayerContext) -> Result<Tensor> {
        let ModelConfig { residual_scale, mixer_scales, mlp_scale, .. } = *context.config;
        let mut residual = x.clone();
        for mixer in &self.mixers {
            let scale = residual_scale * mixer_scales[usize::from(!mixer.is_attention())];
            let input = MixerInput {
                norm: self.mixer_norm.as_ref().map(|norm| norm as &dyn RowNorm),
                x,
                residual: &residual,
                add: ResidualAdd { norm: self.mixer_post_norm.as_ref(), scale: scale as f32 },
            };
            residual = mixer.forward(&input, states, context)?;
        }
        if let Some(laurel) = &self.laurel {
            let isa = context.backend.isa();
            let normed = self.mixer_norm.as_ref().map(|norm| norm.apply(isa, x)).transpose()?;
            residual = laurel.forward(isa, normed.as_ref().unwrap_or(x), &residual)?;
            context.profile.lap(ForwardOp::Output);
        }
        let x = residual;
        let norm = self.mlp_norm.as_ref().map(|norm| norm as &dyn RowNorm);
        let scale = (residual_scale * mlp_scale) as f32;
        let add = ResidualAdd { norm: self.mlp_post_norm.as_ref(), scale };
        match &self.mlp {
            None => Ok(x),
            Some(FeedForward::Dense(dense)) => {
                let y = mlp(norm, dense.up_projection(), &dense.down, add, &x)?;
                context.profile.lap(ForwardOp::Mlp);
                Ok(y)
            }
            Some(FeedForward::MoE(moe)) => {
                let normed = norm.map(|norm| norm.forward(&x)).transpose()?;
                let y = add.forward(&moe.forward(normed.as_ref().unwrap_or(&x))?, &x)?;
                context.profile.lap(ForwardOp::Experts);
                Ok(y)
            }
            Some(FeedForward::DenseMoE(both)) => {
                let y = add.forward(&both.forward(context.backend.isa(), norm, &x)?, &x)?;
                context.profile.lap(ForwardOp::Experts);
                Ok(y)
            }
        }
    }

    /// The matrices that a token is multiplied with, each with its operation and its number of uses. Experts
    /// are represented by the first one.
    pub fn matrices(&self) -> Vec<(ForwardOp, &Linear, usize)> {
        let mixers = self.mixers.iter().flat_map(Mixer::matrices);
        let mut matrices: Vec<_> = mixers.map(|(op, matrix)| (op, matrix, 1)).collect();
        match &self.mlp {
            None => {}
            Some(FeedForward::Dense(dense)) => {
                matrices.extend(dense.matrices().map(|matrix| (ForwardOp::Mlp, matrix, 1)));
            }
            Some(FeedForward::MoE(moe)) => {
                matrices.extend(moe.matrices().map(|(matrix, n_uses)| (ForwardOp::Experts, matrix, n_uses)));
            }
            Some(FeedForward::DenseMoE(both)) => {
                matrices.extend(both.matrices().map(|(matrix, n_uses)| (ForwardOp::Experts, matrix, n_uses)));
            }
        }
        if let Some(part) = &self.per_layer_input {
            matrices.extend([&part.gate, &part.projection].map(|matrix| (ForwardOp::Mlp, matrix, 1)));
        }
        if let Some(laurel) = &self.laurel {
            matrices.extend([&laurel.left, &laurel.right].map(|matrix| (ForwardOp::Output, matrix, 1)));
        }
        matrices
    }
}

impl Mixer {
    fn is_attention(&self) -> bool {
        matches!(self, Self::Attention(_) | Self::LatentAttention(_))
    }

    fn forward(
        &self,
        input: &MixerInput,
        states: &mut LayerStates,
        context: &LayerContext,
    ) -> Result<Tensor> {
        let LayerContext { state_layout, recurrent_idx, .. } = *context;
        let isa = context.backend.isa();
        let y = match self {
            Self::Attention(attention) => return attention.forward(input, states.kv, context),
            Self::LatentAttention(attention) => return attention.forward(input, states.kv, context),
            Self::LinearAttention(mixer) => {
                mixer.forward(isa, input, state_layout, recurrent_idx, states.recurrent)?
            }
            Self::ShortConv(mixer) => {
                mixer.forward(isa, input, state_layout, recurrent_idx, states.recurrent)?
            }
        };
        context.profile.lap(ForwardOp::Recurrence);
        Ok(y)
    }

    /// The matrices that a token is multiplied with, each with its operation.
    fn matrices(&self) -> Vec<(ForwardOp, &Linear)> {
        let matrices: Vec<&Linear> = match self {
            Self::Attention(attention) => return attention.matrices(),
            Self::LatentAttention(attention) => return attention.matrices(),
            Self::LinearAttention(mixer) => mixer.projections.iter().chain([&mixer.output]).collect(),
            Self::ShortConv(mixer) => vec![&mixer.input, &mixer.output],
        };
        matrices.into_iter().map(|matrix| (ForwardOp::Recurrence, matrix)).collect()
    }
}
