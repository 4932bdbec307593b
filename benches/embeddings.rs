//! Embeddings before (a model loaded per request) and after (the singleton), with the default
//! model from the user's own caches.

use std::time::Duration;

use clap::Parser;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use predict_otron_9000::config::{Args, RegistryConfig};
use predict_otron_9000::embeddings::{EmbeddingInput, EmbeddingSource, TextEmbedding};
use predict_otron_9000::registry::Registry;

/// Name, texts of a request, words of a text.
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
            .map(|i| EmbeddingInput::Text(format!("{i} {}", "river ".repeat(n_words - 1))))
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

criterion_group!(benches, requests);
criterion_main!(benches);
