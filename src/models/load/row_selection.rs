//! Selects the rows of a stored matrix that make up a layer's weight.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::error::Result;

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

    /// The index of the stored row that is selected as row `idx`.
    pub(super) fn stored_row(&self, idx: usize) -> usize {
        match &self.rows {
            SelectedRows::Range(range) => range.start + idx,
            SelectedRows::Indices(rows) => rows[idx] as usize,
        }
    }

    /// Selects from a tensor along its first dimension.
    pub(super) fn select(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match &self.rows {
            SelectedRows::Range(range) if range.len() == self.n_stored => tensor.clone(),
            SelectedRows::Range(range) => tensor.narrow(0, range.start, range.len())?.copy()?,
            SelectedRows::Indices(rows) => {
                tensor.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)?
            }
        })
    }

    /// Selects from rows of `row_bytes` bytes each.
    pub(super) fn select_bytes<'a>(&self, bytes: &'a [u8], row_bytes: usize) -> Cow<'a, [u8]> {
        match &self.rows {
            SelectedRows::Range(range) => {
                Cow::Borrowed(&bytes[range.start * row_bytes..range.end * row_bytes])
            }
            SelectedRows::Indices(rows) => {
                let mut selected = Vec::with_capacity(rows.len() * row_bytes);
                for &row in rows {
                    selected.extend_from_slice(&bytes[row as usize * row_bytes..][..row_bytes]);
                }
                Cow::Owned(selected)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rope_pairs_are_split_into_halves() {
        let rows = RowSelection::permute_rope_rows(2, 6);
        assert_eq!(
            rows.select_bytes(&(0..12).collect::<Vec<u8>>(), 1)[..],
            [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
        );
    }
}
