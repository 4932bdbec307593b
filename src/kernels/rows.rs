//! Rows of numbers on their own: sums of rows of tables, and norms.

use std::mem::MaybeUninit;

use super::activations::{Norm, Transform};
use super::isa::Isa;
use super::pool;
use super::shared_rows::{SharedMut, written};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of a piece of work.
const ROWS_AT_ONCE: usize = 16;

/// A table `[n_rows, n_columns]`, and which of its rows each row of the result takes.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    pub table: &'a [f32],
    pub rows: &'a [u32],
}

/// The norm of the sums of rows of tables, `[n_rows, n_columns]`.
///
/// # Panics
/// When a table has no such row, or lengths do not fit each other.
pub fn looked_up(isa: Isa, lookups: &[Lookup], n_columns: usize, norm: &Norm) -> Vec<f32> {
    let n_rows = lookups.first().map_or(0, |lookup| lookup.rows.len());
    assert!(lookups.iter().all(|lookup| lookup.rows.len() == n_rows));
    let row_of = |lookup: &Lookup, row: usize| {
        let start = lookup.rows[row] as usize * n_columns;
        start..start + n_columns
    };
    normed_rows(isa, n_rows, n_columns, norm, |row, sum| {
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
pub fn normed(isa: Isa, x: &[f32], n_columns: usize, norm: &Norm) -> Vec<f32> {
    assert!(x.len().is_multiple_of(n_columns));
    normed_rows(isa, x.len() / n_columns, n_columns, norm, |row, numbers| {
        numbers.copy_from_slice(&x[row * n_columns..][..n_columns]);
    })
}

/// Norms of rows that `fill` makes.
fn normed_rows(
    isa: Isa,
    n_rows: usize,
    n_columns: usize,
    norm: &Norm,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    norm.check(n_columns);
    let write = |numbers: SharedMut<MaybeUninit<f32>>| {
        let compute = |row: usize, filled: &mut [f32]| {
            fill(row, filled);
            // SAFETY: each row is claimed once.
            let y = unsafe { numbers.slice(row * n_columns, n_columns) };
            // SAFETY: the processor has the instructions; the norm is of the row's length.
            unsafe { dispatch(isa, NormRow { x: filled, norm, y }) };
        };
        if n_rows <= ROWS_AT_ONCE {
            let mut filled = vec![0.0; n_columns];
            (0..n_rows).for_each(|row| compute(row, &mut filled));
        } else {
            pool::run(|team| {
                let mut filled = vec![0.0; n_columns];
                team.share(n_rows, ROWS_AT_ONCE).flatten().for_each(|row| compute(row, &mut filled));
            });
        }
    };
    // SAFETY: every row is written.
    unsafe { written(n_rows * n_columns, write) }
}

struct NormRow<'a> {
    x: &'a [f32],
    norm: &'a Norm<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, norm, y } = self;
        // SAFETY: the caller's promise.
        unsafe {
            let transform = Transform::<S>::of(x, Some(norm));
            for (idx, y) in y.chunks_mut(LANES).enumerate() {
                let numbers = transform.apply(x, idx * LANES);
                if y.len() == LANES {
                    S::store(numbers, y.as_mut_ptr().cast());
                } else {
                    let mut rest = [0.0; LANES];
                    S::store(numbers, rest.as_mut_ptr());
                    y.write_copy_of_slice(&rest[..y.len()]);
                }
            }
        }
    }
}
