//! The kernels alone: products of one to many rows with a matrix of each format.

use std::hint::black_box;
use std::time::Instant;

use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::kernels::linear::{Products, Weighted, linear};
use predict_otron_9000::kernels::weights::{PackedMatrix, WeightFormat};

fn main() {
    use WeightFormat::*;
    let (n_out, n_in) = (16384usize, 2048usize);
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Scalar] {
        for format in [Q4_0, Q4_1, Q8_0, Q4K, Q6K, Q5_1, General6, F16, Bf16, F32] {
            let row_bytes = n_in / format.block_len() * format.source_bytes();
            let source: Vec<u8> = (0..row_bytes).map(|i| (i * 37 % 61) as u8).collect();
            let start = Instant::now();
            let matrix = PackedMatrix::pack(format, n_out, n_in, |_| &source).unwrap();
            let packing = start.elapsed();
            print!("{isa} {format:?} pack {:.2} s", packing.as_secs_f64());
            for n_rows in [1usize, 4, 8, 32, 512] {
                if isa == Isa::Scalar && n_rows > 32 {
                    continue;
                }
                let x: Vec<f32> = (0..n_rows * n_in).map(|i| (i % 17) as f32 - 8.0).collect();
                let products = [Weighted { matrix: &matrix, bias: None }];
                let mut best = f64::MAX;
                for _ in 0..if n_rows > 32 { 3 } else { 12 } {
                    let start = Instant::now();
                    black_box(linear(isa, &x, n_in, None, &Products::SideBySide(&products), None));
                    best = best.min(start.elapsed().as_secs_f64());
                }
                print!(
                    "  {n_rows}: {:.0} us {:.1} GB/s {:.0} GFLOP/s",
                    best * 1e6,
                    matrix.n_bytes() as f64 / best / 1e9,
                    2.0 * (n_rows * n_in * n_out) as f64 / best / 1e9
                );
            }
            println!();
        }
    }
}
