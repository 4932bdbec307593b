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

use half::{bf16, f16};

use super::super::activations::Activations;
use super::super::simd::{LANES, QUAD_BYTES, QUAD_LEN, Simd};
use super::super::units::TILE_UNITS;

/// Rows of a panel.
pub const PANEL_ROWS: usize = LANES;

/// Activations that share a scale.
pub const GROUP_LEN: usize = 32;

/// Bytes of a group's activations.
pub const GROUP_QUAD_BYTES: usize = GROUP_LEN / QUAD_LEN * QUAD_BYTES;

/// A group of activations as whole numbers.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ActivationGroup {
    pub quads: [[u8; GROUP_QUAD_BYTES / 2]; 2],
    /// What the whole numbers are multiplied by.
    pub scale: f32,
    /// The sum of all, and of each half.
    pub sum: i32,
    pub half_sums: [i32; 2],
    /// The same, scaled.
    pub scaled_sum: f32,
    pub scaled_half_sums: [f32; 2],
}

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

/// How weights are multiplied as they are read.
pub trait Format: Packing {
    /// What stands for the activations of a block: [`ActivationGroup`]s or float32.
    type Activation;
    /// How many of them.
    const N_ACTIVATIONS: usize;

    /// The activations that it multiplies with.
    fn of(x: &Activations) -> &[Self::Activation];

    /// Adds the products of a block's sixteen rows with each of `M` rows of activations. Where it `fetches`,
    /// it fetches what follows meanwhile.
    ///
    /// # Safety
    /// As [`Simd`]; `packed` points to a block, each of `x` to the activations of its inner elements, which
    /// are `stride` apart.
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const Self::Activation; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        fetches: bool,
    );
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
    unsafe fn codes<S: Simd>(packed: *const u8, group: usize, half: usize, pair: usize) -> [S::Codes; 2];

    /// A scale of a group.
    unsafe fn scale<S: Simd>(packed: *const u8, group: usize, idx: usize) -> S::Floats;

    /// A minimum of a group.
    unsafe fn min<S: Simd>(_packed: *const u8, _group: usize, _idx: usize) -> S::Floats {
        S::splat(0.0)
    }
}

impl<Q: Quantized> Format for Q {
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = Q::BLOCK_LEN / GROUP_LEN;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        mut x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        fetches: bool,
    ) {
        for group in 0..Self::N_ACTIVATIONS {
            if fetches {
                fetch::<S, Q>(packed, group, Self::N_ACTIVATIONS);
            }
            for idx in 0..Q::SCALES_PER_GROUP {
                let is_whole = Q::SCALES_PER_GROUP == 1;
                let mut products = [S::sums(0); M];
                if Q::ZERO != 0 {
                    for m in 0..M {
                        let sum = if is_whole { (*x[m]).sum } else { (*x[m]).half_sums[idx] };
                        products[m] = S::sums(-Q::ZERO * sum);
                    }
                }
                let pairs = if is_whole { 0..4 } else { 2 * idx..2 * idx + 2 };
                for first in pairs.clone().step_by(S::PAIRS_AT_ONCE) {
                    let mut codes = [Q::codes::<S>(packed, group, first / 2, first % 2); 4];
                    for pair in first + 1..pairs.end.min(first + S::PAIRS_AT_ONCE) {
                        codes[pair - first] = Q::codes::<S>(packed, group, pair / 2, pair % 2);
                    }
                    for quad in 2 * first..2 * pairs.end.min(first + S::PAIRS_AT_ONCE) {
                        let codes = codes[quad / 2 - first][quad % 2];
                        for m in 0..M {
                            let quads = x[m].cast::<u8>().add(quad * QUAD_BYTES);
                            products[m] = S::dot(products[m], codes, quads);
                        }
                    }
                }
                let scale = Q::scale::<S>(packed, group, idx);
                for m in 0..M {
                    let product = S::mul(S::finish(products[m]), S::splat((*x[m]).scale));
                    sums[m] = S::mul_add(product, scale, sums[m]);
                }
                if Q::HAS_MINS {
                    let min = Q::min::<S>(packed, group, idx);
                    for m in 0..M {
                        let sum = if is_whole { (*x[m]).scaled_sum } else { (*x[m]).scaled_half_sums[idx] };
                        sums[m] = S::mul_add(min, S::splat(sum), sums[m]);
                    }
                }
            }
            for x in &mut x {
                *x = x.wrapping_add(stride);
            }
        }
    }
}

