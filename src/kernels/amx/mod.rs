//! AMX: products of tiles of bytes or of bfloat16, for many rows of activations at a time.
//!
//! An activation is two signed bytes here as in the planes of AVX-512, and a weight's code, less that of
//! zero, is one. So a tile's sums are the same whole numbers that the other instruction sets come to;
//! everything else is AVX-512's. Units of two bfloat16 ([`super::units`]) are multiplied as they are.

#[cfg(test)]
mod emulator;

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::isa::Isa;
use super::simd::{Avx512, LANES, Simd};
use super::units::{Factors, TILE_UNITS};
use super::weights::{Expanded, GROUP_LEN, PANEL_ROWS};
use super::wide::Tile;

/// Rows of activations to a tile.
pub const TILE_ROWS: usize = 16;

/// Rows of units that are multiplied at once: two tiles, so that a tile of weights, once read, is used twice.
pub const UNIT_ROWS: usize = 2 * TILE_ROWS;

/// Bytes of a plane of one row's activations of a group; the low plane of a tile's rows follows the high.
const PLANE_BYTES: usize = GROUP_LEN;

/// Whether the processor has AMX for bytes and for bfloat16, and the system lets this process use it.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// Leaf 7: the system has switched on saving of extended states, tiles among them.
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const AMX_INT8: u32 = 1 << 25;
        const TILE_STATES: u64 = 0b11 << 17;
        /// "Arch-specific state components: request a permission", and that for tile data.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;

        if __cpuid_count(0, 0).eax < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
            return false;
        }
        let wanted = AMX_TILE | AMX_INT8 | AMX_BF16;
        let has_amx = __cpuid_count(7, 0).edx & wanted == wanted;
        // SAFETY: the system has switched on the instruction.
        if !has_amx || unsafe { xgetbv() } & TILE_STATES != TILE_STATES {
            return false;
        }
        // SAFETY: asks the system for a permission of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    })
}

#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// What the shapes of the tiles are read from.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

/// Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights, for as long as this lives; another library
/// on the same thread may have tiles of its own.
pub struct Configured {
    n_inner: usize,
}

impl Configured {
    /// For products over `n_inner` elements.
    ///
    /// # Safety
    /// AMX is available.
    pub unsafe fn new(n_inner: usize) -> Self {
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], n_rows: [0; 16] };
        for tile in 0..8 {
            let (n_rows, row_bytes) = match tile {
                0..4 => (TILE_ROWS, 4 * PANEL_ROWS),
                4..6 => (TILE_ROWS, n_inner),
                _ => (n_inner / 4, 4 * PANEL_ROWS),
            };
            (shapes.n_rows[tile], shapes.row_bytes[tile]) = (n_rows as u8, row_bytes as u16);
        }
        // SAFETY: the caller's promise; the shapes are those of palette 1, whose tiles hold 16 rows of 64
        // bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        Self { n_inner }
    }

    /// For products of units, if these are made with AMX.
    pub fn for_units(isa: Isa, in_bf16: bool) -> Option<Self> {
        // SAFETY: an instruction set that was chosen is available.
        (isa == Isa::Amx && in_bf16).then(|| unsafe { Self::new(FULL_LEN) })
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is AMX, as it was configured.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Of each panel the sums of products of a tile's rows with its own: with the high bytes, then with the low.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[[[i32; PANEL_ROWS]; TILE_ROWS]; 2]; 2]);

/// Adds to `sums` the products of a tile's rows with a stretch of one or two panels, group by group as
/// [`super::wide`] does it.
///
/// # Safety
/// AVX-512 and AMX are available; tiles are configured for a part of a group; `x` has the planes of
/// [`TILE_ROWS`] rows for each of its groups, though there may be fewer rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub unsafe fn tile<const P: usize>(
    configured: &Configured,
    n_rows: usize,
    x: Tile,
    panels: [&Expanded; P],
    sums: [&mut [[f32; LANES]]; P],
) {
    let (n_parts, has_mins) = (panels[0].scales_per_group, panels[0].has_mins);
    assert!(configured.n_inner == GROUP_LEN / n_parts && n_rows <= TILE_ROWS);
    assert!(x.factors.len() >= n_rows * x.n_groups && sums.iter().all(|sums| sums.len() == n_rows));
    assert!(x.words.len() >= n_rows * (x.n_groups - 1) + TILE_ROWS);
    let n_steps = x.n_groups * n_parts;
    // The products of a step are on their way while those of the step before are added.
    let mut products = [Sums([[[[0; _]; _]; _]; _]); 2];
    // SAFETY: the caller's promise; the lengths are as asserted.
    unsafe {
        let multiply = |step: usize, products: &mut Sums| {
            let (group, part) = (step / n_parts, step % n_parts);
            let high = x.words.as_ptr().add(group * n_rows).cast::<u8>().add(part * configured.n_inner);
            let codes =
                |p: usize| panels[p].codes[group].as_ptr().add(part * configured.n_inner * PANEL_ROWS);
            let low = high.add(n_rows * PLANE_BYTES);
            if P == 1 {
                products_of_one(high, low, codes(0), products);
            } else {
                products_of_two(high, low, [codes(0), codes(1)], products);
            }
        };
        multiply(0, &mut products[0]);
        for step in 0..n_steps {
            if step + 1 < n_steps {
                multiply(step + 1, &mut products[(step + 1) % 2]);
            }
            let (group, part) = (step / n_parts, step % n_parts);
            let factors = &x.factors[group * n_rows..(group + 1) * n_rows];
            for p in 0..P {
                let [high, low] = &products[step % 2].0[p];
                let scale = Avx512::load(panels[p].scales[step].as_ptr());
                let min = Avx512::load(panels[p].mins[step].as_ptr());
                for (row, factors) in factors.iter().enumerate() {
                    let whole = Avx512::join(high[row].as_ptr(), low[row].as_ptr());
                    let product = Avx512::mul(whole, Avx512::splat(factors.scale));
                    let mut sum = Avx512::load(sums[p][row].as_ptr());
                    sum = Avx512::mul_add(product, scale, sum);
                    if has_mins {
                        sum = Avx512::mul_add(min, Avx512::splat(factors.sum_of(part, n_parts)), sum);
                    }
                    Avx512::store(sum, sums[p][row].as_mut_ptr());
                }
            }
        }
    }
}

