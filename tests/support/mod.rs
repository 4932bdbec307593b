//! Shared test fixtures: a scripted model, a byte tokenizer, a server on a free port, writers of model files, and
//! reference results of other software.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod converter;
pub mod embeddings;
pub mod gguf;
pub mod reference;
pub mod tiny;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use gguf::Gguf;
use once_cell::sync::OnceCell;
use predict_otron_9000::app::{
    ApiKeys, App, ChatModels, ChatSlot, LoadPlan, ModelInfo, Parts, ServedModel, TextModel, embedder_options,
};
use predict_otron_9000::chat::{ChatModel, ChatTemplate};
use predict_otron_9000::config::{
    AccessConfig, AllowedHost, CorsOrigin, KeyLimitsTable, Limits, RegistryConfig, Residency,
};
use predict_otron_9000::embeddings::{Embedder, Loader, TextEmbedding};
use predict_otron_9000::error::{Error, Result};
use predict_otron_9000::http::{self, Listener, Tls};
use predict_otron_9000::inference::{Engine, EngineOptions};
use predict_otron_9000::kernels::attention::kv_block::{BLOCK_TOKENS, KvFormat};
use predict_otron_9000::metering::Metering;
use predict_otron_9000::models::{BlockId, Decoder, ForwardInput, ModelConfig, SequenceId, SequenceStates};
use predict_otron_9000::registry::ModelKind;
use predict_otron_9000::tokenizer::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Id of the byte tokenizer's `<|start|>`; the ids 0 to 255 are the bytes themselves.
pub const START: u32 = 256;
/// Id of the byte tokenizer's `<|im_end|>`, which ends a sequence.
pub const END: u32 = 257;
/// Size of the byte tokenizer's vocabulary.
pub const N_VOCAB: usize = 258;

/// A tokenizer whose tokens are single bytes, with the special tokens `<|start|>` and `<|im_end|>`.
pub fn byte_tokenizer() -> Tokenizer {
    byte_tokenizer_with(&[])
}

/// A byte tokenizer with additional special tokens, whose ids follow [`END`].
pub fn byte_tokenizer_with(special: &[&str]) -> Tokenizer {
    let alphabet = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            let rank = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)).count();
            char::from_u32(0x100 + rank as u32).unwrap()
        }
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| alphabet(byte).to_string()).collect();
    tokens.extend(["<|start|>".to_owned(), "<|im_end|>".to_owned()]);
    tokens.extend(special.iter().map(|&text| text.to_owned()));
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 }).collect();
    let file = Gguf::default()
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strings::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.eos_token_id", END);
    Tokenizer::from_gguf(&file.metadata()).unwrap()
}

/// The behavior of a [`ScriptedModel`], and a record of its inputs.
#[derive(Clone, Default)]
pub struct Script {
    /// Tokens of every answer; the end token follows.
    pub answer: Vec<u32>,
    /// Texts, each with the answer to prompts that have it and none before it in this list.
    pub after: Vec<(&'static str, String)>,
    /// Chat template; [`TEMPLATE`] by default.
    pub template: Option<&'static str>,
    /// Special tokens in addition to the byte tokenizer's two.
    pub special: Vec<&'static str>,
    /// Context length in tokens; 512 by default.
    pub context_length: Option<usize>,
    /// Duration of each batch.
    pub step: Duration,
    /// A byte that makes the model panic when it is in a prompt.
    pub panic_on: Option<u8>,
    /// Makes the next look at the model's sizes panic, which the engine does outside of any step.
    pub fault: Arc<AtomicBool>,
    /// Number of batches so far.
    pub n_batches: Arc<AtomicUsize>,
    /// Largest number of sequences in one batch so far.
    pub widest: Arc<AtomicUsize>,
    /// Number of tokens so far.
    pub n_tokens: Arc<AtomicUsize>,
    /// Tokens of each sequence as the model received them.
    pub prompts: Arc<Mutex<HashMap<SequenceId, Vec<u32>>>>,
}

impl Script {
    /// A script whose every answer is `text`.
    pub fn saying(text: &str) -> Self {
        Self { answer: text.bytes().map(u32::from).collect(), ..Self::default() }
    }
}

/// A decoder that answers every sequence with the script's answer.
pub struct ScriptedModel {
    script: Script,
    config: ModelConfig,
    /// Tokens of each KV cache block, in place of keys and values.
    blocks: HashMap<BlockId, Vec<u32>>,
}

impl ScriptedModel {
    pub fn new(script: Script, context_length: usize) -> Self {
        let config = serde_json::json!({
            "model_type": "llama",
            "hidden_size": 2,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "vocab_size": N_VOCAB + script.special.len(),
            "max_position_embeddings": context_length,
            "rms_norm_eps": 1e-5,
            "eos_token_id": END,
        });
        let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        Self { script, config, blocks: HashMap::new() }
    }
}

impl Decoder for ScriptedModel {
    fn config(&self) -> &ModelConfig {
        assert!(!self.script.fault.swap(false, Ordering::SeqCst), "fault requested by the test");
        &self.config
    }

