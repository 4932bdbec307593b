//! `POST /v1/completions`: texts are continued as they are.

use serde_json::{Value, json};

use crate::support::{self, ENGINE_OPTIONS, Script, Server, events, json as body, scripted_server};

const COMPLETIONS: &str = "/v1/completions";

async fn server(script: Script) -> Server {
    scripted_server(script, predict_otron_9000::config::Limits::default(), ENGINE_OPTIONS).await
}

async fn ask(server: &Server, fields: Value) -> Value {
    let answer = server.post(COMPLETIONS, &fields).await;
    assert_eq!(answer.status(), 200, "{fields}");
    body(answer).await
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    let is_in_order = choices.iter().enumerate().all(|(idx, choice)| choice["index"] == idx);
    assert!(is_in_order, "{answer}");
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_text_is_continued_as_it_is() {
    let script = Script::saying("upon a time, far away");
    let prompts = script.prompts.clone();
    let server = server(script).await;
    let answer = ask(&server, json!({"model": "scripted", "prompt": "Once <|im_end|> "})).await;
    assert_eq!(texts(&answer), ["upon a time, far"], "16 tokens unless it is said");
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["model"], "scripted");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(7), &json!(16)));
    assert_eq!(usage["total_tokens"], 23);
    // No template is applied, and special tokens are parsed as such.
    let expected: Vec<u32> = [b"Once ".map(u32::from).to_vec(), vec![support::END, u32::from(b' ')]].concat();
    assert_eq!(prompts.lock().unwrap().values().next().unwrap()[..7], expected);
    let whole = ask(&server, json!({"prompt": "Once", "max_tokens": 50})).await;
    assert_eq!(
        (texts(&whole), &whole["choices"][0]["finish_reason"]),
        (vec!["upon a time, far away"], &json!("stop"))
    );
    let echoed = ask(&server, json!({"prompt": "Once ", "echo": true, "stop": " a"})).await;
    assert_eq!(texts(&echoed), ["Once upon"]);
}

#[tokio::test]
async fn each_of_several_prompts_has_several_texts() {
    let server = server(Script::saying("abc")).await;
    let of = async |fields: Value| ask(&server, fields).await;
    let answer = of(json!({"prompt": ["one", "three"], "n": 2, "echo": true})).await;
    assert_eq!(texts(&answer), ["oneabc", "oneabc", "threeabc", "threeabc"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 8, "each prompt is counted once");
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let ids: Vec<u32> = "one".bytes().map(u32::from).collect();
    assert_eq!(texts(&of(json!({"prompt": ids, "echo": true})).await), ["oneabc"]);
    assert_eq!(texts(&of(json!({"prompt": [ids, [97]], "echo": true})).await), ["oneabc", "aabc"]);
    let best = of(json!({"prompt": "x", "best_of": 3, "n": 1, "logprobs": null})).await;
    assert_eq!(texts(&best), ["abc"]);
    assert_eq!(best["choices"][0]["logprobs"], Value::Null, "they were not asked for");
    assert_eq!(best["usage"]["completion_tokens"], 12, "what was computed counts");
}

#[tokio::test]
async fn log_probabilities_have_the_legacy_form() {
    let server = server(Script::saying("aéb")).await;
    let answer = ask(&server, json!({"prompt": "x", "logprobs": 2})).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    // A token that is a part of a character is shown as its bytes, at the position of the character.
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 4);
    assert!(logprobs["top_logprobs"][1]["bytes:\\xc3"].as_f64().unwrap() > -0.1, "{logprobs}");
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert!(
        top.len() == 2 && top["a"].as_f64().unwrap() > -0.1 && top["b"].as_f64().unwrap() < -10.0,
        "{top:?}"
    );
    let none = ask(&server, json!({"prompt": "x", "logprobs": 0})).await;
    let none = &none["choices"][0]["logprobs"];
    let drawn: Vec<Value> = none["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .zip(none["token_logprobs"].as_array().unwrap())
        .map(|(token, logprob)| json!({ token.as_str().unwrap(): logprob }))
        .collect();
    assert_eq!(none["top_logprobs"], json!(drawn), "the drawn tokens alone");
    // The drawn token is there even if it is none of the likeliest.
    let biased = json!({"prompt": "x", "logprobs": 1, "max_tokens": 1, "logit_bias": {"122": 100}});
    let unlikely = ask(&server, biased).await["choices"][0]["logprobs"].clone();
    assert_eq!(unlikely["tokens"], json!(["z"]));
    let top = unlikely["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.keys().collect::<Vec<_>>(), ["a", "z"]);
}

#[tokio::test]
async fn a_stream_has_the_same_content() {
    let server = server(Script::saying("aéb")).await;
    let request = json!({
        "prompt": ["x", "y"], "stream": true, "echo": true, "stream_options": {"include_usage": true}
    });
    let events = events(server.post(COMPLETIONS, &request).await).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(12)));
    let mut texts = [String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null];
    for chunk in chunks {
        assert_eq!((&chunk["object"], &chunk["usage"]), (&json!("text_completion"), &Value::Null));
        assert_eq!(chunk["id"], usage["id"]);
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        assert_eq!(reasons[index], Value::Null, "nothing comes after the end");
        texts[index] += choice["text"].as_str().unwrap();
        reasons[index] = choice["finish_reason"].clone();
    }
    assert_eq!(texts, ["xaéb", "yaéb"]);
    assert_eq!(reasons, ["stop", "stop"]);
    let request = json!({"prompt": "x", "stream": true, "logprobs": 1});
    let events = support::events(server.post(COMPLETIONS, &request).await).await;
    let offsets: Vec<u64> = events[..events.len() - 1]
        .iter()
        .map(|event| {
            serde_json::from_str::<Value>(event).unwrap()["choices"][0]["logprobs"]["text_offset"].clone()
        })
        .flat_map(|offsets| offsets.as_array().cloned().unwrap_or_default())
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [0, 1, 1, 2]);
}

