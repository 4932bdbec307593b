//! The two default models against float32 references, over HTTP. The registry provides their files, as in the
//! program.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod support;

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use predict_otron_9000::app::App;
use predict_otron_9000::config::{Args, Config};
use serde::Deserialize;
use serde_json::{Value, json};
use support::{Server, json as body, serve};

static APP: LazyLock<App> = LazyLock::new(|| app(&[]));

fn app(options: &[&str]) -> App {
    use clap::Parser;
    // Exact unless told otherwise: what is measured by one test would change the next.
    let exact: &[&str] = if options.contains(&"--activations") { &[] } else { &["--activations", "16"] };
    let args = Args::parse_from([&["predict-otron-9000"], options, exact].concat());
    let app = App::new(&Config::resolve(args.serve).unwrap()).unwrap();
    app.preload(false).expect("the default models must be downloadable, from the hub or with pip");
    app
}

async fn server() -> Server {
    // The registry blocks, which tokio's worker threads must not.
    serve(tokio::task::spawn_blocking(|| APP.clone()).await.unwrap()).await
}

#[derive(Deserialize)]
struct ChatCase {
    messages: Value,
    content: String,
    finish_reason: String,
    usage: ChatUsage,
    logprobs: Vec<Entry>,
}

#[derive(Deserialize)]
struct ChatUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

#[derive(Deserialize)]
struct Entry {
    bytes: Vec<u8>,
    /// The 20 most likely tokens: bytes, log probability, text.
    top: Vec<(Vec<u8>, f64, String)>,
}

#[tokio::test]
async fn chat_equals_the_float32_reference() {
    let cases: Vec<ChatCase> = serde_json::from_str(include_str!("data/smollm2_chat_f32.json")).unwrap();
    let server = server().await;
    let mut divergences = Vec::new();
    for case in &cases {
        let request = json!({
            "messages": case.messages, "temperature": 0, "max_tokens": case.usage.completion_tokens,
            "logprobs": true, "top_logprobs": 20
        });
        let answer = body(server.post("/v1/chat/completions", &request).await).await;
        let choice = &answer["choices"][0];
        assert_eq!(answer["usage"]["prompt_tokens"], case.usage.prompt_tokens, "{}", case.messages);
        assert_eq!(answer["usage"]["completion_tokens"], case.usage.completion_tokens, "{}", case.messages);
        assert_eq!(choice["message"]["content"], case.content);
        assert_eq!(choice["finish_reason"], case.finish_reason);
        let mut entries = choice["logprobs"]["content"].as_array().unwrap().iter();
        // The reference has an entry for the end, without bytes.
        for expected in case.logprobs.iter().filter(|expected| !expected.bytes.is_empty()) {
            let found = entries.next().unwrap();
            let mut bytes = bytes_of(found);
            if bytes == expected.bytes {
                divergences.push(divergence(expected, &found["top_logprobs"]));
            }
            // The reference has one entry for all tokens of a character.
            while bytes.len() < expected.bytes.len() {
                bytes.extend(bytes_of(entries.next().unwrap()));
            }
            assert_eq!(bytes, expected.bytes);
        }
    }
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    assert!(divergences.len() > 150 && mean <= 0.001, "mean KL {mean} over {} positions", divergences.len());
}

fn bytes_of(entry: &Value) -> Vec<u8> {
    serde_json::from_value(entry["bytes"].clone()).unwrap()
}

