//! Maximum and softmax weights of the logits of a whole vocabulary.

use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch, exp, load_array, load_masked, store_array};

/// Returns the largest logit, minus infinity if there is none. NaNs are ignored.
pub fn max_logit(isa: Isa, logits: &[f32]) -> f32 {
    dispatch(isa, MaxKernel(logits))
}

/// Returns the softmax weights `e^((x - max) / temperature)` of the logits, not normalized. Weights below
/// `e^-87`, and those of NaNs, are zero.
pub fn softmax_weights(isa: Isa, logits: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    let mut weights = vec![0.0; logits.len()];
    dispatch(isa, SoftmaxWeightsKernel { logits, max, temperature, weights: &mut weights });
    weights
}

struct MaxKernel<'a>(&'a [f32]);

impl Kernel for MaxKernel<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (vectors, rest) = self.0.as_chunks();
        // Four maxima, since a comparison waits for the one before it.
        let mut largest = [simd.splat(f32::NEG_INFINITY); 4];
        for (idx, vector) in vectors.iter().enumerate() {
            largest[idx % 4] = simd.max(load_array(simd, vector), largest[idx % 4]);
        }
        let [a, b, c, d] = largest;
        rest.iter().copied().fold(simd.reduce_max(simd.max(simd.max(a, b), simd.max(c, d))), f32::max)
    }
}

struct SoftmaxWeightsKernel<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Kernel for SoftmaxWeightsKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { logits, max, temperature, weights } = self;
        let (max, inverse) = (simd.splat(max), simd.splat(1.0 / temperature));
        // `exp` clamps its argument, so this is the smallest weight there is.
        let least = exp(simd, simd.splat(f32::NEG_INFINITY));
        for (start, weights) in (0..).step_by(LANES).zip(weights.chunks_mut(LANES)) {
            let x = simd.mul(simd.sub(load_masked(simd, logits, start), max), inverse);
            let mut vector = [0.0; LANES];
            store_array(simd, simd.sub(exp(simd, x), least), &mut vector);
            weights.copy_from_slice(&vector[..weights.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_and_weights_equal_their_definition() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for n in [0, 1, 15, 16, 17, 100, 1000] {
                let mut logits: Vec<f32> = (0..n).map(|i| ((i * 7919) % 997) as f32 / 50.0 - 10.0).collect();
                if n > 16 {
                    (logits[3], logits[9], logits[n - 1]) = (f32::NAN, f32::NEG_INFINITY, -500.0);
                }
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max_logit(isa, &logits), largest, "{isa} {n}");
                for (x, weight) in logits.iter().zip(softmax_weights(isa, &logits, largest, 0.7)) {
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
