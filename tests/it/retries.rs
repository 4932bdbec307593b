//! Slow responses: retries join the running attempt, and heartbeats keep clients from timing out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, METRICS, Script, Server, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

/// A model that takes half a second per response, and its script, which counts batches.
async fn slow_server(limits: Limits) -> (Server, Script) {
    let script = Script { step: Duration::from_millis(25), ..Script::saying("0123456789abcdefghi") };
    (scripted_server(script.clone(), limits, ENGINE_OPTIONS).await, script)
}

/// Responses whose client has waited for 100 ms outlive it by 2 s.
fn with_retry_grace() -> Limits {
    let (retry_patience, retry_grace) = (Duration::from_millis(100), Duration::from_secs(2));
    Limits { retry_patience, retry_grace, ..Limits::default() }
}

fn request(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 19})
}

/// Sends a request with the headers of OpenAI's clients.
async fn send(server: &Server, key: &str, path: &str, retry: u32, request: &Value) -> reqwest::Response {
    let builder = server.client.post(server.url(path)).bearer_auth(key);
    let builder = builder.header("content-type", "application/json").header("x-stainless-retry-count", retry);
    builder.body(request.to_string()).send().await.unwrap()
}

/// Sends a request and disconnects after `after_ms`.
async fn send_and_leave(server: &Server, after_ms: u64, request: &Value) {
    let response = send(server, "a", CHAT, 0, request);
    assert!(
        tokio::time::timeout(Duration::from_millis(after_ms), response).await.is_err(),
        "the response has arrived already"
    );
}

fn n_computed(script: &Script) -> usize {
    script.prompts.lock().unwrap().len()
}

/// Whether the model still computes.
async fn is_computing(n_batches: &Arc<AtomicUsize>) -> bool {
    // Time to notice a disconnect and finish the running batch.
    tokio::time::sleep(Duration::from_millis(80)).await;
    let before = n_batches.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(80)).await;
    n_batches.load(Ordering::SeqCst) > before
}

#[tokio::test]
async fn a_retry_joins_an_attempt_whose_client_has_gone() {
    let _ = &*METRICS;
    let (server, script) = slow_server(with_retry_grace()).await;
    send_and_leave(&server, 200, &request("x")).await;
    let response = send(&server, "a", CHAT, 1, &request("x")).await;
    assert_eq!(response.status(), 200);
    let completion = body(response).await;
    assert_eq!(completion["choices"][0]["message"]["content"], "0123456789abcdefghi");
    assert_eq!(n_computed(&script), 1);
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("predict_otron_retries_joined_total"), "{metrics}");
}

#[tokio::test]
async fn a_completed_response_is_delivered_to_one_retry() {
    let (server, script) = slow_server(with_retry_grace()).await;
    send_and_leave(&server, 300, &request("x")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!is_computing(&script.n_batches).await);
    let before = Instant::now();
    let first = body(send(&server, "a", CHAT, 1, &request("x")).await).await;
    assert!(before.elapsed() < Duration::from_millis(200), "{:?}", before.elapsed());
    assert_eq!(n_computed(&script), 1);
    let second = body(send(&server, "a", CHAT, 1, &request("x")).await).await;
    assert_ne!(first["id"], second["id"]);
    assert_eq!(n_computed(&script), 2);
}

#[tokio::test]
async fn a_retry_shares_an_attempt_that_is_still_connected() {
    let (server, script) = slow_server(with_retry_grace()).await;
    let request = request("x");
    let (first, second) = tokio::join!(send(&server, "a", CHAT, 0, &request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&server, "a", CHAT, 1, &request).await
    });
    assert_ne!(first.headers()["x-request-id"], second.headers()["x-request-id"]);
    let (first, second) = (body(first).await, body(second).await);
    assert_eq!(first, second);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn other_requests_do_not_join() {
    let (server, script) = slow_server(with_retry_grace()).await;
    let x = request("x");
    let mut streamed = x.clone();
    streamed["stream"] = json!(true);
    let mut other = x.clone();
    other["max_tokens"] = json!(18);
    let text = json!({"prompt": "x", "max_tokens": 19});
    let finish = async |response: reqwest::Response| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    };
    let first = send(&server, "a", CHAT, 0, &x);
    let others = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::join!(
            async { finish(send(&server, "b", CHAT, 1, &x).await).await },
            async { finish(send(&server, "a", CHAT, 1, &other).await).await },
            async { finish(send(&server, "a", CHAT, 1, &streamed).await).await },
            async { finish(send(&server, "a", CHAT, 0, &x).await).await },
            async { finish(server.post_as("a", CHAT, &x).await).await },
            async { finish(send(&server, "a", "/v1/completions", 1, &text).await).await },
        )
    };
    tokio::join!(first, others);
    assert_eq!(n_computed(&script), 7);
}

