//! The configuration of a decoder: sizes, limits and constants.

use std::cmp::Reverse;

use serde::Deserialize;

use super::latent_config::LatentAttentionConfig;
use super::layout::DecoderLayout;
use crate::error::{Error, Result};
use crate::kernels::attention::kv_block::{KvFormat, KvLayout};
use crate::kernels::matmul::ActivationFn;
use crate::kernels::recurrent::StateLayout;
use crate::kernels::recurrent::linear_attention::{HeadShape, UpdateRule};
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{
    CONTEXT_LENGTH, CheckpointLayouts, FULL_ATTENTION, HIDDEN_ACT, HIDDEN_SIZE, INTERMEDIATE_SIZE,
    LAYER_TYPES, N_HEADS, N_LAYERS, SLIDING_ATTENTION, check_sizes, impossible,
};
use crate::models::layers::mlp::{ExpertGroups, ExpertScore, Routing};
use crate::models::rope::Rope;

/// A decoder, described by data.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The name of the model family.
    pub family: &'static str,
    /// The tensor names in the family's checkpoints.
    pub layouts: &'static CheckpointLayouts<DecoderLayout>,
    /// The length of a hidden state.
    pub hidden_size: usize,
    /// The width of a dense MLP between its two projections.
    pub intermediate_size: usize,
    /// The number of query heads.
    pub n_heads: usize,
    /// The number of key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// The number of tokens in the vocabulary.
    pub n_vocab: usize,
    /// The maximum number of tokens in a sequence, prompt and generated ones together.
    pub context_length: usize,
    /// The epsilon of every RMS norm but those of outputs.
    pub rms_norm_eps: f64,
    /// The epsilon of the norms of attention and MLP outputs.
    pub post_norm_eps: f64,
    /// The norm of queries and keys, in models that have one.
    pub qk_norm: QkNorm,
    /// Whether the heads of values are normed, without weights.
    pub normed_values: bool,
    /// Multi-head latent attention (MLA), in models that have it. The KV cache then has one head, whose width is
    /// `head_dim`.
    pub latent_attention: Option<LatentAttentionConfig>,
    /// The factor that attention scores are scaled by.
    pub attention_scale: f64,
    /// The softcap of attention scores.
    pub attention_softcap: Option<f64>,
    /// The factor of logits, before their softcap.
    pub logit_scale: Option<f64>,
    /// The softcap of logits.
    pub logit_softcap: Option<f64>,
    /// The factor that token embeddings are scaled by.
    pub embedding_scale: Option<f64>,
    /// Whether token embeddings are normed, without weights.
    pub normed_embeddings: bool,
    /// The width of the input that each layer has of its own, in models with such inputs.
    pub per_layer_input_size: Option<usize>,
    /// The residual streams, in models with several.
    pub altup: Option<AltUpConfig>,
    /// The factor that the outputs of attention and MLPs are scaled by before they are added to the residual.
    pub residual_scale: f64,
    /// The activation function of the MLPs.
    pub activation: ActivationFn,
    /// The mixture of experts, in models that have one.
    pub moe: Option<MoeConfig>,
    /// The factor of the output of attention, and that of the output of recurrent mixers.
    pub mixer_scales: [f64; 2],
    /// The factor of the output of MLPs.
    pub mlp_scale: f64,
    /// The recurrent mixer, in models that have one.
    pub recurrence: Option<Recurrence>,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
    /// Whether the head is the embedding matrix if the checkpoint has no head.
    pub tied_head: bool,
    /// The token that begins a text, if the checkpoint names it.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text, as far as the checkpoint names them.
    pub eos_token_ids: Vec<u32>,
}

