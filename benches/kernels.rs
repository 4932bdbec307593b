//! Each kernel by itself: matrix products in every weight format, attention over the KV cache in every format,
//! bidirectional attention, and passes over the logits.

#![allow(clippy::unwrap_used, reason = "a failed bench may panic")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use predict_otron_9000::kernels::attention::kv_block::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout};
use predict_otron_9000::kernels::attention::{EncoderAttention, KvRef, PagedAttention, SequenceKv};
use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::kernels::matmul::{ActivationFn, Projection, WeightWithBias, linear, mlp};
use predict_otron_9000::kernels::norm::Norm;
use predict_otron_9000::kernels::weights::{PackedMatrix, WeightFormat};
use predict_otron_9000::kernels::{logits, threads::pool};

use WeightFormat::{Bf16Pairs, F32, Q4_1};

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1999) as f32 / 999.5 - 1.0).collect()
}

fn matrix(format: WeightFormat, n_out: usize, n_in: usize) -> PackedMatrix {
    // Scales read from these bytes are 1 in half precision.
    let bytes = f16::ONE.to_le_bytes().repeat(n_in / format.block_len() * format.source_bytes());
    let row_bytes = n_in / format.block_len() * format.source_bytes();
    PackedMatrix::pack(format, n_out, n_in, |_| &bytes[..row_bytes]).unwrap()
}

/// Matrix products; criterion's elements are floating-point operations.
fn products(criterion: &mut Criterion) {
    let (n_out, n_in) = (8192, 2048);
    let isa = Isa::current();
    for format in WeightFormat::ALL {
        if format == Bf16Pairs && !isa.has_bf16() {
            continue;
        }
        let mut group = criterion.benchmark_group(format!("products/{format:?}"));
        let matrix = matrix(format, n_out, n_in);
        let weighted = [WeightWithBias { matrix: &matrix, bias: None }];
        for n_rows in [1, 4, 32, 256] {
            let x = numbers(n_rows * n_in);
            group.throughput(Throughput::Elements(2 * (n_rows * n_out * n_in) as u64));
            group.bench_function(BenchmarkId::from_parameter(n_rows), |b| {
                b.iter(|| linear(isa, &x, n_in, None, &Projection::Concat(&weighted), None));
            });
        }
        group.finish();
    }
}

/// Matrix products with and without fused operations.
fn fused(criterion: &mut Criterion) {
    let (n_out, n_in, n_rows) = (1536, 576, 32);
    let isa = Isa::current();
    let (gate, up) = (matrix(Q4_1, n_out, n_in), matrix(Q4_1, n_out, n_in));
    let (gate, up) =
        (WeightWithBias { matrix: &gate, bias: None }, WeightWithBias { matrix: &up, bias: None });
    let (x, weight) = (numbers(n_rows * n_in), numbers(n_in));
    let norm = || Some(Norm::Rms { weight: &weight, eps: 1e-5 });
    let mut group = criterion.benchmark_group("fused");
    group.bench_function("two products", |b| {
        b.iter(|| linear(isa, &x, n_in, None, &Projection::Concat(&[gate, up]), None));
    });
    group.bench_function("norm, two products", |b| {
        b.iter(|| linear(isa, &x, n_in, norm(), &Projection::Concat(&[gate, up]), None));
    });
    group.bench_function("norm, two products, gate", |b| {
        b.iter(|| {
            linear(isa, &x, n_in, norm(), &Projection::Gated { gate, up, function: ActivationFn::Silu }, None)
        });
    });
    group.finish();
}