/// How far ahead of its use a panel is fetched from memory.
const FETCH_BYTES: usize = 8192;

/// Fetches the part of what follows a block that falls to one of its `n_groups`: a few lines at a time,
/// since many at once keep other loads waiting.
///
/// # Safety
/// As [`Simd`]. Past the end of the matrix there is nothing to fetch, which does no harm.
#[inline(always)]
pub unsafe fn fetch<S: Simd, P: Packing>(packed: *const u8, group: usize, n_groups: usize) {
    let n_lines = P::PACKED_BYTES.div_ceil(64);
    for line in group * n_lines / n_groups..(group + 1) * n_lines / n_groups {
        S::prefetch_l2(packed.wrapping_add(FETCH_BYTES + 64 * line));
    }
}

/// What the codes of an expanded group, less that of zero, become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeWidth {
    /// Bytes: of each four inner elements those of sixteen rows.
    Byte,
    /// Whole numbers of 16 bits, in the order in which [`Simd::dot_words`] takes them: of each two inner
    /// elements those of sixteen rows.
    Word,
}

impl CodeWidth {
    /// Bytes of a group of a panel.
    pub const fn group_bytes(self) -> usize {
        match self {
            Self::Byte => GROUP_LEN * PANEL_ROWS,
            Self::Word => 2 * GROUP_LEN * PANEL_ROWS,
        }
    }
}

/// Expands a group of a block; scales and minimums as numbers.
///
/// # Safety
/// As [`Quantized`]; there is room behind the pointers.
#[inline(always)]
pub unsafe fn expand<S: Simd, Q: Quantized>(
    packed: *const u8,
    group: usize,
    width: CodeWidth,
    expanded: *mut u8,
    scales: *mut f32,
    mins: *mut f32,
) {
    for (half, pair) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for (quad, codes) in Q::codes::<S>(packed, group, half, pair).into_iter().enumerate() {
            let place = (4 * half + 2 * pair + quad) * QUAD_LEN * PANEL_ROWS;
            match width {
                CodeWidth::Byte => S::store_bytes(codes, Q::ZERO as i8, expanded.add(place).cast()),
                CodeWidth::Word => S::store_words(codes, Q::ZERO as i16, expanded.add(2 * place).cast()),
            }
        }
    }
    for idx in 0..Q::SCALES_PER_GROUP {
        S::store(Q::scale::<S>(packed, group, idx), scales.add(idx * PANEL_ROWS));
        if Q::HAS_MINS {
            S::store(Q::min::<S>(packed, group, idx), mins.add(idx * PANEL_ROWS));
        }
    }
}

/// Where the code of an inner element of a group stands among those of a panel with a byte each.
const fn code_position(row: usize, i: usize) -> usize {
    (i / QUAD_LEN) * 64 + row * QUAD_LEN + i % QUAD_LEN
}

/// Bytes of the low four bits of a group of a panel, and of the two bits above them.
const LOW_BYTES: usize = GROUP_LEN * PANEL_ROWS / 2;
const HIGH_BYTES: usize = GROUP_LEN * PANEL_ROWS / 4;

/// Writes the low four bits of a group's code: quads 0 and 1 share 64 bytes, and so on.
fn put_low(packed: &mut [u8], row: usize, i: usize, code: u8) {
    let position = code_position(row, i);
    let (pair, byte) = (position / 128, position % 64);
    packed[pair * 64 + byte] |= (code & 0xF) << (4 * (position / 64 % 2));
}

fn low(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    packed[position / 128 * 64 + position % 64] >> (4 * (position / 64 % 2)) & 0xF
}

/// Writes the fifth and sixth bit of a group's code: quads 0 to 3 share 64 bytes, and so on.
fn put_high(packed: &mut [u8], row: usize, i: usize, code: u8) {
    let position = code_position(row, i);
    packed[position / 256 * 64 + position % 64] |= (code >> 4) << (2 * (position / 64 % 4));
}

fn high(packed: &[u8], row: usize, i: usize) -> u8 {
    let position = code_position(row, i);
    (packed[position / 256 * 64 + position % 64] >> (2 * (position / 64 % 4)) & 0b11) << 4
}

/// A code whose low and high bits stand one behind the other.
fn six_bits(packed: &[u8], row: usize, i: usize) -> u8 {
    low(packed, row, i) | high(&packed[LOW_BYTES..], row, i)
}

