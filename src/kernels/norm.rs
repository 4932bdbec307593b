//! Rows of numbers on their own: sums of rows of tables, and norms.

use std::mem::MaybeUninit;

use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch, load_masked};
use super::threads::disjoint::{DisjointSlice, collect_rows};
use super::threads::pool;

/// What a row is divided by and multiplied with before a product.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// `x / sqrt(mean(x²) + eps) * weight`
    Rms { weight: &'a [f32], eps: f32 },
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
    Layer { weight: &'a [f32], bias: &'a [f32], eps: f32 },
}

impl Norm<'_> {
    /// Checks that it is for rows of `n` numbers, which the kernels rely on.
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

/// Rows of a piece of work.
const ROWS_AT_ONCE: usize = 16;

/// A table `[n_rows, n_columns]`, and which of its rows each row of the result takes.
#[derive(Debug, Clone, Copy)]
pub struct TableLookup<'a> {
    pub table: &'a [f32],
    pub rows: &'a [u32],
}

/// The norm of the sums of rows of tables, `[n_rows, n_columns]`.
///
/// # Panics
/// When a table has no such row, or lengths do not fit each other.
pub fn embedding_lookup(isa: Isa, lookups: &[TableLookup], n_columns: usize, norm: &Norm) -> Vec<f32> {
    let n_rows = lookups.first().map_or(0, |lookup| lookup.rows.len());
    assert!(lookups.iter().all(|lookup| lookup.rows.len() == n_rows));
    let row_of = |lookup: &TableLookup, row: usize| {
        let start = lookup.rows[row] as usize * n_columns;
        start..start + n_columns
    };
    norm_each_row(isa, n_rows, n_columns, norm, |row, sum| {
        let mut lookups = lookups.iter().map(|lookup| &lookup.table[row_of(lookup, row)]);
        if let Some(first) = lookups.next() {
            sum.copy_from_slice(first);
        }
        for numbers in lookups {
            sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        }
    })
}

/// The norm of each row of `x`.
///
/// # Panics
/// When `x` is not whole rows.
pub fn norm_rows(isa: Isa, x: &[f32], n_columns: usize, norm: &Norm) -> Vec<f32> {
    assert!(x.len().is_multiple_of(n_columns));
    norm_each_row(isa, x.len() / n_columns, n_columns, norm, |row, numbers| {
        numbers.copy_from_slice(&x[row * n_columns..][..n_columns]);
    })
}

/// Norms of rows that `fill` makes.
fn norm_each_row(
    isa: Isa,
    n_rows: usize,
    n_columns: usize,
    norm: &Norm,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    norm.check_len(n_columns);
    let write = |numbers: DisjointSlice<MaybeUninit<f32>>| {
        let compute = |row: usize, filled: &mut [f32]| {
            fill(row, filled);
            // SAFETY: each row is claimed once.
            let y = unsafe { numbers.slice(row * n_columns, n_columns) };
            dispatch(isa, NormRow { x: filled, norm, y });
        };
        if n_rows <= ROWS_AT_ONCE {
            let mut filled = vec![0.0; n_columns];
            (0..n_rows).for_each(|row| compute(row, &mut filled));
        } else {
            pool::run(|team| {
                let mut filled = vec![0.0; n_columns];
                team.claim_chunks(n_rows, ROWS_AT_ONCE).flatten().for_each(|row| compute(row, &mut filled));
            });
        }
    };
    // SAFETY: every row is written.
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
        // SAFETY: the caller's promise.
        unsafe {
            let transform = Transform::new(simd, x, Some(norm));
            for (idx, y) in y.chunks_mut(LANES).enumerate() {
                let numbers = transform.apply(x, idx * LANES);
                if y.len() == LANES {
                    simd.store(numbers, y.as_mut_ptr().cast());
                } else {
                    let mut rest = [0.0; LANES];
                    simd.store(numbers, rest.as_mut_ptr());
                    y.write_copy_of_slice(&rest[..y.len()]);
                }
            }
        }
    }
}

/// A norm whose sums over the row are known: `(x - mean) * factor * weight + bias`.
pub(super) struct Transform<'a, S: Simd> {
    simd: S,
    mean: S::Floats,
    factor: S::Floats,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl<'a, S: Simd> Transform<'a, S> {
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
        let is_centred = bias.is_none();
        let squares = sum(simd, x, |x| {
            let centred = if is_centred { x } else { simd.sub(x, mean) };
            simd.mul(centred, centred)
        });
        // The lanes past the end of a row are zeros, which a mean makes count.
        let excess = if is_centred { 0.0 } else { past_end(x.len()) * square_of(simd, mean) };
        let factor = simd.splat(1.0 / ((squares - excess) / n + eps).sqrt());
        Self { simd, mean, factor, weight: Some(weight), bias }
    }

    /// Sixteen numbers of the row, or as many as there are, followed by whatever.
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

/// Lanes that the last vector of `n` numbers leaves over.
fn past_end(n: usize) -> f32 {
    (n.next_multiple_of(LANES) - n) as f32
}

#[inline(always)]
fn square_of<S: Simd>(simd: S, x: S::Floats) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the array has room for a vector.
    unsafe { simd.store(x, lanes.as_mut_ptr()) };
    lanes[0] * lanes[0]
}

/// The sum of `f` of all numbers, those past the end of the last vector being zeros.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], f: impl Fn(S::Floats) -> S::Floats) -> f32 {
    let mut sum = simd.splat(0.0);
    for start in (0..x.len()).step_by(LANES) {
        sum = simd.add(sum, f(load_masked(simd, x, start)));
    }
    simd.reduce_add(sum)
}
