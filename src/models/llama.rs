//! The llama family: Llama 2 and 3, SmolLM2, and what shares their form. RMS norms, rotary
//! embedding, grouped heads, a gated SiLU MLP, the head tied to the embedding or not.

use candle_core::{Device, Tensor};

use super::layers::decoder_layer::{DecoderLayer, LayerContext};
use super::layers::linear::{Linear, Weight};
use super::layers::norm::RmsNorm;
use super::layers::rope::RotaryEmbedding;
use super::load::Weights;
use super::{Decoder, DecoderConfig, ForwardInput, KvStore};
use crate::error::{Error, Result};

/// A llama-family decoder with its weights.
pub struct Llama {
    config: DecoderConfig,
    /// `[n_vocab, hidden]`
    embedding: Tensor,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Linear,
    rope: RotaryEmbedding,
}

/// What the tensors are called in one kind of checkpoint.
struct Names {
    embedding: &'static str,
    norm: &'static str,
    head: &'static str,
    layer: &'static str,
    attention_norm: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    mlp_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

const GGUF: Names = Names {
    embedding: "token_embd",
    norm: "output_norm",
    head: "output",
    layer: "blk",
    attention_norm: "attn_norm",
    query: "attn_q",
    key: "attn_k",
    value: "attn_v",
    output: "attn_output",
    mlp_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
};

const SAFETENSORS: Names = Names {
    embedding: "model.embed_tokens",
    norm: "model.norm",
    head: "lm_head",
    layer: "model.layers",
    attention_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

impl Llama {
    /// Reads the weights of a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape, or the configuration is of another family.
    pub fn load(config: DecoderConfig, weights: &Weights) -> Result<Self> {
        if config.architecture != "llama" {
            return Err(Error::model(format!(
                "architecture `{}` is not supported; supported: llama",
                config.architecture
            )));
        }
        let names = match weights {
            Weights::Gguf(_) => &GGUF,
            Weights::Safetensors(_) => &SAFETENSORS,
        };
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (q_size, kv_size) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let norm = |name: String| -> Result<RmsNorm> {
            Ok(RmsNorm::new(weights.tensor(&format!("{name}.weight"), &[hidden])?, config.rms_norm_eps))
        };
        let layers = (0..config.n_layers)
            .map(|layer| {
                let name = |part: &str| format!("{}.{layer}.{part}", names.layer);
                Ok(DecoderLayer {
                    attention_norm: norm(name(names.attention_norm))?,
                    query: weights.rotary_linear(
                        &name(names.query),
                        config.n_heads,
                        config.head_dim,
                        hidden,
                    )?,
                    key: weights.rotary_linear(
                        &name(names.key),
                        config.n_kv_heads,
                        config.head_dim,
                        hidden,
                    )?,
                    value: weights.linear(&name(names.value), kv_size, hidden)?,
                    output: weights.linear(&name(names.output), hidden, q_size)?,
                    mlp_norm: norm(name(names.mlp_norm))?,
                    gate: weights.linear(&name(names.gate), intermediate, hidden)?,
                    up: weights.linear(&name(names.up), intermediate, hidden)?,
                    down: weights.linear(&name(names.down), hidden, intermediate)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let embedding = weights.tensor(&format!("{}.weight", names.embedding), &[config.n_vocab, hidden])?;
        let head = if weights.contains(&format!("{}.weight", names.head)) {
            weights.linear(names.head, config.n_vocab, hidden)?
        } else {
            Linear::new(Weight::Dense(embedding.clone()), None)
        };
        Ok(Self {
            norm: norm(names.norm.to_owned())?,
            rope: RotaryEmbedding::new(&config.rope, config.head_dim),
            embedding,
            layers,
            head,
            config,
        })
    }
}

impl Decoder for Llama {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn forward(&mut self, kv: &mut KvStore, input: &ForwardInput) -> Result<Tensor> {
        let ids = Tensor::from_slice(&input.token_ids, input.token_ids.len(), &Device::Cpu)?;
        let rotation = self.rope.rotation(&input.spans)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for (layer, weights) in self.layers.iter().enumerate() {
            let context = LayerContext { config: &self.config, input, rotation: &rotation, layer };
            x = weights.forward(&x, kv, &context)?;
        }
        let rows = Tensor::from_slice(&input.logit_rows, input.logit_rows.len(), &Device::Cpu)?;
        self.head.forward(&self.norm.forward(&x.index_select(&rows, 0)?)?)
    }
}
