//! Gemma 3n's language model: several residual streams (AltUp), an augmented residual (LAuReL), an input of each layer,
//! sparse gates in the first layers, last layers that read the keys and values of others, normed values and unscaled
//! scores; otherwise Gemma 3, with one layer without a window for every four with one.

use candle_core::cpu::erf::erf_inv;

use super::config::{AltUpConfig, ModelConfig};
use super::family::DecoderFamily;
use super::gemma3::{self, set_local_ropes};
use super::gemma4::{GGUF_PER_LAYER_INPUT, SAFETENSORS_PER_LAYER_INPUT, set_gemma3n_parts};
use super::layout::{AltUpNames, DecoderLayout, LaurelNames, StreamProjections};
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gemma3n",
    model_types: &["gemma3n_text", "gemma3n"],
    gguf_architectures: &["gemma3n"],
    json_defaults: &[
        ("hidden_size", 2048.0),
        ("intermediate_size", 16_384.0),
        ("num_hidden_layers", 35.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 2.0),
        ("head_dim", 256.0),
        ("vocab_size", 262_400.0),
        ("max_position_embeddings", 32_768.0),
        ("sliding_window", 512.0),
        ("rope_theta", 1_000_000.0),
        ("rms_norm_eps", 1e-6),
        ("final_logit_softcapping", 30.0),
        ("hidden_size_per_layer_input", 256.0),
        ("num_kv_shared_layers", 15.0),
    ],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            per_layer_input: Some(SAFETENSORS_PER_LAYER_INPUT),
            altup: Some(AltUpNames {
                projections: StreamProjections::Split("model.altup_projections"),
                output_projections: StreamProjections::Split("model.altup_unembed_projections"),
                router_norm: "altup.router_norm",
                router: "altup.modality_router",
                prediction: "altup.prediction_coefs",
                correction: "altup.correction_coefs",
                gate_scale: "altup.correct_output_scale",
            }),
            laurel: Some(LaurelNames {
                left: "laurel.linear_left",
                right: "laurel.linear_right",
                post_norm: "laurel.post_laurel_norm",
            }),
            norm_offset: 0.0,
            final_norm_offset: 0.0,
            ..gemma3::FAMILY.layouts.safetensors
        },
        gguf: DecoderLayout {
            per_layer_input: Some(GGUF_PER_LAYER_INPUT),
            altup: Some(AltUpNames {
                projections: StreamProjections::Stacked("altup_proj"),
                output_projections: StreamProjections::Stacked("altup_unembd_proj"),
                router_norm: "altup_router_norm",
                router: "altup_router",
                prediction: "altup_predict_coef",
                correction: "altup_correct_coef",
                gate_scale: "altup_correct_scale.weight",
            }),
            laurel: Some(LaurelNames { left: "laurel_l", right: "laurel_r", post_norm: "laurel_post_norm" }),
            ..gemma3::FAMILY.layouts.gguf
        },
    },
};

const N_STREAMS: ConfigKey = ConfigKey::new("altup_num_inputs", "altup.num_inputs");
const ACTIVE_STREAM: ConfigKey = ConfigKey::new("altup_active_idx", "altup.active_idx");
const HAS_GATE_SCALE: ConfigKey = ConfigKey::json("altup_correct_scale");
/// The part of each layer's gates that is zero.
const SPARSITY: ConfigKey = ConfigKey::json("activation_sparsity_pattern");
/// The normal quantile of that part.
const CUTOFF: ConfigKey = ConfigKey::gguf("activation_sparsity_scale");

/// The layers with sparse gates, and their sparsity, where the checkpoint does not say; smaller models have none.
const N_SPARSE_LAYERS: usize = 10;
const DEFAULT_SPARSITY: f64 = 0.95;

/// The distance between two layers without a window.
const PATTERN: usize = 5;

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(checkpoint, |layer| !(layer + 1).is_multiple_of(PATTERN))?;
    set_local_ropes(checkpoint, config)?;
    set_gemma3n_parts(checkpoint, config)?;
    config.altup = Some(AltUpConfig {
        n_streams: checkpoint.integer(N_STREAMS)?.unwrap_or(4),
        active: checkpoint.integer(ACTIVE_STREAM)?.unwrap_or(0),
        has_gate_scale: checkpoint.boolean(HAS_GATE_SCALE)?.unwrap_or(true),
    });
    let cutoffs = match (checkpoint.floats(CUTOFF)?, checkpoint.floats(SPARSITY)?) {
        (Some(cutoffs), _) => cutoffs,
        (None, Some(sparsities)) => sparsities.into_iter().map(normal_quantile).collect(),
        (None, None) if config.layers.len() > N_SPARSE_LAYERS => {
            vec![normal_quantile(DEFAULT_SPARSITY); N_SPARSE_LAYERS]
        }
        (None, None) => Vec::new(),
    };
    for (layer, cutoff) in config.layers.iter_mut().zip(cutoffs) {
        layer.gate_cutoff = Some(cutoff).filter(|cutoff| cutoff.is_finite());
    }
    Ok(())
}

/// The standard deviations above the mean below which a part `p` of a normal distribution is; minus infinity for none.
fn normal_quantile(p: f64) -> f64 {
    if p > 0.0 { std::f64::consts::SQRT_2 * erf_inv(2.0 * p - 1.0) } else { f64::NEG_INFINITY }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::models::decoder::KvSource;

    fn config(changes: &Value) -> Result<ModelConfig> {
        let mut settings =
            json!({ "model_type": "gemma3n_text", "num_kv_shared_layers": 1, "num_hidden_layers": 11 });
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        ModelConfig::from_json(settings.to_string().as_bytes())
    }

    #[test]
    fn a_checkpoint_may_leave_everything_to_the_defaults() {
        let config = config(&json!({})).unwrap();
        let full: Vec<usize> = (0..11).filter(|&idx| config.layers[idx].window.is_none()).collect();
        assert_eq!(full, [4, 9]);
        assert_eq!(config.layers[10].kv_source, KvSource::Layer(8));
        let thetas = [3, 4].map(|idx| config.layers[idx].rope.as_ref().unwrap().theta);
        assert_eq!(thetas, [1e4, 1e6]);
        let altup = AltUpConfig { n_streams: 4, active: 0, has_gate_scale: true };
        assert_eq!(config.altup, Some(altup));
        let cutoffs: Vec<f64> = config.layers.iter().filter_map(|layer| layer.gate_cutoff).collect();
        assert_eq!(cutoffs.len(), N_SPARSE_LAYERS);
        assert!(cutoffs.iter().all(|cutoff| (cutoff - 1.644_853_627).abs() < 1e-8), "{cutoffs:?}");
    }

    #[test]
    fn an_active_stream_that_is_missing_is_refused() {
        let error = config(&json!({ "altup_num_inputs": 2, "altup_active_idx": 2 })).unwrap_err();
        assert!(error.to_string().contains("active stream"), "{error}");
    }
}
