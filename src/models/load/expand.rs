//! Stored numbers to float32, on all cores.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks;
use crate::error::{Error, Result};
use crate::gguf::TensorType;

/// Numbers that one thread expands at once, so that what it reads and writes stays in its cache.
const CHUNK_LEN: usize = 1 << 14;

/// The numbers of whole blocks.
///
/// # Errors
/// When their type is not supported.
pub fn expand(tensor_type: TensorType, blocks: &[u8]) -> Result<Vec<f32>> {
    let decode = |blocks: &[u8], numbers: &mut [f32]| match tensor_type {
        TensorType::F64 => each(blocks, numbers, |bytes| f64::from_le_bytes(bytes) as f32),
        TensorType::F32 => each(blocks, numbers, f32::from_le_bytes),
        TensorType::F16 => {
            let halves: Vec<f16> =
                blocks.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
            halves.convert_to_f32_slice(numbers);
            Ok(())
        }
        TensorType::Bf16 => each(blocks, numbers, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => match (blocks::reader(tensor_type), candle_type(tensor_type)) {
            (Some(read), _) => blocks::expand(read, tensor_type, blocks, numbers),
            (None, Some(dtype)) => by_candle(dtype, blocks, numbers),
            (None, None) => Err(unsupported(tensor_type)),
        },
    };
    in_chunks(tensor_type, blocks, tensor_type.block_len(), decode)
}

/// What `decode` makes of whole blocks: `n_out` things of each block.
pub fn in_chunks<T: Clone + Default + Send>(
    tensor_type: TensorType,
    blocks: &[u8],
    n_out: usize,
    decode: impl Fn(&[u8], &mut [T]) -> Result<()> + Sync,
) -> Result<Vec<T>> {
    let block_bytes = tensor_type.block_bytes();
    let chunk_blocks = CHUNK_LEN / tensor_type.block_len();
    let mut out = vec![T::default(); blocks.len() / block_bytes * n_out];
    out.par_chunks_mut(chunk_blocks * n_out)
        .zip(blocks.par_chunks(chunk_blocks * block_bytes))
        .try_for_each(|(out, blocks)| decode(blocks, out))?;
    Ok(out)
}

/// candle's name for a type of blocks, if it has one.
pub fn candle_type(tensor_type: TensorType) -> Option<GgmlDType> {
    Some(match tensor_type {
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// The error for a type that nothing here reads.
pub fn unsupported(tensor_type: TensorType) -> Error {
    Error::model(format!(
        "it is of type {tensor_type}, which is not supported; use a file of another quantization, such as \
         Q4_K_M or Q8_0"
    ))
}

fn each<const N: usize>(bytes: &[u8], numbers: &mut [f32], decode: impl Fn([u8; N]) -> f32) -> Result<()> {
    for (number, &bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *number = decode(bytes);
    }
    Ok(())
}

fn by_candle(dtype: GgmlDType, blocks: &[u8], numbers: &mut [f32]) -> Result<()> {
    match dtype.from_data(Cow::Borrowed(blocks)).dequantize(numbers.len())? {
        CpuStorage::F32(decoded) => numbers.copy_from_slice(&decoded),
        _ => {
            return Err(Error::internal(format!("candle expands {dtype:?} to something other than float32")));
        }
    }
    Ok(())
}
