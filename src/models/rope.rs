//! Rotary position embedding as data: how fast each pair of a head turns.
//!
//! Pair `i` of the `n` rotated numbers of a head turns by `position * theta^(-2i / n)`; the
//! scalings stretch that beyond the context a model was first trained on. Their formulas are
//! those of their papers, in the form that `transformers` gives their parameters.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use super::fields::{Fields, Key};
use crate::error::{Error, Result};

/// The rotation of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// How many numbers at the beginning of a head are rotated.
    pub n_rotated: usize,
    pub scaling: RopeScaling,
    /// What rotated queries and keys are multiplied by.
    pub magnitude: f64,
}

/// How the rotation is stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every pair `factor` times slower.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, with a linear ramp
    /// between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// YaRN: pairs that turn more than `beta_fast` times within the original context are kept,
    /// those that turn less than `beta_slow` times are slowed by `factor`, with a linear ramp over
    /// the pairs between.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_context: f64,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
    },
    /// One divisor per pair, as a tensor of the checkpoint gives them.
    Divisors(Vec<f32>),
    /// LongRoPE: one set of divisors for prompts within the original context, another for longer
    /// ones.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original_context: usize,
    },
}

const THETA: Key = Key { json: "rope_theta", gguf: "rope.freq_base" };
const PARTIAL: Key = Key { json: "partial_rotary_factor", gguf: "" };
const N_ROTATED: Key = Key { json: "", gguf: "rope.dimension_count" };
/// Where the whole configuration, not the scaling, names it.
const ORIGINAL_CONTEXT: Key =
    Key { json: "original_max_position_embeddings", gguf: "rope.scaling.original_context_length" };
const CONTEXT: Key = Key { json: "max_position_embeddings", gguf: "context_length" };

impl Rope {
    /// The rotation of layers of `kind` (as `layer_types` of a `config.json` calls them); a
    /// checkpoint with one rotation for all of them states it without a kind.
    ///
    /// # Errors
    /// When a parameter is missing or impossible, or the scaling is of a kind that is not known.
    pub fn read(fields: &Fields, head_dim: usize, kind: &str) -> Result<Self> {
        let rope = match fields {
            Fields::Json(_) => Self::from_json(fields, head_dim, kind)?,
            Fields::Gguf { .. } => Self::from_gguf(fields, head_dim)?,
        };
        rope.checked(head_dim)
    }

    /// The same rotation with another base and no scaling.
    pub fn unscaled(&self, theta: f64) -> Self {
        Self { theta, n_rotated: self.n_rotated, scaling: RopeScaling::None, magnitude: 1.0 }
    }

