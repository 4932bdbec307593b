//! Selects the rows of a stored matrix that make up a layer's weight.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;
use crate::models::backend::DEVICE;

/// The rows of a stored matrix that make up a layer's weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSelection {
    n_stored: usize,
    rows: SelectedRows,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SelectedRows {
    Range(Range<usize>),
    /// The indices of the stored rows, in the weight's order.
    Indices(Vec<u32>),
}

impl RowSelection {
    /// All `n` rows.
    pub fn all(n: usize) -> Self {
        Self::range(0..n, n)
    }

    /// A range of `n_stored` rows.
    pub fn range(range: Range<usize>, n_stored: usize) -> Self {
        Self { n_stored, rows: SelectedRows::Range(range) }
    }

    /// The given ones of `n_stored` rows, in this order.
    pub fn indices(rows: impl IntoIterator<Item = usize>, n_stored: usize) -> Self {
        let rows = rows.into_iter().map(|row| row as u32).collect();
        Self { n_stored, rows: SelectedRows::Indices(rows) }
    }

    /// Every second one of `n_stored` rows, from `first` (0 or 1) on.
    pub fn every_second(first: usize, n_stored: usize) -> Self {
        let rows = (first as u32..n_stored as u32).step_by(2).collect();
        Self { n_stored, rows: SelectedRows::Indices(rows) }
    }

    /// All rows of query or key heads that are stored with the pairs of the rotary embedding interleaved,
    /// `(0, 1), (2, 3), …`, permuted so that the pairs' first elements precede all second ones, `0, 2, … 1,
    /// 3, …`.
    pub fn permute_rope_rows(n_heads: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let row = move |head: usize, i: usize| (head * head_dim + 2 * (i % half) + i / half) as u32;
        let rows = (0..n_heads).flat_map(|head| (0..head_dim).map(move |i| row(head, i)));
        Self { n_stored: n_heads * head_dim, rows: SelectedRows::Indices(rows.collect()) }
    }

    /// The number of rows in the stored matrix.
    pub fn n_stored(&self) -> usize {
        self.n_stored
    }

    /// The number of selected rows.
    pub fn n_selected(&self) -> usize {
        match &self.rows {
            SelectedRows::Range(range) => range.len(),
            SelectedRows::Indices(rows) => rows.len(),
        }
    }

    /// Selects from a tensor along its first dimension.
    pub(super) fn select(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match &self.rows {
            SelectedRows::Range(range) if range.len() == self.n_stored => tensor.clone(),
            SelectedRows::Range(range) => tensor.narrow(0, range.start, range.len())?.copy()?,
            SelectedRows::Indices(rows) => tensor.index_select(&Tensor::new(rows.as_slice(), &DEVICE)?, 0)?,
        })
    }

    /// The stored rows that make up the `selected` rows, in order, as ranges of neighbors.
    pub(super) fn stored_ranges(&self, selected: Range<usize>) -> Vec<Range<usize>> {
        match &self.rows {
            SelectedRows::Range(range) => {
                std::iter::once(range.start + selected.start..range.start + selected.end).collect()
            }
            SelectedRows::Indices(rows) => rows[selected]
                .chunk_by(|a, b| a + 1 == *b)
                .map(|neighbors| neighbors[0] as usize..neighbors[0] as usize + neighbors.len())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rope_pairs_are_split_into_halves() {
        let rows = RowSelection::permute_rope_rows(2, 6);
        let stored = |selected| rows.stored_ranges(selected).into_iter().flatten().collect::<Vec<usize>>();
        assert_eq!(stored(0..12), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(stored(4..7), [3, 5, 6]);
        assert_eq!(rows.stored_ranges(5..7)[0], 5..7);
        assert_eq!(RowSelection::range(3..8, 9).stored_ranges(1..4)[0], 4..7);
    }

    #[test]
    fn rows_of_two_matrices_may_alternate() {
        let rows = |first| RowSelection::every_second(first, 6).stored_ranges(0..3);
        let stored = |first| rows(first).into_iter().flatten().collect::<Vec<usize>>();
        assert_eq!((stored(0), stored(1)), (vec![0, 2, 4], vec![1, 3, 5]));
    }
}
