//! RMS norm and layer norm of rows, and the look-up of embeddings, which are normed at once.

use std::mem::MaybeUninit;

use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch, load_masked, store_array};
use super::threads::disjoint::{DisjointSlice, collect_rows};
use super::threads::pool;

/// Normalization of rows, with weights `[n_columns]`.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// `x / sqrt(mean(x²) + eps) * weight`
    Rms {
        /// Factor of each column.
        weight: &'a [f32],
        /// Added to the mean square before the root.
        eps: f32,
    },
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
    Layer {
        /// Factor of each column.
        weight: &'a [f32],
        /// Addend of each column.
        bias: &'a [f32],
        /// Added to the variance before the root.
        eps: f32,
    },
}

impl Norm<'_> {
    /// Checks that the norm is for rows of `n` columns, which the kernels rely on.
    ///
    /// # Panics
    /// When it is not.
    pub(super) fn check_len(&self, n: usize) {
        let (weight, bias) = match self {
            Norm::Rms { weight, .. } => (weight, None),
            Norm::Layer { weight, bias, .. } => (weight, Some(bias)),
        };
        assert!([Some(weight), bias].into_iter().flatten().all(|part| part.len() == n));
    }
}

/// Rows that a thread claims at once.
const CHUNK_ROWS: usize = 16;

/// Look-up of embeddings: a table, and the index of a table row for each row of the result.
#[derive(Debug, Clone, Copy)]
pub struct TableLookup<'a> {
    /// `[n_table_rows, n_columns]`
    pub table: &'a [f32],
    /// Indices of table rows, such as token ids.
    pub rows: &'a [u32],
}

/// Adds up the look-ups of each row and norms the sums: `[n_rows, n_columns]`.
///
/// # Panics
/// When a table lacks a row, or lengths do not fit each other.
pub fn embedding_lookup(isa: Isa, lookups: &[TableLookup], n_columns: usize, norm: &Norm) -> Vec<f32> {
    let n_rows = lookups.first().map_or(0, |lookup| lookup.rows.len());
    assert!(lookups.iter().all(|lookup| lookup.rows.len() == n_rows));
    let range_of = |lookup: &TableLookup, row: usize| {
        let start = lookup.rows[row] as usize * n_columns;
        start..start + n_columns
    };
    norm_each_row(isa, n_rows, n_columns, norm, |row, sum| {
        let mut lookups = lookups.iter().map(|lookup| &lookup.table[range_of(lookup, row)]);
        if let Some(first) = lookups.next() {
            sum.copy_from_slice(first);
        }
        for embedding in lookups {
            sum.iter_mut().zip(embedding).for_each(|(sum, x)| *sum += x);
        }
    })
}

/// Norms each row of `x`, `[n_rows, n_columns]`.
///
/// # Panics
/// When `x` is not whole rows, or the norm is for rows of another length.
pub fn norm_rows(isa: Isa, x: &[f32], n_columns: usize, norm: &Norm) -> Vec<f32> {
    assert!(x.len().is_multiple_of(n_columns));
    norm_each_row(isa, x.len() / n_columns, n_columns, norm, |row, to| {
        to.copy_from_slice(&x[row * n_columns..][..n_columns]);
    })
}

/// Norms rows that `fill` writes, given their index.
fn norm_each_row(
    isa: Isa,
    n_rows: usize,
    n_columns: usize,
    norm: &Norm,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    norm.check_len(n_columns);
    let write = |y: DisjointSlice<MaybeUninit<f32>>| {
        let compute = |row: usize, filled: &mut [f32]| {
            fill(row, filled);
            // SAFETY: each row is claimed once.
            let y = unsafe { y.slice(row * n_columns, n_columns) };
            dispatch(isa, NormRow { x: filled, norm, y });
        };
        if n_rows <= CHUNK_ROWS {
            let mut filled = vec![0.0; n_columns];
            (0..n_rows).for_each(|row| compute(row, &mut filled));
        } else {
            pool::run(|team| {
                let mut filled = vec![0.0; n_columns];
                team.claim_chunks(n_rows, CHUNK_ROWS).flatten().for_each(|row| compute(row, &mut filled));
            });
        }
    };
    // SAFETY: every row is claimed, and `NormRow` writes all of it.
    unsafe { collect_rows(n_rows * n_columns, write) }
}