    /// Radians per position of each pair, `n_rotated / 2` of them, for a sequence whose prompt has
    /// `n_prompt` tokens.
    pub fn frequencies(&self, n_prompt: usize) -> Vec<f32> {
        let n = self.n_rotated as f64;
        (0..self.n_rotated / 2)
            .map(|pair| {
                let frequency = self.theta.powf(-2.0 * pair as f64 / n);
                let divided = |by: &[f32]| frequency / by.get(pair).copied().map_or(1.0, f64::from);
                let scaled = match &self.scaling {
                    RopeScaling::None => frequency,
                    RopeScaling::Linear { factor } => frequency / factor,
                    RopeScaling::Divisors(divisors) => divided(divisors),
                    RopeScaling::Long { short, long, original_context } => {
                        divided(if n_prompt > *original_context { long } else { short })
                    }
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let turns = original_context * frequency / TAU;
                        let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                            .clamp(0.0, 1.0);
                        keep * frequency + (1.0 - keep) * frequency / factor
                    }
                    RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate } => {
                        // The pair, as a real number, that turns `n_turns` times.
                        let pair_of = |n_turns: f64| {
                            n * (original_context / (n_turns * TAU)).ln() / (2.0 * self.theta.ln())
                        };
                        let (mut first, mut last) = (pair_of(*beta_fast), pair_of(*beta_slow));
                        if *truncate {
                            (first, last) = (first.floor(), last.ceil());
                        }
                        let (first, last) = (first.max(0.0), last.min(n - 1.0));
                        let width = if first == last { 0.001 } else { last - first };
                        let slow = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                        (1.0 - slow) * frequency + slow * frequency / factor
                    }
                };
                scaled as f32
            })
            .collect()
    }

    /// Whether a prompt of `n_prompt` tokens is rotated as a long one.
    pub fn is_long(&self, n_prompt: usize) -> bool {
        matches!(self.scaling, RopeScaling::Long { original_context, .. } if n_prompt > original_context)
    }

    /// Whether the length of the prompt changes the rotation.
    pub fn depends_on_prompt(&self) -> bool {
        matches!(self.scaling, RopeScaling::Long { .. })
    }

    fn from_json(fields: &Fields, head_dim: usize, kind: &str) -> Result<Self> {
        // `transformers` 5 keeps base and scaling in one object, or in one per kind of layer;
        // `transformers` 4 keeps the scaling in another and the base beside it.
        let object = fields.object("rope_parameters").or(fields.object("rope_scaling"));
        let object = object.map(|object| object.get(kind).and_then(Value::as_object).unwrap_or(object));
        let empty = Map::new();
        let own = Fields::Json(object.unwrap_or(&empty));
        let theta = own.float(THETA)?.or(fields.float(THETA)?).unwrap_or(10_000.0);
        let partial = own.float(PARTIAL)?.or(fields.float(PARTIAL)?).unwrap_or(1.0);
        let n_rotated = (head_dim as f64 * partial) as usize;

        let number = |name: &'static str| own.float(Key { json: name, gguf: "" });
        let required = |name: &'static str| {
            number(name)?.ok_or_else(|| Error::model(format!("config.json: the rope scaling lacks `{name}`")))
        };
        let context = || -> Result<f64> { Ok(fields.required(CONTEXT)? as f64) };
        // The whole configuration's word goes first: Phi-3 states it there.
        let original_context = || -> Result<f64> {
            match fields.float(ORIGINAL_CONTEXT)?.or(own.float(ORIGINAL_CONTEXT)?) {
                Some(length) => Ok(length),
                None => context(),
            }
        };
        let attention_factor = number("attention_factor")?;
        let kind = own.text(Key { json: "rope_type", gguf: "" })?;
        let kind = kind.or(own.text(Key { json: "type", gguf: "" })?).unwrap_or("default");
        let (scaling, magnitude) = match kind {
            "default" | "mrope" => (RopeScaling::None, 1.0),
            "linear" => (RopeScaling::Linear { factor: required("factor")? }, 1.0),
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor: required("low_freq_factor")?,
                    high_freq_factor: required("high_freq_factor")?,
                    original_context: required("original_max_position_embeddings")?,
                };
                (scaling, 1.0)
            }
            "yarn" => {
                let original_context = original_context()?;
                let factor = match number("factor")? {
                    Some(factor) => factor,
                    None => context()? / original_context,
                };
                let usual = |scale: f64| {
                    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
                };
                let magnitude = match (attention_factor, number("mscale")?, number("mscale_all_dim")?) {
                    (Some(magnitude), ..) => magnitude,
                    (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => usual(one) / usual(all),
                    _ => usual(1.0),
                };
                let scaling = RopeScaling::Yarn {
                    factor,
                    beta_fast: number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: number("beta_slow")?.unwrap_or(1.0),
                    original_context,
                    truncate: own.boolean(Key { json: "truncate", gguf: "" })?.unwrap_or(true),
                };
                (scaling, magnitude)
            }
            "longrope" | "su" => {
                let original_context = original_context()?;
                let stretch = match number("factor")? {
                    Some(factor) => factor,
                    None => context()? / original_context,
                };
                let divisors = |name: &str| -> Result<Vec<f32>> {
                    let values = object.and_then(|object| object.get(name)).and_then(Value::as_array);
                    values
                        .and_then(|values| values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect())
                        .ok_or_else(|| {
                            Error::model(format!("config.json: the rope scaling lacks the numbers `{name}`"))
                        })
                };
                let scaling = RopeScaling::Long {
                    short: divisors("short_factor")?,
                    long: divisors("long_factor")?,
                    original_context: original_context as usize,
                };
                (scaling, attention_factor.unwrap_or_else(|| long_magnitude(stretch, original_context)))
            }
            other => return Err(unknown_scaling(other)),
        };
        Ok(Self { theta, n_rotated, scaling, magnitude })
    }

    fn from_gguf(fields: &Fields, head_dim: usize) -> Result<Self> {
        let number = |name: &'static str| fields.float(Key { json: "", gguf: name });
        let theta = fields.float(THETA)?.unwrap_or(10_000.0);
        let n_rotated = fields.integer(N_ROTATED)?.unwrap_or(head_dim);
        let attention_factor = number("rope.scaling.attn_factor")?;
        let factor = number("rope.scaling.factor")?.or(number("rope.scale_linear")?);
        let required_factor =
            || factor.ok_or_else(|| Error::model("GGUF file has a rope scaling without a factor"));
        let context = fields.required(CONTEXT)? as f64;
        let original_context = fields.float(ORIGINAL_CONTEXT)?.unwrap_or(context);
        let kind = fields.text(Key { json: "", gguf: "rope.scaling.type" })?.unwrap_or("none");
        let divisors =
            (fields.vector("rope_factors_short.weight")?, fields.vector("rope_factors_long.weight")?);
        let (scaling, magnitude) = match (divisors, kind) {
            ((Some(short), Some(long)), _) => (
                RopeScaling::Long { short, long, original_context: original_context as usize },
                attention_factor
                    .unwrap_or_else(|| long_magnitude(context / original_context, original_context)),
            ),
            (_, "none") => match fields.vector("rope_freqs.weight")? {
                Some(divisors) => (RopeScaling::Divisors(divisors), 1.0),
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
                (scaling, attention_factor.unwrap_or(1.0) * (0.1 * factor.max(1.0).ln() + 1.0))
            }
            (_, other) => return Err(unknown_scaling(other)),
        };
        Ok(Self { theta, n_rotated, scaling, magnitude })
    }

    fn checked(self, head_dim: usize) -> Result<Self> {
        let n_pairs = self.n_rotated / 2;
        let fits = |divisors: &[f32]| divisors.len() == n_pairs && divisors.iter().all(|&d| d > 0.0);
        let is_possible = self.theta > 1.0
            && self.magnitude > 0.0
            && self.n_rotated.is_multiple_of(2)
            && (2..=head_dim).contains(&self.n_rotated)
            && match &self.scaling {
                RopeScaling::None => true,
                RopeScaling::Linear { factor } => *factor > 0.0,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    *factor > 0.0 && high_freq_factor > low_freq_factor && *original_context > 0.0
                }
                RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, .. } => {
                    [factor, beta_fast, beta_slow, original_context].iter().all(|&&number| number > 0.0)
                }
                RopeScaling::Divisors(divisors) => fits(divisors),
                RopeScaling::Long { short, long, .. } => fits(short) && fits(long),
            };
        if is_possible {
            return Ok(self);
        }
        Err(Error::model(format!(
            "model configuration is impossible: rotary embedding with base {}, {} of {head_dim} numbers \
             rotated, scaling {:?}",
            self.theta, self.n_rotated, self.scaling
        )))
    }
}

