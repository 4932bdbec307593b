//! What a decoder is: sizes, limits and the constants of its arithmetic.

use std::cmp::Reverse;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::family::Family;
use crate::error::{Error, Result};
use crate::models::fields::{Fields, Key};
use crate::models::layers::activation::Activation;
use crate::models::load::GgufFile;
use crate::models::rope::Rope;

/// A decoder, described by data.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    pub family: &'static Family,
    pub hidden_size: usize,
    /// Width of a dense MLP between its two products.
    pub intermediate_size: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub n_vocab: usize,
    /// Most tokens of a sequence, prompt and answer together.
    pub context_length: usize,
    pub rms_norm_eps: f64,
    /// Multiplies the product of a query and a key.
    pub attention_scale: f64,
    /// Bounds attention scores.
    pub attention_softcap: Option<f64>,
    /// Bounds logits.
    pub logit_softcap: Option<f64>,
    /// Multiplies the token embeddings.
    pub embedding_scale: Option<f64>,
    pub activation: Activation,
    pub experts: Option<Experts>,
    /// First to last.
    pub layers: Vec<LayerConfig>,
    /// Whether the head may be the embedding.
    pub ties_head: bool,
    /// Tokens that begin and end a text, where the checkpoint names them.
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerConfig {
    /// How far attention reaches: a query sees this many keys at most, its own among them.
    pub window: Option<usize>,
    /// How queries and keys are rotated, if they are.
    pub rope: Option<Rope>,
    /// Whether the MLP is a mixture of experts.
    pub is_mixture: bool,
}

/// The MLPs of a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub n_experts: usize,
    /// How many of them each token goes through.
    pub n_used: usize,
    pub intermediate_size: usize,
    /// Whether the weights of those used are scaled to a sum of one.
    pub normalizes: bool,
}

const HIDDEN_SIZE: Key = Key { json: "hidden_size", gguf: "embedding_length" };
const INTERMEDIATE_SIZE: Key = Key { json: "intermediate_size", gguf: "feed_forward_length" };
const N_LAYERS: Key = Key { json: "num_hidden_layers", gguf: "block_count" };
const N_HEADS: Key = Key { json: "num_attention_heads", gguf: "attention.head_count" };
const N_KV_HEADS: Key = Key { json: "num_key_value_heads", gguf: "attention.head_count_kv" };
const HEAD_DIM: Key = Key { json: "head_dim", gguf: "attention.key_length" };
const CONTEXT_LENGTH: Key = Key { json: "max_position_embeddings", gguf: "context_length" };
const RMS_NORM_EPS: Key = Key { json: "rms_norm_eps", gguf: "attention.layer_norm_rms_epsilon" };
const TIES_HEAD: Key = Key { json: "tie_word_embeddings", gguf: "" };
const WINDOW: Key = Key { json: "sliding_window", gguf: "attention.sliding_window" };

/// What `layer_types` of a `config.json` calls its kinds of layers.
pub(super) const FULL_ATTENTION: &str = "full_attention";
pub(super) const SLIDING_ATTENTION: &str = "sliding_attention";

/// Layers that see equally far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvGroup {
    /// How many tokens back, the token itself among them; `None` is all.
    pub window: Option<usize>,
    pub n_layers: usize,
}

impl ModelConfig {
    /// Whether some layer rotates the tokens of a prompt of `n_prompt` tokens otherwise than those of a
    /// short one, so that the two have no keys in common.
    pub fn rotates_as_long(&self, n_prompt: usize) -> bool {
        self.layers.iter().filter_map(|layer| layer.rope.as_ref()).any(|rope| rope.is_long(n_prompt))
    }

