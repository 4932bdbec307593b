//! Ollama's API, `/api`, against a scripted model; downloads from a hub on this machine.

use std::time::Duration;

use predict_otron_9000::config::Limits;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

use crate::cli::Running;
use crate::model_management::{self, MODEL};
use crate::support::embeddings::tiny_encoder;
use crate::support::{
    ENGINE_OPTIONS, Script, Server, embedding_server, json as body, keyed_server, scripted_server,
};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

/// A template that supports tools and reasoning.
const KNOWS_ALL: &str = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content }}{% for call in m.tool_calls %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}]\
    {% endfor %}{{ m.tool_call_id }}<|im_end|>{% endfor %}{% if enable_thinking is defined %}thinking:{{ enable_thinking }}\
    {% endif %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

const THINKS_AND_CALLS: &str = "<think>\nIt is warm.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \
    \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \
    \"Rome\"}}\n</tool_call>";

async fn server(script: Script) -> Server {
    let script = Script { context_length: Some(4096), ..script };
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

async fn server_that_knows_all(said: &str) -> (Server, Script) {
    let script = Script { template: Some(KNOWS_ALL), ..Script::saying(said) };
    (server(script.clone()).await, script)
}

fn merged(mut request: Value, fields: &Value) -> Value {
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn chat(fields: &Value) -> Value {
    merged(json!({"model": "scripted:latest", "messages": [{"role": "user", "content": "hi"}]}), fields)
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": false}}})
}

/// The newest prompt of the model, as text.
fn prompt(script: &Script) -> String {
    let prompts = script.prompts.lock().unwrap();
    let (_, ids) = prompts.iter().max_by_key(|(id, _)| id.0).unwrap();
    let text =
        |&id: &u32| u8::try_from(id).map_or_else(|_| "¤".to_owned(), |byte| char::from(byte).to_string());
    ids.iter().map(text).collect()
}

/// The lines of a streamed response.
async fn lines(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.unwrap();
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The whole response to a request.
async fn whole(server: &Server, path: &str, request: Value) -> Value {
    let response = server.post(path, &merged(request, &json!({"stream": false}))).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    let status = response.status();
    let response = body(response).await;
    assert_eq!(status, 200, "{response}");
    response
}

fn ignored(response: &Response) -> &str {
    response.headers().get("x-ignored-params").map_or("", |names| names.to_str().unwrap())
}

/// Replaces ids and times, which differ from run to run.
fn redacted(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                let is_random = key == "id" || key == "created_at" || key.ends_with("_duration");
                *value = if is_random { json!(format!("[{key}]")) } else { redacted(value.take()) };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = redacted(item.take())),
        _ => {}
    }
    value
}

#[tokio::test]
async fn a_complete_message() {
    let (server, _) = server_that_knows_all(THINKS_AND_CALLS).await;
    let message = whole(&server, CHAT, chat(&json!({"tools": [weather()]}))).await;
    insta::assert_json_snapshot!(redacted(message));
}

#[tokio::test]
async fn a_streamed_message_adds_up_to_the_complete_one() {
    let (server, _) = server_that_knows_all(THINKS_AND_CALLS).await;
    let request = chat(&json!({"tools": [weather()]}));
    let lines = lines(server.post(CHAT, &request).await).await;
    let (last, others) = lines.split_last().unwrap();
    assert!(others.iter().all(|line| line["done"] == false && line.get("eval_count").is_none()));
    let mut message = json!({"role": "assistant", "content": "", "thinking": "", "tool_calls": []});
    for line in &lines {
        assert_eq!((&line["model"], &line["message"]["role"]), (&json!("scripted"), &json!("assistant")));
        for field in ["content", "thinking"] {
            let more = line["message"][field].as_str().unwrap_or_default();
            message[field] = json!(format!("{}{more}", message[field].as_str().unwrap()));
        }
        let calls = line["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        message["tool_calls"].as_array_mut().unwrap().extend(calls);
    }
    let whole = redacted(whole(&server, CHAT, request).await);
    assert_eq!(redacted(message), whole["message"]);
    let mut end = redacted(last.clone());
    end["message"] = whole["message"].clone();
    assert_eq!(end, whole);
    let first = lines.iter().position(|line| line["message"].get("tool_calls").is_some()).unwrap();
    assert!(first < lines.len() - 2, "each call is sent once it is complete");
}

#[tokio::test]
async fn the_end_has_measurements() {
    let script = Script { step: Duration::from_millis(5), ..Script::saying("one two") };
    let server = server(script).await;
    let end = whole(&server, CHAT, chat(&json!({}))).await;
    assert_eq!((&end["done"], &end["done_reason"]), (&json!(true), &json!("stop")));
    let field = |name: &str| end[name].as_u64().unwrap();
    assert_eq!(field("eval_count"), 8, "the end's token included");
    assert!(field("prompt_eval_count") > 10 && field("prompt_eval_duration") >= 5_000_000, "{end}");
    assert!(field("eval_duration") >= 35_000_000, "{end}");
    assert!(field("total_duration") >= field("eval_duration") + field("prompt_eval_duration"), "{end}");
    let created: jiff::Timestamp = end["created_at"].as_str().unwrap().parse().unwrap();
    assert!(created.duration_since(jiff::Timestamp::now()).abs().as_secs() < 60);
}

#[tokio::test]
async fn options_are_honored_or_named() {
    let server = server(Script::saying("one two three")).await;
    for (options, text, reason) in [
        (json!({"num_predict": 3}), "one", "length"),
        (json!({"num_predict": -1}), "one two three", "stop"),
        (json!({"num_predict": 100_000}), "one two three", "stop"),
        (json!({"stop": ["xyz", "tw"]}), "one ", "stop"),
    ] {
        let end = whole(&server, CHAT, chat(&json!({ "options": options }))).await;
        assert_eq!((&end["message"]["content"], &end["done_reason"]), (&json!(text), &json!(reason)));
    }
    let fields = json!({
        "options": {"num_ctx": 8192, "mirostat": 0, "typical_p": 1, "top_k": 5, "temperature": 0, "num_predict": 9000},
        "keep_alive": "5m", "think": true, "mood": "good"
    });
    let response = server.post(CHAT, &chat(&fields)).await;
    let mut named: Vec<&str> = ignored(&response).split(", ").collect();
    named.sort_unstable();
    assert_eq!(named, ["keep_alive", "mood", "options.num_ctx", "options.num_predict", "think"]);
    for options in [json!({"mirostat": 2}), json!({"temperature": 3}), json!({"top_k": "many"})] {
        let name = format!("options.{}", options.as_object().unwrap().keys().next().unwrap());
        let response = server.post(CHAT, &chat(&json!({ "options": options }))).await;
        assert_eq!(response.status(), 400);
        let error = body(response).await;
        assert!(error["error"].as_str().unwrap().contains(&format!("`{name}`")), "{error}");
    }
}

#[tokio::test]
async fn a_conversation_with_tools_is_understood() {
    let (server, script) = server_that_knows_all("Done.").await;
    let call = |city: &str| json!({"function": {"name": "get_weather", "arguments": {"city": city}}});
    let fields = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How warm is it?"},
            {"role": "assistant", "content": "", "thinking": "I look.", "tool_calls": [call("Paris"), call("Rome")]},
            {"role": "tool", "tool_name": "get_weather", "content": "20"},
            {"role": "tool", "tool_name": "get_weather", "content": "30"}
        ],
        "tools": [weather()]
    });
    let response = server.post(CHAT, &chat(&fields)).await;
    assert_eq!(ignored(&response), "messages[3].tool_name, messages[4].tool_name");
    assert_eq!(lines(response).await.last().unwrap()["done_reason"], "stop");
    let text = prompt(&script);
    for part in [
        "TOOLS:",
        "¤system:Be brief.¤",
        "<think>I look.</think>[call_2_0 get_weather {\"city\": \"Paris\"}]",
        "¤tool:20call_2_0¤",
        "¤tool:30call_2_1¤",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn a_format_is_enforced() {
    let server = server(Script::saying("no JSON")).await;
    let schema = json!({"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]});
    for path in [CHAT, GENERATE] {
        for (format, expected) in [(schema.clone(), Some(json!({"n": 7}))), (json!("json"), None)] {
            let fields =
                json!({"format": format, "prompt": "hi", "options": {"temperature": 0, "num_predict": 300}});
            let answer = whole(&server, path, chat(&fields)).await;
            let text = answer["message"]["content"].as_str().or(answer["response"].as_str()).unwrap();
            match expected {
                Some(expected) => assert_eq!(serde_json::from_str::<Value>(text).unwrap(), expected),
                None => assert!(text.trim_start().starts_with('{'), "{text}"),
            }
        }
    }
}

#[tokio::test]
async fn thinking_is_the_templates_switch() {
    let (server, script) = server_that_knows_all("<think>\nHm.\n</think>\n\nYes.").await;
    for (think, seen) in
        [(json!(false), Some("thinking:False")), (json!(true), Some("thinking:True")), (json!(null), None)]
    {
        let message = whole(&server, CHAT, chat(&json!({ "think": think }))).await["message"].clone();
        assert_eq!((&message["thinking"], &message["content"]), (&json!("Hm."), &json!("Yes.")));
        let text = prompt(&script);
        assert_eq!(text.contains("thinking:"), seen.is_some(), "{text}");
        assert!(text.to_lowercase().contains(&seen.unwrap_or_default().to_lowercase()), "{text}");
    }
}

#[tokio::test]
async fn prompts_have_the_template_unless_they_are_raw() {
    let (server, script) = server_that_knows_all("<think>\nHm.\n</think>\n\nYes.").await;
    let request =
        json!({"model": "default", "prompt": "hi", "system": "Be brief.", "template": "", "suffix": ""});
    let answer = whole(&server, GENERATE, request.clone()).await;
    assert_eq!((&answer["response"], &answer["thinking"]), (&json!("Yes."), &json!("Hm.")));
    assert!(prompt(&script).starts_with("¤system:Be brief.¤¤user:hi¤¤assistant:"), "{}", prompt(&script));
    let raw = merged(request, &json!({"raw": true, "context": [1, 2]}));
    let response = server.post(GENERATE, &raw).await;
    assert_eq!(ignored(&response), "context, system");
    let lines = lines(response).await;
    let text: String = lines.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(text, "<think>\nHm.\n</think>\n\nYes.", "no template, no parts");
    assert!(prompt(&script).starts_with("hi<think>"), "{}", prompt(&script));
    let suffix = json!({"prompt": "a", "suffix": "b"});
    let error = body(server.post(GENERATE, &suffix).await).await;
    assert!(error["error"].as_str().unwrap().contains("fill-in-the-middle"), "{error}");
}

#[tokio::test]
async fn empty_requests_load_the_model() {
    let server = server(Script::saying("x")).await;
    for (path, request) in [(CHAT, json!({"messages": []})), (GENERATE, json!({"prompt": ""}))] {
        let response = server.post(path, &request).await;
        assert_eq!(response.headers()["content-type"], "application/json");
        let loaded = body(response).await;
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")), "{loaded}");
        assert_eq!(loaded["eval_count"], 0);
        let options = json!({"options": {"top_k": -2}});
        assert_eq!(server.post(path, &merged(request.clone(), &options)).await.status(), 400);
        let unload = server.post(path, &merged(request, &json!({"keep_alive": 0}))).await;
        assert_eq!(unload.status(), 400);
    }
}

#[tokio::test]
async fn log_probabilities_are_reported() {
    let server = server(Script::saying("ab")).await;
    for (path, fields) in [(CHAT, json!({})), (GENERATE, json!({})), (GENERATE, json!({"raw": true}))] {
        let fields = merged(json!({"prompt": "hi", "logprobs": true, "top_logprobs": 2}), &fields);
        let answer = whole(&server, path, chat(&fields)).await;
        let lines = lines(server.post(path, &chat(&fields)).await).await;
        let streamed = lines.iter().flat_map(|line| line["logprobs"].as_array().cloned().unwrap_or_default());
        assert_eq!(answer["logprobs"], Value::Array(streamed.collect()));
        let first = &answer["logprobs"][0];
        assert_eq!((&first["token"], first["top_logprobs"].as_array().unwrap().len()), (&json!("a"), 2));
    }
}

#[tokio::test]
async fn texts_are_embedded() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let openai = body(server.post("/v1/embeddings", &json!({"input": ["cat", "a dog"]})).await).await;
    let response = server.post("/api/embed", &json!({"model": "default", "input": ["cat", "a dog"]})).await;
    assert!(response.headers().contains_key("x-cache-hits"));
    let both = body(response).await;
    for idx in 0..2 {
        assert_eq!(both["embeddings"][idx], openai["data"][idx]["embedding"]);
    }
    assert_eq!(both["prompt_eval_count"], openai["usage"]["prompt_tokens"]);
    assert!(both["total_duration"].as_u64().unwrap() >= both["load_duration"].as_u64().unwrap());
    let fields = json!({"input": "cat", "dimensions": 2, "keep_alive": "5m", "options": {"num_ctx": 9}});
    let response = server.post("/api/embed", &fields).await;
    assert_eq!(ignored(&response), "keep_alive, options");
    assert_eq!(body(response).await["embeddings"][0].as_array().unwrap().len(), 2);
    let one = body(server.post("/api/embeddings", &json!({"prompt": "cat"})).await).await;
    assert_eq!(one["embedding"], both["embeddings"][0]);
    let long = "cat ".repeat(5000);
    let response = server.post("/api/embed", &json!({ "input": long })).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-truncated-inputs"]),
        (200, &"input[0]".parse().unwrap())
    );
    let response = server.post("/api/embed", &json!({"input": long, "truncate": false})).await;
    assert_eq!(response.status(), 400);
    assert!(body(response).await["error"].is_string());
    for (path, request, field) in [
        ("/api/embed", json!({"input": ""}), "embeddings"),
        ("/api/embed", json!({"input": []}), "embeddings"),
        ("/api/embeddings", json!({"prompt": ""}), "embedding"),
    ] {
        assert_eq!(body(server.post(path, &request).await).await[field], json!([]));
    }
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let (server, _) = server_that_knows_all("x").await;
    let tags = body(server.get("/api/tags").await).await;
    let names: Vec<&Value> = tags["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["scripted", "no-embeddings"]);
    let details = json!({"parent_model": "", "format": "gguf", "family": "scripted", "families": ["scripted"],
                         "parameter_size": "", "quantization_level": ""});
    let model = &tags["models"][0];
    assert_eq!(
        (&model["model"], &model["size"], &model["details"]),
        (&json!("scripted"), &json!(1000), &details)
    );
    assert_eq!(model["digest"].as_str().unwrap().len(), 32);
    assert!(model["modified_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let ps = body(server.get("/api/ps").await).await;
    assert_eq!(ps["models"].as_array().unwrap().len(), 1, "the other is not in memory");
    let loaded = &ps["models"][0];
    assert_eq!((&loaded["size"], &loaded["size_vram"]), (&json!(1000), &json!(0)));
    assert_eq!((&loaded["context_length"], &loaded["digest"]), (&json!(4096), &model["digest"]));
    for request in [json!({"model": "scripted:latest"}), json!({"name": "tests/scripted", "verbose": true})] {
        let shown = body(server.post("/api/show", &request).await).await;
        assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
        assert_eq!((&shown["template"], &shown["license"]), (&json!(KNOWS_ALL), &json!("MIT")));
        let info = json!({"general.architecture": "scripted", "scripted.context_length": 4096});
        assert_eq!((&shown["model_info"], &shown["details"]), (&info, &details));
    }
    let shown = body(server.post("/api/show", &json!({"model": "no-embeddings"})).await).await;
    assert_eq!((&shown["capabilities"], &shown["model_info"]), (&json!(["embedding"]), &json!({})));
    let version = body(server.get("/api/version").await).await;
    assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(server.client.head(server.url("/")).send().await.unwrap().status(), 200);
}

async fn send(server: &Running, method: Method, path: &str, request: Value) -> Response {
    let url = format!("http://{}{path}", server.address);
    Client::new().request(method, url).json(&request).send().await.unwrap()
}

#[tokio::test]
async fn models_are_pulled_and_deleted() {
    let (hub, cache) = (model_management::hub(), tempfile::tempdir().unwrap());
    let server = model_management::server(&hub, cache.path()).await;
    let is_listed = async || {
        let tags = body(send(&server, Method::GET, "/api/tags", json!({})).await).await;
        tags["models"].as_array().unwrap().iter().any(|model| model["name"] == "tiny/llama")
    };
    assert!(!is_listed().await);
    let pulled = lines(send(&server, Method::POST, "/api/pull", json!({"model": MODEL})).await).await;
    assert_eq!(pulled.first().unwrap(), &json!({"status": "pulling manifest"}));
    assert_eq!(pulled.last().unwrap(), &json!({"status": "success"}));
    let end_of = |name: &str| {
        let status = json!(format!("pulling tiny/llama/{name}"));
        let line = pulled.iter().find(|line| line["status"] == status && line["completed"] == line["total"]);
        line.unwrap_or_else(|| panic!("{name} in {pulled:?}"))
    };
    let [weights, config] = ["model.safetensors", "config.json"].map(end_of);
    assert!(weights["total"].as_u64() > config["total"].as_u64() && config["total"].as_u64() > Some(0));
    assert!(weights["digest"].is_string() && weights["digest"] != config["digest"]);
    assert!(is_listed().await);

    hub.take_bodies();
    let request = json!({"name": format!("{MODEL}:latest"), "stream": false, "insecure": true});
    let again = send(&server, Method::POST, "/api/pull", request).await;
    assert_eq!((again.status().as_u16(), ignored(&again)), (200, "insecure"));
    assert_eq!(body(again).await, json!({"status": "success"}));
    assert!(hub.take_bodies().is_empty(), "it is on disk");
    let request = json!({"model": "tiny/llama", "prompt": "a", "raw": true, "options": {"num_predict": 2}});
    let end = lines(send(&server, Method::POST, GENERATE, request).await).await.pop().unwrap();
    assert_eq!((&end["done"], &end["model"]), (&json!(true), &json!("tiny/llama")));

    let delete = async |request: Value| send(&server, Method::DELETE, "/api/delete", request).await;
    let deleted = delete(json!({"model": "tiny/llama:latest"})).await;
    assert_eq!((deleted.status().as_u16(), deleted.text().await.unwrap().as_str()), (200, ""));
    assert!(!is_listed().await);
    for (request, status, says) in [
        (json!({"model": "tiny/llama"}), 404, "not served"),
        (json!({"name": MODEL}), 404, "not on disk"),
        (json!({"model": "none"}), 404, "not served"),
        (json!({"model": "all-minilm-l6-v2"}), 409, "in use"),
        (json!({"model": "qwen2"}), 400, "was not downloaded"),
        (json!({}), 400, "`model`"),
    ] {
        let refused = delete(request).await;
        assert_eq!(refused.status(), status, "{says}");
        let error = body(refused).await;
        assert!(error["error"].as_str().unwrap().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_failed_pull_says_why() {
    let (hub, cache) = (model_management::hub(), tempfile::tempdir().unwrap());
    let server = model_management::server(&hub, cache.path()).await;
    for (model, status, says) in [("/etc/passwd", 400, "hf:owner/repo"), ("hf:no/such", 503, "cannot")] {
        let request = json!({ "model": model });
        let streamed = lines(send(&server, Method::POST, "/api/pull", request.clone()).await).await;
        let whole = merged(request, &json!({"stream": false}));
        let whole = send(&server, Method::POST, "/api/pull", whole).await;
        assert_eq!(whole.status(), status);
        let error = body(whole).await;
        assert!(error["error"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(streamed, [json!({"status": "pulling manifest"}), error]);
    }
}

#[tokio::test]
async fn errors_have_ollamas_form() {
    let server = server(Script::saying("x")).await;
    let image = json!([{"role": "user", "content": "x", "images": ["aGk="]}]);
    for (path, request, status, says) in [
        (CHAT, chat(&json!({"model": "other"})), 404, "other"),
        (CHAT, chat(&json!({"messages": image})), 400, "`messages[0].images`"),
        (CHAT, chat(&json!({"format": "yaml"})), 400, "`format`"),
        (CHAT, chat(&json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]})), 400, "tokens"),
        (
            CHAT,
            chat(&json!({"tools": [{"type": "function", "function": {"name": "a b"}}]})),
            400,
            "tools[0].function.name",
        ),
        (GENERATE, json!({"prompt": "x", "template": "{{ x }}"}), 400, "`template`"),
        (GENERATE, json!({"prompt": "x", "images": ["aGk="]}), 400, "`images`"),
        ("/api/show", json!({}), 400, "`model`"),
        ("/api/show", json!({"model": "other"}), 404, "other"),
        ("/api/embed", json!({"model": "scripted", "input": "x"}), 404, "scripted"),
        ("/api/pull", json!({"model": MODEL}), 403, "--manage-models"),
        ("/api/create", json!({"model": "mine", "from": "scripted"}), 404, "/api/create"),
        ("/api/copy", json!({"source": "scripted", "destination": "mine"}), 404, "/api/copy"),
        ("/api/push", json!({"model": "scripted"}), 404, "/api/push"),
        ("/api/blobs/sha256:00", json!({}), 404, "/api/blobs"),
        ("/api/delete", json!({"model": "scripted"}), 405, "/api/delete"),
        ("/api/tags", json!({}), 405, "/api/tags"),
    ] {
        let response = server.post(path, &request).await;
        let answered = response.status().as_u16();
        let error = body(response).await;
        assert_eq!(answered, status, "{error}");
        assert_eq!(error.as_object().unwrap().len(), 1);
        assert!(error["error"].as_str().unwrap().contains(says), "{error}");
    }
    let malformed = server.client.post(server.url(CHAT)).header("content-type", "application/json").body("{");
    let other_type = server.client.post(server.url(CHAT)).body("{}");
    for (request, status) in [(malformed, 400), (other_type, 415)] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        assert!(body(response).await["error"].is_string());
    }
}

#[tokio::test]
async fn keys_are_checked() {
    let server = keyed_server(&["sk-0123456789abcdef"], Limits::default()).await;
    let get = || server.client.get(server.url("/api/tags"));
    let pull = server.client.post(server.url("/api/pull")).json(&json!({"model": MODEL}));
    let delete = server.client.delete(server.url("/api/delete")).json(&json!({"model": MODEL}));
    for request in [get(), get().bearer_auth("sk-wrong"), pull, delete] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(body(response).await["error"].as_str().unwrap().contains("API key"));
    }
    assert_eq!(get().bearer_auth("sk-0123456789abcdef").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_a_line() {
    let script = Script { panic_on: Some(b'!'), step: Duration::from_millis(5), ..Script::saying("abc!def") };
    let server = server(script).await;
    let lines = lines(server.post(CHAT, &chat(&json!({}))).await).await;
    let (last, others) = lines.split_last().unwrap();
    assert!(!others.is_empty() && others.iter().all(|line| line["done"] == false));
    assert!(last["error"].is_string() && last.get("done").is_none(), "{last}");
}
