//! Vectors that are known are not computed again. Alone in its process, whose counters it reads.

mod support;

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};
use support::embeddings::{tiny_encoder, vectors};
use support::{embedding_server, json as body};

const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_not_computed_again() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let n_computed = async || {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("predict_otron_embedded_texts_total"));
        line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap())
    };
    let before = n_computed().await;
    let ask = async |input: Value| vectors(server.post(EMBEDDINGS, &json!({ "input": input })).await).await;
    let (first, n_hits) = ask(json!(["the cat", "a dog", "the cat", "the cat"])).await;
    assert_eq!((n_hits.as_str(), n_computed().await - before), ("0", 2), "what comes twice is computed once");
    assert!(first[0] == first[2] && first[0] == first[3] && first[0] != first[1]);
    let (again, n_hits) = ask(json!(["a dog", "a mouse", "the cat"])).await;
    assert_eq!((n_hits.as_str(), n_computed().await - before), ("2", 3));
    assert!(again[0] == first[1] && again[2] == first[0] && again[1] != first[0]);
    let known = server.post(EMBEDDINGS, &json!({"input": ["a dog", "a dog"]})).await;
    let usage = body(known).await["usage"]["total_tokens"].clone();
    let alone =
        body(server.post(EMBEDDINGS, &json!({"input": "a dog"})).await).await["usage"]["total_tokens"]
            .clone();
    assert_eq!(usage.as_u64().unwrap(), 2 * alone.as_u64().unwrap(), "what is known counts as well");
    let limits = Limits { embedding_cache_bytes: 0, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    for _ in 0..2 {
        let answer = server.post(EMBEDDINGS, &json!({"input": ["the cat"]})).await;
        assert_eq!(vectors(answer).await, (vec![first[0].clone()], "0".to_owned()));
    }
}
