//! The configuration of an encoder: sizes, limits and constants.

use super::layout::EncoderLayout;
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{
    CONTEXT_LENGTH, CheckpointLayouts, HIDDEN_ACT, HIDDEN_SIZE, INTERMEDIATE_SIZE, N_HEADS, N_LAYERS,
    check_sizes, impossible,
};
use crate::models::rope::Rope;

/// An encoder, described by data.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// The name of the model family.
    pub family: &'static str,
    /// The tensor names in the family's checkpoints.
    pub layouts: &'static CheckpointLayouts<EncoderLayout>,
    /// The length of a hidden state.
    pub hidden_size: usize,
    /// The width of an MLP between its two projections.
    pub intermediate_size: usize,
    /// The number of attention heads.
    pub n_heads: usize,
    /// The number of tokens in the vocabulary.
    pub n_vocab: usize,
    /// The number of rows in the position table, or the maximum text length of models without one.
    pub n_positions: usize,
    /// The assignment of rows of the position table to tokens.
    pub position_ids: PositionIds,
    /// The number of rows in the table of token types; 0 without one.
    pub n_types: usize,
    /// The placement of the norms of every layer.
    pub norm_placement: NormPlacement,
    /// The epsilon of every norm.
    pub norm_eps: f64,
    /// The activation function of the MLPs.
    pub activation: ActivationFn,
    /// The number of buckets of relative attention biases.
    pub n_relative_buckets: usize,
    /// The distinct rotary embeddings among the layers.
    pub ropes: Vec<Rope>,
    /// The layers, first to last.
    pub layers: Vec<EncoderLayerConfig>,
    /// Whether a classification head takes the mean of the hidden states instead of the first one.
    pub mean_pooled_head: bool,
}

/// The settings that may differ from layer to layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncoderLayerConfig {
    /// The attention window: the maximum distance between a query and a key, on either side.
    pub window: Option<usize>,
    /// The rotary embedding of queries and keys, an index into [`EncoderConfig::ropes`].
    pub rope: Option<usize>,
}

/// The placement of a layer's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the MLP (pre-norm). The first attention has none, as its input is
    /// normalized.
    Pre,
    /// After each sum with the residual (post-norm).
    Post,
}

/// The assignment of rows of the position table to the tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionIds {
    /// Consecutive rows from 0 on.
    FromZero,
    /// Consecutive rows after the padding token's id. A padding token has the row of its id.
    AfterPadding {
        /// The id of the padding token.
        padding_id: u32,
    },
}

const NORM_EPS: ConfigKey = ConfigKey::new("layer_norm_eps", "attention.layer_norm_epsilon");
/// ModernBERT's name of [`NORM_EPS`].
const MODERN_NORM_EPS: ConfigKey = ConfigKey::new("norm_eps", "attention.layer_norm_epsilon");
/// ModernBERT's name of [`HIDDEN_ACT`].
const HIDDEN_ACTIVATION: ConfigKey = ConfigKey::new("hidden_activation", "hidden_activation");
const RELATIVE_BUCKETS: ConfigKey = ConfigKey::json("relative_attention_num_buckets");
const HEAD_POOLING: ConfigKey = ConfigKey::json("classifier_pooling");
const PADDING_ID: ConfigKey = ConfigKey::json("pad_token_id");

impl EncoderConfig {
    /// Reads the settings that BERT has, too; the family then sets all others.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type, or the sizes contradict each other.
    pub(super) fn from_checkpoint(
        checkpoint: &CheckpointConfig,
        family: &'static str,
        layouts: &'static CheckpointLayouts<EncoderLayout>,
        n_vocab: usize,
        n_types: usize,
    ) -> Result<Self> {
        let activation = checkpoint.string(HIDDEN_ACT)?.or(checkpoint.string(HIDDEN_ACTIVATION)?);
        let n_layers = checkpoint.required(N_LAYERS)?;
        let mut config = Self {
            family,
            layouts,
            hidden_size: checkpoint.required(HIDDEN_SIZE)?,
            intermediate_size: checkpoint.required(INTERMEDIATE_SIZE)?,
            n_heads: checkpoint.required(N_HEADS)?,
            n_vocab,
            n_positions: checkpoint.required(CONTEXT_LENGTH)?,
            position_ids: PositionIds::FromZero,
            n_types,
            norm_placement: NormPlacement::Post,
            norm_eps: checkpoint.float(NORM_EPS)?.or(checkpoint.float(MODERN_NORM_EPS)?).unwrap_or(1e-12),
            activation: activation.map_or(Ok(ActivationFn::Gelu), ActivationFn::from_name)?,
            n_relative_buckets: checkpoint.integer(RELATIVE_BUCKETS)?.unwrap_or(32),
            ropes: Vec::new(),
            layers: Vec::new(),
            mean_pooled_head: checkpoint.string(HEAD_POOLING)? == Some("mean"),
        };
        config.validate(n_layers)?;
        config.layers = vec![EncoderLayerConfig::default(); n_layers];
        Ok(config)
    }

    /// The maximum number of tokens in one text.
    pub fn max_tokens(&self) -> usize {
        match self.position_ids {
            PositionIds::FromZero => self.n_positions,
            PositionIds::AfterPadding { padding_id } => {
                self.n_positions.saturating_sub(padding_id as usize + 1)
            }
        }
    }

    /// The width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.n_heads
    }

    /// Makes positions begin after the padding token's id, by default `default_id`.
    ///
    /// # Errors
    /// When the id is of the wrong type or leaves no positions.
    pub(super) fn set_positions_after_padding(
        &mut self,
        checkpoint: &CheckpointConfig,
        default_id: usize,
    ) -> Result<()> {
        let padding_id = checkpoint.integer(PADDING_ID)?.unwrap_or(default_id);
        if padding_id >= self.n_positions.saturating_sub(1) {
            let n_positions = self.n_positions;
            return Err(impossible(format_args!(
                "positions after padding token {padding_id} of {n_positions}"
            )));
        }
        self.position_ids = PositionIds::AfterPadding { padding_id: padding_id as u32 };
        Ok(())
    }

    fn validate(&self, n_layers: usize) -> Result<()> {
        check_sizes(&[
            ("hidden size", self.hidden_size, 1 << 20),
            ("intermediate size", self.intermediate_size, 1 << 24),
            ("layers", n_layers, 1 << 12),
            ("attention heads", self.n_heads, 1 << 16),
            ("vocabulary", self.n_vocab, 1 << 24),
            ("positions", self.n_positions, 1 << 24),
        ])?;
        if !self.hidden_size.is_multiple_of(self.n_heads) {
            return Err(impossible(format_args!(
                "{} heads over a hidden size of {}",
                self.n_heads, self.hidden_size
            )));
        }
        Ok(())
    }
}