fn put_half(packed: &mut [u8], row: usize, bytes: &[u8]) {
    packed[2 * row..2 * row + 2].copy_from_slice(&bytes[..2]);
}

fn half(packed: &[u8], row: usize) -> f32 {
    f16::from_le_bytes([packed[2 * row], packed[2 * row + 1]]).to_f32()
}

/// Two quads of four bits each: the first or second pair of a half of a group.
#[inline(always)]
unsafe fn codes_4<S: Simd>(low: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    S::codes_4(low.add(128 * half + 64 * pair))
}

/// The same with two bits more.
#[inline(always)]
unsafe fn codes_6<S: Simd>(low: *const u8, high: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    let [a, b] = codes_4::<S>(low, half, pair);
    let high = high.add(64 * half);
    if pair == 0 {
        [S::with_high_2::<0>(a, high), S::with_high_2::<2>(b, high)]
    } else {
        [S::with_high_2::<4>(a, high), S::with_high_2::<6>(b, high)]
    }
}

#[inline(always)]
unsafe fn codes_8<S: Simd>(codes: *const u8, half: usize, pair: usize) -> [S::Codes; 2] {
    let codes = codes.add(256 * half + 128 * pair);
    [S::codes_8(codes), S::codes_8(codes.add(64))]
}

/// Sixteen scales or minimums: signed bytes at one place of a block times their factors at another.
#[inline(always)]
unsafe fn scale_i8<S: Simd>(packed: *const u8, at: usize, factors_at: usize) -> S::Floats {
    S::mul(S::load_i8(packed.add(at).cast()), S::load_f16(packed.add(factors_at).cast()))
}

/// Q4_0: 4 bits, zero is 8, a scale in half precision for 32 weights.
pub struct Q4_0;

impl Packing for Q4_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 18;
    const PACKED_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        pack_nibbles(&source[2..], row, packed);
        put_half(&mut packed[LOW_BYTES..], row, source);
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[LOW_BYTES..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(low(packed, row, i)) - 8.0);
        }
    }
}

impl Quantized for Q4_0 {
    const ZERO: i32 = 8;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, _: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        codes_4::<S>(packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(LOW_BYTES).cast())
    }
}

/// The codes of a block of Q4_0 or Q4_1: first halves in the low, second in the high bits.
fn pack_nibbles(nibbles: &[u8], row: usize, packed: &mut [u8]) {
    for (i, &byte) in nibbles.iter().enumerate() {
        put_low(packed, row, i, byte & 0xF);
        put_low(packed, row, i + GROUP_LEN / 2, byte >> 4);
    }
}

/// Q4_1: 4 bits, a scale and a minimum in half precision for 32 weights.
pub struct Q4_1;

impl Packing for Q4_1 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 20;
    const PACKED_BYTES: usize = LOW_BYTES + 4 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        pack_nibbles(&source[4..], row, packed);
        put_half(&mut packed[LOW_BYTES..], row, source);
        put_half(&mut packed[LOW_BYTES + 2 * PANEL_ROWS..], row, &source[2..]);
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[LOW_BYTES..], row);
        let min = half(&packed[LOW_BYTES + 2 * PANEL_ROWS..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(low(packed, row, i)) + min;
        }
    }
}

impl Quantized for Q4_1 {
    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, _: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        codes_4::<S>(packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(LOW_BYTES).cast())
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(LOW_BYTES + 2 * PANEL_ROWS).cast())
    }
}

/// Q5_1: 5 bits, of which the kernels hold six, a scale and a minimum in half precision for 32 weights.
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
        pack_nibbles(&source[8..], row, packed);
        for i in 0..GROUP_LEN {
            let fifth = source[4 + i / 8] >> (i % 8) & 1;
            put_high(&mut packed[LOW_BYTES..], row, i, fifth << 4);
        }
        put_half(&mut packed[Self::SCALES..], row, source);
        put_half(&mut packed[Self::MINS..], row, &source[2..]);
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (scale, min) = (half(&packed[Self::SCALES..], row), half(&packed[Self::MINS..], row));
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(six_bits(packed, row, i)) + min;
        }
    }
}

impl Quantized for Q5_1 {
    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, _: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(Self::SCALES).cast())
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(Self::MINS).cast())
    }
}

/// Q8_0: 8 bits, zero is 128, a scale in half precision for 32 weights.
pub struct Q8_0;

const BYTE_CODES: usize = GROUP_LEN * PANEL_ROWS;

