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
use super::super::simd::{LANES, QUAD_BYTES, Simd};

/// Rows of a panel.
pub const PANEL_ROWS: usize = LANES;

/// Activations that share a scale.
pub const GROUP_LEN: usize = 32;

/// Activations to a [`Simd::dot`].
const QUAD_LEN: usize = 4;

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

/// One way to store weights.
pub trait Format {
    /// Inner elements of a block.
    const BLOCK_LEN: usize;
    /// Bytes that a block of one row takes where it comes from.
    const SOURCE_BYTES: usize;
    /// Bytes of a block of a panel.
    const PACKED_BYTES: usize;
    /// What stands for the activations of a block: [`ActivationGroup`]s or float32.
    type Activation;
    /// How many of them.
    const N_ACTIVATIONS: usize;

    /// The activations that it multiplies with.
    fn of(x: &Activations) -> &[Self::Activation];

    /// Puts a block of row `row` of the panel into its places.
    fn pack(source: &[u8], row: usize, packed: &mut [u8]);

    /// The weights of row `row`.
    fn unpack(packed: &[u8], row: usize, weights: &mut [f32]);

    /// Adds the products of a block's sixteen rows with each of `M` rows of activations.
    ///
    /// # Safety
    /// As [`Simd`]; `packed` points to a block, each of `x` to the activations of its inner elements, which
    /// are `stride` apart.
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const Self::Activation; M],
        _: usize,
        sums: &mut [S::Floats; M],
    );
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

/// The products of half a group's codes with `M` rows of activations, added to `sums`. Codes are
/// taken two quads at a time, so that they and the sums of all rows stay in registers.
#[inline(always)]
unsafe fn dot_half<S: Simd, const M: usize>(
    codes: impl Fn(usize) -> [S::Codes; 2],
    half: usize,
    x: &[*const ActivationGroup; M],
    sums: &mut [S::Sums; M],
) {
    for pair in 0..2 {
        for (quad, codes) in codes(pair).into_iter().enumerate() {
            for m in 0..M {
                let activations = x[m].cast::<u8>().add((4 * half + 2 * pair + quad) * QUAD_BYTES);
                sums[m] = S::dot(sums[m], codes, activations);
            }
        }
    }
}

/// Sums of products that start at minus `zero`, the code for zero, times the sum of the activations.
#[inline(always)]
unsafe fn start<S: Simd, const M: usize>(
    zero: i32,
    x: &[*const ActivationGroup; M],
    sum: impl Fn(&ActivationGroup) -> i32,
) -> [S::Sums; M] {
    let mut products = [S::sums(0); M];
    if zero != 0 {
        for m in 0..M {
            products[m] = S::sums(-zero * sum(&*x[m]));
        }
    }
    products
}

/// The activations of a later group of a block.
#[inline(always)]
unsafe fn group_of<const M: usize>(
    mut x: [*const ActivationGroup; M],
    offset: usize,
) -> [*const ActivationGroup; M] {
    for row in &mut x {
        *row = row.add(offset);
    }
    x
}

/// Adds products to float sums: `sums += products * activation scale * weight scale`.
#[inline(always)]
unsafe fn add_scaled<S: Simd, const M: usize>(
    products: [S::Sums; M],
    x: &[*const ActivationGroup; M],
    scale: S::Floats,
    sums: &mut [S::Floats; M],
) {
    for m in 0..M {
        let product = S::mul(S::finish(products[m]), S::splat((*x[m]).scale));
        sums[m] = S::mul_add(product, scale, sums[m]);
    }
}

/// Q4_0: 4 bits, zero is 8, a scale in half precision for 32 weights.
pub struct Q4_0;

impl Format for Q4_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 18;
    const PACKED_BYTES: usize = LOW_BYTES + 2 * PANEL_ROWS;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = 1;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        _: usize,
        sums: &mut [S::Floats; M],
    ) {
        let mut products = start::<S, M>(8, &x, |group| group.sum);
        for half in 0..2 {
            dot_half::<S, M>(|pair| codes_4::<S>(packed, half, pair), half, &x, &mut products);
        }
        let scale = S::load_f16(packed.add(LOW_BYTES).cast());
        add_scaled::<S, M>(products, &x, scale, sums);
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

impl Format for Q4_1 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 20;
    const PACKED_BYTES: usize = LOW_BYTES + 4 * PANEL_ROWS;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = 1;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        _: usize,
        sums: &mut [S::Floats; M],
    ) {
        let mut products = start::<S, M>(0, &x, |group| group.sum);
        for half in 0..2 {
            dot_half::<S, M>(|pair| codes_4::<S>(packed, half, pair), half, &x, &mut products);
        }
        let scale = S::load_f16(packed.add(LOW_BYTES).cast());
        let min = S::load_f16(packed.add(LOW_BYTES + 2 * PANEL_ROWS).cast());
        add_scaled::<S, M>(products, &x, scale, sums);
        for m in 0..M {
            sums[m] = S::mul_add(min, S::splat((*x[m]).scaled_sum), sums[m]);
        }
    }
}

/// Q5_1: 5 bits, of which the kernels hold six, a scale and a minimum in half precision for 32 weights.
pub struct Q5_1;

impl Q5_1 {
    const SCALES: usize = LOW_BYTES + HIGH_BYTES;
    const MINS: usize = Self::SCALES + 2 * PANEL_ROWS;
}

impl Format for Q5_1 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 24;
    const PACKED_BYTES: usize = Self::MINS + 2 * PANEL_ROWS;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = 1;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        _: usize,
        sums: &mut [S::Floats; M],
    ) {
        let mut products = start::<S, M>(0, &x, |group| group.sum);
        for half in 0..2 {
            let codes = |pair| codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair);
            dot_half::<S, M>(codes, half, &x, &mut products);
        }
        add_scaled::<S, M>(products, &x, S::load_f16(packed.add(Self::SCALES).cast()), sums);
        let min = S::load_f16(packed.add(Self::MINS).cast());
        for m in 0..M {
            sums[m] = S::mul_add(min, S::splat((*x[m]).scaled_sum), sums[m]);
        }
    }
}

