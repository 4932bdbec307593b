//! A fused MLP: two layers of products with what comes before and after them.

use std::mem::MaybeUninit;

use super::super::isa::Isa;
use super::super::layout::MAX_TILE_ROWS;
use super::super::norm::Norm;
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::super::threads::pool;
use super::epilogue::OutputRows;
use super::gemm_float;
use super::gemv::one_tile;
use super::{Projection, WeightWithBias, gemm, linear};

/// The rows of `x`, passed through `norm` and two layers of products and added to themselves: `x +
/// down(inner(norm(x)))`.
///
/// # Panics
/// When a length does not fit the others.
pub fn mlp(isa: Isa, x: &[f32], norm: Option<Norm>, inner: &Projection, down: WeightWithBias) -> Vec<f32> {
    let (n_in, n_inner) = (down.matrix.n_out(), inner.n_out());
    let outer = Projection::Residual(down);
    let n_rows = inner.check(x, n_in);
    assert_eq!(down.matrix.n_in(), n_inner);
    let in_bf16 = match (inner.units(n_rows), outer.units(n_rows)) {
        (Some(inner_in_bf16), Some(outer_in_bf16)) if inner_in_bf16 == outer_in_bf16 => inner_in_bf16,
        (None, None) if n_rows <= MAX_TILE_ROWS => {
            return mlp_of_one_tile(isa, x, norm.as_ref(), inner, &outer);
        }
        _ => {
            let y = linear(isa, x, n_in, norm, inner, None);
            return linear(isa, &y, n_inner, None, &outer, Some(x));
        }
    };
    let rows = gemm_float::FloatActivations::new(isa, in_bf16, x, n_in, norm.as_ref());
    let mut inner_rows = gemm_float::FloatActivations::zeros(in_bf16, n_rows, n_inner);
    let write = |numbers: DisjointSlice<MaybeUninit<f32>>| {
        // A block's inner rows stay in the cache until they have been used.
        for start in (0..rows.n_blocks()).step_by(gemm_float::BLOCKS_AT_ONCE) {
            let blocks = start..rows.n_blocks().min(start + gemm_float::BLOCKS_AT_ONCE);
            let (stride, dwords) = inner_rows.dwords_mut();
            let result = OutputRows { n_out: n_inner, stride, in_bf16, numbers: dwords, residual: None };
            gemm(isa, &rows, blocks.clone(), inner, &result);
            gemm(isa, &inner_rows, blocks, &outer, &OutputRows::of_floats(n_in, numbers, Some(x)));
        }
    };
    // SAFETY: every panel of the second matrix is multiplied with every row.
    let y = unsafe { collect_rows(n_rows * n_in, write) };
    inner_rows.recycle();
    rows.recycle();
    y
}

/// The same of up to [`MAX_TILE_ROWS`] rows, whose weights are multiplied as they are read: the threads come
/// together once between the layers instead of twice and at the caller.
fn mlp_of_one_tile(
    isa: Isa,
    x: &[f32],
    norm: Option<&Norm>,
    inner: &Projection,
    outer: &Projection,
) -> Vec<f32> {
    let (n_in, n_inner) = (outer.n_out(), inner.n_out());
    let n_rows = x.len() / n_in;
    let mut inner_rows: Vec<f32> = Vec::with_capacity(n_rows * n_inner);
    let inner_numbers = DisjointSlice::new(&mut inner_rows.spare_capacity_mut()[..n_rows * n_inner]);
    let write = |numbers: DisjointSlice<MaybeUninit<f32>>| {
        pool::run(|team| {
            one_tile(team, isa, x, n_in, norm, inner, &OutputRows::of_floats(n_inner, inner_numbers, None));
            team.barrier();
            // SAFETY: every panel of the first matrices has been multiplied with every row, and nobody writes
            // to them any more.
            let inner_rows = unsafe { inner_numbers.assume_written() };
            one_tile(
                team,
                isa,
                inner_rows,
                n_inner,
                None,
                outer,
                &OutputRows::of_floats(n_in, numbers, Some(x)),
            );
        });
    };
    // SAFETY: every panel of the second matrix is multiplied with every row.
    unsafe { collect_rows(n_rows * n_in, write) }
}
