//! Continuous batching, prefix cache, admission control and cancellation, against a scripted model that reads its
//! prompts from the KV cache blocks it is given.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, Script, events, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

fn request(content: &str, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": content}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn cached_tokens(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn a_common_prefix_comes_from_the_prefix_cache() {
    let server = scripted_server(Script::saying("yes"), Limits::default(), ENGINE_OPTIONS).await;
    let beginning = "Once upon a time there was a king who had three daughters. ".repeat(2);
    let ask = async |end: &str, fields: Value| {
        let response = server.post(CHAT, &request(&format!("{beginning}{end}"), fields)).await;
        let answer = body(response).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "yes");
        answer
    };
    assert_eq!(cached_tokens(&ask("Who was the first?", json!({})).await), 0);
    let second = ask("And the second?", json!({})).await;
    // Full blocks of sixteen tokens, here bytes, before the question.
    let n_before = "user:".len() + 1 + beginning.len();
    let n_cached = cached_tokens(&second);
    assert_eq!(n_cached, n_before as u64 / 16 * 16, "{second}");
    assert_eq!(cached_tokens(&ask("And the third?", json!({"cache_salt": "mine"})).await), 0);
    assert_eq!(cached_tokens(&ask("Who was the last?", json!({"cache_salt": "mine"})).await), n_cached);
}

#[tokio::test]
async fn the_next_prompt_of_a_conversation_finds_an_answer_that_was_not_rounded() {
    let text = "an answer of more than two blocks of sixteen tokens, each of which is a byte";
    let script = Script::saying(text);
    let n_tokens = script.n_tokens.clone();
    let options = EngineOptions { rounded_prompts: true, ..ENGINE_OPTIONS };
    let server = scripted_server(script, Limits::default(), options).await;
    let ask = async |messages: Value| {
        let answer = body(server.post(CHAT, &json!({"messages": messages, "temperature": 0})).await).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text);
        answer
    };
    let question = json!({"role": "user", "content": "a question"});
    let first = ask(json!([question])).await;
    let n_first = first["usage"]["total_tokens"].as_u64().unwrap();
    // The answer is computed again as a part of a prompt, while no request waits.
    let deadline = Instant::now() + Duration::from_secs(20);
    while (n_tokens.load(Ordering::SeqCst) as u64) < n_first + text.len() as u64 {
        assert!(Instant::now() < deadline, "{n_tokens:?} tokens");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = json!({"role": "assistant", "content": text});
    let second = ask(json!([question, answer, {"role": "user", "content": "and?"}])).await;
    let n_cached = cached_tokens(&second);
    assert!(n_cached + 32 > n_first && n_cached > text.len() as u64, "{n_cached} of {n_first}");
    // The same prompt finds itself.
    let n_prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached_tokens(&ask(json!([question])).await), (n_prompt - 1) / 16 * 16);
}

#[tokio::test]
async fn requests_beyond_the_kv_cache_wait_and_lose_nothing() {
    // Room for 12 blocks of 16 tokens; each request needs six or seven in the end.
    let block_bytes = 16 * 2 * (2 + 16);
    let options = EngineOptions { kv_bytes: 12 * block_bytes, ..ENGINE_OPTIONS };
    let text = "a long answer of many words, which no one block holds, nor three ";
    let server = scripted_server(Script::saying(text), Limits::default(), options).await;
    let contents: Vec<String> = (0..8).map(|n| format!("{n} tell me")).collect();
    let answers = join_all(
        contents
            .iter()
            .map(|content| async { body(server.post(CHAT, &request(content, json!({}))).await).await }),
    );
    for answer in answers.await {
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], text.len() + 1);
    }
}

