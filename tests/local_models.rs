//! Chat models in the forms that users bring: a safetensors folder, and GGUF kept quantized.

mod support;

use std::fs;
use std::path::Path;

use predict_otron_9000::app::App;
use predict_otron_9000::config::{Args, Config};
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::load::{GgufFile, Weights};
use predict_otron_9000::models::{Decoder, ForwardInput, KvStore, ModelConfig, SequenceId};
use predict_otron_9000::registry::{ModelKind, Registry};
use serde_json::json;
use support::{json as body, serve};

#[tokio::test]
async fn a_safetensors_folder_is_a_chat_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new("tests/data/tiny/llama").join(name), folder.path().join(name)).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let write_template = || {
        let config = json!({ "chat_template": template }).to_string();
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    };
    let path = folder.path().to_str().unwrap().to_owned();
    let load = move || {
        use clap::Parser;
        let args = Args::parse_from(["predict-otron-9000", "--model", &path]);
        let app = App::new(&Config::resolve(args.serve).unwrap())?;
        app.preload(false).map(|()| app)
    };

    let without = tokio::task::spawn_blocking(load.clone()).await.unwrap().err().unwrap();
    assert!(without.to_string().contains("chat template"), "{without}");

    write_template();
    let server = serve(tokio::task::spawn_blocking(load).await.unwrap().unwrap()).await;
    let request = json!({
        "messages": [{"role": "user", "content": "héllo <eos>"}],
        "max_tokens": 8, "ignore_eos": true, "temperature": 0
    });
    let answer = body(server.post("/v1/chat/completions", &request).await).await;
    // <bos>, and then one token per byte: the <eos> that the user wrote is text.
    assert_eq!(answer["usage"]["prompt_tokens"], 1 + "user: héllo <eos>\n".len());
    assert_eq!(answer["usage"]["completion_tokens"], 8);
}

#[test]
fn quantized_weights_stay_close_to_expanded_ones() {
    let registry = Registry::new(support::real_registry());
    let files = registry.resolve("smollm2-135m-instruct", ModelKind::Chat).expect("the default chat model");
    let logits = |file: GgufFile| {
        let config = ModelConfig::from_gguf(&file).unwrap();
        let mut model = CausalLm::load(config, &Weights::Gguf(file)).unwrap();
        let mut input = ForwardInput::default();
        // "The capital of France is"
        input.push(SequenceId(1), 5, 0, &[504, 3575, 282, 4649, 314], true);
        model.forward(&mut KvStore::default(), &input).unwrap().to_vec2::<f32>().unwrap().remove(0)
    };
    let expanded = logits(GgufFile::open(&files.main).unwrap());
    let quantized = logits(GgufFile::open(&files.main).unwrap().unexpanded());
    let likeliest = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    assert_eq!(likeliest(&expanded), likeliest(&quantized));
    let mean =
        expanded.iter().zip(&quantized).map(|(a, b)| (a - b).abs()).sum::<f32>() / expanded.len() as f32;
    assert!(mean > 0.0 && mean < 0.3, "mean difference of logits {mean}");
}
