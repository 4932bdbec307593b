//! Answers that take long: clients that try again join what they began, and spaces keep the others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, METRICS, Script, Server, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

/// A model that takes half a second for its answer, and how many batches it has computed.
async fn slow_server(limits: Limits) -> (Server, Script) {
    let script = Script { step: Duration::from_millis(25), ..Script::saying("0123456789abcdefghi") };
    (scripted_server(script.clone(), limits, ENGINE_OPTIONS).await, script)
}

/// Answers outlive clients that have waited for 100 ms, by 2 s.
fn keeping() -> Limits {
    let (retry_patience, retry_grace) = (Duration::from_millis(100), Duration::from_secs(2));
    Limits { retry_patience, retry_grace, ..Limits::default() }
}

fn request(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 19})
}

/// Asks as OpenAI's clients do.
async fn ask(server: &Server, key: &str, path: &str, retry: u32, request: &Value) -> reqwest::Response {
    let asked = server.client.post(server.url(path)).bearer_auth(key);
    let asked = asked.header("content-type", "application/json").header("x-stainless-retry-count", retry);
    asked.body(request.to_string()).send().await.unwrap()
}

/// The same, by a client that leaves after so many milliseconds.
async fn leave(server: &Server, after_ms: u64, request: &Value) {
    let asked = ask(server, "a", CHAT, 0, request);
    assert!(
        tokio::time::timeout(Duration::from_millis(after_ms), asked).await.is_err(),
        "it has come already"
    );
}

fn n_computed(script: &Script) -> usize {
    script.prompts.lock().unwrap().len()
}

/// Whether the model is still at work.
async fn computes(n_batches: &Arc<AtomicUsize>) -> bool {
    // Time for a disconnect to be noticed, and for the batch that runs.
    tokio::time::sleep(Duration::from_millis(80)).await;
    let before = n_batches.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(80)).await;
    n_batches.load(Ordering::SeqCst) > before
}

#[tokio::test]
async fn a_retry_joins_the_try_whose_client_has_gone() {
    let _ = &*METRICS;
    let (server, script) = slow_server(keeping()).await;
    leave(&server, 200, &request("x")).await;
    let answer = ask(&server, "a", CHAT, 1, &request("x")).await;
    assert_eq!(answer.status(), 200);
    let answer = body(answer).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "0123456789abcdefghi");
    assert_eq!(n_computed(&script), 1);
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("predict_otron_retries_joined_total"), "{metrics}");
}

#[tokio::test]
async fn a_retry_finds_what_was_finished_meanwhile_and_only_one_does() {
    let (server, script) = slow_server(keeping()).await;
    leave(&server, 300, &request("x")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!computes(&script.n_batches).await);
    let before = Instant::now();
    let first = body(ask(&server, "a", CHAT, 1, &request("x")).await).await;
    assert!(before.elapsed() < Duration::from_millis(200), "{:?}", before.elapsed());
    assert_eq!(n_computed(&script), 1);
    let second = body(ask(&server, "a", CHAT, 1, &request("x")).await).await;
    assert_ne!(first["id"], second["id"]);
    assert_eq!(n_computed(&script), 2);
}

#[tokio::test]
async fn a_retry_shares_with_a_try_that_is_still_connected() {
    let (server, script) = slow_server(keeping()).await;
    let request = request("x");
    let (first, second) = tokio::join!(ask(&server, "a", CHAT, 0, &request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(&server, "a", CHAT, 1, &request).await
    });
    assert_ne!(first.headers()["x-request-id"], second.headers()["x-request-id"]);
    let (first, second) = (body(first).await, body(second).await);
    assert_eq!(first, second);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn nothing_else_joins() {
    let (server, script) = slow_server(keeping()).await;
    let x = request("x");
    let mut streamed = x.clone();
    streamed["stream"] = json!(true);
    let mut other = x.clone();
    other["max_tokens"] = json!(18);
    let text = json!({"prompt": "x", "max_tokens": 19});
    let later = async |asked| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let response: reqwest::Response = asked;
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    };
    let first = ask(&server, "a", CHAT, 0, &x);
    let others = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::join!(
            async { later(ask(&server, "b", CHAT, 1, &x).await).await },
            async { later(ask(&server, "a", CHAT, 1, &other).await).await },
            async { later(ask(&server, "a", CHAT, 1, &streamed).await).await },
            async { later(ask(&server, "a", CHAT, 0, &x).await).await },
            async { later(server.post_as("a", CHAT, &x).await).await },
            async { later(ask(&server, "a", "/v1/completions", 1, &text).await).await },
        )
    };
    tokio::join!(first, others);
    assert_eq!(n_computed(&script), 7);
}

