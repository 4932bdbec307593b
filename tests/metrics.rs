//! Tests that read exact values of metrics: a process has one recorder, which other tests would change.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod support;

use std::time::Duration;

use predict_otron_9000::config::{Limits, resident_bytes};
use predict_otron_9000::inference::EngineOptions;
use predict_otron_9000::telemetry;
use serde_json::{Value, json};
use support::embeddings::{tiny_encoder, vectors};
use support::{ENGINE_OPTIONS, METRICS, Script, embedding_server, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test(flavor = "multi_thread")]
async fn cached_embeddings_are_not_computed_again() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let n_computed = async || {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("predict_otron_embedded_texts_total"));
        line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap())
    };
    let before = n_computed().await;
    let ask = async |input: Value| vectors(server.post(EMBEDDINGS, &json!({ "input": input })).await).await;
    let (first, n_hits) = ask(json!(["the cat", "a dog", "the cat", "the cat"])).await;
    assert_eq!((n_hits.as_str(), n_computed().await - before), ("0", 2), "duplicates are computed once");
    assert!(first[0] == first[2] && first[0] == first[3] && first[0] != first[1]);
    let (again, n_hits) = ask(json!(["a dog", "a mouse", "the cat"])).await;
    assert_eq!((n_hits.as_str(), n_computed().await - before), ("2", 3));
    assert!(again[0] == first[1] && again[2] == first[0] && again[1] != first[0]);
    let known = server.post(EMBEDDINGS, &json!({"input": ["a dog", "a dog"]})).await;
    let usage = body(known).await["usage"]["total_tokens"].clone();
    let alone =
        body(server.post(EMBEDDINGS, &json!({"input": "a dog"})).await).await["usage"]["total_tokens"]
            .clone();
    assert_eq!(usage.as_u64().unwrap(), 2 * alone.as_u64().unwrap(), "cached inputs are counted, too");
    let limits = Limits { embedding_cache_bytes: 0, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    for _ in 0..2 {
        let answer = server.post(EMBEDDINGS, &json!({"input": ["the cat"]})).await;
        assert_eq!(vectors(answer).await, (vec![first[0].clone()], "0".to_owned()));
    }
}

#[tokio::test]
async fn probes_and_metrics_report_the_load() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(60)) };
    let options = EngineOptions { running_requests: 1, ..ENGINE_OPTIONS };
    let server =
        scripted_server(script, Limits { stream_head_delay: Duration::ZERO, ..Limits::default() }, options)
            .await;
    for probe in ["/livez", "/readyz", "/health"] {
        assert_eq!(body(server.get(probe).await).await, json!({"status": "ok"}), "{probe}");
    }
    let request = |content: &str| json!({"messages": [{"role": "user", "content": content}], "stream": true});
    let (a, b) = (request("first"), request("second"));
    let running = [server.post(CHAT, &a).await, server.post(CHAT, &b).await];
    tokio::time::sleep(Duration::from_millis(200)).await;

    let loads = body(server.get("/v1/loads").await).await;
    let load = &loads["loads"][0];
    assert_eq!(loads["dp_rank_count"], 1);
    let counts = ["num_running_reqs", "num_waiting_reqs", "num_total_reqs", "max_running_requests"];
    assert_eq!(counts.map(|name| load[name].as_u64().unwrap()), [1, 1, 2, 1], "{loads}");
    for share in ["token_usage", "utilization", "cache_hit_rate"] {
        assert!((0.0..=1.0).contains(&load[share].as_f64().unwrap()), "{loads}");
    }
    assert!(load["gen_throughput"].as_f64().unwrap() > 1.0, "{loads}");

    let metrics = server.get("/metrics").await.text().await.unwrap();
    for line in [
        "vllm:num_requests_running{model_name=\"scripted\"} 1",
        "vllm:num_requests_waiting{model_name=\"scripted\"} 1",
        "vllm:cache_config_info{model_name=\"scripted\",block_size=\"16\"",
        "predict_otron_batch_sequences_bucket{le=\"1\"}",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    drop(running);
}

#[cfg(target_os = "linux")]
#[test]
fn histograms_need_no_scrape_to_stay_small() {
    const N_VALUES: usize = 4_000_000;
    std::sync::LazyLock::force(&METRICS);
    let histogram = metrics::histogram!(telemetry::MASK_SECONDS);
    let record = || {
        for n in 0..N_VALUES {
            histogram.record(n as f64 * 1e-6);
        }
        std::thread::sleep(Duration::from_millis(2500));
        resident_bytes().unwrap()
    };
    // What is freed may be used again only a while later.
    record();
    let (second, _, fourth) = (record(), record(), record());
    assert!(fourth.saturating_sub(second) < N_VALUES * 8, "{second} {fourth}");
}