/// The settings that may differ from layer to layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Whether the layer has attention.
    pub has_attention: bool,
    /// Whether the layer has the model's recurrent mixer, alone or beside attention.
    pub has_recurrence: bool,
    /// The attention window: the maximum number of keys that a query attends to, its own included.
    pub window: Option<usize>,
    /// The heads of keys and values, where they are not the model's.
    pub kv_heads: Option<KvHeads>,
    /// The source of keys and values.
    pub kv_source: KvSource,
    /// The rotary embedding of queries and keys; `None` in layers without positions (NoPE).
    pub rope: Option<Rope>,
    /// The growth of attention scores with the position of the query.
    pub score_growth: Option<ScoreGrowth>,
    /// Whether the layer has a feed-forward part.
    pub has_mlp: bool,
    /// The width of the dense MLP between its two projections, where it is not the model's.
    pub intermediate_size: Option<usize>,
    /// The standard deviations above the mean below which gates of the dense MLP are zero, in layers with sparse gates.
    pub gate_cutoff: Option<f64>,
    /// Whether the MLP is a mixture of experts.
    pub is_moe: bool,
}

impl Default for LayerConfig {
    /// Attention without a window or positions, and a dense MLP.
    fn default() -> Self {
        Self {
            has_attention: true,
            has_recurrence: false,
            window: None,
            kv_heads: None,
            kv_source: KvSource::default(),
            rope: None,
            score_growth: None,
            has_mlp: true,
            intermediate_size: None,
            gate_cutoff: None,
            is_moe: false,
        }
    }
}

/// The heads of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KvHeads {
    /// The number of heads.
    pub n_kv_heads: usize,
    /// The width of a head, which is that of query heads, too.
    pub head_dim: usize,
}

/// The source of a layer's keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvSource {
    /// A projection to keys and one to values.
    #[default]
    Projections,
    /// One projection: values are keys before their norm and rotary embedding.
    KeyProjection,
    /// The layer of this index, which comes before: its keys and values are read, and none are written.
    Layer(usize),
}

/// The residual streams of a model with alternating updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AltUpConfig {
    /// The number of streams.
    pub n_streams: usize,
    /// The index of the stream that layers compute.
    pub active: usize,
    /// Whether the active stream is scaled where it gates a layer's own input.
    pub has_gate_scale: bool,
}

/// The recurrent mixer of a model's layers.
#[derive(Debug, Clone, PartialEq)]
pub enum Recurrence {
    /// The gated delta net, or Mamba-2.
    LinearAttention(LinearAttentionConfig),
    /// The short convolution of LFM2.
    ShortConv {
        /// Rows of the convolution.
        kernel: usize,
    },
}

/// The configuration of linear attention.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearAttentionConfig {
    /// The update of the state.
    pub rule: UpdateRule,
    /// The heads.
    pub shape: HeadShape,
    /// Rows of the causal convolution.
    pub conv_kernel: usize,
    /// The columns that the norm of outputs norms together; without it they are only gated.
    pub norm_group: Option<usize>,
    /// Whether outputs are gated before they are normed.
    pub gates_first: bool,
    /// Factors of the columns of an input row, in the order of [`UpdateRule::n_columns`].
    pub column_scales: Option<Vec<f32>>,
}

/// The vectors that queries and keys are normed over, and when.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum QkNorm {
    /// Each head, before the rotary embedding.
    #[default]
    Head,
    /// Each head, after the rotary embedding.
    RotatedHead,
    /// The projection's whole row, all heads together, before the rotary embedding.
    Projection,
    /// Each head, before the rotary embedding. The checkpoint has no weights: those of queries are all this factor,
    /// those of keys one.
    Unweighted(f64),
}

/// Attention scores that grow with the position of the query, as in Llama 4: the factor of a query at `position` is
/// `1 + beta * ln(1 + floor(position / original_context))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreGrowth {
    /// The growth per natural logarithm.
    pub beta: f64,
    /// The number of positions to the first growth.
    pub original_context: f64,
}

impl ScoreGrowth {
    /// The factor of the scores of a query.
    pub fn factor(&self, position: usize) -> f32 {
        (1.0 + self.beta * (position as f64 / self.original_context).floor().ln_1p()) as f32
    }
}

