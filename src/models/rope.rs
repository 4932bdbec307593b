//! Rotary position embedding (RoPE) as data: the rotation frequency of each pair of a head's elements.
//!
//! Pair `i` of the `n` rotary elements of a head is rotated by `position * theta^(-2i / n)`; a
//! scaling extends that beyond the context a model was first trained on. The formulas are
//! those of the scalings' papers, with the parameters of `transformers`.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use super::checkpoint_config::{CheckpointConfig, ConfigKey};
use super::family::{CONTEXT_LENGTH, impossible};
use crate::error::{Error, Result};

/// The rotary embedding of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// The number of elements at the beginning of a head that are rotated.
    pub rotary_dim: usize,
    /// The extension to longer contexts.
    pub scaling: RopeScaling,
    /// The factor that rotated queries and keys are multiplied by.
    pub attention_factor: f64,
}

/// An extension of the rotary embedding to contexts longer than the original one.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No extension.
    None,
    /// Linear scaling: all frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor` and high ones kept, with a linear ramp
    /// between them.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// The number of rotations within the original context up to which a frequency is low.
        low_freq_factor: f64,
        /// The number of rotations within the original context from which on a frequency is high.
        high_freq_factor: f64,
        /// The original context length in tokens.
        original_context: f64,
    },
    /// YaRN: pairs with more than `beta_fast` rotations within the original context keep their frequency,
    /// those with fewer than `beta_slow` have it divided by `factor`, with a linear ramp over the pairs
    /// between.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// The number of rotations above which a frequency is kept.
        beta_fast: f64,
        /// The number of rotations below which a frequency is divided.
        beta_slow: f64,
        /// The original context length in tokens.
        original_context: f64,
        /// Whether the ends of the ramp are rounded to integers.
        truncate: bool,
    },
    /// One divisor per pair, from a tensor of the checkpoint or of proportional RoPE.
    Factors(Vec<f32>),
    /// LongRoPE: one set of divisors for prompts within the original context, another for longer
    /// ones.
    LongRope {
        /// The divisors for short prompts.
        short: Vec<f32>,
        /// The divisors for long prompts.
        long: Vec<f32>,
        /// The original context length in tokens.
        original_context: usize,
    },
}

/// The key of `config.json` with the parameters of the rotary embedding, since `transformers` 5.
pub const ROPE_PARAMETERS: &str = "rope_parameters";

const THETA: ConfigKey = ConfigKey::new("rope_theta", "rope.freq_base");
const PARTIAL_FACTOR: ConfigKey = ConfigKey::json("partial_rotary_factor");
const ROTARY_DIM: ConfigKey = ConfigKey::gguf("rope.dimension_count");
/// The context length that the model was first trained on, in tokens.
pub const ORIGINAL_CONTEXT: ConfigKey =
    ConfigKey::new("original_max_position_embeddings", "rope.scaling.original_context_length");

impl Rope {
    /// Reads the rotary embedding of layers of `kind` (a value of `layer_types` in `config.json`). A
    /// checkpoint with one rotary embedding for all layers states it without a kind.
    ///
    /// # Errors
    /// When a parameter is missing or impossible, or the scaling is not supported.
    pub fn from_checkpoint(checkpoint: &CheckpointConfig, head_dim: usize, kind: &str) -> Result<Self> {
        let rope = match checkpoint {
            CheckpointConfig::Json(_) => Self::from_json(checkpoint, head_dim, kind)?,
            CheckpointConfig::Gguf { .. } => Self::from_gguf(checkpoint, head_dim)?,
        };
        rope.checked(head_dim)
    }

    /// Proportional RoPE: pairs are made over the whole head, and only the first ones, a `fraction` of them, are rotated.
    /// The frequencies of these are divided by `factor`.
    pub fn proportional(theta: f64, head_dim: usize, fraction: f64, factor: f64) -> Self {
        let n_rotated = (fraction * head_dim as f64 / 2.0) as usize;
        let divisor = |pair: usize| if pair < n_rotated { factor as f32 } else { f32::INFINITY };
        let divisors = (0..head_dim / 2).map(divisor).collect();
        Self { theta, rotary_dim: head_dim, scaling: RopeScaling::Factors(divisors), attention_factor: 1.0 }
    }

