//! Embedding requests with a model loaded per request (`before`) and with the singleton (`after`), and the
//! built-in encoder compared with fastembed. The model is the default one, or the one that
//! PREDICT_OTRON_EMBEDDING_MODEL names, such as a folder with both model.safetensors and model.onnx.

#![allow(clippy::unwrap_used, reason = "a failed bench may panic")]

use std::time::Duration;

use clap::Parser;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use predict_otron_9000::config::{Args, EmbeddingBackend, RegistryConfig};
use predict_otron_9000::embeddings::{EmbeddingInput, EmbeddingSource, TextEmbedding};
use predict_otron_9000::registry::Registry;

/// Name, number of texts per request and number of words per text of each size.
const SIZES: [(&str, usize, usize); 3] = [("small", 1, 8), ("medium", 8, 64), ("large", 32, 128)];

fn requests(criterion: &mut Criterion) {
    let args = Args::parse_from(["predict-otron-9000"]).serve;
    let registry = Registry::new(RegistryConfig::resolve(args.registry).unwrap());
    let source = EmbeddingSource::locate(&args.embedding_model, &registry).unwrap();
    let load = || TextEmbedding::load(&source, &registry).unwrap();
    let singleton = load();

    let mut group = criterion.benchmark_group("embeddings");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for (name, n_texts, n_words) in SIZES {
        let inputs: Vec<EmbeddingInput> = (0..n_texts)
            .map(|i| EmbeddingInput::Text(format!("{i} {}", "river ".repeat(n_words - 1)).into()))
            .collect();
        assert_eq!(singleton.embed(inputs.clone().into()).unwrap().vectors.len(), n_texts);

        group.throughput(Throughput::Elements(n_texts as u64));
        group.bench_function(BenchmarkId::new("before", name), |b| {
            b.iter(|| load().embed(inputs.clone().into()).unwrap());
        });
        group.bench_function(BenchmarkId::new("after", name), |b| {
            b.iter(|| singleton.embed(inputs.clone().into()).unwrap());
        });
    }
    group.finish();
}

/// Name of each batch shape, and the number of words of each of its texts.
fn shapes() -> [(&'static str, Vec<usize>); 4] {
    [
        ("1 x 16", vec![14]),
        ("32 x 16", vec![14; 32]),
        ("32 x 128", vec![126; 32]),
        ("32 x 16 to 256", (0..32).map(|i| 14 + 97 * i % 241).collect()),
    ]
}

fn backends(criterion: &mut Criterion) {
    let args = Args::parse_from(["predict-otron-9000"]).serve;
    let registry = Registry::new(RegistryConfig::resolve(args.registry).unwrap());
    let mut group = criterion.benchmark_group("backends");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for backend in [EmbeddingBackend::Encoder, EmbeddingBackend::Fastembed] {
        let load = || {
            let source = EmbeddingSource::locate_for_backend(&args.embedding_model, backend, &registry)?;
            TextEmbedding::load(&source, &registry)
        };
        let model = match load() {
            Ok(model) => model,
            Err(e) => {
                eprintln!("skipping {backend}: {e}");
                continue;
            }
        };
        for (name, words) in shapes() {
            // All texts differ, since duplicates are computed only once.
            let text = |(i, &n): (usize, &usize)| format!("{i} {}", "river ".repeat(n - 1));
            let inputs: Vec<EmbeddingInput> =
                words.iter().enumerate().map(text).map(|text| EmbeddingInput::Text(text.into())).collect();
            group.throughput(Throughput::Elements(words.len() as u64));
            group.bench_function(BenchmarkId::new(backend.to_string(), name), |b| {
                b.iter(|| model.embed(inputs.clone().into()).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests, backends);
criterion_main!(benches);
