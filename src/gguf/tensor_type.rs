//! The types of tensors and the sizes of their blocks.

use std::fmt;

use crate::error::{Error, Result};

/// One row per type: name, name and id in the format, elements in a block, bytes in a block.
macro_rules! tensor_types {
    ($($name:ident $text:literal $id:literal $block_len:literal $block_bytes:literal)*) => {
        /// The type of a tensor's elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum TensorType { $(#[doc = concat!("`", $text, "` in the format.")] $name),* }

        impl TensorType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            const fn row(self) -> (&'static str, u32, usize, usize) {
                match self { $(Self::$name => ($text, $id, $block_len, $block_bytes)),* }
            }
        }
    };
}

tensor_types! {
    F32 "F32" 0 1 4
    F16 "F16" 1 1 2
    Q4_0 "Q4_0" 2 32 18
    Q4_1 "Q4_1" 3 32 20
    Q5_0 "Q5_0" 6 32 22
    Q5_1 "Q5_1" 7 32 24
    Q8_0 "Q8_0" 8 32 34
    Q8_1 "Q8_1" 9 32 36
    Q2K "Q2_K" 10 256 84
    Q3K "Q3_K" 11 256 110
    Q4K "Q4_K" 12 256 144
    Q5K "Q5_K" 13 256 176
    Q6K "Q6_K" 14 256 210
    Q8K "Q8_K" 15 256 292
    Iq2Xxs "IQ2_XXS" 16 256 66
    Iq2Xs "IQ2_XS" 17 256 74
    Iq3Xxs "IQ3_XXS" 18 256 98
    Iq1S "IQ1_S" 19 256 50
    Iq4Nl "IQ4_NL" 20 32 18
    Iq3S "IQ3_S" 21 256 110
    Iq2S "IQ2_S" 22 256 82
    Iq4Xs "IQ4_XS" 23 256 136
    I8 "I8" 24 1 1
    I16 "I16" 25 1 2
    I32 "I32" 26 1 4
    I64 "I64" 27 1 8
    F64 "F64" 28 1 8
    Iq1M "IQ1_M" 29 256 56
    Bf16 "BF16" 30 1 2
    Tq1_0 "TQ1_0" 34 256 54
    Tq2_0 "TQ2_0" 35 256 66
    Mxfp4 "MXFP4" 39 32 17
}

impl TensorType {
    /// The type with this id in the format.
    ///
    /// # Errors
    /// When the id is unknown.
    pub fn from_id(id: u32) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|tensor_type| tensor_type.row().1 == id)
            .ok_or_else(|| Error::model(format!("type {id} is unknown")))
    }

    /// The id in the format.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The number of elements in a block.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// The size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The size in bytes of a tensor with these dimensions, outermost first.
    ///
    /// # Errors
    /// When a row is not a multiple of the block length, or the size exceeds `usize`.
    pub fn n_bytes(self, shape: &[usize]) -> Result<usize> {
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(self.block_len()) {
            return Err(Error::model(format!(
                "its rows have {row_len} elements, which is not a multiple of {self}'s block length {}",
                self.block_len()
            )));
        }
        let n_elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        n_elements
            .map(|n| n / self.block_len())
            .and_then(|n_blocks| n_blocks.checked_mul(self.block_bytes()))
            .ok_or_else(|| Error::model("its dimensions are impossible"))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().0)
    }
}
