//! Local models: a safetensors folder as a chat model, and a GGUF file as an embedding model.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use clap::Parser;
use predict_otron_9000::app::App;
use predict_otron_9000::config::{Args, Config};
use predict_otron_9000::error::Result;
use serde_json::{Value, json};

use crate::support::converter::as_gguf;
use crate::support::gguf::Gguf;
use crate::support::{METRICS, json as body, reference, serve};

fn app(options: &[&str]) -> Result<App> {
    // The first metrics recorder of a process stays: install the one that other tests read.
    LazyLock::force(&METRICS);
    let args = Args::parse_from([&["predict-otron-9000"], options].concat());
    App::new(&Config::resolve(args.serve).unwrap())
}

#[tokio::test]
async fn a_safetensors_folder_of_any_family_is_a_chat_model() {
    for checkpoint in reference::decoders() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(checkpoint.join(name), folder.path().join(name)).unwrap();
        }
        let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        let write_template = || {
            let config = json!({ "chat_template": template }).to_string();
            fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        };
        let path = folder.path().to_str().unwrap().to_owned();
        let load = move || {
            let app = app(&["--model", &path])?;
            app.preload(false).map(|()| app)
        };

        let without = tokio::task::spawn_blocking(load.clone()).await.unwrap().err().unwrap();
        assert!(without.to_string().contains("chat template"), "{checkpoint:?}: {without}");

        write_template();
        let server = serve(tokio::task::spawn_blocking(load).await.unwrap().unwrap()).await;
        let request = json!({
            "messages": [{"role": "user", "content": "héllo <eos>"}],
            "max_tokens": 8, "ignore_eos": true, "temperature": 0
        });
        let answer = body(server.post("/v1/chat/completions", &request).await).await;
        // <bos>, then one token per byte: the user's <eos> is text.
        let n_prompt = 1 + "user: héllo <eos>\n".len();
        assert_eq!(answer["usage"]["prompt_tokens"], n_prompt, "{checkpoint:?}: {answer}");
        assert_eq!(answer["usage"]["completion_tokens"], 8, "{checkpoint:?}: {answer}");
    }
}

/// A BERT model as a GGUF file, with numbers as its vocabulary.
fn bert_as_gguf(folder: &Path) -> Gguf {
    let tokens: Vec<String> = (0..400).map(|id| format!("▁{id}")).collect();
    as_gguf(folder, "bert")
        .u32("bert.pooling_type", 1)
        .string("tokenizer.ggml.model", "bert")
        .strings("tokenizer.ggml.tokens", &tokens)
        .u32("tokenizer.ggml.unknown_token_id", 0)
}

#[tokio::test]
async fn a_gguf_file_is_an_embedding_model() {
    let folder = Path::new("tests/data/tiny-encoders/bert");
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    fs::write(file.path(), bert_as_gguf(folder).bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let load = move || app(&["--embedding-model", &path]).unwrap();
    let server = serve(tokio::task::spawn_blocking(load).await.unwrap()).await;
    let reference: Value = serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        let answer = body(server.post("/v1/embeddings", &json!({"input": case["input_ids"]})).await).await;
        let found = answer["data"][0]["embedding"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let pairs = found.iter().zip(case["mean_normalised"].as_array().unwrap());
        // Both are unit vectors.
        let cosine: f64 = pairs.map(|(a, b)| a.as_f64().unwrap() * b.as_f64().unwrap()).sum();
        assert!(cosine >= 0.9999, "{cosine}");
    }
    let models = body(server.get("/v1/models").await).await;
    let model = &models["data"].as_array().unwrap()[1];
    assert_eq!((&model["family"], &model["format"]), (&json!("bert"), &json!("gguf")));
}