#[tokio::test]
async fn several_choices_share_one_prompt() {
    let script = Script::saying("yes");
    let prompts = script.prompts.clone();
    let n_tokens = script.n_tokens.clone();
    let server = scripted_server(script, Limits::default(), ENGINE_OPTIONS).await;
    let content = "a prompt of more than three blocks of sixteen tokens each, computed once ".repeat(2);
    let content = content.as_str();
    let answer = body(server.post(CHAT, &request(content, json!({"n": 3, "seed": 1}))).await).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "yes"), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 3 * 4);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(prompts.lock().unwrap().len(), 3);
    // Full blocks of the prompt are computed once, the rest and the completion for each choice.
    let n_prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert!(n_tokens.load(Ordering::SeqCst) < 2 * n_prompt, "{n_tokens:?} of {n_prompt}");

    let fields = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let mut events = events(server.post(CHAT, &request(content, fields)).await).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 2 * 4);
    for index in 0..2 {
        let of_choice = chunks.iter().filter_map(|chunk| chunk["choices"].get(0));
        let of_choice: Vec<&Value> = of_choice.filter(|choice| choice["index"] == index).collect();
        assert_eq!(of_choice[0]["delta"]["role"], "assistant");
        let text: String =
            of_choice.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "yes");
        assert_eq!(of_choice.last().unwrap()["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn requests_beyond_the_queue_timeout_are_refused() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(60)) };
    let queue_timeout = Duration::from_millis(200);
    let options = EngineOptions { running_requests: 1, queue_timeout, ..ENGINE_OPTIONS };
    let server = scripted_server(script, Limits::default(), options).await;
    let first = server.post(CHAT, &request("first", json!({"stream": true}))).await;
    let late = server.post(CHAT, &request("late", json!({}))).await;
    assert_eq!(late.status(), 429);
    assert!(late.headers().contains_key("retry-after"));
    let error = body(late).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("waited for 0.2 s"), "{error}");
    let events = events(first).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "the running request continues");
}

#[tokio::test]
async fn the_head_of_a_stream_waits_for_its_first_token() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(60)) };
    let queue_timeout = Duration::from_millis(200);
    let options = EngineOptions { running_requests: 1, queue_timeout, ..ENGINE_OPTIONS };
    let stream = json!({"stream": true});
    for (delay_ms, status) in [(2000, 429), (50, 200)] {
        let limits = Limits { stream_head_delay: Duration::from_millis(delay_ms), ..Limits::default() };
        let server = scripted_server(script.clone(), limits, options).await;
        let first = server.post(CHAT, &request("first", stream.clone())).await;
        let late = server.post(CHAT, &request("late", stream.clone())).await;
        assert_eq!(late.status(), status, "a failure before the first token has its own status");
        if status == 200 {
            let last = events(late).await.pop().unwrap();
            assert!(last.contains("waited for 0.2 s"), "{last}");
        }
        assert_eq!(events(first).await.last().map(String::as_str), Some("[DONE]"));
    }
}

#[tokio::test]
async fn speculative_decoding_saves_batches_and_changes_nothing() {
    let text = "the cat sat on the mat, the cat sat on the mat, the cat sat on the mat, and the cat sat. ";
    for speculative in [false, true] {
        // One more row costs next to nothing.
        let script = Script { step: Duration::from_millis(3), ..Script::saying(text) };
        let n_batches = script.n_batches.clone();
        let options = EngineOptions { speculative, ..ENGINE_OPTIONS };
        let server = scripted_server(script, Limits::default(), options).await;
        let answer = body(server.post(CHAT, &request("go on", json!({"logprobs": true}))).await).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), text.len());
        assert_eq!(answer["usage"]["completion_tokens"], text.len() + 1);
        let n_batches = n_batches.load(Ordering::SeqCst);
        assert_eq!(n_batches < text.len() * 3 / 4, speculative, "{n_batches}");
        // The limit holds in the middle of draft tokens, too.
        let answer = body(server.post(CHAT, &request("go on", json!({"max_tokens": 58}))).await).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text[..58]);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        let answer = body(server.post(CHAT, &request("go on", json!({"stop": "mat, and"}))).await).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text[..text.find("mat, and").unwrap()]);
    }
}

