//! AMX: products of tiles of bytes or of bfloat16, for many rows of activations at a time.
//!
//! As in the planes of AVX-512, an activation is two signed bytes; a weight's code, minus that of zero, is one.
//! So a tile's sums are the same integers that the other instruction sets compute; everything else is left to
//! AVX-512. Dwords of two bfloat16 ([`FloatTile`]) are multiplied as they are.

#[cfg(test)]
mod emulator;

use std::arch::asm;

use super::isa::Isa;
use super::layout::{
    CodeWidth, FloatTile, GROUP_LEN, I16Tile, K_CHUNK_GROUPS, PANEL_ROWS, TILE_DWORDS, UnpackedPanel,
};
use super::simd::{Avx512, LANES, Simd, with_rows};

/// Rows of a tile register.
const ROWS: usize = 16;

/// Rows of activations of a GEMM tile: a tile register holds both planes of them.
pub const TILE_ROWS: usize = ROWS / 2;

/// Rows of activations from which on unpacking panels for AMX is profitable: with 12 rows it took 0.9 to 1.1
/// times as long as AVX-512 GEMV, with 8 rows 1.0 to 1.4 times (2026-11-26). An even partition then gives each
/// tile at least five rows.
pub const MIN_GEMM_ROWS: usize = 2 * TILE_ROWS;

/// Rows of a float GEMM tile: two tile registers, so that a tile of weights, once loaded, is used twice.
pub const FLOAT_TILE_ROWS: usize = 2 * ROWS;

/// Bytes of a plane of one row's activations of a group; the low plane of a tile's rows follows the high.
const PLANE_BYTES: usize = GROUP_LEN;

/// Bytes of a full row of a tile register.
const LINE_BYTES: usize = 64;

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

/// A configuration of the thread's tile registers, in force until it is dropped: 0 to 3 are sums, 4 and 5
/// activations, 6 and 7 weights. Between two uses another library may configure its own.
pub struct TileConfig {
    n_inner: usize,
    /// Scales the sums.
    simd: Avx512,
}

impl TileConfig {
    /// A configuration for products over `n_inner` elements.
    ///
    /// # Panics
    /// When the processor does not have AMX. (Tests emulate it.)
    pub fn new(n_inner: usize) -> Self {
        let simd = Avx512::detect().filter(|_| cfg!(test) || Isa::Amx.is_available());
        let simd = simd.unwrap_or_else(|| panic!("this processor does not have AMX"));
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], n_rows: [0; 16] };
        for tile in 0..8 {
            let (n_rows, row_bytes) = match tile {
                0..4 => (ROWS, 4 * PANEL_ROWS),
                4..6 => (ROWS, n_inner),
                _ => (n_inner / 4, 4 * PANEL_ROWS),
            };
            (shapes.n_rows[tile], shapes.row_bytes[tile]) = (n_rows as u8, row_bytes as u16);
        }
        // SAFETY: the processor has AMX, as checked; the shapes are those of palette 1, whose tiles hold 16
        // rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        Self { n_inner, simd }
    }

    /// A configuration for products of bfloat16 dwords, if AMX multiplies them.
    pub fn for_floats(isa: Isa, in_bf16: bool) -> Option<Self> {
        (isa == Isa::Amx && in_bf16).then(|| Self::new(FULL_LEN))
    }

    /// Replaces the configuration `kept` from item to item of a thread's work, if `n_inner` differs: configuring
    /// takes as long as about ten tile products.
    ///
    /// # Panics
    /// As [`TileConfig::new`].
    pub fn reconfigure(kept: &mut Option<Self>, n_inner: usize) -> &Self {
        if kept.as_ref().is_some_and(|config| config.n_inner != n_inner) {
            // Dropping releases the tiles, so it has to come before the next configuration.
            *kept = None;
        }
        kept.get_or_insert_with(|| Self::new(n_inner))
    }
}

