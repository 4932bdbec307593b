//! GEMM with 4-bit weights and activations that are rotated and rounded to 8 bits: half of the multiplications of
//! [16-bit activations](super::gemm_int16).
//!
//! An outlier among the activations of a group would leave few bits to the others, so sixteen neighbors at a time are
//! [rotated](Simd::rotate) first, and codes are while they are unpacked: rotated 4-bit codes fit 8 bits and lose nothing.

use std::cell::RefCell;
use std::thread::LocalKey;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{
    CodeWidth, GROUP_LEN, I8Group, I8Scale, I8Tile, K_CHUNK_GROUPS, PANEL_ROWS, UnpackedPanel,
};
use super::super::simd::{LANES, QUAD_LEN, ROTATION_LEN, Simd, with_rows};
use super::gemm_quantized::{ActivationForm, GROUPS_AHEAD, TiledActivations, simd_rows};
use super::quantize::quantization_scale;

/// The form of activations that are rotated and rounded to 8 bits.
#[derive(Debug)]
pub struct RotatedInt8;

thread_local! {
    static SPARE: RefCell<TiledActivations<RotatedInt8>> = RefCell::default();
}

impl ActivationForm for RotatedInt8 {
    type Group = I8Group;
    type Scale = I8Scale;
    const BLOCK_ROWS: usize = 256;
    const ZEROS: I8Group = I8Group([0; GROUP_LEN]);

    fn code_width(_: Isa) -> CodeWidth {
        CodeWidth::RotatedByte
    }

    fn tile_rows(isa: Isa) -> usize {
        simd_rows(isa).0
    }

    fn spare() -> &'static LocalKey<RefCell<TiledActivations<Self>>> {
        &SPARE
    }

    fn amx_row_bytes(_: Isa, _: usize) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn round<S: Simd>(
        simd: S,
        _: Isa,
        [first, second]: [S::Floats; 2],
        row: usize,
        of_tile: &mut [I8Group],
    ) -> I8Scale {
        let sum = simd.reduce_add(simd.add(first, second));
        let halves = [simd.rotate(first), simd.rotate(second)];
        let (scale, inverse) = quantization_scale(simd, halves.into_iter(), f32::from(i8::MAX));
        let Some(inverse) = inverse else {
            of_tile[row] = Self::ZEROS;
            return I8Scale { scale, start: 0, sum };
        };
        let inverse = simd.splat(inverse);
        let integers = [simd.round(simd.mul(halves[0], inverse)), simd.round(simd.mul(halves[1], inverse))];
        let bytes = of_tile[row].0.as_mut_ptr();
        // SAFETY: each half has room for sixteen bytes.
        unsafe {
            simd.store_i8(integers[0], bytes);
            simd.store_i8(integers[1], bytes.add(LANES));
        }
        let total = simd.reduce_add(simd.add(integers[0], integers[1]));
        I8Scale { scale: scale / ROTATION_LEN as f32, start: -128 * total as i32, sum }
    }

    #[inline(always)]
    fn multiply_tile<S: Simd>(
        simd: S,
        _: Option<&amx::TileConfig>,
        n_rows: usize,
        x: I8Tile,
        panels: &[UnpackedPanel],
        [sums, others]: [&mut [[f32; LANES]]; 2],
    ) {
        match panels {
            [a, b] => tile_of_rows::<S, 2>(simd, n_rows, x, [a, b], [sums, others]),
            _ => tile_of_rows::<S, 1>(simd, n_rows, x, [&panels[0]], [sums]),
        }
    }
}

#[inline(always)]
fn tile_of_rows<S: Simd, const P: usize>(
    simd: S,
    n_rows: usize,
    x: I8Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    with_rows!(n_rows, M in [1, 2, 3, 4, 5, 6] => tile::<S, M, P>(simd, x, panels, sums));
}

