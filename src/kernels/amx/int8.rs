//! Products of 16-bit activations with tiles of bytes.
//!
//! As in the planes of AVX-512, an activation is two signed bytes; a weight's code, minus that of zero, is one. So a
//! tile's sums are the same integers that the other instruction sets compute.

use std::arch::asm;

use super::super::layout::{CodeWidth, GROUP_LEN, I16Tile, K_CHUNK_GROUPS, PANEL_ROWS, UnpackedPanel};
use super::super::simd::{Avx512, LANES, Simd, with_rows};
use super::{LINE_BYTES, ROWS, TileConfig};

/// Rows of activations of a GEMM tile: a tile register holds both planes of them.
pub const TILE_ROWS: usize = ROWS / 2;

/// Rows of activations from which on unpacking panels for AMX is profitable: with 12 rows it took 0.9 to 1.1
/// times as long as AVX-512 GEMV, with 8 rows 1.0 to 1.4 times (2026-11-26). An even partition then gives each
/// tile at least five rows.
pub const MIN_GEMM_ROWS: usize = 2 * TILE_ROWS;

/// Bytes of a plane of one row's activations of a group; the low plane of a tile's rows follows the high.
const PLANE_BYTES: usize = GROUP_LEN;

/// Steps between the multiplication of a tile and the store of its sums. An earlier store would wait for the
/// multipliers and delay later multiplications. There are tile registers for the sums of one more step.
const STORED_AFTER: usize = 3;

/// Steps between the store and the scaling of the sums, which loads them back from memory.
const SCALED_AFTER: usize = 1;

/// Tile registers of sums, used in turn.
const N_SUMS: usize = 4;

/// Stored sums that have not been scaled yet.
#[repr(C, align(64))]
struct PendingStore([[[i32; PANEL_ROWS]; ROWS]; SCALED_AFTER + 1]);

/// Adds the products of a tile's rows with a K chunk of one or two panels to `sums`, group by group, as the
/// 16-bit GEMM does on other instruction sets.
///
/// # Panics
/// When the tiles are configured for other products, or a length does not match: for each group `x` has the planes
/// of [`TILE_ROWS`] rows, though the tile may have fewer.
pub fn int16_tile<const P: usize>(
    config: &TileConfig,
    n_rows: usize,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    let n_parts = panels[0].scales_per_group;
    assert!(config.row_bytes == GROUP_LEN / n_parts && panels.iter().all(|p| p.scales_per_group == n_parts));
    // SAFETY: a configuration shows that the processor has AVX-512 and AMX; it is for a part of a group, as
    // asserted, and `tile_of_rows` checks the lengths.
    unsafe {
        match n_parts {
            1 => {
                with_rows!(n_rows, M in [5, 6, 7, 8] => tile_of_rows::<M, P, 1>(config.simd, x, panels, sums))
            }
            _ => {
                with_rows!(n_rows, M in [5, 6, 7, 8] => tile_of_rows::<M, P, 2>(config.simd, x, panels, sums))
            }
        }
    }
}

/// [`int16_tile`] with `M` rows, whose sums stay in registers, and panels with `PARTS` scales for each group.
///
/// # Safety
/// Tiles are configured for a part of a group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tile_of_rows<const M: usize, const P: usize, const PARTS: usize>(
    simd: Avx512,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    assert!(x.n_groups <= K_CHUNK_GROUPS && x.groups.len() >= M * (x.n_groups - 1) + TILE_ROWS);
    assert!(x.scales.len() >= M * x.n_groups && sums.iter().all(|sums| sums.len() >= M));
    let sums = sums.map(|sums| sums.as_mut_ptr());
    let mut steps = Steps::<M, P, PARTS> { simd, x, panels, pending: PendingStore([[[0; _]; _]; _]) };
    // SAFETY: tiles are configured, as this function requires; the lengths are as asserted.
    unsafe {
        // Two variables, since the compiler does not keep an array of arrays in registers.
        let mut first = load_sums::<M>(simd, sums[0]);
        let mut second = load_sums::<M>(simd, sums[P - 1]);
        let n_steps = x.n_groups * PARTS * P;
        steps.multiply::<0>(0, n_steps);
        steps.multiply::<1>(1, n_steps);
        steps.multiply::<2>(2, n_steps);
        steps.multiply::<3>(3, n_steps);
        steps.store::<0>(0, n_steps);
        for step in (0..n_steps).step_by(N_SUMS) {
            steps.scale::<0>(step, n_steps, &mut first);
            steps.scale::<1>(step + 1, n_steps, if P == 1 { &mut first } else { &mut second });
            steps.scale::<2>(step + 2, n_steps, &mut first);
            steps.scale::<3>(step + 3, n_steps, if P == 1 { &mut first } else { &mut second });
        }
        store_sums(simd, first, sums[0]);
        if P > 1 {
            store_sums(simd, second, sums[P - 1]);
        }
    }
}

type Floats = <Avx512 as Simd>::Floats;

/// Loads `M` vectors.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn load_sums<const M: usize>(simd: Avx512, from: *const [f32; LANES]) -> [Floats; M] {
    // SAFETY: `M` vectors can be read, as this function requires.
    unsafe {
        let mut sums = [simd.splat(0.0); M];
        for m in 0..M {
            sums[m] = simd.load(from.add(m).cast());
        }
        sums
    }
}

/// Stores `M` vectors.
///
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn store_sums<const M: usize>(simd: Avx512, sums: [Floats; M], to: *mut [f32; LANES]) {
    // SAFETY: `M` vectors can be written, as this function requires.
    unsafe {
        for m in 0..M {
            simd.store(sums[m], to.add(m).cast());
        }
    }
}

