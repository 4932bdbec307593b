//! Converts a `transformers` checkpoint to GGUF with the layout of llama.cpp's converter.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::gguf::Gguf;

/// The file layout of one GGUF architecture.
struct Architecture {
    name: &'static str,
    /// Values of `model_type` in `config.json`.
    model_types: &'static [&'static str],
    /// Replacements in tensor names, applied in order.
    names: &'static [Names],
    /// Whether the rows of query and key heads are permuted for interleaved RoPE.
    interleaved_heads: bool,
    /// Value added to norm weights.
    norm_offset: f64,
    /// Whether the file states the number of rotated dimensions.
    has_rope_dimensions: bool,
    /// Whether a sliding window of 0 means that there is none.
    has_zero_window: bool,
    /// Whether the position embeddings up to the padding token's id are dropped.
    without_padding_positions: bool,
}

/// Pairs of a part of the checkpoint's tensor name and its GGUF equivalent.
type Names = &'static [(&'static str, &'static str)];

const BASE: Architecture = Architecture {
    name: "",
    model_types: &[],
    names: &[],
    interleaved_heads: false,
    norm_offset: 0.0,
    has_rope_dimensions: false,
    has_zero_window: false,
    without_padding_positions: false,
};

const ARCHITECTURES: [Architecture; 12] = [
    Architecture {
        name: "llama",
        model_types: &["llama", "mistral"],
        names: &[DECODER],
        interleaved_heads: true,
        has_rope_dimensions: true,
        ..BASE
    },
    Architecture {
        name: "smollm3",
        model_types: &["smollm3"],
        names: &[DECODER],
        interleaved_heads: true,
        has_rope_dimensions: true,
        ..BASE
    },
    Architecture { name: "qwen2", model_types: &["qwen2"], names: &[DECODER], ..BASE },
    Architecture { name: "qwen3", model_types: &["qwen3"], names: &[DECODER], ..BASE },
    Architecture { name: "qwen3moe", model_types: &["qwen3_moe"], names: &[DECODER], ..BASE },
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        names: &[GEMMA_NORMS, DECODER],
        norm_offset: 1.0,
        ..BASE
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        names: &[GEMMA_NORMS, DECODER],
        norm_offset: 1.0,
        ..BASE
    },
    Architecture {
        name: "phi3",
        model_types: &["phi3"],
        names: &[DECODER],
        has_rope_dimensions: true,
        has_zero_window: true,
        ..BASE
    },
    Architecture { name: "bert", model_types: &["bert"], names: &[BERT], ..BASE },
    Architecture {
        name: "bert",
        model_types: &["xlm-roberta"],
        names: &[BERT],
        without_padding_positions: true,
        ..BASE
    },
    Architecture { name: "nomic-bert", model_types: &["nomic_bert"], names: &[NOMIC_BERT], ..BASE },
    Architecture { name: "modern-bert", model_types: &["modernbert"], names: &[MODERNBERT], ..BASE },
];

const DECODER: Names = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate.", "ffn_gate_inp."),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
];

const GEMMA_NORMS: Names = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const BERT: Names = &[
    ("roberta.", ""),
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer", "blk"),
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
    ("classifier.dense", "cls"),
    ("classifier.out_proj", "cls.output"),
];

const NOMIC_BERT: Names = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("emb_ln", "token_embd_norm"),
    ("encoder.layers", "blk"),
    ("attn.Wqkv", "attn_qkv"),
    ("attn.out_proj", "attn_output"),
    ("norm1", "attn_output_norm"),
    ("mlp.fc11", "ffn_up"),
    ("mlp.fc12", "ffn_gate"),
    ("mlp.fc2", "ffn_down"),
    ("norm2", "layer_output_norm"),
];

const MODERNBERT: Names = &[
    ("embeddings.tok_embeddings", "token_embd"),
    ("embeddings.norm", "token_embd_norm"),
    ("final_norm", "output_norm"),
    ("layers", "blk"),
    ("attn.Wqkv", "attn_qkv"),
    ("attn.Wo", "attn_output"),
    ("mlp_norm", "ffn_norm"),
    ("mlp.Wi", "ffn_up"),
    ("mlp.Wo", "ffn_down"),
];