    /// The rotary embedding with another base and no scaling.
    pub fn unscaled(&self, theta: f64) -> Self {
        Self { theta, rotary_dim: self.rotary_dim, scaling: RopeScaling::None, attention_factor: 1.0 }
    }

    /// YaRN's `mscale` for the multiplier `mscale_all_dim`, by which DeepSeek scales queries and keys; one without YaRN.
    pub fn mscale(&self, multiplier: f64) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { factor, .. } => yarn_factor(factor, multiplier),
            _ => 1.0,
        }
    }

    /// The frequency of each pair in radians per position, `[rotary_dim / 2]`, for a sequence whose prompt
    /// has `n_prompt` tokens.
    pub fn frequencies(&self, n_prompt: usize) -> Vec<f32> {
        let n = self.rotary_dim as f64;
        (0..self.rotary_dim / 2)
            .map(|pair| {
                let frequency = self.theta.powf(-2.0 * pair as f64 / n);
                self.scaled_frequency(pair, frequency, n_prompt) as f32
            })
            .collect()
    }

    /// Applies the scaling to the `frequency` of a pair.
    fn scaled_frequency(&self, pair: usize, frequency: f64, n_prompt: usize) -> f64 {
        let divided = |by: &[f32]| frequency / by.get(pair).copied().map_or(1.0, f64::from);
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Factors(factors) => divided(factors),
            RopeScaling::LongRope { short, long, original_context } => {
                divided(if n_prompt > *original_context { long } else { short })
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let n_rotations = original_context * frequency / TAU;
                let keep =
                    ((n_rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                keep * frequency + (1.0 - keep) * frequency / factor
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate } => {
                let n = self.rotary_dim as f64;
                // The pair, as a real number, that makes `n_rotations` rotations.
                let pair_with = |n_rotations: f64| {
                    n * (original_context / (n_rotations * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (pair_with(*beta_fast), pair_with(*beta_slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, last) = (first.max(0.0), last.min(n - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                let ramp = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                (1.0 - ramp) * frequency + ramp * frequency / factor
            }
        }
    }

    /// Whether a prompt of `n_prompt` tokens uses the divisors for long prompts.
    pub fn is_long(&self, n_prompt: usize) -> bool {
        matches!(self.scaling, RopeScaling::LongRope { original_context, .. } if n_prompt > original_context)
    }

    /// Whether the frequencies depend on the length of the prompt.
    pub fn is_prompt_dependent(&self) -> bool {
        matches!(self.scaling, RopeScaling::LongRope { .. })
    }

    fn from_json(checkpoint: &CheckpointConfig, head_dim: usize, kind: &str) -> Result<Self> {
        // `transformers` 5 keeps base and scaling in one object, or in one per kind of layer;
        // `transformers` 4 keeps the scaling in another object and the base outside of it.
        let object = checkpoint.object(ROPE_PARAMETERS).or(checkpoint.object("rope_scaling"));
        let object = object.map(|object| object.get(kind).and_then(Value::as_object).unwrap_or(object));
        let empty = Map::new();
        let own = CheckpointConfig::Json(object.unwrap_or(&empty));
        let mut theta = own.float(THETA)?.or(checkpoint.float(THETA)?).unwrap_or(10_000.0);
        let partial = own.float(PARTIAL_FACTOR)?.or(checkpoint.float(PARTIAL_FACTOR)?).unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        let scaling = JsonScaling { checkpoint, object, own };
        if scaling.kind()? == "proportional" {
            return Ok(Self::proportional(
                theta,
                head_dim,
                partial,
                scaling.number("factor")?.unwrap_or(1.0),
            ));
        }
        if let Some(alpha) = scaling.alpha()? {
            theta *= alpha.powf(head_dim as f64 / (head_dim as f64 - 2.0));
        }
        let (scaling, attention_factor) = scaling.read()?;
        Ok(Self { theta, rotary_dim, scaling, attention_factor })
    }

    fn from_gguf(checkpoint: &CheckpointConfig, head_dim: usize) -> Result<Self> {
        let number = |name: &'static str| checkpoint.float(ConfigKey::gguf(name));
        let theta = checkpoint.float(THETA)?.unwrap_or(10_000.0);
        let rotary_dim = checkpoint.integer(ROTARY_DIM)?.unwrap_or(head_dim);
        let attention_factor = number("rope.scaling.attn_factor")?;
        let yarn_attention_factor = number("rope.scaling.yarn_attn_factor")?;
        let all_dims = number("rope.scaling.yarn_log_multiplier")?;
        let factor = number("rope.scaling.factor")?.or(number("rope.scale_linear")?);
        let required_factor =
            || factor.ok_or_else(|| Error::model("the GGUF file has a RoPE scaling without a factor"));
        let context = checkpoint.required(CONTEXT_LENGTH)? as f64;
        let original_context = checkpoint.float(ORIGINAL_CONTEXT)?.unwrap_or(context);
        let kind = checkpoint.string(ConfigKey::gguf("rope.scaling.type"))?.unwrap_or("none");
        let factors =
            (checkpoint.vector("rope_factors_short.weight")?, checkpoint.vector("rope_factors_long.weight")?);
        let (scaling, attention_factor) = match (factors, kind) {
            ((Some(short), Some(long)), _) => (
                RopeScaling::LongRope { short, long, original_context: original_context as usize },
                attention_factor
                    .unwrap_or_else(|| long_rope_factor(context / original_context, original_context)),
            ),
            (_, "none") => match checkpoint.vector("rope_freqs.weight")? {
                Some(factors) => (RopeScaling::Factors(factors), 1.0),
                None => (RopeScaling::None, 1.0),
            },
            (_, "linear") => (RopeScaling::Linear { factor: required_factor()? }, 1.0),
            (_, "yarn") => {
                let factor = required_factor()?;
                let scaling = RopeScaling::Yarn {
                    factor,
                    beta_fast: number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    original_context,
                    truncate: true,
                };
                let own_factor = yarn_attention_factor.unwrap_or_else(|| {
                    yarn_factor(factor, 1.0) / all_dims.map_or(1.0, |mscale| yarn_factor(factor, mscale))
                });
                (scaling, attention_factor.unwrap_or(1.0) * own_factor)
            }
            (_, other) => return Err(unsupported_scaling(other)),
        };
        Ok(Self { theta, rotary_dim, scaling, attention_factor })
    }

    fn checked(self, head_dim: usize) -> Result<Self> {
        let n_pairs = self.rotary_dim / 2;
        let is_valid = |factors: &[f32]| factors.len() == n_pairs && factors.iter().all(|&f| f > 0.0);
        let is_possible = self.theta > 1.0
            && self.attention_factor > 0.0
            && self.rotary_dim.is_multiple_of(2)
            && (2..=head_dim).contains(&self.rotary_dim)
            && match &self.scaling {
                RopeScaling::None => true,
                RopeScaling::Linear { factor } => *factor > 0.0,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    *factor > 0.0 && high_freq_factor > low_freq_factor && *original_context > 0.0
                }
                RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, .. } => {
                    [factor, beta_fast, beta_slow, original_context].iter().all(|&&number| number > 0.0)
                }
                RopeScaling::Factors(factors) => is_valid(factors),
                RopeScaling::LongRope { short, long, .. } => is_valid(short) && is_valid(long),
            };
        if is_possible {
            return Ok(self);
        }
        Err(impossible(format_args!(
            "rotary embedding with base {}, {} of {head_dim} elements, scaling {:?}",
            self.theta, self.rotary_dim, self.scaling
        )))
    }
}

/// The RoPE scaling of a `config.json`.
struct JsonScaling<'a> {
    checkpoint: &'a CheckpointConfig<'a>,
    /// The object with the scaling's parameters.
    object: Option<&'a Map<String, Value>>,
    /// The parameters in `object`, or none.
    own: CheckpointConfig<'a>,
}

impl JsonScaling<'_> {
    /// Reads the scaling and its attention factor.
    fn read(&self) -> Result<(RopeScaling, f64)> {
        Ok(match self.kind()? {
            "default" | "mrope" => (RopeScaling::None, 1.0),
            "dynamic" if self.alpha()?.is_some() => (RopeScaling::None, 1.0),
            "linear" => (RopeScaling::Linear { factor: self.required("factor")? }, 1.0),
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: self.required("factor")?,
                    low_freq_factor: self.required("low_freq_factor")?,
                    high_freq_factor: self.required("high_freq_factor")?,
                    original_context: self.required("original_max_position_embeddings")?,
                };
                (scaling, 1.0)
            }
            "yarn" => self.yarn()?,
            "longrope" | "su" => self.long_rope()?,
            other => return Err(unsupported_scaling(other)),
        })
    }

    fn kind(&self) -> Result<&str> {
        let kind = self.own.string(ConfigKey::json("rope_type"))?;
        Ok(kind.or(self.own.string(ConfigKey::json("type"))?).unwrap_or("default"))
    }

    /// The factor of the longest wavelength in Hunyuan's form of dynamic scaling, which does not depend on the length:
    /// "NTK-aware" scaling, a larger base.
    fn alpha(&self) -> Result<Option<f64>> {
        if self.kind()? == "dynamic" { self.number("alpha") } else { Ok(None) }
    }

    fn yarn(&self) -> Result<(RopeScaling, f64)> {
        let original_context = self.original_context()?;
        let factor = self.factor(original_context)?;
        let mscale = (self.number("mscale")?, self.number("mscale_all_dim")?);
        let attention_factor = match (self.number("attention_factor")?, mscale) {
            (Some(attention_factor), _) => attention_factor,
            (None, (Some(one), Some(all))) if one != 0.0 && all != 0.0 => {
                yarn_factor(factor, one) / yarn_factor(factor, all)
            }
            _ => yarn_factor(factor, 1.0),
        };
        let scaling = RopeScaling::Yarn {
            factor,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            original_context,
            truncate: self.own.boolean(ConfigKey::json("truncate"))?.unwrap_or(true),
        };
        Ok((scaling, attention_factor))
    }

    fn long_rope(&self) -> Result<(RopeScaling, f64)> {
        let original_context = self.original_context()?;
        let factor = self.factor(original_context)?;
        let scaling = RopeScaling::LongRope {
            short: self.factors("short_factor")?,
            long: self.factors("long_factor")?,
            original_context: original_context as usize,
        };
        let attention_factor = self.number("attention_factor")?;
        Ok((scaling, attention_factor.unwrap_or_else(|| long_rope_factor(factor, original_context))))
    }

    fn number(&self, name: &'static str) -> Result<Option<f64>> {
        self.own.float(ConfigKey::json(name))
    }

    fn required(&self, name: &'static str) -> Result<f64> {
        self.number(name)?
            .ok_or_else(|| Error::model(format!("the RoPE scaling of config.json lacks `{name}`")))
    }

    /// The per-pair divisors under `name`.
    fn factors(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.object.and_then(|object| object.get(name)).and_then(Value::as_array);
        values
            .and_then(|values| values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect())
            .ok_or_else(|| Error::model(format!("the RoPE scaling of config.json lacks the array `{name}`")))
    }

    fn context(&self) -> Result<f64> {
        Ok(self.checkpoint.required(CONTEXT_LENGTH)? as f64)
    }

    /// The original context length. A value outside of the scaling's object has precedence: Phi-3 states it
    /// there.
    fn original_context(&self) -> Result<f64> {
        match self.checkpoint.float(ORIGINAL_CONTEXT)?.or(self.own.float(ORIGINAL_CONTEXT)?) {
            Some(length) => Ok(length),
            None => self.context(),
        }
    }

    /// The factor that the context is extended by.
    fn factor(&self, original_context: f64) -> Result<f64> {
        match self.number("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.context()? / original_context),
        }
    }
}

