//! Matrices in the form that the kernels read, and their product with rows of activations.

mod format;

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

pub use format::PANEL_ROWS;
pub(super) use format::{ActivationGroup, CodeWidth, GROUP_LEN};

use self::format::{
    Bf16, Bf16Pairs, F16, F32, Format, General6, Packing, Q4_0, Q4_1, Q4K, Q5_1, Q6K, Q8_0, Quantized,
};
use super::activations::Activations;
use super::bytes::PageBytes;
use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch};
use crate::error::{Error, Result};

/// How the weights of a matrix are stored. All but the last two are GGUF's types of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_1,
    Q8_0,
    Q4K,
    Q6K,
    /// Up to 6 bits: what other K formats are turned into. A source block is 256 codes of a byte, 16
    /// scales and 16 minimums of a signed byte, and a factor in half precision for each of the two.
    General6,
    /// float32 rounded to bfloat16, for rows of activations that are rounded as well.
    Bf16Pairs,
}

/// Calls `$then` with `$F` standing for the [`Quantized`] format of a [`WeightFormat`], if it is of codes.
macro_rules! with_quantized_format {
    ($format:expr, $F:ident => $then:expr) => {
        match $format {
            WeightFormat::Q4_0 => {
                type $F = Q4_0;
                $then
            }
            WeightFormat::Q4_1 => {
                type $F = Q4_1;
                $then
            }
            WeightFormat::Q5_1 => {
                type $F = Q5_1;
                $then
            }
            WeightFormat::Q8_0 => {
                type $F = Q8_0;
                $then
            }
            WeightFormat::Q4K => {
                type $F = Q4K;
                $then
            }
            WeightFormat::Q6K => {
                type $F = Q6K;
                $then
            }
            WeightFormat::General6 => {
                type $F = General6;
                $then
            }
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 | WeightFormat::Bf16Pairs => {
                unreachable!("a format of codes")
            }
        }
    };
}

/// Calls `$then` with `$F` standing for the [`Format`] of a [`WeightFormat`] that is multiplied as it is read.
macro_rules! with_format {
    ($format:expr, $F:ident => $then:expr) => {
        match $format {
            WeightFormat::F32 => {
                type $F = F32;
                $then
            }
            WeightFormat::F16 => {
                type $F = F16;
                $then
            }
            WeightFormat::Bf16 => {
                type $F = Bf16;
                $then
            }
            quantized => with_quantized_format!(quantized, $F => $then),
        }
    };
}

/// Calls `$then` with `$P` standing for the [`Packing`] of a [`WeightFormat`].
macro_rules! with_packing {
    ($format:expr, $P:ident => $then:expr) => {
        match $format {
            WeightFormat::Bf16Pairs => {
                type $P = Bf16Pairs;
                $then
            }
            other => with_format!(other, $P => $then),
        }
    };
}

impl WeightFormat {
    /// Inner elements of a block.
    pub fn block_len(self) -> usize {
        with_packing!(self, F => F::BLOCK_LEN)
    }

    /// Bytes of a block of one row where it comes from.
    pub fn source_bytes(self) -> usize {
        with_packing!(self, F => F::SOURCE_BYTES)
    }

    /// Whether activations are multiplied as whole numbers.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Bf16Pairs)
    }

    /// Bytes of a packed matrix `[n_out, n_in]`.
    pub fn matrix_bytes(self, n_out: usize, n_in: usize) -> usize {
        n_out.div_ceil(PANEL_ROWS) * (n_in / self.block_len()) * self.packed_bytes()
    }

    /// Bytes of a block of a panel.
    fn packed_bytes(self) -> usize {
        with_packing!(self, F => F::PACKED_BYTES)
    }
}

/// A matrix `[n_out, n_in]` in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    format: WeightFormat,
    n_out: usize,
    n_in: usize,
    panels: PageBytes,
}

impl PackedMatrix {
    /// Packs `n_out` rows of `n_in` weights; `row` gives the blocks of each.
    ///
    /// # Errors
    /// When rows are not whole blocks.
    pub fn pack<'a>(
        format: WeightFormat,
        n_out: usize,
        n_in: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self> {
        if n_in == 0 || !n_in.is_multiple_of(format.block_len()) {
            return Err(Error::model(format!(
                "its rows of {n_in} numbers are not whole blocks of {}",
                format.block_len()
            )));
        }
        let n_blocks = n_in / format.block_len();
        let panel_bytes = n_blocks * format.packed_bytes();
        let mut panels = PageBytes::zeroed(format.matrix_bytes(n_out, n_in));
        with_packing!(format, F => {
            panels.par_chunks_exact_mut(panel_bytes).enumerate().for_each(|(panel, packed)| {
                for idx in panel * PANEL_ROWS..n_out.min((panel + 1) * PANEL_ROWS) {
                    let source = row(idx).chunks_exact(F::SOURCE_BYTES);
                    for (packed, source) in packed.chunks_exact_mut(F::PACKED_BYTES).zip(source) {
                        F::pack(source, idx % PANEL_ROWS, packed);
                    }
                }
            });
        });
        Ok(Self { format, n_out, n_in, panels })
    }

