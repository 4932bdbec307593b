//! Unpacks stored tensors: dequantizes blocks of every supported type to float32.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{codebook, i_quants};
use crate::error::{Error, Result};
use crate::gguf::TensorType;

/// Dequantizes whole blocks into as many values as they hold.
///
/// # Errors
/// When the type is not supported.
pub fn dequantize(tensor_type: TensorType, blocks: &[u8], values: &mut [f32]) -> Result<()> {
    match tensor_type {
        TensorType::F64 => convert_each(blocks, values, |bytes| f64::from_le_bytes(bytes) as f32),
        TensorType::F32 => convert_each(blocks, values, f32::from_le_bytes),
        TensorType::F16 => {
            let halves: Vec<f16> =
                blocks.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
            halves.convert_to_f32_slice(values);
            Ok(())
        }
        TensorType::Bf16 => convert_each(blocks, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => {
            if let Some(decode) = codebook::decoder(tensor_type) {
                codebook::dequantize(decode, tensor_type, blocks, values);
            } else if let Some(decode) = i_quants::decoder(tensor_type) {
                i_quants::dequantize(decode, tensor_type, blocks, values);
            } else {
                let dtype = candle_type(tensor_type).ok_or_else(|| unsupported(tensor_type))?;
                dequantize_by_candle(dtype, blocks, values)?;
            }
            Ok(())
        }
    }
}

/// The error for an unsupported type.
pub fn unsupported(tensor_type: TensorType) -> Error {
    Error::model(format!(
        "type {tensor_type} is not supported; use a file of another quantization, such as Q4_K_M or Q8_0"
    ))
}

/// candle's name for a type, if candle has it.
fn candle_type(tensor_type: TensorType) -> Option<GgmlDType> {
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

fn convert_each<const N: usize>(
    bytes: &[u8],
    values: &mut [f32],
    convert: impl Fn([u8; N]) -> f32,
) -> Result<()> {
    for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = convert(bytes);
    }
    Ok(())
}

fn dequantize_by_candle(dtype: GgmlDType, blocks: &[u8], values: &mut [f32]) -> Result<()> {
    match dtype.from_data(Cow::Borrowed(blocks)).dequantize(values.len())? {
        CpuStorage::F32(dequantized) => values.copy_from_slice(&dequantized),
        _ => {
            return Err(Error::internal(format!(
                "candle dequantizes {dtype:?} to a type other than float32"
            )));
        }
    }
    Ok(())
}
