//! Prompts and completions that are too long, against a scripted model whose context is 512 tokens, each a byte.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use predict_otron_9000::models::SequenceId;
use serde_json::{Value, json};

use crate::support::{self, ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";
const SHIFTING: EngineOptions = EngineOptions { context_shift: true, ..ENGINE_OPTIONS };

/// The tokens that the model has read of each sequence.
type Seen = Arc<Mutex<HashMap<SequenceId, Vec<u32>>>>;

async fn server(script: Script, options: EngineOptions) -> (Server, Seen) {
    let seen = script.prompts.clone();
    (scripted_server(script, Limits::default(), options).await, seen)
}

fn request(content: &str, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": content}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

/// The tokens of an untruncated prompt.
fn prompt(content: &str) -> Vec<u32> {
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let (start, end) = ([support::START], [support::END]);
    [&start, &bytes("user:")[..], &bytes(content), &end, &start, &bytes("assistant:")].concat()
}

/// Takes the tokens of the only sequence.
fn only(seen: &Seen) -> Vec<u32> {
    let mut seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    seen.drain().next().unwrap().1
}

#[tokio::test]
async fn a_prompt_is_truncated_at_the_clients_request() {
    let (server, seen) = server(Script::saying("yes"), ENGINE_OPTIONS).await;
    let long = "0123456789".repeat(100_000);
    for (content, n, max_tokens, expected) in [
        ("hello there", 20, 1, 20),
        ("hello there", 400, 1, prompt("hello there").len()),
        (&long, 100, 1, 100),
        (&long, 511, 1, 511),
        (&long, -1, 12, 500),
        (&long, -1, 256, 256),
    ] {
        let fields = json!({"truncate_prompt_tokens": n, "max_tokens": max_tokens});
        let response = server.post(CHAT, &request(content, fields)).await;
        assert!(!response.headers().contains_key("x-ignored-params"), "the client asked for truncation");
        let answer = body(response).await;
        assert_eq!(answer["usage"]["prompt_tokens"], expected, "{answer}");
        let whole = prompt(content);
        let found = only(&seen);
        assert_eq!(found[..expected], whole[whole.len() - expected..]);
    }
    let response = server.post(CHAT, &request("hello", json!({"truncate_prompt_tokens": 512}))).await;
    assert_eq!(response.status(), 400);
    let error = body(response).await;
    assert_eq!(error["error"]["param"], "truncate_prompt_tokens");
}

#[tokio::test]
async fn context_shift_drops_the_middle_of_long_prompts() {
    let (server, seen) = server(Script::saying("yes"), SHIFTING).await;
    let long = "0123456789".repeat(100_000);
    let response = server.post(CHAT, &request(&long, json!({"max_tokens": 1}))).await;
    assert_eq!(response.headers()["x-ignored-params"], "messages");
    assert_eq!(body(response).await["usage"]["prompt_tokens"], 256);
    let whole = prompt(&long);
    assert_eq!(only(&seen)[..256], [&whole[..4], &whole[whole.len() - 252..]].concat());

    // A prompt that fits is not cut.
    let response = server.post(CHAT, &request(&"a".repeat(490), json!({"max_tokens": 1}))).await;
    assert!(!response.headers().contains_key("x-ignored-params"));
    assert_eq!(body(response).await["usage"]["prompt_tokens"], prompt(&"a".repeat(490)).len());
}

#[tokio::test]
async fn context_shift_continues_a_completion_beyond_the_context() {
    for speculative in [false, true] {
        let options = EngineOptions { speculative, ..SHIFTING };
        let (server, _) = server(Script::saying(&"x".repeat(600)), options).await;
        let answer = body(server.post(CHAT, &request("go on", json!({"max_tokens": 1500}))).await).await;
        assert_eq!(answer["usage"]["completion_tokens"], 1500);
        assert_eq!(answer["choices"][0]["message"]["content"], "x".repeat(1500));
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        // Without a limit, a completion ends with the context.
        let answer = body(server.post(CHAT, &request("go on", json!({}))).await).await;
        assert_eq!(answer["usage"]["total_tokens"], 512);
    }
    let (server, _) = server(Script::saying(&"x".repeat(600)), ENGINE_OPTIONS).await;
    let answer = body(server.post(CHAT, &request("go on", json!({"max_tokens": 511}))).await).await;
    assert_eq!(answer["usage"]["total_tokens"], 512, "no context shift by default");
}
