//! The experts of gpt-oss in safetensors files: stacked matrices whose floats have the input first, or whose MXFP4 codes
//! and scales are two tensors of bytes.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::Weights;
use super::repack::repack;
use super::row_selection::RowSelection;
use super::stored_tensor::{StoredTensor, check_shape};
use super::unpack::dequantize;
use crate::error::Result;
use crate::gguf::TensorType;
use crate::models::backend::{Backend, DEVICE};
use crate::models::layers::linear::{Linear, Weight};

/// The bytes of the codes of an MXFP4 block of 32 elements.
const MXFP4_CODE_BYTES: usize = 16;

/// The matrix of one expert, `[n_rows, n_in]`, in blocks of a type.
struct ExpertMatrix {
    tensor_type: TensorType,
    bytes: Vec<u8>,
}

impl Weights {
    /// Loads the linear layer of one of a range's experts, the first: the selected `rows` of its matrix, each of `n_in`
    /// elements. The range ends with the number of experts. The checkpoint has either floats, `name`
    /// `[n_experts, n_in, n_rows]`, or MXFP4, `name_blocks` `[n_experts, n_rows, n_in / 32, 16]` and `name_scales`
    /// `[n_experts, n_rows, n_in / 32]`; the bias is `name_bias`, `[n_experts, n_rows]`.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn expert_linear(
        &self,
        name: &str,
        experts: Range<usize>,
        rows: &RowSelection,
        n_in: usize,
        backend: Backend,
    ) -> Result<Linear> {
        let (expert, n_experts, n_rows) = (experts.start, experts.end, rows.n_stored());
        let matrix = self.expert_matrix(name, experts, n_rows, n_in)?;
        let bias = self.tensor(&format!("{name}_bias"), &[n_experts, n_rows])?.get(expert)?;
        Ok(Linear::new(matrix.weight(rows, n_in, backend)?, Some(rows.select(&bias)?.to_vec1()?)))
    }

    fn expert_matrix(
        &self,
        name: &str,
        experts: Range<usize>,
        n_rows: usize,
        n_in: usize,
    ) -> Result<ExpertMatrix> {
        let (expert, n_experts) = (experts.start, experts.end);
        let blocks_name = format!("{name}_blocks");
        if !self.contains(&blocks_name) {
            let stored = self.stored(name)?;
            check_shape(name, stored.shape, &[n_experts, n_in, n_rows])?;
            return ExpertMatrix::from_floats(&stored, expert, n_rows, n_in);
        }
        let n_blocks = n_in / TensorType::Mxfp4.block_len();
        let codes = self.bytes(&blocks_name)?;
        check_shape(&blocks_name, codes.shape, &[n_experts, n_rows, n_blocks, MXFP4_CODE_BYTES])?;
        let scales_name = format!("{name}_scales");
        let scales = self.bytes(&scales_name)?;
        check_shape(&scales_name, scales.shape, &[n_experts, n_rows, n_blocks])?;
        ExpertMatrix::from_mxfp4(&codes, &scales, expert, n_rows * n_blocks)
    }
}

impl ExpertMatrix {
    /// Transposes an expert's floats, `[n_in, n_rows]`.
    fn from_floats(stored: &StoredTensor, expert: usize, n_rows: usize, n_in: usize) -> Result<Self> {
        let element_bytes = stored.tensor_type.block_bytes();
        let mut columns = vec![0; n_rows * n_in * element_bytes];
        stored.read(expert * columns.len(), &mut columns)?;
        let mut bytes = vec![0; columns.len()];
        for (idx, element) in bytes.chunks_exact_mut(element_bytes).enumerate() {
            let (row, column) = (idx / n_in, idx % n_in);
            element.copy_from_slice(&columns[(column * n_rows + row) * element_bytes..][..element_bytes]);
        }
        Ok(Self { tensor_type: stored.tensor_type, bytes })
    }

