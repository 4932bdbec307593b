//! How weights are stored for the kernels.
//!
//! A matrix is cut into panels of sixteen rows, a panel along its inner dimension into blocks. A
//! block holds what the sixteen rows have there side by side, so that a kernel reads a panel from
//! its first byte to its last, whether it multiplies one row of activations or many.
//!
//! The 4-, 6- and 8-bit formats hold the codes of GGUF's blocks unchanged: a weight is its code
//! times a scale plus a minimum, both shared by a few weights of a row. Codes are multiplied as
//! integers with activations of 16 bits, whose scale 32 of them share; only what leaves such a
//! group of 32 is rounded to float32.

#![allow(unsafe_op_in_unsafe_fn)] // What its callers promise is what every operation here asks for.

use half::f16;

use super::super::layout::{CodeWidth, GROUP_LEN, PANEL_ROWS};
use super::super::simd::{QUAD_LEN, Simd};

/// How weights are laid out in blocks.
pub trait Packing {
    /// Inner elements of a block.
    const BLOCK_LEN: usize;
    /// Bytes that a block of one row takes where it comes from.
    const SOURCE_BYTES: usize;
    /// Bytes of a block of a panel.
    const PACKED_BYTES: usize;

    /// Puts a block of row `row` of the panel into its places.
    fn pack(source: &[u8], row: usize, packed: &mut [u8]);

    /// The weights of row `row`.
    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]);
}

/// Weights that are codes: a weight is its code, less that of zero, times a scale, plus a
/// minimum where there is one.
///
/// # Safety
/// Of all unsafe functions: as [`Simd`], and `packed` points to a block.
pub trait Quantized: Packing {
    /// The code of zero.
    const ZERO: i32 = 0;
    /// Scales, and minimums, that a group has of each row: one, or one for each half.
    const SCALES_PER_GROUP: usize = 1;
    const HAS_MINS: bool = true;

    /// The codes of two quads: the first or second `pair` of a `half` of a group.
    unsafe fn codes<S: Simd>(
        simd: S,
        packed: *const u8,
        group: usize,
        half: usize,
        pair: usize,
    ) -> [S::Codes; 2];

    /// A scale of a group.
    unsafe fn scale<S: Simd>(simd: S, packed: *const u8, group: usize, idx: usize) -> S::Floats;

    /// A minimum of a group.
    unsafe fn min<S: Simd>(simd: S, _packed: *const u8, _group: usize, _idx: usize) -> S::Floats {
        simd.splat(0.0)
    }
}

/// How far ahead of its use a panel is fetched from memory.
pub(super) const FETCH_BYTES: usize = 8192;

/// Fetches the part of what follows a block that falls to one of its `n_groups`: a few lines at a time,
/// since many at once keep other loads waiting.
///
/// # Safety
/// As [`Simd`]. Past the end of the matrix there is nothing to fetch, which does no harm.
#[inline(always)]
pub unsafe fn fetch<S: Simd, P: Packing>(simd: S, packed: *const u8, group: usize, n_groups: usize) {
    let n_lines = P::PACKED_BYTES.div_ceil(64);
    for line in group * n_lines / n_groups..(group + 1) * n_lines / n_groups {
        simd.prefetch_l2(packed.wrapping_add(FETCH_BYTES + 64 * line));
    }
}

/// Expands a group of a block; scales and minimums as numbers.
///
/// # Safety
/// As [`Quantized`]; there is room behind the pointers.
#[inline(always)]
pub unsafe fn expand<S: Simd, Q: Quantized>(
    simd: S,
    packed: *const u8,
    group: usize,
    width: CodeWidth,
    expanded: *mut u8,
    scales: *mut f32,
    mins: *mut f32,
) {
    for (half, pair) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for (quad, codes) in Q::codes(simd, packed, group, half, pair).into_iter().enumerate() {
            let place = (4 * half + 2 * pair + quad) * QUAD_LEN * PANEL_ROWS;
            match width {
                CodeWidth::Byte => simd.store_codes_i8(codes, Q::ZERO as i8, expanded.add(place).cast()),
                CodeWidth::Word => {
                    simd.store_codes_i16(codes, Q::ZERO as i16, expanded.add(2 * place).cast())
                }
            }
        }
    }
    for idx in 0..Q::SCALES_PER_GROUP {
        simd.store(Q::scale(simd, packed, group, idx), scales.add(idx * PANEL_ROWS));
        if Q::HAS_MINS {
            simd.store(Q::min(simd, packed, group, idx), mins.add(idx * PANEL_ROWS));
        }
    }
}

/// Where the code of an inner element of a group stands among those of a panel with a byte each.
pub(super) const fn code_position(row: usize, i: usize) -> usize {
    (i / QUAD_LEN) * 64 + row * QUAD_LEN + i % QUAD_LEN
}

/// Bytes of the low four bits of a group of a panel, and of the two bits above them.
pub(super) const LOW_BYTES: usize = GROUP_LEN * PANEL_ROWS / 2;
pub(super) const HIGH_BYTES: usize = GROUP_LEN * PANEL_ROWS / 4;

/// Writes the low four bits of a group's code: quads 0 and 1 share 64 bytes, and so on.
pub(super) fn put_low(packed: &mut [u8], row: usize, i: usize, code: u8) {
    let position = code_position(row, i);
    let (pair, byte) = (position / 128, position % 64);
    packed[pair * 64 + byte] |= (code & 0xF) << (4 * (position / 64 % 2));
}

pub(super) fn low(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    packed[position / 128 * 64 + position % 64] >> (4 * (position / 64 % 2)) & 0xF
}

/// Writes the fifth and sixth bit of a group's code: quads 0 to 3 share 64 bytes, and so on.
pub(super) fn put_high(packed: &mut [u8], row: usize, i: usize, code: u8) {
    let position = code_position(row, i);
    packed[position / 256 * 64 + position % 64] |= (code >> 4) << (2 * (position / 64 % 4));
}

pub(super) fn high(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    (packed[position / 256 * 64 + position % 64] >> (2 * (position / 64 % 4)) & 0b11) << 4
}

/// A code whose low and high bits stand one behind the other.
pub(super) fn six_bits(packed: &[u8], row: usize, i: usize) -> u8 {
    low(packed, row, i) | high(&packed[LOW_BYTES..], row, i)
}

pub(super) fn put_half(packed: &mut [u8], row: usize, bytes: &[u8]) {
    packed[2 * row..2 * row + 2].copy_from_slice(&bytes[..2]);
}

pub(super) fn half(packed: &[u8], row: usize) -> f32 {
    f16::from_le_bytes([packed[2 * row], packed[2 * row + 1]]).to_f32()
}

/// Two quads of four bits each: the first or second pair of a half of a group.
#[inline(always)]
pub(super) unsafe fn codes_4<S: Simd>(simd: S, low: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    simd.load_codes_4(low.add(128 * half + 64 * pair))
}

/// The same with two bits more.
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

#[inline(always)]
pub(super) unsafe fn codes_8<S: Simd>(simd: S, codes: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    let codes = codes.add(256 * half + 128 * pair);
    [simd.load_codes_8(codes), simd.load_codes_8(codes.add(64))]
}

/// Sixteen scales or minimums: signed bytes at one place of a block times their factors at another.
#[inline(always)]
pub(super) unsafe fn scale_i8<S: Simd>(
    simd: S,
    packed: *const u8,
    at: usize,
    factors_at: usize,
) -> S::Floats {
    simd.mul(simd.load_i8(packed.add(at).cast()), simd.load_f16(packed.add(factors_at).cast()))
}
