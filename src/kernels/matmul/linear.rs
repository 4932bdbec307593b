//! A fused linear layer.

use std::mem::MaybeUninit;

use super::super::isa::Isa;
use super::super::norm::Norm;
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::epilogue::OutputRows;
use super::gemm::{GemmActivations, gemm};
use super::gemm_float::FloatActivations;
use super::gemm_int16::{self, Int16Activations};
use super::gemv::gemv;
use super::projection::{InputRows, Projection};
use super::rounded_rows::{RoundedActivations, RoundedRows, rounded_rows};

/// The projection of the rows of `x`, each `n_in` long and first passed through `norm`; the result is
/// `[n_rows, n_out]`, added to `residual` if there is one.
///
/// # Panics
/// When a length does not match the others.
pub fn linear(
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<Norm>,
    projection: &Projection,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let n_rows = projection.check_rows(x, n_in);
    let n_out = projection.n_out();
    assert!(residual.is_none_or(|residual| residual.len() == n_rows * n_out));
    let input = InputRows { x, n_in, norm: norm.as_ref() };
    let write = |values: DisjointSlice<MaybeUninit<f32>>| {
        if let Some(rounded) = rounded_rows(n_rows).filter(|_| projection.is_rounded(isa)) {
            return write_rounded(isa, input, projection, residual, &rounded, values);
        }
        let output = OutputRows::for_floats(n_out, values, residual);
        if let Some(in_bf16) = projection.float_gemm_bf16(n_rows) {
            let rows = FloatActivations::new(isa, in_bf16, input);
            gemm(isa, &rows, 0..rows.n_blocks(), projection, &output);
            rows.recycle();
        } else if gemm_int16::is_profitable(isa, n_rows) && projection.is_int16_gemm() {
            let rows = Int16Activations::new(isa, input);
            gemm(isa, &rows, 0..rows.n_blocks(), projection, &output);
            rows.recycle();
        } else {
            gemv(isa, input, projection, &output);
        }
    };
    // SAFETY: every panel is multiplied with every row, so every element is written.
    unsafe { collect_rows(n_rows * n_out, write) }
}

/// Writes the products of a batch in which some rows are rounded. Those between them are written twice: they are few.
fn write_rounded(
    isa: Isa,
    InputRows { x, n_in, norm }: InputRows,
    projection: &Projection,
    residual: Option<&[f32]>,
    rounded: &RoundedRows,
    values: DisjointSlice<MaybeUninit<f32>>,
) {
    let n_out = projection.n_out();
    let span = rounded.span();
    let input = InputRows { x: &x[span.start * n_in..span.end * n_in], n_in, norm };
    let output = OutputRows::for_floats(
        n_out,
        values.part(span.start * n_out, span.len() * n_out),
        residual.map(|residual| &residual[span.start * n_out..span.end * n_out]),
    );
    let rows = RoundedActivations::new(isa, input, projection);
    gemm(isa, &rows, 0..rows.n_blocks(), projection, &output);
    rows.recycle();
    let exact = rounded.exact();
    if exact.is_empty() {
        return;
    }
    let residual = residual.map(|residual| gather(residual, n_out, exact));
    let products = linear(isa, &gather(x, n_in, exact), n_in, norm.copied(), projection, residual.as_deref());
    for (row, products) in exact.iter().zip(products.chunks_exact(n_out)) {
        // SAFETY: the threads that wrote these rows have finished.
        unsafe { values.slice(row * n_out, n_out) }.write_copy_of_slice(products);
    }
}

/// Some rows of `x`, one after the other.
pub(super) fn gather(x: &[f32], n_in: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| &x[row * n_in..][..n_in]).copied().collect()
}
