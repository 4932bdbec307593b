//! MXFP4, the 4-bit floats of the Open Compute Project, with blocks of 32 weights.

#![allow(unsafe_op_in_unsafe_fn)] // Every operation reads the block that the caller has checked.

use half::bf16;

use super::super::layout::{GROUP_LEN, PANEL_ROWS};
use super::super::simd::Simd;
use super::packing::*;

/// The floats that four bits stand for, doubled: one sign, two exponent and one mantissa bit.
pub const MXFP4_CODEBOOK: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The factor of a block's numbers from [`MXFP4_CODEBOOK`]: half the power of two with this biased exponent.
pub fn mxfp4_scale(exponent: u8) -> f32 {
    match exponent {
        // Subnormal.
        0..2 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

/// MXFP4: 4 bits that a codebook turns into codes, zero is 12; a power of two for 32 weights, packed as bfloat16.
pub struct Mxfp4;

impl Mxfp4 {
    /// The codebook as codes.
    const CODES: [u8; 16] = {
        let mut codes = [0; 16];
        let mut idx = 0;
        while idx < codes.len() {
            codes[idx] = (MXFP4_CODEBOOK[idx] as i32 + Self::ZERO) as u8;
            idx += 1;
        }
        codes
    };
}

impl Packing for Mxfp4 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 17;
    const PACKED_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        put_low_bits(packed, row, &nibbles(&source[1..]));
        // A power of two is the same number in bfloat16.
        put_half(&mut packed[LOW_BYTES..], row, &bf16::from_f32(mxfp4_scale(source[0])).to_le_bytes());
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = &packed[LOW_BYTES + 2 * row..];
        let scale = bf16::from_le_bytes([scale[0], scale[1]]).to_f32();
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(MXFP4_CODEBOOK[usize::from(low_bits(packed, row, i))]);
        }
    }
}

impl Quantized for Mxfp4 {
    const CODE_BITS: u32 = 5;
    const ZERO: i32 = 12;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        _: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        let [first, second] = codes_4(simd, packed, half, pair);
        [simd.look_up(&Self::CODES, first), simd.look_up(&Self::CODES, second)]
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_bf16(packed.add(LOW_BYTES).cast())
    }
}