/// LongRoPE's magnitude for a context `stretch` times the original one.
fn long_magnitude(stretch: f64, original_context: f64) -> f64 {
    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original_context.ln()).sqrt() }
}

fn unknown_scaling(kind: &str) -> Error {
    Error::model(format!("rope scaling `{kind}` is not supported; supported: linear, llama3, yarn, longrope"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 10_000.0, n_rotated: 8, scaling, magnitude: 1.0 }
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    /// `10_000^(-2i / 8)` for i of 0 to 3.
    const PLAIN: [f64; 4] = [1.0, 0.1, 0.01, 0.001];

    #[test]
    fn linear_scaling_slows_every_pair() {
        assert_close(&rope(RopeScaling::None).frequencies(1), &PLAIN);
        let linear = rope(RopeScaling::Linear { factor: 4.0 }).frequencies(1);
        assert_close(&linear, &PLAIN.map(|frequency| frequency / 4.0));
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_slows_slow_ones() {
        let yarn = |truncate| {
            rope(RopeScaling::Yarn {
                factor: 4.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: 4096.0,
                truncate,
            })
        };
        // Pairs turn 652, 65, 6.5 and 0.65 times in the original context. As real numbers, the one
        // that turns 32 times is 4 * log10(4096 / (32 * tau)) / 4 = 1.3091, the one that turns once
        // 2.8142; whole, the ramp goes from pair 1 to pair 3.
        let ramped = |pair: usize, slow: f64| PLAIN[pair] * (1.0 - slow) + PLAIN[pair] / 4.0 * slow;
        let whole = [PLAIN[0], PLAIN[1], ramped(2, 0.5), PLAIN[3] / 4.0];
        assert_close(&yarn(true).frequencies(1), &whole);
        let (first, last) = ((4096.0 / (32.0 * TAU)).log10(), (4096.0 / TAU).log10());
        let exact = [PLAIN[0], PLAIN[1], ramped(2, (2.0 - first) / (last - first)), PLAIN[3] / 4.0];
        assert_close(&yarn(false).frequencies(1), &exact);
    }

    #[test]
    fn yarn_magnifies_by_the_logarithm_of_its_factor() {
        let read = |scaling: &str| {
            let json = format!(r#"{{"max_position_embeddings": 64, "rope_scaling": {scaling}}}"#);
            let facts: Map<String, Value> = serde_json::from_str(&json).unwrap();
            Rope::read(&Fields::Json(&facts), 8, "full_attention").map(|rope| rope.magnitude)
        };
        let magnitude = read(r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}"#);
        assert!((magnitude.unwrap() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let given = read(r#"{"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}"#);
        assert_eq!(given.unwrap(), 1.5);
        assert!(read(r#"{"rope_type": "dynamic", "factor": 4.0}"#).is_err());
        assert!(read(r#"{"rope_type": "linear"}"#).is_err());
        assert!(read(r#"{"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}"#).is_err());
    }

    #[test]
    fn llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let rope = |scaling| Rope { theta: 500_000.0, n_rotated: 128, scaling, magnitude: 1.0 };
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
    fn long_prompts_have_divisors_of_their_own() {
        let scaling =
            RopeScaling::Long { short: vec![1.0; 4], long: vec![1.0, 2.0, 4.0, 8.0], original_context: 16 };
        let rope = rope(scaling);
        assert_close(&rope.frequencies(16), &PLAIN);
        assert_close(&rope.frequencies(17), &[1.0, 0.05, 0.0025, 0.000125]);
    }
}
