//! Repacks stored matrices for the kernels. A type without a kernel format of its own is first converted to
//! the blocks of a format that holds it.

use candle_core::Tensor;
use half::{bf16, f16};

use super::row_selection::RowSelection;
use super::unpack::{dequantize, unsupported};
use super::{codebook, i_quants};
use crate::error::Result;
use crate::gguf::TensorType;
use crate::kernels::threads::pool;
use crate::kernels::weights::{PackedMatrix, WeightFormat};

/// Reads a tensor's bytes from an offset on.
pub type TensorReader<'a> = &'a dyn Fn(usize, &mut [u8]) -> Result<()>;

/// Converts one block of a type to the blocks of a format.
type BlockConverter = fn(block: &[u8], converted: &mut [u8]);

/// Bytes that each compute thread repacks of a matrix before more are read. A matrix is then never in memory twice,
/// and a chat that shares the threads waits a few milliseconds for them.
const PIECE_BYTES_PER_THREAD: usize = 512 << 10;

/// The size of a block of [`WeightFormat::K6Generic`], and the offsets of its parts.
const K6_BYTES: usize = 292;
const K6_SCALES: usize = 256;
const K6_MINS: usize = 272;
const K6_FACTORS: usize = 288;

/// The kernel format that holds a type, if there is one.
pub fn format_for(tensor_type: TensorType) -> Option<WeightFormat> {
    Some(match tensor_type {
        TensorType::F32 | TensorType::F64 => WeightFormat::F32,
        TensorType::F16 => WeightFormat::F16,
        TensorType::Bf16 => WeightFormat::Bf16,
        TensorType::Q4_0 | TensorType::Tq1_0 | TensorType::Tq2_0 => WeightFormat::Q4_0,
        TensorType::Q4_1 => WeightFormat::Q4_1,
        TensorType::Q5_0 | TensorType::Q5_1 => WeightFormat::Q5_1,
        TensorType::Q8_0 | TensorType::Iq4Nl | TensorType::Iq4Xs => WeightFormat::Q8_0,
        TensorType::Mxfp4 => WeightFormat::Mxfp4,
        TensorType::Q4K => WeightFormat::Q4K,
        TensorType::Q6K | TensorType::Iq1S | TensorType::Iq1M | TensorType::Iq3Xxs | TensorType::Iq3S => {
            WeightFormat::Q6K
        }
        TensorType::Iq2Xxs | TensorType::Iq2Xs | TensorType::Iq2S => WeightFormat::K8Generic,
        TensorType::Q2K | TensorType::Q3K | TensorType::Q5K => WeightFormat::K6Generic,
        _ => return None,
    })
}

/// Repacks the selected `rows` of a stored matrix, each of `n_in` elements, on all compute threads. Floats are rounded
/// to bfloat16 if `to_bf16` and the row length permits.
///
/// # Errors
/// When the type is not supported, the matrix cannot be read, or a number in it is impossible.
pub fn repack(
    tensor_type: TensorType,
    read: TensorReader,
    rows: &RowSelection,
    n_in: usize,
    to_bf16: bool,
) -> Result<PackedMatrix> {
    let mut format = format_for(tensor_type).ok_or_else(|| unsupported(tensor_type))?;
    if to_bf16 && !format.is_quantized() && n_in.is_multiple_of(WeightFormat::Bf16Pairs.block_len()) {
        format = WeightFormat::Bf16Pairs;
    }
    let n_out = rows.n_selected();
    let mut matrix = PackedMatrix::zeroed(format, n_out, n_in)?;
    let conversion = Conversion::new(tensor_type, format);
    let row_bytes = n_in / tensor_type.block_len() * tensor_type.block_bytes();
    let converted_bytes = n_in / format.block_len() * format.source_bytes();
    let piece_rows = PIECE_BYTES_PER_THREAD * pool::n_threads() / row_bytes.max(1);
    let piece_rows = piece_rows.max(1).next_multiple_of(PackedMatrix::PANEL_ROWS);
    let mut piece = Vec::new();
    for start in (0..n_out).step_by(piece_rows) {
        let selected = start..n_out.min(start + piece_rows);
        piece.resize(selected.len() * row_bytes, 0);
        let mut rest = &mut piece[..];
        for stored in rows.stored_ranges(selected.clone()) {
            let (neighbors, others) = rest.split_at_mut(stored.len() * row_bytes);
            read(stored.start * row_bytes, neighbors)?;
            rest = others;
        }
        matrix.pack_rows(selected, |idx, pack| {
            let blocks = &piece[(idx - start) * row_bytes..][..row_bytes];
            if conversion.is_none() {
                pack(blocks);
                return Ok(());
            }
            let mut converted = vec![0; converted_bytes];
            conversion.convert(tensor_type, blocks, &mut converted)?;
            pack(&converted);
            Ok(())
        })?;
    }
    Ok(matrix)
}