#[tokio::test]
async fn retries_of_completions_join() {
    let (server, script) = slow_server(with_retry_grace()).await;
    let text = json!({"prompt": "x", "max_tokens": 19});
    let path = "/v1/completions";
    let (first, second) = tokio::join!(send(&server, "a", path, 0, &text), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&server, "a", path, 1, &text).await
    });
    assert_eq!(body(first).await, body(second).await);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn an_attempt_and_its_retry_get_the_same_error() {
    let script =
        Script { step: Duration::from_millis(300), panic_on: Some(b'!'), ..Script::saying("0123456789") };
    let server = scripted_server(script.clone(), with_retry_grace(), ENGINE_OPTIONS).await;
    let request = request("boom!");
    let (first, second) = tokio::join!(send(&server, "a", CHAT, 0, &request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&server, "a", CHAT, 1, &request).await
    });
    for response in [&first, &second] {
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-should-retry"], "false");
    }
    assert_eq!(body(first).await, body(second).await);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn an_orphaned_generation_ends_after_the_grace_period() {
    let grace = Duration::from_millis(300);
    for (limits, waits_ms, is_kept) in [
        (Limits { retry_grace: grace, ..with_retry_grace() }, 150, true),
        (Limits { retry_grace: grace, ..with_retry_grace() }, 50, false),
        (Limits { retry_grace: Duration::ZERO, ..with_retry_grace() }, 150, false),
        (Limits { orphaned_responses: 0, ..with_retry_grace() }, 150, false),
        // The default limits.
        (Limits::default(), 150, false),
    ] {
        let script = Script { step: Duration::from_millis(10), ..Script::saying(&"x".repeat(400)) };
        let server = scripted_server(script.clone(), limits, ENGINE_OPTIONS).await;
        let mut request = request("x");
        request["max_tokens"] = json!(400);
        send_and_leave(&server, waits_ms, &request).await;
        assert_eq!(is_computing(&script.n_batches).await, is_kept, "after {waits_ms} ms");
        tokio::time::sleep(grace).await;
        assert!(!is_computing(&script.n_batches).await);
    }
}

#[tokio::test]
async fn a_client_that_does_not_retry_cancels_at_once() {
    let script = Script { step: Duration::from_millis(10), ..Script::saying(&"x".repeat(400)) };
    let server = scripted_server(script.clone(), with_retry_grace(), ENGINE_OPTIONS).await;
    let mut request = request("x");
    request["max_tokens"] = json!(400);
    let response = server.post(CHAT, &request);
    assert!(tokio::time::timeout(Duration::from_millis(200), response).await.is_err());
    assert!(!is_computing(&script.n_batches).await);
}

fn with_heartbeat() -> Limits {
    Limits { heartbeat: Duration::from_millis(100), ..with_retry_grace() }
}

#[tokio::test]
async fn a_slow_response_begins_with_heartbeats() {
    let (server, _) = slow_server(with_heartbeat()).await;
    let started = Instant::now();
    let mut fields = request("x");
    fields["frobnicate"] = json!(1);
    let response = server.post(CHAT, &fields).await;
    assert!(started.elapsed() < Duration::from_millis(350), "{:?}", started.elapsed());
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-ignored-params"], "frobnicate");
    let text = response.text().await.unwrap();
    let n_spaces = text.len() - text.trim_start().len();
    assert!((2..=6).contains(&n_spaces), "{text:?}");
    let completion: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(completion["choices"][0]["message"]["content"], "0123456789abcdefghi");
}

#[tokio::test]
async fn fast_responses_and_early_errors_have_no_heartbeats() {
    let server = scripted_server(Script::saying("x"), with_heartbeat(), ENGINE_OPTIONS).await;
    let text = server.post(CHAT, &request("x")).await.text().await.unwrap();
    assert!(text.starts_with('{'), "{text:?}");
    let response = server.post(CHAT, &json!({"messages": [], "model": "scripted"})).await;
    assert_eq!(response.status(), 400);
    let response = server.post(CHAT, &json!({"messages": [], "model": "unknown"})).await;
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn an_error_after_a_heartbeat_replaces_the_response() {
    let script =
        Script { step: Duration::from_millis(300), panic_on: Some(b'!'), ..Script::saying("0123456789") };
    let server = scripted_server(script, with_heartbeat(), ENGINE_OPTIONS).await;
    let response = server.post(CHAT, &request("boom!")).await;
    assert_eq!(response.status(), 200);
    let completion = body(response).await;
    assert_eq!(completion["error"]["type"], "server_error");
    assert!(completion.get("choices").is_none());
}

#[tokio::test]
async fn a_disconnect_between_heartbeats_is_noticed() {
    let (server, script) = slow_server(with_heartbeat()).await;
    let response = send(&server, "a", CHAT, 0, &request("x")).await;
    drop(response);
    let completion = body(send(&server, "a", CHAT, 1, &request("x")).await).await;
    assert_eq!(completion["choices"][0]["message"]["content"], "0123456789abcdefghi");
    assert_eq!(n_computed(&script), 1);
    let response = server.post(CHAT, &request("y")).await;
    drop(response);
    assert!(!is_computing(&script.n_batches).await, "the engine kept computing without a client");
}