#[tokio::test]
async fn completions_are_joined_too() {
    let (server, script) = slow_server(keeping()).await;
    let text = json!({"prompt": "x", "max_tokens": 19});
    let path = "/v1/completions";
    let (first, second) = tokio::join!(ask(&server, "a", path, 0, &text), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(&server, "a", path, 1, &text).await
    });
    assert_eq!(body(first).await, body(second).await);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn both_get_the_same_failure() {
    let script =
        Script { step: Duration::from_millis(300), panic_on: Some(b'!'), ..Script::saying("0123456789") };
    let server = scripted_server(script.clone(), keeping(), ENGINE_OPTIONS).await;
    let request = request("boom!");
    let (first, second) = tokio::join!(ask(&server, "a", CHAT, 0, &request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(&server, "a", CHAT, 1, &request).await
    });
    for response in [&first, &second] {
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-should-retry"], "false");
    }
    assert_eq!(body(first).await, body(second).await);
    assert_eq!(n_computed(&script), 1);
}

#[tokio::test]
async fn what_nobody_comes_for_ends() {
    let grace = Duration::from_millis(300);
    for (limits, waits_ms, is_kept) in [
        (Limits { retry_grace: grace, ..keeping() }, 150, true),
        (Limits { retry_grace: grace, ..keeping() }, 50, false),
        (Limits { retry_grace: Duration::ZERO, ..keeping() }, 150, false),
        (Limits { retained_responses: 0, ..keeping() }, 150, false),
        // As it is unless it is configured.
        (Limits::default(), 150, false),
    ] {
        let script = Script { step: Duration::from_millis(10), ..Script::saying(&"x".repeat(400)) };
        let server = scripted_server(script.clone(), limits, ENGINE_OPTIONS).await;
        let mut request = request("x");
        request["max_tokens"] = json!(400);
        leave(&server, waits_ms, &request).await;
        assert_eq!(computes(&script.n_batches).await, is_kept, "after {waits_ms} ms");
        tokio::time::sleep(grace).await;
        assert!(!computes(&script.n_batches).await);
    }
}

#[tokio::test]
async fn clients_that_never_try_again_are_not_waited_for() {
    let script = Script { step: Duration::from_millis(10), ..Script::saying(&"x".repeat(400)) };
    let server = scripted_server(script.clone(), keeping(), ENGINE_OPTIONS).await;
    let mut request = request("x");
    request["max_tokens"] = json!(400);
    let asked = server.post(CHAT, &request);
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    assert!(!computes(&script.n_batches).await);
}

fn beating() -> Limits {
    Limits { heartbeat: Duration::from_millis(100), ..keeping() }
}

#[tokio::test]
async fn spaces_come_before_an_answer_that_takes_long() {
    let (server, _) = slow_server(beating()).await;
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
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "0123456789abcdefghi");
}

#[tokio::test]
async fn none_come_before_one_that_is_quick_or_an_error_that_is_known() {
    let server = scripted_server(Script::saying("x"), beating(), ENGINE_OPTIONS).await;
    let text = server.post(CHAT, &request("x")).await.text().await.unwrap();
    assert!(text.starts_with('{'), "{text:?}");
    let refusal = server.post(CHAT, &json!({"messages": [], "model": "scripted"})).await;
    assert_eq!(refusal.status(), 400);
    let refusal = server.post(CHAT, &json!({"messages": [], "model": "unknown"})).await;
    assert_eq!(refusal.status(), 404);
}

#[tokio::test]
async fn an_error_after_the_first_space_stands_in_place_of_the_answer() {
    let script =
        Script { step: Duration::from_millis(300), panic_on: Some(b'!'), ..Script::saying("0123456789") };
    let server = scripted_server(script, beating(), ENGINE_OPTIONS).await;
    let response = server.post(CHAT, &request("boom!")).await;
    assert_eq!(response.status(), 200);
    let answer = body(response).await;
    assert_eq!(answer["error"]["type"], "server_error");
    assert!(answer.get("choices").is_none());
}

#[tokio::test]
async fn a_client_that_leaves_between_spaces_is_noticed_and_its_retry_joins() {
    let (server, script) = slow_server(beating()).await;
    let response = ask(&server, "a", CHAT, 0, &request("x")).await;
    drop(response);
    let answer = body(ask(&server, "a", CHAT, 1, &request("x")).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "0123456789abcdefghi");
    assert_eq!(n_computed(&script), 1);
    let response = server.post(CHAT, &request("y")).await;
    drop(response);
    assert!(!computes(&script.n_batches).await, "the engine went on for nobody");
}
