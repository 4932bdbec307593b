//! Behavior common to all routes (error envelope, limits, request ids), and the small routes.

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, METRICS, Script, Server, json as body, scripted_server};

async fn server() -> Server {
    let limits = Limits { body_bytes: 4096, ..Limits::default() };
    scripted_server(Script::saying("x"), limits, ENGINE_OPTIONS).await
}

#[tokio::test]
async fn every_error_has_the_full_envelope() {
    let server = server().await;
    let client = &server.client;
    let chat = server.url("/v1/chat/completions");
    let json_type = ("content-type", "application/json");
    let post = || client.post(&chat).header(json_type.0, json_type.1);
    for (request, status) in [
        (client.get(server.url("/v1/nothing")), 404),
        (client.get(server.url("/v1/models/unknown")), 404),
        (client.get(&chat), 405),
        (client.delete(server.url("/v1/models")), 405),
        (post().body("{\"messages\": ["), 400),
        (post().body("[]"), 400),
        (post().body(""), 400),
        (post().body(format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100))), 400),
        (post().body(format!("{{\"a\": \"{}\"}}", "x".repeat(5000))), 413),
        (client.post(&chat).header("content-type", "text/plain").body("{}"), 415),
        (client.post(&chat).body("{}"), 415),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        assert!(response.headers().contains_key("x-request-id"));
        let error = body(response).await["error"].as_object().unwrap().clone();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
        assert!(error["code"].is_null() || error["code"].is_string());
    }
}

#[tokio::test]
async fn the_clients_request_id_is_echoed() {
    let server = server().await;
    let with_id = |id: &str| server.client.get(server.url("/health")).header("x-request-id", id);
    let response = with_id("my-id-1").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "my-id-1");
    let response = with_id(&"x".repeat(200)).send().await.unwrap();
    assert!(
        response.headers()["x-request-id"].to_str().unwrap().starts_with("req_"),
        "a longer id is replaced"
    );
}

#[tokio::test]
async fn models_are_listed_and_found_by_id_and_alias() {
    let server = server().await;
    let list = body(server.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["scripted", "no-embeddings"]);
    for path in ["scripted", "tests/Scripted", "tests%2FScripted"] {
        let model = body(server.get(&format!("/v1/models/{path}")).await).await;
        assert_eq!((&model["id"], &model["object"]), (&json!("scripted"), &json!("model")), "{path}");
        assert_eq!(model["owned_by"], "tests");
        assert!(model["created"].as_u64().unwrap() > 1_700_000_000);
    }
    let error = body(server.get("/v1/models/a/b").await).await["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
}

#[tokio::test]
async fn the_start_page_and_the_probes_respond() {
    let server = server().await;
    let page = server.get("/").await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = page.text().await.unwrap();
    assert!(
        page.contains("predict-otron-9000") && page.contains("scripted") && page.contains("/v1/embeddings")
    );
    assert_eq!(body(server.get("/health").await).await, json!({"status": "ok"}));
}

#[tokio::test]
async fn metrics_are_exported() {
    // The recorder must be installed before the first count.
    let _ = &*METRICS;
    let server = server().await;
    let request = json!({
        "messages": [{"role": "user", "content": "hi"}], "repeat_penalty": 1.2, "ignore_eos": true, "max_tokens": 5
    });
    assert_eq!(server.post("/v1/chat/completions", &request).await.status(), 200);
    let metrics = server.get("/metrics").await.text().await.unwrap();
    let value = |name: &str| -> u64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("predict_otron_repeat_penalty_cache_hits_total") >= 5);
    assert!(value("predict_otron_repeat_penalty_cache_updates_total") >= 1);
    assert!(value("predict_otron_completion_tokens_total") >= 5);
}

#[tokio::test]
async fn invalid_embeddings_requests_name_the_parameter() {
    let server = server().await;
    for (fields, status, param) in [
        (json!({}), 400, json!("input")),
        (json!({"input": []}), 400, json!("input")),
        (json!({"input": [[]]}), 400, json!("input")),
        (json!({"input": {"a": 1}}), 400, json!("input")),
        (json!({"input": "x", "encoding_format": "int8"}), 400, json!("encoding_format")),
        (json!({"input": vec!["x"; 600], "model": "default"}), 503, Value::Null),
        (json!({"input": "x", "model": "scripted"}), 404, json!("model")),
    ] {
        let response = server.post("/v1/embeddings", &fields).await;
        assert_eq!(response.status(), status, "{fields}");
        assert_eq!(body(response).await["error"]["param"], param, "{fields}");
    }
}

#[tokio::test]
async fn a_model_that_fails_to_load_is_reported_and_retried() {
    let server = server().await;
    for _ in 0..2 {
        let response = server.post("/v1/embeddings", &json!({"input": "x"})).await;
        assert_eq!(response.status(), 503);
        let error = body(response).await["error"].clone();
        assert_eq!(error["message"], "the model cannot be used for this request; see the server's log");
    }
}
