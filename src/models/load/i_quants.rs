//! GGUF's i-quants of one to three bits, and its ternary types, which candle lacks.
//!
//! A block of 256 weights has a factor in half precision, a small integer scale for every 16 or 32 weights, and codes.
//! In the i-quants a [grid](super::i_quant_grids) gives the magnitudes of eight or four weights at once, whose signs
//! stand beside. All products of factor, scale and code are exact in float32.

use std::ops::Range;

use half::f16;

use super::i_quant_grids as grids;
use crate::gguf::TensorType;
use crate::kernels::weights::WeightFormat;

/// Weights of a block.
const BLOCK_LEN: usize = 256;

/// Weights that share a scale.
const SCALE_LEN: usize = 16;

/// A decoded block: a weight is the factor times its scale times its code.
#[derive(Debug)]
pub struct DecodedBlock {
    factor: f32,
    scales: [i8; BLOCK_LEN / SCALE_LEN],
    codes: [i8; BLOCK_LEN],
}

/// Decodes a block.
pub type BlockDecoder = fn(block: &[u8]) -> DecodedBlock;

/// The decoder of a type, if it is an i-quant of up to three bits or ternary.
pub fn decoder(tensor_type: TensorType) -> Option<BlockDecoder> {
    Some(match tensor_type {
        TensorType::Iq1S => iq1_s,
        TensorType::Iq1M => iq1_m,
        TensorType::Iq2Xxs => iq2_xxs,
        TensorType::Iq2Xs => iq2_xs,
        TensorType::Iq2S => iq2_s,
        TensorType::Iq3Xxs => iq3_xxs,
        TensorType::Iq3S => iq3_s,
        TensorType::Tq1_0 => tq1_0,
        TensorType::Tq2_0 => tq2_0,
        _ => return None,
    })
}

/// Dequantizes whole blocks.
pub fn dequantize(decode: BlockDecoder, tensor_type: TensorType, blocks: &[u8], values: &mut [f32]) {
    let blocks = blocks.chunks_exact(tensor_type.block_bytes());
    for (block, values) in blocks.zip(values.chunks_exact_mut(BLOCK_LEN)) {
        let DecodedBlock { factor, scales, codes } = decode(block);
        for (i, (value, code)) in values.iter_mut().zip(codes).enumerate() {
            *value = factor * f32::from(scales[i / SCALE_LEN]) * f32::from(code);
        }
    }
}

impl DecodedBlock {
    /// Writes the blocks of a kernel format that holds the codes: 8 bits for those of the two-bit types, 6 bits for
    /// those of one and three bits, and 4 bits for ternary ones. Only the factors of the 6-bit format are rounded, to
    /// half precision, and only below 2^-14.
    pub fn write(&self, format: WeightFormat, converted: &mut [u8]) {
        match format {
            WeightFormat::K8Generic => self.write_k8_generic(converted),
            WeightFormat::Q6K => self.write_q6_k(converted),
            _ => self.write_q4_0(converted),
        }
    }

    fn write_k8_generic(&self, converted: &mut [u8]) {
        let (codes, rest) = converted.split_at_mut(BLOCK_LEN);
        let (scales, factor) = rest.split_at_mut(self.scales.len());
        write_bytes(codes, self.codes);
        write_bytes(scales, self.scales);
        factor.copy_from_slice(&self.factor.to_le_bytes());
    }

    fn write_q6_k(&self, converted: &mut [u8]) {
        converted.fill(0);
        let (low, rest) = converted.split_at_mut(BLOCK_LEN / 2);
        let (high, rest) = rest.split_at_mut(BLOCK_LEN / 4);
        let (scales, factor) = rest.split_at_mut(self.scales.len());
        for (i, code) in self.codes.iter().enumerate() {
            let code = (code + 32).cast_unsigned();
            // Of 128 weights, each quarter has other bits of the same bytes.
            let (half, quarter) = (i / 128, i / 32 % 4);
            low[64 * half + i % 64] |= (code & 0xF) << (4 * (quarter / 2));
            high[32 * half + i % 32] |= code >> 4 << (2 * quarter);
        }
        write_bytes(scales, self.scales);
        factor.copy_from_slice(&f16::from_f32(self.factor).to_le_bytes());
    }

    /// Writes eight blocks. Ternary types have no scales beside the factor.
    fn write_q4_0(&self, converted: &mut [u8]) {
        let (codes, _) = self.codes.as_chunks::<32>();
        for (block, codes) in converted.chunks_exact_mut(18).zip(codes) {
            let (factor, nibbles) = block.split_at_mut(2);
            factor.copy_from_slice(&f16::from_f32(self.factor).to_le_bytes());
            let (first, second) = codes.split_at(16);
            for ((byte, first), second) in nibbles.iter_mut().zip(first).zip(second) {
                *byte = ((first + 8) | ((second + 8) << 4)).cast_unsigned();
            }
        }
    }
}

