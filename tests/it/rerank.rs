//! `/v1/rerank` and `/v1/score` with a cross-encoder and with an embedding model; `/tokenize` and `/detokenize`.

use std::fs;
use std::path::Path;

use predict_otron_9000::config::Limits;
use predict_otron_9000::embeddings::{EmbeddingSource, TextEmbedding};
use predict_otron_9000::models::encoder::{EncoderConfig, TextEncoder};
use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use predict_otron_9000::models::{Backend, Encoder, EncoderInput};
use predict_otron_9000::registry::Registry;
use serde_json::{Value, json};

use crate::support;
use crate::support::embeddings::{tiny_encoder, tiny_reranker};
use crate::support::{Server, json as body, scoring_server};

async fn server() -> Server {
    scoring_server(Limits::default(), Box::new(tiny_encoder), Some(Box::new(tiny_reranker))).await
}

async fn ask(server: &Server, route: &str, fields: &Value) -> Value {
    let answer = server.post(route, fields).await;
    let (status, answer) = (answer.status(), body(answer).await);
    assert_eq!(status, 200, "{fields}: {answer}");
    answer
}

/// The document index and score of each result.
fn ranking(answer: &Value) -> Vec<(u64, f64)> {
    let results = answer["results"].as_array().unwrap().iter();
    results
        .map(|result| (result["index"].as_u64().unwrap(), result["relevance_score"].as_f64().unwrap()))
        .collect()
}

const QUERY: &str = "the cat";
const DOCUMENTS: [&str; 4] = ["a dog and a mouse", "the cat", "", "the rust model and the dog"];

