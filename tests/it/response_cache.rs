//! The response cache, against a scripted model that counts its requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, Script, Server, events, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

async fn server(script: Script, limits: Limits) -> (Server, Arc<AtomicUsize>) {
    let n_batches = script.n_batches.clone();
    (scripted_server(script, limits, ENGINE_OPTIONS).await, n_batches)
}

fn caching() -> Limits {
    Limits { response_cache_bytes: 1 << 20, ..Limits::default() }
}

fn request(fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 0});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn cache(response: &reqwest::Response) -> Option<&str> {
    response.headers().get("x-cache").map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_repeated_request_is_answered_without_the_model() {
    let (server, n_batches) = server(Script::saying("good day"), caching()).await;
    let asked = request(json!({"logprobs": true, "top_logprobs": 1, "n": 2, "mood": "good"}));
    let response = server.post(CHAT, &asked).await;
    assert_eq!(cache(&response), Some("miss"));
    let first = body(response).await;
    let n_computed = n_batches.load(Ordering::SeqCst);

    let response = server.post(CHAT, &asked).await;
    assert_eq!(cache(&response), Some("hit"));
    assert_eq!(response.headers()["x-ignored-params"], "mood");
    let again = body(response).await;
    assert_eq!(again["choices"], first["choices"]);
    assert_eq!(again["choices"][1]["message"]["content"], "good day");
    assert_ne!(again["id"], first["id"]);
    assert_eq!(again["usage"]["completion_tokens"], first["usage"]["completion_tokens"]);
    let n_prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], n_prompt, "nothing was computed");
    assert_eq!(again["system_fingerprint"], first["system_fingerprint"]);

    // As a stream, too, in the original pieces.
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let response = server.post(CHAT, &streamed).await;
    assert_eq!(cache(&response), Some("hit"));
    let mut pieces = events(response).await;
    assert_eq!(pieces.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = pieces.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks.last().unwrap()["usage"], again["usage"]);
    let of_first = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == 0);
    let contents: Vec<&str> =
        of_first.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(contents.len() > 5 && contents.concat() == "good day", "{contents:?}");
    assert_eq!(n_batches.load(Ordering::SeqCst), n_computed);

    let metrics = server.get("/metrics").await.text().await.unwrap();
    // The tests of a process share their counters.
    for name in ["hits_total", "misses_total", "bytes"] {
        assert!(metrics.contains(&format!("predict_otron_response_cache_{name} ")), "{metrics}");
    }
}

#[tokio::test]
async fn a_streamed_response_is_cached_for_requests_without_stream() {
    let (server, n_batches) = server(Script::saying("good day"), caching()).await;
    let response = server.post(CHAT, &request(json!({"stream": true, "seed": 4, "temperature": 1}))).await;
    assert_eq!(cache(&response), Some("miss"));
    events(response).await;
    let n_computed = n_batches.load(Ordering::SeqCst);
    let response = server.post(CHAT, &request(json!({"seed": 4, "temperature": 1}))).await;
    assert_eq!(cache(&response), Some("hit"));
    assert_eq!(body(response).await["choices"][0]["message"]["content"], "good day");
    assert_eq!(n_batches.load(Ordering::SeqCst), n_computed);
}

#[tokio::test]
async fn only_equal_requests_hit_the_cache() {
    let (server, _) = server(Script::saying("good day"), caching()).await;
    body(server.post(CHAT, &request(json!({}))).await).await;
    for other in [json!({"max_tokens": 3}), json!({"cache_salt": "s"}), json!({"seed": 1})] {
        assert_eq!(cache(&server.post(CHAT, &request(other.clone())).await), Some("miss"), "{other}");
    }
    // Responses that are not deterministic are not cached, and invalid requests stay invalid.
    assert_eq!(cache(&server.post(CHAT, &request(json!({"temperature": 1}))).await), None);
    let wrong = request(json!({"stream_options": {"include_usage": true}}));
    assert_eq!(server.post(CHAT, &wrong).await.status(), 400);
    // Clients do not share responses.
    let response = server.post_as("somebody", CHAT, &request(json!({}))).await;
    assert_eq!(cache(&response), Some("miss"));
    body(response).await;
    assert_eq!(cache(&server.post_as("somebody", CHAT, &request(json!({}))).await), Some("hit"));
}

#[tokio::test]
async fn incomplete_responses_are_not_cached() {
    let script = Script { step: Duration::from_millis(5), ..Script::saying(&"x".repeat(100)) };
    let (server, _) = server(script, caching()).await;
    let mut response = server.post(CHAT, &request(json!({"stream": true}))).await;
    response.chunk().await.unwrap();
    drop(response);
    assert_eq!(cache(&server.post(CHAT, &request(json!({}))).await), Some("miss"));
}

#[tokio::test]
async fn responses_are_cached_only_if_enabled_and_until_they_expire() {
    let (off, _) = server(Script::saying("good day"), Limits::default()).await;
    for _ in 0..2 {
        assert_eq!(cache(&off.post(CHAT, &request(json!({}))).await), None);
    }
    let response_cache_ttl = Duration::from_millis(100);
    let (short, _) = server(Script::saying("good day"), Limits { response_cache_ttl, ..caching() }).await;
    for _ in 0..2 {
        let response = short.post(CHAT, &request(json!({}))).await;
        assert_eq!(cache(&response), Some("miss"));
        body(response).await;
        tokio::time::sleep(2 * response_cache_ttl).await;
    }
}

#[tokio::test]
async fn a_cache_hit_needs_no_slot_in_the_queue() {
    let script = Script { step: Duration::from_millis(5), ..Script::saying(&"x".repeat(100)) };
    let options = EngineOptions { running_requests: 1, queued_requests: 0, ..ENGINE_OPTIONS };
    let server = scripted_server(script, caching(), options).await;
    body(server.post(CHAT, &request(json!({}))).await).await;
    // It runs until the context is full, seconds longer than the requests that follow.
    let endless = json!({"stream": true, "seed": 1, "ignore_eos": true});
    let _running = server.post(CHAT, &request(endless)).await;
    assert_eq!(server.post(CHAT, &request(json!({"seed": 2}))).await.status(), 429);
    assert_eq!(cache(&server.post(CHAT, &request(json!({}))).await), Some("hit"));
}
