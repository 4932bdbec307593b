//! Models managed over HTTP: downloads from a hub on this machine, and chat models that come and go.

use std::path::Path;

use futures_util::StreamExt;
use predict_otron_9000::config::Limits;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::cli::{Running, program};
use crate::hub::{LARGE, TestHub};
use crate::support::{ENGINE_OPTIONS, Script, scripted_server};

/// A model of the hub.
pub const MODEL: &str = "hf:tiny/llama";
const FOLDER: &str = "tests/data/tiny/llama";

/// A hub with a model.
pub fn hub() -> TestHub {
    let hub = TestHub::start();
    for file in std::fs::read_dir(FOLDER).unwrap().map(|file| file.unwrap()) {
        hub.put("tiny/llama", file.file_name().to_str().unwrap(), std::fs::read(file.path()).unwrap());
    }
    hub
}

/// A server of another model, with its own folder of downloads.
pub async fn server(hub: &TestHub, cache: &Path) -> Running {
    let mut command = program();
    command.args(["--model", "tests/data/tiny/qwen2", "--cache-dir"]).arg(cache);
    command.env("HF_ENDPOINT", &hub.endpoint).env("PYTHON", "/no/such/python");
    tokio::task::spawn_blocking(|| Running::start(command)).await.unwrap()
}

