//! The embedding cache on disk survives the server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use predict_otron_9000::app::embedder_options;
use predict_otron_9000::config::{DiskCacheConfig, Limits};
use predict_otron_9000::embeddings::{
    DiskCache, Embedder, EmbedderOptions, EmbeddingInput, EmbeddingRequest, EmbeddingSource, Fingerprint,
    TextEmbedding,
};
use predict_otron_9000::registry::Registry;

use crate::support;
use crate::support::embeddings::tiny_encoder_folder;

/// An embedder of the model in `folder`, loaded as the server loads it, with a disk cache.
fn embedder(folder: &Path, disk: &Path, owners: Fingerprint) -> Embedder {
    let registry = Registry::new(support::real_registry());
    let source = EmbeddingSource::locate(folder.to_str().unwrap(), &registry).unwrap();
    let fingerprint = source.fingerprint(&registry, &owners).unwrap();
    let loader = move || Ok(TextEmbedding::load(&source, &registry)?.with_fingerprint(fingerprint));
    let disk_cache = DiskCache::open(&DiskCacheConfig {
        folder: disk.to_owned(),
        max_bytes: 1 << 20,
        time_to_live: Duration::from_secs(60),
    });
    let options = embedder_options(&Limits { embedding_cache_bytes: 0, ..Limits::default() });
    let options = EmbedderOptions { disk_cache: Some(Arc::new(disk_cache.unwrap())), ..options };
    Embedder::spawn_with_cell(Box::leak(Box::default()), Box::new(loader), options).unwrap()
}

/// The vectors, tokens and cache hits of texts that a tenant embeds after a restart.
async fn ask(folder: &Path, disk: &Path, tenant: &str, texts: &[&str]) -> (Vec<Vec<f32>>, usize, usize) {
    let inputs = texts.iter().map(|&text| EmbeddingInput::Text(text.into())).collect::<Vec<_>>();
    let request = EmbeddingRequest { tenant: tenant.into(), ..inputs.into() };
    let embeddings = embedder(folder, disk, [0; 32]).embed(request).await.unwrap();
    (embeddings.vectors.to_vec(), embeddings.n_tokens, embeddings.n_hits)
}

#[tokio::test]
async fn cached_embeddings_survive_a_restart_and_belong_to_one_model() {
    let disk = tempfile::tempdir().unwrap();
    let ask = async |folder: &Path, texts: &[&str]| ask(folder, disk.path(), "a", texts).await;
    let model = tiny_encoder_folder();
    let (first, n_tokens, n_hits) = ask(model.path(), &["the cat", "a dog"]).await;
    assert_eq!(n_hits, 0);
    assert_eq!(ask(model.path(), &["the cat", "a dog"]).await, (first.clone(), n_tokens, 2));
    let elsewhere = tiny_encoder_folder();
    assert_eq!(ask(elsewhere.path(), &["a dog", "a mouse"]).await.2, 1, "the same files in another folder");
    let config = std::fs::read_to_string(elsewhere.path().join("config.json")).unwrap();
    let changed = config.replace("\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": 1e-2");
    assert_ne!(changed, config);
    std::fs::write(elsewhere.path().join("config.json"), changed).unwrap();
    let (other, _, n_hits) = ask(elsewhere.path(), &["the cat"]).await;
    assert_eq!(n_hits, 0, "a changed model has no hits");
    assert_ne!(other[0], first[0]);
}

#[tokio::test]
async fn cached_embeddings_belong_to_one_tenant() {
    let disk = tempfile::tempdir().unwrap();
    let model = tiny_encoder_folder();
    let n_hits = async |tenant: &str| ask(model.path(), disk.path(), tenant, &["the cat"]).await.2;
    assert_eq!(n_hits("key:0").await, 0);
    assert_eq!(n_hits("key:1").await, 0, "another key");
    assert_eq!(n_hits("key:0").await, 1);
    let request =
        || EmbeddingRequest { tenant: "key:0".into(), ..vec![EmbeddingInput::Text("the cat".into())].into() };
    let after_a_change_of_keys = embedder(model.path(), disk.path(), [1; 32]).embed(request()).await.unwrap();
    assert_eq!(after_a_change_of_keys.n_hits, 0, "the first key may be somebody else's now");
}