/// Writes the sums of a step with one panel.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn products_of_one(high: *const u8, low: *const u8, codes: *const u8, sums: &mut Sums) {
    let [of_high, of_low] = &mut sums.0[0];
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm6, [{codes} + {line}*1]",
            "tileloadd tmm4, [{high} + {plane}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{low} + {plane}*1]",
            "tdpbssd tmm1, tmm5, tmm6",
            "tilestored [{of_high} + {line}*1], tmm0",
            "tilestored [{of_low} + {line}*1], tmm1",
            codes = in(reg) codes,
            high = in(reg) high,
            low = in(reg) low,
            of_high = in(reg) of_high.as_mut_ptr(),
            of_low = in(reg) of_low.as_mut_ptr(),
            plane = in(reg) PLANE_BYTES,
            line = in(reg) 4 * PANEL_ROWS,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}

/// Writes the sums of a step with two panels.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn products_of_two(high: *const u8, low: *const u8, codes: [*const u8; 2], sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm6, [{first} + {line}*1]",
            "tileloadd tmm4, [{high} + {plane}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{low} + {plane}*1]",
            "tdpbssd tmm1, tmm5, tmm6",
            "tileloadd tmm7, [{second} + {line}*1]",
            "tdpbssd tmm2, tmm4, tmm7",
            "tdpbssd tmm3, tmm5, tmm7",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            first = in(reg) codes[0],
            second = in(reg) codes[1],
            high = in(reg) high,
            low = in(reg) low,
            sums = in(reg) &raw mut *sums,
            plane = in(reg) PLANE_BYTES,
            line = in(reg) 4 * PANEL_ROWS,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Sums of products of units, tile by tile: of the first rows with both panels, then of the others.
#[repr(C, align(64))]
struct UnitSums([[[[f32; PANEL_ROWS]; TILE_ROWS]; 2]; 2]);

/// What [`Factors::products`] does.
///
/// # Safety
/// AVX-512 and AMX are available; tiles are configured as [`Configured::for_units`] does it; whole tiles of
/// rows and panels can be read.
pub unsafe fn unit_products<const P: usize>(
    _configured: &Configured,
    x: Factors,
    panels: [*const f32; P],
    mut sums: [&mut [[f32; LANES]]; P],
) {
    assert!(sums.iter().all(|sums| sums.len() >= x.n_rows));
    let n_steps = x.n_units.div_ceil(TILE_UNITS);
    let stride = x.stride * size_of::<f32>();
    let mut products = UnitSums([[[[0.0; _]; _]; _]; _]);
    for start in (0..x.n_rows).step_by(UNIT_ROWS) {
        let n_rows = (x.n_rows - start).min(UNIT_ROWS);
        // SAFETY: the caller's promise. A single panel stands for both.
        unsafe {
            let rows = x.rows.add(start * x.stride);
            let panels = [panels[0], panels[P - 1]];
            if n_rows > TILE_ROWS {
                units_two_by_two(rows, stride, panels, n_steps, &mut products);
            } else {
                units_one_by_two(rows, stride, panels, n_steps, &mut products.0[0]);
            }
        }
        for (p, sums) in sums.iter_mut().enumerate() {
            for (row, sums) in sums[start..start + n_rows].iter_mut().enumerate() {
                *sums = products.0[row / TILE_ROWS][p][row % TILE_ROWS];
            }
        }
    }
}