/// Numeric keys: the name in `config.json`, and the GGUF name after the architecture prefix.
const NUMBERS: [(&str, &str); 21] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("head_dim", "attention.value_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("norm_eps", "attention.layer_norm_epsilon"),
    ("sliding_window", "attention.sliding_window"),
    ("local_attention", "attention.sliding_window"),
    ("global_attn_every_n_layers", "attention.sliding_window_pattern"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
];

/// The contents of a folder's `config.json`.
pub fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Converts the checkpoint in a folder, with the architecture for `model_type` and without a tokenizer.
pub fn as_gguf(folder: &Path, model_type: &str) -> Gguf {
    let architecture = ARCHITECTURES
        .iter()
        .find(|architecture| architecture.model_types.contains(&model_type))
        .unwrap_or_else(|| panic!("{folder:?}: no architecture for models of the type {model_type}"));
    let mut config = config(folder);
    let n_dropped =
        if architecture.without_padding_positions { 1 + count(&config["pad_token_id"]) } else { 0 };
    config["max_position_embeddings"] = (count(&config["max_position_embeddings"]) - n_dropped).into();
    if architecture.has_zero_window && config["sliding_window"].is_null() {
        config["sliding_window"] = 0.into();
    }

    let mut file = Gguf::default().string("general.architecture", architecture.name);
    for (name, key) in NUMBERS {
        file = number(file, &format!("{}.{key}", architecture.name), &config[name]);
    }
    file = rope(file, architecture, &config);

    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::from_iter(tensors);
    stack_experts(&mut tensors);
    // GGUF files do not have an encoder's pooler.
    for (name, mut tensor) in tensors.into_iter().filter(|(name, _)| !name.contains("pooler.")) {
        let names = architecture.names.iter().copied().flatten();
        let name = names.fold(name, |name, (from, to)| name.replace(from, to));
        let part = name.split('.').rev().nth(1);
        if architecture.interleaved_heads && part == Some("attn_q") {
            tensor = interleaved(&tensor, count(&config["num_attention_heads"]));
        }
        if architecture.interleaved_heads && part == Some("attn_k") {
            tensor = interleaved(&tensor, count(&config["num_key_value_heads"]));
        }
        if name.ends_with("norm.weight") {
            tensor = (tensor + architecture.norm_offset).unwrap();
        }
        if part == Some("attn_q_norm") {
            tensor = (tensor * query_norm_scale(&config)).unwrap();
        }
        if part == Some("position_embd") {
            tensor = tensor.narrow(0, n_dropped, tensor.dims()[0] - n_dropped).unwrap();
        }
        file = file.tensor_f32(&name, &tensor);
    }
    file
}

fn rope(file: Gguf, architecture: &Architecture, config: &Value) -> Gguf {
    let kinds = &config["rope_parameters"];
    let rope = kinds.get("full_attention").unwrap_or(kinds);
    let key = |name: &str| format!("{}.rope.{name}", architecture.name);
    let mut file = number(file, &key("freq_base"), &rope["rope_theta"]);
    file = number(file, &key("freq_base_swa"), &kinds["sliding_attention"]["rope_theta"]);
    let n_rotated = (head_dim(config) * rope["partial_rotary_factor"].as_f64().unwrap_or(1.0)) as usize;
    if architecture.has_rope_dimensions {
        file = file.u32(&key("dimension_count"), n_rotated as u32);
    }
    let divisors =
        |file: Gguf, name: &str, divisors: &[f32]| file.f32_tensor(name, &[n_rotated / 2], divisors);
    match rope["rope_type"].as_str() {
        None | Some("default") => file,
        Some("linear") => {
            number(file.string(&key("scaling.type"), "linear"), &key("scaling.factor"), &rope["factor"])
        }
        Some("llama3") => divisors(file, "rope_freqs.weight", &llama3_divisors(rope, n_rotated)),
        Some("longrope") => {
            let numbers = |name: &str| {
                let numbers = rope[name].as_array().unwrap().iter();
                numbers.map(|number| number.as_f64().unwrap() as f32).collect::<Vec<_>>()
            };
            let original = float(&rope["original_max_position_embeddings"]);
            let stretch = float(&config["max_position_embeddings"]) / original;
            let magnitude = (1.0 + stretch.ln() / original.ln()).sqrt();
            file = file.f32(&key("scaling.attn_factor"), magnitude as f32);
            file = divisors(file, "rope_factors_long.weight", &numbers("long_factor"));
            divisors(file, "rope_factors_short.weight", &numbers("short_factor"))
        }
        Some(other) => panic!("no file can hold the rope scaling {other}"),
    }
}

/// The divisor of each pair's frequency under Llama 3.1's RoPE scaling.
fn llama3_divisors(rope: &Value, n_rotated: usize) -> Vec<f32> {
    let [theta, factor, low, high, context] =
        ["rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
            .map(|name| float(&rope[name]));
    let divisor = |pair: usize| {
        let wavelength = TAU * theta.powf(2.0 * pair as f64 / n_rotated as f64);
        let weight = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - weight) / factor + weight)) as f32
    };
    (0..n_rotated / 2).map(divisor).collect()
}

/// The factor for query norm weights that makes up for a scale of attention scores other than the root of the
/// head dimension, which GGUF files cannot state.
fn query_norm_scale(config: &Value) -> f64 {
    config["query_pre_attn_scalar"].as_f64().map_or(1.0, |stated| (head_dim(config) / stated).sqrt())
}

fn head_dim(config: &Value) -> f64 {
    let usual = || float(&config["hidden_size"]) / float(&config["num_attention_heads"]);
    config["head_dim"].as_f64().unwrap_or_else(usual)
}

/// Permutes the rows of each head from two halves to interleaved pairs.
fn interleaved(tensor: &Tensor, n_heads: usize) -> Tensor {
    let n_rows = tensor.dims()[0];
    let halves = tensor.reshape((n_heads, 2, n_rows / n_heads / 2, tensor.elem_count() / n_rows)).unwrap();
    halves.transpose(1, 2).unwrap().reshape(tensor.dims()).unwrap()
}

/// Stacks the matrices of a layer's experts into one tensor per projection.
fn stack_experts(tensors: &mut BTreeMap<String, Tensor>) {
    let firsts: Vec<String> = tensors.keys().filter(|name| name.contains(".experts.0.")).cloned().collect();
    for first in firsts {
        let name = |expert: usize| first.replace(".experts.0.", &format!(".experts.{expert}."));
        let experts: Vec<Tensor> = (0..).map_while(|expert| tensors.remove(&name(expert))).collect();
        let stacked = Tensor::stack(&experts, 0).unwrap();
        tensors.insert(first.replace(".experts.0.", ".experts."), stacked);
    }
}

/// Adds a number with its type in `config.json`; any other value is left out.
fn number(file: Gguf, key: &str, value: &Value) -> Gguf {
    match (value.as_u64(), value.as_f64()) {
        (Some(count), _) => file.u32(key, count as u32),
        (None, Some(number)) => file.f32(key, number as f32),
        (None, None) => file,
    }
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap()
}
