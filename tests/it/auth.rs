//! Authentication by API key, and tenants.

use predict_otron_9000::config::Limits;
use reqwest::Method;
use serde_json::json;

use crate::support::{ENGINE_OPTIONS, Script, json as body, keyed_server, scripted_server};

#[tokio::test]
async fn every_route_but_the_probes_needs_a_key() {
    let server = keyed_server(&["sk-one", "sk-two"]).await;
    let send = async |method: Method, path: &str, authorization: Option<&str>| {
        let mut request = server.client.request(method, server.url(path));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.header("content-type", "application/json").body(r#"{"input": "cat"}"#).send().await.unwrap()
    };
    for probe in ["/health", "/readyz", "/livez"] {
        assert_eq!(send(Method::GET, probe, None).await.status(), 200, "{probe}");
    }
    for (method, path) in [
        (Method::POST, "/v1/embeddings"),
        (Method::POST, "/v1/chat/completions"),
        (Method::POST, "/tokenize"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/metrics"),
        (Method::GET, "/"),
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
    let server = keyed_server(&["sk-one"]).await;
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