struct NormRow<'a> {
    x: &'a [f32],
    norm: &'a Norm<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, y } = self;
        let transform = Transform::new(simd, x, Some(norm));
        for (idx, y) in y.chunks_mut(LANES).enumerate() {
            let normed = transform.apply(x, idx * LANES);
            if y.len() == LANES {
                // SAFETY: a whole chunk has room for a vector.
                unsafe { simd.store(normed, y.as_mut_ptr().cast()) };
            } else {
                let mut rest = [0.0; LANES];
                store_array(simd, normed, &mut rest);
                y.write_copy_of_slice(&rest[..y.len()]);
            }
        }
    }
}

/// A norm whose mean and factor for a row are known: `(x - mean) * factor * weight + bias`.
pub(super) struct Transform<'a, S: Simd> {
    simd: S,
    mean: S::Floats,
    factor: S::Floats,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl<'a, S: Simd> Transform<'a, S> {
    /// Computes mean and factor of the row `x`; without a norm, elements stay as they are.
    #[inline(always)]
    pub(super) fn new(simd: S, x: &[f32], norm: Option<&Norm<'a>>) -> Self {
        let n = x.len() as f32;
        let (mean, eps, weight, bias) = match norm {
            None => {
                return Self {
                    simd,
                    mean: simd.splat(0.0),
                    factor: simd.splat(1.0),
                    weight: None,
                    bias: None,
                };
            }
            Some(Norm::Rms { weight, eps }) => (0.0, *eps, *weight, None),
            Some(Norm::Layer { weight, bias, eps }) => (sum(simd, x, |x| x) / n, *eps, *weight, Some(*bias)),
        };
        let mean = simd.splat(mean);
        let is_rms = bias.is_none();
        let squares = sum(simd, x, |x| {
            let centered = if is_rms { x } else { simd.sub(x, mean) };
            simd.mul(centered, centered)
        });
        // The lanes past the end of the row are zeros; less the mean, they add its square to the sum.
        let excess = if is_rms { 0.0 } else { n_lanes_past_end(x.len()) * square_of(simd, mean) };
        let factor = simd.splat(1.0 / ((squares - excess) / n + eps).sqrt());
        Self { simd, mean, factor, weight: Some(weight), bias }
    }

    /// Sixteen normed elements of the row from `start` on; lanes past its end hold arbitrary numbers.
    #[inline(always)]
    pub(super) fn apply(&self, x: &[f32], start: usize) -> S::Floats {
        let simd = self.simd;
        let x = load_masked(simd, x, start);
        let Some(weight) = self.weight else { return x };
        let scaled =
            simd.mul(simd.mul(simd.sub(x, self.mean), self.factor), load_masked(simd, weight, start));
        match self.bias {
            Some(bias) => simd.add(scaled, load_masked(simd, bias, start)),
            None => scaled,
        }
    }
}

/// Lanes that the last vector of `n` elements leaves over.
fn n_lanes_past_end(n: usize) -> f32 {
    (n.next_multiple_of(LANES) - n) as f32
}

#[inline(always)]
fn square_of<S: Simd>(simd: S, x: S::Floats) -> f32 {
    let mut lanes = [0.0; LANES];
    store_array(simd, x, &mut lanes);
    lanes[0] * lanes[0]
}

/// The sum of `f` of all elements, those past the end of the last vector being zeros.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], f: impl Fn(S::Floats) -> S::Floats) -> f32 {
    let mut sum = simd.splat(0.0);
    for start in (0..x.len()).step_by(LANES) {
        sum = simd.add(sum, f(load_masked(simd, x, start)));
    }
    simd.reduce_add(sum)
}