impl Packing for Q8_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 34;
    const PACKED_BYTES: usize = BYTE_CODES + 2 * PANEL_ROWS;

    fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
        for (i, &byte) in source[2..].iter().enumerate() {
            // From signed to unsigned.
            packed[code_position(row, i)] = byte ^ 0x80;
        }
        put_half(&mut packed[BYTE_CODES..], row, source);
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        let scale = half(&packed[BYTE_CODES..], row);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(packed[code_position(row, i)]) - 128.0);
        }
    }
}

impl Quantized for Q8_0 {
    const ZERO: i32 = 128;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, _: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        codes_8::<S>(packed, half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, _: usize, _: usize) -> S::Floats {
        S::load_f16(packed.add(BYTE_CODES).cast())
    }
}

/// Inner elements of a block of the K formats, and groups in it.
const K_LEN: usize = 256;
const K_GROUPS: usize = K_LEN / GROUP_LEN;

/// Q4_K: 4 bits; for 256 weights two factors in half precision, which multiply a scale and a minimum
/// of 6 bits for each 32.
///
/// A packed block is both factors of sixteen rows, then for each group the codes, the scales and the
/// minimums.
pub struct Q4K;

impl Q4K {
    const FACTORS: usize = 4 * PANEL_ROWS;
    const GROUP_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;

    /// Where a group begins.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }

    /// Scale and minimum of a group, out of 12 bytes for all eight.
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
            let codes = &source[16 + group / 2 * GROUP_LEN..][..GROUP_LEN];
            for (i, byte) in codes.iter().enumerate() {
                put_low(packed, row, i, byte >> (4 * (group % 2)) & 0xF);
            }
            let (scale, min) = Self::scale_and_min(&source[4..16], group);
            packed[LOW_BYTES + row] = scale;
            packed[LOW_BYTES + PANEL_ROWS + row] = min;
        }
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        let (factors, groups) = packed.split_at(Self::FACTORS);
        let groups = groups.chunks_exact(Self::GROUP_BYTES);
        for (packed, weights) in groups.zip(weights.chunks_exact_mut(GROUP_LEN)) {
            let scale = half(factors, row) * f32::from(packed[LOW_BYTES + row]);
            let min = half(&factors[2 * PANEL_ROWS..], row) * f32::from(packed[LOW_BYTES + PANEL_ROWS + row]);
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = scale * f32::from(low(packed, row, i)) - min;
            }
        }
    }
}

impl Quantized for Q4K {
    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, group: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        codes_4::<S>(packed.add(Self::group(group)), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, group: usize, _: usize) -> S::Floats {
        let scale = S::load_u8(packed.add(Self::group(group) + LOW_BYTES));
        S::mul(scale, S::load_f16(packed.cast()))
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(packed: *const u8, group: usize, _: usize) -> S::Floats {
        let min = S::load_u8(packed.add(Self::group(group) + LOW_BYTES + PANEL_ROWS));
        S::mul(min, S::sub(S::splat(0.0), S::load_f16(packed.add(2 * PANEL_ROWS).cast())))
    }
}

/// Q6_K: 6 bits, zero is 32; for 256 weights a factor in half precision, which multiplies a scale of 8
/// bits for each 16.
///
/// A packed block is the factors of sixteen rows, then for each group the codes and two times the
/// scales.
pub struct Q6K;

impl Q6K {
    const FACTORS: usize = 2 * PANEL_ROWS;
    const GROUP_BYTES: usize = LOW_BYTES + HIGH_BYTES + 2 * PANEL_ROWS;
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;

    /// Where a group begins.
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
            for i in 0..GROUP_LEN {
                let low = low[64 * quarter + 32 * (of_four % 2) + i] >> (4 * (of_four / 2)) & 0xF;
                let high = high[32 * quarter + i] >> (2 * of_four) & 0b11;
                put_low(packed, row, i, low);
                put_high(&mut packed[LOW_BYTES..], row, i, high << 4);
            }
            for half in 0..2 {
                packed[Self::SCALES + half * PANEL_ROWS + row] = scales[2 * group + half];
            }
        }
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
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
    const ZERO: i32 = 32;
    const SCALES_PER_GROUP: usize = 2;
    const HAS_MINS: bool = false;

    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, group: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        let packed = packed.add(Self::group(group));
        codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8::<S>(packed, Self::group(group) + Self::SCALES + idx * PANEL_ROWS, 0)
    }
}

