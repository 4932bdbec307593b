//! The forward pass of a causal language model.

use std::ops::AddAssign;

use candle_core::Tensor;

use super::config::{LayerConfig, LayerPlace, ModelConfig, ScoreGrowth};
use super::layer::DecoderLayer;
use super::layer_context::{LayerContext, LayerStates};
use super::loader::DecoderLoader;
use crate::error::{Error, Result};
use crate::kernels::attention::kv_block::KvLayout;
use crate::kernels::attention::window_start;
use crate::kernels::matmul::{RoundedRows, with_rounded_rows};
use crate::models::backend::{Backend, DEVICE};
use crate::models::forward_input::{ForwardInput, Span};
use crate::models::layers::altup::AltUpStreams;
use crate::models::layers::attention::{causal_mask, softcap};
use crate::models::layers::linear::{Linear, Weight, concat_linear};
use crate::models::layers::norm::{RmsNorm, RowNorm};
use crate::models::layers::per_layer_input::PerLayerInputs;
use crate::models::layers::rope::CosSinCache;
use crate::models::load::Weights;
use crate::models::model::Decoder;
use crate::models::profile::{ForwardOp, ForwardProfile};
use crate::models::rope::Rope;
use crate::models::sequence_states::SequenceStates;

/// A causal language model with its weights.
pub struct CausalLm {
    config: ModelConfig,
    backend: Backend,
    /// `[n_vocab, hidden]`
    embedding: Weight,
    embedding_norm: Option<RmsNorm>,
    per_layer_inputs: Option<PerLayerInputs>,
    altup: Option<AltUpStreams>,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Linear,
    /// The distinct kinds among the layers.
    kinds: Vec<LayerKind>,
    /// Each layer's index into `kinds`.
    layer_kinds: Vec<usize>,
    /// Each layer's place in the state of sequences.
    places: Vec<LayerPlace>,
    profile: ForwardProfile,
}

/// The work of one operation for one token, summed over all layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCost {
    /// Multiply-accumulate operations.
    pub macs: usize,
    /// Bytes of weights that are read.
    pub weight_bytes: usize,
}

impl AddAssign for OpCost {
    fn add_assign(&mut self, other: Self) {
        self.macs += other.macs;
        self.weight_bytes += other.weight_bytes;
    }
}

/// The settings that determine rotary tables, attention masks and query scales; layers of one kind share these.
#[derive(PartialEq)]
struct LayerKind {
    rope: Option<Rope>,
    window: Option<usize>,
    score_growth: Option<ScoreGrowth>,
}

/// The rotary table, the attention masks and the query scales of one batch in layers of one kind.
struct KindContext {
    cos_sin: Option<CosSinCache>,
    /// One mask per sequence; `None` where the kernels mask or nothing is hidden.
    masks: Vec<Option<Tensor>>,
    /// `[n_tokens]`
    query_scales: Option<Vec<f32>>,
}

impl CausalLm {
    /// Loads a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: ModelConfig, weights: &Weights, backend: Backend) -> Result<Self> {
        let loader = DecoderLoader::new(&config, weights, backend);
        let embedding = loader.embedding()?;
        let head = loader.head(&embedding)?;
        let layers = (0..config.layers.len()).map(|idx| loader.layer(idx)).collect::<Result<Vec<_>>>()?;
        let norm = loader.final_norm()?;
        let per_layer_inputs = loader.per_layer_inputs()?;
        let altup = loader.altup_streams()?;
        let embedding_norm = config
            .normed_embeddings
            .then(|| RmsNorm { weight: vec![1.0; config.hidden_size], eps: config.rms_norm_eps as f32 });

