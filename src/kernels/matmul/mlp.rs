//! A fused MLP: two layers of products, with what comes before and after them.

use std::mem::MaybeUninit;

use super::super::isa::Isa;
use super::super::layout::MAX_TILE_ROWS;
use super::super::norm::Norm;
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::super::threads::pool;
use super::epilogue::OutputRows;
use super::gemm::{GemmActivations, gemm};
use super::gemm_float::{BLOCKS_AT_ONCE, FloatActivations};
use super::gemv::gemv_stage;
use super::linear::linear;
use super::projection::{InputRows, Projection, ResidualWeight};
use super::rounded_rows::rounded_rows;

/// An MLP with its norm and residual: `x + scale * down(inner(norm(x)))` for the rows of `x`.
///
/// # Panics
/// When a length does not match the others.
pub fn mlp(isa: Isa, x: &[f32], norm: Option<Norm>, inner: &Projection, down: ResidualWeight) -> Vec<f32> {
    let (n_in, n_inner) = (down.weight.matrix.n_out(), inner.n_out());
    let outer = Projection::Residual(down);
    let n_rows = inner.check_rows(x, n_in);
    assert_eq!(down.weight.matrix.n_in(), n_inner);
    let is_rounded = rounded_rows(n_rows).is_some() && (inner.is_rounded(isa) || outer.is_rounded(isa));
    let in_bf16 = match (inner.float_gemm_bf16(n_rows), outer.float_gemm_bf16(n_rows)) {
        (Some(inner_in_bf16), Some(outer_in_bf16)) if inner_in_bf16 == outer_in_bf16 => inner_in_bf16,
        (None, None) if n_rows <= MAX_TILE_ROWS && !is_rounded => {
            return one_tile_mlp(isa, x, norm.as_ref(), inner, &outer);
        }
        _ => {
            let y = linear(isa, x, n_in, norm, inner, None);
            return linear(isa, &y, n_inner, None, &outer, Some(x));
        }
    };
    let rows = FloatActivations::new(isa, in_bf16, InputRows { x, n_in, norm: norm.as_ref() });
    let mut inner_rows = FloatActivations::zeros(in_bf16, n_rows, n_inner);
    let write = |values: DisjointSlice<MaybeUninit<f32>>| {
        // The inner rows of a block stay in the cache until they have been used.
        for start in (0..rows.n_blocks()).step_by(BLOCKS_AT_ONCE) {
            let blocks = start..rows.n_blocks().min(start + BLOCKS_AT_ONCE);
            let (stride, dwords) = inner_rows.dwords_mut();
            let output = OutputRows { n_out: n_inner, stride, in_bf16, values: dwords, residual: None };
            gemm(isa, &rows, blocks.clone(), inner, &output);
            gemm(isa, &inner_rows, blocks, &outer, &OutputRows::for_floats(n_in, values, Some(x)));
        }
    };
    // SAFETY: every panel of the second matrix is multiplied with every row, so every element is written.
    let y = unsafe { collect_rows(n_rows * n_in, write) };
    inner_rows.recycle();
    rows.recycle();
    y
}

/// [`mlp`] by GEMV, of up to [`MAX_TILE_ROWS`] rows: one job with a barrier between the layers instead of two
/// jobs.
fn one_tile_mlp(
    isa: Isa,
    x: &[f32],
    norm: Option<&Norm>,
    inner: &Projection,
    outer: &Projection,
) -> Vec<f32> {
    let (n_in, n_inner) = (outer.n_out(), inner.n_out());
    let n_rows = x.len() / n_in;
    let mut inner_rows: Vec<f32> = Vec::with_capacity(n_rows * n_inner);
    let inner_values = DisjointSlice::new(&mut inner_rows.spare_capacity_mut()[..n_rows * n_inner]);
    let write = |values: DisjointSlice<MaybeUninit<f32>>| {
        pool::run(|team| {
            let output = OutputRows::for_floats(n_inner, inner_values, None);
            gemv_stage(team, isa, InputRows { x, n_in, norm }, inner, &output);
            team.barrier();
            // SAFETY: before the barrier every panel of the first matrices was multiplied with every row; after it
            // no thread writes them.
            let inner_rows = unsafe { inner_values.assume_init() };
            let input = InputRows { x: inner_rows, n_in: n_inner, norm: None };
            gemv_stage(team, isa, input, outer, &OutputRows::for_floats(n_in, values, Some(x)));
        });
    };
    // SAFETY: every panel of the second matrix is multiplied with every row, so every element is written.
    unsafe { collect_rows(n_rows * n_in, write) }
}
