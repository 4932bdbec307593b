//! Web pages and host names: DNS rebinding, requests of other sites, and CORS.

use predict_otron_9000::config::Limits;
use reqwest::{Method, Response};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, guarded_server, json as body};

const APP: &str = "https://app.example.com";

async fn send(server: &Server, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = server.client.request(method, server.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(r#"{"input": "cat"}"#).send().await.unwrap()
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_rebound_name_reaches_nothing() {
    let server = guarded_server(&[], &[], &[], Limits::default()).await;
    for path in ["/v1/embeddings", "/no-such-route"] {
        let response = send(&server, Method::POST, path, &[JSON, ("host", "rebound.example.com")]).await;
        assert_eq!(response.status(), 403, "{path}");
        assert!(response.headers().contains_key("x-request-id"));
        let error = &body(response).await["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("host_not_allowed"), &json!("invalid_request_error"))
        );
        assert!(error["message"].as_str().unwrap().contains("--allowed-host rebound.example.com"), "{error}");
    }
    assert_eq!(send(&server, Method::GET, "/livez", &[("host", "rebound.example.com")]).await.status(), 200);
    let named = guarded_server(&[], &["llm.lan"], &[], Limits::default()).await;
    let response = send(&named, Method::POST, "/v1/embeddings", &[JSON, ("host", "llm.lan:80")]).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn malformed_heads_are_refused_in_the_envelope() {
    let server = guarded_server(&[], &[], &[], Limits::default()).await;
    for head in [
        "GET /v1/models HTTP/1.1\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a b\r\n",
        "GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\n",
    ] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 400") && response.contains("malformed_head"), "{response}");
    }
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let head = "GET http://evil.com/v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 403") && response.contains("host_not_allowed"), "{response}");
}

#[tokio::test]
async fn pages_of_other_sites_are_refused() {
    let server = guarded_server(&["sk-one"], &[], &[], Limits::default()).await;
    let key = ("authorization", "Bearer sk-one");
    for page in [("origin", "https://evil.com"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let response = send(&server, Method::POST, "/v1/embeddings", &[JSON, key, page]).await;
        assert_eq!(response.status(), 403, "{page:?}");
        assert!(!response.headers().contains_key("access-control-allow-origin"));
        let error = &body(response).await["error"];
        assert_eq!(error["code"], "origin_not_allowed");
        assert!(error["message"].as_str().unwrap().contains("--cors-origin"), "{error}");
    }
    let own = format!("http://{}", server.address);
    let response = send(&server, Method::POST, "/v1/embeddings", &[JSON, key, ("origin", &own)]).await;
    assert_eq!(response.status(), 200);
    let preflight = [("origin", "https://evil.com"), ("access-control-request-method", "POST")];
    assert_eq!(send(&server, Method::OPTIONS, "/v1/embeddings", &preflight).await.status(), 403);
}

#[tokio::test]
async fn an_allowed_page_uses_the_server_with_cors() {
    for (origins, origin) in [([APP], APP), (["*"], "https://any.example.com")] {
        let server = guarded_server(&["sk-one"], &[], &origins, Limits::default()).await;
        let asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count";
        let preflight = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", asked),
            ("access-control-request-private-network", "true"),
        ];
        // A preflight has no key.
        let response = send(&server, Method::OPTIONS, "/v1/chat/completions", &preflight).await;
        assert!(response.status().is_success(), "{}", response.status());
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("access-control-allow-origin"), origin);
        assert_eq!(header("access-control-allow-headers"), asked);
        assert_eq!(header("access-control-allow-private-network"), "true");
        assert!(header("access-control-allow-methods").contains("POST"));
        assert!(header("access-control-max-age").parse::<u32>().unwrap() > 60);
        assert!(
            response.headers().get_all("vary").iter().any(|vary| vary.to_str().unwrap().contains("origin"))
        );
        assert!(!response.headers().contains_key("access-control-allow-credentials"));

        let key = ("authorization", "Bearer sk-one");
        let page = [("origin", origin), ("sec-fetch-site", "cross-site")];
        for (path, headers, status) in [
            ("/v1/embeddings", vec![JSON, key], 200),
            ("/v1/embeddings", vec![JSON], 401),
            ("/v1/embeddings", vec![key], 415),
            ("/no-such-route", vec![key], 404),
            ("/health", vec![], 405),
            ("/v1/embeddings", vec![JSON, key, ("host", "a b")], 400),
        ] {
            let response = send(&server, Method::POST, path, &[&page[..], &headers].concat()).await;
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["access-control-allow-origin"], origin, "{path}");
            let vary: Vec<_> =
                response.headers().get_all("vary").iter().map(|vary| vary.to_str().unwrap()).collect();
            assert!(vary.iter().any(|vary| vary.contains("origin")), "{vary:?}");
            if status != 400 {
                let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap();
                for name in [
                    "x-request-id",
                    "retry-after",
                    "retry-after-ms",
                    "x-ignored-params",
                    "x-cache",
                    "x-cache-hits",
                ] {
                    assert!(exposed.split(',').any(|exposed| exposed == name), "{name}: {exposed}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_allowed_page_uses_every_method_and_reads_every_header() {
    let server = guarded_server(&[], &[], &[APP], Limits::default()).await;
    let page = ("origin", APP);
    let response = send(&server, Method::GET, "/openapi.json", &[page]).await;
    let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    let document = body(response).await;
    for name in document["components"]["headers"].as_object().unwrap().keys() {
        assert!(exposed.split(',').any(|exposed| exposed == name), "{name}: {exposed}");
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let asked = method.to_uppercase();
            let preflight = [page, ("access-control-request-method", asked.as_str())];
            let response = send(&server, Method::OPTIONS, path, &preflight).await;
            let allowed = response.headers()["access-control-allow-methods"].to_str().unwrap();
            assert!(allowed.split(',').any(|allowed| allowed == asked), "{asked} {path}: {allowed}");
        }
    }
}

#[tokio::test]
async fn traces_are_continued_and_echoed() {
    let server = guarded_server(&["sk-one"], &[], &[], Limits::default()).await;
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    for (path, status) in [("/livez", 200), ("/v1/models", 401), ("/no-such-route", 401)] {
        let response = send(&server, Method::GET, path, &[parent]).await;
        assert_eq!(response.status(), status);
        let echoed = response.headers()["traceparent"].to_str().unwrap();
        assert!(echoed.starts_with(&parent.1[..36]) && echoed.ends_with("-01"), "{echoed}");
        assert_ne!(echoed, parent.1, "a span of its own");
        let fresh = send(&server, Method::GET, path, &[("traceparent", "00-x")]).await;
        assert_eq!(fresh.headers()["traceparent"].len(), parent.1.len());
    }
}