/// Kullback-Leibler divergence of the found distribution from the expected one, over the most likely tokens of
/// the expected one.
fn divergence(expected: &Entry, found: &Value) -> f64 {
    let found: Vec<(Value, f64)> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|top| (top["bytes"].clone(), top["logprob"].as_f64().unwrap()))
        .collect();
    let least = found.iter().map(|(_, logprob)| *logprob).fold(0.0, f64::min);
    let terms = expected.top.iter().map(|(bytes, logprob, _)| {
        let same = found.iter().find(|(found, _)| *found == json!(bytes));
        logprob.exp() * (logprob - same.map_or(least, |(_, logprob)| *logprob))
    });
    terms.sum::<f64>().abs()
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_in_8_bits_are_near_the_reference_and_repeatable() {
    let rounding =
        async || serve(tokio::task::spawn_blocking(|| app(&["--activations", "8"])).await.unwrap()).await;
    let ask = async |server: &Server, messages: &Value| {
        let request = json!({"messages": messages, "temperature": 0, "max_tokens": 40, "logprobs": true, "top_logprobs": 20});
        let answer = body(server.post("/v1/chat/completions", &request).await).await;
        (
            answer["choices"].clone(),
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
        )
    };
    let (server, exact) = (rounding().await, server().await);
    let models = body(server.get("/v1/models").await).await;
    let chat = models["data"].as_array().unwrap().iter().find(|model| model["kind"] == "chat").unwrap();
    assert_eq!(chat["prompt_activation_bits"], 8);

    let cases: Vec<ChatCase> = serde_json::from_str(include_str!("data/smollm2_chat_f32.json")).unwrap();
    let mut divergences = Vec::new();
    for case in &cases {
        let (cold, _) = ask(&server, &case.messages).await;
        let (cached, _) = ask(&server, &case.messages).await;
        assert_eq!(cold, cached);
        assert_ne!(cold, ask(&exact, &case.messages).await.0, "nothing was rounded");
        let first = &cold[0]["logprobs"]["content"][0];
        // The reference has one entry for all tokens of a character.
        if let Some(expected) = case.logprobs.first().filter(|expected| expected.bytes == bytes_of(first)) {
            divergences.push(divergence(expected, &first["top_logprobs"]));
        }
    }
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    assert!(mean <= 0.004, "mean KL {mean} of {} first tokens", divergences.len());

    // The next prompt of a conversation finds the answer in the cache, and is answered as by a server that does not.
    let question = json!({"role": "user", "content": "Tell me three facts about the river Danube."});
    let (first, _) = ask(&server, &json!([question])).await;
    let conversation =
        json!([question, first[0]["message"], {"role": "user", "content": "And about the Rhine?"}]);
    let (alone, n_cached) = ask(&rounding().await, &conversation).await;
    assert_eq!(n_cached, 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after_first, n_cached) = ask(&server, &conversation).await;
    // The first prompt has fewer than 48 tokens.
    assert!(n_cached > 48, "{n_cached}");
    assert_eq!(after_first, alone);
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_a_penalty_changes_it() {
    let server = server().await;
    let ask = async |fields: Value| {
        let mut request =
            json!({"messages": [{"role": "user", "content": "Write a haiku."}], "max_tokens": 24});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = body(server.post("/v1/chat/completions", &request).await).await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let seeded = ask(json!({"seed": 7})).await;
    assert_eq!(ask(json!({"seed": 7})).await, seeded);
    assert_ne!(ask(json!({"seed": 8})).await, seeded);
    let greedy = ask(json!({"temperature": 0, "max_tokens": 64})).await;
    assert_ne!(ask(json!({"temperature": 0, "max_tokens": 64, "repeat_penalty": 1.5})).await, greedy);
}

#[derive(Deserialize)]
struct EmbeddingCase {
    text: String,
    n_tokens: usize,
    embedding: Vec<f64>,
}

async fn embed(server: &Server, fields: Value) -> Value {
    let response = server.post("/v1/embeddings", &fields).await;
    assert_eq!(response.status(), 200, "{fields}");
    body(response).await
}

fn vector(data: &Value) -> Vec<f64> {
    data["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn embeddings_equal_the_float32_reference_alone_and_in_a_batch() {
    let cases: Vec<EmbeddingCase> =
        serde_json::from_str(include_str!("data/minilm_embeddings_f32.json")).unwrap();
    let server = server().await;
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let batch = embed(&server, json!({"input": texts, "model": "default"})).await;
    assert_eq!(batch["usage"]["prompt_tokens"], cases.iter().map(|case| case.n_tokens).sum::<usize>());
    assert_eq!(batch["usage"]["total_tokens"], batch["usage"]["prompt_tokens"]);
    for (index, case) in cases.iter().enumerate() {
        assert_eq!(batch["data"][index]["index"], index);
        let alone = embed(&server, json!({"input": case.text})).await;
        assert_eq!(alone["usage"]["prompt_tokens"], case.n_tokens, "{:?}", case.text);
        for data in [&alone["data"][0], &batch["data"][index]] {
            let cosine = cosine(&vector(data), &case.embedding);
            assert!(cosine >= 0.9999, "{:?}: {cosine}", case.text);
        }
    }
}

#[tokio::test]
async fn every_kind_of_text_can_be_embedded() {
    let server = server().await;
    let long = "word ".repeat(500);
    for (text, n_tokens) in [(" ", 2), ("🙂🙂", 3), (long.as_str(), 502)] {
        let answer = embed(&server, json!({ "input": text })).await;
        let length = vector(&answer["data"][0]).iter().map(|x| x * x).sum::<f64>();
        assert!((length - 1.0).abs() < 1e-5);
        assert_eq!(answer["usage"]["prompt_tokens"], n_tokens, "{text:?}");
    }
    let response = server.post("/v1/embeddings", &json!({"input": ["fine", "word ".repeat(600)]})).await;
    assert_eq!(response.status(), 400);
    let error = body(response).await["error"].clone();
    assert_eq!(error["param"], "input");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("input 1") && message.contains("602") && message.contains("512"), "{message}");
}

#[tokio::test]
async fn token_ids_are_embedded_like_their_text() {
    let server = server().await;
    let of_text = embed(&server, json!({"input": "hello world"})).await;
    // "hello" and "world" in this vocabulary.
    let of_ids = embed(&server, json!({"input": [[7592, 2088]]})).await;
    assert_eq!(of_ids, of_text);
    let response = server.post("/v1/embeddings", &json!({"input": [15339, 99999]})).await;
    let error = body(response).await["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("vocabulary"), "{error}");
}

#[tokio::test]
async fn base64_and_dimensions() {
    let server = server().await;
    let float = embed(&server, json!({"input": "hello"})).await;
    let base64 = embed(&server, json!({"input": "hello", "encoding_format": "base64"})).await;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let decoded: Vec<f64> =
        bytes.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect();
    let whole = vector(&float["data"][0]);
    assert!(decoded.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-7));

    // This model was not trained for shorter vectors, so they need `force_dimensions`.
    let refused = server.post("/v1/embeddings", &json!({"input": "hello", "dimensions": 64})).await;
    assert_eq!(refused.status(), 400);
    let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("force_dimensions"), "{message}");
    let forced = json!({"input": "hello", "dimensions": 64, "force_dimensions": true});
    let short = vector(&embed(&server, forced).await["data"][0]);
    assert!((short.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert!((cosine(&short, &whole[..64]) - 1.0).abs() < 1e-6);
    for dimensions in [0, 385] {
        let response =
            server.post("/v1/embeddings", &json!({"input": "hello", "dimensions": dimensions})).await;
        assert_eq!(response.status(), 400);
        assert_eq!(body(response).await["error"]["param"], "dimensions");
    }
}

/// An answer depends on its request alone: not on other requests in the batch, nor on earlier ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_the_same_alone_in_a_batch_and_with_the_prefix_cache() {
    let server = server().await;
    let server = &server;
    let systems =
        ["You are a pirate. Answer in the words of a pirate, and never break character.", "Be brief."];
    let tasks =
        ["Name a colour.", "What is the capital of France?", "Count to ten.", "Write a poem on rain."];
    let request = |n: usize, salt: Option<usize>| {
        let padding = "and so on ".repeat(n * n % 37);
        let mut request = json!({
            "messages": [
                {"role": "system", "content": systems[n % systems.len()]},
                {"role": "user", "content": format!("{} {padding}{}", tasks[n % 3 + n % 2], n / 4)}
            ],
            "temperature": 0, "max_tokens": 3 + n % 11, "logprobs": true
        });
        if let Some(salt) = salt {
            request["cache_salt"] = json!(salt.to_string());
        }
        request
    };
    let choice = async |request: Value| {
        let answer = body(server.post("/v1/chat/completions", &request).await).await;
        (answer["choices"][0].clone(), answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone())
    };
    const N: usize = 200;
    let mut alone = Vec::new();
    for n in 0..N {
        // No other request has this salt.
        let (choice, n_cached) = choice(request(n, Some(n))).await;
        assert_eq!(n_cached, 0);
        alone.push(choice);
    }
    for round in ["together", "together again"] {
        let found = futures_util::future::join_all((0..N).map(|n| choice(request(n, None)))).await;
        for (n, ((found, _), alone)) in found.iter().zip(&alone).enumerate() {
            assert_eq!(found, alone, "{round}: request {n}");
        }
        let n_cached = found.iter().filter(|(_, n_cached)| *n_cached != 0).count();
        assert!(n_cached > N / 2, "{round}: {n_cached} found a cached prefix");
    }
}

/// Speculative decoding changes the speed of an answer, not its content.
#[tokio::test]
async fn an_answer_is_the_same_with_speculative_decoding() {
    let speculative = server().await;
    let plain = tokio::task::spawn_blocking(|| app(&["--no-speculation"])).await.unwrap();
    let plain = serve(plain).await;
    let text = "def area(width, height):\n    size = width * height\n    return size\n";
    for (content, fields) in [
        (format!("Repeat this code word for word:\n{text}"), json!({"temperature": 0})),
        (format!("Rename size to area in this code:\n{text}{text}"), json!({"temperature": 0})),
        (format!("Explain: {text}"), json!({"seed": 5, "temperature": 0.7, "stop": ["return"]})),
        ("Say ha ha ha ha ha ha ha ha ha.".to_owned(), json!({"seed": 6, "repeat_penalty": 1.1})),
        ("Count from one to fifty.".to_owned(), json!({"temperature": 0, "max_tokens": 33})),
    ] {
        let mut request = json!({
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 120, "logprobs": true, "top_logprobs": 3
        });
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let ask = async |server: &Server| {
            let answer = body(server.post("/v1/chat/completions", &request).await).await;
            (answer["choices"].clone(), answer["usage"]["completion_tokens"].clone())
        };
        assert_eq!(ask(&speculative).await, ask(&plain).await, "{content}");
    }
    let metrics = speculative.get("/metrics").await.text().await.unwrap();
    let accepted =
        metrics.lines().find_map(|line| line.strip_prefix("predict_otron_accepted_draft_tokens_total "));
    assert!(accepted.unwrap().parse::<u64>().unwrap() > 20, "{accepted:?}");
}
