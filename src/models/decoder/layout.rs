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
    /// Whether each head of the query projection has the rows of this gate behind its own.
    pub has_gated_queries: bool,
    /// The projections of latent attention.
    pub latent_attention: LatentAttentionNames,
    /// The recurrent mixer.
    pub recurrence: Option<RecurrenceNames>,
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
    /// The addends of experts' scores, by the tensor's whole name.
    pub score_bias: Option<&'static str>,
    /// The experts of a mixture.
    pub experts: ExpertNames,
    /// The shared expert of a mixture.
    pub shared_expert: SharedExpertNames,
    /// The norms and scales of a mixture with a dense MLP beside it.
    pub dense_moe: Option<DenseMoENames>,
    /// The inputs of layers beside the residual.
    pub per_layer_input: Option<PerLayerInputNames>,
    /// The residual streams, in families with several.
    pub altup: Option<AltUpNames>,
    /// The augmented residual.
    pub laurel: Option<LaurelNames>,
    /// The factor of a layer's output, by the tensor's whole name; some checkpoints have none.
    pub output_scale: Option<&'static str>,
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

/// The tensor names of latent attention. The projection of queries from the hidden state has its name in [`Qkv`].
#[derive(Debug, Clone, Copy)]
pub struct LatentAttentionNames {
    /// The projection to the latent of queries.
    pub query_down: &'static str,
    /// The norm of that latent.
    pub query_norm: &'static str,
    /// The projection from it to queries.
    pub query_up: &'static str,
    /// The projection to the latent of keys and values, and to the rotated part of keys.
    pub kv_down: &'static str,
    /// The norm of that latent.
    pub kv_norm: &'static str,
    /// The projection from it to the key and the value of each head.
    pub kv_up: &'static str,
    /// Its parts in place of it, if the checkpoint has them: one with the matrix of each head's key transposed, one
    /// with those of values.
    pub split_kv_up: Option<(&'static str, &'static str)>,
}

/// The tensor names of the expert that every token goes through.
#[derive(Debug, Clone, Copy)]
pub struct SharedExpertNames {
    /// The gate and up projections.
    pub gate_up: GateUp,
    /// The down projection.
    pub down: &'static str,
    /// The projection to the sigmoid gate of the expert's output.
    pub output_gate: Option<&'static str>,
}

/// The tensor names of a mixture with a dense MLP beside it.
#[derive(Debug, Clone, Copy)]
pub struct DenseMoENames {
    /// The norm of the dense MLP's output.
    pub dense_post_norm: &'static str,
    /// The norm before the experts.
    pub moe_norm: &'static str,
    /// The norm of the mixture's output.
    pub moe_post_norm: &'static str,
    /// The weights of the norm before the router, by the tensor's whole name.
    pub router_scale: &'static str,
    /// The factors of experts, by the tensor's whole name.
    pub expert_scales: &'static str,
}

/// The tensor names of the inputs of layers beside the residual.
#[derive(Debug, Clone, Copy)]
pub struct PerLayerInputNames {
    /// The token embeddings of all layers.
    pub embedding: &'static str,
    /// The projection of the model's embeddings.
    pub projection: &'static str,
    /// The norm of a layer's part of that projection.
    pub projection_norm: &'static str,
    /// The gate, in a layer.
    pub gate: &'static str,
    /// The projection of the gated input, in a layer.
    pub output: &'static str,
    /// The norm of that projection, in a layer.
    pub post_norm: &'static str,
}

/// The tensor names of residual streams.
#[derive(Debug, Clone, Copy)]
pub struct AltUpNames {
    /// The projections of embeddings to streams.
    pub projections: StreamProjections,
    /// The projections of streams to parts of the output.
    pub output_projections: StreamProjections,
    /// The norm before the router, in a layer.
    pub router_norm: &'static str,
    /// The router, in a layer.
    pub router: &'static str,
    /// The coefficients of predictions, in a layer.
    pub prediction: &'static str,
    /// The coefficients of corrections, in a layer.
    pub correction: &'static str,
    /// The factors of the active stream, by the tensor's whole name, in a layer.
    pub gate_scale: &'static str,
}

