//! Roofline of the machine, measured: the read bandwidth and the integer throughput that bound every kernel.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::amx;
use super::isa::Isa;
use super::memory::HugePageBuf;
use super::simd::{Kernel, LANES, QUAD_BYTES, Simd, dispatch, with_rows};
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
    median_rate(TIME, bytes.len() as f64, || {
        pool::run(|team| {
            let edge = |index: usize| index * n_vectors / team.n_threads() * VECTOR_BYTES;
            let own = &bytes[edge(team.index())..edge(team.index() + 1)];
            black_box(dispatch(isa, ReadKernel(own)));
        });
    })
}

/// Measures the matrix throughput: the operations per second of all compute threads together, a multiplication and an
/// addition being two. Of the instructions that the kernels for quantized weights use, it is the rate of the fastest; those
/// for activations of 8 bits count `with_bytes`. Weights and sums are in registers, activations in the L1 cache.
pub fn matmul_ops_per_second(isa: Isa, with_bytes: bool) -> f64 {
    if isa == Isa::Amx {
        let ops = pool::n_threads() * 2 * ITERATIONS * amx::PRODUCTS_PER_ITERATION;
        return median_rate(TIME, ops as f64, || pool::run(|_| amx::multiply(ITERATIONS)));
    }
    // Which number of rows fills the pipelines and does not exceed the registers differs.
    const ROWS: [usize; 3] = [2, 4, 8];
    let forms = [Operands::Codes, Operands::Pairs, Operands::Bytes];
    let forms = &forms[..if with_bytes { 3 } else { 2 }];
    let n_iterations = if isa == Isa::Scalar { ITERATIONS / 64 } else { ITERATIONS };
    let measure = |operands: Operands, n_rows: usize| {
        let n_products = n_iterations * n_rows * PANELS * operands.n_inner() * LANES;
        let time = TIME / (forms.len() * ROWS.len()) as u32;
        median_rate(time, (pool::n_threads() * 2 * n_products) as f64, || {
            pool::run(|_| {
                black_box(dispatch(isa, MultiplyKernel { operands, n_rows, n_iterations }));
            });
        })
    };
    forms.iter().flat_map(|&form| ROWS.map(|n_rows| measure(form, n_rows))).fold(0.0, f64::max)
}

/// The median rate, per second, of `work` that does `amount` each time it is called, for at least `time`.
fn median_rate(time: Duration, amount: f64, work: impl Fn()) -> f64 {
    let begin = Instant::now();
    let mut rates = Vec::new();
    while rates.len() < 5 || begin.elapsed() < time {
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
const ITERATIONS: usize = 50_000;

/// Panels that an activation, once loaded, is multiplied with.
const PANELS: usize = 2;

/// The operands of an instruction.
#[derive(Debug, Clone, Copy)]
enum Operands {
    /// Codes and 16-bit activations, as GEMV multiplies them.
    Codes,
    /// 16-bit integers, as GEMM multiplies them.
    Pairs,
    /// Codes and 8-bit activations.
    Bytes,
}

impl Operands {
    /// Elements of a row of activations that an instruction multiplies.
    fn n_inner(self) -> usize {
        if matches!(self, Self::Pairs) { 2 } else { 4 }
    }
}

/// Multiplies rows of activations with two panels, again and again.
struct MultiplyKernel {
    operands: Operands,
    n_rows: usize,
    n_iterations: usize,
}

/// Repeats `$product` of the sums, the weights of a panel and the address of a row's activations, for `$M` rows; returns
/// the sum of all.
macro_rules! repeat {
    ($simd:ident, $n:expr, $M:ident, $weights:expr, $zero:expr, |$sums:ident, $of_panel:ident, $of_row:ident| $product:expr, $to_floats:expr) => {{
        let weights = $weights;
        let activations = [0u8; 8 * QUAD_BYTES];
        let mut all_sums = [[$zero; PANELS]; $M];
        for _ in 0..$n {
            // Activations are loaded anew each time: otherwise parts of the products would be computed only once.
            let activations = black_box(&activations).as_ptr();
            for m in 0..$M {
                let $of_row = activations.add(m * QUAD_BYTES);
                for p in 0..PANELS {
                    let ($sums, $of_panel) = (all_sums[m][p], weights[p]);
                    all_sums[m][p] = $product;
                }
            }
        }
        let mut total = $simd.splat(0.0);
        for $sums in all_sums.as_flattened().iter().copied() {
            total = $simd.add(total, $to_floats);
        }
        $simd.reduce_add(total)
    }};
}

impl Kernel for MultiplyKernel {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        with_rows!(self.n_rows, M in [2, 4, 8] => self.multiply::<S, M>(simd))
    }
}

impl MultiplyKernel {
    #[inline(always)]
    fn multiply<S: Simd, const M: usize>(&self, simd: S) -> f32 {
        let panels = black_box([[1u8; 64]; PANELS]);
        let [first, second] = [panels[0].as_ptr(), panels[1].as_ptr()];
        // SAFETY: the arrays have the 64 bytes of a panel, and the activations of `M` rows, that are read.
        unsafe {
            let bytes = [simd.load_codes_8(first), simd.load_codes_8(second)];
            let words = [simd.load_i16_pairs(first.cast()), simd.load_i16_pairs(second.cast())];
            let (n, zero) = (self.n_iterations, simd.splat_i16_sums(0));
            match self.operands {
                Operands::Codes => repeat!(
                    simd,
                    n,
                    M,
                    bytes,
                    simd.splat_sums(0),
                    |sums, codes, of_row| simd.dot_codes(sums, codes, 4, of_row, 0),
                    simd.sums_to_floats(sums, 4, 1)
                ),
                Operands::Pairs => repeat!(
                    simd,
                    n,
                    M,
                    words,
                    zero,
                    |sums, words, of_row| simd.dot_i16_pairs(sums, words, of_row.cast()),
                    simd.i16_sums_to_floats(sums)
                ),
                Operands::Bytes => repeat!(
                    simd,
                    n,
                    M,
                    bytes,
                    zero,
                    |sums, codes, of_row| simd.dot_bytes(sums, codes, of_row.cast()),
                    simd.i16_sums_to_floats(sums)
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_instructions_are_faster_than_scalar_ones() {
        let measure = |isa| (read_bytes_per_second(isa, 1 << 20), matmul_ops_per_second(isa, true));
        let (bytes, ops) = measure(Isa::Scalar);
        assert!(bytes > 1e8 && ops > 1e7, "{bytes} B/s, {ops} operations/s");
        if Isa::Avx2.is_available() {
            assert!(measure(Isa::Avx2).1 > ops);
        }
    }
}
