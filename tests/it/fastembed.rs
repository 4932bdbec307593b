//! The ONNX Runtime backend: a tiny encoder gives the same vectors there, as ONNX, as on our own encoder, as
//! safetensors.

use std::fs;
use std::path::Path;

use once_cell::sync::OnceCell;
use predict_otron_9000::app::embedder_options;
use predict_otron_9000::config::{EmbeddingBackend, Limits, RegistryConfig};
use predict_otron_9000::embeddings::{
    Embedder, EmbeddingInput, EmbeddingRequest, EmbeddingSource, PromptPrefix, TextEmbedding,
};
use predict_otron_9000::error::Error;
use predict_otron_9000::registry::Registry;

use crate::hub;
use crate::support;

const ENCODER: &str = "tests/data/tiny-encoders/bert";
const ONNX: &str = "tests/data/bert-onnx";

/// A folder with copies of the named files, given as `(folder, name)`.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, name) in files {
        fs::copy(Path::new(from).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn load(folder: &tempfile::TempDir) -> TextEmbedding {
    let registry = Registry::new(support::real_registry());
    let source = EmbeddingSource::locate(folder.path().to_str().unwrap(), &registry).unwrap();
    TextEmbedding::load(&source, &registry).expect("this test needs ONNX Runtime, on the system or from pip")
}

fn inputs(texts: &[&str]) -> EmbeddingRequest {
    let inputs: Vec<EmbeddingInput> = texts.iter().map(|&text| EmbeddingInput::Text(text.into())).collect();
    inputs.into()
}

#[test]
fn both_backends_give_the_same_vectors() {
    let ours =
        load(&folder(&[(ENCODER, "config.json"), (ENCODER, "model.safetensors"), (ONNX, "tokenizer.json")]));
    let fast = load(&folder(&[(ENCODER, "config.json"), (ONNX, "model.onnx"), (ONNX, "tokenizer.json")]));
    assert_eq!((ours.dimensions(), fast.dimensions()), (64, 64));
    let long = "the cat and the dog ".repeat(20);
    let texts = ["the rust model", "", "A cat, a dog?", &long, "🙂 unknown", "a [SEP] b [MASK]"];
    let expected = ours.embed(inputs(&texts)).unwrap();
    let found = fast.embed(inputs(&texts)).unwrap();
    assert_eq!(found.n_tokens, expected.n_tokens);
    for ((expected, found), text) in expected.vectors.to_vec().iter().zip(&found.vectors.to_vec()).zip(texts)
    {
        let cosine: f32 = expected.iter().zip(found).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.9999, "{text:?}: {cosine}");
    }
    for model in [&ours, &fast] {
        let too_long = model.embed(inputs(&["cat ".repeat(200).as_str()])).unwrap_err();
        assert!(too_long.to_string().contains("at most 130"), "{too_long}");
    }
}

/// A hub that has the tiny encoder as `repo`, with the file names of fastembed's catalog.
fn hub_with(repo: &str) -> (hub::TestHub, Registry, tempfile::TempDir) {
    let hub = hub::TestHub::start();
    for (from, name, path) in [
        (ENCODER, "config.json", "config.json"),
        (ONNX, "model.onnx", "onnx/model.onnx"),
        (ONNX, "tokenizer.json", "tokenizer.json"),
    ] {
        hub.put(repo, path, fs::read(Path::new(from).join(name)).unwrap());
    }
    let cache = tempfile::tempdir().unwrap();
    let registry = Registry::new(RegistryConfig {
        hub_endpoint: hub.endpoint.clone(),
        hub_cache: cache.path().join("hub"),
        ..support::real_registry()
    });
    (hub, registry, cache)
}

#[test]
fn a_model_of_fastembeds_catalog_is_downloaded_from_the_hub() {
    let repo = "Xenova/bge-small-zh-v1.5";
    let (_hub, registry, _cache) = hub_with(repo);
    for name in ["BGESmallZHV15", "xenova/bge-small-zh-v1.5"] {
        let source = EmbeddingSource::locate(name, &registry).unwrap();
        assert_eq!((source.id(), source.is_onnx()), (repo, true));
        let model = TextEmbedding::load(&source, &registry).unwrap();
        let vectors = model.embed(inputs(&["the cat"])).unwrap().vectors;
        assert_eq!(vectors.get(0).unwrap().len(), 64);
    }
}

