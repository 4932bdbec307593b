//! The tiny encoder, and answers about embeddings.

use std::path::Path;

use predict_otron_9000::embeddings::{EmbeddingSource, TextEmbedding};
use predict_otron_9000::error::Result;
use predict_otron_9000::registry::Registry;
use serde_json::Value;

/// A folder with the tiny encoder of the tests.
pub fn tiny_encoder_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in
        ["tiny-encoders/bert/config.json", "tiny-encoders/bert/model.safetensors", "bert-onnx/tokenizer.json"]
    {
        let name = Path::new(file).file_name().unwrap();
        std::fs::copy(Path::new("tests/data").join(file), folder.path().join(name)).unwrap();
    }
    folder
}

pub fn load_folder(folder: &Path) -> Result<TextEmbedding> {
    let registry = Registry::new(super::real_registry());
    TextEmbedding::load(&EmbeddingSource::locate(folder.to_str().unwrap(), &registry)?, &registry)
}

/// Loads it.
pub fn tiny_encoder() -> Result<TextEmbedding> {
    load_folder(tiny_encoder_folder().path())
}

/// The vectors of an answer, and how many of its inputs were known.
pub async fn vectors(answer: reqwest::Response) -> (Vec<Value>, String) {
    assert_eq!(answer.status(), 200);
    let n_hits = answer.headers()["x-cache-hits"].to_str().unwrap().to_owned();
    let data = super::json(answer).await["data"].as_array().unwrap().clone();
    (data.into_iter().map(|item| item["embedding"].clone()).collect(), n_hits)
}
