//! `/readyz` tells the truth: about models that cannot be loaded, requests that get stuck, and engines that start over.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use predict_otron_9000::app::{App, ChatModels, ChatSlot, ServedModel};
use predict_otron_9000::config::{Args, Config, Limits, Residency};
use predict_otron_9000::error::{Error, Result};
use predict_otron_9000::inference::EngineOptions;
use serde_json::{Value, json};

use crate::support::{
    ENGINE_OPTIONS, Script, events, json as body, reference, scripted_models_server, scripted_server,
};

const CHAT: &str = "/v1/chat/completions";

fn chat(fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_starts_over() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(100)) };
    let fault = script.fault.clone();
    let options = EngineOptions { running_requests: 1, ..ENGINE_OPTIONS };
    let server = scripted_server(script, Limits::default(), options).await;
    for _ in 0..2 {
        let running = server.post(CHAT, &chat(json!({"stream": true}))).await;
        let (waiting, trigger) = (chat(json!({"max_tokens": 3})), chat(json!({"max_tokens": 2})));
        let (waiting, trigger) = tokio::join!(server.post(CHAT, &waiting), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            fault.store(true, Ordering::SeqCst);
            server.post(CHAT, &trigger).await
        });
        let failed = Instant::now();
        for response in [waiting, trigger] {
            assert_eq!(
                (response.status().as_u16(), &response.headers()["retry-after"]),
                (503, &"1".parse().unwrap())
            );
            let error = body(response).await;
            assert_eq!(error["error"]["code"], "unavailable", "{error}");
        }
        let last: Value = serde_json::from_str(events(running).await.last().unwrap()).unwrap();
        assert!(last["error"]["message"].as_str().unwrap().contains("starts over"), "{last}");
        // Everything works again, without the blocks and places of the requests that ended.
        let answer = body(server.post(CHAT, &chat(json!({"max_tokens": 5}))).await).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "xxxxx", "{answer}");
        assert!(failed.elapsed() < Duration::from_secs(1));
        assert_eq!(server.get("/readyz").await.status(), 200);
        // The engine reports its load before the next step.
        loop {
            let load = body(server.get("/v1/loads").await).await["loads"][0].clone();
            if (&load["num_total_reqs"], &load["num_used_tokens"]) == (&json!(0), &json!(0)) {
                break;
            }
            assert!(failed.elapsed() < Duration::from_secs(5), "{load}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_model_that_cannot_be_loaded_is_not_ready() {
    for (broken, status) in [("a", 503), ("b", 200)] {
        let slot = |name: &'static str| {
            let find = move || {
                if name == broken {
                    return Err(Error::model("the file is damaged"));
                }
                Ok(crate::support::scripted_model(Script::saying("x"), ENGINE_OPTIONS))
            };
            ChatSlot::new(ServedModel::new(name.to_owned(), Vec::new(), None), 8, Box::new(find))
        };
        let models = ChatModels::new(vec![slot("a"), slot("b")], Residency::default());
        let server = scripted_models_server(models, Limits::default()).await;
        assert_eq!(server.get("/readyz").await.status(), 200, "nothing is known against it yet");
        assert_eq!(server.post(CHAT, &chat(json!({"model": broken}))).await.status(), 500);
        let ready = server.get("/readyz").await;
        assert_eq!(ready.status(), status, "{broken}");
        assert_eq!(body(ready).await.to_string().contains("damaged"), status == 503);
        assert_eq!(server.get("/livez").await.status(), 200);
    }
}

fn load(options: &[&str]) -> Result<()> {
    let args = Args::parse_from([&["predict-otron-9000"], options].concat());
    App::new(&Config::resolve(args.serve).unwrap())?.preload(false)
}

#[test]
fn weights_that_are_no_numbers_are_an_error_at_load() {
    let checkpoint = reference::decoders().into_iter().next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(checkpoint.join(name), folder.path().join(name)).unwrap();
    }
    let template = json!({"chat_template": "{{ messages[0].content }}"}).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), template).unwrap();
    let mut weights = fs::read(checkpoint.join("model.safetensors")).unwrap();
    let n_header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    // All bits set is no number in any float format.
    weights[8 + n_header..].fill(0xFF);
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let error = load(&["--model", folder.path().to_str().unwrap()]).unwrap_err().to_string();
    assert!(error.contains("not finite") && error.contains("damaged"), "{error}");
}

#[test]
fn a_context_that_is_too_short_names_the_flag_to_change() {
    let checkpoint = reference::decoders().into_iter().next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(checkpoint.join(name), folder.path().join(name)).unwrap();
    }
    let template = json!({"chat_template": "{{ messages[0].content }}"}).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), template).unwrap();
    let path = folder.path().to_str().unwrap();
    let error = load(&["--model", path, "--kv-memory", "1K"]).unwrap_err().to_string();
    assert!(error.contains("--kv-memory 1M") && error.contains("64"), "{error}");
    load(&["--model", path, "--kv-memory", "1M"]).unwrap();
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = json!(32);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = load(&["--model", path]).unwrap_err().to_string();
    assert!(error.contains("--model") && error.contains("32"), "{error}");
}
