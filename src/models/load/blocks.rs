//! Blocks that candle does not read: IQ4_NL, IQ4_XS and MXFP4.
//!
//! What they have in common: 32 numbers share a scale, and each is that scale times a small whole
//! number that 4 bits pick from a table. So they expand to float32, and where that takes too much
//! memory they turn into blocks of Q8_0, which hold the same whole numbers.

use half::f16;

use super::expand::in_chunks;
use crate::error::{Error, Result};
use crate::gguf::TensorType;

/// Numbers that share a scale.
const GROUP_LEN: usize = 32;

/// Bytes of 32 numbers as Q8_0: a scale in half precision and a byte each.
const Q8_0_BYTES: usize = 2 + GROUP_LEN;

/// A group of numbers: each is the scale times its code.
#[derive(Debug)]
pub struct Group {
    scale: f32,
    codes: [i8; GROUP_LEN],
}

/// Reads one of the groups of a block.
pub type Reader = fn(block: &[u8], group_idx: usize) -> Group;

/// The reader of a type, if it is one of these.
pub fn reader(tensor_type: TensorType) -> Option<Reader> {
    match tensor_type {
        TensorType::Iq4Nl => Some(iq4_nl),
        TensorType::Iq4Xs => Some(iq4_xs),
        TensorType::Mxfp4 => Some(mxfp4),
        _ => None,
    }
}

/// Writes the numbers of whole blocks.
pub fn expand(read: Reader, tensor_type: TensorType, blocks: &[u8], numbers: &mut [f32]) -> Result<()> {
    for (group, numbers) in groups(read, tensor_type, blocks).zip(numbers.chunks_exact_mut(GROUP_LEN)) {
        for (number, code) in numbers.iter_mut().zip(group.codes) {
            *number = group.scale * f32::from(code);
        }
    }
    Ok(())
}

/// Bytes of `n` numbers once they are Q8_0.
pub fn q8_0_bytes(n: usize) -> usize {
    n / GROUP_LEN * Q8_0_BYTES
}

/// Whole blocks as Q8_0. The codes stay what they are; scales are rounded to half precision, which
/// changes those of IQ4_XS by one part in 2048 at most, those of IQ4_NL not at all, and those of
/// MXFP4 where they are less than 2^-24.
///
/// # Errors
/// When a scale is too large for half precision.
pub fn to_q8_0(read: Reader, tensor_type: TensorType, blocks: &[u8]) -> Result<Vec<u8>> {
    let n_out = q8_0_bytes(tensor_type.block_len());
    in_chunks(tensor_type, blocks, n_out, |blocks, out: &mut [u8]| {
        for (group, out) in groups(read, tensor_type, blocks).zip(out.chunks_exact_mut(Q8_0_BYTES)) {
            let scale = f16::from_f32(group.scale);
            if !scale.is_finite() {
                return Err(Error::model(format!(
                    "it has a scale of {}, which is not possible",
                    group.scale
                )));
            }
            let (scale_bytes, codes) = out.split_at_mut(2);
            scale_bytes.copy_from_slice(&scale.to_le_bytes());
            for (byte, code) in codes.iter_mut().zip(group.codes) {
                *byte = code.cast_unsigned();
            }
        }
        Ok(())
    })
}

fn groups(read: Reader, tensor_type: TensorType, blocks: &[u8]) -> impl Iterator<Item = Group> {
    let n_groups = tensor_type.block_len() / GROUP_LEN;
    blocks
        .chunks_exact(tensor_type.block_bytes())
        .flat_map(move |block| (0..n_groups).map(move |idx| read(block, idx)))
}

/// What the indices of the IQ4 types stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the indices of MXFP4 stand for, doubled: one sign, two exponent and one mantissa bit.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A scale, then 16 bytes of indices.
fn iq4_nl(block: &[u8], _: usize) -> Group {
    Group { scale: half_at_start(block), codes: codes(&block[2..], &IQ4) }
}

/// A scale for all eight groups, the two high and then the four low bits of 6 bits of scale for
/// each, then the indices.
fn iq4_xs(block: &[u8], group_idx: usize) -> Group {
    let high_bits = u16::from_le_bytes([block[2], block[3]]) >> (2 * group_idx) & 0b11;
    let low_bits = block[4 + group_idx / 2] >> (4 * (group_idx % 2)) & 0xF;
    let of_group = i16::from(low_bits) + 16 * high_bits.cast_signed() - 32;
    let indices = &block[8 + GROUP_LEN / 2 * group_idx..];
    Group { scale: half_at_start(block) * f32::from(of_group), codes: codes(indices, &IQ4) }
}

/// The exponent of a power of two, then 16 bytes of indices.
fn mxfp4(block: &[u8], _: usize) -> Group {
    // Half the power, since the table is doubled; the two least are subnormal.
    let scale = match block[0] {
        exponent @ 0..2 => f32::from_bits(0x0020_0000 << exponent),
        exponent => f32::from_bits((u32::from(exponent) - 1) << 23),
    };
    Group { scale, codes: codes(&block[1..], &E2M1) }
}

/// 16 bytes of indices: those of the first half low, those of the second half high.
fn codes(indices: &[u8], table: &[i8; 16]) -> [i8; GROUP_LEN] {
    let mut codes = [0; GROUP_LEN];
    let (first, second) = codes.split_at_mut(GROUP_LEN / 2);
    for ((byte, first), second) in indices.iter().zip(first).zip(second) {
        *first = table[usize::from(byte & 0xF)];
        *second = table[usize::from(byte >> 4)];
    }
    codes
}

fn half_at_start(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}
