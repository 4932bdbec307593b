//! GGUF's legacy quantization formats, with blocks of 32 weights.

#![allow(unsafe_op_in_unsafe_fn)] // Every operation reads the block that the caller has checked.

use super::super::layout::{GROUP_LEN, PANEL_ROWS};
use super::super::simd::Simd;
use super::packing::*;

/// Q4_0: 4 bits, zero is 8, a scale in half precision for 32 weights.
pub struct Q4_0;

impl Packing for Q4_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 18;
    const PACKED_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        put_low_bits(packed, row, &nibbles(&source[2..]));
        put_half(&mut packed[LOW_BYTES..], row, source);
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[LOW_BYTES..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(low_bits(packed, row, i)) - 8.0);
        }
    }
}

impl Quantized for Q4_0 {
    const CODE_BITS: u32 = 4;
    const ZERO: i32 = 8;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        _: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_4(simd, packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(LOW_BYTES).cast())
    }
}

/// Q4_1: 4 bits, a scale and a minimum in half precision for 32 weights.
pub struct Q4_1;

impl Packing for Q4_1 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 20;
    const PACKED_BYTES: usize = LOW_BYTES + 4 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        put_low_bits(packed, row, &nibbles(&source[4..]));
        put_half(&mut packed[LOW_BYTES..], row, source);
        put_half(&mut packed[LOW_BYTES + 2 * PANEL_ROWS..], row, &source[2..]);
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[LOW_BYTES..], row);
        let min = half(&packed[LOW_BYTES + 2 * PANEL_ROWS..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(low_bits(packed, row, i)) + min;
        }
    }
}

impl Quantized for Q4_1 {
    const CODE_BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        _: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_4(simd, packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(LOW_BYTES).cast())
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(LOW_BYTES + 2 * PANEL_ROWS).cast())
    }
}

/// Q5_1: 5 bits, packed as six; a scale and a minimum in half precision for 32 weights.
pub struct Q5_1;

impl Q5_1 {
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;
    const MINS: usize = Self::SCALES + 2 * PANEL_ROWS;
}

impl Packing for Q5_1 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 24;
    const PACKED_BYTES: usize = Self::MINS + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        let mut codes = nibbles(&source[8..]);
        put_low_bits(packed, row, &codes);
        for (i, code) in codes.iter_mut().enumerate() {
            let fifth = source[4 + i / 8] >> (i % 8) & 1;
            *code |= fifth << 4;
        }
        put_high_bits(&mut packed[LOW_BYTES..], row, &codes);
        put_half(&mut packed[Self::SCALES..], row, source);
        put_half(&mut packed[Self::MINS..], row, &source[2..]);
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (scale, min) = (half(&packed[Self::SCALES..], row), half(&packed[Self::MINS..], row));
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(six_bits(packed, row, i)) + min;
        }
    }
}

impl Quantized for Q5_1 {
    const CODE_BITS: u32 = 5;
    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        _: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_6(simd, packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(Self::SCALES).cast())
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(Self::MINS).cast())
    }
}

/// Q8_0: 8 bits, zero is 128, a scale in half precision for 32 weights.
pub struct Q8_0;

impl Packing for Q8_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 34;
    const PACKED_BYTES: usize = BYTE_CODES + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        put_signed_bytes(packed, row, &source[2..]);
        put_half(&mut packed[BYTE_CODES..], row, source);
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[BYTE_CODES..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(signed_byte(packed, row, i));
        }
    }
}

impl Quantized for Q8_0 {
    const CODE_BITS: u32 = 8;
    const ZERO: i32 = 128;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        _: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_8(simd, packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, _: usize, _: usize) -> S::Floats {
        simd.load_f16(packed.add(BYTE_CODES).cast())
    }
}
