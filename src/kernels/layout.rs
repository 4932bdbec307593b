//! Layouts that weights, activations and kernels share: the constants of panels, groups and tiles, and
//! the buffers that one of them writes and another reads.

use super::simd::{LANES, QUAD_BYTES, QUAD_LEN};

/// Rows of a panel.
pub const PANEL_ROWS: usize = LANES;

/// Activations that share a scale.
pub const GROUP_LEN: usize = 32;

/// Bytes of a group's activations.
pub const GROUP_QUAD_BYTES: usize = GROUP_LEN / QUAD_LEN * QUAD_BYTES;

/// A group of activations as whole numbers.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ActivationGroup {
    pub quads: [[u8; GROUP_QUAD_BYTES / 2]; 2],
    /// What the whole numbers are multiplied by.
    pub scale: f32,
    /// The sum of all, and of each half.
    pub sum: i32,
    pub half_sums: [i32; 2],
    /// The same, scaled.
    pub scaled_sum: f32,
    pub scaled_half_sums: [f32; 2],
}

/// What the codes of an expanded group, less that of zero, become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeWidth {
    /// Bytes: of each four inner elements those of sixteen rows.
    Byte,
    /// Whole numbers of 16 bits, in the order in which [`Simd::dot_i16_pairs`](super::simd::Simd::dot_i16_pairs) takes them: of each two inner
    /// elements those of sixteen rows.
    Word,
}

impl CodeWidth {
    /// Bytes of a group of a panel.
    pub const fn group_bytes(self) -> usize {
        match self {
            Self::Byte => GROUP_LEN * PANEL_ROWS,
            Self::Word => 2 * GROUP_LEN * PANEL_ROWS,
        }
    }
}

/// Groups of a panel that are expanded at once: two panels' stay in the first-level cache.
pub const K_CHUNK_GROUPS: usize = 16;

/// Groups of a panel as whole numbers.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct UnpackedPanel {
    /// Group by group in whichever [`CodeWidth`].
    pub codes: [u8; K_CHUNK_GROUPS * CodeWidth::Word.group_bytes()],
    /// One or two for each group.
    pub scales: [[f32; PANEL_ROWS]; 2 * K_CHUNK_GROUPS],
    pub mins: [[f32; PANEL_ROWS]; 2 * K_CHUNK_GROUPS],
    pub scales_per_group: usize,
    pub has_mins: bool,
}

impl UnpackedPanel {
    pub const EMPTY: Self = Self {
        codes: [0; _],
        scales: [[0.0; _]; _],
        mins: [[0.0; _]; _],
        scales_per_group: 1,
        has_mins: false,
    };

    /// Those of a group, which there may not be.
    #[inline(always)]
    pub fn codes(&self, group: usize, width: CodeWidth) -> *const u8 {
        self.codes.as_ptr().wrapping_add(group * width.group_bytes())
    }
}

/// Most rows of activations that a panel is multiplied with at once: their sums stay in registers.
pub const MAX_TILE_ROWS: usize = 8;

/// Units of a full tile of AMX: rows are filled up with zeros to a multiple of it.
pub const TILE_DWORDS: usize = 16;

/// Rows on the left of a product.
#[derive(Clone, Copy)]
pub struct FloatTile {
    pub rows: *const f32,
    pub n_rows: usize,
    /// Units from a row to the next.
    pub stride: usize,
    /// Units of a row that count; behind them there are zeros up to whole [`TILE_DWORDS`].
    pub n_dwords: usize,
    /// Whether the panels lie beyond the first-level cache, where the processor alone does not look ahead far
    /// enough.
    pub fetches: bool,
}

/// 32 activations as whole numbers, in the order in which [`Simd::dot_i16_pairs`](super::simd::Simd::dot_i16_pairs) takes them; or as many bytes
/// of those of a tile, whose high bytes, row by row, come before the low.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct I16Group(pub [i16; GROUP_LEN]);

/// What goes with them.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupScale {
    /// What the whole numbers are multiplied by.
    pub scale: f32,
    /// The sum of all, scaled, and of each half.
    pub sum: f32,
    pub half_sums: [f32; 2],
}

impl GroupScale {
    /// The sum of one of `n_parts` of the group.
    #[inline(always)]
    pub fn sum_of(&self, part: usize, n_parts: usize) -> f32 {
        if n_parts == 1 { self.sum } else { self.half_sums[part] }
    }
}

/// Groups of the rows of a tile.
#[derive(Clone, Copy)]
pub struct I16Tile<'a> {
    pub words: &'a [I16Group],
    pub factors: &'a [GroupScale],
    pub n_groups: usize,
}
