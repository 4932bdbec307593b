//! What a decoder is: sizes, limits and the few constants of its arithmetic, read from GGUF
//! metadata or from a Hugging Face `config.json`.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::gguf::{self, Metadata};

/// Sizes and constants of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Name of the family, as the checkpoint says it.
    pub architecture: String,
    pub hidden_size: usize,
    /// Width of the MLP between its two products.
    pub intermediate_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub n_vocab: usize,
    /// Most tokens of a sequence, prompt and answer together.
    pub context_length: usize,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    /// Tokens that begin and end a text, where the checkpoint names them.
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Rotary position embedding: pair `i` of a head turns by `position * theta^(-2i / head_dim)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the rotation is stretched beyond the context a model was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, with a linear ramp
    /// between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// One divisor per pair, as a tensor of the checkpoint gives them.
    Divisors(Vec<f32>),
}

impl Rope {
    /// Radians per position of each pair, `head_dim / 2` of them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|pair| {
                let frequency = self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
                let scaled = match &self.scaling {
                    RopeScaling::None => frequency,
                    RopeScaling::Divisors(divisors) => {
                        frequency / divisors.get(pair).copied().map_or(1.0, f64::from)
                    }
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let turns = original_context * frequency / std::f64::consts::TAU;
                        let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                            .clamp(0.0, 1.0);
                        keep * frequency + (1.0 - keep) * frequency / factor
                    }
                };
                scaled as f32
            })
            .collect()
    }
}

impl DecoderConfig {
    /// Reads the keys of a GGUF file. `n_vocab` is the number of rows of its token embedding,
    /// `rope_divisors` its `rope_freqs.weight` where it has one.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type, or the sizes contradict each other.
    pub fn from_gguf(metadata: &Metadata, n_vocab: usize, rope_divisors: Option<Vec<f32>>) -> Result<Self> {
        const ARCHITECTURE: &str = "general.architecture";
        let architecture =
            metadata.string(ARCHITECTURE)?.ok_or_else(|| gguf::missing(ARCHITECTURE))?.to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        let integer = |name: &str| metadata.integer::<usize>(&key(name));
        let float = |name: &str| metadata.float(&key(name));
        let required = |name: &str| integer(name)?.ok_or_else(|| gguf::missing(&key(name)));
        if let Some(kind) = metadata.string(&key("rope.scaling.type"))?.filter(|kind| *kind != "none") {
            return Err(Error::model(format!(
                "GGUF file asks for rope scaling `{kind}`, which is not supported"
            )));
        }
        let hidden_size = required("embedding_length")?;
        let n_heads = required("attention.head_count")?;
        let eps = "attention.layer_norm_rms_epsilon";
        Self {
            hidden_size,
            intermediate_size: required("feed_forward_length")?,
            n_layers: required("block_count")?,
            n_heads,
            n_kv_heads: integer("attention.head_count_kv")?.unwrap_or(n_heads),
            head_dim: integer("attention.key_length")?.unwrap_or(hidden_size / n_heads.max(1)),
            n_vocab,
            context_length: required("context_length")?,
            rms_norm_eps: float(eps)?.ok_or_else(|| gguf::missing(&key(eps)))?,
            rope: Rope {
                theta: float("rope.freq_base")?.unwrap_or(10_000.0),
                scaling: rope_divisors.map_or(RopeScaling::None, RopeScaling::Divisors),
            },
            bos_token_id: metadata.integer("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: metadata.integer("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            architecture,
        }
        .checked()
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When it is malformed, lacks a field, or asks for something this decoder does not do.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let file: ConfigFile = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        let rope = file.rope()?;
        if file.hidden_act.as_deref().is_some_and(|activation| activation != "silu") {
            return Err(Error::model("config.json: only the activation silu is supported"));
        }
        if file.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err(Error::model("config.json: partial rotary embedding is not supported"));
        }
        Self {
            architecture: file.model_type,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            n_layers: file.num_hidden_layers,
            n_heads: file.num_attention_heads,
            n_kv_heads: file.num_key_value_heads.unwrap_or(file.num_attention_heads),
            head_dim: file.head_dim.unwrap_or(file.hidden_size / file.num_attention_heads.max(1)),
            n_vocab: file.vocab_size,
            context_length: file.max_position_embeddings,
            rms_norm_eps: file.rms_norm_eps,
            rope,
            bos_token_id: file.bos_token_id,
            eos_token_ids: file.eos_token_id.map_or_else(Vec::new, OneOrMany::into_vec),
        }
        .checked()
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

    fn checked(self) -> Result<Self> {
        let sizes = [
            ("hidden size", self.hidden_size),
            ("intermediate size", self.intermediate_size),
            ("layers", self.n_layers),
            ("attention heads", self.n_heads),
            ("key/value heads", self.n_kv_heads),
            ("head width", self.head_dim),
            ("heads times width", self.n_heads.saturating_mul(self.head_dim)),
            ("vocabulary", self.n_vocab),
            ("context", self.context_length),
        ];
        for (what, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return Err(Error::model(format!("model configuration is impossible: {what} of {size}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(Error::model(format!(
                "model configuration is impossible: {} heads over {} key/value heads of width {}",
                self.n_heads, self.n_kv_heads, self.head_dim
            )));
        }
        Ok(self)
    }
}

/// The fields of `config.json` that matter here.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Where `transformers` 4 keeps the scaling.
    rope_scaling: Option<RopeFile>,
    /// Where `transformers` 5 keeps base and scaling.
    rope_parameters: Option<RopeFile>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct RopeFile {
    rope_type: Option<String>,
    /// The older name of `rope_type`; many files carry both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
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

impl ConfigFile {
    fn rope(&self) -> Result<Rope> {
        let file = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = file.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = match file.and_then(|rope| {
            let kind = rope.rope_type.as_deref().or(rope.old_rope_type.as_deref())?;
            Some((rope, kind))
        }) {
            None | Some((_, "default")) => RopeScaling::None,
            Some((rope, "llama3")) => {
                let field = |name: &str, value: Option<f64>| {
                    value.ok_or_else(|| {
                        Error::model(format!("config.json: llama3 rope scaling lacks `{name}`"))
                    })
                };
                RopeScaling::Llama3 {
                    factor: field("factor", rope.factor)?,
                    low_freq_factor: field("low_freq_factor", rope.low_freq_factor)?,
                    high_freq_factor: field("high_freq_factor", rope.high_freq_factor)?,
                    original_context: field(
                        "original_max_position_embeddings",
                        rope.original_max_position_embeddings,
                    )?,
                }
            }
            Some((_, other)) => {
                return Err(Error::model(format!("config.json: rope scaling `{other}` is not supported")));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-6);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| (0.124..=1.0001).contains(&(s / p))));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let json = |heads: usize, kv: usize| {
            format!(
                r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":{heads},
                "num_key_value_heads":{kv},"vocab_size":10,"max_position_embeddings":128,"rms_norm_eps":1e-5}}"#
            )
        };
        assert!(DecoderConfig::from_json(json(4, 2).as_bytes()).is_ok());
        for (heads, kv) in [(4, 3), (0, 1), (4, 0), (3, 3)] {
            let error = DecoderConfig::from_json(json(heads, kv).as_bytes()).unwrap_err();
            assert!(error.to_string().contains("impossible"), "{error}");
        }
    }
}