    /// Scale and minimum of a group of a block of Q4_K or Q5_K, out of its 12 bytes for all eight.
    pub fn q4_k_scale_and_min(bytes: &[u8], group: usize) -> (u8, u8) {
        Q4K::scale_and_min(bytes, group)
    }

    pub fn format(&self) -> WeightFormat {
        self.format
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes it takes, and a product reads.
    pub fn n_bytes(&self) -> usize {
        self.panels.len()
    }

    /// Inner elements that share a scale, if the format is of codes.
    pub(super) fn n_scaled(&self) -> usize {
        with_quantized_format!(self.format, Q => GROUP_LEN / Q::SCALES_PER_GROUP)
    }

    pub(super) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL_ROWS)
    }

    fn panel_bytes(&self) -> usize {
        self.n_in / self.format.block_len() * self.format.packed_bytes()
    }

    /// Writes row `idx` as float32.
    ///
    /// # Panics
    /// When there is no such row, or `weights` is not of a row's length.
    pub fn unpack_row(&self, idx: usize, weights: &mut [f32]) {
        assert!(idx < self.n_out && weights.len() == self.n_in, "row {idx} of {}", self.n_out);
        let panel = &self.panels[idx / PANEL_ROWS * self.panel_bytes()..][..self.panel_bytes()];
        with_packing!(self.format, F => {
            let blocks = panel.chunks_exact(F::PACKED_BYTES);
            for (packed, weights) in blocks.zip(weights.chunks_exact_mut(F::BLOCK_LEN)) {
                F::unpack(packed, idx % PANEL_ROWS, weights);
            }
        });
    }

    /// The units of a panel: pairs of bfloat16, or float32.
    ///
    /// # Panics
    /// When there is no such panel, or its numbers are others.
    pub(super) fn panel_units(&self, panel: usize, in_bf16: bool) -> &[u8] {
        let expected = if in_bf16 { WeightFormat::Bf16Pairs } else { WeightFormat::F32 };
        assert!(panel < self.n_panels() && self.format == expected);
        &self.panels[panel * self.panel_bytes()..][..self.panel_bytes()]
    }

    /// Expands groups of a panel into the beginning of `expanded`.
    ///
    /// # Panics
    /// When panel or groups are not there, there are too many, or the format is not of codes.
    pub(super) fn expand(
        &self,
        isa: Isa,
        panel: usize,
        groups: Range<usize>,
        width: CodeWidth,
        expanded: &mut Expanded,
    ) {
        assert!(panel < self.n_panels() && groups.end <= self.n_in / GROUP_LEN);
        assert!(groups.len() <= STRETCH_GROUPS);
        let panel = self.panels[panel * self.panel_bytes()..].as_ptr();
        with_quantized_format!(self.format, Q => {
            expanded.scales_per_group = Q::SCALES_PER_GROUP;
            expanded.has_mins = Q::HAS_MINS;
            let kernel = Expand::<Q> { panel, groups, width, expanded, format: PhantomData };
            // SAFETY: `Isa::choose` and `detect` give only what the processor has; the groups are there,
            // and so is room for them.
            unsafe { dispatch(isa, kernel) }
        });
    }

    /// The products of the rows of some panels with rows of activations, the first of which begins a tile: for
    /// each panel and each row of activations those with the sixteen rows of the panel. The first to use a
    /// panel also fetches what follows it.
    ///
    /// # Safety
    /// As [`Simd`].
    ///
    /// # Panics
    /// When panels, rows or room for the products are not there, or the activations are of another length or
    /// kind.
    #[inline(always)]
    pub(super) unsafe fn panel_products<'p, S: Simd>(
        &self,
        panels: Range<usize>,
        x: &Activations,
        rows: Range<usize>,
        products: &'p mut [MaybeUninit<[f32; LANES]>],
        fetches: bool,
    ) -> &'p [[f32; LANES]] {
        assert!(panels.end <= self.n_panels() && rows.end <= x.n_rows() && x.n_in() == self.n_in);
        let products = &mut products[..panels.len() * rows.len()];
        let n_blocks = self.n_in / self.format.block_len();
        let packed = self.panels[panels.start * self.panel_bytes()..].as_ptr();
        with_format!(self.format, F => {
            let (all, stride) = (F::of(x), x.tile_rows());
            let per_row = n_blocks * F::N_ACTIVATIONS;
            assert!(rows.start.is_multiple_of(stride));
            assert!(all.len() >= rows.end.next_multiple_of(stride) * per_row);
            let x = all[rows.start * per_row..].as_ptr();
            // SAFETY: the caller's promise; the panels are there with all their blocks, and so are the rows of
            // activations, as asserted.
            unsafe { tiles::<S, F>(packed, n_blocks, x, stride, rows.len(), products, fetches) }
        });
        // SAFETY: every row of every panel has been written.
        unsafe { products.assume_init_ref() }
    }
}