/// Packs a float32 matrix in the precision of `tensor_type` if these are floats, otherwise in float32.
///
/// # Errors
/// When a tensor operation fails.
pub fn pack_floats(tensor_type: TensorType, matrix: &Tensor) -> Result<PackedMatrix> {
    let (n_out, n_in) = matrix.dims2()?;
    let values = matrix.flatten_all()?.to_vec1::<f32>()?;
    let (format, bytes): (_, Vec<u8>) = match tensor_type {
        TensorType::F16 => {
            (WeightFormat::F16, values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect())
        }
        TensorType::Bf16 => {
            (WeightFormat::Bf16, values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
        }
        _ => (WeightFormat::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
    };
    let row_bytes = bytes.len() / n_out;
    PackedMatrix::pack(format, n_out, n_in, |row| &bytes[row * row_bytes..][..row_bytes])
}

/// The way from the blocks of a type to those of a kernel format.
enum Conversion {
    /// They are the same.
    None,
    /// The format holds the codes of a codebook.
    Codebook(codebook::GroupDecoder),
    /// A block is decoded and written in the format.
    IQuant(i_quants::BlockDecoder, WeightFormat),
    /// A block becomes blocks of so many bytes in all.
    Blocks(BlockConverter, usize),
    /// Elements become float32.
    Dequantize,
}

impl Conversion {
    fn new(tensor_type: TensorType, format: WeightFormat) -> Self {
        let is_float32 = tensor_type == TensorType::F32 && format == WeightFormat::Bf16Pairs;
        if tensor_type.block_bytes() == format.source_bytes() || is_float32 {
            return Self::None;
        }
        if let Some(decode) = codebook::decoder(tensor_type) {
            Self::Codebook(decode)
        } else if let Some(decode) = i_quants::decoder(tensor_type) {
            Self::IQuant(decode, format)
        } else if let Some(convert) = block_converter(tensor_type) {
            Self::Blocks(convert, tensor_type.block_len() / format.block_len() * format.source_bytes())
        } else {
            Self::Dequantize
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Converts whole blocks.
    fn convert(&self, tensor_type: TensorType, blocks: &[u8], converted: &mut [u8]) -> Result<()> {
        match *self {
            Self::None => converted.copy_from_slice(blocks),
            Self::Codebook(decode) => codebook::to_q8_0(decode, tensor_type, blocks, converted)?,
            Self::IQuant(decode, format) => {
                let blocks = blocks.chunks_exact(tensor_type.block_bytes());
                let n_bytes = tensor_type.block_len() / format.block_len() * format.source_bytes();
                for (block, out) in blocks.zip(converted.chunks_exact_mut(n_bytes)) {
                    decode(block).write(format, out);
                }
            }
            Self::Blocks(convert, n_bytes) => {
                let blocks = blocks.chunks_exact(tensor_type.block_bytes());
                blocks.zip(converted.chunks_exact_mut(n_bytes)).for_each(|(block, out)| convert(block, out));
            }
            Self::Dequantize => {
                let mut values = vec![0.0; converted.len() / size_of::<f32>()];
                dequantize(tensor_type, blocks, &mut values)?;
                for (value, bytes) in values.iter().zip(converted.chunks_exact_mut(size_of::<f32>())) {
                    bytes.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

fn block_converter(tensor_type: TensorType) -> Option<BlockConverter> {
    match tensor_type {
        TensorType::Q5_0 => Some(q5_0),
        TensorType::Q2K => Some(q2_k),
        TensorType::Q3K => Some(q3_k),
        TensorType::Q5K => Some(q5_k),
        _ => None,
    }
}

/// Q5_0: a scale, the fifth bits of the codes, their low bits; code 16 is zero. Converted to Q5_1 with a
/// minimum of -16 scales.
fn q5_0(block: &[u8], converted: &mut [u8]) {
    let scale = f16::from_le_bytes([block[0], block[1]]);
    converted[..2].copy_from_slice(&block[..2]);
    converted[2..4].copy_from_slice(&f16::from_f32(scale.to_f32() * -16.0).to_le_bytes());
    converted[4..].copy_from_slice(&block[2..]);
}

/// Q2_K: a 4-bit scale and a 4-bit minimum for every 16 elements, the 2-bit codes, the factors of scales and
/// minimums.
fn q2_k(block: &[u8], converted: &mut [u8]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    for (i, code) in converted[..K6_SCALES].iter_mut().enumerate() {
        *code = codes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 0b11;
    }
    for (i, &scale) in scales.iter().enumerate() {
        converted[K6_SCALES + i] = scale & 0xF;
        converted[K6_MINS + i] = negated(scale >> 4);
    }
    converted[K6_FACTORS..K6_BYTES].copy_from_slice(&block[80..84]);
}

/// Q3_K: the third bits of the codes, their low bits, a 6-bit scale for every 16 elements (32 is zero), the
/// factor of the scales; code 4 is zero.
fn q3_k(block: &[u8], converted: &mut [u8]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    for (i, code) in converted[..K6_SCALES].iter_mut().enumerate() {
        let low = codes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 0b11;
        *code = low | (high[i % 32] >> (i / 32) & 1) << 2;
    }
    for i in 0..16 {
        let low = scales[i % 8] >> (4 * (i / 8)) & 0xF;
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 0b11;
        let scale = ((low | high << 4).cast_signed() - 32).cast_unsigned();
        converted[K6_SCALES + i] = scale;
        converted[K6_MINS + i] = scale;
    }
    converted[K6_FACTORS..K6_FACTORS + 2].copy_from_slice(&block[108..110]);
    let factor = f16::from_le_bytes([block[108], block[109]]);
    let min_factor = f16::from_f32(factor.to_f32() * -4.0);
    converted[K6_FACTORS + 2..K6_BYTES].copy_from_slice(&min_factor.to_le_bytes());
}

/// Q5_K: the factors of scales and minimums, scales and minimums as in Q4_K, the fifth bits of the codes,
/// their low bits.
fn q5_k(block: &[u8], converted: &mut [u8]) {
    let (high, codes) = (&block[16..48], &block[48..176]);
    for (i, code) in converted[..K6_SCALES].iter_mut().enumerate() {
        let low = codes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 0xF;
        *code = low | (high[i % 32] >> (i / 32) & 1) << 4;
    }
    for group in 0..8 {
        let (scale, min) = PackedMatrix::q4_k_scale_and_min(&block[4..16], group);
        converted[K6_SCALES + 2 * group..][..2].fill(scale);
        converted[K6_MINS + 2 * group..][..2].fill(negated(min));
    }
    converted[K6_FACTORS..K6_BYTES].copy_from_slice(&block[..4]);
}

fn negated(small: u8) -> u8 {
    small.cast_signed().wrapping_neg().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of arbitrary bytes with small factors in half precision.
    fn blocks_of(tensor_type: TensorType, n_blocks: usize) -> Vec<u8> {
        let n_bytes = tensor_type.block_bytes();
        let mut bytes: Vec<u8> = (0..n_blocks * n_bytes)
            .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2])
            .collect();
        let halves: &[usize] = match tensor_type {
            TensorType::Q2K => &[80, 82],
            TensorType::Q3K => &[108],
            TensorType::Q6K => &[208],
            TensorType::Q4K | TensorType::Q5K | TensorType::Q4_1 | TensorType::Q5_1 => &[0, 2],
            TensorType::Tq1_0 => &[52],
            TensorType::Tq2_0 => &[64],
            TensorType::F32
            | TensorType::F64
            | TensorType::F16
            | TensorType::Bf16
            | TensorType::Mxfp4
            | TensorType::Iq1M => &[],
            _ => &[0],
        };
        for (n, block) in bytes.chunks_exact_mut(n_bytes).enumerate() {
            for &at in halves {
                let factor = f16::from_f32(0.01 + 0.003 * (n + at) as f32);
                block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
            }
            match tensor_type {
                TensorType::F32 => block.copy_from_slice(&(n as f32 / 7.0).to_le_bytes()),
                TensorType::F64 => block.copy_from_slice(&(n as f64 / 7.0).to_le_bytes()),
                TensorType::F16 => block.copy_from_slice(&f16::from_f32(n as f32 / 7.0).to_le_bytes()),
                TensorType::Bf16 => block.copy_from_slice(&bf16::from_f32(n as f32 / 7.0).to_le_bytes()),
                TensorType::Mxfp4 => block[0] = 120 + n as u8 % 8,
                // The exponent of the factor.
                TensorType::Iq1M => block[55] = 0x20 | block[55] & 0xF,
                _ => {}
            }
        }
        bytes
    }

    #[test]
    fn repacked_rows_equal_dequantized_ones() {
        let packable =
            TensorType::ALL.iter().copied().filter(|&tensor_type| format_for(tensor_type).is_some());
        let mut n_types = 0;
        for tensor_type in packable {
            let (n_in, n_stored) = (512, 19);
            let bytes = blocks_of(tensor_type, n_stored * n_in / tensor_type.block_len());
            let mut dequantized = vec![0.0; n_stored * n_in];
            dequantize(tensor_type, &bytes, &mut dequantized).unwrap();
            let read = |start: usize, buffer: &mut [u8]| {
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                Ok(())
            };
            let tolerance = if tensor_type == TensorType::Iq4Xs { 6e-4 } else { 2e-7 };
            for rows in [RowSelection::all(n_stored), RowSelection::range(2..19, n_stored)] {
                let repacked = repack(tensor_type, &read, &rows, n_in, false).unwrap();
                let mut found = vec![0.0; n_in];
                for idx in 0..rows.n_selected() {
                    repacked.dequantize_row(idx, &mut found);
                    let expected = &dequantized[rows.stored_ranges(idx..idx + 1)[0].start * n_in..][..n_in];
                    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                        let bound = tolerance * expected.abs().max(1.0);
                        assert!(
                            (found - expected).abs() <= bound,
                            "{tensor_type} {idx} {i}: {found} {expected}"
                        );
                    }
                }
            }
            n_types += 1;
        }
        assert_eq!(n_types, 26);
    }

    #[test]
    fn a_matrix_of_many_pieces_has_all_its_rows() {
        let (n_in, n_heads, head_dim) = (4096, 20, 60 * pool::n_threads());
        let tensor_type = TensorType::Q5_0;
        let row_bytes = n_in / 32 * tensor_type.block_bytes();
        let n_stored = n_heads * head_dim;
        assert!(n_stored * row_bytes > 2 * PIECE_BYTES_PER_THREAD * pool::n_threads());
        let bytes = blocks_of(tensor_type, n_stored * n_in / 32);
        let read = |start: usize, buffer: &mut [u8]| {
            buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
            Ok(())
        };
        let permuted = RowSelection::permute_rope_rows(n_heads, head_dim);
        for rows in [RowSelection::all(n_stored), RowSelection::range(5..n_stored - 3, n_stored), permuted] {
            let repacked = repack(tensor_type, &read, &rows, n_in, false).unwrap();
            assert_eq!(repacked.n_out(), rows.n_selected());
            let (mut found, mut expected) = (vec![0.0; n_in], vec![0.0; n_in]);
            for idx in (0..rows.n_selected()).step_by(97).chain([rows.n_selected() - 1]) {
                let stored = rows.stored_ranges(idx..idx + 1)[0].start;
                dequantize(tensor_type, &bytes[stored * row_bytes..][..row_bytes], &mut expected).unwrap();
                repacked.dequantize_row(idx, &mut found);
                let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                assert!(found.iter().zip(&expected).all(is_near), "{idx}");
            }
        }
        let failing = |start: usize, _: &mut [u8]| match start {
            0 => Ok(()),
            _ => Err(crate::error::Error::model("cut short")),
        };
        assert!(repack(tensor_type, &failing, &RowSelection::all(n_stored), n_in, false).is_err());
    }
}
