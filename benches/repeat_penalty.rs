//! One step of the repeat penalty with new tensors and a set per step, as in candle-transformers (`before`),
//! and with the cached tensor (`after`).

#![allow(clippy::unwrap_used, reason = "a failed bench may panic")]

use candle_core::{Device, Tensor};
use candle_transformers::utils::apply_repeat_penalty;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use predict_otron_9000::inference::sampling::CachedRepeatPenalty;

const PENALTY: f32 = 1.1;

/// Name, vocabulary size and window length (`repeat_last_n`) of each size.
const SIZES: [(&str, usize, usize); 3] =
    [("small", 32_000, 64), ("medium", 49_152, 512), ("large", 151_936, 4096)];

fn one_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("repeat_penalty");
    for (name, n_vocab, last_n) in SIZES {
        let logits = Tensor::randn(0f32, 4.0, n_vocab, &Device::Cpu).unwrap();
        // Twice the window, so that each new token pushes one out.
        let tokens: Vec<u32> = (0..2 * last_n).map(|i| (i * 7919 % n_vocab) as u32).collect();
        let mut cached = CachedRepeatPenalty::new(PENALTY, Some(last_n), n_vocab).unwrap();
        cached.start(&tokens).unwrap();

        let window = &tokens[tokens.len() - last_n..];
        let before = apply_repeat_penalty(&logits, PENALTY, window).unwrap().to_vec1::<f32>().unwrap();
        let after = cached.apply_cached_repeat_penalty(&logits).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(before, after, "both must give the same logits");

        group.bench_function(BenchmarkId::new("before", name), |b| {
            b.iter(|| apply_repeat_penalty(&logits, PENALTY, window).unwrap());
        });
        let mut next = tokens.iter().cycle();
        group.bench_function(BenchmarkId::new("after", name), |b| {
            b.iter(|| {
                let penalized = cached.apply_cached_repeat_penalty(&logits).unwrap();
                cached.push(*next.next().unwrap()).unwrap();
                penalized
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_step);
criterion_main!(benches);
