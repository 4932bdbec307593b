//! GGUF's k-quants, with blocks of 256 weights.

#![allow(unsafe_op_in_unsafe_fn)] // Every operation reads the block that the caller has checked.

use super::super::layout::{GROUP_LEN, PANEL_ROWS};
use super::super::simd::Simd;
use super::packing::*;

/// Inner elements of a block.
const K_LEN: usize = 256;
/// Groups of a block.
const K_GROUPS: usize = K_LEN / GROUP_LEN;

/// Q4_K: 4 bits; for 256 weights two factors in half precision, which multiply a 6-bit scale and a 6-bit
/// minimum for each 32.
///
/// A packed block holds both factors of sixteen rows, then for each group the codes, the scales and the
/// minimums.
pub struct Q4K;

impl Q4K {
    const FACTORS: usize = 4 * PANEL_ROWS;
    const GROUP_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;

    /// The offset of a group.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }

    /// The scale and the minimum of a group, from the 12 bytes that hold those of all eight.
    pub fn scale_and_min(bytes: &[u8], group: usize) -> (u8, u8) {
        if group < 4 {
            (bytes[group] & 63, bytes[group + 4] & 63)
        } else {
            let low = bytes[group + 4];
            ((low & 0xF) | (bytes[group - 4] >> 6) << 4, (low >> 4) | (bytes[group] >> 6) << 4)
        }
    }
}

impl Packing for Q4K {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = 144;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        let (factors, groups) = packed.split_at_mut(Self::FACTORS);
        put_half(factors, row, source);
        put_half(&mut factors[2 * PANEL_ROWS..], row, &source[2..]);
        for (group, packed) in groups.chunks_exact_mut(Self::GROUP_BYTES).enumerate() {
            // Two groups share 32 bytes.
            let bytes = &source[16 + group / 2 * GROUP_LEN..][..GROUP_LEN];
            let mut codes = [0; GROUP_LEN];
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (4 * (group % 2));
            }
            put_low_bits(packed, row, &codes);
            let (scale, min) = Self::scale_and_min(&source[4..16], group);
            packed[LOW_BYTES + row] = scale;
            packed[LOW_BYTES + PANEL_ROWS + row] = min;
        }
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (factors, groups) = packed.split_at(Self::FACTORS);
        let groups = groups.chunks_exact(Self::GROUP_BYTES);
        for (packed, weights) in groups.zip(weights.chunks_exact_mut(GROUP_LEN)) {
            let scale = half(factors, row) * f32::from(packed[LOW_BYTES + row]);
            let min = half(&factors[2 * PANEL_ROWS..], row) * f32::from(packed[LOW_BYTES + PANEL_ROWS + row]);
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = scale * f32::from(low_bits(packed, row, i)) - min;
            }
        }
    }
}

impl Quantized for Q4K {
    const CODE_BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_4(simd, packed.add(Self::group(group)), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, _: usize) -> S::Floats {
        let scale = simd.load_u8(packed.add(Self::group(group) + LOW_BYTES));
        simd.mul(scale, simd.load_f16(packed.cast()))
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(simd: S, packed: *const u8, group: usize, _: usize) -> S::Floats {
        let min = simd.load_u8(packed.add(Self::group(group) + LOW_BYTES + PANEL_ROWS));
        simd.mul(min, simd.sub(simd.splat(0.0), simd.load_f16(packed.add(2 * PANEL_ROWS).cast())))
    }
}

/// Q6_K: 6 bits, zero is 32; for 256 weights a factor in half precision, which multiplies an 8-bit scale for
/// each 16.
///
/// A packed block holds the factors of sixteen rows, then for each group the codes and twice the scales.
pub struct Q6K;

impl Q6K {
    const FACTORS: usize = 2 * PANEL_ROWS;
    const GROUP_BYTES: usize = LOW_BYTES + HIGH_BYTES + 2 * PANEL_ROWS;
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;

    /// The offset of a group.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }
}

impl Packing for Q6K {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = 210;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        let (low, rest) = source.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, factor) = rest.split_at(16);
        let (factors, groups) = packed.split_at_mut(Self::FACTORS);
        put_half(factors, row, factor);
        for (group, packed) in groups.chunks_exact_mut(Self::GROUP_BYTES).enumerate() {
            // Four groups share 64 bytes of low and 32 of high bits.
            let (quarter, of_four) = (group / 4, group % 4);
            let low = &low[64 * quarter + 32 * (of_four % 2)..][..GROUP_LEN];
            let high = &high[32 * quarter..][..GROUP_LEN];
            let mut codes = [0; GROUP_LEN];
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                *code = low >> (4 * (of_four / 2)) & 0xF | (high >> (2 * of_four) & 0b11) << 4;
            }
            put_low_bits(packed, row, &codes);
            put_high_bits(&mut packed[LOW_BYTES..], row, &codes);
            for half in 0..2 {
                packed[Self::SCALES + half * PANEL_ROWS + row] = scales[2 * group + half];
            }
        }
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (factors, groups) = packed.split_at(Self::FACTORS);
        let groups = groups.chunks_exact(Self::GROUP_BYTES);
        for (packed, weights) in groups.zip(weights.chunks_exact_mut(GROUP_LEN)) {
            for (i, weight) in weights.iter_mut().enumerate() {
                let scale = packed[Self::SCALES + i / 16 * PANEL_ROWS + row].cast_signed();
                let code = i32::from(six_bits(packed, row, i)) - Self::ZERO;
                *weight = half(factors, row) * f32::from(scale) * code as f32;
            }
        }
    }
}

