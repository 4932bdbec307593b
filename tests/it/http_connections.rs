//! Connections: keep-alive, timeouts of each part of a request and its response, and graceful shutdown.
//! The clients here write HTTP by hand.

use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Limits far enough apart to tell which of them ended a connection.
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

async fn connect(server: &Server, bytes: &str) -> TcpStream {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(bytes.as_bytes()).await.unwrap();
    client
}

/// Everything received until the server closes the connection, and how long that takes. A reset counts as closing.
async fn read_to_close(client: &mut TcpStream) -> (String, Duration) {
    let started = Instant::now();
    let mut response = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut response))
        .await
        .expect("the server closes the connection");
    (String::from_utf8_lossy(&response).into_owned(), started.elapsed())
}

fn post(length: usize, bytes: &str) -> String {
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {length}\r\n\r\n{bytes}")
}

#[tokio::test]
async fn a_head_that_never_ends_times_out() {
    let server = server().await;
    let (response, took) =
        read_to_close(&mut connect(&server, "GET /health HTTP/1.1\r\nhost: x\r\n").await).await;
    assert_eq!(response, "");
    assert!(took < Duration::from_millis(1000), "{took:?}");
    // A byte now and then does not keep it open either.
    let mut client = connect(&server, "GET /").await;
    let started = Instant::now();
    while client.write_all(b"x").await.is_ok() && started.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_stalled_body_times_out_and_a_slow_one_does_not() {
    let server = server().await;
    let (response, _) = read_to_close(&mut connect(&server, &post(99, "{")).await).await;
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    assert!(response.contains("request_timeout"), "{response}");

    let mut client = connect(&server, &post(6, "")).await;
    for byte in b"{    }" {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(&[*byte]).await.unwrap();
    }
    assert!(read_to_close(&mut client).await.0.starts_with("HTTP/1.1 400"), "a parameter is missing");
}

#[tokio::test]
async fn keep_alive_outlasts_the_head_timeout() {
    let server = server().await;
    let mut client = connect(&server, HEALTH).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.write_all(HEALTH.as_bytes()).await.unwrap();
    let (responses, took) = read_to_close(&mut client).await;
    assert_eq!(responses.matches("HTTP/1.1 200").count(), 2, "{responses}");
    assert!(took > Duration::from_millis(1100) && took < Duration::from_secs(3), "{took:?}");
    let (nothing, took) = read_to_close(&mut connect(&server, "").await).await;
    assert_eq!(nothing, "");
    assert!(took > Duration::from_millis(1000), "{took:?}");
}

#[tokio::test]
async fn default_timeouts_suit_common_clients() {
    let limits = Limits::default();
    assert!(limits.keep_alive_idle >= Duration::from_secs(75));
    assert_eq!(limits.head_timeout, Duration::from_secs(10));
    assert_eq!(limits.body_idle, Duration::from_secs(30));
    assert_eq!(limits.write_stall, Duration::from_secs(30));
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let started = Instant::now();
    // Endless requests for a page, whose responses fill every buffer on the way.
    let requests = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let flood = async { while client.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), flood).await.expect("the server closes the connection");
    assert!(started.elapsed() > Duration::from_millis(500));
}

#[tokio::test]
async fn a_response_reaches_a_client_that_is_still_sending() {
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
        let mut response = vec![0; 12];
        client.read_exact(&mut response).await.unwrap_or_else(|e| panic!("{status}: {e}"));
        assert_eq!(response, format!("HTTP/1.1 {status}").as_bytes());
    }
}

#[tokio::test]
async fn graceful_shutdown_does_not_wait_for_incomplete_requests() {
    let mut server = server_with_default_limits().await;
    let mut idle = connect(&server, HEALTH).await;
    let mut silent = connect(&server, "").await;
    let mut in_head = connect(&server, "GET /he").await;
    let mut in_body = connect(&server, &post(99, "{")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    server.shut_down();
    tokio::time::timeout(Duration::from_secs(5), &mut server.running).await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(read_to_close(&mut idle).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(read_to_close(&mut silent).await.0, "");
    assert_eq!(read_to_close(&mut in_head).await.0, "");
    assert!(read_to_close(&mut in_body).await.0.starts_with("HTTP/1.1 503"));
}

async fn server_with_default_limits() -> Server {
    scripted_server(Script::saying("x"), Limits::default(), ENGINE_OPTIONS).await
}

#[tokio::test]
async fn a_draining_server_fails_its_health_check_and_serves_on() {
    let mut server = server_with_default_limits().await;
    server.shut_down_after(Duration::from_millis(600));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let health = server.get("/health").await;
    assert_eq!(health.status(), 503);
    assert_eq!(body(health).await["error"]["code"], "unavailable");
    let request = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/v1/chat/completions", &request).await.status(), 200);
    tokio::time::timeout(Duration::from_secs(3), &mut server.running).await.unwrap().unwrap();
    assert!(server.client.get(server.url("/health")).send().await.is_err(), "the listener is closed");
}
