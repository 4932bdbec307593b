//! The codebook quantizations, which candle lacks: IQ4_NL, IQ4_XS and MXFP4.
//!
//! In each of them a group of 32 elements shares a scale, and an element is the scale times a small integer
//! that 4 bits look up in a codebook. They are dequantized to float32; those of IQ4 are converted to Q8_0, which holds the
//! same integers in a quarter of the memory.

use half::f16;

use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::kernels::weights::{MXFP4_CODEBOOK, mxfp4_scale};

/// The number of elements that share a scale.
const GROUP_LEN: usize = 32;

/// The size of a Q8_0 block of 32 elements: a scale in half precision and a byte per element.
const Q8_0_BYTES: usize = 2 + GROUP_LEN;

/// A group of elements, each of which is the scale times its code.
#[derive(Debug)]
pub struct CodebookGroup {
    scale: f32,
    codes: [i8; GROUP_LEN],
}

/// Decodes one of the groups of a block.
pub type GroupDecoder = fn(block: &[u8], group_idx: usize) -> CodebookGroup;

/// The decoder of a type, if it is a codebook quantization.
pub fn decoder(tensor_type: TensorType) -> Option<GroupDecoder> {
    match tensor_type {
        TensorType::Iq4Nl => Some(iq4_nl),
        TensorType::Iq4Xs => Some(iq4_xs),
        TensorType::Mxfp4 => Some(mxfp4),
        _ => None,
    }
}

/// Dequantizes whole blocks.
pub fn dequantize(decode: GroupDecoder, tensor_type: TensorType, blocks: &[u8], values: &mut [f32]) {
    for (group, values) in groups(decode, tensor_type, blocks).zip(values.chunks_exact_mut(GROUP_LEN)) {
        for (value, code) in values.iter_mut().zip(group.codes) {
            *value = group.scale * f32::from(code);
        }
    }
}

/// Converts whole blocks to those of Q8_0. The codes are kept; scales are rounded to half precision, which
/// changes those of IQ4_XS by one part in 2048 at most, and those of IQ4_NL not at all.
///
/// # Errors
/// When a scale is too large for half precision.
pub fn to_q8_0(
    decode: GroupDecoder,
    tensor_type: TensorType,
    blocks: &[u8],
    converted: &mut [u8],
) -> Result<()> {
    for (group, out) in groups(decode, tensor_type, blocks).zip(converted.chunks_exact_mut(Q8_0_BYTES)) {
        let scale = f16::from_f32(group.scale);
        if !scale.is_finite() {
            return Err(Error::model(format!(
                "its scale {} exceeds half precision; the file is damaged",
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
}

fn groups(
    decode: GroupDecoder,
    tensor_type: TensorType,
    blocks: &[u8],
) -> impl Iterator<Item = CodebookGroup> {
    let n_groups = tensor_type.block_len() / GROUP_LEN;
    blocks
        .chunks_exact(tensor_type.block_bytes())
        .flat_map(move |block| (0..n_groups).map(move |idx| decode(block, idx)))
}

/// The codebook of the IQ4 types.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// IQ4_NL: a scale, then 16 bytes of indices.
fn iq4_nl(block: &[u8], _: usize) -> CodebookGroup {
    CodebookGroup { scale: half_at_start(block), codes: codes(&block[2..], &IQ4) }
}

/// IQ4_XS: a scale for all eight groups, the two high and then the four low bits of each group's 6-bit scale,
/// then the indices.
fn iq4_xs(block: &[u8], group_idx: usize) -> CodebookGroup {
    let high_bits = u16::from_le_bytes([block[2], block[3]]) >> (2 * group_idx) & 0b11;
    let low_bits = block[4 + group_idx / 2] >> (4 * (group_idx % 2)) & 0xF;
    let group_scale = i16::from(low_bits) + 16 * high_bits.cast_signed() - 32;
    let indices = &block[8 + GROUP_LEN / 2 * group_idx..];
    CodebookGroup { scale: half_at_start(block) * f32::from(group_scale), codes: codes(indices, &IQ4) }
}

/// MXFP4: the exponent of a power of two, then 16 bytes of indices.
fn mxfp4(block: &[u8], _: usize) -> CodebookGroup {
    CodebookGroup { scale: mxfp4_scale(block[0]), codes: codes(&block[1..], &MXFP4_CODEBOOK) }
}

/// Looks up 16 bytes of indices; low bits belong to the first half of the group, high bits to the second.
fn codes(indices: &[u8], codebook: &[i8; 16]) -> [i8; GROUP_LEN] {
    let mut codes = [0; GROUP_LEN];
    let (first, second) = codes.split_at_mut(GROUP_LEN / 2);
    for ((byte, first), second) in indices.iter().zip(first).zip(second) {
        *first = codebook[usize::from(byte & 0xF)];
        *second = codebook[usize::from(byte >> 4)];
    }
    codes
}

fn half_at_start(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}
