//! Passes over the logits of a whole vocabulary.

use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch, exp, load_masked};

/// The largest number; minus infinity when there is none. What is not a number counts as absent.
pub fn max_logit(isa: Isa, numbers: &[f32]) -> f32 {
    dispatch(isa, MaxKernel(numbers))
}

/// `e^((x - max) / temperature)` of each number. What is less than `e^-87`, or not a number, becomes
/// zero.
pub fn softmax_weights(isa: Isa, numbers: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    let mut weights = vec![0.0; numbers.len()];
    dispatch(isa, SoftmaxWeightsKernel { numbers, max, temperature, weights: &mut weights });
    weights
}

struct MaxKernel<'a>(&'a [f32]);

impl Kernel for MaxKernel<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        // SAFETY: the processor has the instructions; arrays of a vector's length.
        unsafe {
            let (vectors, rest) = self.0.as_chunks::<LANES>();
            // Several side by side, since a comparison waits for the one before it.
            let mut largest = [simd.splat(f32::NEG_INFINITY); 4];
            for (idx, vector) in vectors.iter().enumerate() {
                largest[idx % 4] = simd.max(simd.load(vector.as_ptr()), largest[idx % 4]);
            }
            let [a, b, c, d] = largest;
            rest.iter().copied().fold(simd.reduce_max(simd.max(simd.max(a, b), simd.max(c, d))), f32::max)
        }
    }
}

struct SoftmaxWeightsKernel<'a> {
    numbers: &'a [f32],
    max: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Kernel for SoftmaxWeightsKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { numbers, max, temperature, weights } = self;
        // SAFETY: the processor has the instructions; arrays of a vector's length.
        unsafe {
            let (max, inverse) = (simd.splat(max), simd.splat(1.0 / temperature));
            // All that is less than this has come to it.
            let least = exp(simd, simd.splat(f32::NEG_INFINITY));
            for (start, weights) in (0..).step_by(LANES).zip(weights.chunks_mut(LANES)) {
                let x = simd.mul(simd.sub(load_masked(simd, numbers, start), max), inverse);
                let mut vector = [0.0; LANES];
                simd.store(simd.sub(exp(simd, x), least), vector.as_mut_ptr());
                weights.copy_from_slice(&vector[..weights.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_maximum_equal_their_definition() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for n in [0, 1, 15, 16, 17, 100, 1000] {
                let mut numbers: Vec<f32> = (0..n).map(|i| ((i * 7919) % 997) as f32 / 50.0 - 10.0).collect();
                if n > 16 {
                    (numbers[3], numbers[9], numbers[n - 1]) = (f32::NAN, f32::NEG_INFINITY, -500.0);
                }
                let largest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max_logit(isa, &numbers), largest, "{isa} {n}");
                for (x, weight) in numbers.iter().zip(softmax_weights(isa, &numbers, largest, 0.7)) {
                    let expected = ((x - largest) / 0.7).exp();
                    let expected = if expected > 2e-38 { expected } else { 0.0 };
                    assert!(
                        (weight - expected).abs() <= 1e-5 * expected,
                        "{isa} {n}: {weight} is not {expected}"
                    );
                }
            }
        }
    }
}
