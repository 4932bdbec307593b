//! `POST /v1/decisions` and `POST /v1/systemone`, against a scripted model and against a tiny one.

use std::time::{Duration, Instant};

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::tiny::tiny_server;
use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const DECISIONS: &str = "/v1/decisions";
const SYSTEM_ONE: &str = "/v1/systemone";

async fn decide(server: &Server, questions: Value) -> Value {
    let request = json!({"model": "default", "input": "My bill is wrong.", "questions": questions});
    let response = server.post(DECISIONS, &request).await;
    let status = response.status();
    let answer = body(response).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A server whose model answers with `text` after the header of its template.
async fn saying(text: &str) -> Server {
    // A header that ends without white space is followed by a space.
    scripted_server(Script::saying(&format!(" {text}")), Limits::default(), ENGINE_OPTIONS).await
}

#[tokio::test]
async fn each_kind_of_question_has_its_kind_of_answer() {
    let server = saying("b").await;
    let answer = decide(
        &server,
        json!([
            {"type": "choice", "name": "which", "instructions": "Which?", "choices": [
                {"value": "a"}, {"value": "b", "description": "the second"}, {"value": true}
            ]},
            {"type": "score", "instructions": "How?", "levels": [{"label": "x"}, {"label": "b"}]},
            {"type": "predicate", "instructions": [{"type": "input_text", "text": "It is so."}]},
        ]),
    )
    .await;
    let [choice, score, predicate] = answer["answers"].as_array().unwrap().as_slice() else {
        panic!("{answer}")
    };
    assert_eq!(
        (&choice["type"], &choice["name"], &choice["choice"]),
        (&json!("choice"), &json!("which"), &json!("b"))
    );
    assert!(number(&choice["confidence"]) > 0.999 && number(&choice["outside_mass"]) < 1e-3, "{choice}");
    let values: Vec<&Value> =
        choice["probabilities"].as_array().unwrap().iter().map(|entry| &entry["value"]).collect();
    assert_eq!(values, [&json!("a"), &json!("b"), &json!(true)]);
    assert_eq!((&score["type"], &score["name"]), (&json!("score"), &Value::Null));
    assert!((number(&score["score"]) - 1.0).abs() < 1e-3, "{score}");
    assert_eq!(score["probabilities"][1]["label"], "b");
    assert_eq!(score["probabilities"][1]["value"], 1);
    assert_eq!(predicate["type"], "predicate");
    assert!((0.0..=1.0).contains(&number(&predicate["probability"])));
    assert!(number(&predicate["outside_mass"]) > 0.999, "the model would say something else: {predicate}");
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["output_tokens"], &usage["output_tokens_details"]["reasoning_tokens"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(usage["total_tokens"], usage["input_tokens"]);
    assert_eq!(answer["model"], "scripted");
}

#[tokio::test]
async fn the_input_is_computed_once_and_cached() {
    let script = Script { context_length: Some(4096), ..Script::saying(" Yes") };
    let n_tokens = script.n_tokens.clone();
    let server = scripted_server(script, Limits::default(), ENGINE_OPTIONS).await;
    let input = "A long complaint about a bill. ".repeat(60);
    let questions: Vec<Value> =
        (0..12).map(|n| json!({"type": "predicate", "instructions": format!("It is number {n}.")})).collect();
    let ask =
        async || body(server.post(DECISIONS, &json!({"input": input, "questions": questions})).await).await;
    let first = ask().await;
    assert_eq!(first["answers"].as_array().unwrap().len(), 12);
    assert!(first["answers"].as_array().unwrap().iter().all(|answer| number(&answer["probability"]) > 0.999));
    let details = |answer: &Value| {
        let usage = &answer["usage"];
        let details = &usage["input_tokens_details"];
        let counts = [&usage["input_tokens"], &details["cached_tokens"], &details["cache_write_tokens"]];
        counts.map(|count| count.as_u64().unwrap() as usize)
    };
    let [n_input, n_cached, n_written] = details(&first);
    assert_eq!((n_cached, n_written), (0, n_input));
    let n_computed = n_tokens.load(Ordering::SeqCst);
    assert!(n_computed < n_input + 12 * 40, "{n_computed} of {n_input}");
    let [_, n_cached, _] = details(&ask().await);
    assert!(n_cached > input.len(), "{n_cached}");
}

#[tokio::test]
async fn system_one_answers_by_name() {
    let server = saying("1").await;
    let request = json!({
        "model": "default", "state": {"message": "My bill is wrong."}, "questions": {
            "how": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "angry"]},
            "late": {"type": "noul", "instructions": "It is late.", "criteria": {"true": "after six", "false": null}},
            "which": {"type": "choice", "instructions": "Which?", "criteria": {"1": "the first", "2": null}, "mood": 1},
        }
    });
    let response = server.post(SYSTEM_ONE, &request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ignored-params"], "questions.which.mood");
    let answer = body(response).await;
    let names: Vec<&String> = answer["answers"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["how", "late", "which"]);
    let how = &answer["answers"]["how"];
    assert_eq!((&how["type"], &how["legend"]), (&json!("score"), &json!({"0": "calm", "1": "angry"})));
    assert!(number(&how["score"]) > 0.999 && number(&how["probabilities"]["1"]) > 0.999, "{how}");
    assert_eq!(answer["answers"]["which"]["choice"], "1");
    assert_eq!(answer["answers"]["late"]["type"], "noul");
    assert!(answer["answers"]["late"]["noul"].is_number());
}

#[tokio::test]
async fn four_hundred_questions_are_answered_beside_a_chat() {
    let server = saying("Yes").await;
    let questions: Vec<Value> = (0..400)
        .map(|n| json!({"type": "predicate", "name": format!("{n}"), "instructions": "It is."}))
        .collect();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5});
    let chats = async {
        for _ in 0..5 {
            assert_eq!(server.post("/v1/chat/completions", &chat).await.status(), 200);
        }
    };
    let (answer, ()) = tokio::join!(decide(&server, json!(questions)), chats);
    let names: Vec<String> = answer["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, (0..400).map(|n| n.to_string()).collect::<Vec<_>>());
    // The engine notes its load when it looks for new requests.
    let started = Instant::now();
    loop {
        let load = body(server.get("/v1/loads").await).await["loads"][0].clone();
        if (&load["num_running_reqs"], &load["num_waiting_reqs"]) == (&json!(0), &json!(0)) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{load}");
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_by_name() {
    let limits = Limits { decision_tokens: 900, ..Limits::default() };
    let server = scripted_server(Script::saying("x"), limits, ENGINE_OPTIONS).await;
    let question = json!({"type": "predicate", "instructions": "?"});
    for (path, request, param, words) in [
        (DECISIONS, json!({"questions": [question]}), "input", "missing"),
        (DECISIONS, json!({"input": "x"}), "questions", "missing"),
        (DECISIONS, json!({"input": "x", "questions": []}), "questions", "400"),
        (DECISIONS, json!({"input": 5, "questions": [question]}), "input", "expected a string"),
        (DECISIONS, json!({"input": "x", "questions": vec![question.clone(); 20]}), "questions", "900"),
        (DECISIONS, json!({"input": "x".repeat(600), "questions": [question]}), "input", "512"),
        (SYSTEM_ONE, json!({"questions": {"q": {"type": "noul", "instructions": "?"}}}), "state", "missing"),
        (
            SYSTEM_ONE,
            json!({"state": "x", "questions": {"q": {"type": "noul"}}}),
            "questions.q",
            "instructions",
        ),
        (SYSTEM_ONE, json!({"state": "x", "questions": {}}), "questions", "400"),
    ] {
        let response = server.post(path, &request).await;
        assert_eq!(response.status(), 400, "{request}");
        let error = body(response).await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let request = json!({"input": "x", "questions": [question], "safety_identifier": "u", "foo": 1, "prompt_cache_key": null});
    let response = server.post(DECISIONS, &request).await;
    assert_eq!(response.headers()["x-ignored-params"], "safety_identifier, foo");
}

#[tokio::test]
async fn probabilities_are_the_same_alone_and_in_any_batch() {
    let (server, _folder) = tiny_server("llama", &[]).await;
    let questions: Vec<Value> = (0..6)
        .map(|n| {
            let choices: Vec<Value> = ["red", "green", "blue", "re"][..2 + n % 3]
                .iter()
                .map(|value| json!({"value": value}))
                .collect();
            json!({"type": "choice", "instructions": format!("Which color is number {n}?"), "choices": choices})
        })
        .collect();
    let together = decide(&server, json!(questions)).await;
    let together = together["answers"].as_array().unwrap();
    for (question, expected) in questions.iter().zip(together) {
        let probabilities = expected["probabilities"].as_array().unwrap();
        let sum: f64 = probabilities.iter().map(|entry| number(&entry["probability"])).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{expected}");
        let alone = decide(&server, json!([question])).await;
        assert_eq!(alone["answers"][0], *expected);
    }
    let shuffled: Vec<Value> = questions.iter().rev().cloned().collect();
    let asked = (0..3).map(|_| decide(&server, json!(shuffled)));
    for answer in join_all(asked).await {
        let answers: Vec<&Value> = answer["answers"].as_array().unwrap().iter().rev().collect();
        assert_eq!(answers, together.iter().collect::<Vec<_>>());
    }
}
