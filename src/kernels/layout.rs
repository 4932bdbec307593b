//! Layouts shared by weights, activations and kernels: the constants of panels, groups and tiles, and the
//! buffers that one of them writes and another reads.

use half::bf16;

use super::simd::{LANES, QUAD_BYTES, QUAD_LEN};

/// Rows of a panel: a weight matrix is cut into panels of as many rows as a vector has lanes.
pub const PANEL_ROWS: usize = LANES;

/// Activations of a row that share a scale.
pub const GROUP_LEN: usize = 32;

/// Bytes of a group's activations, as two planes of bytes or as 16-bit integers.
pub const GROUP_QUAD_BYTES: usize = GROUP_LEN / QUAD_LEN * QUAD_BYTES;

/// Rows of activations that [GEMV](super::matmul) multiplies with a panel at once, at most: their sums stay
/// in registers.
pub const MAX_TILE_ROWS: usize = 8;

/// Groups of a panel that [GEMM](super::matmul) unpacks at once: those of two panels stay in the L1 cache.
pub const K_CHUNK_GROUPS: usize = 16;

/// Dwords of a full AMX tile; rows are padded with zeros to a multiple of it.
pub const TILE_DWORDS: usize = 16;

/// A group of activations, quantized to 16-bit integers, as GEMV reads it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ActivationGroup {
    /// The integers, in the form that [`Simd::dot_codes`](super::simd::Simd::dot_codes) reads.
    pub quads: [[u8; GROUP_QUAD_BYTES / 2]; 2],
    /// The factor that turns an integer back into an activation.
    pub scale: f32,
    /// The sum of all integers.
    pub sum: i32,
    /// The sums of the first and of the last sixteen integers.
    pub half_sums: [i32; 2],
    /// `sum * scale`
    pub scaled_sum: f32,
    /// `half_sums * scale`
    pub scaled_half_sums: [f32; 2],
}

/// The type of the codes of an [`UnpackedPanel`], from which the code of zero has been subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeWidth {
    /// Signed bytes: for every four inner elements, those of sixteen rows.
    Byte,
    /// 16-bit integers in the order of [`Simd::dot_i16_pairs`](super::simd::Simd::dot_i16_pairs): for every
    /// two inner elements, those of sixteen rows.
    Word,
    /// Unsigned bytes in the order of [`CodeWidth::Byte`], 128 for zero:
    /// [rotated](super::simd::Simd::rotate_codes) codes.
    RotatedByte,
    /// Whole weights as bfloat16, with scale and minimum applied: for every two inner elements, those of sixteen rows.
    Bf16,
}

impl CodeWidth {
    /// Bytes of one group of a panel.
    pub const fn group_bytes(self) -> usize {
        match self {
            Self::Byte | Self::RotatedByte => GROUP_LEN * PANEL_ROWS,
            Self::Word | Self::Bf16 => 2 * GROUP_LEN * PANEL_ROWS,
        }
    }
}

/// A K chunk of a panel, unpacked to numbers that many rows of activations are multiplied with.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct UnpackedPanel {
    /// The codes, group by group, of any [`CodeWidth`].
    pub codes: [u8; K_CHUNK_GROUPS * CodeWidth::Word.group_bytes()],
    /// One or two scales of each row for each group.
    pub scales: [[f32; PANEL_ROWS]; 2 * K_CHUNK_GROUPS],
    /// As many minimums, if the format has them.
    pub mins: [[f32; PANEL_ROWS]; 2 * K_CHUNK_GROUPS],
    /// Scales of a row for each group: one, or one for each half.
    pub scales_per_group: usize,
    /// Whether the format has minimums.
    pub has_mins: bool,
}

impl UnpackedPanel {
    /// A buffer to unpack into.
    pub const EMPTY: Self = Self {
        codes: [0; _],
        scales: [[0.0; _]; _],
        mins: [[0.0; _]; _],
        scales_per_group: 1,
        has_mins: false,
    };

    /// The address of a group's codes; of a group past the end, too, which may be prefetched.
    #[inline(always)]
    pub fn codes(&self, group: usize, width: CodeWidth) -> *const u8 {
        self.codes.as_ptr().wrapping_add(group * width.group_bytes())
    }
}

/// A tile of float activations: rows of dwords, the left operand of a float GEMM.
#[derive(Clone, Copy)]
pub struct FloatTile {
    /// The first row.
    pub rows: *const f32,
    /// The number of rows.
    pub n_rows: usize,
    /// Dwords from one row to the next.
    pub stride: usize,
    /// Dwords of a row that are multiplied; zeros follow up to whole [`TILE_DWORDS`].
    pub n_dwords: usize,
    /// Whether to prefetch the panels: they lie beyond the L1 cache, and the processor alone does not
    /// prefetch far enough.
    pub prefetch: bool,
}

/// A group of activations, quantized to 16-bit integers, as GEMM reads it: in the order of
/// [`Simd::dot_i16_pairs`](super::simd::Simd::dot_i16_pairs). For AMX, the groups of a tile's rows hold two
/// planes of bytes instead: the high bytes, row by row, then the low bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct I16Group(pub [i16; GROUP_LEN]);

/// A group of activations, rotated and rounded to 8-bit integers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub struct I8Group(pub [i8; GROUP_LEN]);

/// A group of activations, rounded to bfloat16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Bf16Group(pub [bf16; GROUP_LEN]);

/// The scale of an [`I8Group`].
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(16))]
pub struct I8Scale {
    /// The factor that turns the product of an integer and a rotated code into that of an activation and a code.
    pub scale: f32,
    /// The start of sums of products: the code of zero is 128, so it is `-128` times the sum of the integers.
    pub start: i32,
    /// The sum of the activations, before they were rounded.
    pub sum: f32,
}

/// The scale of an [`I16Group`], with scaled sums of its integers.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupScale {
    /// The factor that turns an integer back into an activation.
    pub scale: f32,
    /// The sum of all integers, scaled.
    pub sum: f32,
    /// The sum of each half, scaled.
    pub half_sums: [f32; 2],
}

impl GroupScale {
    /// The scaled sum of one of `n_parts` (one or two) of the group.
    #[inline(always)]
    pub fn sum_of(&self, part: usize, n_parts: usize) -> f32 {
        if n_parts == 1 { self.sum } else { self.half_sums[part] }
    }
}

/// A tile of activations: for each group of a K chunk, the groups of all rows of the tile.
#[derive(Clone, Copy)]
pub struct ActivationTile<'a, G, S> {
    /// `[n_groups, n_rows]`
    pub groups: &'a [G],
    /// `[n_groups, n_rows]`
    pub scales: &'a [S],
    /// Groups of the K chunk.
    pub n_groups: usize,
}

/// A tile of 16-bit activations.
pub type I16Tile<'a> = ActivationTile<'a, I16Group, GroupScale>;

/// A tile of activations in bfloat16, which have no scales.
pub type Bf16Tile<'a> = ActivationTile<'a, Bf16Group, ()>;

/// A tile of rotated 8-bit activations.
pub type I8Tile<'a> = ActivationTile<'a, I8Group, I8Scale>;