/// For the K formats that have no own: up to 6 bits; for 256 weights two factors in half precision,
/// which multiply a scale and a minimum of 8 bits, both signed, for each 16.
///
/// The source is a byte for each of 256 codes, 16 scales, 16 minimums, the factors of scales and
/// minimums. A packed block is the factors of sixteen rows, then for each group the codes, two times
/// the scales and two times the minimums.
pub struct General6;

impl General6 {
    const FACTORS: usize = 4 * PANEL_ROWS;
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;
    const MINS: usize = Self::SCALES + 2 * PANEL_ROWS;
    const GROUP_BYTES: usize = Self::MINS + 2 * PANEL_ROWS;

    /// Where a group begins.
    const fn group(idx: usize) -> usize {
        Self::FACTORS + idx * Self::GROUP_BYTES
    }
}

impl Packing for General6 {
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
        for (group, packed) in groups.chunks_exact_mut(Self::GROUP_BYTES).enumerate() {
            for (i, &code) in codes[group * GROUP_LEN..][..GROUP_LEN].iter().enumerate() {
                put_low(packed, row, i, code);
                put_high(&mut packed[LOW_BYTES..], row, i, code);
            }
            for half in 0..2 {
                packed[Self::SCALES + half * PANEL_ROWS + row] = scales[2 * group + half];
                packed[Self::MINS + half * PANEL_ROWS + row] = mins[2 * group + half];
            }
        }
    }

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
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

impl Quantized for General6 {
    const SCALES_PER_GROUP: usize = 2;

    #[inline(always)]
    unsafe fn codes<S: Simd>(packed: *const u8, group: usize, half: usize, pair: usize) -> [S::Codes; 2] {
        let packed = packed.add(Self::group(group));
        codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8::<S>(packed, Self::group(group) + Self::SCALES + idx * PANEL_ROWS, 0)
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(packed: *const u8, group: usize, idx: usize) -> S::Floats {
        scale_i8::<S>(packed, Self::group(group) + Self::MINS + idx * PANEL_ROWS, 2 * PANEL_ROWS)
    }
}

/// A block of one float for each row.
macro_rules! float_format {
    ($name:ident, $about:literal, $bytes:literal, $load:ident, $read:expr) => {
        #[doc = $about]
        pub struct $name;

        impl Packing for $name {
            const BLOCK_LEN: usize = 1;
            const SOURCE_BYTES: usize = $bytes;
            const PACKED_BYTES: usize = $bytes * PANEL_ROWS;

            fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
                packed[$bytes * row..$bytes * (row + 1)].copy_from_slice(source);
            }

            fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
                if let Some(&bytes) = packed[$bytes * row..].first_chunk::<$bytes>() {
                    weights[0] = $read(bytes);
                }
            }
        }

        impl Format for $name {
            type Activation = f32;
            const N_ACTIVATIONS: usize = 1;

            fn of(x: &Activations) -> &[f32] {
                x.floats()
            }

            #[inline(always)]
            unsafe fn accumulate<S: Simd, const M: usize>(
                packed: *const u8,
                x: [*const f32; M],
                _: usize,
                sums: &mut [S::Floats; M],
                fetches: bool,
            ) {
                if fetches {
                    fetch::<S, Self>(packed, 0, 1);
                }
                let weights = S::$load(packed.cast());
                for m in 0..M {
                    sums[m] = S::mul_add(weights, S::splat(*x[m]), sums[m]);
                }
            }
        }
    };
}

float_format!(F32, "float32", 4, load, f32::from_le_bytes);
float_format!(F16, "Half precision.", 2, load_f16, |bytes| f16::from_le_bytes(bytes).to_f32());
float_format!(Bf16, "bfloat16", 2, load_bf16, |bytes| bf16::from_le_bytes(bytes).to_f32());

/// float32 rounded to bfloat16, in units of two neighbours of a row; multiplied with rows of such units.
pub struct Bf16Pairs;

impl Packing for Bf16Pairs {
    const BLOCK_LEN: usize = 2 * TILE_UNITS;
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

    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
        for (packed, weights) in packed.chunks_exact(4 * PANEL_ROWS).zip(weights.chunks_exact_mut(2)) {
            let pair = &packed[4 * row..4 * row + 4];
            weights[0] = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            weights[1] = bf16::from_le_bytes([pair[2], pair[3]]).to_f32();
        }
    }
}
