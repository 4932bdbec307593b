//! The packed layout of weights.
//!
//! A matrix is cut into panels of sixteen rows, and a panel along its inner dimension into blocks. A block
//! holds the weights of all sixteen rows side by side, so that a kernel reads a panel from its first byte to
//! its last, whether it multiplies one row of activations (GEMV) or many (GEMM).
//!
//! The 4-, 6- and 8-bit formats keep the codes of GGUF's blocks: a weight is its code times a scale plus a
//! minimum, both shared by a few weights of a row. Codes are multiplied as integers with 16-bit activations,
//! 32 of which share a scale; only the sum of such a group is rounded to float32.

#![allow(unsafe_op_in_unsafe_fn)] // Every operation reads the block that the caller has checked.

use half::{bf16, f16};

use super::super::layout::{CodeWidth, GROUP_LEN, PANEL_ROWS};
use super::super::simd::{QUAD_LEN, Simd};

/// A format's layout in blocks.
pub trait Packing {
    /// Inner elements of a block.
    const BLOCK_LEN: usize;
    /// Bytes of a block of one row in the source.
    const SOURCE_BYTES: usize;
    /// Bytes of a block of a panel.
    const PACKED_BYTES: usize;

    /// Packs a source block of row `row` (0 to 15) into a block of the panel.
    fn pack(source: &[u8], row: usize, packed: &mut [u8]);

    /// Dequantizes the weights of row `row` of a block.
    fn dequantize(packed: &[u8], row: usize, weights: &mut [f32]);
}

/// A quantized format: a weight is `(code - ZERO) * scale`, plus a minimum if the format has them.
///
/// # Safety
/// Of all unsafe functions: `packed` points to a whole block of the format.
pub trait Quantized: Packing {
    /// Bits of a code.
    const CODE_BITS: u32;
    /// The code of zero.
    const ZERO: i32 = 0;
    /// Scales, and minimums, of each row of a group: one, or one for each half.
    const SCALES_PER_GROUP: usize = 1;
    /// Whether weights have a minimum.
    const HAS_MINS: bool = true;

    /// The codes of two quads: pair 0 or 1 of half 0 or 1 of a group.
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2];

    /// Scale `idx` of a group, of all rows.
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats;

    /// Minimum `idx` of a group, of all rows.
    unsafe fn min<S: Simd>(simd: S, _packed: *const u8, _group: usize, _idx: usize) -> S::Floats {
        simd.splat(0.0)
    }
}

/// How far ahead of its use a panel is prefetched, in bytes.
const PREFETCH_BYTES: usize = 8192;

/// Prefetches what follows a block, in as many parts as the block has groups: a few lines at a time, since
/// many at once delay other loads. Prefetching past the end of the matrix does no harm.
#[inline(always)]
pub fn prefetch_ahead<S: Simd, P: Packing>(simd: S, packed: *const u8, group: usize, n_groups: usize) {
    let n_lines = P::PACKED_BYTES.div_ceil(64);
    for line in group * n_lines / n_groups..(group + 1) * n_lines / n_groups {
        simd.prefetch_l2(packed.wrapping_add(PREFETCH_BYTES + 64 * line));
    }
}

/// The part of an [`UnpackedPanel`](super::super::layout::UnpackedPanel) for one group.
pub struct UnpackedGroup<'a> {
    /// The type of the codes.
    pub width: CodeWidth,
    /// [`CodeWidth::group_bytes`] bytes.
    pub codes: &'a mut [u8],
    /// [`Quantized::SCALES_PER_GROUP`] vectors.
    pub scales: &'a mut [[f32; PANEL_ROWS]],
    /// As many vectors.
    pub mins: &'a mut [[f32; PANEL_ROWS]],
}

