"""Write a GGUF model of a real shape with random weights.

Speed does not depend on what the weights say, so such a file stands in for a model that cannot be downloaded here. It
has the shape's metadata and tensors, and as its tokenizer the vocabulary of a real GGUF file with unused tokens added.

  python3 benches/random_models.py --shape qwen3.5-2b --tokenizer-from SmolLM2.gguf --out qwen3.5-2b.gguf

Needs the packages gguf and numpy.
"""

import argparse

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type

# Where the half-precision scales of a block are, and the values that they get.
SCALES = {Type.Q4_0: {0: 3e-3}, Type.Q8_0: {0: 5e-4}, Type.Q4_K: {0: 2e-4, 2: 3e-3}, Type.Q6_K: {208: 2e-5}}

# The exponent of an MXFP4 block: 2^(120 - 127).
MXFP4_EXPONENT = 120


class Model:
    """A GGUF file in the making."""

    def __init__(self, path, architecture, vocab, source):
        self.writer = GGUFWriter(path, architecture)
        self.random = np.random.default_rng(0)
        self.vocab = vocab
        self.add_tokenizer(source)

    def add_tokenizer(self, source):
        for name, field in GGUFReader(source).fields.items():
            if not name.startswith("tokenizer."):
                continue
            value = field.contents()
            if field.types[0] != GGUFValueType.ARRAY:
                self.writer.add_key_value(name, value, field.types[0])
                continue
            if name == "tokenizer.ggml.tokens":
                value += [f"<unused{n}>" for n in range(self.vocab - len(value))]
            if name == "tokenizer.ggml.token_type":
                value += [5] * (self.vocab - len(value))
            self.writer.add_array(name, value)

    def set(self, **settings):
        """Sets metadata of the architecture; two underscores stand for a dot."""
        for name, value in settings.items():
            key = f"{self.writer.arch}.{name.replace('__', '.')}"
            if isinstance(value, list):
                self.writer.add_array(key, value)
            elif isinstance(value, float):
                self.writer.add_float32(key, value)
            else:
                self.writer.add_uint32(key, value)

    def set_shape(self, layers, hidden, width, heads, kv_heads, head_dim):
        """Sets the sizes that all decoders have."""
        self.set(
            block_count=layers,
            context_length=32_768,
            embedding_length=hidden,
            feed_forward_length=width,
            attention__head_count=heads,
            attention__head_count_kv=kv_heads,
            attention__key_length=head_dim,
            attention__value_length=head_dim,
        )

    def matrix(self, name, kind, *shape):
        """A tensor of random blocks; the shape has the outermost dimension first."""
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        row_bytes = shape[-1] // block_len * block_bytes
        blocks = self.random.integers(0, 256, (*shape[:-1], row_bytes), dtype=np.uint8)
        by_block = blocks.reshape(-1, block_bytes)
        if kind == Type.MXFP4:
            by_block[:, 0] = MXFP4_EXPONENT
        for offset, scale in SCALES.get(kind, {}).items():
            by_block[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
        self.writer.add_tensor(name, blocks, raw_dtype=kind)

    def floats(self, name, *shape, value=None):
        """A tensor of one value, or of random ones."""
        values = self.random.standard_normal(shape) * 0.05 if value is None else np.full(shape, value)
        self.writer.add_tensor(name, values.astype(np.float32))

    def norms(self, layer, width, *names):
        for name in names:
            self.floats(f"blk.{layer}.{name}.weight", width, value=1.0)

    def attention(self, layer, hidden, heads, kv_heads, head_dim, kind, query_factor=1):
        prefix = f"blk.{layer}."
        self.matrix(prefix + "attn_q.weight", kind, query_factor * heads * head_dim, hidden)
        self.matrix(prefix + "attn_k.weight", kind, kv_heads * head_dim, hidden)
        self.matrix(prefix + "attn_v.weight", kind, kv_heads * head_dim, hidden)
        self.matrix(prefix + "attn_output.weight", kind, hidden, heads * head_dim)

    def mlp(self, layer, hidden, width, kind):
        prefix = f"blk.{layer}."
        self.matrix(prefix + "ffn_gate.weight", kind, width, hidden)
        self.matrix(prefix + "ffn_up.weight", kind, width, hidden)
        self.matrix(prefix + "ffn_down.weight", kind, hidden, width)

    def experts(self, layer, hidden, experts, width, kind):
        prefix = f"blk.{layer}."
        self.floats(prefix + "ffn_gate_inp.weight", experts, hidden)
        self.matrix(prefix + "ffn_gate_exps.weight", kind, experts, width, hidden)
        self.matrix(prefix + "ffn_up_exps.weight", kind, experts, width, hidden)
        self.matrix(prefix + "ffn_down_exps.weight", kind, experts, hidden, width)

    def finish(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file(progress=True)
        self.writer.close()


def qwen35(args, hidden, layers, width, heads, kv_heads, value_heads):
    """Qwen3.5: three gated delta nets for every layer with attention."""
    model = Model(args.out, "qwen35", 248_320, args.tokenizer_from)
    head_dim, key_heads, linear_dim, kind = 256, 16, 128, Type.Q4_K
    model.set_shape(layers, hidden, width, heads, kv_heads, head_dim)
    model.set(
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=1e7,
        rope__dimension_count=64,
        rope__dimension_sections=[11, 11, 10, 0],
        full_attention_interval=4,
        ssm__conv_kernel=4,
        ssm__state_size=linear_dim,
        ssm__group_count=key_heads,
        ssm__time_step_rank=value_heads,
        ssm__inner_size=value_heads * linear_dim,
    )
    model.matrix("token_embd.weight", Type.Q6_K, model.vocab, hidden)
    model.floats("output_norm.weight", hidden, value=1.0)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        model.norms(layer, hidden, "attn_norm", "post_attention_norm")
        model.mlp(layer, hidden, width, kind)
        if (layer + 1) % 4 == 0:
            model.attention(layer, hidden, heads, kv_heads, head_dim, kind, query_factor=2)
            model.norms(layer, head_dim, "attn_q_norm", "attn_k_norm")
            continue
        inner, n_key = value_heads * linear_dim, key_heads * linear_dim
        model.matrix(prefix + "attn_qkv.weight", kind, 2 * n_key + inner, hidden)
        model.matrix(prefix + "attn_gate.weight", kind, inner, hidden)
        model.matrix(prefix + "ssm_out.weight", kind, hidden, inner)
        model.floats(prefix + "ssm_alpha.weight", value_heads, hidden)
        model.floats(prefix + "ssm_beta.weight", value_heads, hidden)
        model.floats(prefix + "ssm_conv1d.weight", 2 * n_key + inner, 4)
        model.floats(prefix + "ssm_a", value_heads, value=-0.5)
        model.floats(prefix + "ssm_dt.bias", value_heads)
        model.norms(layer, linear_dim, "ssm_norm")
    model.finish()


def lfm2(args):
    """LFM2.5-1.2B: ten short convolutions and six layers with attention."""
    hidden, layers, width, heads, kv_heads, head_dim, kind = 2048, 16, 8192, 32, 8, 64, Type.Q4_K
    with_attention = {2, 5, 8, 10, 12, 14}
    model = Model(args.out, "lfm2", 65_536, args.tokenizer_from)
    model.set(
        block_count=layers,
        context_length=32_768,
        embedding_length=hidden,
        feed_forward_length=width,
        attention__head_count=heads,
        attention__head_count_kv=[kv_heads if n in with_attention else 0 for n in range(layers)],
        attention__layer_norm_rms_epsilon=1e-5,
        rope__freq_base=1e6,
        shortconv__l_cache=3,
        vocab_size=model.vocab,
    )
    model.matrix("token_embd.weight", Type.Q6_K, model.vocab, hidden)
    model.floats("token_embd_norm.weight", hidden, value=1.0)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        model.norms(layer, hidden, "attn_norm", "ffn_norm")
        model.mlp(layer, hidden, width, kind)
        if layer in with_attention:
            model.attention(layer, hidden, heads, kv_heads, head_dim, kind)
            model.norms(layer, head_dim, "attn_q_norm", "attn_k_norm")
        else:
            model.matrix(prefix + "shortconv.in_proj.weight", kind, 3 * hidden, hidden)
            model.floats(prefix + "shortconv.conv.weight", hidden, 3)
            model.matrix(prefix + "shortconv.out_proj.weight", kind, hidden, hidden)
    model.finish()


def qwen3moe(args, layers):
    """Qwen3-30B-A3B, or its first layers."""
    hidden, heads, kv_heads, head_dim, experts, width, kind = 2048, 32, 4, 128, 128, 768, Type.Q4_K
    model = Model(args.out, "qwen3moe", 151_936, args.tokenizer_from)
    model.set_shape(layers, hidden, 6144, heads, kv_heads, head_dim)
    model.set(
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=1e6,
        expert_count=experts,
        expert_used_count=8,
        expert_feed_forward_length=width,
    )
    model.matrix("token_embd.weight", kind, model.vocab, hidden)
    model.matrix("output.weight", Type.Q6_K, model.vocab, hidden)
    model.floats("output_norm.weight", hidden, value=1.0)
    for layer in range(layers):
        model.norms(layer, hidden, "attn_norm", "ffn_norm")
        model.attention(layer, hidden, heads, kv_heads, head_dim, kind)
        model.norms(layer, head_dim, "attn_q_norm", "attn_k_norm")
        model.experts(layer, hidden, experts, width, kind)
    model.finish()


def gpt_oss(args, layers):
    """gpt-oss-20b, or its first layers."""
    hidden, heads, kv_heads, head_dim, experts, width = 2880, 64, 8, 64, 32, 2880
    model = Model(args.out, "gpt-oss", 201_088, args.tokenizer_from)
    model.set_shape(layers, hidden, width, heads, kv_heads, head_dim)
    model.set(
        attention__layer_norm_rms_epsilon=1e-5,
        attention__sliding_window=128,
        rope__freq_base=150_000.0,
        expert_count=experts,
        expert_used_count=4,
        expert_feed_forward_length=width,
    )
    model.matrix("token_embd.weight", Type.Q8_0, model.vocab, hidden)
    model.matrix("output.weight", Type.Q8_0, model.vocab, hidden)
    model.floats("output_norm.weight", hidden, value=1.0)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        model.norms(layer, hidden, "attn_norm", "post_attention_norm")
        model.attention(layer, hidden, heads, kv_heads, head_dim, Type.Q8_0)
        for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            model.floats(f"{prefix}attn_{part}.bias", n * head_dim)
        model.floats(prefix + "attn_output.bias", hidden)
        model.floats(prefix + "attn_sinks.weight", heads)
        model.experts(layer, hidden, experts, width, Type.MXFP4)
        model.floats(prefix + "ffn_gate_inp.bias", experts)
        for part, n in (("gate", width), ("up", width), ("down", hidden)):
            model.floats(f"{prefix}ffn_{part}_exps.bias", experts, n)
    model.finish()


def gemma4_e2b(args):
    """Gemma 4 E2B: inputs for each layer, four layers with a window for every full one, keys and values of the last 20
    layers from others."""
    hidden, layers, width, heads, kv_heads, per_layer, kind = 1536, 35, 6144, 8, 1, 256, Type.Q4_0
    n_own = 15
    model = Model(args.out, "gemma4", 262_144, args.tokenizer_from)
    has_window = [(layer + 1) % 5 != 0 for layer in range(layers)]
    widths = [width if layer < n_own else 2 * width for layer in range(layers)]
    model.set_shape(layers, hidden, widths, heads, kv_heads, 512)
    model.set(
        embedding_length_per_layer_input=per_layer,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__sliding_window=512,
        attention__sliding_window_pattern=has_window,
        attention__shared_kv_layers=layers - n_own,
        rope__freq_base=1e6,
        rope__freq_base_swa=1e4,
        rope__dimension_count=512,
        rope__dimension_count_swa=256,
        final_logit_softcapping=30.0,
    )
    model.matrix("token_embd.weight", Type.Q6_K, model.vocab, hidden)
    model.matrix("per_layer_token_embd.weight", kind, model.vocab, layers * per_layer)
    model.matrix("per_layer_model_proj.weight", kind, layers * per_layer, hidden)
    model.floats("per_layer_proj_norm.weight", per_layer, value=1.0)
    model.floats("output_norm.weight", hidden, value=1.0)
    # A quarter of the pairs of full layers rotates.
    model.writer.add_tensor("rope_freqs.weight", np.repeat(np.float32([1, 1e30]), [64, 192]))
    for layer in range(layers):
        prefix = f"blk.{layer}."
        head_dim = 256 if has_window[layer] else 512
        model.norms(layer, hidden, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm")
        model.attention(layer, hidden, heads, kv_heads, head_dim, kind)
        model.norms(layer, head_dim, "attn_q_norm", "attn_k_norm")
        model.mlp(layer, hidden, widths[layer], kind)
        model.matrix(prefix + "inp_gate.weight", kind, per_layer, hidden)
        model.matrix(prefix + "proj.weight", kind, hidden, per_layer)
        model.floats(prefix + "layer_output_scale.weight", 1, value=1.0)
    model.finish()


SHAPES = {
    "gemma4-e2b": gemma4_e2b,
    "qwen3.5-0.8b": lambda args: qwen35(args, 1024, 24, 3584, 8, 2, 16),
    "qwen3.5-2b": lambda args: qwen35(args, 2048, 24, 6144, 8, 2, 16),
    "lfm2.5-1.2b": lfm2,
    "30b-a3b": lambda args: qwen3moe(args, 48),
    "30b-a3b-slice": lambda args: qwen3moe(args, 10),
    "gpt-oss-slice": lambda args: gpt_oss(args, 6),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer-from", required=True, help="a GGUF file with a tokenizer")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    SHAPES[args.shape](args)


if __name__ == "__main__":
    main()