async fn call(server: &Running, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let url = format!("http://{}{path}", server.address);
    let request = Client::new().request(method, url);
    let response = match body {
        Some(body) => request.json(&body).send().await.unwrap(),
        None => request.send().await.unwrap(),
    };
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn post(server: &Running, path: &str, body: Value) -> (u16, Value) {
    call(server, Method::POST, path, Some(body)).await
}

async fn act(server: &Running, id: &str, action: &str) -> (u16, Value) {
    call(server, Method::POST, &format!("/v1/models/{id}/{action}"), None).await
}

async fn chat(server: &Running, model: &str) -> u16 {
    let request = json!({"model": model, "prompt": "hi", "max_tokens": 2});
    post(server, "/v1/completions", request).await.0
}

fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn a_model_is_pulled_loaded_pinned_unloaded_and_deleted() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let server = server(&hub, cache.path()).await;
    assert_eq!(chat(&server, MODEL).await, 404);
    let url = format!("http://{}/v1/models/pull", server.address);
    let request = Client::new().post(url).json(&json!({"model": MODEL, "stream": true}));
    let events = events(&request.send().await.unwrap().text().await.unwrap());
    let last = events.last().unwrap();
    assert_eq!(
        (&last["status"], &last["id"], &last["served"]),
        (&json!("success"), &json!("tiny/llama"), &json!(true))
    );
    let downloaded = |name: &str| {
        let file = json!(format!("tiny/llama/{name}"));
        events.iter().any(|event| event["file"] == file && event["completed"] == event["total"])
    };
    assert!(downloaded("model.safetensors") && downloaded("config.json"), "{events:?}");

    let state = async |id: &str| {
        let (status, model) = call(&server, Method::GET, &format!("/v1/models/{id}"), None).await;
        assert_eq!(status, 200, "{model}");
        model
    };
    let model = state("tiny/llama").await;
    assert_eq!(
        (&model["state"], &model["memory_bytes"], &model["kv_format"]),
        (&json!("unloaded"), &Value::Null, &json!("f16"))
    );
    assert_eq!(model["quantization"], "F32");
    assert_eq!(chat(&server, "tiny/llama").await, 200);
    let model = state("tiny/llama").await;
    assert_eq!((&model["state"], &model["loaded"]), (&json!("loaded"), &json!(true)));
    assert!(model["memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!(act(&server, "tiny/llama", "unload").await.1["state"], "unloaded");
    let (status, pinned) = act(&server, "tiny%2Fllama", "pin").await;
    assert_eq!((status, &pinned["state"], &pinned["pinned"]), (200, &json!("loaded"), &json!(true)));
    assert_eq!(act(&server, "tiny/llama", "unpin").await.1["pinned"], false);

    let (status, deleted) = call(&server, Method::DELETE, "/v1/models/tiny/llama", None).await;
    assert_eq!((status, &deleted["deleted"]), (200, &json!(true)), "{deleted}");
    assert!(deleted["bytes"].as_u64().unwrap() as usize > LARGE);
    assert_eq!(chat(&server, "tiny/llama").await, 404);
    let (status, refused) = act(&server, MODEL, "load").await;
    assert!(
        status == 404 && refused["error"]["message"].as_str().unwrap().contains("/v1/models/pull"),
        "{refused}"
    );

    // A model on disk that is not served is served once it is loaded.
    assert_eq!(post(&server, "/v1/models/pull", json!({"model": MODEL})).await.0, 200);
    drop(server);
    let server = self::server(&hub, cache.path()).await;
    assert_eq!(chat(&server, MODEL).await, 404);
    assert_eq!(act(&server, MODEL, "load").await.1["state"], "loaded");
    assert_eq!(chat(&server, "tiny/llama").await, 200);
}

#[tokio::test]
async fn a_cancelled_download_is_resumed() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let server = server(&hub, cache.path()).await;
    hub.script().stall = true;
    let url = format!("http://{}/v1/models/pull", server.address);
    let request = Client::new().post(url).json(&json!({"model": MODEL, "stream": true}));
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut seen = String::new();
    while !events(&seen).iter().any(|event| event["completed"].as_u64().is_some_and(|n| n > 0)) {
        seen += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
    }
    drop(stream);
    hub.script().stall = false;
    hub.take_seen();
    // The lock is free once the cancelled download has noticed.
    let (status, pulled) = post(&server, "/v1/models/pull", json!({"model": MODEL})).await;
    assert_eq!((status, &pulled["status"]), (200, &json!("success")), "{pulled}");
    assert!(hub.take_bodies().iter().any(|body| body.range.is_some()), "the rest alone is downloaded");
}

#[tokio::test]
async fn what_cannot_be_managed_is_refused() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let server = server(&hub, cache.path()).await;
    for model in
        ["/etc/passwd", "../x", "./tests", "no-such-model", "hf:no/such", "hf:../../x/y", "pypi:x==1/../../y"]
    {
        let (status, refused) = post(&server, "/v1/models/pull", json!({"model": model})).await;
        assert!(matches!(status, 400 | 503), "{model}: {refused}");
        assert!(
            !refused["error"]["message"].as_str().unwrap().contains(cache.path().to_str().unwrap()),
            "{refused}"
        );
    }
    for (method, path, status) in [
        (Method::POST, "/v1/models/none/load", 404),
        (Method::POST, "/v1/models/%2Fetc%2Fpasswd/load", 404),
        (Method::POST, "/v1/models/qwen2/eat", 404),
        (Method::POST, "/v1/models/load", 404),
        (Method::POST, "/v1/models/all-minilm-l6-v2/unload", 400),
        (Method::DELETE, "/v1/models/all-minilm-l6-v2", 409),
        (Method::DELETE, "/v1/models/none", 404),
        (Method::DELETE, "/v1/models/hf:tiny/llama:latest", 404),
        (Method::DELETE, "/v1/models/%2Fetc%2Fpasswd", 404),
        // It is at a path, which no request may delete.
        (Method::DELETE, "/v1/models/qwen2", 400),
    ] {
        let (found, body) = call(&server, method.clone(), path, None).await;
        assert_eq!(found, status, "{method} {path}: {body}");
    }
    assert!(Path::new("tests/data/tiny/qwen2/config.json").exists());
    assert_eq!(chat(&server, "qwen2").await, 200);
}

#[tokio::test]
async fn servers_for_other_machines_manage_nothing() {
    // Servers that tests assemble are like those that other machines reach.
    let server = scripted_server(Script::saying("x"), Limits::default(), ENGINE_OPTIONS).await;
    let refused = server.post("/v1/models/pull", &json!({"model": MODEL})).await;
    assert_eq!(refused.status(), 403);
    let refused: Value = refused.json().await.unwrap();
    assert!(refused["error"]["message"].as_str().unwrap().contains("--manage-models"), "{refused}");
    let refused = server.client.delete(server.url("/v1/models/scripted")).send().await.unwrap();
    assert_eq!(refused.status(), 403);
}
