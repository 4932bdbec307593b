//! What stands for AMX where there never is any: other processors and systems.

use super::isa::Isa;
use super::layout::{Expanded, FloatTile, Tile};
use super::simd::LANES;

pub const TILE_ROWS: usize = 8;
pub const MANY_ROWS: usize = usize::MAX;
pub const UNIT_ROWS: usize = 0;
pub const PRODUCTS_PER_TURN: usize = 1;

/// There can be none.
pub enum Configured {}

impl Configured {
    pub fn for_units(_isa: Isa, _in_bf16: bool) -> Option<Self> {
        None
    }

    pub fn again(_kept: &mut Option<Self>, _n_inner: usize) -> &Self {
        unreachable!("AMX is never available here")
    }
}

/// # Safety
/// As where there is AMX.
pub unsafe fn tile<const P: usize>(
    configured: &Configured,
    _n_rows: usize,
    _x: Tile,
    _panels: [&Expanded; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *configured {}
}

/// # Safety
/// As where there is AMX.
pub unsafe fn unit_products<const P: usize>(
    configured: &Configured,
    _x: FloatTile,
    _panels: [*const f32; P],
    _sums: [&mut [[f32; LANES]]; P],
) {
    match *configured {}
}

pub fn multiply(_n_turns: usize) {
    unreachable!("AMX is never available here")
}
