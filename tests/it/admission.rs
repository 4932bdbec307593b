//! Admission by the head of a request: refusals before the body is read, slow bodies, and large work that delays nobody.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ENGINE_OPTIONS, Script, Server, events, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

fn chat(fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

/// A server whose engine has one slot, taken by the returned stream.
async fn full_server() -> (Server, reqwest::Response) {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(200)) };
    let options = EngineOptions { queued_requests: 0, running_requests: 1, ..ENGINE_OPTIONS };
    let server = scripted_server(script, Limits::default(), options).await;
    let running = server.post(CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(running.status(), 200);
    (server, running)
}

fn head(path: &str, fields: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer anybody\r\n{fields}\r\n\r\n"
    )
}

async fn connect(server: &Server, bytes: &str) -> TcpStream {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(bytes.as_bytes()).await.unwrap();
    client
}

/// Everything received until the server closes the connection.
async fn read_to_close(client: &mut TcpStream) -> String {
    let mut response = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut response))
        .await
        .expect("the server closes the connection");
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_by_the_head() {
    let (server, running) = full_server().await;
    for fields in [
        "content-length: 1000000",
        "transfer-encoding: chunked",
        "content-length: 99\r\nexpect: 100-continue",
    ] {
        // Not a byte of the body is sent.
        let mut client = connect(&server, &head(CHAT, fields)).await;
        let mut response = vec![0; 4096];
        let n =
            tokio::time::timeout(Duration::from_secs(1), client.read(&mut response)).await.unwrap().unwrap();
        let response = String::from_utf8_lossy(&response[..n]).to_lowercase();
        assert!(response.starts_with("http/1.1 429"), "{fields}: {response}");
        assert!(response.contains("overloaded_error") && response.contains("queue_full"), "{response}");
        assert!(response.contains("retry-after: "), "{response}");
        assert_eq!(response.contains("connection: close"), !fields.contains("99"), "{response}");
    }
    // A retry may join an attempt that runs.
    let mut retry = connect(&server, &head(CHAT, "content-length: 2\r\nx-stainless-retry-count: 1")).await;
    retry.write_all(b"{}").await.unwrap();
    drop(running);
    // The place is given back.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.post(CHAT, &chat(json!({"max_tokens": 1}))).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_sends_its_whole_body_first() {
    let (server, _running) = full_server().await;
    let large = chat(json!({"user": "u".repeat(1 << 20)}));
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let started = Instant::now();
        let response = server.post(CHAT, &large).await;
        slowest = slowest.max(started.elapsed());
        assert_eq!(response.status(), 429);
        assert_eq!(body(response).await["error"]["code"], "queue_full");
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_never_arrive_do_not_lock_others_out() {
    let limits = Limits {
        queued_requests: 2,
        running_requests: 1,
        place_grace: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = scripted_server(Script::saying("yes"), limits, ENGINE_OPTIONS).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(connect(&server, &head(CHAT, "content-length: 99")).await);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let request = chat(json!({"max_tokens": 1}));
    let early = server.post(CHAT, &request).await;
    assert_eq!(early.status(), 429, "all places are taken by bodies that may arrive any moment");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(server.post(CHAT, &request).await.status(), 200);
    let evicted = read_to_close(&mut silent[0]).await;
    assert!(evicted.starts_with("HTTP/1.1 429") && evicted.contains("longer than 0.3 s"), "{evicted}");
    // The others still have theirs.
    let bytes = format!("{:99}", request.to_string());
    silent[1].write_all(bytes.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    silent[1].read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_budget_are_refused_however_they_are_sent() {
    let limits = Limits { body_bytes: 1000, bodies_bytes: 1000, ..Limits::default() };
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(100)) };
    let server = scripted_server(script, limits, ENGINE_OPTIONS).await;
    let running = server.post(CHAT, &chat(json!({"stream": true, "user": "u".repeat(500)}))).await;
    assert_eq!(running.status(), 200);
    let announced = server.post(CHAT, &chat(json!({"user": "u".repeat(500)}))).await;
    assert_eq!(announced.status(), 429);
    let error = body(announced).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("1000 bytes"), "{error}");
    let mut chunked = connect(&server, &head(CHAT, "transfer-encoding: chunked")).await;
    for _ in 0..9 {
        let chunk = format!("64\r\n{:100}\r\n", "");
        let _ = chunked.write_all(chunk.as_bytes()).await;
    }
    let response = read_to_close(&mut chunked).await;
    assert!(response.starts_with("HTTP/1.1 429"), "{response}");
    assert_eq!(server.post(CHAT, &chat(json!({"max_tokens": 1}))).await.status(), 200, "a small one fits");
    events(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tokenizations_do_not_delay_a_chat() {
    let script = Script { context_length: Some(4096), ..Script::saying("yes") };
    let engine = EngineOptions { queued_requests: 256, queued_tokens: 262_144, ..ENGINE_OPTIONS };
    let server = scripted_server(script, Limits::default(), engine).await;
    let large = json!({"prompt": "a b ".repeat(120 << 10), "return_token_strs": true});
    let too_large = json!({"prompt": "a b ".repeat(500 << 10)});
    let long_chat = chat(json!({"messages": [{"role": "user", "content": "word ".repeat(300_000)}]}));
    let flood = async {
        let tools = (0..24).map(|_| server.post("/tokenize", &large));
        let refused = (0..24).map(|_| server.post("/tokenize", &too_large));
        let chats = (0..24).map(|_| server.post(CHAT, &long_chat));
        let all = futures_util::future::join3(join_all(tools), join_all(refused), join_all(chats)).await;
        let statuses = |responses: Vec<reqwest::Response>| -> Vec<u16> {
            responses.iter().map(|response| response.status().as_u16()).collect()
        };
        [statuses(all.0), statuses(all.1), statuses(all.2)]
    };
    let probes = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let started = Instant::now();
            let response = server.post_as("another key", CHAT, &chat(json!({"max_tokens": 1}))).await;
            assert_eq!(response.status(), 200);
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let started = Instant::now();
    let ([tools, refused, chats], slowest) = tokio::join!(flood, probes);
    assert!(tools.iter().all(|status| [200, 429].contains(status)), "{tools:?}");
    assert!(refused.iter().all(|status| [400, 429].contains(status)), "{refused:?}");
    // Which of the two gets the places depends on whose heads arrive first.
    assert!(tools.contains(&200) || refused.contains(&400), "{tools:?} {refused:?}");
    assert!(chats.iter().all(|status| [400, 429].contains(status)), "{chats:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?} of {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_small_body_can_cost_is_bounded() {
    let script = Script { special: vec!["<|a special token with a long text|>"], ..Script::saying("yes") };
    let server = scripted_server(script, Limits::default(), ENGINE_OPTIONS).await;
    let raw = async |path: &str, text: String| {
        let request = server.client.post(server.url(path)).header("content-type", "application/json");
        let response = request.body(text).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    for (path, text, limit) in [
        // The token with the longest text in the vocabulary, over and over.
        ("/detokenize", format!("{{\"tokens\": [{}258]}}", "258,".repeat(390_000)), "4194304"),
        ("/tokenize", format!("{{\"prompt\": \"{}\"}}", "a".repeat((512 << 10) + 1)), "524288"),
        ("/v1/completions", format!("{{\"prompt\": [{}0]}}", "0,".repeat(1_000_000)), "400000"),
        ("/v1/embeddings", format!("{{\"input\": [{}[0]]}}", "[0],".repeat(400_000)), "50000"),
    ] {
        let (status, answer) = raw(path, text).await;
        assert!(status == 400 && answer.contains(limit), "{path}: {status} {answer:.300}");
    }
    let (status, answer) = raw("/detokenize", format!("{{\"tokens\": [{}72]}}", "72,".repeat(300_000))).await;
    assert!(status == 200 && answer.contains("HHHHHH"), "{status} {answer:.300}");
}
