//! `/v1/embeddings` under load and at the end, with a tiny encoder.

mod support;

use std::path::Path;
use std::time::Duration;

use predict_otron_9000::config::Limits;
use predict_otron_9000::embeddings::{EmbeddingSource, TextEmbedding};
use predict_otron_9000::error::Result;
use predict_otron_9000::registry::Registry;
use serde_json::{Value, json};
use support::{embedding_server, json as body};

const EMBEDDINGS: &str = "/v1/embeddings";

/// Loads the tiny encoder of the tests.
fn tiny_encoder() -> Result<TextEmbedding> {
    let folder = tempfile::tempdir().unwrap();
    for file in
        ["tiny-encoders/bert/config.json", "tiny-encoders/bert/model.safetensors", "bert-onnx/tokenizer.json"]
    {
        let name = Path::new(file).file_name().unwrap();
        std::fs::copy(Path::new("tests/data").join(file), folder.path().join(name)).unwrap();
    }
    let registry = Registry::new(support::real_registry());
    TextEmbedding::load(&EmbeddingSource::locate(folder.path().to_str().unwrap(), &registry)?, &registry)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_does_not_hold_up_a_small_one() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let large = json!({"input": vec![vec![5; 128]; 2048], "encoding_format": "base64"});
    let small = json!({"input": "the cat"});
    assert_eq!(server.post(EMBEDDINGS, &small).await.status(), 200, "the model is loaded");
    let of_large = server.post(EMBEDDINGS, &large);
    let of_small = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.post(EMBEDDINGS, &small).await.status()
    };
    tokio::pin!(of_large);
    tokio::select! {
        biased;
        status = of_small => assert_eq!(status, 200),
        _ = &mut of_large => panic!("the small request waited for all of the large one"),
    }
    let answer = body(of_large.await).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 2048);
    assert_eq!(answer["usage"]["total_tokens"], 2048 * 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_waited_long_enough_ends_embeddings_with_an_error() {
    let loader = || {
        std::thread::sleep(Duration::from_secs(3));
        tiny_encoder()
    };
    let limits = Limits { shutdown_grace: Duration::from_millis(200), ..Limits::default() };
    let mut server = embedding_server(limits, Box::new(loader)).await;
    let ask = json!({"input": "the cat"});
    let (running, queued, ()) =
        tokio::join!(server.post(EMBEDDINGS, &ask), server.post(EMBEDDINGS, &ask), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.shut_down();
        });
    for answer in [running, queued] {
        assert_eq!(answer.status(), 503);
        let error: Value = body(answer).await["error"].clone();
        assert!(error["message"].as_str().unwrap().contains("shutting down"), "{error}");
    }
    tokio::time::timeout(Duration::from_secs(1), &mut server.running).await.unwrap().unwrap();
}
