//! The context of a layer: everything that it computes with besides its weights and its input.

use candle_core::Tensor;

use super::config::ModelConfig;
use crate::kernels::attention::kv_block::KvLayout;
use crate::kernels::attention::{PagedAttention, SequenceKv};
use crate::kernels::recurrent::{SequenceState, StateLayout};
use crate::models::backend::Backend;
use crate::models::layers::rope::CosSinCache;
use crate::models::profile::ForwardProfile;

/// The inputs of a layer that are the same for every layer of its kind.
pub struct LayerContext<'a> {
    /// The model's configuration.
    pub config: &'a ModelConfig,
    /// The implementation to compute with.
    pub backend: Backend,
    /// The layout of the KV cache blocks of this layer's group.
    pub kv_layout: KvLayout,
    /// The index of this layer within its group.
    pub layer_idx: usize,
    /// The layout of recurrent states.
    pub state_layout: &'a StateLayout,
    /// The index of this layer among those with recurrent mixers.
    pub recurrent_idx: usize,
    /// The input of this layer beside the residual, `[n_tokens, width]`.
    pub per_layer_input: Option<&'a Tensor>,
    /// The attention window of this layer.
    pub window: Option<usize>,
    /// The factor of each query's scores, `[n_tokens]`.
    pub query_scales: Option<&'a [f32]>,
    /// The rotary table of the batch.
    pub cos_sin: Option<&'a CosSinCache>,
    /// The mask of each sequence over the keys from [`window_start`](crate::kernels::attention::window_start) on, for the
    /// reference backend.
    pub masks: &'a [Option<Tensor>],
    /// The profile that the layer's time is added to.
    pub profile: &'a ForwardProfile,
}

impl<'a> LayerContext<'a> {
    /// The parameters of the attention kernel, without norms of heads and sinks, for a layer that
    /// writes keys and values of its own.
    pub fn paged_attention(&self) -> PagedAttention<'a> {
        let config = self.config;
        PagedAttention {
            n_heads: config.n_heads,
            layout: self.kv_layout,
            layer: self.layer_idx,
            is_kv_shared: false,
            scale: config.attention_scale as f32,
            softcap: config.attention_softcap.map(|cap| cap as f32),
            window: self.window,
            head_norms: None,
            rope: self.cos_sin.map(CosSinCache::kernel_params),
            query_scales: self.query_scales,
            sinks: None,
        }
    }
}

/// The state of a batch's sequences in one layer.
pub struct LayerStates<'a, 'b> {
    /// Keys and values in the blocks of the layer's group.
    pub kv: &'a mut [SequenceKv<'b>],
    /// The recurrent states.
    pub recurrent: &'a mut [SequenceState<'b>],
}