impl Drop for TileConfig {
    fn drop(&mut self) {
        // SAFETY: the processor has AMX, as `new` has checked.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

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
pub fn tile<const P: usize>(
    config: &TileConfig,
    n_rows: usize,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    let n_parts = panels[0].scales_per_group;
    assert!(config.n_inner == GROUP_LEN / n_parts && panels.iter().all(|p| p.scales_per_group == n_parts));
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

/// [`tile`] with `M` rows, whose sums stay in registers, and panels with `PARTS` scales for each group.
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
    assert!(x.scales.len() >= M * x.n_groups && sums.iter().all(|sums| sums.len() == M));
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

/// [`FloatTile::multiply`] with AMX. Sums are written in whole tiles, past the last row too.
///
/// # Safety
/// Tiles are configured by [`TileConfig::for_floats`]; whole tiles of rows and panels can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub unsafe fn multiply_floats<const P: usize>(
    _config: &TileConfig,
    x: FloatTile,
    panels: [*const f32; P],
    mut sums: [&mut [[f32; LANES]]; P],
) {
    assert!(sums.iter().all(|sums| sums.len() >= x.n_rows.next_multiple_of(ROWS)));
    // A single panel stands for both, and its sums are written twice.
    let panels = [panels[0], panels[P - 1]];
    for start in (0..x.n_rows).step_by(FLOAT_TILE_ROWS) {
        let sums = [0, P - 1].map(|p| sums[p][start..].as_mut_ptr());
        // SAFETY: configuration, rows and panels are as this function requires; sums have room, as asserted.
        unsafe {
            let x = FloatTile { rows: x.rows.add(start * x.stride), ..x };
            if x.n_rows - start > ROWS {
                float_two_by_two(x, panels, sums);
            } else {
                float_one_by_two(x, panels, sums);
            }
        }
    }
}

/// Multiplies two tiles of rows, one after the other, with two panels.
///
/// # Safety
/// As [`multiply_floats`].
#[inline(always)]
unsafe fn float_two_by_two(x: FloatTile, panels: [*const f32; 2], sums: [*mut [f32; LANES]; 2]) {
    let stride = x.stride * size_of::<f32>();
    let rows = x.rows.cast::<u8>();
    // SAFETY: configuration, rows, panels and sums are as this function requires.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack),
        );
        for step in 0..x.n_dwords.div_ceil(TILE_DWORDS) {
            let rows = rows.add(step * LINE_BYTES);
            let panels = panels.map(|panel| panel.cast::<u8>().add(step * ROWS * LINE_BYTES));
            asm!(
                "tileloadd tmm6, [{first} + {line}*1]",
                "tileloadd tmm4, [{rows} + {stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {line}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{others} + {stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                rows = in(reg) rows,
                others = in(reg) rows.add(ROWS * stride),
                first = in(reg) panels[0],
                second = in(reg) panels[1],
                stride = in(reg) stride,
                line = in(reg) LINE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        asm!(
            "tilestored [{of_first} + {line}*1], tmm0",
            "tilestored [{of_second} + {line}*1], tmm1",
            "tilestored [{of_first} + {line}*1 + 1024], tmm2",
            "tilestored [{of_second} + {line}*1 + 1024], tmm3",
            of_first = in(reg) sums[0],
            of_second = in(reg) sums[1],
            line = in(reg) LINE_BYTES,
            options(nostack),
        );
    }
}

/// Multiplies one tile of rows with two panels.
///
/// # Safety
/// As [`multiply_floats`].
#[inline(always)]
unsafe fn float_one_by_two(x: FloatTile, panels: [*const f32; 2], sums: [*mut [f32; LANES]; 2]) {
    let stride = x.stride * size_of::<f32>();
    let rows = x.rows.cast::<u8>();
    // SAFETY: configuration, rows, panels and sums are as this function requires.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            out("tmm0") _, out("tmm1") _,
            options(nomem, nostack),
        );
        for step in 0..x.n_dwords.div_ceil(TILE_DWORDS) {
            let panels = panels.map(|panel| panel.cast::<u8>().add(step * ROWS * LINE_BYTES));
            asm!(
                "tileloadd tmm4, [{rows} + {stride}*1]",
                "tileloadd tmm6, [{first} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {line}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                rows = in(reg) rows.add(step * LINE_BYTES),
                first = in(reg) panels[0],
                second = in(reg) panels[1],
                stride = in(reg) stride,
                line = in(reg) LINE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        asm!(
            "tilestored [{of_first} + {line}*1], tmm0",
            "tilestored [{of_second} + {line}*1], tmm1",
            of_first = in(reg) sums[0],
            of_second = in(reg) sums[1],
            line = in(reg) LINE_BYTES,
            options(nostack),
        );
    }
}

/// Products of two-byte activations that one iteration of [`multiply`] stands for: as many as there would be in
/// bfloat16.
pub const PRODUCTS_PER_ITERATION: usize = 4 * ROWS * PANEL_ROWS * FULL_LEN / 2;

/// Inner elements of a full tile register.
const FULL_LEN: usize = 64;

/// Multiplies full tiles over and over, to measure the peak rate.
///
/// # Panics
/// As [`TileConfig::new`].
pub fn multiply(n_iterations: usize) {
    let _config = TileConfig::new(FULL_LEN);
    // SAFETY: tiles are configured for full products.
    unsafe {
        asm!("tilezero tmm4", "tilezero tmm6", out("tmm4") _, out("tmm6") _, options(nomem, nostack));
        for _ in 0..n_iterations {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm6",
                "tdpbssd tmm3, tmm4, tmm6",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nomem, nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::EncoderAttention;
    use super::super::matmul::{ActivationFn, Projection, WeightWithBias, linear};
    use super::super::weights::{PackedMatrix, WeightFormat};
    use super::*;

    // On a processor without AMX its instructions are emulated.
    #[test]
    fn int8_products_equal_those_of_avx512_bit_by_bit() {
        if !Isa::Avx512.is_available() {
            return;
        }
        if !Isa::Amx.is_available() {
            emulator::install();
        }
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
        };
        let quantized = WeightFormat::ALL.into_iter().filter(|format| format.is_quantized());
        for format in quantized.chain([WeightFormat::Bf16]) {
            let matrix = |n_out: usize, n_in: usize, seed: usize| {
                let n_bytes = n_in / format.block_len() * format.source_bytes();
                // Any bytes are codes; small ones are small half-precision numbers, too.
                let bytes: Vec<u8> = (0..n_out * n_bytes)
                    .map(|i| (((i * 31 + seed) * 2_654_435_761) >> 7) as u8 & 0x3B)
                    .collect();
                PackedMatrix::pack(format, n_out, n_in, |idx| &bytes[idx * n_bytes..][..n_bytes]).unwrap()
            };
            for (n_rows, n_out, n_blocks) in [(16, 40, 2), (17, 70, 1), (33, 40, 3), (47, 16, 2), (48, 32, 3)]
            {
                let n_in = n_blocks * format.block_len().max(32);
                let (first, second) = (matrix(n_out, n_in, 1), matrix(n_out, n_in, 2));
                let [first, second] = [&first, &second].map(|matrix| WeightWithBias { matrix, bias: None });
                let mut x = numbers(n_rows * n_in, 3);
                x[5] = f32::INFINITY;
                let residual = numbers(n_rows * n_out, 4);
                for (products, residual) in [
                    (Projection::Concat(&[first, second]), None),
                    (Projection::Residual(first.into()), Some(&residual[..])),
                    (Projection::Gated { gate: first, up: second, function: ActivationFn::Silu }, None),
                ] {
                    let of = |isa| -> Vec<u32> {
                        let y = linear(isa, &x, n_in, None, &products, residual);
                        y.into_iter().map(f32::to_bits).collect()
                    };
                    assert!(of(Isa::Amx) == of(Isa::Avx512), "{format:?} {n_rows} x {n_in} x {n_out}");
                }
            }
        }
    }

    #[test]
    fn float_products_are_close_to_those_of_avx512() {
        if !Isa::Avx512.has_bf16() {
            return;
        }
        if !Isa::Amx.is_available() {
            emulator::install();
        }
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
        };
        let assert_close = |found: &[f32], expected: &[f32], what: &str| {
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                    "{what}: {found} {expected}"
                );
            }
        };
        for (n_rows, n_out, n_in) in [(1, 16, 32), (16, 40, 64), (17, 70, 96), (33, 32, 160), (70, 50, 32)] {
            let rows: Vec<u8> = numbers(n_out * n_in, 1).into_iter().flat_map(f32::to_le_bytes).collect();
            let row = |idx: usize| &rows[4 * idx * n_in..4 * (idx + 1) * n_in];
            let matrix = PackedMatrix::pack(WeightFormat::Bf16Pairs, n_out, n_in, row).unwrap();
            let weighted = [WeightWithBias { matrix: &matrix, bias: None }];
            let x = numbers(n_rows * n_in, 3);
            let of = |isa| linear(isa, &x, n_in, None, &Projection::Concat(&weighted), None);
            assert_close(&of(Isa::Amx), &of(Isa::Avx512), &format!("{n_rows} x {n_in} x {n_out}"));
        }
        for (head_dim, window) in [(32, None), (20, Some(9)), (64, Some(40))] {
            let lengths = [1, 16, 33, 70];
            let attention = EncoderAttention {
                n_heads: 2,
                head_dim,
                scale: 0.3,
                window,
                rope: None,
                bias: None,
                in_bf16: true,
            };
            let qkv = numbers(120 * 3 * 2 * head_dim, 5);
            let of = |isa| attention.forward(isa, &qkv, &lengths);
            // A weight of attention may round to another neighbor.
            let (found, expected) = (of(Isa::Amx), of(Isa::Avx512));
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= 5e-3, "heads of {head_dim}: {difference}");
        }
    }
}
