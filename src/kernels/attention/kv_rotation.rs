//! The rotation of heads whose keys and values are rounded to 8 bits.
//!
//! One outlier among the elements of a head leaves few steps to the others, so keys and values are rotated before they are
//! rounded. Queries are rotated as the keys are, which leaves scores as they were; sums of values are rotated back.

use super::super::simd::{LANES, Simd, load_array, store_array};

/// Columns of the matrix of [`Simd::rotate`] that are negated: the last ones.
const NEGATED: usize = 4;

/// Rotates a head of whole vectors. It is cut into parts of the largest power of two that divides its length.
#[inline(always)]
pub(super) fn rotate_head<S: Simd>(simd: S, head: &mut [f32]) {
    let head = head.as_chunks_mut().0;
    for x in head.iter_mut() {
        store_array(simd, simd.rotate(load_array(simd, x)), x);
    }
    rotate_vectors(simd, head);
}

/// Undoes [`rotate_head`].
#[inline(always)]
pub(super) fn rotate_head_back<S: Simd>(simd: S, head: &mut [f32]) {
    let head = head.as_chunks_mut().0;
    rotate_vectors(simd, head);
    let mut signs = [1.0; LANES];
    signs[LANES - NEGATED..].fill(-1.0);
    let signs = load_array(simd, &signs);
    for x in head.iter_mut() {
        // The matrix is a symmetric one times that of the signs, which are its own inverse.
        let rotated = simd.rotate(simd.mul(load_array(simd, x), signs));
        store_array(simd, simd.mul(rotated, signs), x);
    }
}

/// Multiplies the vectors of each part of a head with a Hadamard matrix, and all elements with a factor that keeps lengths.
#[inline(always)]
fn rotate_vectors<S: Simd>(simd: S, head: &mut [[f32; LANES]]) {
    let of_part = 1 << head.len().trailing_zeros();
    let mut distance = 1;
    while distance < of_part {
        for pairs in head.chunks_exact_mut(2 * distance) {
            let (first, second) = pairs.split_at_mut(distance);
            for (a, b) in first.iter_mut().zip(second) {
                let (x, y) = (load_array(simd, a), load_array(simd, b));
                store_array(simd, simd.add(x, y), a);
                store_array(simd, simd.sub(x, y), b);
            }
        }
        distance *= 2;
    }
    let factor = simd.splat(1.0 / ((of_part * LANES) as f32).sqrt());
    for x in head {
        store_array(simd, simd.mul(load_array(simd, x), factor), x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::isa::Isa;
    use super::super::super::simd::{Kernel, dispatch};
    use super::*;

    struct Rotate<'a>(&'a mut [f32], bool);

    impl Kernel for Rotate<'_> {
        type Output = ();

        fn run<S: Simd>(self, simd: S) {
            let Self(head, back) = self;
            if back { rotate_head_back(simd, head) } else { rotate_head(simd, head) }
        }
    }

    #[test]
    fn a_rotation_spreads_outliers_keeps_products_and_can_be_undone() {
        for head_dim in [16, 64, 80, 96, 576] {
            let numbers = |seed: usize| -> Vec<f32> {
                (0..head_dim).map(|i| ((i * 7919 + seed) % 199) as f32 / 99.5 - 1.0).collect()
            };
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let (mut key, query) = (numbers(1), numbers(5));
            key[3] = 100.0;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let rotated = |head: &[f32], back| {
                    let mut head = head.to_vec();
                    dispatch(isa, Rotate(&mut head, back));
                    head
                };
                let (rotated_key, rotated_query) = (rotated(&key, false), rotated(&query, false));
                let (found, expected) = (product(&rotated_key, &rotated_query), product(&key, &query));
                assert!((found - expected).abs() < 1e-3 * expected.abs().max(10.0), "{isa} {head_dim}");
                assert!(rotated_key.iter().all(|x| x.abs() < 30.0), "{isa} {head_dim}: {rotated_key:?}");
                let errors = rotated(&rotated_key, true).into_iter().zip(&key).map(|(a, b)| (a - b).abs());
                assert!(errors.fold(0.0, f32::max) < 1e-4, "{isa} {head_dim}");
            }
        }
    }
}
