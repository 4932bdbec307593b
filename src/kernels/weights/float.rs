//! Formats of floating-point weights.

use half::{bf16, f16};

use super::super::layout::{PANEL_ROWS, TILE_DWORDS};
use super::packing::Packing;

/// A format whose blocks are one float for each row.
macro_rules! float_format {
    ($name:ident, $about:literal, $bytes:literal, $read:expr) => {
        #[doc = $about]
        pub struct $name;

        impl Packing for $name {
            const BLOCK_LEN: usize = 1;
            const SOURCE_BYTES: usize = $bytes;
            const PACKED_BYTES: usize = $bytes * PANEL_ROWS;

            fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
                packed[$bytes * row..$bytes * (row + 1)].copy_from_slice(source);
            }

            fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
                if let Some(&bytes) = packed[$bytes * row..].first_chunk::<$bytes>() {
                    weights[0] = $read(bytes);
                }
            }
        }
    };
}

float_format!(F32, "float32", 4, f32::from_le_bytes);
float_format!(F16, "Half precision.", 2, |bytes| f16::from_le_bytes(bytes).to_f32());
float_format!(Bf16, "bfloat16", 2, |bytes| bf16::from_le_bytes(bytes).to_f32());

/// float32 rounded to bfloat16, in dwords of two neighbors of a row, for float GEMM with such dwords.
pub struct Bf16Pairs;

impl Packing for Bf16Pairs {
    const BLOCK_LEN: usize = 2 * TILE_DWORDS;
    const SOURCE_BYTES: usize = 4 * Self::BLOCK_LEN;
    const PACKED_BYTES: usize = 2 * Self::BLOCK_LEN * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        for (pair, packed) in source.as_chunks::<8>().0.iter().zip(packed.chunks_exact_mut(4 * PANEL_ROWS)) {
            let numbers = [[pair[0], pair[1], pair[2], pair[3]], [pair[4], pair[5], pair[6], pair[7]]];
            let [first, second] =
                numbers.map(|bytes| bf16::from_f32(f32::from_le_bytes(bytes)).to_le_bytes());
            packed[4 * row..4 * row + 4].copy_from_slice(&[first[0], first[1], second[0], second[1]]);
        }
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        for (packed, weights) in packed.chunks_exact(4 * PANEL_ROWS).zip(weights.chunks_exact_mut(2)) {
            let pair = &packed[4 * row..4 * row + 4];
            weights[0] = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            weights[1] = bf16::from_le_bytes([pair[2], pair[3]]).to_f32();
        }
    }
}