impl Quantized for Q6K {
    const CODE_BITS: u32 = 6;
    const ZERO: i32 = 32;
    const SCALES_PER_GROUP: usize = 2;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        let packed = packed.add(Self::group(group));
        codes_6(simd, packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8(simd, packed, Self::group(group) + Self::SCALES + idx * PANEL_ROWS, 0)
    }
}

/// The common form of the k-quants without a layout of their own: up to 6 bits; for 256 weights two factors in
/// half precision, which multiply a signed 8-bit scale and minimum for each 16.
///
/// A source block is 256 codes of one byte, 16 scales, 16 minimums and the factors of both. A packed block
/// holds the factors of sixteen rows, then for each group the codes, twice the scales and twice the minimums.
pub struct K6Generic;

impl K6Generic {
    const FACTORS: usize = 4 * PANEL_ROWS;
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;
    const MINS: usize = Self::SCALES + 2 * PANEL_ROWS;
    const GROUP_BYTES: usize = Self::MINS + 2 * PANEL_ROWS;

    /// The offset of a group.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }
}

impl Packing for K6Generic {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = K_LEN + 36;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        let (codes, rest) = source.split_at(K_LEN);
        let (scales, rest) = rest.split_at(16);
        let (mins, source_factors) = rest.split_at(16);
        let (factors, groups) = packed.split_at_mut(Self::FACTORS);
        put_half(factors, row, source_factors);
        put_half(&mut factors[2 * PANEL_ROWS..], row, &source_factors[2..]);
        let (codes, _) = codes.as_chunks::<GROUP_LEN>();
        for ((group, packed), codes) in groups.chunks_exact_mut(Self::GROUP_BYTES).enumerate().zip(codes) {
            put_low_bits(packed, row, codes);
            put_high_bits(&mut packed[LOW_BYTES..], row, codes);
            for half in 0..2 {
                packed[Self::SCALES + half * PANEL_ROWS + row] = scales[2 * group + half];
                packed[Self::MINS + half * PANEL_ROWS + row] = mins[2 * group + half];
            }
        }
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (factors, groups) = packed.split_at(Self::FACTORS);
        let (scale_factor, min_factor) = (half(factors, row), half(&factors[2 * PANEL_ROWS..], row));
        let groups = groups.chunks_exact(Self::GROUP_BYTES);
        for (packed, weights) in groups.zip(weights.chunks_exact_mut(GROUP_LEN)) {
            for (i, weight) in weights.iter_mut().enumerate() {
                let of_half = |at: usize| f32::from(packed[at + i / 16 * PANEL_ROWS + row].cast_signed());
                let (scale, min) = (scale_factor * of_half(Self::SCALES), min_factor * of_half(Self::MINS));
                *weight = scale * f32::from(six_bits(packed, row, i)) + min;
            }
        }
    }
}

impl Quantized for K6Generic {
    const CODE_BITS: u32 = 6;
    const SCALES_PER_GROUP: usize = 2;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        let packed = packed.add(Self::group(group));
        codes_6(simd, packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8(simd, packed, Self::group(group) + Self::SCALES + idx * PANEL_ROWS, 0)
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8(simd, packed, Self::group(group) + Self::MINS + idx * PANEL_ROWS, 2 * PANEL_ROWS)
    }
}

/// The common form of quantizations whose codes take more than 6 bits: 8 bits, zero is 128; for 256 weights a factor
/// in float32, which multiplies a signed 8-bit scale for each 16.
///
/// A source block is 256 signed codes of one byte, 16 scales and the factor. A packed block holds the factors of
/// sixteen rows, then for each group the codes and twice the scales.
pub struct K8Generic;

impl K8Generic {
    const FACTORS: usize = 4 * PANEL_ROWS;
    const GROUP_BYTES: usize = BYTE_CODES + 2 * PANEL_ROWS;

    /// The offset of a group.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }
}

impl Packing for K8Generic {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = K_LEN + 20;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        let (codes, rest) = source.split_at(K_LEN);
        let (scales, factor) = rest.split_at(16);
        let (factors, groups) = packed.split_at_mut(Self::FACTORS);
        factors[4 * row..4 * row + 4].copy_from_slice(factor);
        let codes = codes.chunks_exact(GROUP_LEN);
        for ((group, packed), codes) in groups.chunks_exact_mut(Self::GROUP_BYTES).enumerate().zip(codes) {
            put_signed_bytes(packed, row, codes);
            for half in 0..2 {
                packed[BYTE_CODES + half * PANEL_ROWS + row] = scales[2 * group + half];
            }
        }
    }

    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (factors, groups) = packed.split_at(Self::FACTORS);
        let (factors, _) = factors.as_chunks();
        let factor = f32::from_le_bytes(factors[row]);
        let groups = groups.chunks_exact(Self::GROUP_BYTES);
        for (packed, weights) in groups.zip(weights.chunks_exact_mut(GROUP_LEN)) {
            for (i, weight) in weights.iter_mut().enumerate() {
                let scale = packed[BYTE_CODES + i / 16 * PANEL_ROWS + row].cast_signed();
                *weight = factor * f32::from(scale) * f32::from(signed_byte(packed, row, i));
            }
        }
    }
}

impl Quantized for K8Generic {
    const CODE_BITS: u32 = 8;
    const ZERO: i32 = 128;
    const SCALES_PER_GROUP: usize = 2;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2] {
        codes_8(simd, packed.add(Self::group(group)), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats {
        let scale = simd.load_i8(packed.add(Self::group(group) + BYTE_CODES + idx * PANEL_ROWS).cast());
        simd.mul(scale, simd.load(packed.cast()))
    }
}
