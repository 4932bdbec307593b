//! Products of tiles of bfloat16, two in a dword.

use std::arch::asm;

use super::super::layout::{
    Bf16Group, Bf16Tile, CodeWidth, FloatTile, K_CHUNK_GROUPS, TILE_DWORDS, UnpackedPanel,
};
use super::super::simd::LANES;
use super::{LINE_BYTES, ROWS, TileConfig};

/// Rows of a float GEMM tile: two tile registers, so that a tile of weights, once loaded, is used twice.
pub const FLOAT_TILE_ROWS: usize = 2 * ROWS;

/// [`FloatTile::multiply`] with AMX. Sums are written in whole tiles, past the last row too.
///
/// # Safety
/// Tiles are configured by [`TileConfig::for_floats`]; whole tiles of rows and panels can be read.
pub unsafe fn multiply_floats<const P: usize>(
    _config: &TileConfig,
    x: FloatTile,
    panels: [*const f32; P],
    mut sums: [&mut [[f32; LANES]]; P],
) {
    assert!(sums.iter().all(|sums| sums.len() >= x.n_rows.next_multiple_of(ROWS)));
    // A single panel stands for both, and its sums are written twice.
    let panels = [panels[0].cast(), panels[P - 1].cast()];
    let row_bytes = x.stride * size_of::<f32>();
    for start in (0..x.n_rows).step_by(FLOAT_TILE_ROWS) {
        let products = TileProducts {
            rows: x.rows.cast::<u8>().wrapping_add(start * row_bytes),
            row_bytes,
            step_bytes: LINE_BYTES,
            panels,
            n_steps: x.n_dwords.div_ceil(TILE_DWORDS),
            sums: [0, P - 1].map(|p| sums[p][start..].as_mut_ptr()),
        };
        // SAFETY: configuration, rows and panels are as this function requires; sums have room, as asserted.
        unsafe {
            if x.n_rows - start > ROWS {
                products.two_by_two::<false>();
            } else {
                products.one_by_two::<false>();
            }
        }
    }
}

/// Adds the products of a tile's rows with a K chunk of one or two panels to `sums`, of which there are
/// [`FLOAT_TILE_ROWS`].
///
/// # Panics
/// When the tiles are configured for other products, or a length does not match: `x` has the groups of whole tile
/// registers, though the tile may have fewer rows.
pub fn bf16_tile<const P: usize>(
    config: &TileConfig,
    n_rows: usize,
    x: Bf16Tile,
    panels: [&UnpackedPanel; P],
    mut sums: [&mut [[f32; LANES]]; P],
) {
    assert!(config.row_bytes == LINE_BYTES && (1..=FLOAT_TILE_ROWS).contains(&n_rows));
    assert!((1..=K_CHUNK_GROUPS).contains(&x.n_groups));
    assert!(x.groups.len() >= n_rows * (x.n_groups - 1) + n_rows.next_multiple_of(ROWS));
    assert!(sums.iter().all(|sums| sums.len() == FLOAT_TILE_ROWS));
    let products = TileProducts {
        rows: x.groups.as_ptr().cast(),
        row_bytes: size_of::<Bf16Group>(),
        step_bytes: n_rows * size_of::<Bf16Group>(),
        panels: [0, P - 1].map(|p| panels[p].codes(0, CodeWidth::Bf16)),
        n_steps: x.n_groups,
        sums: [0, P - 1].map(|p| sums[p].as_mut_ptr()),
    };
    // SAFETY: a configuration shows that the processor has AMX; configuration and lengths are as asserted.
    unsafe {
        if n_rows > ROWS {
            products.two_by_two::<true>();
        } else {
            products.one_by_two::<true>();
        }
    }
}

/// The operands of the products of rows of activations with two panels, in steps of one tile each.
struct TileProducts {
    /// The first row, and the bytes from one row and from one step to the next.
    rows: *const u8,
    row_bytes: usize,
    step_bytes: usize,
    /// Tiles of weights, step by step.
    panels: [*const u8; 2],
    n_steps: usize,
    /// The sums of each panel.
    sums: [*mut [f32; LANES]; 2],
}

impl TileProducts {
    /// Multiplies two tiles of rows, one after the other, with two panels. With `ADD`, products are added to the sums.
    ///
    /// # Safety
    /// Tiles are configured for rows of [`LINE_BYTES`]; whole tiles of rows and panels can be read, and of sums written.
    #[inline(always)]
    unsafe fn two_by_two<const ADD: bool>(&self) {
        // SAFETY: configuration, rows, panels and sums are as this function requires.
        unsafe {
            if ADD {
                asm!(
                    "tileloadd tmm0, [{of_first} + {line}*1]",
                    "tileloadd tmm1, [{of_second} + {line}*1]",
                    "tileloadd tmm2, [{of_first} + {line}*1 + 1024]",
                    "tileloadd tmm3, [{of_second} + {line}*1 + 1024]",
                    of_first = in(reg) self.sums[0],
                    of_second = in(reg) self.sums[1],
                    line = in(reg) LINE_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack),
                );
            }
            for step in 0..self.n_steps {
                let rows = self.rows.add(step * self.step_bytes);
                let panels = self.panels.map(|panel| panel.add(step * ROWS * LINE_BYTES));
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
                    others = in(reg) rows.wrapping_add(ROWS * self.row_bytes),
                    first = in(reg) panels[0],
                    second = in(reg) panels[1],
                    stride = in(reg) self.row_bytes,
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
                of_first = in(reg) self.sums[0],
                of_second = in(reg) self.sums[1],
                line = in(reg) LINE_BYTES,
                options(nostack),
            );
        }
    }

    /// Multiplies one tile of rows with two panels. With `ADD`, products are added to the sums.
    ///
    /// # Safety
    /// As [`TileProducts::two_by_two`].
    #[inline(always)]
    unsafe fn one_by_two<const ADD: bool>(&self) {
        // SAFETY: configuration, rows, panels and sums are as this function requires.
        unsafe {
            if ADD {
                asm!(
                    "tileloadd tmm0, [{of_first} + {line}*1]",
                    "tileloadd tmm1, [{of_second} + {line}*1]",
                    of_first = in(reg) self.sums[0],
                    of_second = in(reg) self.sums[1],
                    line = in(reg) LINE_BYTES,
                    out("tmm0") _, out("tmm1") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    out("tmm0") _, out("tmm1") _,
                    options(nomem, nostack),
                );
            }
            for step in 0..self.n_steps {
                let panels = self.panels.map(|panel| panel.add(step * ROWS * LINE_BYTES));
                asm!(
                    "tileloadd tmm4, [{rows} + {stride}*1]",
                    "tileloadd tmm6, [{first} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{second} + {line}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    rows = in(reg) self.rows.add(step * self.step_bytes),
                    first = in(reg) panels[0],
                    second = in(reg) panels[1],
                    stride = in(reg) self.row_bytes,
                    line = in(reg) LINE_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
            asm!(
                "tilestored [{of_first} + {line}*1], tmm0",
                "tilestored [{of_second} + {line}*1], tmm1",
                of_first = in(reg) self.sums[0],
                of_second = in(reg) self.sums[1],
                line = in(reg) LINE_BYTES,
                options(nostack),
            );
        }
    }
}