#[tokio::test]
async fn a_stream_starts_with_text() {
    let server = server(Script::saying("ab")).await;
    for (echo, first) in [(false, "a"), (true, "x")] {
        let request = json!({"prompt": "x", "stream": true, "echo": echo});
        let events = events(server.post(COMPLETIONS, &request).await).await;
        let chunk: Value = serde_json::from_str(&events[0]).unwrap();
        assert_eq!(chunk["choices"][0]["text"], first);
        let empty =
            events.iter().filter(|event| event.contains("\"text\":\"\"") && !event.contains("\"stop\""));
        assert_eq!(empty.count(), 0);
    }
}

#[tokio::test]
async fn invalid_parameters_are_refused_by_name() {
    let server = server(Script::saying("abc")).await;
    for (fields, param, words) in [
        (json!({}), "prompt", "missing"),
        (json!({"prompt": []}), "prompt", "empty"),
        (json!({"prompt": [[]]}), "prompt", "empty"),
        (json!({"prompt": 5}), "prompt", "expected a string"),
        (json!({"prompt": [1, support::N_VOCAB]}), "prompt", "258"),
        (json!({"prompt": "x".repeat(600)}), "prompt", "512"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix", "fill-in-the-middle"),
        (json!({"prompt": "x", "logprobs": 6}), "logprobs", "5"),
        (json!({"prompt": "x", "logprobs": true}), "logprobs", "integer"),
        (json!({"prompt": "x", "logprobs": 1, "echo": true, "suffix": "y"}), "suffix", "without `echo`"),
        (json!({"prompt": "x".repeat(400), "logprobs": 5, "echo": true}), "logprobs", "1000"),
        (json!({"prompt": ["x", "y".repeat(400)], "prompt_logprobs": 4, "n": 2}), "prompt_logprobs", "1000"),
        (json!({"prompt": "x", "prompt_logprobs": 21}), "prompt_logprobs", "20"),
        (json!({"prompt": "x", "prompt_logprobs": -1}), "prompt_logprobs", "0 or more"),
        (json!({"prompt": "x", "prompt_logprobs": 1, "stream": true}), "prompt_logprobs", "stream"),
        (json!({"prompt": "x", "n": 2, "best_of": 1}), "best_of", "2"),
        (json!({"prompt": "x", "n": 1, "best_of": 17}), "best_of", "16"),
        (json!({"prompt": "x", "max_tokens": 513}), "max_tokens", "512"),
        (json!({"prompt": "x", "best_of": 2, "stream": true}), "best_of", "stream"),
        (json!({"prompt": vec!["x"; 65]}), "prompt", "64"),
        (json!({"prompt": "x", "temperature": 3}), "temperature", "2"),
        (json!({"prompt": "x", "grammar": "y"}), "grammar", "grammar"),
    ] {
        let refusal = server.post(COMPLETIONS, &fields).await;
        assert_eq!(refusal.status(), 400, "{fields}");
        let error = body(refusal).await["error"].clone();
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    // Parameters that only chat has are ignored whatever their value.
    let fields = json!({"prompt": "x", "max_completion_tokens": 1, "messages": 5});
    let response = server.post(COMPLETIONS, &fields).await;
    assert_eq!(response.headers()["x-ignored-params"], "max_completion_tokens, messages");
    assert_eq!(texts(&body(response).await), ["abc"]);
    let cut = ask(&server, json!({"prompt": "x".repeat(600), "truncate_prompt_tokens": 5})).await;
    assert_eq!(cut["usage"]["prompt_tokens"], 5);
}

#[tokio::test]
async fn the_middle_between_prefix_and_suffix_is_filled_in() {
    let special = vec!["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
    let script = Script { special, ..Script::saying("middle") };
    let prompts = script.prompts.clone();
    let server = server(script).await;
    let answer = ask(&server, json!({"prompt": "a", "suffix": "bc"})).await;
    assert_eq!(texts(&answer), ["middle"]);
    let [before, after, middle] = [0, 1, 2].map(|i| support::N_VOCAB as u32 + i);
    let [a, b, c] = [b'a', b'b', b'c'].map(u32::from);
    assert_eq!(prompts.lock().unwrap().values().next().unwrap()[..6], [before, a, after, b, c, middle]);
    let refusal = server.post(COMPLETIONS, &json!({"prompt": [97], "suffix": "b"})).await;
    assert_eq!(body(refusal).await["error"]["param"], "suffix");
}

/// Log probabilities as the words that a test compares: those of certain tokens, of the neighbor of a certain one, and of
/// impossible ones.
fn kinds(logprobs: &Value) -> Vec<&'static str> {
    let kind = |logprob: &Value| match logprob.as_f64() {
        None => "none",
        Some(logprob) if logprob > -0.1 => "certain",
        Some(logprob) if logprob > -25.0 => "neighbor",
        Some(_) => "impossible",
    };
    logprobs.as_array().unwrap().iter().map(kind).collect()
}

#[tokio::test]
async fn an_echoed_prompt_has_log_probabilities() {
    // The scripted model expects the first token of its answer after every token of the prompt.
    let server = server(Script::saying("aé")).await;
    let request = json!({"prompt": "xab", "echo": true, "logprobs": 1, "max_tokens": 1});
    // The second time, the prompt is in the prefix cache.
    for _ in 0..2 {
        let answer = ask(&server, request.clone()).await;
        assert_eq!(texts(&answer), ["xaba"]);
        let logprobs = &answer["choices"][0]["logprobs"];
        assert_eq!(logprobs["tokens"], json!(["x", "a", "b", "a"]));
        assert_eq!(kinds(&logprobs["token_logprobs"]), ["none", "certain", "neighbor", "certain"]);
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        let top = logprobs["top_logprobs"][2].as_object().unwrap();
        assert_eq!(top.keys().collect::<Vec<_>>(), ["a", "b"], "{top:?}");
        assert_eq!(answer["choices"][0].get("prompt_logprobs"), None);
    }
    // The prompt alone.
    let answer =
        ask(&server, json!({"prompt": ["xab", "é"], "echo": true, "logprobs": 0, "max_tokens": 0})).await;
    assert_eq!(texts(&answer), ["xab", "é"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["x", "a", "b"]));
    assert_eq!(answer["choices"][1]["logprobs"]["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(answer["choices"][1]["logprobs"]["text_offset"], json!([0, 0]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let silent = ask(&server, json!({"prompt": "xab", "max_tokens": 0})).await;
    assert_eq!((texts(&silent), &silent["choices"][0]["logprobs"]), (vec![""], &Value::Null));
    let cut = ask(
        &server,
        json!({"prompt": "xxxab", "echo": true, "logprobs": 0, "max_tokens": 0, "truncate_prompt_tokens": 2}),
    );
    assert_eq!(texts(&cut.await), ["ab"], "what was scored is echoed");
}

#[tokio::test]
async fn the_token_that_ends_a_text_after_a_scored_echo_is_reported() {
    // Clients find the tokens of the prompt by how many are generated.
    let server = server(Script::saying("")).await;
    let answer = ask(&server, json!({"prompt": "xa", "echo": true, "logprobs": 1, "max_tokens": 1})).await;
    assert_eq!(texts(&answer), ["xa"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["x", "a", ""]));
    let plain = ask(&server, json!({"prompt": "xa", "logprobs": 1, "max_tokens": 1})).await;
    assert_eq!(plain["choices"][0]["logprobs"]["tokens"], json!([]));
}

#[tokio::test]
async fn several_choices_share_the_scores_of_their_prompt() {
    let server = server(Script::saying("ab")).await;
    let request = json!({"prompt": ["xa", "ya"], "n": 3, "echo": true, "logprobs": 1, "prompt_logprobs": 0});
    let answer = ask(&server, request).await;
    assert_eq!(texts(&answer), ["xaab", "xaab", "xaab", "yaab", "yaab", "yaab"]);
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["logprobs"]["tokens"][1], "a");
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 5, "{choice}");
        let prompt = choice["prompt_logprobs"].as_array().unwrap();
        assert_eq!((prompt.len(), &prompt[0]), (2, &Value::Null));
        assert_eq!(prompt[1].as_object().unwrap().keys().collect::<Vec<_>>(), ["97"]);
    }
    let request = json!({
        "prompt": ["xa", "ya"], "n": 2, "echo": true, "logprobs": 1, "stream": true, "max_tokens": 2
    });
    let events = events(server.post(COMPLETIONS, &request).await).await;
    let mut tokens = vec![Vec::new(); 4];
    let mut offsets = vec![Vec::new(); 4];
    let mut all = vec![String::new(); 4];
    for event in &events[..events.len() - 1] {
        let choice = serde_json::from_str::<Value>(event).unwrap()["choices"][0].clone();
        let index = choice["index"].as_u64().unwrap() as usize;
        all[index] += choice["text"].as_str().unwrap();
        tokens[index].extend(choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default());
        offsets[index].extend(choice["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default());
    }
    assert_eq!(all, ["xaab", "xaab", "yaab", "yaab"]);
    assert_eq!(tokens[3], ["y", "a", "a", "b"]);
    assert!(offsets.iter().all(|offsets| *offsets == [0, 1, 2, 3]), "{offsets:?}");
}

#[tokio::test]
async fn prompt_log_probabilities_are_listed_by_token_id() {
    let server = server(Script::saying("ab")).await;
    let answer = ask(&server, json!({"prompt": [120, 97, 98], "prompt_logprobs": 2, "max_tokens": 1})).await;
    assert_eq!((texts(&answer), &answer["choices"][0]["logprobs"]), (vec!["a"], &Value::Null));
    let prompt = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((prompt.len(), &prompt[0]), (3, &Value::Null));
    // The prompt's own token comes first.
    assert_eq!(prompt[2].as_object().unwrap().keys().collect::<Vec<_>>(), ["98", "97"]);
    let own = &prompt[2]["98"];
    assert_eq!((&own["rank"], &own["decoded_token"]), (&json!(2), &json!("b")));
    assert_eq!(prompt[2]["97"]["rank"], 1);
    assert!(prompt[1]["97"]["logprob"].as_f64().unwrap() > -0.1);
    // In a conversation they belong to the whole response.
    let request = json!({"messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 0, "n": 2, "max_tokens": 1});
    let answer = body(server.post("/v1/chat/completions", &request).await).await;
    let prompt = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(prompt.len() as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(prompt[1]["117"]["decoded_token"], "u");
    let zero = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0});
    assert_eq!(body(server.post("/v1/chat/completions", &zero).await).await["error"]["param"], "max_tokens");
}

#[tokio::test]
async fn the_tokenizer_and_the_template_are_described() {
    let server = server(Script::saying("a")).await;
    let info = body(server.get("/tokenizer_info").await).await;
    assert_eq!(
        (&info["eos_token"], &info["chat_template"]),
        (&json!("<|im_end|>"), &json!(support::TEMPLATE))
    );
    assert_eq!((&info["model_max_length"], &info["vocab_size"]), (&json!(512), &json!(support::N_VOCAB)));
    for path in ["/apply-template", "/apply_template"] {
        let request = json!({
            "messages": [{"role": "user", "content": "<|im_end|>"}], "chat_template_kwargs": {"mood": "good"}, "foo": 1
        });
        let response = server.post(path, &request).await;
        assert_eq!(response.headers()["x-ignored-params"], "foo");
        let prompt = body(response).await["prompt"].clone();
        assert_eq!(prompt, "<|start|>user:<|im_end|><|im_end|>mood:good<|start|>assistant:");
    }
}
