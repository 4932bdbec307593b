//! Several chat models in one server: loaded on demand, unloaded when idle or to make room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use predict_otron_9000::app::{ChatModels, ChatSlot, ServedModel};
use predict_otron_9000::config::{Limits, Residency};
use predict_otron_9000::error::Error;
use serde_json::{Value, json};

use crate::support::{
    ENGINE_OPTIONS, SCRIPTED_BYTES, Script, Server, json as body, scripted_model, scripted_models_server,
};

/// A server with models `a`, `b` and `c`, of which `broken` cannot be loaded, and the number of loads.
async fn server(residency: Residency, broken: Option<&'static str>) -> (Server, Arc<AtomicUsize>) {
    let n_loads = Arc::new(AtomicUsize::new(0));
    let slot = |name: &'static str| {
        let n_loads = n_loads.clone();
        let find = move || {
            if Some(name) == broken {
                return Err(Error::model("the file is damaged"));
            }
            n_loads.fetch_add(1, Ordering::SeqCst);
            // Slow enough for requests to be sent while it generates.
            let script = Script { step: Duration::from_millis(20), ..Script::saying(name) };
            Ok(scripted_model(script, ENGINE_OPTIONS))
        };
        ChatSlot::new(ServedModel::new(name.to_owned(), Vec::new(), None), 8, Box::new(find))
    };
    let models = ChatModels::new(["a", "b", "c"].map(slot).into(), residency);
    models.start_idle_reaper().unwrap();
    (scripted_models_server(models, Limits::default()).await, n_loads)
}

async fn ask(server: &Server, model: &str, n_tokens: usize) -> (u16, Value) {
    let request = json!({
        "model": model, "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": n_tokens, "ignore_eos": true
    });
    let response = server.post("/v1/chat/completions", &request).await;
    (response.status().as_u16(), body(response).await)
}

async fn loaded(server: &Server) -> Vec<String> {
    let list = body(server.get("/v1/models").await).await;
    let is_loaded = |model: &&Value| model["loaded"] == true;
    let models = list["data"].as_array().unwrap().iter().filter(is_loaded);
    models.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_loaded_once_by_its_first_request() {
    let (server, n_loads) = server(Residency::default(), None).await;
    assert!(loaded(&server).await.is_empty());
    let (one, two, three) = tokio::join!(ask(&server, "b", 1), ask(&server, "b", 1), ask(&server, "b", 1));
    assert_eq!([one.0, two.0, three.0], [200; 3]);
    assert_eq!(n_loads.load(Ordering::SeqCst), 1);
    assert_eq!(loaded(&server).await, ["b"]);
    let b = body(server.get("/v1/models/b").await).await;
    assert_eq!((&b["family"], &b["format"]), (&json!("scripted"), &json!("gguf")));
    assert_eq!((&b["context_length"], &b["license"]), (&json!(512), &json!("MIT")));
    let a = body(server.get("/v1/models/a").await).await;
    assert_eq!((&a["loaded"], &a["family"]), (&json!(false), &Value::Null));
    // The first is the default.
    assert_eq!(ask(&server, "default", 1).await.1["model"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_does_not_affect_the_others() {
    let (server, _) = server(Residency::default(), Some("a")).await;
    let (status, answer) = ask(&server, "a", 1).await;
    assert_eq!(status, 500);
    assert!(answer["error"]["message"].as_str().unwrap().contains("model `a` cannot be loaded"), "{answer}");
    assert_eq!(ask(&server, "b", 1).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_idle_model_is_evicted_and_one_in_use_is_not() {
    let residency = Residency { memory_budget: Some(2 * SCRIPTED_BYTES), idle_unload: None };
    let (server, _) = server(residency, None).await;
    for model in ["a", "b", "a"] {
        assert_eq!(ask(&server, model, 1).await.0, 200);
    }
    assert_eq!(ask(&server, "c", 1).await.0, 200);
    assert_eq!(loaded(&server).await, ["a", "c"]);
    // Both are in use: there is no memory for the third, and their responses are not disturbed.
    let (a, c, b) = tokio::join!(ask(&server, "a", 60), ask(&server, "c", 60), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        ask(&server, "b", 1).await
    });
    assert_eq!((a.0, c.0), (200, 200));
    assert_eq!(b.0, 429, "{}", b.1);
    assert_eq!(a.1["usage"]["completion_tokens"], 60);
    assert_eq!(ask(&server, "b", 1).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_model_is_unloaded_and_loaded_again() {
    let residency = Residency { memory_budget: None, idle_unload: Some(Duration::from_millis(400)) };
    let (server, n_loads) = server(residency, None).await;
    // A model is not idle while it generates, however long that takes.
    let (status, answer) = ask(&server, "a", 40).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(40)));
    let started = Instant::now();
    while !loaded(&server).await.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(5), "it stays loaded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(ask(&server, "a", 1).await.0, 200);
    assert_eq!(n_loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_budget_is_refused_with_both_sizes() {
    let residency = Residency { memory_budget: Some(SCRIPTED_BYTES - 1), idle_unload: None };
    let (server, _) = server(residency, None).await;
    let (status, answer) = ask(&server, "a", 1).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")));
    assert!(
        message.contains("1000") && message.contains("999") && message.contains("--memory-budget"),
        "{message}"
    );
}
