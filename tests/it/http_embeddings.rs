//! `/v1/embeddings` with a tiny encoder: under load, with options, and at shutdown.

use std::time::Duration;

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::embeddings::{load_folder, tiny_encoder, tiny_encoder_folder, vectors};
use crate::support::{embedding_server, json as body};

const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_does_not_hold_up_a_small_one() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let text = |idx: u32| (0..128).map(|i| 5 + (idx >> (i % 11) & 1)).collect::<Vec<_>>();
    let large = json!({"input": (0..2048).map(text).collect::<Vec<_>>(), "encoding_format": "base64"});
    let small = json!({"input": "the cat"});
    assert_eq!(server.post(EMBEDDINGS, &small).await.status(), 200, "loads the model");
    let large_response = server.post(EMBEDDINGS, &large);
    let small_status = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.post(EMBEDDINGS, &small).await.status()
    };
    tokio::pin!(large_response);
    tokio::select! {
        biased;
        status = small_status => assert_eq!(status, 200),
        _ = &mut large_response => panic!("the small request waited for all of the large one"),
    }
    let answer = body(large_response.await).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 2048);
    assert_eq!(answer["usage"]["total_tokens"], 2048 * 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_batched_together_get_their_own_vectors() {
    let limits = Limits { embedding_cache_bytes: 0, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    let input = |idx: u32| json!({"input": (0..7).map(|i| vec![5 + (idx * 3 + i) % 20; 1 + (idx + i) as usize % 60]).collect::<Vec<_>>()});
    let ask = async |idx: u32| vectors(server.post(EMBEDDINGS, &input(idx)).await).await.0;
    let mut alone = Vec::new();
    for idx in 0..24 {
        alone.push(ask(idx).await);
    }
    let together = futures_util::future::join_all((0..24).map(ask)).await;
    assert!(together == alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_texts_are_refused_or_truncated_on_request() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let long = json!(vec![vec![7; 500]]);
    let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
    assert_eq!(refused.status(), 400);
    let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("502") && message.contains("130") && message.contains("truncate"), "{message}");
    let truncated = body(server.post(EMBEDDINGS, &json!({"input": long, "truncate": true})).await).await;
    assert_eq!(truncated["usage"]["total_tokens"], 130);
    let whole = body(server.post(EMBEDDINGS, &json!({"input": vec![vec![7; 128]]})).await).await;
    assert_eq!(truncated["data"], whole["data"]);
    let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
    assert_eq!(refused.status(), 400, "a truncated text in the cache is still refused without `truncate`");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_prefixes_are_put_before_texts() {
    let folder = tiny_encoder_folder();
    let prompts = json!({"prompts": {"query": "the cat ", "sts": "a dog "}});
    std::fs::write(folder.path().join("config_sentence_transformers.json"), prompts.to_string()).unwrap();
    let load = move || load_folder(folder.path());
    let server = embedding_server(Limits::default(), Box::new(load)).await;
    let ask = async |fields: Value| vectors(server.post(EMBEDDINGS, &fields).await).await.0;
    let plain = ask(json!({"input": ["the cat mouse", "a dog mouse", "mouse"]})).await;
    assert_eq!(ask(json!({"input": "mouse", "input_type": "query"})).await[0], plain[0]);
    assert_eq!(ask(json!({"input": "mouse", "input_type": "search_query"})).await[0], plain[0]);
    assert_eq!(ask(json!({"input": "mouse", "prompt_name": "sts"})).await[0], plain[1]);
    assert_eq!(ask(json!({"input": "mouse", "input_type": "document"})).await[0], plain[2]);
    for (fields, param, word) in [
        (json!({"input": "x", "prompt_name": "none"}), "prompt_name", "`query`, `sts`"),
        (json!({"input": "x", "prompt_name": "sts", "input_type": "query"}), "prompt_name", "one of them"),
        (json!({"input": [5], "input_type": "query"}), "input", "send strings"),
        (json!({"input": "x", "input_type": "poem"}), "input_type", "query"),
    ] {
        let refused = server.post(EMBEDDINGS, &fields).await;
        assert_eq!(refused.status(), 400, "{fields}");
        let error = body(refused).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_past_its_grace_period_fails_running_embeddings() {
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