    fn forward(&mut self, _: &mut SequenceStates, input: &ForwardInput) -> Result<Tensor> {
        let n_vocab = self.config.n_vocab;
        std::thread::sleep(self.script.step);
        self.script.n_batches.fetch_add(1, Ordering::SeqCst);
        self.script.widest.fetch_max(input.spans.len(), Ordering::SeqCst);
        self.script.n_tokens.fetch_add(input.token_ids.len(), Ordering::SeqCst);
        let mut rows = Vec::new();
        let mut row = 0;
        for (span, tables) in input.spans.iter().zip(&input.block_tables) {
            let table = &tables[0];
            let tokens = &input.token_ids[row..row + span.len];
            let mut prompts = self.script.prompts.lock().unwrap();
            let mut seen: Vec<u32> = table
                .iter()
                .flatten()
                .flat_map(|block| self.blocks.get(block).cloned().unwrap_or_default())
                .collect();
            assert!(seen.len() >= span.start, "positions without gaps");
            // After a failure tokens are computed again, and the block may have held others.
            seen.truncate(span.start);
            seen.extend(tokens);
            for (block, tokens) in table.iter().flatten().zip(seen.chunks(BLOCK_TOKENS)) {
                self.blocks.insert(*block, tokens.to_vec());
            }
            let after = self.script.after.iter().find(|(text, _)| {
                let prompt = &seen[..seen.len().min(span.n_prompt)];
                let has_byte = |(token, byte): (&u32, u8)| *token == u32::from(byte);
                prompt.windows(text.len()).any(|tokens| tokens.iter().zip(text.bytes()).all(has_byte))
            });
            prompts.insert(span.sequence, seen);
            drop(prompts);
            if let Some(byte) = self.script.panic_on {
                assert!(!tokens.contains(&u32::from(byte)), "panic requested by the script");
            }
            for (offset, row) in (row..row + span.len).enumerate() {
                if !input.logit_rows.contains(&(row as u32)) {
                    continue;
                }
                let n_said = (span.start + offset + 1).saturating_sub(span.n_prompt);
                let next = match after {
                    None => self.script.answer.get(n_said).copied(),
                    Some((_, answer)) => answer.as_bytes().get(n_said).map(|&byte| u32::from(byte)),
                };
                let next = next.unwrap_or(END);
                // The script's token is almost certain, its neighbor the second most likely.
                let mut logits = vec![-20.0f32; n_vocab];
                logits[(next as usize + 1) % n_vocab] = -10.0;
                logits[next as usize] = 10.0;
                rows.extend(logits);
            }
            row += span.len;
        }
        if rows.is_empty() {
            return Ok(Tensor::zeros((0, n_vocab), candle_core::DType::F32, &Device::Cpu)?);
        }
        Ok(Tensor::from_vec(rows.clone(), (rows.len() / n_vocab, n_vocab), &Device::Cpu)?)
    }
}

/// An engine that runs a scripted model.
pub fn scripted_engine(script: Script, context_length: usize, options: EngineOptions) -> Engine {
    scripted_engine_with(script, context_length, options, Arc::new(byte_tokenizer()))
}

fn scripted_engine_with(
    script: Script,
    context_length: usize,
    options: EngineOptions,
    tokenizer: Arc<Tokenizer>,
) -> Engine {
    Engine::spawn(Box::new(ScriptedModel::new(script, context_length)), tokenizer, options).unwrap()
}

/// Engine options with small bounds.
pub const ENGINE_OPTIONS: EngineOptions = EngineOptions {
    queued_requests: 8,
    queue_timeout: Duration::from_secs(60),
    running_requests: 4,
    batch_time: Duration::from_secs(10),
    prefill_chunk_tokens: 64,
    kv_bytes: 1 << 20,
    kv_format: KvFormat::F16,
    speculative: false,
    rounded_prompts: false,
    queued_tokens: 10_000,
    context_shift: false,
    prompt_logprobs: 1000,
};

/// A chat template that shows the role and content of each message.
pub const TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}\
                            {% if mood %}mood:{{ mood }}{% endif %}\
                            {% if add_generation_prompt %}<|start|>assistant:{% endif %}";

