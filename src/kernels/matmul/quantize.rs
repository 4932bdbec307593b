//! Activations on their way into GEMV: normed and, if the weights are quantized, quantized to 16-bit integers.

use std::cell::RefCell;

use super::super::isa::Isa;
use super::super::layout::{ActivationGroup, GROUP_LEN, MAX_TILE_ROWS};
use super::super::norm::{Norm, Transform};
use super::super::simd::{ACTIVATION_MAX, Kernel, LANES, Simd, dispatch};
use super::super::threads::disjoint::DisjointSlice;
use super::projection::InputRows;

/// Rows of activations for GEMV, as float32, as quantized groups, or both.
#[derive(Debug)]
pub struct GemvActivations {
    n_rows: usize,
    n_in: usize,
    tile_rows: usize,
    /// The used part of each buffer.
    n_floats: usize,
    n_groups: usize,
    floats: Vec<f32>,
    groups: Vec<ActivationGroup>,
}

/// A shared view of [`GemvActivations`], whose tiles threads fill.
#[derive(Debug, Clone, Copy)]
pub struct GemvActivationsMut<'a> {
    n_in: usize,
    tile_rows: usize,
    floats: Option<DisjointSlice<'a, f32>>,
    groups: Option<DisjointSlice<'a, ActivationGroup>>,
}

thread_local! {
    /// Buffers for the next rows: a forward pass needs hundreds, one after the other.
    static SPARE: RefCell<(Vec<f32>, Vec<ActivationGroup>)> = RefCell::default();
}

impl GemvActivations {
    /// Takes a buffer for rows of `n_in` numbers in the forms that are needed; its contents are arbitrary.
    pub fn acquire(n_rows: usize, n_in: usize, with_floats: bool, with_groups: bool) -> Self {
        debug_assert!(!with_groups || n_in.is_multiple_of(GROUP_LEN));
        let (mut floats, mut groups) = SPARE.take();
        let tile_rows = n_rows.clamp(1, MAX_TILE_ROWS);
        let n_numbers = n_rows.next_multiple_of(tile_rows) * n_in;
        let n_floats = if with_floats { n_numbers } else { 0 };
        let n_groups = if with_groups { n_numbers / GROUP_LEN } else { 0 };
        // Buffers only grow, so that old contents need not be overwritten.
        floats.resize(floats.len().max(n_floats), 0.0);
        groups.resize(groups.len().max(n_groups), ActivationGroup::default());
        Self { n_rows, n_in, tile_rows, n_floats, n_groups, floats, groups }
    }

    /// Returns the buffers for reuse.
    pub fn recycle(self) {
        SPARE.replace((self.floats, self.groups));
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The length of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Rows of a tile, whose elements are interleaved.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// All rows as float32: tile by tile; in a tile the first number of each row, then the second.
    pub fn floats(&self) -> &[f32] {
        &self.floats[..self.n_floats]
    }

    /// All rows as quantized groups: tile by tile; in a tile the first group of each row, then the second.
    pub fn groups(&self) -> &[ActivationGroup] {
        &self.groups[..self.n_groups]
    }

    /// A view for several threads to fill.
    pub fn shared(&mut self) -> GemvActivationsMut<'_> {
        fn share<T>(all: &mut [T]) -> Option<DisjointSlice<'_, T>> {
            (!all.is_empty()).then(|| DisjointSlice::new(all))
        }
        GemvActivationsMut {
            n_in: self.n_in,
            tile_rows: self.tile_rows,
            floats: share(&mut self.floats[..self.n_floats]),
            groups: share(&mut self.groups[..self.n_groups]),
        }
    }
}

