//! Blocks that candle does not read, to float32. Layouts are those of the GGUF format.

use half::f16;

use crate::gguf::TensorType;

/// Turns whole blocks into numbers, as many as they hold.
pub type Decoder = fn(&[u8], &mut [f32]);

/// The decoder of a type, if it is one of ours.
pub fn decoder(tensor_type: TensorType) -> Option<Decoder> {
    match tensor_type {
        TensorType::Iq4Nl => Some(iq4_nl),
        TensorType::Iq4Xs => Some(iq4_xs),
        TensorType::Mxfp4 => Some(mxfp4),
        _ => None,
    }
}

/// What the 4-bit indices of the IQ4 types stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the 4-bit indices of MXFP4 stand for, doubled: one sign, two exponent and one mantissa bit.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Numbers that share a scale.
const GROUP: usize = 32;

/// A scale, then 16 bytes of indices: those of the first half low, of the second half high.
fn iq4_nl(blocks: &[u8], numbers: &mut [f32]) {
    for (block, numbers) in blocks.chunks_exact(18).zip(numbers.chunks_exact_mut(GROUP)) {
        group(&block[2..], half_at(block, 0), &IQ4, numbers);
    }
}

/// A scale for all eight groups, 6 bits of scale for each (two of them apart), then the indices.
fn iq4_xs(blocks: &[u8], numbers: &mut [f32]) {
    for (block, numbers) in blocks.chunks_exact(136).zip(numbers.chunks_exact_mut(8 * GROUP)) {
        let scale = half_at(block, 0);
        let high_bits = u16::from_le_bytes([block[2], block[3]]);
        let (low_bits, indices) = block[4..].split_at(4);
        for (idx, numbers) in numbers.chunks_exact_mut(GROUP).enumerate() {
            let low = low_bits[idx / 2] >> (4 * (idx % 2)) & 0xF;
            let high = (high_bits >> (2 * idx) & 0b11) as u8;
            let of_group = f32::from((high << 4 | low) as i8 - 32);
            group(&indices[16 * idx..][..16], scale * of_group, &IQ4, numbers);
        }
    }
}

/// The exponent of a power of two, then 16 bytes of indices as in IQ4_NL.
fn mxfp4(blocks: &[u8], numbers: &mut [f32]) {
    for (block, numbers) in blocks.chunks_exact(17).zip(numbers.chunks_exact_mut(GROUP)) {
        // Half the power, since the table is doubled; the two least are subnormal.
        let scale = match block[0] {
            exponent @ 0..2 => f32::from_bits(0x0020_0000 << exponent),
            exponent => f32::from_bits((u32::from(exponent) - 1) << 23),
        };
        group(&block[1..], scale, &E2M1, numbers);
    }
}

fn group(indices: &[u8], scale: f32, table: &[i8; 16], numbers: &mut [f32]) {
    let (first, second) = numbers.split_at_mut(GROUP / 2);
    for ((byte, first), second) in indices.iter().zip(first).zip(second) {
        *first = scale * f32::from(table[usize::from(byte & 0xF)]);
        *second = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
