//! AMX: products of tiles of bytes or of bfloat16, for many rows of activations at a time. Everything else is left to
//! AVX-512.

mod bf16;
#[cfg(test)]
mod emulator;
mod int8;

use std::arch::asm;

pub use self::bf16::{FLOAT_TILE_ROWS, bf16_tile, multiply_floats};
pub use self::int8::{MIN_GEMM_ROWS, TILE_ROWS, int16_tile};
use super::isa::Isa;
use super::layout::PANEL_ROWS;
use super::simd::Avx512;

/// Rows of a tile register.
const ROWS: usize = 16;

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
    row_bytes: usize,
    /// Scales the sums.
    simd: Avx512,
}

impl TileConfig {
    /// A configuration for products over `row_bytes` bytes of a row.
    ///
    /// # Panics
    /// When the processor does not have AMX. (Tests emulate it.)
    pub fn new(row_bytes: usize) -> Self {
        let simd = Avx512::detect().filter(|_| cfg!(test) || Isa::Amx.is_available());
        let simd = simd.unwrap_or_else(|| panic!("this processor does not have AMX"));
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], n_rows: [0; 16] };
        for tile in 0..8 {
            let (of_tile, bytes) = match tile {
                0..4 => (ROWS, 4 * PANEL_ROWS),
                4..6 => (ROWS, row_bytes),
                _ => (row_bytes / 4, 4 * PANEL_ROWS),
            };
            (shapes.n_rows[tile], shapes.row_bytes[tile]) = (of_tile as u8, bytes as u16);
        }
        // SAFETY: the processor has AMX, as checked; the shapes are those of palette 1, whose tiles hold 16
        // rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        Self { row_bytes, simd }
    }

    /// A configuration for products of bfloat16 dwords, if AMX multiplies them.
    pub fn for_floats(isa: Isa, in_bf16: bool) -> Option<Self> {
        (isa == Isa::Amx && in_bf16).then(|| Self::new(LINE_BYTES))
    }

    /// Replaces the configuration `kept` from item to item of a thread's work, if `row_bytes` differs: configuring
    /// takes as long as about ten tile products.
    ///
    /// # Panics
    /// As [`TileConfig::new`].
    pub fn reconfigure(kept: &mut Option<Self>, row_bytes: usize) -> &Self {
        if kept.as_ref().is_some_and(|config| config.row_bytes != row_bytes) {
            // Dropping releases the tiles, so it has to come before the next configuration.
            *kept = None;
        }
        kept.get_or_insert_with(|| Self::new(row_bytes))
    }
}

impl Drop for TileConfig {
    fn drop(&mut self) {
        // SAFETY: the processor has AMX, as `new` has checked.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Products of two-byte activations that one iteration of [`multiply`] stands for: as many as there would be in
/// bfloat16.
pub const PRODUCTS_PER_ITERATION: usize = 4 * ROWS * PANEL_ROWS * LINE_BYTES / 2;

/// Multiplies full tiles over and over, to measure the peak rate.
///
/// # Panics
/// As [`TileConfig::new`].
pub fn multiply(n_iterations: usize) {
    let _config = TileConfig::new(LINE_BYTES);
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
    use std::ops::Range;

    use super::super::matmul::{
        ActivationFn, Projection, RoundedRows, WeightWithBias, linear, with_rounded_rows,
    };
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
    fn products_of_rounded_rows_are_close_to_exact_ones() {
        if !Isa::Avx512.is_available() {
            return;
        }
        if !Isa::Amx.is_available() {
            emulator::install();
        }
        for format in WeightFormat::ALL.into_iter().filter(|format| format.is_quantized()) {
            // One K chunk, and several; one tile register, a part of the second, and more than a tile.
            for (n_rows, n_out, n_in) in [(1, 16, 256), (16, 40, 512), (17, 70, 768), (33, 48, 1280)] {
                let row_bytes = n_in / format.block_len() * format.source_bytes();
                let row = |idx: usize| -> Vec<u8> {
                    let byte = |i: usize| (((i * 31 + idx) * 2_654_435_761) >> 7) as u8 & 0x3B;
                    (0..row_bytes).map(byte).collect()
                };
                let rows: Vec<Vec<u8>> = (0..n_out).map(row).collect();
                let matrix = PackedMatrix::pack(format, n_out, n_in, |idx| &rows[idx]).unwrap();
                let x: Vec<f32> =
                    (0..n_rows * n_in).map(|i| (i * 7919 % 1999) as f32 / 999.5 - 1.0).collect();
                let product = |isa, rounded: Range<usize>| {
                    let weights = [WeightWithBias { matrix: &matrix, bias: None }];
                    let rows = RoundedRows::new(n_rows, std::iter::once(rounded));
                    with_rounded_rows(rows, || {
                        linear(isa, &x, n_in, None, &Projection::Concat(&weights), None)
                    })
                };
                let (found, exact) = (product(Isa::Amx, 0..n_rows), product(Isa::Avx512, 0..0));
                // In double precision, since squares of the smallest scales underflow.
                let norm = |numbers: &mut dyn Iterator<Item = f32>| {
                    numbers.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
                };
                let difference = norm(&mut found.iter().zip(&exact).map(|(a, b)| a - b));
                let error = difference / norm(&mut exact.iter().copied());
                assert!(error > 1e-5 && error < 6e-3, "{format:?} {n_rows} x {n_in} x {n_out}: {error}");
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