/// A server with one scripted chat model; its embedding model cannot be loaded.
pub async fn scripted_server(script: Script, limits: Limits, options: EngineOptions) -> Server {
    let chat_models = scripted_chat_models(script, &limits, options);
    scripted_models_server(chat_models, limits).await
}

/// One scripted chat model, loaded.
fn scripted_chat_models(script: Script, limits: &Limits, options: EngineOptions) -> Arc<ChatModels> {
    let served = ServedModel::new("scripted".into(), vec!["tests/Scripted".into()], Some("tests"));
    let find = move || Ok(scripted_model(script.clone(), options));
    let slots = vec![ChatSlot::new(served, limits.queued_requests, Box::new(find))];
    let chat_models = ChatModels::new(slots, Residency::default());
    chat_models.load(&chat_models.slots()[0], Instant::now()).unwrap();
    chat_models
}

/// Nominal size of a scripted model.
pub const SCRIPTED_BYTES: u64 = 1000;

/// The load plan of a scripted model.
pub fn scripted_model(script: Script, options: EngineOptions) -> LoadPlan {
    let context_length = script.context_length.unwrap_or(512);
    let info = ModelInfo {
        family: "scripted".to_owned(),
        format: "gguf",
        context_length,
        license: Some("MIT".to_owned()),
        quantization: None,
        size_bytes: Some(SCRIPTED_BYTES),
    };
    let load = move || {
        let template = ChatTemplate::new(script.template.unwrap_or(TEMPLATE)).unwrap();
        let tokenizer = Arc::new(byte_tokenizer_with(&script.special));
        let engine = scripted_engine_with(script, context_length, options, tokenizer.clone());
        Ok(ChatModel::new(Ok(template), tokenizer, engine, "fp_test".into()))
    };
    LoadPlan { info, n_bytes: SCRIPTED_BYTES, load: Box::new(load) }
}

/// A server with these chat models; its embedding model cannot be loaded.
pub async fn scripted_models_server(chat_models: Arc<ChatModels>, limits: Limits) -> Server {
    let no_model = || Err(Error::registry("this test has no embedding model"));
    server_of(chat_models, limits, Box::new(no_model), None, Access::default()).await
}

/// A server without chat models whose embedding model comes from `loader`.
pub async fn embedding_server(limits: Limits, loader: Box<Loader>) -> Server {
    scoring_server(limits, loader, None).await
}

/// A server without chat models, with an embedding model and perhaps a reranker.
pub async fn scoring_server(limits: Limits, loader: Box<Loader>, reranker: Option<Box<Loader>>) -> Server {
    let no_chat = ChatModels::new(Vec::new(), Residency::default());
    server_of(no_chat, limits, loader, reranker, Access::default()).await
}

/// A server that accepts these API keys, with the tiny encoder and no chat model.
pub async fn keyed_server(keys: &[&str], limits: Limits) -> Server {
    guarded_server(keys, &[], &[], limits).await
}

/// A server that accepts these API keys, names and origins of web pages, with the tiny encoder and no chat model.
pub async fn guarded_server(keys: &[&str], hosts: &[&str], origins: &[&str], limits: Limits) -> Server {
    let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
    let access = Access {
        api_keys: ApiKeys::new(&keys, None).unwrap(),
        metering: None,
        sites: AccessConfig {
            allowed_hosts: hosts.iter().map(|host| AllowedHost::parse(host).unwrap()).collect(),
            cors_origins: origins.iter().map(|origin| CorsOrigin::parse(origin).unwrap()).collect(),
        },
    };
    let no_chat = ChatModels::new(Vec::new(), Residency::default());
    server_of(no_chat, limits, Box::new(embeddings::tiny_encoder), None, access).await
}

/// A server with one scripted chat model and the tiny encoder, whose clients need one of these keys and are metered.
pub async fn metered_server(script: Script, api_keys: ApiKeys, metering: Arc<Metering>) -> Server {
    let access = Access { api_keys, metering: Some(metering), ..Access::default() };
    let limits = Limits::default();
    let chat_models = scripted_chat_models(script, &limits, ENGINE_OPTIONS);
    server_of(chat_models, limits, Box::new(embeddings::tiny_encoder), None, access).await
}

