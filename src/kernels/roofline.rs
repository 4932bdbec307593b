//! Roofline of the machine, measured: the read bandwidth and the integer throughput that bound every kernel.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::amx;
use super::isa::Isa;
use super::memory::HugePageBuf;
use super::simd::{Kernel, LANES, QUAD_BYTES, Simd, dispatch};
use super::threads::pool;

/// Time to measure each limit for.
const TIME: Duration = Duration::from_millis(100);

/// Measures the read bandwidth: the bytes per second that all compute threads together read from a buffer of
/// `n_bytes`, again and again; the median of the passes.
pub fn read_bytes_per_second(isa: Isa, n_bytes: usize) -> f64 {
    let n_vectors = (n_bytes / VECTOR_BYTES).max(1);
    let mut buffer = HugePageBuf::zeroed(n_vectors * VECTOR_BYTES);
    // The system maps a page to memory when it is first written.
    buffer.iter_mut().step_by(512).for_each(|byte| *byte = 1);
    let bytes = &buffer[..];
    median_rate(bytes.len() as f64, || {
        pool::run(|team| {
            let edge = |index: usize| index * n_vectors / team.n_threads() * VECTOR_BYTES;
            let own = &bytes[edge(team.index())..edge(team.index() + 1)];
            black_box(dispatch(isa, ReadKernel(own)));
        });
    })
}

/// Measures the matrix throughput: the operations per second of all compute threads together, a
/// multiplication and an addition being two, with the instructions of the kernels for quantized weights. All
/// operands are in registers.
pub fn matmul_ops_per_second(isa: Isa) -> f64 {
    if isa == Isa::Amx {
        let work = || pool::run(|_| amx::multiply(ITERATIONS));
        return median_rate((pool::n_threads() * 2 * ITERATIONS * amx::PRODUCTS_PER_ITERATION) as f64, work);
    }
    let n_threads = pool::n_threads() as f64;
    median_rate(n_threads * (ITERATIONS * OPERATIONS_PER_ITERATION) as f64, || {
        pool::run(|_| {
            black_box(dispatch(isa, MultiplyKernel));
        });
    })
}

/// The median rate, per second, of `work` that does `amount` each time it is called.
fn median_rate(amount: f64, work: impl Fn()) -> f64 {
    let begin = Instant::now();
    let mut rates = Vec::new();
    while rates.len() < 5 || begin.elapsed() < TIME {
        let start = Instant::now();
        work();
        rates.push(amount / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

const VECTOR_BYTES: usize = LANES * size_of::<f32>();

struct ReadKernel<'a>(&'a [u8]);

impl Kernel for ReadKernel<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); 4];
        for (idx, vector) in self.0.as_chunks::<VECTOR_BYTES>().0.iter().enumerate() {
            // The matrix kernels prefetch too; without it they would exceed this limit.
            simd.prefetch_l1(vector.as_ptr().wrapping_add(4096));
            // SAFETY: the array has the bytes of a vector; loads need no alignment.
            let numbers = unsafe { simd.load(vector.as_ptr().cast()) };
            sums[idx % 4] = simd.add(sums[idx % 4], numbers);
        }
        simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
    }
}

/// Times that the same operands are multiplied.
const ITERATIONS: usize = 100_000;

/// Rows of activations, each of which multiplies four with a matrix of 16 by 4.
const ROWS: usize = 8;
const OPERATIONS_PER_ITERATION: usize = 2 * ROWS * 4 * LANES;

struct MultiplyKernel;

impl Kernel for MultiplyKernel {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let codes = black_box([1u8; 64]);
        let quads = black_box([0u8; ROWS * QUAD_BYTES]);
        // SAFETY: the arrays have the 64 codes and the quads of `ROWS` rows that are read.
        unsafe {
            let codes = simd.load_codes_8(codes.as_ptr());
            let mut sums = [simd.splat_sums(0); ROWS];
            for _ in 0..ITERATIONS {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = simd.dot_codes(*sums, codes, 4, quads.as_ptr().add(row * QUAD_BYTES), 0);
                }
            }
            let mut sum = simd.splat(0.0);
            for sums in sums {
                sum = simd.add(sum, simd.sums_to_floats(sums, 4, 1));
            }
            simd.reduce_add(sum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_instructions_are_faster_than_scalar_ones() {
        let measure = |isa| (read_bytes_per_second(isa, 1 << 20), matmul_ops_per_second(isa));
        let (bytes, ops) = measure(Isa::Scalar);
        assert!(bytes > 1e8 && ops > 1e7, "{bytes} B/s, {ops} operations/s");
        if Isa::Avx2.is_available() {
            assert!(measure(Isa::Avx2).1 > ops);
        }
    }
}
