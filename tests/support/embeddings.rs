//! The tiny encoder and reranker, and a reader of embedding responses.

use std::path::Path;

use predict_otron_9000::embeddings::{EmbeddingSource, TextEmbedding};
use predict_otron_9000::error::Result;
use predict_otron_9000::registry::Registry;
use serde_json::{Value, json};

/// A folder with the tiny encoder.
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

/// A folder with the tiny cross-encoder and BERT's template for text pairs.
pub fn tiny_reranker_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(
            Path::new("tests/data/tiny-encoders/bert-reranker").join(name),
            folder.path().join(name),
        )
        .unwrap();
    }
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read("tests/data/bert-onnx/tokenizer.json").unwrap()).unwrap();
    let special = |id: &str, kind: u32| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let text = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    tokenizer["post_processor"]["pair"] =
        json!([special("[CLS]", 0), text("A", 0), special("[SEP]", 0), text("B", 1), special("[SEP]", 1)]);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// Loads the tiny cross-encoder.
pub fn tiny_reranker() -> Result<TextEmbedding> {
    let folder = tiny_reranker_folder();
    let registry = Registry::new(super::real_registry());
    let source = EmbeddingSource::locate_reranker(folder.path().to_str().unwrap(), &registry)?;
    TextEmbedding::load(&source, &registry)
}

/// Loads the embedding model in a folder.
pub fn load_folder(folder: &Path) -> Result<TextEmbedding> {
    let registry = Registry::new(super::real_registry());
    TextEmbedding::load(&EmbeddingSource::locate(folder.to_str().unwrap(), &registry)?, &registry)
}

/// Loads the tiny encoder.
pub fn tiny_encoder() -> Result<TextEmbedding> {
    load_folder(tiny_encoder_folder().path())
}

/// The vectors of a response, and the value of its `x-cache-hits` header.
pub async fn vectors(answer: reqwest::Response) -> (Vec<Value>, String) {
    assert_eq!(answer.status(), 200);
    let n_hits = answer.headers()["x-cache-hits"].to_str().unwrap().to_owned();
    let data = super::json(answer).await["data"].as_array().unwrap().clone();
    (data.into_iter().map(|item| item["embedding"].clone()).collect(), n_hits)
}
