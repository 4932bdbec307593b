//! Weight matrices, packed in the layout that the kernels read.

mod float;
mod k_quants;
mod legacy_quants;
mod mxfp4;
mod packing;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub(super) use self::float::{Bf16, Bf16Pairs, F16, F32};
pub(super) use self::k_quants::{K6Generic, K8Generic, Q4K, Q6K};
pub(super) use self::legacy_quants::{Q4_0, Q4_1, Q5_1, Q8_0};
pub(super) use self::mxfp4::Mxfp4;
pub use self::mxfp4::{MXFP4_CODEBOOK, mxfp4_scale};
use self::packing::UnpackedGroup;
pub(super) use self::packing::{Packing, Quantized, prefetch_ahead};
use super::isa::Isa;
use super::layout::{CodeWidth, GROUP_LEN, K_CHUNK_GROUPS, PANEL_ROWS, UnpackedPanel};
use super::memory::HugePageBuf;
use super::simd::{Kernel, Simd, dispatch};
use super::threads::disjoint::DisjointSlice;
use super::threads::pool;
use crate::error::{Error, Kind, Result};

/// The storage format of a matrix's weights: GGUF's types of these names, and three more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// float32
    F32,
    /// Half precision.
    F16,
    /// bfloat16
    Bf16,
    /// 4 bits and a scale for 32 weights.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 weights.
    Q4_1,
    /// 5 bits, a scale and a minimum for 32 weights.
    Q5_1,
    /// 8 bits and a scale for 32 weights.
    Q8_0,
    /// 4-bit floats and a power of two for 32 weights.
    Mxfp4,
    /// 4 bits, 6-bit scales and minimums, in super-blocks of 256 weights.
    Q4K,
    /// 6 bits and 8-bit scales, in super-blocks of 256 weights.
    Q6K,
    /// Up to 6 bits: the common form of the other k-quants. A source block is 256 codes of one byte, 16 scales
    /// and 16 minimums of a signed byte, and a factor in half precision for each of the two.
    K6Generic,
    /// 8 bits and 8-bit scales, in super-blocks of 256 weights. A source block is 256 codes and 16 scales of a signed
    /// byte, and a float32 factor.
    K8Generic,
    /// float32 rounded to bfloat16, for activations that are rounded as well.
    Bf16Pairs,
}

/// Evaluates `$then` with `$F` as the [`Quantized`] type of a [`WeightFormat`] that is quantized.
macro_rules! with_quantized_format {
    ($format:expr, $F:ident => $then:expr) => {
        match $format {
            WeightFormat::Q4_0 => {
                type $F = $crate::kernels::weights::Q4_0;
                $then
            }
            WeightFormat::Q4_1 => {
                type $F = $crate::kernels::weights::Q4_1;
                $then
            }
            WeightFormat::Q5_1 => {
                type $F = $crate::kernels::weights::Q5_1;
                $then
            }
            WeightFormat::Q8_0 => {
                type $F = $crate::kernels::weights::Q8_0;
                $then
            }
            WeightFormat::Mxfp4 => {
                type $F = $crate::kernels::weights::Mxfp4;
                $then
            }
            WeightFormat::Q4K => {
                type $F = $crate::kernels::weights::Q4K;
                $then
            }
            WeightFormat::Q6K => {
                type $F = $crate::kernels::weights::Q6K;
                $then
            }
            WeightFormat::K6Generic => {
                type $F = $crate::kernels::weights::K6Generic;
                $then
            }
            WeightFormat::K8Generic => {
                type $F = $crate::kernels::weights::K8Generic;
                $then
            }
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 | WeightFormat::Bf16Pairs => {
                unreachable!("the format is quantized")
            }
        }
    };
}

/// Evaluates `$then` with `$F` as the type of a [`WeightFormat`] that has a GEMV.
macro_rules! with_format {
    ($format:expr, $F:ident => $then:expr) => {
        match $format {
            WeightFormat::F32 => {
                type $F = $crate::kernels::weights::F32;
                $then
            }
            WeightFormat::F16 => {
                type $F = $crate::kernels::weights::F16;
                $then
            }
            WeightFormat::Bf16 => {
                type $F = $crate::kernels::weights::Bf16;
                $then
            }
            quantized => with_quantized_format!(quantized, $F => $then),
        }
    };
}

pub(super) use {with_format, with_quantized_format};