    /// Puts an expert's MXFP4 blocks together as in GGUF files: the scale, then the codes. A byte holds two neighbors
    /// here, and there elements of the block's two halves.
    fn from_mxfp4(
        codes: &StoredTensor,
        scales: &StoredTensor,
        expert: usize,
        n_blocks: usize,
    ) -> Result<Self> {
        let mut code_bytes = vec![0; n_blocks * MXFP4_CODE_BYTES];
        codes.read(expert * code_bytes.len(), &mut code_bytes)?;
        let mut scale_bytes = vec![0; n_blocks];
        scales.read(expert * n_blocks, &mut scale_bytes)?;
        let mut bytes = Vec::with_capacity(n_blocks * TensorType::Mxfp4.block_bytes());
        for (scale, pairs) in scale_bytes.into_iter().zip(code_bytes.chunks_exact(MXFP4_CODE_BYTES)) {
            let code = |idx: usize| pairs[idx / 2] >> (4 * (idx % 2)) & 0xF;
            bytes.push(scale);
            bytes.extend((0..MXFP4_CODE_BYTES).map(|idx| code(idx) | code(MXFP4_CODE_BYTES + idx) << 4));
        }
        Ok(Self { tensor_type: TensorType::Mxfp4, bytes })
    }

    /// The selected rows as a weight.
    fn weight(&self, rows: &RowSelection, n_in: usize, backend: Backend) -> Result<Weight> {
        let Self { tensor_type, bytes } = self;
        match backend {
            Backend::Reference => {
                let mut values = vec![0.0; rows.n_stored() * n_in];
                dequantize(*tensor_type, bytes, &mut values)?;
                let all = Tensor::from_vec(values, (rows.n_stored(), n_in), &DEVICE)?;
                Ok(Weight::Dense(rows.select(&all)?))
            }
            Backend::Kernels(isa) | Backend::KernelsBf16(isa) => {
                let read = |start: usize, buffer: &mut [u8]| {
                    buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                    Ok(())
                };
                let matrix = repack(*tensor_type, &read, rows, n_in, backend.is_bf16())?;
                Ok(Weight::Packed { matrix: Arc::new(matrix), isa })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::kernels::isa::Isa;
    use crate::models::load::SafetensorsFiles;

    #[test]
    fn mxfp4_in_two_tensors_is_decoded_exactly() {
        const VALUES: [f32; 16] =
            [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        let (n_experts, n_rows, n_blocks) = (2, 6, 3);
        let n_all = n_experts * n_rows * n_blocks;
        let codes: Vec<u8> = (0..n_all * MXFP4_CODE_BYTES).map(|idx| (idx * 37 + idx / 256) as u8).collect();
        let scales: Vec<u8> = (0..n_all).map(|idx| 120 + (idx % 9) as u8).collect();
        let value = |expert: usize, row: usize, column: usize| {
            let block = (expert * n_rows + row) * n_blocks + column / 32;
            let byte = codes[block * MXFP4_CODE_BYTES + column % 32 / 2];
            let code = if column.is_multiple_of(2) { byte & 0xF } else { byte >> 4 };
            VALUES[usize::from(code)] * 2f32.powi(i32::from(scales[block]) - 127)
        };
        let blocks_shape = (n_experts, n_rows, n_blocks, MXFP4_CODE_BYTES);
        let tensors = HashMap::from([
            ("up_blocks", Tensor::from_slice(&codes, blocks_shape, &DEVICE).unwrap()),
            ("up_scales", Tensor::from_slice(&scales, (n_experts, n_rows, n_blocks), &DEVICE).unwrap()),
        ]);
        let file = tempfile::NamedTempFile::with_suffix(".safetensors").unwrap();
        candle_core::safetensors::save(&tensors, file.path()).unwrap();
        let weights = Weights::Safetensors(SafetensorsFiles::open(file.path()).unwrap());
        let n_in = 32 * n_blocks;
        for backend in [Backend::Reference, Backend::Kernels(Isa::Scalar)] {
            for expert in 0..n_experts {
                let matrix = weights.expert_matrix("up", expert..n_experts, n_rows, n_in).unwrap();
                let weight = matrix.weight(&RowSelection::every_second(1, n_rows), n_in, backend).unwrap();
                let found = weight.rows(&[0, 1, 2]).unwrap().to_vec2::<f32>().unwrap();
                for (found, row) in found.iter().zip([1, 3, 5]) {
                    let expected: Vec<f32> = (0..n_in).map(|column| value(expert, row, column)).collect();
                    assert_eq!(*found, expected, "{backend:?}, expert {expert}, row {row}");
                }
            }
        }
    }
}
