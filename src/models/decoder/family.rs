//! The families of decoders, and how each lays out its checkpoints.

use super::config::ModelConfig;
use super::{gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3, qwen3_moe, smollm3};
use crate::error::{Error, Result};
use crate::models::fields::Fields;

/// What makes a family differ from the others.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    /// What `model_type` of a `config.json` calls it.
    pub model_types: &'static [&'static str],
    /// What `general.architecture` of a GGUF file calls it.
    pub gguf_architectures: &'static [&'static str],
    /// Facts that its `config.json` may leave out.
    pub json_defaults: &'static [(&'static str, f64)],
    /// Sets what is not as in a llama.
    pub describe: fn(&Fields, &mut ModelConfig) -> Result<()>,
    pub safetensors: Layout,
    pub gguf: Layout,
}

/// What the tensors of a checkpoint are called, without `.weight`, and how they lie. The names of
/// a layer's parts stand behind the layer's own.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub embedding: &'static str,
    pub norm: &'static str,
    /// Absent where the head is the embedding.
    pub head: &'static str,
    /// In front of a layer's number.
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub qkv: Qkv,
    /// Of each query and key head, before they are rotated.
    pub head_norms: Option<HeadNorms>,
    pub output: &'static str,
    /// Of what attention adds to the residual.
    pub attention_post_norm: Option<&'static str>,
    pub mlp_norm: &'static str,
    pub gate_up: GateUp,
    pub down: &'static str,
    /// Of what the MLP adds to the residual.
    pub mlp_post_norm: Option<&'static str>,
    /// What chooses the experts of a mixture.
    pub router: &'static str,
    pub experts: ExpertNames,
    /// Added to the weights of every norm.
    pub norm_offset: f64,
    /// Whether the halves of query and key heads are interleaved.
    pub interleaves_heads: bool,
}

/// The query, key and value projections.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    Apart {
        query: &'static str,
        key: &'static str,
        value: &'static str,
    },
    /// One matrix of all their rows, in this order.
    Fused(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub struct HeadNorms {
    pub query: &'static str,
    pub key: &'static str,
}

/// The first two products of an MLP.
#[derive(Debug, Clone, Copy)]
pub enum GateUp {
    Apart {
        gate: &'static str,
        up: &'static str,
    },
    /// One matrix of all their rows, in this order.
    Fused(&'static str),
}

/// The MLPs of a mixture.
#[derive(Debug, Clone, Copy)]
pub enum ExpertNames {
    /// Each matrix on its own, `prefix.expert.name`.
    Apart { prefix: &'static str, gate: &'static str, up: &'static str, down: &'static str },
    /// The matrices of all experts, one behind the other.
    Stacked { gate: &'static str, up: &'static str, down: &'static str },
}

/// Every family, in the order of their files.
const FAMILIES: [&Family; 9] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
];

impl Layout {
    /// The names in Hugging Face's checkpoints.
    pub const SAFETENSORS: Self = Self {
        embedding: "model.embed_tokens",
        norm: "model.norm",
        head: "lm_head",
        layers: "model.layers",
        attention_norm: "input_layernorm",
        qkv: Qkv::Apart { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
        head_norms: None,
        output: "self_attn.o_proj",
        attention_post_norm: None,
        mlp_norm: "post_attention_layernorm",
        gate_up: GateUp::Apart { gate: "mlp.gate_proj", up: "mlp.up_proj" },
        down: "mlp.down_proj",
        mlp_post_norm: None,
        router: "mlp.gate",
        experts: ExpertNames::Apart {
            prefix: "mlp.experts",
            gate: "gate_proj",
            up: "up_proj",
            down: "down_proj",
        },
        norm_offset: 0.0,
        interleaves_heads: false,
    };

    /// The names in GGUF files.
    pub const GGUF: Self = Self {
        embedding: "token_embd",
        norm: "output_norm",
        head: "output",
        layers: "blk",
        attention_norm: "attn_norm",
        qkv: Qkv::Apart { query: "attn_q", key: "attn_k", value: "attn_v" },
        head_norms: None,
        output: "attn_output",
        attention_post_norm: None,
        mlp_norm: "ffn_norm",
        gate_up: GateUp::Apart { gate: "ffn_gate", up: "ffn_up" },
        down: "ffn_down",
        mlp_post_norm: None,
        router: "ffn_gate_inp",
        experts: ExpertNames::Stacked { gate: "ffn_gate_exps", up: "ffn_up_exps", down: "ffn_down_exps" },
        norm_offset: 0.0,
        interleaves_heads: false,
    };
}

impl Family {
    /// A family without a name that is a llama in every respect.
    pub(super) const BASE: Self = Self {
        name: "",
        model_types: &[],
        gguf_architectures: &[],
        json_defaults: &[],
        describe: |_, _| Ok(()),
        safetensors: Layout::SAFETENSORS,
        gguf: Layout::GGUF,
    };

    /// The family that a `config.json` calls `model_type`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_model_type(model_type: &str) -> Result<&'static Self> {
        Self::find(model_type, |family| family.model_types)
    }

    /// The family that a GGUF file calls `architecture`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_gguf(architecture: &str) -> Result<&'static Self> {
        Self::find(architecture, |family| family.gguf_architectures)
    }

    fn find(name: &str, names: fn(&Self) -> &'static [&'static str]) -> Result<&'static Self> {
        FAMILIES.into_iter().find(|family| names(family).contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| names(family)).copied().collect();
            Error::model(format!(
                "models of the family `{name}` are not supported; supported: {}",
                known.join(", ")
            ))
        })
    }
}