fn write_bytes<const N: usize>(bytes: &mut [u8], numbers: [i8; N]) {
    bytes.copy_from_slice(&numbers.map(i8::cast_unsigned));
}

/// Magnitudes of the two-bit types.
const MAGNITUDES_2: [i8; 4] = [8, 25, 43, 0];

/// Half the magnitudes of IQ3_XXS.
const MAGNITUDES_3_XXS: [i8; 8] = [2, 6, 10, 14, 18, 22, 26, 31];

/// Magnitudes of IQ3_S.
const MAGNITUDES_3_S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// IQ2_XXS: the factor; for every 32 weights four grid indices, then four times seven sign bits and a scale.
fn iq2_xxs(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0) / 8.0);
    for group in 0..8 {
        let signs = u32_at(block, 6 + 8 * group);
        decoded.set_scales(2 * group..2 * group + 2, signs >> 28);
        for (j, &index) in block[2 + 8 * group..][..4].iter().enumerate() {
            let entry = grids::IQ2_XXS[usize::from(index)];
            decoded.set_8(4 * group + j, entry, MAGNITUDES_2, even_signs(signs >> (7 * j)));
        }
    }
    decoded
}

/// IQ2_XS: the factor; for every 8 weights nine bits of grid index and seven sign bits; a scale for every 16.
fn iq2_xs(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0) / 8.0);
    for j in 0..32 {
        let both = u16_at(block, 2 + 2 * j);
        let entry = grids::IQ2_XS[usize::from(both & 511)];
        decoded.set_8(j, entry, MAGNITUDES_2, even_signs(u32::from(both >> 9)));
    }
    decoded.set_nibble_scales(&block[66..74], 1);
    decoded
}

/// IQ2_S: the factor; for every 8 weights eight low bits of the grid index; their signs; two high bits of the indices; a
/// scale for every 16 weights.
fn iq2_s(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0) / 8.0);
    let (low, signs, high) = (&block[2..34], &block[34..66], &block[66..74]);
    for (j, (&low, &signs)) in low.iter().zip(signs).enumerate() {
        let high = usize::from(high[j / 4] >> (2 * (j % 4)) & 0b11);
        let entry = grids::IQ2_S[usize::from(low) | high << 8];
        decoded.set_8(j, entry, MAGNITUDES_2, signs);
    }
    decoded.set_nibble_scales(&block[74..82], 1);
    decoded
}

/// IQ3_XXS: the factor; a grid index for every 4 weights; for every 32 four times seven sign bits and a scale.
fn iq3_xxs(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0) / 2.0);
    for j in 0..32 {
        let (indices, signs) = (&block[2 + 2 * j..], u32_at(block, 66 + j / 4 * 4));
        let entries = [0, 1].map(|half| grids::IQ3_XXS[usize::from(indices[half])]);
        decoded.set_4_and_4(j, entries, MAGNITUDES_3_XXS, even_signs(signs >> (7 * (j % 4))));
        decoded.set_scales(j / 2..j / 2 + 1, signs >> 28);
    }
    decoded
}

/// IQ3_S: the factor; for every 4 weights eight low bits of the grid index; the high bits; the signs; a scale for every
/// 32 weights.
fn iq3_s(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0));
    let (low, high, signs) = (&block[2..66], &block[66..74], &block[74..106]);
    for (j, &signs) in signs.iter().enumerate() {
        let entries = [2 * j, 2 * j + 1].map(|at| {
            let high = usize::from(high[at / 8] >> (at % 8) & 1);
            grids::IQ3_S[usize::from(low[at]) | high << 8]
        });
        decoded.set_4_and_4(j, entries, MAGNITUDES_3_S, signs);
    }
    decoded.set_nibble_scales(&block[106..110], 2);
    decoded
}

/// IQ1_S: the factor; for every 8 weights eight low bits of the grid index; for every 32 the high bits of four indices, a
/// scale, and whether an eighth is subtracted from the weights or added.
fn iq1_s(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 0) / 8.0);
    for j in 0..32 {
        let high = u16_at(block, 34 + j / 4 * 2);
        let index = u16::from(block[2 + j]) | (high >> (3 * (j % 4)) & 7) << 8;
        decoded.set_8(j, grids::IQ1[usize::from(index)], shifted_ternary(high >> 15 == 1), 0);
        decoded.set_scales(j / 2..j / 2 + 1, u32::from(high >> 12 & 7));
    }
    decoded
}