/// The software pipeline of [`tile_of_rows`]. A step is one part of a group of one panel; tiles of later steps are
/// multiplied and stored while the sums of earlier steps are scaled. `I` is a step's number modulo [`N_SUMS`].
struct Steps<'a, const M: usize, const P: usize, const PARTS: usize> {
    simd: Avx512,
    x: I16Tile<'a>,
    panels: [&'a UnpackedPanel; P],
    pending: PendingStore,
}

impl<const M: usize, const P: usize, const PARTS: usize> Steps<'_, M, P, PARTS> {
    /// Multiplies and stores later steps, then scales the sums of `step` and adds them to those of its panel.
    ///
    /// # Safety
    /// Tiles are configured for a part of a group; the tile has the lengths that [`tile_of_rows`] asserts; `I` is
    /// `step % N_SUMS`.
    #[inline(always)]
    unsafe fn scale<const I: usize>(&mut self, step: usize, n_steps: usize, sums: &mut [Floats; M]) {
        if step >= n_steps {
            return;
        }
        // SAFETY: configuration, lengths and `I` are as this function requires; the step exists.
        unsafe {
            self.multiply::<I>(step + SCALED_AFTER + STORED_AFTER, n_steps);
            match I {
                0 => self.store::<1>(step + SCALED_AFTER, n_steps),
                1 => self.store::<2>(step + SCALED_AFTER, n_steps),
                2 => self.store::<3>(step + SCALED_AFTER, n_steps),
                _ => self.store::<0>(step + SCALED_AFTER, n_steps),
            }
            let simd = self.simd;
            let at = step / P;
            let panel = self.panels[I % P];
            let scales = self.x.scales.as_ptr().add(at / PARTS * M);
            let products = &self.pending.0[I % (SCALED_AFTER + 1)];
            let scale = simd.load(panel.scales.as_ptr().add(at).cast());
            for m in 0..M {
                let whole = simd.join_planes(products[m].as_ptr(), products[M + m].as_ptr());
                let product = simd.mul(whole, simd.splat((*scales.add(m)).scale));
                sums[m] = simd.mul_add(product, scale, sums[m]);
            }
            if panel.has_mins {
                let min = simd.load(panel.mins.as_ptr().add(at).cast());
                for m in 0..M {
                    let sum = (*scales.add(m)).sum_of(at % PARTS, PARTS);
                    sums[m] = simd.mul_add(min, simd.splat(sum), sums[m]);
                }
            }
        }
    }

    /// Multiplies the tiles of a step, if it exists. Panels share the tile of activations of a part.
    ///
    /// # Safety
    /// As [`Steps::scale`].
    #[inline(always)]
    unsafe fn multiply<const I: usize>(&self, step: usize, n_steps: usize) {
        macro_rules! load {
            ($planes:tt, $from:ident) => {
                asm!(
                    concat!("tileloadd ", $planes, ", [{planes} + {plane}*1]"),
                    planes = in(reg) $from,
                    plane = in(reg) PLANE_BYTES,
                    out($planes) _,
                    options(nostack),
                )
            };
        }
        macro_rules! multiply {
            ($sums:tt, $planes:tt, $codes:tt, $from:ident) => {
                asm!(
                    concat!("tilezero ", $sums),
                    concat!("tileloadd ", $codes, ", [{codes} + {line}*1]"),
                    concat!("tdpbssd ", $sums, ", ", $planes, ", ", $codes),
                    codes = in(reg) $from,
                    line = in(reg) LINE_BYTES,
                    out($sums) _, out($codes) _,
                    options(nostack),
                )
            };
        }
        if step >= n_steps {
            return;
        }
        let at = step / P;
        let (group, part) = (at / PARTS, at % PARTS);
        let n_inner = GROUP_LEN / PARTS;
        // SAFETY: configuration, lengths and `I` are as this function requires; the step exists.
        unsafe {
            let planes = self.x.groups.as_ptr().add(group * M).cast::<u8>().add(part * n_inner);
            let codes = self.panels[I % P].codes(group, CodeWidth::Byte).add(part * n_inner * PANEL_ROWS);
            match (I, P) {
                (0, _) | (2, 1) => load!("tmm4", planes),
                (2, _) | (1 | 3, 1) => load!("tmm5", planes),
                _ => {}
            }
            match (I, P) {
                (0, _) => multiply!("tmm0", "tmm4", "tmm6", codes),
                (1, 1) => multiply!("tmm1", "tmm5", "tmm7", codes),
                (1, _) => multiply!("tmm1", "tmm4", "tmm7", codes),
                (2, 1) => multiply!("tmm2", "tmm4", "tmm6", codes),
                (2, _) => multiply!("tmm2", "tmm5", "tmm6", codes),
                _ => multiply!("tmm3", "tmm5", "tmm7", codes),
            }
        }
    }

    /// Stores the sums of a step, if it exists.
    ///
    /// # Safety
    /// As [`Steps::scale`].
    #[inline(always)]
    unsafe fn store<const I: usize>(&mut self, step: usize, n_steps: usize) {
        macro_rules! store {
            ($sums:tt, $to:ident) => {
                asm!(
                    concat!("tilestored [{to} + {line}*1], ", $sums),
                    to = in(reg) $to,
                    line = in(reg) LINE_BYTES,
                    options(nostack),
                )
            };
        }
        if step >= n_steps {
            return;
        }
        let to = self.pending.0[I % (SCALED_AFTER + 1)].as_mut_ptr();
        // SAFETY: tiles are configured, as this function requires; `to` has room for a tile.
        unsafe {
            match I {
                0 => store!("tmm0", to),
                1 => store!("tmm1", to),
                2 => store!("tmm2", to),
                _ => store!("tmm3", to),
            }
        }
    }
}