#[tokio::test]
async fn prompts_beyond_the_queued_token_limit_are_refused() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(60)) };
    let options = EngineOptions { running_requests: 1, queued_tokens: 150, ..ENGINE_OPTIONS };
    let server =
        scripted_server(script, Limits { stream_head_delay: Duration::ZERO, ..Limits::default() }, options)
            .await;
    // A single prompt may be longer, and a running one does not count.
    let stream = json!({"stream": true});
    let running = server.post(CHAT, &request(&"long ".repeat(40), stream.clone())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = server.post(CHAT, &request(&"a".repeat(80), stream.clone())).await;
    assert_eq!(waiting.status(), 200);
    let refused = server.post(CHAT, &request(&"b".repeat(80), stream.clone())).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let error = body(refused).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("150") && error["error"]["code"] == "queue_full", "{error}");
    assert_eq!(server.post(CHAT, &request("short", stream)).await.status(), 200);
    assert_eq!(events(running).await.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(events(waiting).await.last().map(String::as_str), Some("[DONE]"));
}

#[tokio::test]
async fn a_stuck_engine_is_not_ready() {
    let script = Script { step: Duration::from_millis(700), ..Script::saying("x") };
    let options = EngineOptions { batch_time: Duration::from_millis(200), ..ENGINE_OPTIONS };
    let server =
        scripted_server(script, Limits { stream_head_delay: Duration::ZERO, ..Limits::default() }, options)
            .await;
    let running = server.post(CHAT, &request("go", json!({"stream": true}))).await;
    assert_eq!(server.get("/readyz").await.status(), 200, "the batch has only begun");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let stuck = server.get("/readyz").await;
    assert_eq!(stuck.status(), 503);
    let error = body(stuck).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("one batch"), "{error}");
    assert_eq!(server.get("/livez").await.status(), 200);
    events(running).await;
    // The engine emits the last token before it becomes idle.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.get("/readyz").await.status(), 200, "an idle engine is not stuck");
}

/// Requests release everything when their clients disconnect, in whatever phase.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cancels_leave_nothing_behind() {
    let text: String = ('a'..='z').cycle().take(2000).collect();
    let script =
        Script { step: Duration::from_millis(1), context_length: Some(4096), ..Script::saying(&text) };
    let options = EngineOptions {
        queued_requests: 64,
        queued_tokens: 100_000,
        running_requests: 6,
        kv_bytes: 4 << 20,
        ..ENGINE_OPTIONS
    };
    let server = scripted_server(script, Limits::default(), options).await;
    let server = &server;
    let neighbors = async {
        let ask = |n: usize| async move {
            body(server.post(CHAT, &request(&format!("neighbor {n}"), json!({"max_tokens": 1500}))).await)
                .await
        };
        join_all((0..2).map(ask)).await
    };
    // More at a time than can run, so that some are cancelled in the queue, some during prefill and some during
    // decode.
    let cancels = async {
        for round in 0..25 {
            let cancel = |n: usize| async move {
                let content = format!("{round} {n} {}", "and so on ".repeat(n * 5));
                let response = server.post(CHAT, &request(&content, json!({"stream": true}))).await;
                assert_eq!(response.status(), 200);
                tokio::time::sleep(Duration::from_millis((n % 8) as u64 * 4)).await;
                drop(response);
            };
            join_all((0..40).map(cancel)).await;
        }
    };
    let (neighbors, ()) = tokio::join!(neighbors, cancels);
    for answer in neighbors {
        assert_eq!(answer["choices"][0]["message"]["content"], text[..1500]);
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    let load = body(server.get("/v1/loads").await).await["loads"][0].clone();
    for count in ["num_running_reqs", "num_waiting_reqs", "num_waiting_uncached_tokens", "num_used_tokens"] {
        assert_eq!(load[count], 0, "{load}");
    }
    // All slots are free again.
    let short = request("again", json!({"max_tokens": 1}));
    let again = join_all((0..70).map(|_| server.post(CHAT, &short))).await;
    assert!(again.iter().all(|response| response.status() == 200));
}