/// Unpacks a group of a block: its codes to 8 or 16 bits, its scales and minimums to float32.
///
/// # Safety
/// `packed` points to a block.
///
/// # Panics
/// When there is no room for the group.
#[inline(always)]
pub unsafe fn unpack_group<S: Simd, Q: Quantized>(
    simd: S,
    packed: *const u8,
    group: usize,
    UnpackedGroup { width, codes, scales, mins }: UnpackedGroup,
) {
    assert!(codes.len() >= width.group_bytes());
    let start = codes.as_mut_ptr();
    if width == CodeWidth::Bf16 {
        return unpack_to_bf16::<S, Q>(simd, packed, group, start.cast());
    }
    for half in 0..2 {
        let [a, b] = Q::codes(simd, packed, group, half, 0);
        let [c, d] = Q::codes(simd, packed, group, half, 1);
        let mut quads = [a, b, c, d];
        if width == CodeWidth::RotatedByte {
            quads = simd.rotate_codes(quads, rotation_zero::<Q>());
        }
        for (quad, codes) in quads.into_iter().enumerate() {
            let offset = (4 * half + quad) * QUAD_LEN * PANEL_ROWS;
            match width {
                CodeWidth::Byte => simd.store_codes_i8(codes, Q::ZERO as i8, start.add(offset).cast()),
                CodeWidth::Word => simd.store_codes_i16(codes, Q::ZERO as i16, start.add(2 * offset).cast()),
                CodeWidth::RotatedByte => simd.store_codes_i8(codes, 0, start.add(offset).cast()),
                CodeWidth::Bf16 => unreachable!("these are whole weights, unpacked above"),
            }
        }
    }
    for idx in 0..Q::SCALES_PER_GROUP {
        let scale = Q::scale(simd, packed, group, idx);
        simd.store_array(scale, &mut scales[idx]);
        if Q::HAS_MINS {
            let mut min = Q::min(simd, packed, group, idx);
            if width == CodeWidth::RotatedByte {
                let zero = f32::from(rotation_zero::<Q>()) - Q::ZERO as f32;
                min = simd.mul_add(scale, simd.splat(zero), min);
            }
            simd.store_array(min, &mut mins[idx]);
        }
    }
}

/// Unpacks a group of a block to whole weights as bfloat16.
///
/// # Safety
/// `packed` points to a block, and there is room for the group.
#[inline(always)]
unsafe fn unpack_to_bf16<S: Simd, Q: Quantized>(simd: S, packed: *const u8, group: usize, to: *mut bf16) {
    for half in 0..2 {
        let idx = half * (Q::SCALES_PER_GROUP - 1);
        let scale = Q::scale(simd, packed, group, idx);
        let min = if Q::HAS_MINS { Q::min(simd, packed, group, idx) } else { simd.splat(0.0) };
        let min = simd.mul_add(scale, simd.splat(-Q::ZERO as f32), min);
        for pair in 0..2 {
            let codes = Q::codes(simd, packed, group, half, pair);
            for (idx, codes) in codes.into_iter().enumerate() {
                let quad = 4 * half + 2 * pair + idx;
                let to = to.add(quad * QUAD_LEN * PANEL_ROWS);
                simd.store_weights_bf16(codes, Q::CODE_BITS, scale, min, to);
            }
        }
    }
}

/// The code that counts as zero where codes are rotated: the middle, if minimums can make up for it.
const fn rotation_zero<Q: Quantized>() -> u8 {
    if Q::HAS_MINS { 1 << (Q::CODE_BITS - 1) } else { Q::ZERO as u8 }
}

/// The index of the code of inner element `i` of a group, among one-byte codes of a panel.
pub(super) const fn code_position(row: usize, i: usize) -> usize {
    (i / QUAD_LEN) * 64 + row * QUAD_LEN + i % QUAD_LEN
}

/// Bytes of the low four bits of a group of a panel.
pub(super) const LOW_BYTES: usize = GROUP_LEN * PANEL_ROWS / 2;
/// Bytes of the two bits above them.
pub(super) const HIGH_BYTES: usize = GROUP_LEN * PANEL_ROWS / 4;
/// Bytes of the one-byte codes of a group of a panel.
pub(super) const BYTE_CODES: usize = GROUP_LEN * PANEL_ROWS;

/// The codes of a row's group, one in each byte.
pub(super) type GroupCodes = [u8; GROUP_LEN];

/// The 4-bit codes of a block: the first half is in the low bits of the bytes, the second in the high bits.
pub(super) fn nibbles(bytes: &[u8]) -> GroupCodes {
    let mut codes = [0; GROUP_LEN];
    let (first, second) = codes.split_at_mut(GROUP_LEN / 2);
    for ((byte, first), second) in bytes.iter().zip(first).zip(second) {
        *first = byte & 0xF;
        *second = byte >> 4;
    }
    codes
}

/// Quad `idx` of a group's codes as a dword, whose bytes are masked with `mask`.
fn quad(codes: &GroupCodes, idx: usize, mask: u8) -> u32 {
    let (quads, _) = codes.as_chunks::<QUAD_LEN>();
    u32::from_ne_bytes(quads[idx]) & u32::from_ne_bytes([mask; QUAD_LEN])
}

