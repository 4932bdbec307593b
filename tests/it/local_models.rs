//! Local models: a safetensors folder as a chat model, and a GGUF file as an embedding model.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use clap::Parser;
use predict_otron_9000::app::App;
use predict_otron_9000::config::{Args, Config, Limits};
use predict_otron_9000::error::Result;
use serde_json::{Value, json};

use crate::support::converter::as_gguf;
use crate::support::embeddings::load_folder;
use crate::support::gguf::Gguf;
use crate::support::{METRICS, Server, embedding_server, json as body, reference, serve};

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

/// A folder with a tiny model without a chat template.
fn folder_without_template() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new("tests/data/tiny/llama").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

async fn server_with(options: &[&str]) -> Result<Server> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    let load = move || {
        let app = app(&options.iter().map(String::as_str).collect::<Vec<&str>>())?;
        app.preload(false).map(|()| app)
    };
    Ok(serve(tokio::task::spawn_blocking(load).await.unwrap()?).await)
}

#[tokio::test]
async fn a_model_without_a_template_completes_texts_but_does_not_chat() {
    let folder = folder_without_template();
    let path = folder.path().to_str().unwrap();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
    let refused_chat = async |server: &Server, status: u16| {
        for route in ["/v1/chat/completions", "/tokenize"] {
            let answer = server.post(route, &chat).await;
            assert_eq!(answer.status(), status, "{route}");
            let error = body(answer).await["error"].clone();
            assert!(error["message"].as_str().unwrap().contains("--chat-template"), "{route}: {error}");
        }
        let completion = json!({"prompt": "hi", "max_tokens": 2, "ignore_eos": true});
        let answer = body(server.post("/v1/completions", &completion).await).await;
        assert_eq!(answer["usage"]["completion_tokens"], 2, "{answer}");
    };
    refused_chat(&server_with(&["--model", path]).await.unwrap(), 400).await;

    for template in
        ["{% for %}", &"(".repeat(300_000), "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"]
    {
        let config = json!({ "chat_template": template }).to_string();
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        refused_chat(&server_with(&["--model", path]).await.unwrap(), 500).await;
    }
}

#[tokio::test]
async fn a_template_of_the_operators_replaces_the_models() {
    let folder = folder_without_template();
    let path = folder.path().to_str().unwrap();
    let file = folder.path().join("own.jinja");
    fs::write(&file, "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": true});
    for (template, prompt) in [
        (file.to_str().unwrap(), "hi"),
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ] {
        let server = server_with(&["--model", path, "--chat-template", template]).await.unwrap();
        let answer = body(server.post("/v1/chat/completions", &chat).await).await;
        // One token per byte.
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len(), "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], 2, "{answer}");
    }
    fs::write(&file, "{% for %}").unwrap();
    for (template, word) in
        [(file.to_str().unwrap(), "not valid"), ("no-such", "zephyr"), ("other=chatml", "--model other")]
    {
        let error =
            server_with(&["--model", path, "--chat-template", template]).await.err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("--chat-template"), "{error}");
    }
}

#[tokio::test]
async fn a_tokenizer_must_fit_the_model() {
    let folder = folder_without_template();
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tokenizer: Value =
        serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let n_ids = config["vocab_size"].as_u64().unwrap();
    let mut larger = tokenizer.clone();
    larger["model"]["vocab"]["one more"] = n_ids.into();
    fs::write(folder.path().join("tokenizer.json"), larger.to_string()).unwrap();
    let error = server_with(&["--model", folder.path().to_str().unwrap()]).await.err().unwrap().to_string();
    assert!(error.contains(&format!("{} ids", n_ids + 1)), "{error}");
    config["vocab_size"] = 1.into();
    fs::write(&path, config.to_string()).unwrap();
    assert!(server_with(&["--model", folder.path().to_str().unwrap()]).await.is_err());
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
    // Not the process's own model, which other tests load.
    let load = move || load_folder(file.path());
    let server = embedding_server(Limits::default(), Box::new(load)).await;
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
    let described = |model: &Value| model["family"] == "bert" && model["format"] == "gguf";
    assert!(models["data"].as_array().unwrap().iter().any(described), "{models}");
}

#[tokio::test]
async fn a_gguf_file_has_the_prompts_of_the_model_that_it_names() {
    let folder = Path::new("tests/data/tiny-encoders/bert");
    for (name, ignored) in [("Nomic Embed Text v1.5", None), ("Another Model", Some("input_type"))] {
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        fs::write(file.path(), bert_as_gguf(folder).string("general.name", name).bytes()).unwrap();
        let load = move || load_folder(file.path());
        let server = embedding_server(Limits::default(), Box::new(load)).await;
        let ask = async |fields: Value| server.post("/v1/embeddings", &fields).await;
        let query = ask(json!({"input": "1 2", "input_type": "query"})).await;
        assert_eq!(query.status(), 200);
        assert_eq!(query.headers().get("x-ignored-params").map(|names| names.to_str().unwrap()), ignored);
        let plain = body(ask(json!({"input": "1 2"})).await).await;
        assert_eq!(body(query).await["data"] == plain["data"], ignored.is_some(), "{name}");
    }
}
