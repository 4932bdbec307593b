//! A stand-in for AMX on processors and systems that never have it.

use super::isa::Isa;
use super::layout::{Bf16Tile, FloatTile, I16Tile, UnpackedPanel};
use super::simd::LANES;

/// Rows of activations of a GEMM tile.
pub const TILE_ROWS: usize = 8;
/// Rows of activations from which on unpacking panels is profitable.
pub const MIN_GEMM_ROWS: usize = usize::MAX;
/// Rows of a float GEMM tile.
pub const FLOAT_TILE_ROWS: usize = 0;
/// Products that one iteration of [`multiply`] stands for.
pub const PRODUCTS_PER_ITERATION: usize = 1;

/// The configuration of tile registers; no value of it can exist.
pub enum TileConfig {}

impl TileConfig {
    /// No configuration: AMX multiplies nothing here.
    pub fn for_floats(_isa: Isa, _in_bf16: bool) -> Option<Self> {
        None
    }

    /// Never called, since AMX is never available.
    pub fn reconfigure(_kept: &mut Option<Self>, _row_bytes: usize) -> &Self {
        unreachable!("AMX is never available here")
    }
}

/// Never called, since there is no configuration.
pub fn int16_tile<const P: usize>(
    config: &TileConfig,
    _n_rows: usize,
    _x: I16Tile,
    _panels: [&UnpackedPanel; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *config {}
}

/// Never called, since there is no configuration.
pub fn bf16_tile<const P: usize>(
    config: &TileConfig,
    _n_rows: usize,
    _x: Bf16Tile,
    _panels: [&UnpackedPanel; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *config {}
}

/// Never called, since there is no configuration.
///
/// # Safety
/// None is needed; the function with AMX has requirements.
pub unsafe fn multiply_floats<const P: usize>(
    config: &TileConfig,
    _x: FloatTile,
    _panels: [*const f32; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *config {}
}

/// Never called, since AMX is never available.
pub fn multiply(_n_iterations: usize) {
    unreachable!("AMX is never available here")
}