        let mut kinds = Vec::new();
        let layer_kinds = config
            .layers
            .iter()
            .map(|layer| {
                let LayerConfig { rope, window, score_growth, .. } = layer.clone();
                let kind = LayerKind { rope, window, score_growth };
                kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                })
            })
            .collect();
        Ok(Self {
            backend,
            embedding,
            embedding_norm,
            per_layer_inputs,
            altup,
            layers,
            norm,
            head,
            kinds,
            layer_kinds,
            places: config.layer_places(),
            profile: ForwardProfile::default(),
            config,
        })
    }

    /// The cost of each of [`ForwardOp::ALL`], attention scores and values excluded.
    pub fn costs(&self) -> [OpCost; ForwardOp::ALL.len()] {
        let mut costs = [OpCost::default(); ForwardOp::ALL.len()];
        let layer_matrices = self.layers.iter().flat_map(DecoderLayer::matrices);
        let per_layer_projection = self.per_layer_inputs.iter().map(|inputs| &inputs.projection);
        let other_matrices = per_layer_projection.map(|matrix| (ForwardOp::Embedding, matrix, 1)).chain([(
            ForwardOp::Head,
            &self.head,
            1,
        )]);
        for (op, linear, n_uses) in layer_matrices.chain(other_matrices) {
            let (macs, bytes) = linear.size();
            costs[op as usize] += OpCost { macs: n_uses * macs, weight_bytes: n_uses * bytes };
        }
        costs
    }

    /// Whether 8-bit activations make prompts faster: at least half of the work of the layers is with weights that
    /// can be multiplied with them.
    pub fn has_faster_rounded_prompts(&self) -> bool {
        let is_faster = |linear: &Linear| {
            linear.packed().is_some_and(|(isa, weight)| {
                isa.has_fast_rounding() && weight.matrix.format().is_rounded(isa)
            })
        };
        let (mut all, mut faster) = (0, 0);
        for (op, linear, n_uses) in self.layers.iter().flat_map(DecoderLayer::matrices) {
            let macs = n_uses * linear.size().0;
            all += macs;
            // Experts keep 16 bits.
            faster += if op != ForwardOp::Experts && is_faster(linear) { macs } else { 0 };
        }
        2 * faster >= all
    }

    /// The time profile of the forward passes.
    pub fn profile(&self) -> &ForwardProfile {
        &self.profile
    }

    /// Computes what every layer of a kind needs in this batch: the rotary table, the query scales and, for the
    /// reference backend, the attention mask of each sequence.
    fn kind_context(&self, kind: &LayerKind, input: &ForwardInput) -> Result<KindContext> {
        let LayerKind { rope, window, score_growth } = kind;
        let positions = input.spans.iter().flat_map(|span| span.start..span.start + span.len);
        let mask = |span: &Span| match self.backend {
            Backend::Kernels(_) | Backend::KernelsBf16(_) => Ok(None),
            Backend::Reference => {
                let end = span.start + span.len;
                causal_mask(span.start..end, window_start(span.start, *window)..end, *window)
            }
        };
        Ok(KindContext {
            cos_sin: rope.as_ref().map(|rope| CosSinCache::new(rope, &input.spans)),
            masks: input.spans.iter().map(mask).collect::<Result<_>>()?,
            query_scales: score_growth.map(|growth| positions.map(|idx| growth.factor(idx)).collect()),
        })
    }
}

impl Decoder for CausalLm {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(&mut self, states: &mut SequenceStates, input: &ForwardInput) -> Result<Tensor> {
        self.profile.start();
        let mut x = self.embedding.rows(&input.token_ids)?;
        if let Some(scale) = self.config.embedding_scale {
            x = (x * scale)?;
        }
        if let Some(norm) = &self.embedding_norm {
            x = norm.apply(self.backend.isa(), &x)?;
        }
        let per_layer = self.per_layer_inputs.as_ref();
        let per_layer = per_layer
            .map(|inputs| Ok::<_, Error>((inputs, inputs.forward(self.backend.isa(), &input.token_ids, &x)?)))
            .transpose()?;
        if let Some(altup) = &self.altup {
            x = altup.expand(&x)?;
        }
        let kinds =
            self.kinds.iter().map(|kind| self.kind_context(kind, input)).collect::<Result<Vec<_>>>()?;
        let SequenceStates { kv, recurrent } = states;
        let kv_layouts: Vec<KvLayout> = (0..kv.n_groups()).map(|group| kv.layout(group)).collect();
        let mut kv_sequences = kv.sequences(input)?;
        let state_layout = recurrent.layout();
        let mut recurrent_sequences = recurrent.sequences(input)?;
        self.profile.lap(ForwardOp::Embedding);
        let compute_layers = || {
            for (idx, layer) in self.layers.iter().enumerate() {
                let (kind, place) = (self.layer_kinds[idx], self.places[idx]);
                let per_layer_input =
                    per_layer.as_ref().map(|(inputs, all)| inputs.layer_part(all, idx)).transpose()?;
                let context = LayerContext {
                    config: &self.config,
                    backend: self.backend,
                    kv_layout: kv_layouts[place.kv_group],
                    layer_idx: place.kv_layer,
                    state_layout: &state_layout,
                    recurrent_idx: place.recurrent_layer,
                    per_layer_input: per_layer_input.as_ref(),
                    window: self.kinds[kind].window,
                    cos_sin: kinds[kind].cos_sin.as_ref(),
                    masks: &kinds[kind].masks,
                    query_scales: kinds[kind].query_scales.as_deref(),
                    profile: &self.profile,
                };
                let (kv, recurrent) = (&mut kv_sequences[place.kv_group], &mut recurrent_sequences);
                let mut states = LayerStates { kv, recurrent };
                x = layer.forward(&x, &mut states, &context)?;
            }
            Ok::<_, Error>(x)
        };
        let rounded = RoundedRows::new(input.token_ids.len(), input.rounded_rows());
        let mut x = with_rounded_rows(rounded, compute_layers)?;
        let rows = Tensor::from_slice(&input.logit_rows, input.logit_rows.len(), &DEVICE)?;
        x = x.index_select(&rows, 0)?;
        if let Some(altup) = &self.altup {
            x = altup.merge(&x)?;
        }
        let logits = concat_linear(Some(&self.norm), &[&self.head], &x)?;
        let logits = match self.config.logit_scale {
            Some(scale) => (logits * scale)?,
            None => logits,
        };
        let logits = match self.config.logit_softcap {
            Some(cap) => softcap(&logits, cap)?,
            None => logits,
        };
        self.profile.lap(ForwardOp::Head);
        Ok(logits)
    }
}
