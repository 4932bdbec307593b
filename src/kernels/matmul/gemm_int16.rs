//! GEMM with quantized weights and 16-bit activations, at the precision of GEMV.
//!
//! The integers are those of [GEMV](super::gemv) and are rounded to float32 at the same places, so the results are the same
//! bit by bit. With AMX a tile is larger, and codes and activations are bytes; the rest is the same.

use std::cell::RefCell;
use std::thread::LocalKey;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{
    CodeWidth, GROUP_LEN, GroupScale, I16Group, I16Tile, K_CHUNK_GROUPS, UnpackedPanel,
};
use super::super::simd::{ACTIVATION_MAX, LANES, Simd, with_rows};
use super::gemm_quantized::{ActivationForm, GROUPS_AHEAD, TiledActivations, simd_rows};
use super::quantize::quantization_scale;

/// The form of 16-bit activations.
#[derive(Debug)]
pub struct Int16;

/// Quantized rows of 16-bit activations.
pub type Int16Activations = TiledActivations<Int16>;

thread_local! {
    static SPARE: RefCell<Int16Activations> = RefCell::default();
}

impl ActivationForm for Int16 {
    type Group = I16Group;
    type Scale = GroupScale;
    const BLOCK_ROWS: usize = 256;
    const ZEROS: I16Group = I16Group([0; GROUP_LEN]);

    /// AMX multiplies bytes.
    fn code_width(isa: Isa) -> CodeWidth {
        if isa == Isa::Amx { CodeWidth::Byte } else { CodeWidth::Word }
    }

    fn tile_rows(isa: Isa) -> usize {
        tile_rows(isa).0
    }

    fn spare() -> &'static LocalKey<RefCell<Int16Activations>> {
        &SPARE
    }

    fn amx_row_bytes(isa: Isa, scale_len: usize) -> Option<usize> {
        (isa == Isa::Amx).then_some(scale_len)
    }

    #[inline(always)]
    fn round<S: Simd>(
        simd: S,
        isa: Isa,
        halves: [S::Floats; 2],
        row: usize,
        of_tile: &mut [I16Group],
    ) -> GroupScale {
        let (scale, inverse) = quantization_scale(simd, halves.into_iter(), ACTIVATION_MAX);
        // No closures: the compiler would not inline vector operations into them.
        let scaled = if let Some(inverse) = inverse {
            let inverse = simd.splat(inverse);
            [simd.mul(halves[0], inverse), simd.mul(halves[1], inverse)]
        } else {
            [simd.splat(0.0); 2]
        };
        let sums = match Self::code_width(isa) {
            CodeWidth::Byte => store_bytes(simd, scaled, row, of_tile),
            _ => store_words(simd, scaled, &mut of_tile[row]),
        };
        if inverse.is_none() {
            return GroupScale { scale, ..GroupScale::default() };
        }
        GroupScale {
            scale,
            sum: (sums[0] + sums[1]) as f32 * scale,
            half_sums: sums.map(|sum| sum as f32 * scale),
        }
    }

    #[inline(always)]
    fn multiply_tile<S: Simd>(
        simd: S,
        tile_config: Option<&amx::TileConfig>,
        n_rows: usize,
        x: I16Tile,
        panels: &[UnpackedPanel],
        [sums, others]: [&mut [[f32; LANES]]; 2],
    ) {
        match (tile_config, panels) {
            (Some(config), [a, b]) => amx::int16_tile(config, n_rows, x, [a, b], [sums, others]),
            (Some(config), _) => amx::int16_tile(config, n_rows, x, [&panels[0]], [sums]),
            (None, [a, b]) => tile_of_rows::<S, 2>(simd, n_rows, x, [a, b], [sums, others]),
            (None, _) => tile_of_rows::<S, 1>(simd, n_rows, x, [&panels[0]], [sums]),
        }
    }
}

/// The two planes of bytes of a tile's rows of a group.
fn plane_bytes(tile: &mut [I16Group]) -> &mut [i8] {
    // SAFETY: a 16-bit integer is two bytes, any bytes are valid integers, and the slice is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(tile.as_mut_ptr().cast(), size_of_val(tile)) }
}

/// Rows of a tile, and rows from which on unpacking panels is profitable.
fn tile_rows(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Amx => (amx::TILE_ROWS, amx::MIN_GEMM_ROWS),
        _ => simd_rows(isa),
    }
}

