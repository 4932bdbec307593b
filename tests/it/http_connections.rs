//! Connections: keep-alive, timeouts of each part of a request and its response, and graceful shutdown.
//! The clients here write HTTP by hand.

use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Limits far enough apart to tell which of them ended a connection.
fn limits() -> Limits {
    Limits {
        keep_alive_idle: Duration::from_millis(1200),
        head_timeout: Duration::from_millis(300),
        body_idle: Duration::from_millis(300),
        body_bytes_per_second: 10,
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
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {length}\r\n\r\n{bytes}")
}

#[tokio::test]
async fn a_head_that_never_ends_times_out() {
    let server = server().await;
    let (response, took) =
        read_to_close(&mut connect(&server, "GET /health HTTP/1.1\r\nhost: localhost\r\n").await).await;
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
}

#[tokio::test]
async fn a_new_connection_must_send_its_first_byte_soon() {
    let server = server().await;
    let (nothing, took) = read_to_close(&mut connect(&server, "").await).await;
    assert_eq!(nothing, "");
    assert!(took > Duration::from_millis(250) && took < Duration::from_millis(1000), "{took:?}");
}

#[tokio::test]
async fn a_body_below_the_least_rate_is_refused() {
    let limits = Limits { body_bytes_per_second: 1000, ..limits() };
    let server = scripted_server(Script::saying("x"), limits, ENGINE_OPTIONS).await;
    let mut client = connect(&server, &post(4000, "{")).await;
    let trickle = async {
        // More often than the longest pause, but not enough.
        while client.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let started = Instant::now();
    let _ = tokio::time::timeout(Duration::from_secs(3), trickle).await;
    let (response, _) = read_to_close(&mut client).await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 408"), "{response}");
}

#[tokio::test]
async fn a_response_taken_below_the_least_rate_is_ended() {
    let write_stall = Duration::from_secs(1);
    let limits = Limits { write_stall, response_bytes_per_second: 100 << 20, ..limits() };
    let server = scripted_server(Script::saying("x"), limits, ENGINE_OPTIONS).await;
    let mut client = connect(&server, "").await;
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(2000);
    let started = Instant::now();
    let (mut reader, mut writer) = client.split();
    let flood = async { while writer.write_all(requests.as_bytes()).await.is_ok() {} };
    // Never pauses for as long as it may.
    let sip = async {
        let mut taken = vec![0; 256 << 10];
        while reader.read(&mut taken).await.is_ok_and(|n_read| n_read > 0) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let either = async {
        tokio::select! { () = flood => {}, () = sip => {} }
    };
    tokio::time::timeout(Duration::from_secs(20), either).await.expect("the server closes the connection");
    assert!(started.elapsed() >= write_stall);
}

/// A server for few connections, and a chat that it serves for seconds.
async fn small_server(connections: usize) -> Server {
    let script = Script { step: Duration::from_millis(50), ..Script::saying(&"x".repeat(200)) };
    let limits = Limits { connections, probe_connections: 2, ..Limits::default() };
    scripted_server(script, limits, ENGINE_OPTIONS).await
}

/// The head and body of a request for a streamed chat.
fn streamed_chat() -> String {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true}).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// Reads the beginning of a response.
async fn read_some(client: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), client.read(&mut bytes));
    let n_read = read.await.expect("a response").unwrap_or(0);
    String::from_utf8_lossy(&bytes[..n_read]).into_owned()
}

#[tokio::test]
async fn silent_connections_lock_nobody_out() {
    let server = small_server(8).await;
    let mut chat = connect(&server, &streamed_chat()).await;
    assert!(read_some(&mut chat).await.starts_with("HTTP/1.1 200"));
    let mut kept = connect(&server, HEALTH).await;
    assert!(read_some(&mut kept).await.starts_with("HTTP/1.1 200"));
    let mut silent = Vec::new();
    for idx in 0..100 {
        silent.push(connect(&server, if idx % 2 == 0 { "" } else { "GET /hea" }).await);
        if idx % 10 == 0 {
            let started = Instant::now();
            assert_eq!(server.client.get(server.url("/livez")).send().await.unwrap().status(), 200);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        }
    }
    assert_eq!(read_to_close(&mut kept).await.0, "", "it was idle for longest");
    assert_eq!(read_to_close(&mut silent[0]).await.0, "");
    assert!(read_some(&mut chat).await.contains("data: "), "a connection that is being served stays");
}

