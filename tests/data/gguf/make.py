"""Writes types.gguf: one tensor of each supported type, each beside its values as float32.

    pip install gguf && python3 tests/data/gguf/make.py

Blocks are random bytes with finite scales; the `gguf` package computes their values.
"""

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
}
SHAPE = (2, 256)

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
    rows = blocks.reshape(SHAPE[0], -1)
    add(kind, rows, dequantize(rows, kind))

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