/// The configuration of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeConfig {
    /// The number of experts in a layer.
    pub n_experts: usize,
    /// How tokens are routed.
    pub routing: Routing,
    /// The width of an expert between its two projections.
    pub intermediate_size: usize,
    /// The width of the expert that every token goes through, in mixtures that have one.
    pub shared_intermediate_size: Option<usize>,
    /// Whether the layer has a dense MLP beside the mixture.
    pub has_dense_mlp: bool,
}

/// The number of heads of keys and values.
pub(super) const N_KV_HEADS: ConfigKey = ConfigKey::new("num_key_value_heads", "attention.head_count_kv");
/// The width of a head.
pub(super) const HEAD_DIM: ConfigKey = ConfigKey::new("head_dim", "attention.key_length");
const RMS_NORM_EPS: ConfigKey = ConfigKey::new("rms_norm_eps", "attention.layer_norm_rms_epsilon");
/// Other names of the same.
const LAYER_NORM_EPS: ConfigKey = ConfigKey::new("layer_norm_epsilon", "attention.layer_norm_epsilon");
const NORM_EPS: ConfigKey = ConfigKey::json("norm_eps");
/// Layers for multi-token prediction, which GGUF files count.
const N_PREDICTION_LAYERS: ConfigKey = ConfigKey::gguf("nextn_predict_layers");
const TIED_HEAD: ConfigKey = ConfigKey::json("tie_word_embeddings");
const HIDDEN_ACTIVATION: ConfigKey = ConfigKey::json("hidden_activation");
const WINDOW: ConfigKey = ConfigKey::new("sliding_window", "attention.sliding_window");
const WINDOW_ENABLED: ConfigKey = ConfigKey::json("use_sliding_window");
const WINDOW_PATTERN: ConfigKey = ConfigKey::gguf("attention.sliding_window_pattern");
const N_EXPERTS: ConfigKey = ConfigKey::new("num_experts", "expert_count");
/// The name in Mixtral, and in others since `transformers` 5.
const N_LOCAL_EXPERTS: ConfigKey = ConfigKey::new("num_local_experts", "expert_count");
/// The name in models with shared experts.
const N_ROUTED_EXPERTS: ConfigKey = ConfigKey::new("n_routed_experts", "expert_count");
const EXPERTS_PER_TOKEN: ConfigKey = ConfigKey::new("num_experts_per_tok", "expert_used_count");
/// The name in Gemma 4.
const TOP_K_EXPERTS: ConfigKey = ConfigKey::json("top_k_experts");
const MOE_INTERMEDIATE_SIZE: ConfigKey =
    ConfigKey::new("moe_intermediate_size", "expert_feed_forward_length");
const NORMALIZE_WEIGHTS: ConfigKey = ConfigKey::new("norm_topk_prob", "expert_weights_norm");
const WEIGHT_SCALE: ConfigKey = ConfigKey::new("routed_scaling_factor", "expert_weights_scale");

/// Layers with the same attention window and the same heads, which share KV cache blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvGroup {
    /// The attention window in tokens, the query's own included; `None` is unlimited.
    pub window: Option<usize>,
    /// The heads of keys and values.
    pub heads: KvHeads,
    /// The number of layers in the group.
    pub n_layers: usize,
}

/// A layer's place in the state of sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerPlace {
    /// The layer's group in the KV cache, an index into [`ModelConfig::kv_groups`].
    pub kv_group: usize,
    /// The layer's index within its group. A layer without keys and values of its own has those of its source.
    pub kv_layer: usize,
    /// The layer's index among those with recurrent mixers.
    pub recurrent_layer: usize,
}

impl ModelConfig {
    /// Whether a prompt of `n_prompt` tokens uses the long factors of LongRoPE in some layer; its keys then
    /// differ from those of a short prompt with the same tokens.
    pub fn is_long_prompt(&self, n_prompt: usize) -> bool {
        self.layers.iter().filter_map(|layer| layer.rope.as_ref()).any(|rope| rope.is_long(n_prompt))
    }