/// Writes the low four bits of a row's codes: quads 0 and 1 share 64 bytes, and so on.
pub(super) fn put_low_bits(packed: &mut [u8], row: usize, codes: &GroupCodes) {
    for (pair, packed) in packed[..LOW_BYTES].chunks_exact_mut(64).enumerate() {
        let both = quad(codes, 2 * pair, 0xF) | quad(codes, 2 * pair + 1, 0xF) << 4;
        packed[row * QUAD_LEN..(row + 1) * QUAD_LEN].copy_from_slice(&both.to_ne_bytes());
    }
}

/// Reads the low four bits of a code.
pub(super) fn low_bits(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    packed[position / 128 * 64 + position % 64] >> (4 * (position / 64 % 2)) & 0xF
}

/// Writes the fifth and sixth bits of a row's codes: quads 0 to 3 share 64 bytes, and so on.
pub(super) fn put_high_bits(packed: &mut [u8], row: usize, codes: &GroupCodes) {
    for (half, packed) in packed[..HIGH_BYTES].chunks_exact_mut(64).enumerate() {
        let high = |idx: usize| quad(codes, 4 * half + idx, 0x30);
        let all = high(0) >> 4 | high(1) >> 2 | high(2) | high(3) << 2;
        packed[row * QUAD_LEN..(row + 1) * QUAD_LEN].copy_from_slice(&all.to_ne_bytes());
    }
}

/// Writes the signed codes of a row, one in each byte, with 128 for zero.
pub(super) fn put_signed_bytes(packed: &mut [u8], row: usize, codes: &[u8]) {
    let (quads, _) = codes.as_chunks::<QUAD_LEN>();
    for (packed, quad) in packed[..BYTE_CODES].chunks_exact_mut(64).zip(quads) {
        packed[row * QUAD_LEN..(row + 1) * QUAD_LEN].copy_from_slice(&quad.map(|code| code ^ 0x80));
    }
}

/// Reads a code of one byte.
pub(super) fn signed_byte(packed: &[u8], row: usize, i: usize) -> i8 {
    (packed[code_position(row, i)] ^ 0x80).cast_signed()
}

/// Reads the fifth and sixth bit of a code.
pub(super) fn high_bits(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    (packed[position / 256 * 64 + position % 64] >> (2 * (position / 64 % 4)) & 0b11) << 4
}

/// Reads a code whose high bits follow the low bits of the group.
pub(super) fn six_bits(packed: &[u8], row: usize, i: usize) -> u8 {
    low_bits(packed, row, i) | high_bits(&packed[LOW_BYTES..], row, i)
}

/// Writes a half-precision number of a row.
pub(super) fn put_half(packed: &mut [u8], row: usize, bytes: &[u8]) {
    packed[2 * row..2 * row + 2].copy_from_slice(&bytes[..2]);
}

/// Reads a half-precision number of a row.
pub(super) fn half(packed: &[u8], row: usize) -> f32 {
    f16::from_le_bytes([packed[2 * row], packed[2 * row + 1]]).to_f32()
}

/// Loads two quads of 4-bit codes: pair 0 or 1 of half 0 or 1 of a group.
#[inline(always)]
pub(super) unsafe fn codes_4<S: Simd>(simd: S, low: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    simd.load_codes_4(low.add(128 * half + 64 * pair))
}

/// Loads two quads of 6-bit codes.
#[inline(always)]
pub(super) unsafe fn codes_6<S: Simd>(
    simd: S,
    low: *const u8,
    high: *const u8,
    half: usize,
    pair: usize,
) -> [S::Codes; 2] {
    let [a, b] = codes_4(simd, low, half, pair);
    let high = high.add(64 * half);
    if pair == 0 {
        [simd.or_high_bits::<0>(a, high), simd.or_high_bits::<2>(b, high)]
    } else {
        [simd.or_high_bits::<4>(a, high), simd.or_high_bits::<6>(b, high)]
    }
}

/// Loads two quads of one-byte codes.
#[inline(always)]
pub(super) unsafe fn codes_8<S: Simd>(simd: S, codes: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    let codes = codes.add(256 * half + 128 * pair);
    [simd.load_codes_8(codes), simd.load_codes_8(codes.add(64))]
}

/// Loads sixteen scales or minimums: signed bytes at offset `at` of a block times factors at another offset.
#[inline(always)]
pub(super) unsafe fn scale_i8<S: Simd>(
    simd: S,
    packed: *const u8,
    at: usize,
    factors_at: usize,
) -> S::Floats {
    simd.mul(simd.load_i8(packed.add(at).cast()), simd.load_f16(packed.add(factors_at).cast()))
}
