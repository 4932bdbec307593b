//! The types of tensors: how many numbers a block holds, in how many bytes.

use std::fmt;

use crate::error::{Error, Result};

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    I8,
    I16,
    I32,
    I64,
    F64,
    Iq1M,
    Bf16,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
}

/// Code, type, name, numbers per block, bytes per block.
const ROWS: [(u32, TensorType, &str, usize, usize); 31] = [
    (0, TensorType::F32, "F32", 1, 4),
    (1, TensorType::F16, "F16", 1, 2),
    (2, TensorType::Q4_0, "Q4_0", 32, 18),
    (3, TensorType::Q4_1, "Q4_1", 32, 20),
    (6, TensorType::Q5_0, "Q5_0", 32, 22),
    (7, TensorType::Q5_1, "Q5_1", 32, 24),
    (8, TensorType::Q8_0, "Q8_0", 32, 34),
    (10, TensorType::Q2K, "Q2_K", 256, 84),
    (11, TensorType::Q3K, "Q3_K", 256, 110),
    (12, TensorType::Q4K, "Q4_K", 256, 144),
    (13, TensorType::Q5K, "Q5_K", 256, 176),
    (14, TensorType::Q6K, "Q6_K", 256, 210),
    (16, TensorType::Iq2Xxs, "IQ2_XXS", 256, 66),
    (17, TensorType::Iq2Xs, "IQ2_XS", 256, 74),
    (18, TensorType::Iq3Xxs, "IQ3_XXS", 256, 98),
    (19, TensorType::Iq1S, "IQ1_S", 256, 50),
    (20, TensorType::Iq4Nl, "IQ4_NL", 32, 18),
    (21, TensorType::Iq3S, "IQ3_S", 256, 110),
    (22, TensorType::Iq2S, "IQ2_S", 256, 82),
    (23, TensorType::Iq4Xs, "IQ4_XS", 256, 136),
    (24, TensorType::I8, "I8", 1, 1),
    (25, TensorType::I16, "I16", 1, 2),
    (26, TensorType::I32, "I32", 1, 4),
    (27, TensorType::I64, "I64", 1, 8),
    (28, TensorType::F64, "F64", 1, 8),
    (29, TensorType::Iq1M, "IQ1_M", 256, 56),
    (30, TensorType::Bf16, "BF16", 1, 2),
    (34, TensorType::Tq1_0, "TQ1_0", 256, 54),
    (35, TensorType::Tq2_0, "TQ2_0", 256, 66),
    (39, TensorType::Mxfp4, "MXFP4", 32, 17),
    (40, TensorType::Nvfp4, "NVFP4", 64, 36),
];

impl TensorType {
    pub(super) fn of_code(code: u32) -> Result<Self> {
        let row = ROWS.iter().find(|row| row.0 == code);
        row.map(|row| row.1).ok_or_else(|| Error::model(format!("its type {code} is not known")))
    }

    /// Numbers per block; the innermost size of a tensor is a multiple of it.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a tensor of `shape`.
    pub(super) fn n_bytes(self, shape: &[usize]) -> Result<usize> {
        let block_len = self.block_len();
        if !shape.last().is_some_and(|inner| inner.is_multiple_of(block_len)) {
            return Err(Error::model(format!(
                "its rows of {shape:?} are not whole {self} blocks of {block_len}"
            )));
        }
        // The product of all sizes must fit too, and its float32 form in memory.
        let n_elements = shape.iter().try_fold(size_of::<f32>(), |product, &n| product.checked_mul(n));
        n_elements
            .filter(|&n_bytes| n_bytes > 0)
            .map(|n_bytes| n_bytes / size_of::<f32>() / block_len)
            .and_then(|n_blocks| n_blocks.checked_mul(self.block_bytes()))
            .ok_or_else(|| Error::model(format!("its shape {shape:?} is impossible")))
    }

    fn row(self) -> &'static (u32, Self, &'static str, usize, usize) {
        &ROWS[self as usize]
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_types() {
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(row.1 as usize, index, "{}", row.2);
        }
    }
}
