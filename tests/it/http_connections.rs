//! Connections: how long each part of a request and its answer may take, and how a shutdown ends
//! them. Clients here speak HTTP by hand.

use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Each limit is far enough from the others to be told from them.
fn limits() -> Limits {
    Limits {
        keep_alive_idle: Duration::from_millis(1200),
        head_timeout: Duration::from_millis(300),
        body_idle: Duration::from_millis(300),
        write_stall: Duration::from_millis(500),
        body_bytes: 4096,
        ..Limits::default()
    }
}

async fn server() -> Server {
    scripted_server(Script::saying("x"), limits(), ENGINE_OPTIONS).await
}

async fn connect(server: &Server, said: &str) -> TcpStream {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(said.as_bytes()).await.unwrap();
    client
}

/// All that comes until the server closes, and how long that takes. A reset counts as closing.
async fn rest(client: &mut TcpStream) -> (String, Duration) {
    let started = Instant::now();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer))
        .await
        .expect("the server closes the connection");
    (String::from_utf8_lossy(&answer).into_owned(), started.elapsed())
}

fn post(length: usize, said: &str) -> String {
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {length}\r\n\r\n{said}")
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = server().await;
    let (answer, took) = rest(&mut connect(&server, "GET /health HTTP/1.1\r\nhost: x\r\n").await).await;
    assert_eq!(answer, "");
    assert!(took < Duration::from_millis(1000), "{took:?}");
    // Neither does a byte now and then keep it open.
    let mut client = connect(&server, "GET /").await;
    let started = Instant::now();
    while client.write_all(b"x").await.is_ok() && started.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_body_that_stops_is_refused_and_a_slow_one_is_read() {
    let server = server().await;
    let (answer, _) = rest(&mut connect(&server, &post(99, "{")).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");

    let mut client = connect(&server, &post(6, "")).await;
    for byte in b"{    }" {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(&[*byte]).await.unwrap();
    }
    assert!(rest(&mut client).await.0.starts_with("HTTP/1.1 400"), "its parameter is missing");
}

#[tokio::test]
async fn a_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let server = server().await;
    let mut client = connect(&server, HEALTH).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.write_all(HEALTH.as_bytes()).await.unwrap();
    let (answers, took) = rest(&mut client).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert!(took > Duration::from_millis(1100) && took < Duration::from_secs(3), "{took:?}");
    let (nothing, took) = rest(&mut connect(&server, "").await).await;
    assert_eq!(nothing, "");
    assert!(took > Duration::from_millis(1000), "{took:?}");
}

#[tokio::test]
async fn the_limits_are_those_that_clients_reckon_with() {
    let limits = Limits::default();
    assert!(limits.keep_alive_idle >= Duration::from_secs(75));
    assert_eq!(limits.head_timeout, Duration::from_secs(10));
    assert_eq!(limits.body_idle, Duration::from_secs(30));
    assert_eq!(limits.write_stall, Duration::from_secs(30));
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let started = Instant::now();
    // Requests for a page, without end; their answers fill every buffer on the way.
    let requests = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let flood = async { while client.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), flood).await.expect("the server closes the connection");
    assert!(started.elapsed() > Duration::from_millis(500));
}

#[tokio::test]
async fn an_answer_reaches_a_client_that_still_sends() {
    let server = server().await;
    let refused = [
        ("/v1/embeddings", "application/json", "413"),
        ("/v1/embeddings", "text/plain", "415"),
        ("/v1/nothing", "application/json", "404"),
        ("/health", "application/json", "405"),
    ];
    for (path, content_type, status) in refused {
        let length = 3 << 20;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
        );
        let mut client = connect(&server, &head).await;
        for piece in vec![b' '; length].chunks(1 << 18) {
            client.write_all(piece).await.unwrap_or_else(|e| panic!("{status}: {e}"));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut answer = vec![0; 12];
        client.read_exact(&mut answer).await.unwrap_or_else(|e| panic!("{status}: {e}"));
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes());
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_requests_that_are_not_whole() {
    let mut server = server_with_patience().await;
    let mut idle = connect(&server, HEALTH).await;
    let mut silent = connect(&server, "").await;
    let mut in_head = connect(&server, "GET /he").await;
    let mut in_body = connect(&server, &post(99, "{")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    server.shut_down();
    tokio::time::timeout(Duration::from_secs(5), &mut server.running).await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(rest(&mut idle).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(rest(&mut silent).await.0, "");
    assert_eq!(rest(&mut in_head).await.0, "");
    assert!(rest(&mut in_body).await.0.starts_with("HTTP/1.1 503"));
}

async fn server_with_patience() -> Server {
    scripted_server(Script::saying("x"), Limits::default(), ENGINE_OPTIONS).await
}

#[tokio::test]
async fn a_server_that_will_close_says_so_and_goes_on_for_a_while() {
    let mut server = server_with_patience().await;
    server.shut_down_after(Duration::from_millis(600));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let health = server.get("/health").await;
    assert_eq!(health.status(), 503);
    assert_eq!(body(health).await["error"]["code"], "unavailable");
    let request = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/v1/chat/completions", &request).await.status(), 200);
    tokio::time::timeout(Duration::from_secs(3), &mut server.running).await.unwrap().unwrap();
    assert!(server.client.get(server.url("/health")).send().await.is_err(), "nothing listens any more");
}