/// # Safety
/// As [`unit_products`].
#[inline(always)]
unsafe fn units_two_by_two(
    rows: *const f32,
    stride: usize,
    panels: [*const f32; 2],
    n_steps: usize,
    sums: &mut UnitSums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{first} + {line}*1]",
            "tileloadd tmm4, [{rows} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{others} + {stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {rows}, 64",
            "add {others}, 64",
            "add {first}, 1024",
            "add {second}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            rows = inout(reg) rows => _,
            others = inout(reg) rows.cast::<u8>().add(TILE_ROWS * stride) => _,
            first = inout(reg) panels[0] => _,
            second = inout(reg) panels[1] => _,
            n = inout(reg) n_steps => _,
            stride = in(reg) stride,
            line = in(reg) 4 * PANEL_ROWS,
            sums = in(reg) &raw mut *sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`unit_products`].
#[inline(always)]
unsafe fn units_one_by_two(
    rows: *const f32,
    stride: usize,
    panels: [*const f32; 2],
    n_steps: usize,
    sums: &mut [[[f32; PANEL_ROWS]; TILE_ROWS]; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{rows} + {stride}*1]",
            "tileloadd tmm6, [{first} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {rows}, 64",
            "add {first}, 1024",
            "add {second}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            rows = inout(reg) rows => _,
            first = inout(reg) panels[0] => _,
            second = inout(reg) panels[1] => _,
            n = inout(reg) n_steps => _,
            stride = in(reg) stride,
            line = in(reg) 4 * PANEL_ROWS,
            sums = in(reg) sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Multiplications of activations of two bytes that a turn of [`multiply`] takes the time of: as many as
/// there would be in bfloat16.
pub const PRODUCTS_PER_TURN: usize = 4 * TILE_ROWS * PANEL_ROWS * FULL_LEN / 2;

/// Inner elements of a full tile.
const FULL_LEN: usize = 64;

/// Multiplies tiles that are full, over and over.
///
/// # Safety
/// AMX is available.
pub unsafe fn multiply(n_turns: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let _configured = Configured::new(FULL_LEN);
        asm!("tilezero tmm4", "tilezero tmm6", out("tmm4") _, out("tmm6") _, options(nomem, nostack));
        for _ in 0..n_turns {
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
    use super::super::attention::TextAttention;
    use super::super::linear::{Gate, Products, Weighted, linear};
    use super::super::weights::{PackedMatrix, WeightFormat};
    use super::*;

    /// On a processor without AMX its instructions are emulated.
    #[test]
    fn products_are_those_of_avx512_bit_by_bit() {
        use WeightFormat::{Bf16, General6, Q4_0, Q4_1, Q4K, Q5_1, Q6K, Q8_0};

        if !Isa::Avx512.is_available() {
            return;
        }
        if !is_available() {
            emulator::install();
        }
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
        };
        for format in [Q4_0, Q4_1, Q5_1, Q8_0, Q4K, Q6K, General6, Bf16] {
            let matrix = |n_out: usize, n_in: usize, seed: usize| {
                let n_bytes = n_in / format.block_len() * format.source_bytes();
                // Any bytes are codes; small ones are small numbers in half precision, too.
                let bytes: Vec<u8> = (0..n_out * n_bytes)
                    .map(|i| (((i * 31 + seed) * 2_654_435_761) >> 7) as u8 & 0x3B)
                    .collect();
                PackedMatrix::pack(format, n_out, n_in, |idx| &bytes[idx * n_bytes..][..n_bytes]).unwrap()
            };
            for (n_rows, n_out, n_blocks) in [(24, 16, 1), (33, 40, 3), (47, 70, 2), (48, 32, 3)] {
                let n_in = n_blocks * format.block_len().max(32);
                let (first, second) = (matrix(n_out, n_in, 1), matrix(n_out, n_in, 2));
                let [first, second] = [&first, &second].map(|matrix| Weighted { matrix, bias: None });
                let mut x = numbers(n_rows * n_in, 3);
                x[5] = f32::INFINITY;
                let residual = numbers(n_rows * n_out, 4);
                for (products, residual) in [
                    (Products::SideBySide(&[first, second]), None),
                    (Products::Added(first), Some(&residual[..])),
                    (Products::Gated { gate: first, up: second, function: Gate::Silu }, None),
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
    fn products_of_units_are_those_of_avx512() {
        if !Isa::Avx512.has_bf16() {
            return;
        }
        if !is_available() {
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
            let weighted = [Weighted { matrix: &matrix, bias: None }];
            let x = numbers(n_rows * n_in, 3);
            let of = |isa| linear(isa, &x, n_in, None, &Products::SideBySide(&weighted), None);
            assert_close(&of(Isa::Amx), &of(Isa::Avx512), &format!("{n_rows} x {n_in} x {n_out}"));
        }
        for (head_dim, reach) in [(32, None), (20, Some(9)), (64, Some(40))] {
            let lengths = [1, 16, 33, 70];
            let attention = TextAttention {
                n_heads: 2,
                head_dim,
                scale: 0.3,
                reach,
                rotation: None,
                bias: None,
                in_bf16: true,
            };
            let qkv = numbers(120 * 3 * 2 * head_dim, 5);
            let of = |isa| attention.forward(isa, &qkv, &lengths);
            // Weights may round to another neighbour.
            let (found, expected) = (of(Isa::Amx), of(Isa::Avx512));
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= 5e-3, "heads of {head_dim}: {difference}");
        }
    }
}