/// Evaluates `$then` with `$P` as the [`Packing`] of a [`WeightFormat`].
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
    /// Every format.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_1,
        Self::Q8_0,
        Self::Mxfp4,
        Self::Q4K,
        Self::Q6K,
        Self::K6Generic,
        Self::K8Generic,
        Self::Bf16Pairs,
    ];

    /// Inner elements of a block.
    pub fn block_len(self) -> usize {
        with_packing!(self, F => F::BLOCK_LEN)
    }

    /// Bytes of a block of one row in the source.
    pub fn source_bytes(self) -> usize {
        with_packing!(self, F => F::SOURCE_BYTES)
    }

    /// Whether weights are codes, which are multiplied with quantized activations.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Bf16Pairs)
    }

    /// Whether weights can be multiplied with rounded activations: with AMX all codes become bfloat16; elsewhere those of 4
    /// bits fit 8 bits after they are rotated.
    pub fn is_rounded(self, isa: Isa) -> bool {
        match isa {
            Isa::Amx => self.is_quantized(),
            _ => matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q4K),
        }
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

/// A weight matrix `[n_out, n_in]`, packed in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    format: WeightFormat,
    n_out: usize,
    n_in: usize,
    panels: HugePageBuf,
}

impl PackedMatrix {
    /// Rows of a panel. Rows are packed in whole panels.
    pub const PANEL_ROWS: usize = PANEL_ROWS;

    /// A matrix of zeros, whose rows are then packed.
    ///
    /// # Errors
    /// When rows are not whole blocks, or there is no memory.
    pub fn zeroed(format: WeightFormat, n_out: usize, n_in: usize) -> Result<Self> {
        if n_in == 0 || !n_in.is_multiple_of(format.block_len()) {
            return Err(Error::model(format!(
                "its rows of {n_in} numbers are not a multiple of the block length {}",
                format.block_len()
            )));
        }
        let n_bytes = format.matrix_bytes(n_out, n_in);
        let panels = HugePageBuf::try_zeroed(n_bytes).map_err(|e| {
            let message =
                format!("there is no memory for {n_bytes} bytes of weights: {e}; use a smaller model");
            Error::new(Kind::Unavailable, message)
        })?;
        Ok(Self { format, n_out, n_in, panels })
    }

    /// Packs `n_out` rows of `n_in` weights; `row` returns the source blocks of a row.
    ///
    /// # Errors
    /// When rows are not whole blocks.
    pub fn pack<'a>(
        format: WeightFormat,
        n_out: usize,
        n_in: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self> {
        let mut matrix = Self::zeroed(format, n_out, n_in)?;
        matrix.pack_rows(0..n_out, |idx, pack| {
            pack(row(idx));
            Ok(())
        })?;
        Ok(matrix)
    }