#[test]
fn a_catalog_model_runs_on_the_chosen_backend() {
    let (_hub, registry, _cache) = hub_with("Xenova/bge-small-en-v1.5");
    for name in ["bge-small-en-v1.5", "BGESmallENV15"] {
        let source =
            EmbeddingSource::locate_for_backend(name, EmbeddingBackend::Fastembed, &registry).unwrap();
        assert_eq!((source.id(), source.is_onnx()), ("bge-small-en-v1.5", true));
        let model = TextEmbedding::load(&source, &registry).unwrap();
        let query = EmbeddingRequest { prompt: PromptPrefix::Query, ..inputs(&["the cat"]) };
        let plain = inputs(&["Represent this sentence for searching relevant passages: the cat"]);
        assert_eq!(model.embed(query).unwrap().vectors, model.embed(plain).unwrap().vectors);
    }
    let files = [
        (ENCODER, "config.json"),
        (ONNX, "tokenizer.json"),
        (ONNX, "model.onnx"),
        (ENCODER, "model.safetensors"),
    ];
    let both = folder(&files);
    let is_onnx = |folder: &tempfile::TempDir, backend| {
        let source = EmbeddingSource::locate_for_backend(folder.path().to_str().unwrap(), backend, &registry);
        source.map(|source| source.is_onnx()).map_err(|e| e.to_string())
    };
    assert_eq!(is_onnx(&both, EmbeddingBackend::Auto), Ok(false));
    assert_eq!(is_onnx(&both, EmbeddingBackend::Encoder), Ok(false));
    assert_eq!(is_onnx(&both, EmbeddingBackend::Fastembed), Ok(true));
    let onnx = folder(&files[..3]);
    assert_eq!(is_onnx(&onnx, EmbeddingBackend::Auto), Ok(true));
    let refusal = is_onnx(&onnx, EmbeddingBackend::Encoder).unwrap_err();
    assert!(
        refusal.contains("--embedding-backend encoder") && refusal.contains("model.safetensors"),
        "{refusal}"
    );
    for (name, backend) in
        [("BGESmallZHV15", EmbeddingBackend::Encoder), ("gte-small", EmbeddingBackend::Fastembed)]
    {
        let refusal =
            EmbeddingSource::locate_for_backend(name, backend, &registry).err().unwrap().to_string();
        assert!(refusal.contains(name) && refusal.contains("`auto`"), "{refusal}");
    }
}

#[test]
fn an_unknown_name_is_in_the_error() {
    let registry = Registry::new(support::real_registry());
    let error = EmbeddingSource::locate("no-such-model", &registry).err().unwrap();
    assert!(error.to_string().contains("no-such-model"), "{error}");
}

#[tokio::test]
async fn concurrent_first_requests_load_the_singleton_once() {
    let files = folder(&[(ENCODER, "config.json"), (ENCODER, "model.safetensors"), (ONNX, "tokenizer.json")]);
    // The first load fails, and with it the first request; later requests try again.
    let n_loads = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = n_loads.clone();
    let loader = move || match counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Err(Error::registry("not yet")),
        _ => Ok(load(&files)),
    };
    let cell: &'static OnceCell<TextEmbedding> = Box::leak(Box::new(OnceCell::new()));
    let embedder =
        Embedder::spawn_with_cell(cell, Box::new(loader), embedder_options(&Limits::default())).unwrap();
    assert_eq!(embedder.embed(inputs(&["cat"])).await.unwrap_err().to_string(), "not yet");
    let answers = futures_util::future::join_all((0..16).map(|_| embedder.embed(inputs(&["cat"])))).await;
    let first = answers[0].as_ref().unwrap().vectors.clone();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().vectors == first));
    assert_eq!(n_loads.load(std::sync::atomic::Ordering::SeqCst), 2, "the failed load and one more");
}