    /// Adds the end-of-sequence tokens listed in a `generation_config.json`.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn with_generation_config(mut self, json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct GenerationConfig {
            eos_token_id: Option<TokenIds>,
        }
        let file: GenerationConfig = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read generation_config.json: {e}")))?;
        self.eos_token_ids.extend(file.eos_token_id.map_or_else(Vec::new, TokenIds::into_vec));
        Ok(self)
    }

    /// Reads the settings that llama has, too; the family then sets all others.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type, or the sizes contradict each other.
    pub(super) fn from_checkpoint(
        checkpoint: &CheckpointConfig,
        family: &'static str,
        layouts: &'static CheckpointLayouts<DecoderLayout>,
        n_vocab: usize,
    ) -> Result<Self> {
        let hidden_size = checkpoint.required(HIDDEN_SIZE)?;
        let n_heads = checkpoint.required(N_HEADS)?;
        let n_layers = checkpoint.required(N_LAYERS)?;
        let n_layers = n_layers.saturating_sub(checkpoint.integer(N_PREDICTION_LAYERS)?.unwrap_or(0));
        let activation = checkpoint.string(HIDDEN_ACTIVATION)?.or(checkpoint.string(HIDDEN_ACT)?);
        let latent_attention = LatentAttentionConfig::from_checkpoint(checkpoint)?;
        let (head_dim, n_kv_heads) = match &latent_attention {
            Some(latent) => (latent.cached_dim(), 1),
            None => (
                checkpoint.integer(HEAD_DIM)?.unwrap_or(hidden_size / n_heads.max(1)),
                checkpoint.largest(N_KV_HEADS)?.unwrap_or(n_heads),
            ),
        };
        let score_dim = latent_attention.map_or(head_dim, |latent| latent.query_dim());
        let eps = checkpoint.float(RMS_NORM_EPS)?.or(checkpoint.float(LAYER_NORM_EPS)?);
        let eps = eps.or(checkpoint.float(NORM_EPS)?).ok_or_else(|| checkpoint.missing(RMS_NORM_EPS))?;
        let mut config = Self {
            family,
            layouts,
            hidden_size,
            intermediate_size: match checkpoint.largest(INTERMEDIATE_SIZE)? {
                Some(size) => size,
                // Models whose layers are all mixtures of experts have no dense MLP.
                None => checkpoint
                    .integer(MOE_INTERMEDIATE_SIZE)?
                    .ok_or_else(|| checkpoint.missing(INTERMEDIATE_SIZE))?,
            },
            n_heads,
            n_kv_heads,
            head_dim,
            n_vocab,
            context_length: checkpoint.required(CONTEXT_LENGTH)?,
            rms_norm_eps: eps,
            post_norm_eps: eps,
            qk_norm: QkNorm::default(),
            normed_values: false,
            latent_attention,
            attention_scale: 1.0 / (score_dim as f64).sqrt(),
            attention_softcap: None,
            logit_scale: None,
            logit_softcap: None,
            embedding_scale: None,
            normed_embeddings: false,
            per_layer_input_size: None,
            altup: None,
            residual_scale: 1.0,
            activation: activation.map_or(Ok(ActivationFn::Silu), ActivationFn::from_name)?,
            moe: None,
            mixer_scales: [1.0; 2],
            mlp_scale: 1.0,
            recurrence: None,
            layers: Vec::new(),
            tied_head: checkpoint.boolean(TIED_HEAD)?.unwrap_or(true),
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        config.validate(n_layers)?;
        let rope_dim = latent_attention.map_or(head_dim, |latent| latent.rope_dim);
        let rope = Rope::from_checkpoint(checkpoint, rope_dim, FULL_ATTENTION)?;
        config.layers = vec![LayerConfig { rope: Some(rope), ..LayerConfig::default() }; n_layers];
        config.set_windows(checkpoint, |_| true)?;
        Ok(config)
    }

    /// The heads of a layer's keys and values.
    pub fn kv_heads(&self, layer: &LayerConfig) -> KvHeads {
        let Self { n_kv_heads, head_dim, .. } = *self;
        layer.kv_heads.unwrap_or(KvHeads { n_kv_heads, head_dim })
    }

    /// The layers with keys and values of their own, grouped by attention window, widest first, and by heads. All layers
    /// of a group keep the same tokens in the KV cache.
    pub fn kv_groups(&self) -> Vec<KvGroup> {
        let is_own =
            |layer: &&LayerConfig| layer.has_attention && !matches!(layer.kv_source, KvSource::Layer(_));
        let kind = |layer: &LayerConfig| (layer.window, self.kv_heads(layer));
        let mut kinds: Vec<(Option<usize>, KvHeads)> = self.layers.iter().filter(is_own).map(kind).collect();
        kinds.sort_by_key(|&(window, heads)| (Reverse(window.unwrap_or(usize::MAX)), heads));
        let group = |kinds: &[(Option<usize>, KvHeads)]| {
            let (window, heads) = kinds[0];
            KvGroup { window, heads, n_layers: kinds.len() }
        };
        kinds.chunk_by(|a, b| a == b).map(group).collect()
    }

    /// The sizes of the recurrent state of a sequence.
    pub fn state_layout(&self) -> StateLayout {
        let n_layers = self.layers.iter().filter(|layer| layer.has_recurrence).count();
        match &self.recurrence {
            Some(Recurrence::LinearAttention(LinearAttentionConfig { shape, conv_kernel, .. })) => {
                StateLayout {
                    n_layers,
                    conv_channels: shape.conv_channels(),
                    conv_rows: conv_kernel - 1,
                    matrices_len: shape.matrices_len(),
                }
            }
            Some(Recurrence::ShortConv { kernel }) => StateLayout {
                n_layers,
                conv_channels: self.hidden_size,
                conv_rows: kernel - 1,
                matrices_len: 0,
            },
            None => StateLayout::default(),
        }
    }

    /// The KV cache's block layout in each of [`ModelConfig::kv_groups`].
    pub fn kv_layouts(&self, format: KvFormat) -> Vec<KvLayout> {
        let shared_values = self.latent_attention.is_some();
        let layout = |KvGroup { heads: KvHeads { n_kv_heads, head_dim }, n_layers, .. }: KvGroup| KvLayout {
            n_layers,
            n_kv_heads,
            head_dim,
            shared_values,
            format,
        };
        self.kv_groups().into_iter().map(layout).collect()
    }

    /// The size of a KV cache block in each of [`ModelConfig::kv_groups`], in bytes.
    pub fn kv_block_bytes(&self, format: KvFormat) -> Vec<usize> {
        self.kv_layouts(format).iter().map(KvLayout::block_bytes).collect()
    }

    /// The place of each layer in the state of sequences; the parts for mixers that a layer lacks mean nothing.
    pub fn layer_places(&self) -> Vec<LayerPlace> {
        let groups = self.kv_groups();
        let mut n_placed = vec![0; groups.len()];
        let mut n_recurrent = 0;
        let mut places: Vec<LayerPlace> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut place = LayerPlace { recurrent_layer: n_recurrent, ..LayerPlace::default() };
            if let KvSource::Layer(source) = layer.kv_source {
                let LayerPlace { kv_group, kv_layer, .. } = places[source];
                place = LayerPlace { kv_group, kv_layer, ..place };
            } else if layer.has_attention {
                let heads = self.kv_heads(layer);
                let is_group = |group: &KvGroup| (group.window, group.heads) == (layer.window, heads);
                place.kv_group = groups.iter().position(is_group).unwrap_or_default();
                place.kv_layer = n_placed[place.kv_group];
                n_placed[place.kv_group] += 1;
            }
            n_recurrent += usize::from(layer.has_recurrence);
            places.push(place);
        }
        places
    }

    /// Sets the checkpoint's attention window, if it has one, in the layers that `layer_types` or the flags of a GGUF
    /// file call sliding. In a checkpoint with neither, these are the layers whose index `is_sliding` accepts.
    ///
    /// # Errors
    /// When a setting is of the wrong type.
    pub(super) fn set_windows(
        &mut self,
        checkpoint: &CheckpointConfig,
        is_sliding: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let is_enabled = checkpoint.boolean(WINDOW_ENABLED)?.unwrap_or(true);
        let window = checkpoint.integer(WINDOW)?.filter(|&window| is_enabled && window > 0);
        let kinds = checkpoint.array(LAYER_TYPES);
        let flags = checkpoint.booleans(WINDOW_PATTERN);
        for (idx, layer) in self.layers.iter_mut().enumerate() {
            let is_sliding = match kinds.and_then(|kinds| kinds.get(idx)) {
                Some(kind) => kind == SLIDING_ATTENTION,
                None => flags.and_then(|flags| flags.get(idx).copied()).unwrap_or_else(|| is_sliding(idx)),
            };
            layer.window = window.filter(|_| is_sliding);
        }
        Ok(())
    }

    /// Gives the layers whose kind in `layer_types` is `recurrent` the model's recurrent mixer in place of attention; in
    /// GGUF files these are the layers without heads of keys.
    ///
    /// # Errors
    /// When a setting is of the wrong type.
    pub(super) fn set_mixers(&mut self, checkpoint: &CheckpointConfig, recurrent: &str) -> Result<()> {
        let kinds = checkpoint.array(LAYER_TYPES);
        let kv_heads = checkpoint.per_layer(N_KV_HEADS)?;
        for (idx, layer) in self.layers.iter_mut().enumerate() {
            layer.has_recurrence = match kinds.and_then(|kinds| kinds.get(idx)) {
                Some(kind) => kind == recurrent,
                None => kv_heads.as_ref().and_then(|heads| heads.get(idx)) == Some(&0),
            };
            layer.has_attention = !layer.has_recurrence;
        }
        Ok(())
    }

    /// Checks that some layer has attention, and that the sizes of recurrent mixers are possible.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn check_mixers(&self) -> Result<()> {
        if !self.layers.iter().any(|layer| layer.has_attention) {
            return Err(impossible("no layer with attention"));
        }
        match &self.recurrence {
            None => Ok(()),
            Some(Recurrence::ShortConv { kernel }) => check_sizes(&[("convolution", *kernel, 64)]),
            Some(Recurrence::LinearAttention(LinearAttentionConfig { shape, conv_kernel, .. })) => {
                check_sizes(&[
                    ("convolution", *conv_kernel, 64),
                    ("heads of values", shape.n_heads, 1 << 16),
                    ("heads of keys", shape.n_key_heads, 1 << 16),
                    ("width of keys", shape.key_dim, 1 << 12),
                    ("width of values", shape.value_dim, 1 << 12),
                    ("heads times width", shape.n_heads.saturating_mul(shape.value_dim), 1 << 24),
                ])?;
                if shape.n_heads.is_multiple_of(shape.n_key_heads) {
                    return Ok(());
                }
                Err(impossible(format_args!(
                    "{} heads of values over {} heads of keys",
                    shape.n_heads, shape.n_key_heads
                )))
            }
        }
    }

    fn validate(&self, n_layers: usize) -> Result<()> {
        check_sizes(&[
            ("hidden size", self.hidden_size, 1 << 20),
            ("intermediate size", self.intermediate_size, 1 << 24),
            ("layers", n_layers, 1 << 12),
            ("attention heads", self.n_heads, 1 << 16),
            ("vocabulary", self.n_vocab, 1 << 24),
            ("context", self.context_length, 1 << 24),
        ])?;
        let Self { n_kv_heads, head_dim, .. } = *self;
        self.check_heads(KvHeads { n_kv_heads, head_dim })
    }

    fn check_heads(&self, KvHeads { n_kv_heads, head_dim }: KvHeads) -> Result<()> {
        check_sizes(&[
            ("key/value heads", n_kv_heads, 1 << 16),
            ("head width", head_dim, 1 << 16),
            ("heads times width", self.n_heads.saturating_mul(head_dim), 1 << 24),
        ])?;
        if self.n_heads.is_multiple_of(n_kv_heads) && head_dim.is_multiple_of(2) {
            return Ok(());
        }
        Err(impossible(format_args!(
            "{} heads over {n_kv_heads} key/value heads of width {head_dim}",
            self.n_heads
        )))
    }

    /// Checks the sizes of layers that differ from the model's, and those of the inputs of layers.
    ///
    /// # Errors
    /// When they are impossible.
    pub(super) fn check_layers(&self) -> Result<()> {
        check_sizes(&[("per-layer input size", self.per_layer_input_size.unwrap_or(1), 1 << 16)])?;
        if let Some(AltUpConfig { n_streams, active, .. }) = self.altup {
            check_sizes(&[("residual streams", n_streams, 64), ("active stream", active + 1, n_streams)])?;
        }
        for layer in &self.layers {
            self.check_heads(self.kv_heads(layer))?;
            check_sizes(&[("intermediate size", layer.intermediate_size.unwrap_or(1), 1 << 24)])?;
        }
        Ok(())
    }

    /// Checks that tokens are routed to at least one expert and at most all of them, and that sizes are possible.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn check_moe(&self) -> Result<()> {
        let Some(moe) = &self.moe else { return Ok(()) };
        let MoeConfig { n_experts, routing: Routing { experts_per_token, groups, .. }, .. } = *moe;
        if let Some(ExpertGroups { n_groups, groups_per_token }) = groups
            && (!(1..=n_groups).contains(&groups_per_token) || !n_experts.is_multiple_of(n_groups))
        {
            return Err(impossible(format_args!(
                "{groups_per_token} groups per token of {n_groups} groups of {n_experts} experts"
            )));
        }
        let n_eligible = groups.map_or(n_experts, |groups| groups.n_eligible(n_experts));
        if experts_per_token == 0 || experts_per_token > n_eligible {
            return Err(impossible(format_args!("{experts_per_token} experts per token of {n_eligible}")));
        }
        check_sizes(&[
            ("experts", n_experts, 1 << 16),
            ("expert size", moe.intermediate_size, 1 << 24),
            ("shared expert size", moe.shared_intermediate_size.unwrap_or(1), 1 << 24),
        ])
    }
}

