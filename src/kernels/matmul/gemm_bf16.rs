//! GEMM with quantized weights in bfloat16, on AMX.
//!
//! Codes become whole weights while they are unpacked, so that products need no scales: with integers, AMX spends most of
//! its time on those. Activations and weights keep eight significant bits.

use std::cell::RefCell;
use std::thread::LocalKey;

use half::bf16;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::{Bf16Group, Bf16Tile, CodeWidth, GROUP_LEN, UnpackedPanel};
use super::super::simd::{LANES, Simd};
use super::gemm_quantized::{ActivationForm, TiledActivations};

/// The form of activations that are rounded to bfloat16.
#[derive(Debug)]
pub struct RoundedBf16;

thread_local! {
    static SPARE: RefCell<TiledActivations<RoundedBf16>> = RefCell::default();
}

impl ActivationForm for RoundedBf16 {
    type Group = Bf16Group;
    type Scale = ();
    /// Unpacking takes a larger part of the time than with integers.
    const BLOCK_ROWS: usize = 512;
    const ZEROS: Bf16Group = Bf16Group([bf16::ZERO; GROUP_LEN]);

    fn code_width(_: Isa) -> CodeWidth {
        CodeWidth::Bf16
    }

    fn tile_rows(_: Isa) -> usize {
        amx::FLOAT_TILE_ROWS
    }

    fn spare() -> &'static LocalKey<RefCell<TiledActivations<Self>>> {
        &SPARE
    }

    fn amx_row_bytes(_: Isa, _: usize) -> Option<usize> {
        Some(size_of::<Bf16Group>())
    }

    #[inline(always)]
    fn round<S: Simd>(
        simd: S,
        _: Isa,
        [first, second]: [S::Floats; 2],
        row: usize,
        of_tile: &mut [Bf16Group],
    ) {
        let to = of_tile[row].0.as_mut_ptr();
        // SAFETY: each half has room for sixteen numbers.
        unsafe {
            simd.store_bf16(first, to);
            simd.store_bf16(second, to.add(LANES));
        }
    }

    #[inline(always)]
    fn multiply_tile<S: Simd>(
        _: S,
        tile_config: Option<&amx::TileConfig>,
        n_rows: usize,
        x: Bf16Tile,
        panels: &[UnpackedPanel],
        [sums, others]: [&mut [[f32; LANES]]; 2],
    ) {
        match (tile_config, panels) {
            (Some(config), [a, b]) => amx::bf16_tile(config, n_rows, x, [a, b], [sums, others]),
            (Some(config), _) => amx::bf16_tile(config, n_rows, x, [&panels[0]], [sums]),
            (None, _) => unreachable!("only AMX multiplies activations of this form"),
        }
    }
}