impl GemvActivationsMut<'_> {
    /// Fills tile `idx` from its rows of `input`.
    ///
    /// # Safety
    /// No other thread fills this tile at the same time.
    ///
    /// # Panics
    /// When there is no such tile, or the norm is of another length.
    pub unsafe fn fill(&self, isa: Isa, idx: usize, InputRows { x, norm, .. }: InputRows) {
        if let Some(norm) = norm {
            norm.check_len(self.n_in);
        }
        let tile_len = self.tile_rows * self.n_in;
        let (n_floats, n_groups) = (tile_len, tile_len / GROUP_LEN);
        // SAFETY: the tile is this thread's, as this function requires.
        let mut floats = self.floats.as_ref().map(|all| unsafe { all.slice(idx * n_floats, n_floats) });
        // SAFETY: the tile is this thread's, as this function requires.
        let mut groups = self.groups.as_ref().map(|all| unsafe { all.slice(idx * n_groups, n_groups) });
        let rows = x[idx * tile_len..].chunks_exact(self.n_in).take(self.tile_rows);
        for (row, x) in rows.enumerate() {
            let (floats, groups) = (floats.as_deref_mut(), groups.as_deref_mut());
            dispatch(isa, QuantizeRow { x, norm, row, stride: self.tile_rows, floats, groups });
        }
    }
}

/// Norms a row and writes it to its places in a tile.
struct QuantizeRow<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    /// The row's index in its tile, and the number of rows of the tile.
    row: usize,
    stride: usize,
    floats: Option<&'a mut [f32]>,
    groups: Option<&'a mut [ActivationGroup]>,
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, norm, row, stride, floats, groups } = self;
        let transform = Transform::new(simd, x, norm);
        if let Some(floats) = floats {
            for start in (0..x.len()).step_by(LANES) {
                let mut numbers = [0.0; LANES];
                simd.store_array(transform.apply(x, start), &mut numbers);
                let places = floats[start * stride + row..].iter_mut().step_by(stride);
                places.take(x.len() - start).zip(numbers).for_each(|(to, number)| *to = number);
            }
        }
        if let Some(groups) = groups {
            for (idx, group) in groups[row..].iter_mut().step_by(stride).enumerate() {
                let start = idx * GROUP_LEN;
                let halves = [transform.apply(x, start), transform.apply(x, start + LANES)];
                quantize_group(simd, halves, group);
            }
        }
    }
}

/// The scale of numbers quantized to integers up to `max`, and its inverse. Without an inverse all integers are
/// zero: the numbers are too small, or one is not finite, and then neither is the scale.
#[inline(always)]
pub(in crate::kernels) fn quantization_scale<S: Simd>(
    simd: S,
    vectors: impl Iterator<Item = S::Floats>,
    max: f32,
) -> (f32, Option<f32>) {
    let mut largest = simd.splat(0.0);
    for x in vectors {
        largest = simd.max_magnitude(largest, x);
    }
    let largest = simd.reduce_max_magnitude(largest);
    if !largest.is_finite() {
        return (f32::NAN, None);
    }
    if largest < f32::MIN_POSITIVE * max {
        return (0.0, None);
    }
    (largest / max, Some(max / largest))
}

/// Quantizes 32 numbers.
#[inline(always)]
fn quantize_group<S: Simd>(simd: S, [first, second]: [S::Floats; 2], group: &mut ActivationGroup) {
    let (scale, inverse) = quantization_scale(simd, [first, second].into_iter(), ACTIVATION_MAX);
    let Some(inverse) = inverse.map(|inverse| simd.splat(inverse)) else {
        *group = ActivationGroup { scale, ..ActivationGroup::default() };
        return;
    };
    let numbers = [simd.mul(first, inverse), simd.mul(second, inverse)];
    let quads = group.quads.each_mut().map(|quads| quads.as_mut_ptr());
    // SAFETY: each half of `quads` has room for the quads of a vector.
    let [first, second] = unsafe { simd.quantize_two_quads(numbers, quads) };
    group.scale = scale;
    group.half_sums = [first, second];
    group.sum = first + second;
    group.scaled_half_sums = [first as f32 * scale, second as f32 * scale];
    group.scaled_sum = group.sum as f32 * scale;
}
