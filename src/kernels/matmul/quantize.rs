//! Rows of activations on their way into a product: norm_rows, and as whole numbers where the weights
//! are quantized.

use std::cell::RefCell;

use super::super::isa::Isa;
use super::super::layout::{ActivationGroup, GROUP_LEN, MAX_TILE_ROWS};
use super::super::norm::{Norm, Transform};
use super::super::simd::{ACTIVATION_MAX, Kernel, LANES, Simd, dispatch};
use super::super::threads::disjoint::DisjointSlice;

/// Rows to multiply with matrices, as float32, as whole numbers, or both.
#[derive(Debug)]
pub struct GemvActivations {
    n_rows: usize,
    n_in: usize,
    tile_rows: usize,
    /// What of the buffers belongs to the rows.
    n_floats: usize,
    n_groups: usize,
    floats: Vec<f32>,
    groups: Vec<ActivationGroup>,
}

/// Where threads put the rows.
#[derive(Debug, Clone, Copy)]
pub struct GemvActivationsMut<'a> {
    n_in: usize,
    tile_rows: usize,
    floats: Option<DisjointSlice<'a, f32>>,
    groups: Option<DisjointSlice<'a, ActivationGroup>>,
}

thread_local! {
    /// Buffers for the next rows: a forward pass needs hundreds of them, one after the other.
    static SPARE: RefCell<(Vec<f32>, Vec<ActivationGroup>)> = RefCell::default();
}

impl GemvActivations {
    /// Room for rows of `n_in` numbers in the wanted forms, holding whatever.
    pub fn acquire(n_rows: usize, n_in: usize, wants_floats: bool, wants_groups: bool) -> Self {
        debug_assert!(!wants_groups || n_in.is_multiple_of(GROUP_LEN));
        let (mut floats, mut groups) = SPARE.take();
        let tile_rows = n_rows.clamp(1, MAX_TILE_ROWS);
        let n_numbers = n_rows.next_multiple_of(tile_rows) * n_in;
        let n_floats = if wants_floats { n_numbers } else { 0 };
        let n_groups = if wants_groups { n_numbers / GROUP_LEN } else { 0 };
        // They only grow: what is there need not be written again.
        floats.resize(floats.len().max(n_floats), 0.0);
        groups.resize(groups.len().max(n_groups), ActivationGroup::default());
        Self { n_rows, n_in, tile_rows, n_floats, n_groups, floats, groups }
    }

    /// Leaves the room to the next.
    pub fn recycle(self) {
        SPARE.replace((self.floats, self.groups));
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Rows that lie interleaved.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// All rows as float32: tile by tile, of a tile the first number of each row, then the second.
    pub fn floats(&self) -> &[f32] {
        &self.floats[..self.n_floats]
    }

    /// All rows as whole numbers: tile by tile, of a tile the first group of each row, then the second.
    pub fn groups(&self) -> &[ActivationGroup] {
        &self.groups[..self.n_groups]
    }

    /// To fill the rows from several threads.
    pub fn shared(&mut self) -> GemvActivationsMut<'_> {
        fn wanted<T>(all: &mut [T]) -> Option<DisjointSlice<'_, T>> {
            (!all.is_empty()).then(|| DisjointSlice::new(all))
        }
        GemvActivationsMut {
            n_in: self.n_in,
            tile_rows: self.tile_rows,
            floats: wanted(&mut self.floats[..self.n_floats]),
            groups: wanted(&mut self.groups[..self.n_groups]),
        }
    }
}

impl GemvActivationsMut<'_> {
    /// Fills tile `idx` with what `norm` makes of its rows out of all those of `x`.
    ///
    /// # Safety
    /// Nobody else fills this tile at the same time.
    ///
    /// # Panics
    /// When there is no such tile, or the norm is of another length.
    pub unsafe fn fill(&self, isa: Isa, idx: usize, x: &[f32], norm: Option<&Norm>) {
        if let Some(norm) = norm {
            norm.check(self.n_in);
        }
        let tile_len = self.tile_rows * self.n_in;
        let (n_floats, n_groups) = (tile_len, tile_len / GROUP_LEN);
        // SAFETY: the caller's promise.
        let mut floats = self.floats.as_ref().map(|all| unsafe { all.slice(idx * n_floats, n_floats) });
        // SAFETY: as above.
        let mut groups = self.groups.as_ref().map(|all| unsafe { all.slice(idx * n_groups, n_groups) });
        let rows = x[idx * tile_len..].chunks_exact(self.n_in).take(self.tile_rows);
        for (row, x) in rows.enumerate() {
            let (floats, groups) = (floats.as_deref_mut(), groups.as_deref_mut());
            dispatch(isa, QuantizeRow { x, norm, row, stride: self.tile_rows, floats, groups });
        }
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    norm: Option<&'a Norm<'a>>,
    /// Which of the rows of the tile, and how many there are.
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
        // SAFETY: the caller's promise: all slices are of one length, or as many groups.
        unsafe {
            let transform = Transform::new(simd, x, norm);
            if let Some(floats) = floats {
                for start in (0..x.len()).step_by(LANES) {
                    let mut numbers = [0.0; LANES];
                    simd.store(transform.apply(x, start), numbers.as_mut_ptr());
                    let places = floats[start * stride + row..].iter_mut().step_by(stride);
                    places.take(x.len() - start).zip(numbers).for_each(|(to, number)| *to = number);
                }
            }
            if let Some(groups) = groups {
                for (idx, group) in groups[row..].iter_mut().step_by(stride).enumerate() {
                    let start = idx * GROUP_LEN;
                    let halves = [transform.apply(x, start), transform.apply(x, start + LANES)];
                    quantize(simd, halves, group);
                }
            }
        }
    }
}

/// What numbers as whole ones are multiplied by, and its inverse. Without one, all are zeros: they are
/// so small, or they are not finite and neither is their scale.
#[inline(always)]
pub(in crate::kernels) fn quantization_scale<S: Simd>(
    simd: S,
    vectors: impl Iterator<Item = S::Floats>,
) -> (f32, Option<f32>) {
    let mut largest = simd.splat(0.0);
    for x in vectors {
        largest = simd.max_magnitude(largest, x);
    }
    let largest = simd.reduce_max_magnitude(largest);
    if !largest.is_finite() {
        return (f32::NAN, None);
    }
    if largest < f32::MIN_POSITIVE * ACTIVATION_MAX {
        return (0.0, None);
    }
    (largest / ACTIVATION_MAX, Some(ACTIVATION_MAX / largest))
}

/// 32 numbers as whole ones.
#[inline(always)]
unsafe fn quantize<S: Simd>(simd: S, [first, second]: [S::Floats; 2], group: &mut ActivationGroup) {
    // SAFETY: a group has room for the quads of two vectors.
    unsafe {
        let (scale, inverse) = quantization_scale(simd, [first, second].into_iter());
        let Some(inverse) = inverse.map(|inverse| simd.splat(inverse)) else {
            *group = ActivationGroup { scale, ..ActivationGroup::default() };
            return;
        };
        let numbers = [simd.mul(first, inverse), simd.mul(second, inverse)];
        let quads = group.quads.each_mut().map(|quads| quads.as_mut_ptr());
        let [first, second] = simd.quantize_two_quads(numbers, quads);
        group.scale = scale;
        group.half_sums = [first, second];
        group.sum = first + second;
        group.scaled_half_sums = [first as f32 * scale, second as f32 * scale];
        group.scaled_sum = group.sum as f32 * scale;
    }
}
