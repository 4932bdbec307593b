//! The tensor names and weight layouts of decoder checkpoints.

use crate::models::family::{GateUp, Qkv};

/// The tensor names of a checkpoint, without `.weight`, and how its weights are stored. A layer's tensors have
/// the layer's prefix in front.
#[derive(Debug, Clone, Copy)]
pub struct DecoderLayout {
    /// The token embedding.
    pub embedding: &'static str,
    /// The norm before the head.
    pub norm: &'static str,
    /// The projection to the vocabulary; absent from checkpoints with tied embeddings.
    pub head: &'static str,
    /// The prefix of a layer's number.
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: Option<&'static str>,
    /// The query, key and value projections.
    pub qkv: Qkv,
    /// The norms of queries and keys; see [`QkNorm`](super::config::QkNorm).
    pub qk_norms: Option<QkNormNames>,
    /// The attention sinks, by the tensor's whole name.
    pub sinks: Option<&'static str>,
    /// The projection of the sigmoid gate of the attention output.
    pub attention_gate: Option<&'static str>,
    /// The output projection of attention.
    pub output: &'static str,
    /// The norm of the attention output before it is added to the residual.
    pub attention_post_norm: Option<&'static str>,
    /// The norm before the MLP.
    pub mlp_norm: Option<&'static str>,
    /// The gate and up projections.
    pub gate_up: GateUp,
    /// The down projection.
    pub down: &'static str,
    /// The norm of the MLP output before it is added to the residual.
    pub mlp_post_norm: Option<&'static str>,
    /// The router of a mixture of experts.
    pub router: &'static str,
    /// The experts of a mixture.
    pub experts: ExpertNames,
    /// The shared expert of a mixture.
    pub shared_expert: SharedExpertNames,
    /// The offset added to the weights of the norms in layers.
    pub norm_offset: f64,
    /// The offset added to the weights of the norm before the head.
    pub final_norm_offset: f64,
    /// Whether the rows of query and key heads are stored with the pairs of the rotary embedding interleaved.
    pub interleaved_rope: bool,
}

/// The names of the query and key norms.
#[derive(Debug, Clone, Copy)]
pub struct QkNormNames {
    /// The norm of queries.
    pub query: &'static str,
    /// The norm of keys.
    pub key: &'static str,
}

/// The tensor names of the expert that every token goes through.
#[derive(Debug, Clone, Copy)]
pub struct SharedExpertNames {
    /// The gate projection.
    pub gate: &'static str,
    /// The up projection.
    pub up: &'static str,
    /// The down projection.
    pub down: &'static str,
    /// The projection to the sigmoid gate of the expert's output.
    pub output_gate: &'static str,
}

/// The tensor names of a mixture's experts.
#[derive(Debug, Clone, Copy)]
pub enum ExpertNames {
    /// One tensor per expert and projection, `prefix.expert.name`.
    Split {
        /// The prefix of an expert's number.
        prefix: &'static str,
        /// The gate projection.
        gate: &'static str,
        /// The up projection.
        up: &'static str,
        /// The down projection.
        down: &'static str,
    },
    /// One tensor per projection with the matrices of all experts, one after the other.
    Stacked {
        /// The gate projections.
        gate: &'static str,
        /// The up projections.
        up: &'static str,
        /// The down projections.
        down: &'static str,
    },
    /// The layout of gpt-oss; see [`Weights::expert_linear`](crate::models::load::Weights::expert_linear). The rows of
    /// gate and up projections alternate.
    Alternating {
        /// The gate and up projections.
        gate_up: &'static str,
        /// The down projections.
        down: &'static str,
    },
}

impl DecoderLayout {
    /// The layout of Hugging Face checkpoints.
    pub const SAFETENSORS: Self = Self {
        embedding: "model.embed_tokens",
        norm: "model.norm",
        head: "lm_head",
        layers: "model.layers",
        attention_norm: Some("input_layernorm"),
        qkv: Qkv::Split { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
        qk_norms: None,
        sinks: None,
        attention_gate: None,
        output: "self_attn.o_proj",
        attention_post_norm: None,
        mlp_norm: Some("post_attention_layernorm"),
        gate_up: GateUp::Split { gate: "mlp.gate_proj", up: "mlp.up_proj" },
        down: "mlp.down_proj",
        mlp_post_norm: None,
        router: "mlp.gate",
        experts: ExpertNames::Split {
            prefix: "mlp.experts",
            gate: "gate_proj",
            up: "up_proj",
            down: "down_proj",
        },
        shared_expert: SharedExpertNames {
            gate: "mlp.shared_expert.gate_proj",
            up: "mlp.shared_expert.up_proj",
            down: "mlp.shared_expert.down_proj",
            output_gate: "mlp.shared_expert_gate",
        },
        norm_offset: 0.0,
        final_norm_offset: 0.0,
        interleaved_rope: false,
    };

    /// The layout of GGUF files.
    pub const GGUF: Self = Self {
        embedding: "token_embd",
        norm: "output_norm",
        head: "output",
        layers: "blk",
        attention_norm: Some("attn_norm"),
        qkv: Qkv::Split { query: "attn_q", key: "attn_k", value: "attn_v" },
        qk_norms: None,
        sinks: None,
        attention_gate: None,
        output: "attn_output",
        attention_post_norm: None,
        mlp_norm: Some("ffn_norm"),
        gate_up: GateUp::Split { gate: "ffn_gate", up: "ffn_up" },
        down: "ffn_down",
        mlp_post_norm: None,
        router: "ffn_gate_inp",
        experts: ExpertNames::Stacked { gate: "ffn_gate_exps", up: "ffn_up_exps", down: "ffn_down_exps" },
        shared_expert: SharedExpertNames {
            gate: "ffn_gate_shexp",
            up: "ffn_up_shexp",
            down: "ffn_down_shexp",
            output_gate: "ffn_gate_inp_shexp",
        },
        norm_offset: 0.0,
        final_norm_offset: 0.0,
        interleaved_rope: false,
    };
}