    /// Packs some rows on all compute threads: `row` passes the source blocks of a row to its second argument.
    ///
    /// # Errors
    /// Those of `row`.
    ///
    /// # Panics
    /// When the rows do not exist or are not whole panels, up to the last row; when the source blocks of a row are
    /// not as many as a row has.
    pub fn pack_rows(
        &mut self,
        rows: Range<usize>,
        row: impl Fn(usize, &mut dyn FnMut(&[u8])) -> Result<()> + Sync,
    ) -> Result<()> {
        let is_edge = |row: usize| row.is_multiple_of(PANEL_ROWS) || row == self.n_out;
        assert!(rows.end <= self.n_out && is_edge(rows.start) && is_edge(rows.end), "rows {rows:?}");
        let (panel_bytes, n_blocks) = (self.panel_bytes(), self.n_in / self.format.block_len());
        let panels = rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        with_packing!(self.format, F => {
            let packed = DisjointSlice::new(&mut self.panels);
            let pack_panel = |panel: usize| -> Result<()> {
                // SAFETY: each panel is claimed once.
                let packed = unsafe { packed.slice(panel * panel_bytes, panel_bytes) };
                for idx in panel * PANEL_ROWS..rows.end.min((panel + 1) * PANEL_ROWS) {
                    row(idx, &mut |source: &[u8]| {
                        assert_eq!(source.len(), n_blocks * F::SOURCE_BYTES);
                        let blocks = packed.chunks_exact_mut(F::PACKED_BYTES);
                        for (packed, source) in blocks.zip(source.chunks_exact(F::SOURCE_BYTES)) {
                            F::pack(source, idx % PANEL_ROWS, packed);
                        }
                    })?;
                }
                Ok(())
            };
            pool::run(|team| {
                for panel in team.claim_chunks(panels.len(), 1).flatten() {
                    if let Err(e) = pack_panel(panels.start + panel) {
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    }
                }
            });
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The scale and the minimum of a group of a Q4_K or Q5_K block, from the 12 bytes for all eight groups.
    pub fn q4_k_scale_and_min(bytes: &[u8], group: usize) -> (u8, u8) {
        Q4K::scale_and_min(bytes, group)
    }

    /// The storage format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The number of rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// The length of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes of the packed weights, all of which a product reads.
    pub fn n_bytes(&self) -> usize {
        self.panels.len()
    }

    /// Inner elements that share a scale, in a quantized format.
    pub(super) fn scale_len(&self) -> usize {
        with_quantized_format!(self.format, Q => GROUP_LEN / Q::SCALES_PER_GROUP)
    }

    /// The number of panels.
    pub(super) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL_ROWS)
    }

    /// The address of a panel.
    pub(super) fn panel_start(&self, panel: usize) -> *const u8 {
        self.panels[panel * self.panel_bytes()..].as_ptr()
    }

    fn panel_bytes(&self) -> usize {
        self.n_in / self.format.block_len() * self.format.packed_bytes()
    }

    /// Dequantizes row `idx` to float32.
    ///
    /// # Panics
    /// When there is no such row, or `weights` is not as long as a row.
    pub fn dequantize_row(&self, idx: usize, weights: &mut [f32]) {
        assert!(idx < self.n_out && weights.len() == self.n_in, "row {idx} of {}", self.n_out);
        let panel = &self.panels[idx / PANEL_ROWS * self.panel_bytes()..][..self.panel_bytes()];
        with_packing!(self.format, F => {
            let blocks = panel.chunks_exact(F::PACKED_BYTES);
            for (packed, weights) in blocks.zip(weights.chunks_exact_mut(F::BLOCK_LEN)) {
                F::dequantize(packed, idx % PANEL_ROWS, weights);
            }
        });
    }

    /// The dwords of a panel: pairs of bfloat16, or float32.
    ///
    /// # Panics
    /// When there is no such panel, or its format is another.
    pub(super) fn panel_dwords(&self, panel: usize, in_bf16: bool) -> &[u8] {
        let expected = if in_bf16 { WeightFormat::Bf16Pairs } else { WeightFormat::F32 };
        assert!(panel < self.n_panels() && self.format == expected);
        &self.panels[panel * self.panel_bytes()..][..self.panel_bytes()]
    }

    /// Unpacks groups of a panel into the beginning of `unpacked`.
    ///
    /// # Panics
    /// When the panel or a group does not exist, there are more groups than `unpacked` has room for, or the
    /// format is not quantized.
    pub(super) fn unpack_panel(
        &self,
        isa: Isa,
        panel: usize,
        groups: Range<usize>,
        width: CodeWidth,
        unpacked: &mut UnpackedPanel,
    ) {
        assert!(panel < self.n_panels() && groups.end <= self.n_in / GROUP_LEN);
        assert!(groups.len() <= K_CHUNK_GROUPS);
        let panel = self.panels[panel * self.panel_bytes()..].as_ptr();
        with_quantized_format!(self.format, Q => {
            unpacked.scales_per_group = Q::SCALES_PER_GROUP;
            unpacked.has_mins = Q::HAS_MINS;
            let kernel = UnpackKernel::<Q> { panel, groups, width, unpacked, format: PhantomData };
            dispatch(isa, kernel)
        });
    }
}

/// Unpacks groups of the panel at an address, all of which [`PackedMatrix::unpack_panel`] has checked.
struct UnpackKernel<'a, Q> {
    panel: *const u8,
    groups: Range<usize>,
    width: CodeWidth,
    unpacked: &'a mut UnpackedPanel,
    format: PhantomData<Q>,
}

impl<Q: Quantized> Kernel for UnpackKernel<'_, Q> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panel, groups, width, unpacked, .. } = self;
        let n_groups = Q::BLOCK_LEN / GROUP_LEN;
        for (idx, group) in groups.enumerate() {
            let at = idx * Q::SCALES_PER_GROUP;
            let codes = &mut unpacked.codes[idx * width.group_bytes()..][..width.group_bytes()];
            let scales = &mut unpacked.scales[at..at + Q::SCALES_PER_GROUP];
            let mins = &mut unpacked.mins[at..at + Q::SCALES_PER_GROUP];
            let to = UnpackedGroup { width, codes, scales, mins };
            // SAFETY: the panel has these groups, as `unpack_panel` asserts.
            unsafe {
                let packed = panel.add(group / n_groups * Q::PACKED_BYTES);
                prefetch_ahead::<S, Q>(simd, packed, group % n_groups, n_groups);
                packing::unpack_group::<S, Q>(simd, packed, group % n_groups, to);
            }
        }
    }
}