/// Groups of a panel that are expanded at once: two panels' stay in the first-level cache.
pub(super) const STRETCH_GROUPS: usize = 16;

/// Groups of a panel as whole numbers.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Expanded {
    /// Group by group in whichever [`CodeWidth`].
    codes: [u8; STRETCH_GROUPS * CodeWidth::Word.group_bytes()],
    /// One or two for each group.
    pub scales: [[f32; PANEL_ROWS]; 2 * STRETCH_GROUPS],
    pub mins: [[f32; PANEL_ROWS]; 2 * STRETCH_GROUPS],
    pub scales_per_group: usize,
    pub has_mins: bool,
}

impl Expanded {
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

struct Expand<'a, Q> {
    panel: *const u8,
    groups: Range<usize>,
    width: CodeWidth,
    expanded: &'a mut Expanded,
    format: PhantomData<Q>,
}

impl<Q: Quantized> Kernel for Expand<'_, Q> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { panel, groups, width, expanded, .. } = self;
        let n_groups = Q::BLOCK_LEN / GROUP_LEN;
        for (idx, group) in groups.enumerate() {
            let at = idx * Q::SCALES_PER_GROUP;
            let codes = &mut expanded.codes[idx * width.group_bytes()..][..width.group_bytes()];
            let scales = &mut expanded.scales[at..at + Q::SCALES_PER_GROUP];
            let mins = &mut expanded.mins[at..at + Q::SCALES_PER_GROUP];
            // SAFETY: the caller's promise; the slices have room for a group.
            unsafe {
                let packed = panel.add(group / n_groups * Q::PACKED_BYTES);
                format::fetch::<S, Q>(packed, group % n_groups, n_groups);
                format::expand::<S, Q>(
                    packed,
                    group % n_groups,
                    width,
                    codes.as_mut_ptr(),
                    scales.as_mut_ptr().cast(),
                    mins.as_mut_ptr().cast(),
                );
            }
        }
    }
}

/// Most rows of activations that a panel is multiplied with at once: their sums stay in registers.
pub(super) const MAX_TILE_ROWS: usize = 8;

/// Products of panels of `n_blocks`, one behind the other, with `n_rows` rows in tiles of `stride`: the
/// activations of a row are as far apart, those of the next row beside them. There is room for as many panels
/// as there are.
///
/// # Safety
/// As [`Simd`], and all that is there.
#[inline(always)]
unsafe fn tiles<S: Simd, F: Format>(
    packed: *const u8,
    n_blocks: usize,
    x: *const F::Activation,
    stride: usize,
    n_rows: usize,
    products: &mut [MaybeUninit<[f32; LANES]>],
    fetches: bool,
) {
    for (idx, products) in products.chunks_exact_mut(n_rows).enumerate() {
        for (of_tile, products) in products.chunks_mut(stride).enumerate() {
            let mut row = 0;
            // SAFETY: the caller's promise holds for each of the tiles, which lie within the rows.
            unsafe {
                let panel = packed.add(idx * n_blocks * F::PACKED_BYTES);
                let x = x.add(of_tile * stride * n_blocks * F::N_ACTIVATIONS);
                while row < products.len() {
                    let fetches = fetches && of_tile == 0 && row == 0;
                    let m = (products.len() - row).min(S::TILE_ROWS);
                    let (x, products) = (x.add(row), &mut products[row..]);
                    match m {
                        1 => tile::<S, F, 1>(panel, n_blocks, x, stride, products, fetches),
                        2 => tile::<S, F, 2>(panel, n_blocks, x, stride, products, fetches),
                        3 => tile::<S, F, 3>(panel, n_blocks, x, stride, products, fetches),
                        4 => tile::<S, F, 4>(panel, n_blocks, x, stride, products, fetches),
                        5 => tile::<S, F, 5>(panel, n_blocks, x, stride, products, fetches),
                        6 => tile::<S, F, 6>(panel, n_blocks, x, stride, products, fetches),
                        7 => tile::<S, F, 7>(panel, n_blocks, x, stride, products, fetches),
                        _ => tile::<S, F, 8>(panel, n_blocks, x, stride, products, fetches),
                    }
                    row += m;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, F: Format, const M: usize>(
    panel: *const u8,
    n_blocks: usize,
    x: *const F::Activation,
    stride: usize,
    products: &mut [MaybeUninit<[f32; LANES]>],
    fetches: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        for block in 0..n_blocks {
            let packed = panel.add(block * F::PACKED_BYTES);
            let mut activations = [x; M];
            for (m, activations) in activations.iter_mut().enumerate() {
                *activations = x.add(m + block * F::N_ACTIVATIONS * stride);
            }
            F::accumulate::<S, M>(packed, activations, stride, &mut sums, fetches);
        }
        for (sums, products) in sums.into_iter().zip(products) {
            S::store(sums, products.as_mut_ptr().cast());
        }
    }
}