/// Adds the products of `M` rows of activations with `P` panels to their sums.
#[inline(always)]
fn tile<S: Simd, const M: usize, const P: usize>(
    simd: S,
    x: I8Tile,
    panels: [&UnpackedPanel; P],
    all_sums: [&mut [[f32; LANES]]; P],
) {
    assert!(x.groups.len() >= M * x.n_groups && x.scales.len() >= M * x.n_groups);
    assert!(all_sums.iter().all(|sums| sums.len() >= M) && x.n_groups <= K_CHUNK_GROUPS);
    let (groups, scales) = (x.groups.as_ptr(), x.scales.as_ptr());
    let has_mins = panels[0].has_mins;
    // All quads, but a number that the compiler does not know: it would unroll the loop and keep the activations of a group
    // on the stack.
    let n_quads = GROUP_LEN / QUAD_LEN / panels[0].scales_per_group;
    // SAFETY: everything lies within the lengths asserted above, and panels hold `K_CHUNK_GROUPS` groups.
    unsafe {
        let mut sums = [[simd.splat(0.0); M]; P];
        for p in 0..P {
            for m in 0..M {
                sums[p][m] = simd.load(all_sums[p][m].as_ptr());
            }
        }
        for group in 0..x.n_groups {
            let (groups, scales) = (groups.add(group * M), scales.add(group * M));
            for m in 0..M {
                simd.prefetch_l1(groups.wrapping_add(GROUPS_AHEAD * M + m).cast());
            }
            simd.prefetch_l1(scales.wrapping_add(GROUPS_AHEAD * M).cast());
            simd.prefetch_l1(scales.wrapping_add(GROUPS_AHEAD * M + 4).cast());
            let mut products = [[simd.splat_i16_sums(0); M]; P];
            for m in 0..M {
                let start = simd.splat_i16_sums((*scales.add(m)).start);
                for p in 0..P {
                    products[p][m] = start;
                }
            }
            for quad in 0..n_quads {
                let offset = quad * QUAD_LEN * PANEL_ROWS;
                let mut weights =
                    [simd.load_codes_8(panels[0].codes(group, CodeWidth::RotatedByte).add(offset)); P];
                for p in 1..P {
                    weights[p] =
                        simd.load_codes_8(panels[p].codes(group, CodeWidth::RotatedByte).add(offset));
                }
                for m in 0..M {
                    let activations = (*groups.add(m)).0.as_ptr().add(quad * QUAD_LEN);
                    for p in 0..P {
                        products[p][m] = simd.dot_bytes(products[p][m], weights[p], activations);
                    }
                }
            }
            for p in 0..P {
                let scale = simd.load(panels[p].scales[group].as_ptr());
                for m in 0..M {
                    let product = simd.i16_sums_to_floats(products[p][m]);
                    let product = simd.mul(product, simd.splat((*scales.add(m)).scale));
                    sums[p][m] = simd.mul_add(product, scale, sums[p][m]);
                }
                if has_mins {
                    let min = simd.load(panels[p].mins[group].as_ptr());
                    for m in 0..M {
                        sums[p][m] = simd.mul_add(min, simd.splat((*scales.add(m)).sum), sums[p][m]);
                    }
                }
            }
        }
        for p in 0..P {
            for m in 0..M {
                simd.store(sums[p][m], all_sums[p][m].as_mut_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::linear::linear;
    use super::super::projection::{Projection, WeightWithBias};
    use super::super::rounded_rows::{RoundedRows, with_rounded_rows};
    use super::*;
    use crate::kernels::weights::{PackedMatrix, WeightFormat};

    const N_IN: usize = 768;
    const N_OUT: usize = 37;
    const N_ROWS: usize = 21;

    /// Codes of all kinds, with factors in half precision that are neither too large nor too small.
    fn matrix(format: WeightFormat, seed: usize) -> PackedMatrix {
        let row_bytes = N_IN / format.block_len() * format.source_bytes();
        let rows: Vec<Vec<u8>> = (0..N_OUT)
            .map(|row| {
                let mut bytes: Vec<u8> =
                    (0..row_bytes).map(|i| (((i + row + seed) * 2_654_435_761) >> 11) as u8).collect();
                for block in bytes.chunks_exact_mut(format.source_bytes()) {
                    let factors = if format == WeightFormat::Q6K { 208..210 } else { 0..2 };
                    block[factors].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
                    if matches!(format, WeightFormat::Q4_1 | WeightFormat::Q4K) {
                        block[2..4].copy_from_slice(&f16::from_f32(0.07).to_le_bytes());
                    }
                }
                bytes
            })
            .collect();
        PackedMatrix::pack(format, N_OUT, N_IN, |row| &rows[row]).unwrap()
    }

    /// Activations, some of them outliers.
    fn activations() -> Vec<f32> {
        let mut x: Vec<f32> = (0..N_ROWS * N_IN).map(|i| (i * 7919 % 1999) as f32 / 999.5 - 1.0).collect();
        x.iter_mut().step_by(N_IN + 5).for_each(|outlier| *outlier *= 40.0);
        x
    }

    /// The instruction sets that multiply bytes; AMX has another form.
    fn isas() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|&isa| isa.is_available() && isa != Isa::Amx)
    }

    fn multiply(isa: Isa, x: &[f32], matrices: &[&PackedMatrix], rounded: &[(usize, usize)]) -> Vec<f32> {
        let weights: Vec<_> = matrices.iter().map(|matrix| WeightWithBias { matrix, bias: None }).collect();
        let rows = RoundedRows::new(x.len() / N_IN, rounded.iter().map(|&(start, end)| start..end));
        with_rounded_rows(rows, || linear(isa, x, N_IN, None, &Projection::Concat(&weights), None))
    }

    /// The error of `found`, relative to `expected`, in the Euclidean norm.
    fn relative_error(expected: &[f32], found: &[f32]) -> f32 {
        let error: f32 = expected.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
        (error / expected.iter().map(|a| a.powi(2)).sum::<f32>()).sqrt()
    }

    #[test]
    fn rounded_products_are_close_to_exact_ones_on_every_instruction_set() {
        let x = activations();
        for format in [WeightFormat::Q4_0, WeightFormat::Q4_1, WeightFormat::Q4K] {
            let matrix = matrix(format, 1);
            let exact = multiply(Isa::Scalar, &x, &[&matrix], &[]);
            let rounded = multiply(Isa::Scalar, &x, &[&matrix], &[(0, N_ROWS)]);
            let error = relative_error(&exact, &rounded);
            assert!(error > 1e-4 && error < 8e-3, "{format:?}: {error}");
            for isa in isas() {
                let found = multiply(isa, &x, &[&matrix], &[(0, N_ROWS)]);
                let error = relative_error(&rounded, &found);
                assert!(error < 1e-6, "{isa}, {format:?}: {error}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let x = activations();
        let (rounded, other) = (matrix(WeightFormat::Q4_1, 1), matrix(WeightFormat::Q6K, 2));
        let matrices = [&rounded, &other];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let together = multiply(isa, &x, &matrices, &[(1, 5), (9, 20)]);
            for row in 0..N_ROWS {
                let is_rounded = (1..5).contains(&row) || (9..20).contains(&row);
                let alone = if is_rounded { &[(0, 1)][..] } else { &[] };
                let alone = multiply(isa, &x[row * N_IN..][..N_IN], &matrices, alone);
                assert!(together[row * 2 * N_OUT..][..2 * N_OUT] == alone, "{isa}, row {row}");
            }
        }
    }

    #[test]
    fn six_bit_codes_take_exact_activations() {
        let x = activations();
        let matrix = matrix(WeightFormat::Q6K, 3);
        for isa in isas() {
            assert!(
                multiply(isa, &x, &[&matrix], &[]) == multiply(isa, &x, &[&matrix], &[(0, N_ROWS)]),
                "{isa}"
            );
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_hidden() {
        let mut x = activations();
        x[3 * N_IN + 7] = f32::INFINITY;
        let matrix = matrix(WeightFormat::Q4_0, 1);
        let y = multiply(Isa::current(), &x, &[&matrix], &[(0, N_ROWS)]);
        for (row, y) in y.chunks_exact(N_OUT).enumerate() {
            assert_eq!(y.iter().all(|y| y.is_finite()), row != 3, "row {row}");
        }
    }
}