#[tokio::test]
async fn connections_with_slow_bodies_make_room() {
    let server = small_server(4).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(connect(&server, &post(99, "{")).await);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let response = server.client.get(server.url("/v1/models")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (nothing, took) = read_to_close(&mut slow[0]).await;
    assert_eq!(nothing, "");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn probes_are_answered_where_all_connections_are_serving() {
    let server = small_server(3).await;
    let mut chats = Vec::new();
    for _ in 0..3 {
        chats.push(connect(&server, &streamed_chat()).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for path in ["/livez", "/readyz", "/health"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let (response, took) = read_to_close(&mut connect(&server, &request).await).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("connection: close"), "{response}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let (response, _) = read_to_close(&mut connect(&server, &streamed_chat()).await).await;
    assert!(response.starts_with("HTTP/1.1 429"), "{response}");
    for part in ["retry-after: 1\r\n", "overloaded_error", "all 3 connections"] {
        assert!(response.contains(part), "{part}: {response}");
    }
    // Silent clients keep nobody from the places for probes.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect(&server, "").await);
    }
    assert!(read_to_close(&mut connect(&server, HEALTH).await).await.0.starts_with("HTTP/1.1 200"));
    for chat in &mut chats {
        assert!(read_some(chat).await.starts_with("HTTP/1.1 200"), "a connection that is being served stays");
    }
}

#[tokio::test]
async fn heads_that_cannot_be_parsed_get_the_envelope() {
    let server = server().await;
    let long = "x".repeat(70_000);
    let many: String = (0..101).map(|idx| format!("h{idx}: x\r\n")).collect();
    for (head, status, code) in [
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), "400", "malformed_head"),
        ("GET\r\n\r\n".to_owned(), "400", "malformed_head"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), "400", "malformed_head"),
        (
            "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_owned(),
            "400",
            "malformed_head",
        ),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"), "431", "head_too_large"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\nlong: {long}\r\n\r\n"), "431", "head_too_large"),
        (format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"), "431", "head_too_large"),
        // After a request that is served.
        (format!("{HEALTH}GET / HTTP/9.9\r\n\r\n"), "400", "malformed_head"),
    ] {
        let mut client = connect(&server, &head).await;
        let (responses, _) = read_to_close(&mut client).await;
        let response = responses.rsplit_once("HTTP/1.1 ").unwrap().1;
        assert!(response.starts_with(status), "{head}: {responses}");
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], code, "{body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = server().await;
    let not_found = "GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut client = connect(&server, &[HEALTH, &post(2, "{}"), not_found, HEALTH].concat()).await;
    let (responses, _) = read_to_close(&mut client).await;
    let statuses: Vec<&str> =
        responses.split("HTTP/1.1 ").skip(1).map(|response| response.split(' ').next().unwrap()).collect();
    assert_eq!(statuses, ["200", "400", "404", "200"], "{responses}");
}

#[tokio::test]
async fn a_client_may_wait_for_100_continue() {
    let server = server().await;
    let head = post(2, "").replace("host: localhost", "host: localhost\r\nexpect: 100-continue");
    let mut client = connect(&server, &head).await;
    assert_eq!(read_some(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"{}").await.unwrap();
    assert!(read_some(&mut client).await.starts_with("HTTP/1.1 400"), "a parameter is missing");
}

#[tokio::test]
async fn default_timeouts_suit_common_clients() {
    let limits = Limits::default();
    assert!(limits.keep_alive_idle >= Duration::from_secs(75));
    assert_eq!(limits.head_timeout, Duration::from_secs(10));
    assert_eq!(limits.body_idle, Duration::from_secs(30));
    assert_eq!(limits.write_stall, Duration::from_secs(30));
    assert!(limits.body_bytes_per_second <= 1024 && limits.body_grace >= Duration::from_secs(10));
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let started = Instant::now();
    // Endless requests for a page, whose responses fill every buffer on the way.
    let requests = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
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
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
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
async fn a_head_that_is_too_long_is_refused() {
    let server = server_with_default_limits().await;
    let head = |n_spaces: usize| {
        let spaces = " ".repeat(n_spaces);
        format!(
            "GET /livez HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer{spaces}x\r\nconnection: close\r\n\r\n"
        )
    };
    for (n_spaces, status) in [(40_000, "200"), (150_000, "431"), (400_000, "431")] {
        let started = Instant::now();
        let mut client = TcpStream::connect(server.address).await.unwrap();
        // The server may stop reading before the end.
        let _ = client.write_all(head(n_spaces).as_bytes()).await;
        let mut response = vec![0; 12];
        client.read_exact(&mut response).await.unwrap();
        assert_eq!(response, format!("HTTP/1.1 {status}").as_bytes(), "{n_spaces}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
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