/// Whether this GEMM is faster than GEMV for `n_rows` rows.
pub fn is_profitable(isa: Isa, n_rows: usize) -> bool {
    n_rows >= tile_rows(isa).1
}

/// Rounds 32 numbers to 16-bit integers; returns the sum of each half.
#[inline(always)]
fn store_words<S: Simd>(simd: S, [first, second]: [S::Floats; 2], to: &mut I16Group) -> [i32; 2] {
    let (of_first, of_second) = to.0.split_at_mut(LANES);
    // SAFETY: each half has room for sixteen integers.
    unsafe {
        [simd.quantize_i16(first, of_first.as_mut_ptr()), simd.quantize_i16(second, of_second.as_mut_ptr())]
    }
}

/// Rounds 32 numbers to integers and stores their two bytes in the planes of a tile; returns the sum of each
/// half.
#[inline(always)]
fn store_bytes<S: Simd>(simd: S, halves: [S::Floats; 2], row: usize, tile: &mut [I16Group]) -> [i32; 2] {
    let n_bytes = tile.len() * GROUP_LEN;
    let (high, low) = plane_bytes(tile).split_at_mut(n_bytes);
    let place = row * GROUP_LEN..(row + 1) * GROUP_LEN;
    let (high, low) = (&mut high[place.clone()], &mut low[place]);
    let mut sums = [0; 2];
    for (idx, (half, sum)) in halves.into_iter().zip(&mut sums).enumerate() {
        let (high, low) = (&mut high[idx * LANES..], &mut low[idx * LANES..]);
        // SAFETY: the slices have room for the sixteen bytes of a half.
        *sum = unsafe { simd.quantize_i8_planes(half, high.as_mut_ptr(), low.as_mut_ptr()) };
    }
    sums
}

#[inline(always)]
fn tile_of_rows<S: Simd, const P: usize>(
    simd: S,
    m: usize,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    with_rows!(m, M in [1, 2, 3, 4, 5, 6] => tile::<S, M, P>(simd, x, panels, sums));
}

/// Adds the products of `M` rows of activations with `P` panels to their sums.
#[inline(always)]
fn tile<S: Simd, const M: usize, const P: usize>(
    simd: S,
    x: I16Tile,
    panels: [&UnpackedPanel; P],
    all_sums: [&mut [[f32; LANES]]; P],
) {
    assert!(x.groups.len() >= M * x.n_groups && x.scales.len() >= M * x.n_groups);
    assert!(all_sums.iter().all(|sums| sums.len() >= M) && x.n_groups <= K_CHUNK_GROUPS);
    let (groups, scales) = (x.groups.as_ptr(), x.scales.as_ptr());
    let (n_parts, has_mins) = (panels[0].scales_per_group, panels[0].has_mins);
    let n_pairs = GROUP_LEN / 2 / n_parts;
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
            for part in 0..n_parts {
                let mut products = [[simd.splat_i16_sums(0); M]; P];
                for pair in part * n_pairs..(part + 1) * n_pairs {
                    let of_panel = |p: usize| {
                        panels[p].codes(group, CodeWidth::Word).cast::<i16>().add(pair * 2 * LANES)
                    };
                    let mut weights = [simd.load_i16_pairs(of_panel(0)); P];
                    for p in 1..P {
                        weights[p] = simd.load_i16_pairs(of_panel(p));
                    }
                    for m in 0..M {
                        let activations = groups.add(m).cast::<i16>().add(2 * pair);
                        for p in 0..P {
                            products[p][m] = simd.dot_i16_pairs(products[p][m], weights[p], activations);
                        }
                    }
                }
                for p in 0..P {
                    let at = group * n_parts + part;
                    let scale = simd.load(panels[p].scales[at].as_ptr());
                    for m in 0..M {
                        let product = simd
                            .mul(simd.i16_sums_to_floats(products[p][m]), simd.splat((*scales.add(m)).scale));
                        sums[p][m] = simd.mul_add(product, scale, sums[p][m]);
                    }
                    if has_mins {
                        let min = simd.load(panels[p].mins[at].as_ptr());
                        for m in 0..M {
                            let sum = (*scales.add(m)).sum_of(part, n_parts);
                            sums[p][m] = simd.mul_add(min, simd.splat(sum), sums[p][m]);
                        }
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
