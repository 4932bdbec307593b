//! `/v1/embeddings` with a tiny encoder: under load, with options, and at shutdown.

use std::time::{Duration, Instant};

use predict_otron_9000::config::{EmbeddingOverflow, Limits};
use serde_json::{Value, json};

use crate::support::embeddings::{load_folder, tiny_encoder, tiny_encoder_folder, vectors};
use crate::support::{Server, embedding_server, json as body};

const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_does_not_hold_up_a_small_one() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let text = |idx: u32| (0..128).map(|i| 5 + (idx >> (i % 11) & 1)).collect::<Vec<_>>();
    let large = json!({"input": (0..2048).map(text).collect::<Vec<_>>(), "encoding_format": "base64"});
    let small = json!({"input": "the cat"});
    assert_eq!(server.post(EMBEDDINGS, &small).await.status(), 200, "loads the model");
    let large_response = server.post(EMBEDDINGS, &large);
    let small_status = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.post(EMBEDDINGS, &small).await.status()
    };
    tokio::pin!(large_response);
    tokio::select! {
        biased;
        status = small_status => assert_eq!(status, 200),
        _ = &mut large_response => panic!("the small request waited for all of the large one"),
    }
    let answer = body(large_response.await).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 2048);
    assert_eq!(answer["usage"]["total_tokens"], 2048 * 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_batched_together_get_their_own_vectors() {
    let limits = Limits { embedding_cache_bytes: 0, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    let input = |idx: u32| json!({"input": (0..7).map(|i| vec![5 + (idx * 3 + i) % 20; 1 + (idx + i) as usize % 60]).collect::<Vec<_>>()});
    let ask = async |idx: u32| vectors(server.post(EMBEDDINGS, &input(idx)).await).await.0;
    let mut alone = Vec::new();
    for idx in 0..24 {
        alone.push(ask(idx).await);
    }
    let together = futures_util::future::join_all((0..24).map(ask)).await;
    assert!(together == alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_texts_are_refused_or_truncated_on_request() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let long = json!(vec![vec![7; 500]]);
    let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
    assert_eq!(refused.status(), 400);
    let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("502") && message.contains("130") && message.contains("truncate"), "{message}");
    let truncated = body(server.post(EMBEDDINGS, &json!({"input": long, "truncate": true})).await).await;
    assert_eq!(truncated["usage"]["total_tokens"], 130);
    let whole = body(server.post(EMBEDDINGS, &json!({"input": vec![vec![7; 128]]})).await).await;
    assert_eq!(truncated["data"], whole["data"]);
    let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
    assert_eq!(refused.status(), 400, "a truncated text in the cache is still refused without `truncate`");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_texts_are_named() {
    let limits = Limits { embedding_overflow: EmbeddingOverflow::Truncate, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    // The second time, they come from the cache. 128 ids and two special tokens fit the model exactly.
    let fits = vec![7; 128];
    let all = json!([fits, vec![7; 129], [7], vec![7; 500], vec![7; 129]]);
    for hits in ["0", "5"] {
        let answer = server.post(EMBEDDINGS, &json!({ "input": all })).await;
        assert_eq!(answer.headers()["x-cache-hits"], hits);
        assert_eq!(answer.headers()["x-truncated-inputs"], "input[1], input[3], input[4]");
        let usage = body(answer).await["usage"].clone();
        assert_eq!((&usage["truncated_inputs"], &usage["prompt_tokens"]), (&json!(3), &json!(4 * 130 + 3)));
    }
    let answer = server.post(EMBEDDINGS, &json!({ "input": [fits] })).await;
    assert!(!answer.headers().contains_key("x-truncated-inputs"));
    assert!(body(answer).await["usage"].get("truncated_inputs").is_none());
    let refused = server.post(EMBEDDINGS, &json!({"input": [vec![7; 129]], "truncate": false})).await;
    assert_eq!(refused.status(), 400, "the request decides");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_truncated_to_a_number_of_tokens() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let ids: Vec<u32> = (5..25).collect();
    for (limit, n_tokens, truncated) in
        [(json!(10), 10, true), (json!(22), 22, false), (json!(130), 22, false)]
    {
        for _ in 0..2 {
            let fields = json!({"input": [ids], "truncate_prompt_tokens": limit});
            let answer = server.post(EMBEDDINGS, &fields).await;
            assert_eq!(answer.headers().contains_key("x-truncated-inputs"), truncated, "{limit}");
            let (found, _) = vectors(answer).await;
            let kept = json!({"input": [ids[..n_tokens - 2]]});
            assert_eq!(found, vectors(server.post(EMBEDDINGS, &kept).await).await.0, "{limit}");
        }
    }
    let text = "the cat ".repeat(100);
    let most = server.post(EMBEDDINGS, &json!({"input": text, "truncate_prompt_tokens": -1})).await;
    assert_eq!(body(most).await["usage"]["total_tokens"], 130);
    for limit in [json!(0), json!(2), json!(131), json!(-2)] {
        let refused = server.post(EMBEDDINGS, &json!({"input": "x", "truncate_prompt_tokens": limit})).await;
        assert_eq!(refused.status(), 400, "{limit}");
        let error = body(refused).await["error"].clone();
        assert_eq!(error["param"], "truncate_prompt_tokens");
        assert!(error["message"].as_str().unwrap().contains("from 3 to 130"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_texts_are_refused_with_their_index() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    for (input, index) in
        [(json!(["cat", "", "dog"]), "input 1"), (json!(""), "input 0"), (json!([[5], [6], []]), "input 2")]
    {
        let refused = server.post(EMBEDDINGS, &json!({ "input": input })).await;
        assert_eq!(refused.status(), 400, "{input}");
        let error = body(refused).await["error"].clone();
        assert_eq!(error["param"], "input");
        assert!(error["message"].as_str().unwrap().contains(index), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_prefixes_are_put_before_texts() {
    let folder = tiny_encoder_folder();
    let prompts = json!({"prompts": {"query": "the cat ", "sts": "a dog "}});
    std::fs::write(folder.path().join("config_sentence_transformers.json"), prompts.to_string()).unwrap();
    let load = move || load_folder(folder.path());
    let server = embedding_server(Limits::default(), Box::new(load)).await;
    let ask = async |fields: Value| vectors(server.post(EMBEDDINGS, &fields).await).await.0;
    let plain = ask(json!({"input": ["the cat mouse", "a dog mouse", "mouse"]})).await;
    assert_eq!(ask(json!({"input": "mouse", "input_type": "query"})).await[0], plain[0]);
    assert_eq!(ask(json!({"input": "mouse", "input_type": "search_query"})).await[0], plain[0]);
    assert_eq!(ask(json!({"input": "mouse", "prompt_name": "sts"})).await[0], plain[1]);
    assert_eq!(ask(json!({"input": "mouse", "input_type": "document"})).await[0], plain[2]);
    for (fields, param, word) in [
        (json!({"input": "x", "prompt_name": "none"}), "prompt_name", "`query`, `sts`"),
        (json!({"input": "x", "prompt_name": "sts", "input_type": "query"}), "prompt_name", "one of them"),
        (json!({"input": [5], "input_type": "query"}), "input", "send strings"),
        (json!({"input": "x", "input_type": "poem"}), "input_type", "query"),
    ] {
        let refused = server.post(EMBEDDINGS, &fields).await;
        assert_eq!(refused.status(), 400, "{fields}");
        let error = body(refused).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}

/// A server whose model is the tiny encoder with another file beside it.
async fn server_with_file(name: &'static str, contents: Value) -> Server {
    let folder = tiny_encoder_folder();
    std::fs::write(folder.path().join(name), contents.to_string()).unwrap();
    let load = move || load_folder(folder.path());
    embedding_server(Limits::default(), Box::new(load)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_sentence_transformers_is_honored() {
    for name in ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"] {
        let server = server_with_file(name, json!({"max_seq_length": 20, "do_lower_case": false})).await;
        let long = json!(vec![vec![7; 19]]);
        let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
        assert_eq!(refused.status(), 400);
        let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("21 tokens") && message.contains("at most 20"), "{message}");
        for input in [long, json!(["mouse ".repeat(100)])] {
            let truncated = server.post(EMBEDDINGS, &json!({"input": input, "truncate": true})).await;
            assert_eq!(body(truncated).await["usage"]["total_tokens"], 20);
        }
        let models = body(server.get("/v1/models").await).await;
        assert_eq!(models["data"][0]["context_length"], 20, "{models}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_lowered_where_the_model_asks_for_it() {
    let ask = async |server: &Server, text: &str| {
        vectors(server.post(EMBEDDINGS, &json!({ "input": text })).await).await.0.remove(0)
    };
    // Only the special token shows it, since this tokenizer lowers all other text by itself.
    for (lowercase, is_same) in [(true, true), (false, false)] {
        let server = server_with_file("sentence_bert_config.json", json!({"do_lower_case": lowercase})).await;
        let (upper, lower) = (ask(&server, "the [SEP] cat").await, ask(&server, "the [sep] cat").await);
        assert_eq!(upper == lower, is_same);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_leaves_no_room_for_text_is_refused_at_load() {
    for (limit, word) in [(json!(2), "no room"), (json!(0), "positive"), (json!("x"), "positive")] {
        let folder = tiny_encoder_folder();
        let config = json!({ "max_seq_length": limit });
        std::fs::write(folder.path().join("sentence_bert_config.json"), config.to_string()).unwrap();
        let error = load_folder(folder.path()).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purpose_without_effect_is_named() {
    let ask = async |server: &Server, fields: Value| {
        let answer = server.post(EMBEDDINGS, &fields).await;
        assert_eq!(answer.status(), 200, "{fields}");
        answer.headers().get("x-ignored-params").map(|names| names.to_str().unwrap().to_owned())
    };
    let plain = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    for purpose in ["query", "passage"] {
        let fields = json!({"input": "mouse", "input_type": purpose, "user": "me"});
        assert_eq!(ask(&plain, fields).await.unwrap(), "user, input_type");
    }
    assert_eq!(ask(&plain, json!({"input": "mouse"})).await, None);
    let prompts = json!({"prompts": {"query": "the cat "}});
    let prompted = server_with_file("config_sentence_transformers.json", prompts).await;
    for purpose in ["query", "document"] {
        assert_eq!(ask(&prompted, json!({"input": "mouse", "input_type": purpose})).await, None, "{purpose}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_is_tokenized_no_further_than_needed() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let long = "the cat ".repeat(200_000);
    let started = Instant::now();
    let refused = server.post(EMBEDDINGS, &json!({ "input": long })).await;
    assert_eq!(refused.status(), 400);
    let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("more than 130 tokens"), "{message}");
    let truncated = vectors(server.post(EMBEDDINGS, &json!({"input": long, "truncate": true})).await).await.0;
    let start = "the cat ".repeat(64);
    assert_eq!(truncated, vectors(server.post(EMBEDDINGS, &json!({ "input": start })).await).await.0);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_too_many_inputs_or_tokens_are_refused() {
    let limits = Limits { embedding_tokens: 100, ..Limits::default() };
    let server = embedding_server(limits, Box::new(tiny_encoder)).await;
    for (input, words) in [
        (json!(vec!["x"; 2049]), ["2048", "items"]),
        (json!(vec![[7]; 2049]), ["2048", "items"]),
        (json!((5..16).map(|id| vec![id; 8]).collect::<Vec<_>>()), ["100 tokens", "fewer"]),
    ] {
        let refused = server.post(EMBEDDINGS, &json!({ "input": input })).await;
        assert_eq!(refused.status(), 400);
        let error = body(refused).await["error"].clone();
        assert_eq!(error["param"], "input", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let few = json!({"input": (5..15).map(|id| vec![id; 8]).collect::<Vec<_>>()});
    assert_eq!(server.post(EMBEDDINGS, &few).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_sees_what_another_one_embedded() {
    let hits = async |server: &Server, key: &str| {
        let answer = server.post_as(key, EMBEDDINGS, &json!({"input": ["the cat", "a dog"]})).await;
        vectors(answer).await.1
    };
    for (share_embedding_cache, of_another) in [(false, "0"), (true, "2")] {
        let limits = Limits { share_embedding_cache, ..Limits::default() };
        let server = embedding_server(limits, Box::new(tiny_encoder)).await;
        assert_eq!(hits(&server, "a").await, "0");
        assert_eq!(hits(&server, "b").await, of_another);
        assert_eq!(hits(&server, "a").await, "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_fills_the_queue_gives_way() {
    let loader = || {
        std::thread::sleep(Duration::from_secs(2));
        tiny_encoder()
    };
    let limits = Limits { embedding_requests: 3, ..Limits::default() };
    let server = embedding_server(limits, Box::new(loader)).await;
    let ask = json!({"input": "the cat"});
    let of_many = async || server.post_as("many", EMBEDDINGS, &ask).await;
    let later = async |ms: u64, key: &str| {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let started = Instant::now();
        let answer = server.post_as(key, EMBEDDINGS, &ask).await;
        (answer.status().as_u16(), answer.headers().get("retry-after").is_some(), started.elapsed())
    };
    let (first, second, third, refused, other) =
        tokio::join!(of_many(), of_many(), of_many(), later(300, "many"), later(600, "one"));
    assert_eq!((refused.0, refused.1), (429, true), "its own share is used up");
    assert!(refused.2 < Duration::from_millis(500), "{:?}", refused.2);
    assert_eq!(other.0, 200, "another tenant takes a place");
    let mut statuses = [first, second, third].map(|answer| answer.status().as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_does_not_wait_longer_than_the_queue_timeout() {
    let loader = || {
        std::thread::sleep(Duration::from_secs(2));
        tiny_encoder()
    };
    let limits = Limits { queue_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = embedding_server(limits, Box::new(loader)).await;
    let started = Instant::now();
    let refused = server.post(EMBEDDINGS, &json!({"input": "the cat"})).await;
    assert_eq!(refused.status(), 503, "the model is not loaded");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_is_one_json_document() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let input: Vec<[u32; 2]> = (0..2000).map(|idx| [5 + idx % 40, 5 + idx / 40]).collect();
    let answer = server.post(EMBEDDINGS, &json!({ "input": input })).await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let answer = body(answer).await;
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 2000);
    assert!(data.iter().enumerate().all(|(idx, item)| item["index"] == idx && item["object"] == "embedding"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("no-embeddings")));
    assert_eq!(answer["usage"]["total_tokens"], 8000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_past_its_grace_period_fails_running_embeddings() {
    let loader = || {
        std::thread::sleep(Duration::from_secs(3));
        tiny_encoder()
    };
    let limits = Limits { shutdown_grace: Duration::from_millis(200), ..Limits::default() };
    let mut server = embedding_server(limits, Box::new(loader)).await;
    let ask = json!({"input": "the cat"});
    let (running, queued, ()) =
        tokio::join!(server.post(EMBEDDINGS, &ask), server.post(EMBEDDINGS, &ask), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.shut_down();
        });
    for answer in [running, queued] {
        assert_eq!(answer.status(), 503);
        let error: Value = body(answer).await["error"].clone();
        assert!(error["message"].as_str().unwrap().contains("shutting down"), "{error}");
    }
    tokio::time::timeout(Duration::from_secs(1), &mut server.running).await.unwrap().unwrap();
}