/// YaRN's attention factor for a context extended by `factor`.
fn yarn_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// LongRoPE's attention factor for a context extended by `factor`.
fn long_rope_factor(factor: f64, original_context: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() }
}

fn unsupported_scaling(kind: &str) -> Error {
    Error::model(format!(
        "RoPE scaling `{kind}` is not supported; supported: linear, llama3, yarn, longrope, proportional"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 10_000.0, rotary_dim: 8, scaling, attention_factor: 1.0 }
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    /// `10_000^(-2i / 8)` for `i` from 0 to 3.
    const PLAIN: [f64; 4] = [1.0, 0.1, 0.01, 0.001];

    #[test]
    fn linear_scaling_divides_every_frequency() {
        assert_close(&rope(RopeScaling::None).frequencies(1), &PLAIN);
        let linear = rope(RopeScaling::Linear { factor: 4.0 }).frequencies(1);
        assert_close(&linear, &PLAIN.map(|frequency| frequency / 4.0));
    }

    #[test]
    fn proportional_rope_leaves_the_last_pairs_as_they_are() {
        let rope = Rope::proportional(10_000.0, 8, 0.5, 4.0).checked(8).unwrap();
        assert_eq!(rope.rotary_dim, 8);
        assert_close(&rope.frequencies(1)[..2], &[PLAIN[0] / 4.0, PLAIN[1] / 4.0]);
        assert_eq!(rope.frequencies(1)[2..], [0.0, 0.0]);
    }

    #[test]
    fn yarn_keeps_high_frequencies_and_divides_low_ones() {
        let yarn = |truncate| {
            rope(RopeScaling::Yarn {
                factor: 4.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: 4096.0,
                truncate,
            })
        };
        // The pairs make 652, 65, 6.5 and 0.65 rotations in the original context. As a real number, the pair
        // with 32 rotations is 4 * log10(4096 / (32 * tau)) / 4 = 1.3091, that with one rotation 2.8142;
        // truncated, the ramp goes from pair 1 to pair 3.
        let ramped = |pair: usize, ramp: f64| PLAIN[pair] * (1.0 - ramp) + PLAIN[pair] / 4.0 * ramp;
        let truncated = [PLAIN[0], PLAIN[1], ramped(2, 0.5), PLAIN[3] / 4.0];
        assert_close(&yarn(true).frequencies(1), &truncated);
        let (first, last) = ((4096.0 / (32.0 * TAU)).log10(), (4096.0 / TAU).log10());
        let exact = [PLAIN[0], PLAIN[1], ramped(2, (2.0 - first) / (last - first)), PLAIN[3] / 4.0];
        assert_close(&yarn(false).frequencies(1), &exact);
    }

    #[test]
    fn yarn_attention_factor_is_logarithmic() {
        let read = |scaling: &str| {
            let json = format!(r#"{{"max_position_embeddings": 64, "rope_scaling": {scaling}}}"#);
            let settings: Map<String, Value> = serde_json::from_str(&json).unwrap();
            Rope::from_checkpoint(&CheckpointConfig::Json(&settings), 8, "full_attention")
        };
        let attention_factor = |scaling: &str| read(scaling).map(|rope| rope.attention_factor);
        let default =
            attention_factor(r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}"#);
        assert!((default.unwrap() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let given = attention_factor(r#"{"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}"#);
        assert_eq!(given.unwrap(), 1.5);
        assert!(read(r#"{"rope_type": "dynamic", "factor": 4.0}"#).is_err());
        let dynamic = read(r#"{"rope_type": "dynamic", "alpha": 64.0}"#).unwrap();
        assert_eq!((dynamic.scaling, dynamic.theta), (RopeScaling::None, 10_000.0 * 64f64.powf(8.0 / 6.0)));
        assert!(read(r#"{"rope_type": "linear"}"#).is_err());
        assert!(read(r#"{"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}"#).is_err());
    }

    #[test]
    fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
        let rope = |scaling| Rope { theta: 500_000.0, rotary_dim: 128, scaling, attention_factor: 1.0 };
        let plain = rope(RopeScaling::None).frequencies(1);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let scaled = rope(scaling).frequencies(1);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-6);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| (0.124..=1.0001).contains(&(s / p))));
    }

    #[test]
    fn long_rope_has_other_divisors_for_long_prompts() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0; 4],
            long: vec![1.0, 2.0, 4.0, 8.0],
            original_context: 16,
        };
        let rope = rope(scaling);
        assert_close(&rope.frequencies(16), &PLAIN);
        assert_close(&rope.frequencies(17), &[1.0, 0.05, 0.0025, 0.000125]);
    }
}
