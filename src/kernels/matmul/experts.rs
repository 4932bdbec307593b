//! A mixture of experts: each expert is an MLP over the rows that are routed to it, and a row gets the weighted sum of its
//! experts' outputs.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::Isa;
use super::super::layout::MAX_TILE_ROWS;
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::super::threads::pool::{self, Team};
use super::epilogue::{ITEMS_PER_THREAD, OutputRows};
use super::gemv::{gemv_activations, gemv_panels};
use super::linear::{gather, linear};
use super::projection::{InputRows, Projection};

/// An expert that some rows are routed to.
#[derive(Debug)]
pub struct RoutedExpert<'a> {
    /// The first layer, with its activation function.
    pub inner: Projection<'a>,
    /// The second layer, back to the width of the input.
    pub down: Projection<'a>,
    /// The rows that are routed to it.
    pub rows: Vec<usize>,
    /// The weight of its output for each of these rows.
    pub weights: Vec<f32>,
}

/// The weighted sum of the experts' outputs for each row of `x`, `[n_rows, n_in]`, in the order of the experts.
///
/// # Panics
/// When a length does not match the others, or a row is out of range.
pub fn experts(isa: Isa, x: &[f32], n_in: usize, experts: &[RoutedExpert]) -> Vec<f32> {
    for expert in experts {
        let n_inner = expert.inner.n_out();
        assert!(expert.rows.len() == expert.weights.len() && expert.down.n_out() == n_in);
        assert!(expert.down.matrices().all(|weight| weight.matrix.n_in() == n_inner));
        assert!(expert.rows.iter().all(|row| (row + 1) * n_in <= x.len()));
    }
    let outputs = if experts.iter().all(|expert| expert.rows.len() <= MAX_TILE_ROWS) {
        few_rows(isa, x, n_in, experts)
    } else {
        experts.iter().flat_map(|expert| many_rows(isa, x, n_in, expert)).collect()
    };
    let mut sums = vec![0.0; x.len()];
    let routes = experts.iter().flat_map(|expert| expert.rows.iter().zip(&expert.weights));
    for ((&row, &weight), output) in routes.zip(outputs.chunks_exact(n_in)) {
        let sums = &mut sums[row * n_in..][..n_in];
        sums.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
    }
    sums
}

/// The outputs of an expert by GEMM.
fn many_rows(isa: Isa, x: &[f32], n_in: usize, expert: &RoutedExpert) -> Vec<f32> {
    let rows = gather(x, n_in, &expert.rows);
    let inner = linear(isa, &rows, n_in, None, &expert.inner, None);
    linear(isa, &inner, expert.inner.n_out(), None, &expert.down, None)
}

/// The outputs of all experts by GEMV, in one job with a barrier between the layers: the threads share out the panels of
/// all experts together.
fn few_rows(isa: Isa, x: &[f32], n_in: usize, experts: &[RoutedExpert]) -> Vec<f32> {
    let gathered: Vec<Vec<f32>> = experts.iter().map(|expert| gather(x, n_in, &expert.rows)).collect();
    let first_rows: Vec<usize> = experts
        .iter()
        .scan(0, |next, expert| {
            *next += expert.rows.len();
            Some(*next - expert.rows.len())
        })
        .collect();
    let n_rows: usize = experts.iter().map(|expert| expert.rows.len()).sum();
    let n_inner = experts.first().map_or(0, |expert| expert.inner.n_out());
    assert!(experts.iter().all(|expert| expert.inner.n_out() == n_inner));
    let mut inner_rows: Vec<f32> = Vec::with_capacity(n_rows * n_inner);
    let inner_values = DisjointSlice::new(&mut inner_rows.spare_capacity_mut()[..n_rows * n_inner]);
    let write = |values: DisjointSlice<MaybeUninit<f32>>| {
        pool::run(|team| {
            let inner = |idx: usize| (&experts[idx].inner, &gathered[idx][..], n_in);
            stage(team, isa, experts.len(), inner, |idx| {
                output_rows(inner_values, first_rows[idx], experts[idx].rows.len(), n_inner)
            });
            team.barrier();
            // SAFETY: before the barrier every panel of the first layers was multiplied with every row; after it no
            // thread writes them.
            let inner_rows = unsafe { inner_values.assume_init() };
            let down = |idx: usize| {
                let rows = &inner_rows[first_rows[idx] * n_inner..][..experts[idx].rows.len() * n_inner];
                (&experts[idx].down, rows, n_inner)
            };
            stage(team, isa, experts.len(), down, |idx| {
                output_rows(values, first_rows[idx], experts[idx].rows.len(), n_in)
            });
        });
    };
    // SAFETY: every panel of the second layers is multiplied with every row, so every element is written.
    unsafe { collect_rows(n_rows * n_in, write) }
}

/// A range of rows, `n_out` wide.
fn output_rows(
    values: DisjointSlice<'_, MaybeUninit<f32>>,
    first: usize,
    n_rows: usize,
    n_out: usize,
) -> OutputRows<'_> {
    OutputRows::for_floats(n_out, values.part(first * n_out, n_rows * n_out), None)
}

/// A stage of a job in which the threads multiply the rows of every expert with the panels of its layer. Each thread
/// quantizes the rows of the experts whose panels it claims.
fn stage<'a>(
    team: &Team,
    isa: Isa,
    n_experts: usize,
    layer: impl Fn(usize) -> (&'a Projection<'a>, &'a [f32], usize),
    output: impl Fn(usize) -> OutputRows<'a>,
) {
    let ends: Vec<usize> = (0..n_experts)
        .scan(0, |end, idx| {
            *end += layer(idx).0.n_groups(1);
            Some(*end)
        })
        .collect();
    let n_panels = ends.last().copied().unwrap_or(0);
    let at_once = n_panels.div_ceil(ITEMS_PER_THREAD * team.n_threads());
    for mut items in team.claim_chunks(n_panels, at_once.max(1)) {
        while !items.is_empty() {
            let idx = ends.partition_point(|&end| end <= items.start);
            let first = if idx == 0 { 0 } else { ends[idx - 1] };
            let of_expert: Range<usize> = items.start - first..items.end.min(ends[idx]) - first;
            items.start += of_expert.len();
            let (projection, x, n_in) = layer(idx);
            let activations = gemv_activations(isa, InputRows { x, n_in, norm: None }, projection);
            gemv_panels(isa, projection, &activations, &output(idx), of_expert);
            activations.recycle();
        }
    }
}
