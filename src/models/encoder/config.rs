//! What an encoder is: sizes, limits and the constants of its arithmetic.

use serde_json::{Map, Value};

use super::family::{EncoderFamily, Positions};
use crate::error::{Error, Result};
use crate::models::fields::{Fields, Key};
use crate::models::layers::activation::Activation;
use crate::models::load::GgufFile;
use crate::models::rope::Rope;

/// An encoder, described by data.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    pub family: &'static EncoderFamily,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_heads: usize,
    pub n_vocab: usize,
    /// Rows of the position table, or the longest text where there is none.
    pub n_positions: usize,
    pub positions: Positions,
    /// Rows of the table of token types; none without one.
    pub n_types: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub n_relative_buckets: usize,
    /// The rotations among the layers.
    pub ropes: Vec<Rope>,
    /// First to last.
    pub layers: Vec<EncoderLayerConfig>,
    /// Whether a classification head takes the mean of the hidden states instead of the first.
    pub head_takes_mean: bool,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncoderLayerConfig {
    /// How many tokens to each side attention reaches, if not all.
    pub reach: Option<usize>,
    /// Which of the rotations turns queries and keys.
    pub rope: Option<usize>,
}

const HIDDEN_SIZE: Key = Key { json: "hidden_size", gguf: "embedding_length" };
const INTERMEDIATE_SIZE: Key = Key { json: "intermediate_size", gguf: "feed_forward_length" };
const N_LAYERS: Key = Key { json: "num_hidden_layers", gguf: "block_count" };
const N_HEADS: Key = Key { json: "num_attention_heads", gguf: "attention.head_count" };
const N_POSITIONS: Key = Key { json: "max_position_embeddings", gguf: "context_length" };
const NORM_EPS: Key = Key { json: "layer_norm_eps", gguf: "attention.layer_norm_epsilon" };
/// ModernBERT's names.
const MODERN_NORM_EPS: Key = Key { json: "norm_eps", gguf: "attention.layer_norm_epsilon" };
const MODERN_ACTIVATION: Key = Key { json: "hidden_activation", gguf: "hidden_activation" };

impl EncoderConfig {
    /// Reads what a GGUF file says of its model.
    ///
    /// # Errors
    /// When the family is not known, a fact is missing or of the wrong type, or the sizes
    /// contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.architecture()?;
        let family = EncoderFamily::of_gguf(architecture)?;
        let rows = |name: &str| file.n_rows(&format!("{name}.weight"));
        let n_vocab = rows(family.gguf.words)?;
        let n_types = family.gguf.types.map_or(Ok(0), rows)?;
        let config = Self::read(&Fields::Gguf { file, architecture }, family, n_vocab, n_types)?;
        // The file's context may be shorter than its table of positions.
        let n_positions = family.gguf.positions.map_or(Ok(config.n_positions), rows)?;
        Ok(Self { n_positions, ..config })
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When it is malformed, of an unknown family, lacks a fact, or its sizes contradict each
    /// other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let mut facts: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        let model_type = facts.get("model_type").and_then(Value::as_str);
        let family = EncoderFamily::of_model_type(
            model_type.ok_or_else(|| Error::model("config.json has no `model_type`"))?,
        )?;
        for (usual, other) in family.json_aliases {
            if let Some(value) = facts.get(*other).cloned() {
                facts.entry(*usual).or_insert(value);
            }
        }
        let fields = Fields::Json(&facts);
        let key = |json| Key { json, gguf: "" };
        if fields.text(key("position_embedding_type"))?.is_some_and(|kind| kind != "absolute") {
            return Err(Error::model("encoders with relative positions are not supported"));
        }
        let n_vocab = fields.required(key("vocab_size"))?;
        let n_types = fields.integer(key("type_vocab_size"))?.unwrap_or(0);
        Self::read(&fields, family, n_vocab, n_types)
    }

    /// Most tokens one text may have.
    pub fn max_tokens(&self) -> usize {
        match self.positions {
            Positions::FromZero => self.n_positions,
            Positions::AfterPadding { padding_id } => {
                self.n_positions.saturating_sub(padding_id as usize + 1)
            }
        }
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.n_heads
    }

    /// Positions begin behind the padding token's id, which is `usual` where it is not stated.
    ///
    /// # Errors
    /// When the id is of the wrong type or leaves no positions.
    pub(super) fn set_positions_behind_padding(&mut self, fields: &Fields, usual: usize) -> Result<()> {
        let padding_id = fields.integer(Key { json: "pad_token_id", gguf: "" })?.unwrap_or(usual);
        if padding_id + 1 >= self.n_positions {
            return Err(Error::model(format!(
                "model configuration is impossible: positions behind padding token {padding_id} of {}",
                self.n_positions
            )));
        }
        self.positions = Positions::AfterPadding { padding_id: padding_id as u32 };
        Ok(())
    }

    fn read(fields: &Fields, family: &'static EncoderFamily, n_vocab: usize, n_types: usize) -> Result<Self> {
        let key = |json| Key { json, gguf: "" };
        let activation = fields.text(key("hidden_act"))?.or(fields.text(MODERN_ACTIVATION)?);
        let n_layers = fields.required(N_LAYERS)?;
        let mut config = Self {
            family,
            hidden_size: fields.required(HIDDEN_SIZE)?,
            intermediate_size: fields.required(INTERMEDIATE_SIZE)?,
            n_heads: fields.required(N_HEADS)?,
            n_vocab,
            n_positions: fields.required(N_POSITIONS)?,
            positions: Positions::FromZero,
            n_types,
            norm_eps: fields.float(NORM_EPS)?.or(fields.float(MODERN_NORM_EPS)?).unwrap_or(1e-12),
            activation: activation.map_or(Ok(Activation::Gelu), Activation::named)?,
            n_relative_buckets: fields.integer(key("relative_attention_num_buckets"))?.unwrap_or(32),
            ropes: Vec::new(),
            layers: Vec::new(),
            head_takes_mean: fields.text(key("classifier_pooling"))? == Some("mean"),
        };
        config.check(n_layers)?;
        config.layers = vec![EncoderLayerConfig::default(); n_layers];
        (family.describe)(fields, &mut config)?;
        Ok(config)
    }

    fn check(&self, n_layers: usize) -> Result<()> {
        let sizes = [
            ("hidden size", self.hidden_size, 1 << 20),
            ("intermediate size", self.intermediate_size, 1 << 24),
            ("layers", n_layers, 1 << 12),
            ("attention heads", self.n_heads, 1 << 16),
            ("vocabulary", self.n_vocab, 1 << 24),
            ("positions", self.n_positions, 1 << 24),
        ];
        for (what, size, most) in sizes {
            if size == 0 || size > most {
                return Err(Error::model(format!("model configuration is impossible: {what} of {size}")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.n_heads) {
            return Err(Error::model(format!(
                "model configuration is impossible: {} heads over a hidden size of {}",
                self.n_heads, self.hidden_size
            )));
        }
        Ok(())
    }
}