    /// Reads what a GGUF file says of its model.
    ///
    /// # Errors
    /// When the family is not known, a fact is missing or of the wrong type, or the sizes
    /// contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.architecture()?;
        let family = Family::of_gguf(architecture)?;
        let n_vocab = file.n_rows(&format!("{}.weight", family.gguf.embedding))?;
        let config = Self::read(&Fields::Gguf { file, architecture }, family, n_vocab)?;
        let token = |key| file.metadata().token_id(key);
        Ok(Self {
            bos_token_id: token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            ..config
        })
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When it is malformed, of an unknown family, lacks a fact, or its sizes contradict each
    /// other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let whole: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        // A model that also sees pictures keeps what it does with text in an object of its own.
        let mut facts = whole.get("text_config").and_then(Value::as_object).unwrap_or(&whole).clone();
        let model_type = facts.get("model_type").or(whole.get("model_type")).and_then(Value::as_str);
        let family = Family::of_model_type(
            model_type.ok_or_else(|| Error::model("config.json has no `model_type`"))?,
        )?;
        for (name, default) in family.json_defaults {
            let is_whole = default.fract() == 0.0;
            let default = || if is_whole { Value::from(*default as u64) } else { Value::from(*default) };
            facts.entry(*name).or_insert_with(default);
        }
        let token_ids = |name: &str| match facts.get(name).or(whole.get(name)) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(value) => OneOrMany::deserialize(value)
                .map(OneOrMany::into_vec)
                .map_err(|_| Error::model(format!("`{name}` of config.json is not a token id"))),
        };
        let (bos, eos) = (token_ids("bos_token_id")?, token_ids("eos_token_id")?);
        let fields = Fields::Json(&facts);
        let n_vocab = fields.required(Key { json: "vocab_size", gguf: "" })?;
        let config = Self::read(&fields, family, n_vocab)?;
        Ok(Self { bos_token_id: bos.first().copied(), eos_token_ids: eos, ..config })
    }

    /// Adds the end tokens that a `generation_config.json` names.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn with_generation_config(mut self, json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct GenerationConfig {
            eos_token_id: Option<OneOrMany>,
        }
        let file: GenerationConfig = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read generation_config.json: {e}")))?;
        self.eos_token_ids.extend(file.eos_token_id.map_or_else(Vec::new, OneOrMany::into_vec));
        Ok(self)
    }

    fn read(fields: &Fields, family: &'static Family, n_vocab: usize) -> Result<Self> {
        let hidden_size = fields.required(HIDDEN_SIZE)?;
        let n_heads = fields.required(N_HEADS)?;
        let n_layers = fields.required(N_LAYERS)?;
        let key = |json| Key { json, gguf: "" };
        let activation = fields.text(key("hidden_activation"))?.or(fields.text(key("hidden_act"))?);
        let head_dim = fields.integer(HEAD_DIM)?.unwrap_or(hidden_size / n_heads.max(1));
        let mut config = Self {
            family,
            hidden_size,
            intermediate_size: fields.required(INTERMEDIATE_SIZE)?,
            n_heads,
            n_kv_heads: fields.integer(N_KV_HEADS)?.unwrap_or(n_heads),
            head_dim,
            n_vocab,
            context_length: fields.required(CONTEXT_LENGTH)?,
            rms_norm_eps: fields
                .float(RMS_NORM_EPS)?
                .ok_or_else(|| Error::model(format!("{} is missing", fields.name(RMS_NORM_EPS))))?,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
            embedding_scale: None,
            activation: activation.map_or(Ok(Activation::Silu), Activation::named)?,
            experts: None,
            layers: Vec::new(),
            ties_head: fields.boolean(TIES_HEAD)?.unwrap_or(true),
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        config.check(n_layers)?;
        let rope = Rope::read(fields, head_dim, FULL_ATTENTION)?;
        config.layers = vec![LayerConfig { rope: Some(rope), ..LayerConfig::default() }; n_layers];
        config.set_windows(fields, |_| true)?;
        (family.describe)(fields, &mut config)?;
        config.check_experts()?;
        Ok(config)
    }

    /// The layers by how far they see, those that see farthest first: keys and values of a group are kept
    /// equally long.
    pub fn kv_groups(&self) -> Vec<KvGroup> {
        let mut windows: Vec<Option<usize>> = self.layers.iter().map(|layer| layer.window).collect();
        windows.sort_by_key(|window| Reverse(window.unwrap_or(usize::MAX)));
        let of_window = |group: &[Option<usize>]| KvGroup { window: group[0], n_layers: group.len() };
        windows.chunk_by(|a, b| a == b).map(of_window).collect()
    }

    /// Of each layer its group, and its place among the group's layers.
    pub fn kv_places(&self) -> Vec<(usize, usize)> {
        let groups = self.kv_groups();
        let mut n_placed = vec![0; groups.len()];
        let place = |layer: &LayerConfig| {
            let group = groups.iter().position(|group| group.window == layer.window).unwrap_or_default();
            n_placed[group] += 1;
            (group, n_placed[group] - 1)
        };
        self.layers.iter().map(place).collect()
    }

    /// Gives the checkpoint's window, if it has one, to the layers that it calls sliding, or to
    /// those that are by their index where it does not say.
    ///
    /// # Errors
    /// When a fact is of the wrong type.
    pub(super) fn set_windows(&mut self, fields: &Fields, is_sliding: impl Fn(usize) -> bool) -> Result<()> {
        let is_used = fields.boolean(Key { json: "use_sliding_window", gguf: "" })?.unwrap_or(true);
        let window = fields.integer(WINDOW)?.filter(|&window| is_used && window > 0);
        let kinds = fields.array("layer_types");
        for (idx, layer) in self.layers.iter_mut().enumerate() {
            let slides = match kinds.and_then(|kinds| kinds.get(idx)) {
                Some(kind) => kind == SLIDING_ATTENTION,
                None => is_sliding(idx),
            };
            layer.window = window.filter(|_| slides);
        }
        Ok(())
    }

    fn check(&self, n_layers: usize) -> Result<()> {
        let sizes = [
            ("hidden size", self.hidden_size, 1 << 20),
            ("intermediate size", self.intermediate_size, 1 << 24),
            ("layers", n_layers, 1 << 12),
            ("attention heads", self.n_heads, 1 << 16),
            ("key/value heads", self.n_kv_heads, 1 << 16),
            ("head width", self.head_dim, 1 << 16),
            ("heads times width", self.n_heads.saturating_mul(self.head_dim), 1 << 24),
            ("vocabulary", self.n_vocab, 1 << 24),
            ("context", self.context_length, 1 << 24),
        ];
        for (what, size, most) in sizes {
            if size == 0 || size > most {
                return Err(Error::model(format!("model configuration is impossible: {what} of {size}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(Error::model(format!(
                "model configuration is impossible: {} heads over {} key/value heads of width {}",
                self.n_heads, self.n_kv_heads, self.head_dim
            )));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<()> {
        match self.experts {
            Some(Experts { n_experts, n_used, .. }) if n_used == 0 || n_used > n_experts => {
                Err(Error::model(format!(
                    "model configuration is impossible: {n_used} experts used of {n_experts}"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused() {
        let json = |heads: usize, kv: usize| {
            format!(
                r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":{heads},
                "num_key_value_heads":{kv},"vocab_size":10,"max_position_embeddings":128,"rms_norm_eps":1e-5}}"#
            )
        };
        assert!(ModelConfig::from_json(json(4, 2).as_bytes()).is_ok());
        for (heads, kv) in [(4, 3), (0, 1), (4, 0), (3, 3)] {
            let error = ModelConfig::from_json(json(heads, kv).as_bytes()).unwrap_err();
            assert!(error.to_string().contains("impossible"), "{error}");
        }
    }
}