/// IQ1_M: for every 8 weights eight low bits of the grid index, then three high bits and the sign of an eighth as in
/// IQ1_S; a scale of three bits for every 16, and in the four bits left of each 16 the factor.
fn iq1_m(block: &[u8]) -> DecodedBlock {
    let scales = [0, 1, 2, 3].map(|at| u16_at(block, 48 + 2 * at));
    let factor = scales.iter().rev().fold(0, |factor, scales| factor << 4 | scales >> 12);
    let mut decoded = DecodedBlock::new(f16::from_bits(factor).to_f32() / 8.0);
    for j in 0..32 {
        let high = block[32 + j / 2] >> (4 * (j % 2));
        let index = usize::from(block[j]) | usize::from(high & 7) << 8;
        decoded.set_8(j, grids::IQ1[index], shifted_ternary(high & 8 != 0), 0);
    }
    for at in 0..16 {
        decoded.set_scales(at..at + 1, u32::from(scales[at / 4] >> (3 * (at % 4)) & 7));
    }
    decoded
}

/// TQ1_0: 32 bytes, then 16 bytes of five ternary digits, and 4 bytes of four; the factor. The first digits of all bytes
/// come first, then the second ones.
fn tq1_0(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 52));
    let mut codes = decoded.codes.iter_mut();
    for (bytes, n_digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for digit in 0..n_digits {
            for (byte, code) in bytes.iter().zip(&mut codes) {
                // A byte is a fraction of 256, whose first digit is the integer part of three times it.
                let fraction = byte.wrapping_mul(3_u8.pow(digit));
                *code = ((u16::from(fraction) * 3) >> 8) as i8 - 1;
            }
        }
    }
    decoded
}

/// TQ2_0: twice 32 bytes of two-bit codes, of which one is zero; the factor.
fn tq2_0(block: &[u8]) -> DecodedBlock {
    let mut decoded = DecodedBlock::new(half_at(block, 64));
    for (i, code) in decoded.codes.iter_mut().enumerate() {
        *code = (block[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 0b11).cast_signed() - 1;
    }
    decoded
}

impl DecodedBlock {
    fn new(factor: f32) -> Self {
        Self { factor, scales: [1; BLOCK_LEN / SCALE_LEN], codes: [0; BLOCK_LEN] }
    }

    /// Sets scales to the odd integer of a stored one.
    fn set_scales(&mut self, range: Range<usize>, stored: u32) {
        self.scales[range].fill(2 * stored as i8 + 1);
    }

    /// Sets scales from four bits each, of which each stands for `repeat` of them.
    fn set_nibble_scales(&mut self, bytes: &[u8], repeat: usize) {
        for at in 0..self.scales.len() {
            let idx = at / repeat;
            self.set_scales(at..at + 1, u32::from(bytes[idx / 2] >> (4 * (idx % 2)) & 0xF));
        }
    }

    /// Sets eight codes, from `8 * idx` on, by a grid entry and the signs.
    fn set_8(&mut self, idx: usize, entry: u16, magnitudes: [i8; 4], signs: u8) {
        for (j, code) in self.codes[8 * idx..8 * idx + 8].iter_mut().enumerate() {
            *code = signed(magnitudes[usize::from(entry >> (2 * j) & 0b11)], signs, j);
        }
    }

    /// Sets eight codes by two grid entries.
    fn set_4_and_4(&mut self, idx: usize, entries: [u16; 2], magnitudes: [i8; 8], signs: u8) {
        for (j, code) in self.codes[8 * idx..8 * idx + 8].iter_mut().enumerate() {
            *code = signed(magnitudes[usize::from(entries[j / 4] >> (4 * (j % 4)) & 7)], signs, j);
        }
    }
}

fn signed(magnitude: i8, signs: u8, j: usize) -> i8 {
    if signs >> j & 1 == 1 { -magnitude } else { magnitude }
}

/// Eight signs from seven bits: the number of negative ones is even.
fn even_signs(bits: u32) -> u8 {
    let bits = bits as u8 & 0x7F;
    bits | (bits.count_ones() as u8 & 1) << 7
}

/// The codes -1, 0 and 1 in eighths, plus or minus one eighth.
fn shifted_ternary(is_down: bool) -> [i8; 4] {
    if is_down { [-9, -1, 7, 0] } else { [-7, 1, 9, 0] }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_bits(u16_at(block, at)).to_f32()
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}