impl MoeConfig {
    /// Reads the mixture of experts. Expert weights are normalized where the checkpoint does not say.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type.
    pub(super) fn from_checkpoint(checkpoint: &CheckpointConfig) -> Result<Self> {
        Ok(Self {
            n_experts: match checkpoint.integer(N_EXPERTS)?.or(checkpoint.integer(N_ROUTED_EXPERTS)?) {
                Some(n_experts) => n_experts,
                None => checkpoint.required(N_LOCAL_EXPERTS)?,
            },
            routing: Routing {
                experts_per_token: match checkpoint.integer(TOP_K_EXPERTS)? {
                    Some(n_experts) => n_experts,
                    None => checkpoint.required(EXPERTS_PER_TOKEN)?,
                },
                scoring: ExpertScore::Softmax,
                groups: None,
                normalize_weights: checkpoint.boolean(NORMALIZE_WEIGHTS)?.unwrap_or(true),
                weight_scale: checkpoint.float(WEIGHT_SCALE)?.unwrap_or(1.0) as f32,
            },
            intermediate_size: match checkpoint.integer(MOE_INTERMEDIATE_SIZE)? {
                Some(size) => size,
                None => checkpoint.required(INTERMEDIATE_SIZE)?,
            },
            shared_intermediate_size: None,
            has_dense_mlp: false,
        })
    }
}

/// One token id or several, as `config.json` and `generation_config.json` state them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}