/// The logits of the reference backend.
async fn reference(server: &Server) -> Vec<f64> {
    let folder = Path::new("tests/data/tiny-encoders/bert-reranker");
    let config = EncoderConfig::from_json(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let weights = Weights::Safetensors(SafetensorsFiles::open(&folder.join("model.safetensors")).unwrap());
    let model = TextEncoder::load(config, &weights, Backend::Reference).unwrap();
    let ids = async |text: &str, add_special_tokens: bool| -> Vec<u32> {
        let fields = json!({"model": "reranker", "prompt": text, "add_special_tokens": add_special_tokens});
        serde_json::from_value(ask(server, "/tokenize", &fields).await["tokens"].clone()).unwrap()
    };
    let query = ids(QUERY, true).await;
    let mut scores = Vec::new();
    for document in DOCUMENTS {
        let sep = query.last().copied();
        let token_ids = query.iter().copied().chain(ids(document, false).await).chain(sep).collect();
        let input = EncoderInput { token_ids, n_first: query.len() };
        let logit = model.classify(&[input]).unwrap().to_vec2::<f32>().unwrap()[0][0];
        scores.push(f64::from(logit));
    }
    scores
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cross_encoder_reads_query_and_document_together() {
    let server = server().await;
    let logits = reference(&server).await;
    let mut expected: Vec<(u64, f64)> = (0..).zip(logits.iter().copied()).collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    let fields = |raw: bool| json!({"query": QUERY, "documents": DOCUMENTS, "raw_scores": raw});
    let raw = ranking(&ask(&server, "/v1/rerank", &fields(true)).await);
    let answer = ask(&server, "/rerank", &fields(false)).await;
    assert_eq!(answer["model"], "reranker");
    assert!(answer["results"][0].get("document").is_none());
    assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 20, "{answer}");
    let found = ranking(&answer);
    assert_eq!(found.len(), 4);
    for ((found, raw), expected) in found.iter().zip(&raw).zip(&expected) {
        assert_eq!((found.0, raw.0), (expected.0, expected.0));
        assert!((raw.1 - expected.1).abs() < 2e-2, "{raw:?} {expected:?}");
        assert!((found.1 - 1.0 / (1.0 + (-raw.1).exp())).abs() < 1e-6, "{found:?} {raw:?}");
    }
}

#[test]
fn an_onnx_model_is_refused_as_a_reranker() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["bert-onnx/model.onnx", "bert-onnx/tokenizer.json", "tiny-encoders/bert/config.json"] {
        let from = Path::new("tests/data").join(file);
        fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let registry = Registry::new(support::real_registry());
    let source = EmbeddingSource::locate_reranker(folder.path().to_str().unwrap(), &registry).unwrap();
    let error = TextEmbedding::load(&source, &registry).err().unwrap().to_string();
    assert!(error.contains("safetensors"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_n_results_can_include_their_documents() {
    let server = server().await;
    let objects: Vec<Value> = DOCUMENTS.iter().map(|text| json!({ "text": text })).collect();
    let fields = json!({"model": "reranker", "query": QUERY, "documents": objects, "top_n": 2, "return_documents": true});
    let answer = ask(&server, "/v1/rerank", &fields).await;
    let all = ranking(&ask(&server, "/v1/rerank", &json!({"query": QUERY, "documents": DOCUMENTS})).await);
    assert_eq!(ranking(&answer), all[..2]);
    for result in answer["results"].as_array().unwrap() {
        let index = result["index"].as_u64().unwrap() as usize;
        assert_eq!(result["document"]["text"], DOCUMENTS[index]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_sglangs_form_is_answered_in_it() {
    let server = server().await;
    let plain = json!({"query": QUERY, "documents": DOCUMENTS, "top_n": 2});
    let expected = ranking(&ask(&server, "/v1/rerank", &plain).await);
    let fields = json!({"query": QUERY, "documents": DOCUMENTS, "top_k": 2, "rid": null, "user": null,
        "model": "unknown", "return_documents": true});
    let answer = ask(&server, "/v1/rerank", &fields).await;
    let rows = answer.as_array().unwrap();
    let found: Vec<(u64, f64)> =
        rows.iter().map(|row| (row["index"].as_u64().unwrap(), row["score"].as_f64().unwrap())).collect();
    assert_eq!(found, expected);
    assert!(rows.iter().all(|row| row["document"] == DOCUMENTS[row["index"].as_u64().unwrap() as usize]));
    let without = json!({"query": QUERY, "documents": DOCUMENTS, "rid": "r1", "return_documents": false});
    assert!(ask(&server, "/v1/rerank", &without).await[0]["document"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_model_scores_by_cosine_similarity() {
    let server = server().await;
    // `/v1/embeddings` refuses empty texts.
    let documents = DOCUMENTS.map(|text| if text.is_empty() { "mouse" } else { text });
    let fields = json!({"model": "no-embeddings", "query": QUERY, "documents": documents});
    let answer = ask(&server, "/v1/rerank", &fields).await;
    let all: Vec<&str> = [QUERY].into_iter().chain(documents).collect();
    let vectors = ask(&server, "/v1/embeddings", &json!({ "input": all })).await;
    let vector = |idx: usize| -> Vec<f64> {
        serde_json::from_value(vectors["data"][idx]["embedding"].clone()).unwrap()
    };
    for (index, score) in ranking(&answer) {
        let cosine: f64 = vector(0).iter().zip(vector(1 + index as usize)).map(|(a, b)| a * b).sum();
        assert!((score - cosine).abs() < 1e-5, "{score} {cosine}");
    }
    assert_eq!(ranking(&answer)[0].0, 1, "the query itself");
    // The document that equals the query is counted once.
    assert_eq!(answer["usage"]["total_tokens"], {
        let unique = json!({ "input": documents });
        ask(&server, "/v1/embeddings", &unique).await["usage"]["total_tokens"].clone()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_scored_one_against_many_or_in_pairs() {
    let server = server().await;
    let score = async |first: Value, second: Value| -> Vec<f64> {
        let answer = ask(&server, "/v1/score", &json!({"text_1": first, "text_2": second})).await;
        let data = answer["data"].as_array().unwrap();
        assert!(data.iter().enumerate().all(|(idx, item)| item["index"] == idx && item["object"] == "score"));
        data.iter().map(|item| item["score"].as_f64().unwrap()).collect()
    };
    let many = score(json!(QUERY), json!(DOCUMENTS)).await;
    let pairs = score(json!(vec![QUERY; 4]), json!(DOCUMENTS)).await;
    assert_eq!(many, pairs);
    assert_eq!(score(json!(QUERY), json!(DOCUMENTS[3])).await, many[3..]);
    let swapped = score(json!(DOCUMENTS), json!(QUERY)).await;
    assert_eq!(swapped.len(), 4);
    assert_ne!(swapped, many, "the order of query and document matters");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_counted_before_they_are_built() {
    let server = server().await;
    let long = "x".repeat(400_000);
    let started = std::time::Instant::now();
    for (route, fields, param) in [
        ("/v1/score", json!({"text_1": long, "text_2": vec![""; 100_000]}), "text_2"),
        ("/v1/score", json!({"text_1": vec![""; 100_000], "text_2": long}), "text_1"),
        ("/v1/rerank", json!({"query": long, "documents": vec![""; 100_000]}), "documents"),
    ] {
        let answer = server.post(route, &fields).await;
        assert_eq!(answer.status(), 400);
        let error = body(answer).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains("at most 2048"), "{error}");
    }
    // Within the limits: the long text is in memory, and read, once.
    for model in ["reranker", "no-embeddings"] {
        for (route, fields) in [
            (
                "/v1/score",
                json!({"model": model, "text_1": "the cat", "text_2": vec![long.as_str(); 4], "truncate": true}),
            ),
            (
                "/v1/rerank",
                json!({"model": model, "query": "the cat", "documents": [long, "a dog"], "truncate": true}),
            ),
        ] {
            ask(&server, route, &fields).await;
        }
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_truncated_to_a_number_of_tokens() {
    let server = server().await;
    let documents = json!(["a dog the cat mouse", "the cat", "a dog"]);
    for model in ["reranker", "no-embeddings"] {
        for _ in 0..2 {
            let fields =
                json!({"model": model, "query": "the cat", "documents": documents, "max_tokens_per_doc": 2});
            let answer = server.post("/v1/rerank", &fields).await;
            assert_eq!(answer.headers()["x-truncated-inputs"], "documents[0]", "{model}");
            let answer = body(answer).await;
            assert_eq!(answer["usage"]["truncated_inputs"], 1);
            let score = |index: usize| {
                let results = answer["results"].as_array().unwrap();
                results.iter().find(|result| result["index"] == index).unwrap()["relevance_score"].clone()
            };
            assert_eq!(score(0), score(2), "{model}: only the first two tokens count");
        }
    }
    let refused = json!({"query": "x", "documents": ["y"], "max_tokens_per_doc": 0});
    assert_eq!(body(server.post("/v1/rerank", &refused).await).await["error"]["param"], "max_tokens_per_doc");
    // A limit beyond the model's own leaves the refusal to that.
    let long = json!({"query": "x", "documents": ["dog ".repeat(200)], "max_tokens_per_doc": 4096});
    assert_eq!(server.post("/v1/rerank", &long).await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn cosines_are_at_most_1() {
    let server = server().await;
    let texts: Vec<String> = ["cat", "dog", "mouse"].iter().map(|word| format!("the {word} a dog")).collect();
    let fields = json!({"model": "no-embeddings", "text_1": texts, "text_2": texts});
    let answer = ask(&server, "/v1/score", &fields).await;
    for score in answer["data"].as_array().unwrap() {
        let score = score["score"].as_f64().unwrap();
        assert!((0.999..=1.0).contains(&score), "{score}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_scores_name_the_routes_own_parameters() {
    let server = server().await;
    let long = "dog ".repeat(200);
    for (model, fields, param) in [
        ("no-embeddings", json!({"text_1": long, "text_2": ["a"]}), "text_1"),
        ("no-embeddings", json!({"text_1": "a", "text_2": ["b", long]}), "text_2"),
        ("reranker", json!({"text_1": "a", "text_2": ["b", long]}), "text_2"),
        ("reranker", json!({"text_1": [], "text_2": ["b"]}), "text_1"),
    ] {
        let mut fields = fields;
        fields["model"] = json!(model);
        let answer = server.post("/v1/score", &fields).await;
        assert_eq!(answer.status(), 400, "{fields}");
        let error = body(answer).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_scoring_requests_name_the_parameter() {
    let server = server().await;
    let long = "dog ".repeat(200);
    for (route, fields, status, param, word) in [
        ("/v1/rerank", json!({"query": "x", "documents": []}), 400, "documents", "empty"),
        ("/v1/rerank", json!({"query": "x", "documents": ["y"], "top_n": 0}), 400, "top_n", "1 or more"),
        ("/v1/rerank", json!({"documents": ["y"]}), 400, "query", "missing"),
        ("/v1/rerank", json!({"query": "x", "documents": vec!["y"; 3000]}), 400, "documents", "2048"),
        ("/v1/rerank", json!({"query": "x", "documents": ["y", long]}), 400, "documents", "130"),
        ("/v1/rerank", json!({"query": long, "documents": ["y"], "truncate": true}), 400, "documents", "130"),
        ("/v1/rerank", json!({"model": "nobody", "query": "x", "documents": ["y"]}), 404, "model", "nobody"),
        ("/v1/score", json!({"text_1": ["a", "b"], "text_2": vec!["c"; 3]}), 400, "text_2", "equal length"),
        ("/v1/embeddings", json!({"model": "reranker", "input": "x"}), 404, "model", "/v1/rerank"),
    ] {
        let answer = server.post(route, &fields).await;
        assert_eq!(answer.status(), status, "{route} {fields}");
        let error = body(answer).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let fields = json!({"query": "x", "documents": ["y", long], "truncate": true});
    assert_eq!(ranking(&ask(&server, "/v1/rerank", &fields).await).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokenize_and_detokenize_are_inverse() {
    let server = server().await;
    let tokenize = async |fields: Value| ask(&server, "/tokenize", &fields).await;
    let whole =
        tokenize(json!({"model": "no-embeddings", "prompt": "the cat", "return_token_strs": true})).await;
    assert_eq!(whole["token_strs"], json!(["[CLS]", "the", "cat", "[SEP]"]));
    assert_eq!((&whole["count"], &whole["max_model_len"]), (&json!(4), &json!(130)));
    let bare =
        tokenize(json!({"model": "no-embeddings", "prompt": "the cat", "add_special_tokens": false})).await;
    assert_eq!(bare["tokens"].as_array().unwrap()[..], whole["tokens"].as_array().unwrap()[1..3]);
    assert!(bare["token_strs"].is_null());
    let text =
        ask(&server, "/detokenize", &json!({"model": "no-embeddings", "tokens": bare["tokens"]})).await;
    assert_eq!(text["prompt"], "the cat");
    for (route, fields, param) in [
        ("/tokenize", json!({"model": "no-embeddings"}), "prompt"),
        ("/tokenize", json!({"model": "no-embeddings", "messages": []}), "messages"),
        ("/tokenize", json!({"model": "no-embeddings", "prompt": "x", "messages": []}), "messages"),
        ("/detokenize", json!({"model": "no-embeddings", "tokens": [4_000_000]}), "tokens"),
        ("/detokenize", json!({"model": "no-embeddings"}), "tokens"),
    ] {
        let answer = server.post(route, &fields).await;
        assert_eq!(answer.status(), 400, "{route} {fields}");
        assert_eq!(body(answer).await["error"]["param"], param);
    }
}
