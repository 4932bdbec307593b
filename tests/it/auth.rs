//! Authentication by API key, and tenants.

use std::time::Duration;

use predict_otron_9000::config::Limits;
use reqwest::Method;
use serde_json::json;

use crate::support::{ENGINE_OPTIONS, Script, json as body, keyed_server, scripted_server};

#[tokio::test]
async fn every_route_but_the_probes_and_the_page_needs_a_key() {
    let limits = Limits { wrong_keys: usize::MAX, ..Limits::default() };
    let server = keyed_server(&["sk-one", "sk-two"], limits).await;
    let send = async |method: Method, path: &str, authorization: Option<&str>| {
        let mut request = server.client.request(method, server.url(path));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.header("content-type", "application/json").body(r#"{"input": "cat"}"#).send().await.unwrap()
    };
    for open in ["/health", "/readyz", "/livez", "/", "/page/main.js"] {
        assert_eq!(send(Method::GET, open, None).await.status(), 200, "{open}");
    }
    for (method, path) in [
        (Method::POST, "/v1/embeddings"),
        (Method::POST, "/v1/chat/completions"),
        (Method::POST, "/tokenize"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/metrics"),
        (Method::POST, "/v1/models/pull"),
        (Method::GET, "/openapi.json"),
        (Method::GET, "/docs"),
        (Method::GET, "/no-such-route"),
        (Method::GET, "/health/"),
        (Method::DELETE, "/v1/embeddings"),
    ] {
        for (authorization, code) in [
            (None, "missing_api_key"),
            (Some("Basic c2stb25l"), "missing_api_key"),
            (Some("sk-one"), "missing_api_key"),
            (Some("Bearer"), "missing_api_key"),
            (Some("Bearer sk-three"), "invalid_api_key"),
            (Some("Bearer sk-one,sk-two"), "invalid_api_key"),
        ] {
            let response = send(method.clone(), path, authorization).await;
            assert_eq!(response.status(), 401, "{path} {authorization:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert!(response.headers().contains_key("x-request-id"));
            let error = &body(response).await["error"];
            assert_eq!(error["type"], "invalid_request_error");
            assert_eq!(error["code"], code, "{path} {authorization:?}");
            assert_eq!(error["param"], json!(null));
            assert!(!error["message"].as_str().unwrap().contains("sk-"), "{error}");
        }
    }
    for authorization in ["Bearer sk-one", "bearer sk-two"] {
        let response = send(Method::POST, "/v1/embeddings", Some(authorization)).await;
        assert_eq!(response.status(), 200, "{authorization}");
        assert_eq!(send(Method::GET, "/no-such-route", Some(authorization)).await.status(), 404);
    }
}

#[tokio::test]
async fn a_key_is_accepted_in_either_header() {
    let server = keyed_server(&["sk-one"], Limits::default()).await;
    for (headers, status) in [
        (vec![("x-api-key", "sk-one")], 200),
        (vec![("x-api-key", " sk-one ")], 200),
        (vec![("authorization", "Bearer none"), ("x-api-key", "sk-one")], 200),
        (vec![("authorization", "Bearer sk-one"), ("x-api-key", "other")], 200),
        (vec![("x-api-key", "other")], 401),
    ] {
        let mut request = server.client.get(server.url("/v1/models"));
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn spellings_of_a_token_share_the_prefix_cache_and_other_tokens_do_not() {
    let server = scripted_server(Script::saying("yes"), Limits::default(), ENGINE_OPTIONS).await;
    let cached_tokens = async |authorization: &str| {
        let request = json!({"messages": [{"role": "user", "content": "Once upon a time ".repeat(4)}]});
        let response = server
            .client
            .post(server.url("/v1/chat/completions"))
            .header("authorization", authorization)
            .header("content-type", "application/json")
            .body(request.to_string())
            .send();
        let answer = body(response.await.unwrap()).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached_tokens("Bearer sk-1").await, 0);
    assert!(cached_tokens("bearer    sk-1 ").await > 0);
    assert_eq!(cached_tokens("Bearer sk-2").await, 0);
}

#[tokio::test]
async fn wrong_keys_are_throttled_and_right_ones_are_not() {
    let limits = Limits { wrong_keys: 3, wrong_key_window: Duration::from_millis(800), ..Limits::default() };
    let server = keyed_server(&["sk-one"], limits).await;
    let get =
        async |key: &str| server.client.get(server.url("/v1/models")).bearer_auth(key).send().await.unwrap();
    for n in 0..3 {
        assert_eq!(get(&format!("sk-{n}")).await.status(), 401);
    }
    for n in 3..20 {
        let response = get(&format!("sk-{n}")).await;
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-should-retry"], "false");
        let error = &body(response).await["error"];
        assert_eq!(error["code"], "too_many_wrong_keys");
        assert!(error["message"].as_str().unwrap().contains("invalid API key"), "{error}");
        assert_eq!(get("sk-one").await.status(), 200);
    }
    // A missing key is no guess, and probes need none.
    assert_eq!(server.get("/v1/models").await.status(), 401);
    assert_eq!(server.get("/livez").await.status(), 200);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(get("sk-20").await.status(), 401);
}