/// The tensor names of matrices for all residual streams but the first.
#[derive(Debug, Clone, Copy)]
pub enum StreamProjections {
    /// One tensor for each, `prefix.number`.
    Split(&'static str),
    /// One tensor with all, one after the other.
    Stacked(&'static str),
}

/// The tensor names of an augmented residual.
#[derive(Debug, Clone, Copy)]
pub struct LaurelNames {
    /// The projection to the low rank.
    pub left: &'static str,
    /// The projection back.
    pub right: &'static str,
    /// The norm of the product of both.
    pub post_norm: &'static str,
}

/// The tensor names of a recurrent mixer.
#[derive(Debug, Clone, Copy)]
pub struct RecurrenceNames {
    /// The input projections.
    pub inputs: RecurrenceInputs,
    /// The causal convolution.
    pub conv: &'static str,
    /// The decay of each head, by the tensor's whole name.
    pub decay: &'static str,
    /// Whether the checkpoint has the logarithm of the negative decay.
    pub has_log_decay: bool,
    /// The addend of each head's step, by the tensor's whole name.
    pub step_bias: &'static str,
    /// The factor of values that are added to outputs, by the tensor's whole name.
    pub skip: &'static str,
    /// The norm of outputs.
    pub norm: &'static str,
    /// The output projection.
    pub output: &'static str,
}

/// The tensor names of a recurrent mixer's input projections.
#[derive(Debug, Clone, Copy)]
pub enum RecurrenceInputs {
    /// One matrix for each part.
    Split {
        /// What is convolved: queries, keys and values.
        conv: &'static str,
        /// The gates of outputs.
        gate: &'static str,
        /// The steps.
        step: &'static str,
        /// The factors `beta` of updates.
        beta: &'static str,
    },
    /// One matrix for each part, but for `beta` and the steps: those of the heads of a key alternate in runs.
    SplitBetaStep {
        /// What is convolved.
        conv: &'static str,
        /// The gates of outputs.
        gate: &'static str,
        /// `beta`, then the steps, of each key head.
        beta_step: &'static str,
    },
    /// Two matrices whose rows are in the order of key heads.
    ByKeyHead {
        /// The query, the key, the values and the gates of each key head.
        conv_gate: &'static str,
        /// `beta`, then the steps, of each key head.
        beta_step: &'static str,
    },
    /// One matrix: gates, what is convolved, steps; for a short convolution its three parts.
    Fused(&'static str),
}

/// The tensor names of a mixture's experts.
#[derive(Debug, Clone, Copy)]
pub enum ExpertNames {
    /// One tensor per expert and projection, `prefix.expert.name`.
    Split {
        /// The prefix of an expert's number.
        prefix: &'static str,
        /// The gate projection, if experts have one.
        gate: Option<&'static str>,
        /// The up projection.
        up: &'static str,
        /// The down projection.
        down: &'static str,
    },
    /// One tensor per projection with the matrices of all experts, one after the other.
    Stacked {
        /// The gate projections, if experts have them.
        gate: Option<&'static str>,
        /// The up projections.
        up: &'static str,
        /// The down projections.
        down: &'static str,
    },
    /// As `Stacked`, with the rows of an expert's gate and up projections in one matrix, by the tensors' whole names.
    Fused {
        /// The gate and up projections.
        gate_up: &'static str,
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
        has_gated_queries: false,
        latent_attention: LatentAttentionNames {
            query_down: "self_attn.q_a_proj",
            query_norm: "self_attn.q_a_layernorm",
            query_up: "self_attn.q_b_proj",
            kv_down: "self_attn.kv_a_proj_with_mqa",
            kv_norm: "self_attn.kv_a_layernorm",
            kv_up: "self_attn.kv_b_proj",
            split_kv_up: None,
        },
        recurrence: None,
        output: "self_attn.o_proj",
        attention_post_norm: None,
        mlp_norm: Some("post_attention_layernorm"),
        gate_up: GateUp::Split { gate: "mlp.gate_proj", up: "mlp.up_proj" },
        down: "mlp.down_proj",
        mlp_post_norm: None,
        router: "mlp.gate",
        score_bias: None,
        experts: ExpertNames::Split {
            prefix: "mlp.experts",
            gate: Some("gate_proj"),
            up: "up_proj",
            down: "down_proj",
        },
        shared_expert: SharedExpertNames {
            gate_up: GateUp::Split { gate: "mlp.shared_expert.gate_proj", up: "mlp.shared_expert.up_proj" },
            down: "mlp.shared_expert.down_proj",
            output_gate: Some("mlp.shared_expert_gate"),
        },
        dense_moe: None,
        per_layer_input: None,
        altup: None,
        laurel: None,
        output_scale: None,
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
        has_gated_queries: false,
        latent_attention: LatentAttentionNames {
            query_down: "attn_q_a",
            query_norm: "attn_q_a_norm",
            query_up: "attn_q_b",
            kv_down: "attn_kv_a_mqa",
            kv_norm: "attn_kv_a_norm",
            kv_up: "attn_kv_b",
            split_kv_up: Some(("attn_k_b", "attn_v_b")),
        },
        recurrence: None,
        output: "attn_output",
        attention_post_norm: None,
        mlp_norm: Some("ffn_norm"),
        gate_up: GateUp::Split { gate: "ffn_gate", up: "ffn_up" },
        down: "ffn_down",
        mlp_post_norm: None,
        router: "ffn_gate_inp",
        score_bias: Some("exp_probs_b.bias"),
        experts: ExpertNames::Stacked {
            gate: Some("ffn_gate_exps"),
            up: "ffn_up_exps",
            down: "ffn_down_exps",
        },
        shared_expert: SharedExpertNames {
            gate_up: GateUp::Split { gate: "ffn_gate_shexp", up: "ffn_up_shexp" },
            down: "ffn_down_shexp",
            output_gate: Some("ffn_gate_inp_shexp"),
        },
        dense_moe: None,
        per_layer_input: None,
        altup: None,
        laurel: None,
        output_scale: None,
        norm_offset: 0.0,
        final_norm_offset: 0.0,
        interleaved_rope: false,
    };
}
