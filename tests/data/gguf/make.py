"""Writes types.gguf: one tensor of each supported type, each beside its values as float32; and i_quants.json: hashes of
the values of many more blocks of the types that look weights up in a grid.

    pip install gguf && python3 tests/data/gguf/make.py

Blocks are random bytes with finite scales; the `gguf` package computes their values. The blocks of i_quants.json come
from SplitMix64 and are not stored.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter, GGMLQuantizationType as Type
from gguf.quants import dequantize

# Byte offsets of the half-precision scales in a block.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
    Type.MXFP4: [],
    Type.IQ1_S: [0],
    Type.IQ1_M: [],
    Type.IQ2_XXS: [0],
    Type.IQ2_XS: [0],
    Type.IQ2_S: [0],
    Type.IQ3_XXS: [0],
    Type.IQ3_S: [0],
    Type.TQ1_0: [52],
    Type.TQ2_0: [64],
}
SHAPE = (2, 256)
# Enough blocks to use every point of the grids.
N_BLOCKS = 1024

rng = np.random.default_rng(9000)
writer = GGUFWriter(Path(__file__).with_name("types.gguf"), "none")


def add(kind, stored, expected):
    # Plain numbers are stored as such, blocks as bytes.
    writer.add_tensor(kind.name, stored, raw_dtype=kind)
    writer.add_tensor(f"{kind.name}.f32", np.ascontiguousarray(expected, dtype=np.float32))


plain = rng.standard_normal(SHAPE)
for kind, dtype in [(Type.F64, np.float64), (Type.F32, np.float32), (Type.F16, np.float16)]:
    add(kind, plain.astype(dtype), plain.astype(dtype))
bf16 = (plain.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
add(Type.BF16, bf16.view(np.uint8), (bf16.astype(np.uint32) << 16).view(np.float32))

for kind, places in SCALES.items():
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // block_len, block_bytes), dtype=np.uint8)
    for place in places:
        scales = rng.standard_normal(blocks.shape[:2]).astype(np.float16) / np.float16(64)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    if kind == Type.MXFP4:
        # Exponents around the usual ones, and the two smallest.
        blocks[..., 0] = rng.integers(110, 130, blocks.shape[:2])
        blocks[0, :2, 0] = [0, 1]
    if kind == Type.IQ1_M:
        # The four high bits of the scale, which stand in four places: a small one.
        blocks[..., 55] = blocks[..., 55] & 0x0F | 0x20
    rows = blocks.reshape(SHAPE[0], -1)
    add(kind, rows, dequantize(rows, kind))

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def split_mix_bytes(seed, n_bytes):
    state = np.uint64(seed) + np.arange(1, n_bytes // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (state ^ state >> np.uint64(31)).view(np.uint8)[:n_bytes]


hashes = {}
for kind, places in SCALES.items():
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    if not kind.name.startswith(("IQ1", "IQ2", "IQ3", "TQ")):
        continue
    blocks = split_mix_bytes(int(kind), N_BLOCKS * block_bytes).reshape(N_BLOCKS, block_bytes).copy()
    # The highest bit of the exponent of the scale: it is finite.
    for place in places or [54]:
        blocks[:, place + 1] &= 0xBF
    hashes[kind.name] = hashlib.sha256(dequantize(blocks, kind).astype("<f4").tobytes()).hexdigest()
Path(__file__).with_name("i_quants.json").write_text(json.dumps(hashes, indent=1) + "\n")