/// Attention of one layer of the default model. Throughput is in bytes of the KV cache for single new tokens, and
/// in operations for many.
fn attention(criterion: &mut Criterion) {
    let isa = Isa::current();
    let (n_heads, n_kv_heads, head_dim) = (9, 3, 64);
    let row_len = (n_heads + 2 * n_kv_heads) * head_dim;
    for format in [KvFormat::F16, KvFormat::Int8] {
        let mut group = criterion.benchmark_group(format!("attention/{format:?}"));
        let layout = KvLayout { n_layers: 1, n_kv_heads, head_dim, shared_values: false, format };
        let attention = PagedAttention {
            n_heads,
            layout,
            layer: 0,
            is_kv_shared: false,
            scale: 0.125,
            softcap: None,
            window: None,
            head_norms: None,
            rope: None,
            query_scales: None,
            sinks: None,
        };
        for (name, n_sequences, start, len) in [
            ("1 at 4000", 1, 4000usize, 1usize),
            ("32 at 160", 32, 160, 1),
            ("256 at 0", 1, 0, 256),
            ("256 at 3840", 1, 3840, 256),
        ] {
            let mut free: Vec<KvBlock> = Vec::new();
            let mut blocks: Vec<Vec<KvBlock>> = Vec::new();
            for _ in 0..n_sequences {
                let n_blocks = (start + len).div_ceil(BLOCK_TOKENS);
                while free.len() < n_blocks {
                    free.extend(layout.allocate_blocks());
                }
                blocks.push(free.drain(..n_blocks).collect());
            }
            let qkv = numbers(n_sequences * len * row_len);
            let n_keys = n_sequences * (start + len);
            let bytes = n_keys * layout.block_bytes() / BLOCK_TOKENS;
            let operations = 4 * len * (start + len / 2) * n_heads * head_dim;
            group.throughput(match len {
                1 => Throughput::Bytes(bytes as u64),
                _ => Throughput::Elements(operations as u64),
            });
            group.bench_function(name, |b| {
                b.iter(|| {
                    let mut sequences: Vec<SequenceKv> = blocks
                        .iter_mut()
                        .map(|blocks| SequenceKv {
                            start,
                            len,
                            blocks: blocks.iter_mut().map(KvRef::Own).collect(),
                        })
                        .collect();
                    attention.forward(isa, &qkv, &mut sequences)
                });
            });
        }
        group.finish();
    }
}

/// One layer of the default embedding model over a batch: the MLP and bidirectional attention, in operations.
fn encoder_layer(criterion: &mut Criterion) {
    let isa = Isa::current();
    let (n_heads, head_dim, n_rows) = (12, 32, 512);
    let (hidden, inner) = (n_heads * head_dim, 1536);
    let qkv = numbers(n_rows * 3 * hidden);
    for in_bf16 in [false, true].into_iter().filter(|&in_bf16| !in_bf16 || isa.has_bf16()) {
        let format = if in_bf16 { Bf16Pairs } else { F32 };
        let mut group = criterion.benchmark_group(format!("encoder/{format:?}"));
        let (up, down) = (matrix(format, inner, hidden), matrix(format, hidden, inner));
        let (up, down) =
            (WeightWithBias { matrix: &up, bias: None }, WeightWithBias { matrix: &down, bias: None });
        group.throughput(Throughput::Elements((4 * n_rows * hidden * inner) as u64));
        group.bench_function("mlp", |b| {
            let x = &qkv[..n_rows * hidden];
            b.iter(|| mlp(isa, x, None, &Projection::Activated(up, ActivationFn::Gelu), down.into()));
        });
        let attention = EncoderAttention {
            n_heads,
            head_dim,
            scale: 0.17,
            window: None,
            rope: None,
            bias: None,
            in_bf16,
        };
        for len in [16, 128, 512] {
            group.throughput(Throughput::Elements((4 * n_rows * len * hidden) as u64));
            group.bench_function(format!("attention of {len}"), |b| {
                b.iter(|| attention.forward(isa, &qkv, &vec![len; n_rows / len]));
            });
        }
        group.finish();
    }
}

fn logits(criterion: &mut Criterion) {
    let isa = Isa::current();
    let logits = numbers(49_152);
    let mut group = criterion.benchmark_group("logits");
    group.bench_function("max", |b| b.iter(|| logits::max_logit(isa, &logits)));
    group.bench_function("weights", |b| b.iter(|| logits::softmax_weights(isa, &logits, 1.0, 0.7)));
    group.finish();
}

/// Overhead of starting the thread pool and claiming chunks of work.
fn pool_costs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool");
    group.bench_function("run", |b| b.iter(|| pool::run(|_| {})));
    group.bench_function("share", |b| b.iter(|| pool::run(|team| team.claim_chunks(16, 1).for_each(drop))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    targets = products, fused, attention, encoder_layer, logits, pool_costs
}
criterion_main!(benches);
