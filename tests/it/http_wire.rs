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
async fn an_unknown_path_names_the_route_that_is_meant() {
    let server = server().await;
    for (path, meant) in [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/openai/deployments/m/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/m", "/v1/models/{*id}"),
        ("/v2/rerank", "/v1/rerank"),
    ] {
        let error = body(server.post(path, &json!({})).await).await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["code"], "unknown_url", "{path}");
        assert!(message.contains(&format!("did you mean {meant}?")), "{path}: {message}");
        assert!(message.contains("base URL") && message.contains("followed by /v1"), "{path}: {message}");
    }
    for (path, meant) in [("/v1/tokenize", "/tokenize"), ("/v1/health", "/health")] {
        let error = body(server.post(path, &json!({})).await).await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&format!("did you mean {meant}, directly after")), "{path}: {message}");
    }
    let error = body(server.post("/other/tags", &json!({})).await).await["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("GET / lists the routes"), "{error}");
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
        assert_eq!((&model["root"], &model["aliases"]), (&json!("scripted"), &json!(["tests/Scripted"])));
        assert_eq!((&model["max_model_len"], &model["context_length"]), (&json!(512), &json!(512)));
        assert!(model["created"].as_u64().unwrap() > 1_700_000_000);
    }
    let error = body(server.get("/v1/models/a/b").await).await["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
}

#[tokio::test]
async fn names_that_clients_change_are_understood() {
    let ask = async |server: &Server, path: &str, model: &str, fields: Value| {
        let mut request =
            json!({"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 1});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        request["model"] = json!(model);
        let response = server.post(path, &request).await;
        let ignored =
            response.headers().get("x-ignored-params").map(|names| names.to_str().unwrap().to_owned());
        (response.status().as_u16(), ignored.unwrap_or_default(), body(response).await)
    };
    let strict = server().await;
    let chat = "/v1/chat/completions";
    for name in
        ["scripted:latest", "openai/scripted", "openai/tests/Scripted:latest", "openai/default", "SCRIPTED"]
    {
        let (status, ignored, answer) = ask(&strict, chat, name, json!({})).await;
        assert_eq!((status, ignored.contains("model")), (200, false), "{name}");
        assert_eq!(answer["model"], "scripted");
    }
    for (name, suggested) in [("scriptd", true), ("gpt-4o", false)] {
        let (status, _, answer) = ask(&strict, chat, name, json!({})).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
        assert_eq!(message.contains("did you mean `scripted`?"), suggested, "{message}");
        assert!(message.contains("served are `scripted`") || suggested, "{message}");
        assert!(message.contains("--any-model-name"), "{message}");
    }
    let limits = Limits { any_model_name: true, ..Limits::default() };
    let lenient = scripted_server(Script::saying("x"), limits, ENGINE_OPTIONS).await;
    for name in ["tgi", "dummy", "gpt-4o", ""] {
        for path in [chat, "/v1/completions", "/tokenize"] {
            let fields = if path == "/tokenize" { json!({"messages": null}) } else { json!({}) };
            let (status, ignored, _) = ask(&lenient, path, name, fields).await;
            assert_eq!((status, ignored.ends_with("model")), (200, true), "{name} {path}: {ignored}");
        }
    }
    for name in ["scripted", "default", "openai/scripted"] {
        let (status, ignored, _) = ask(&lenient, chat, name, json!({})).await;
        assert_eq!((status, ignored.contains("model")), (200, false), "{name}");
    }
    assert_eq!(ask(&lenient, chat, "no-embeddings", json!({})).await.0, 404, "a model of another kind");
}

#[tokio::test]
async fn the_chat_page_and_the_probes_respond() {
    let server = server().await;
    let page = server.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()["x-frame-options"], "DENY");
    let tag = page.headers()["etag"].clone();
    let text = page.text().await.unwrap();
    assert!(
        text.contains("\"page/main.js\"") && !text.contains("<style") && !text.contains("style="),
        "{text}"
    );
    let script = server.get("/page/main.js").await;
    assert_eq!(script.headers()["content-type"], "text/javascript; charset=utf-8");
    let again = server.client.get(server.url("/")).header("if-none-match", tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    for missing in ["/page/none.js", "/page/../mod.rs", "/page/%2e%2e/mod.rs", "/page/"] {
        assert_eq!(server.get(missing).await.status(), 404, "{missing}");
    }
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
