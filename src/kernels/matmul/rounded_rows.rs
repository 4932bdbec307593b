//! The rows of a forward pass whose activations are rounded to 8 bits, and what they become.
//!
//! Rows are chosen by what they are and never by how many are computed at once, so what is computed for a token does not
//! depend on its neighbors in a batch. The choice holds for every product of as many rows as the batch has, on the thread
//! that computes it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::super::amx;
use super::super::isa::Isa;
use super::gemm::{GemmActivations, PanelPair};
use super::gemm_bf16::RoundedBf16;
use super::gemm_int8::RotatedInt8;
use super::gemm_int16::Int16Activations;
use super::gemm_quantized::TiledActivations;
use super::projection::{InputRows, Projection};

/// The rows of a batch whose activations are rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundedRows {
    n_rows: usize,
    span: Range<usize>,
    exact: Vec<usize>,
}

thread_local! {
    static ROUNDED_ROWS: RefCell<Option<Rc<RoundedRows>>> = const { RefCell::new(None) };
}

impl RoundedRows {
    /// The rows of `ranges`, ascending, out of `n_rows`; `None` if there are none.
    pub fn new(n_rows: usize, ranges: impl Iterator<Item = Range<usize>>) -> Option<Self> {
        let (mut exact, mut end, mut span) = (Vec::new(), 0, None);
        for range in ranges.filter(|range| !range.is_empty()) {
            exact.extend(end..range.start);
            end = range.end;
            span = Some(span.map_or(range.start, |span: Range<usize>| span.start)..end);
        }
        exact.extend(end..n_rows);
        span.map(|span| Self { n_rows, span, exact })
    }

    /// The rows from the first to the last that is rounded.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The rows that are not rounded.
    pub(super) fn exact(&self) -> &[usize] {
        &self.exact
    }
}

/// Runs `compute` with these rows rounded in all its products.
pub fn with_rounded_rows<T>(rows: Option<RoundedRows>, compute: impl FnOnce() -> T) -> T {
    /// Ends the choice, after a panic as well.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ROUNDED_ROWS.set(None);
        }
    }
    let _reset = Reset;
    ROUNDED_ROWS.set(rows.map(Rc::new));
    compute()
}

/// The rounded rows of a product of `n_rows` rows.
pub(super) fn rounded_rows(n_rows: usize) -> Option<Rc<RoundedRows>> {
    ROUNDED_ROWS.with_borrow(|rows| rows.clone().filter(|rows| rows.n_rows == n_rows))
}

/// The activations of rounded rows.
#[derive(Debug)]
pub enum RoundedActivations {
    /// Numbers of eight significant bits, for AMX.
    Bf16(TiledActivations<RoundedBf16>),
    /// Integers for matrices of 4-bit codes, and 16-bit ones for the others, if there are any.
    Int8(TiledActivations<RotatedInt8>, Option<Int16Activations>),
}

impl RoundedActivations {
    /// Rounds the rows of an input for the matrices of a projection.
    pub fn new(isa: Isa, input: InputRows, projection: &Projection) -> Self {
        if isa == Isa::Amx {
            return Self::Bf16(TiledActivations::new(isa, input));
        }
        let has_others = projection.matrices().any(|weight| !weight.matrix.format().is_rounded(isa));
        Self::Int8(TiledActivations::new(isa, input), has_others.then(|| TiledActivations::new(isa, input)))
    }

    /// Returns the buffers for reuse.
    pub fn recycle(self) {
        match self {
            Self::Bf16(rows) => rows.recycle(),
            Self::Int8(rows, others) => {
                rows.recycle();
                others.into_iter().for_each(TiledActivations::recycle);
            }
        }
    }
}

impl GemmActivations for RoundedActivations {
    const PAIRS_AT_ONCE: usize = TiledActivations::<RoundedBf16>::PAIRS_AT_ONCE;

    fn n_blocks(&self) -> usize {
        match self {
            Self::Bf16(rows) => rows.n_blocks(),
            Self::Int8(rows, _) => rows.n_blocks(),
        }
    }

    fn multiply_block(
        &self,
        isa: Isa,
        tile_config: &mut Option<amx::TileConfig>,
        block: usize,
        pairs: &[PanelPair],
    ) {
        match self {
            Self::Bf16(rows) => rows.multiply_block(isa, tile_config, block, pairs),
            Self::Int8(rows, None) => rows.multiply_block(isa, tile_config, block, pairs),
            Self::Int8(rows, Some(others)) => {
                let is_rounded = |pair: &PanelPair| pair.panels()[0].0.format().is_rounded(isa);
                for pairs in pairs.chunk_by(|a, b| is_rounded(a) == is_rounded(b)) {
                    if is_rounded(&pairs[0]) {
                        rows.multiply_block(isa, tile_config, block, pairs);
                    } else {
                        others.multiply_block(isa, tile_config, block, pairs);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_between_rounded_ones_are_exact() {
        let rows = RoundedRows::new(12, [2..2, 3..5, 7..10].into_iter()).unwrap();
        assert_eq!(rows, RoundedRows { n_rows: 12, span: 3..10, exact: vec![0, 1, 2, 5, 6, 10, 11] });
        assert_eq!(RoundedRows::new(12, [2..2, 5..5].into_iter()), None);
    }

    #[test]
    fn the_choice_holds_for_products_of_the_whole_batch_and_ends() {
        let rows = RoundedRows::new(4, std::iter::once(0..2));
        with_rounded_rows(rows.clone(), || {
            assert_eq!(rounded_rows(4).as_deref(), rows.as_ref());
            assert_eq!(rounded_rows(3), None);
        });
        assert_eq!(rounded_rows(4), None);
    }
}