/// Who may use a server.
#[derive(Default)]
struct Access {
    api_keys: ApiKeys,
    /// Metering other than without limits, in memory.
    metering: Option<Arc<Metering>>,
    sites: AccessConfig,
}

async fn server_of(
    chat_models: Arc<ChatModels>,
    limits: Limits,
    loader: Box<Loader>,
    reranker: Option<Box<Loader>>,
    access: Access,
) -> Server {
    serve(app_of(chat_models, limits, loader, reranker, access)).await
}

/// A server without models whose clients speak TLS.
pub async fn tls_server(limits: Limits, tls: Tls) -> Server {
    let no_chat = ChatModels::new(Vec::new(), Residency::default());
    let no_model = || Err(Error::registry("this test has no embedding model"));
    serve_with(app_of(no_chat, limits, Box::new(no_model), None, Access::default()), Some(tls)).await
}

fn app_of(
    chat_models: Arc<ChatModels>,
    limits: Limits,
    loader: Box<Loader>,
    reranker: Option<Box<Loader>>,
    access: Access,
) -> App {
    let model = |name: &str, alias: &str, kind: ModelKind, loader: Box<Loader>| {
        let cell: &'static OnceCell<TextEmbedding> = Box::leak(Box::new(OnceCell::new()));
        let embedder = Embedder::spawn_with_cell(cell, loader, embedder_options(&limits)).unwrap();
        let served = ServedModel::new(name.into(), vec![alias.into()], Some("tests"));
        TextModel { served, kind, is_default: false, embedder }
    };
    App::from_parts(Parts {
        chat_models,
        embedding: model("no-embeddings", "tests/none", ModelKind::Embedding, loader),
        reranker: reranker.map(|loader| model("reranker", "tests/reranker", ModelKind::Reranker, loader)),
        metering: access.metering.unwrap_or_else(|| {
            Metering::in_memory(KeyLimitsTable::default(), access.api_keys.are_required()).unwrap()
        }),
        api_keys: access.api_keys,
        access: access.sites,
        logs_every_request: false,
        limits,
        metrics: METRICS.clone(),
    })
    .unwrap()
}

/// The metrics recorder, which all servers of a test process share.
pub static METRICS: LazyLock<metrics_exporter_prometheus::PrometheusHandle> =
    LazyLock::new(predict_otron_9000::telemetry::start_metrics);

/// A running server, which shuts down on drop.
pub struct Server {
    pub address: SocketAddr,
    pub client: reqwest::Client,
    shutdown: Mutex<Option<oneshot::Sender<Duration>>>,
    pub running: tokio::task::JoinHandle<()>,
}

pub async fn serve(app: App) -> Server {
    serve_with(app, None).await
}

/// A server whose clients speak TLS.
pub async fn serve_with(app: App, tls: Option<Tls>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, asked) = oneshot::channel();
    let running = tokio::spawn(async move {
        http::serve(Listener::new(listener, tls), app, async { asked.await.unwrap_or_default() }).await;
    });
    Server { address, client: reqwest::Client::new(), shutdown: Mutex::new(Some(shutdown)), running }
}

impl Server {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &serde_json::Value) -> reqwest::Response {
        self.post_as("anybody", path, body).await
    }

    /// Sends a request with this API key.
    pub async fn post_as(&self, key: &str, path: &str, body: &serde_json::Value) -> reqwest::Response {
        self.client
            .post(self.url(path))
            .bearer_auth(key)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap()
    }

    pub fn shut_down(&self) {
        self.shut_down_after(Duration::ZERO);
    }

    pub fn shut_down_after(&self, delay: Duration) {
        if let Some(shutdown) = self.shutdown.lock().unwrap().take() {
            let _ = shutdown.send(delay);
        }
    }
}

/// The body of a response as JSON.
pub async fn json(response: reqwest::Response) -> serde_json::Value {
    let text = response.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

/// The `data:` lines of an event stream.
pub async fn events(response: reqwest::Response) -> Vec<String> {
    let text = response.text().await.unwrap();
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The program's default registry, with the user's own caches, for tests with real weights.
pub fn real_registry() -> RegistryConfig {
    use clap::Parser;
    let args = predict_otron_9000::config::Args::parse_from(["predict-otron-9000"]);
    RegistryConfig::resolve(args.serve.registry).unwrap()
}