/// Q8_0: 8 bits, zero is 128, a scale in half precision for 32 weights.
pub struct Q8_0;

const BYTE_CODES: usize = GROUP_LEN * PANEL_ROWS;

impl Format for Q8_0 {
    const BLOCK_LEN: usize = GROUP_LEN;
    const SOURCE_BYTES: usize = 34;
    const PACKED_BYTES: usize = BYTE_CODES + 2 * PANEL_ROWS;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = 1;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        _: usize,
        sums: &mut [S::Floats; M],
    ) {
        let mut products = start::<S, M>(128, &x, |group| group.sum);
        for half in 0..2 {
            dot_half::<S, M>(|pair| codes_8::<S>(packed, half, pair), half, &x, &mut products);
        }
        let scale = S::load_f16(packed.add(BYTE_CODES).cast());
        add_scaled::<S, M>(products, &x, scale, sums);
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

impl Format for Q4K {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = 144;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = K_GROUPS;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
    ) {
        let scale_factor = S::load_f16(packed.cast());
        let min_factor = S::sub(S::splat(0.0), S::load_f16(packed.add(2 * PANEL_ROWS).cast()));
        for group in 0..K_GROUPS {
            let packed = packed.add(Self::FACTORS + group * Self::GROUP_BYTES);
            let x = group_of::<M>(x, group * stride);
            let mut products = start::<S, M>(0, &x, |group| group.sum);
            for half in 0..2 {
                dot_half::<S, M>(|pair| codes_4::<S>(packed, half, pair), half, &x, &mut products);
            }
            let scale = S::mul(S::load_u8(packed.add(LOW_BYTES)), scale_factor);
            let min = S::mul(S::load_u8(packed.add(LOW_BYTES + PANEL_ROWS)), min_factor);
            add_scaled::<S, M>(products, &x, scale, sums);
            for m in 0..M {
                sums[m] = S::mul_add(min, S::splat((*x[m]).scaled_sum), sums[m]);
            }
        }
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
    const ZERO: i32 = 32;
}

impl Format for Q6K {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = 210;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = K_GROUPS;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
    ) {
        let factor = S::load_f16(packed.cast());
        for group in 0..K_GROUPS {
            let packed = packed.add(Self::FACTORS + group * Self::GROUP_BYTES);
            let x = group_of::<M>(x, group * stride);
            for half in 0..2 {
                let mut products = start::<S, M>(Self::ZERO, &x, |group| group.half_sums[half]);
                let codes = |pair| codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair);
                dot_half::<S, M>(codes, half, &x, &mut products);
                let scale = S::load_i8(packed.add(Self::SCALES + half * PANEL_ROWS).cast());
                add_scaled::<S, M>(products, &x, S::mul(scale, factor), sums);
            }
        }
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
}

impl Format for General6 {
    const BLOCK_LEN: usize = K_LEN;
    const SOURCE_BYTES: usize = K_LEN + 36;
    const PACKED_BYTES: usize = Self::FACTORS + K_GROUPS * Self::GROUP_BYTES;
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = K_GROUPS;

    fn of(x: &Activations) -> &[ActivationGroup] {
        x.groups()
    }

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

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        packed: *const u8,
        x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
    ) {
        let scale_factor = S::load_f16(packed.cast());
        let min_factor = S::load_f16(packed.add(2 * PANEL_ROWS).cast());
        for group in 0..K_GROUPS {
            let packed = packed.add(Self::FACTORS + group * Self::GROUP_BYTES);
            let x = group_of::<M>(x, group * stride);
            for half in 0..2 {
                let mut products = start::<S, M>(0, &x, |group| group.sum);
                let codes = |pair| codes_6::<S>(packed, packed.add(LOW_BYTES), half, pair);
                dot_half::<S, M>(codes, half, &x, &mut products);
                let of_half = |at: usize| S::load_i8(packed.add(at + half * PANEL_ROWS).cast());
                add_scaled::<S, M>(products, &x, S::mul(of_half(Self::SCALES), scale_factor), sums);
                let min = S::mul(of_half(Self::MINS), min_factor);
                for m in 0..M {
                    sums[m] = S::mul_add(min, S::splat((*x[m]).scaled_half_sums[half]), sums[m]);
                }
            }
        }
    }
}

/// A block of one float for each row.
macro_rules! float_format {
    ($name:ident, $about:literal, $bytes:literal, $load:ident, $read:expr) => {
        #[doc = $about]
        pub struct $name;

        impl Format for $name {
            const BLOCK_LEN: usize = 1;
            const SOURCE_BYTES: usize = $bytes;
            const PACKED_BYTES: usize = $bytes * PANEL_ROWS;
            type Activation = f32;
            const N_ACTIVATIONS: usize = 1;

            fn of(x: &Activations) -> &[f32] {
                x.floats()
            }

            fn pack(source: &[u8], row: usize, packed: &mut [u8]) {
                packed[$bytes * row..$bytes * (row + 1)].copy_from_slice(source);
            }

            fn unpack(packed: &[u8], row: usize, weights: &mut [f32]) {
                if let Some(&bytes) = packed[$bytes * row..].first_chunk::<$bytes>() {
                    weights[0] = $read(bytes);
                }
            }

            #[inline(always)]
            unsafe fn accumulate<S: Simd, const M: usize>(
                packed: *const u8,
                x: [*const f32; M],
                _: usize,
                sums: &mut [S::Floats; M],
            ) {
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
