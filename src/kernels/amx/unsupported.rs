//! What stands for AMX where there never is any: other processors and systems.

use super::isa::Isa;
use super::layout::{FloatTile, I16Tile, UnpackedPanel};
use super::simd::LANES;

pub const TILE_ROWS: usize = 8;
pub const MANY_ROWS: usize = usize::MAX;
pub const FLOAT_TILE_ROWS: usize = 0;
pub const PRODUCTS_PER_ITERATION: usize = 1;

/// There can be none.
pub enum TileConfig {}

impl TileConfig {
    pub fn for_floats(_isa: Isa, _in_bf16: bool) -> Option<Self> {
        None
    }

    pub fn reconfigure(_kept: &mut Option<Self>, _n_inner: usize) -> &Self {
        unreachable!("AMX is never available here")
    }
}

/// # Safety
/// As where there is AMX.
pub unsafe fn tile<const P: usize>(
    configured: &TileConfig,
    _n_rows: usize,
    _x: I16Tile,
    _panels: [&UnpackedPanel; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *configured {}
}

/// # Safety
/// As where there is AMX.
pub unsafe fn float_products<const P: usize>(
    configured: &TileConfig,
    _x: FloatTile,
    _panels: [*const f32; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *configured {}
}

pub fn multiply(_n_turns: usize) {
    unreachable!("AMX is never available here")
}
