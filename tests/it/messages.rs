//! Anthropic's API, `/v1/messages`, against a scripted model.

use std::time::Duration;

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, keyed_server, scripted_server};

const MESSAGES: &str = "/v1/messages";
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";

/// A template that supports tools and reasoning.
const KNOWS_ALL: &str = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content }}{% for call in m.tool_calls %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}]\
    {% endfor %}{{ m.tool_call_id }}<|im_end|>{% endfor %}{% if enable_thinking is defined %}thinking:{{ enable_thinking }}\
    {% endif %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

const THINKS_AND_CALLS: &str = "<think>\nIt is warm.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \
    \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";

async fn server(script: Script) -> Server {
    let script = Script { context_length: Some(4096), ..script };
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

async fn server_that_knows_all(said: &str) -> (Server, Script) {
    let script = Script { template: Some(KNOWS_ALL), ..Script::saying(said) };
    (server(script.clone()).await, script)
}

fn request(fields: Value) -> Value {
    let mut request =
        json!({"model": "scripted", "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn weather() -> Value {
    json!({"name": "get_weather", "description": "The weather", "input_schema": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": false}})
}

/// The newest prompt of the model, as text.
fn prompt(script: &Script) -> String {
    let prompts = script.prompts.lock().unwrap();
    let (_, ids) = prompts.iter().max_by_key(|(id, _)| id.0).unwrap();
    let text =
        |&id: &u32| u8::try_from(id).map_or_else(|_| "¤".to_owned(), |byte| char::from(byte).to_string());
    ids.iter().map(text).collect()
}

/// The events of a stream: name and data.
async fn named_events(response: reqwest::Response) -> Vec<(String, Value)> {
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.split_terminator("\n\n").map(event).collect()
}

/// Replaces ids, which differ from run to run.
fn redacted(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                *value = if key == "id" { json!("[id]") } else { redacted(value.take()) };
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
    let response = server.post(MESSAGES, &request(json!({"tools": [weather()]}))).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
    let message = body(response).await;
    assert!(message["id"].as_str().unwrap().starts_with("msg_"), "{message}");
    assert!(message["content"][2]["id"].as_str().unwrap().starts_with("toolu_"), "{message}");
    insta::assert_json_snapshot!(redacted(message));
}

#[tokio::test]
async fn a_streamed_message() {
    let (server, _) = server_that_knows_all(THINKS_AND_CALLS).await;
    let fields = json!({"tools": [weather()], "stream": true});
    let events = named_events(server.post(MESSAGES, &request(fields)).await).await;
    insta::assert_json_snapshot!(events.into_iter().map(|(_, data)| redacted(data)).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_stop_sequence_that_occurred_is_named() {
    let server = server(Script::saying("one two three")).await;
    for (fields, text, reason, stop) in [
        (json!({"stop_sequences": ["xyz", "tw"]}), "one ", "stop_sequence", json!("tw")),
        (json!({"stop_sequences": []}), "one two three", "end_turn", json!(null)),
        (json!({"max_tokens": 3}), "one", "max_tokens", json!(null)),
    ] {
        let message = body(server.post(MESSAGES, &request(fields.clone())).await).await;
        assert_eq!(message["content"], json!([{"type": "text", "text": text}]));
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &stop));
        let mut fields = fields;
        fields["stream"] = json!(true);
        let events = named_events(server.post(MESSAGES, &request(fields)).await).await;
        let (_, end) = events.iter().find(|(name, _)| name == "message_delta").unwrap();
        assert_eq!(end["delta"], json!({"stop_reason": reason, "stop_sequence": stop}));
    }
}

#[tokio::test]
async fn a_limit_of_zero_only_computes_the_prompt() {
    let server = server(Script::saying("one two three")).await;
    let message = body(server.post(MESSAGES, &request(json!({"max_tokens": 0}))).await).await;
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &json!("max_tokens")));
    assert_eq!(message["usage"]["output_tokens"], 0);
}

#[tokio::test]
async fn a_limit_beyond_the_context_is_named() {
    let server = server(Script::saying("one")).await;
    let response = server.post(MESSAGES, &request(json!({"max_tokens": 64_000}))).await;
    assert_eq!(response.headers()["x-ignored-params"], "max_tokens");
    assert_eq!(body(response).await["stop_reason"], "end_turn");
}

#[tokio::test]
async fn a_turn_of_claude_code_is_understood() {
    let (server, script) = server_that_knows_all("Done.").await;
    let turn = |n: u32| {
        let line = format!("x-anthropic-billing-header: cc_version=2.1.197.{n}; cc_entrypoint=cli;");
        request(json!({
            "system": [
                {"type": "text", "text": line},
                {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "\nBe brief. ".repeat(20)}
            ],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "How warm is it?"}]},
                {"role": "system", "content": "Agents: none."},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": "x"},
                    {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no network", "is_error": true,
                     "cache_control": {"type": "ephemeral"}}
                ]}
            ],
            "tools": [weather(), {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
            "metadata": {"user_id": "{}"},
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
            "max_tokens": 500
        }))
    };
    let response = server.post("/v1/messages?beta=true", &turn(1)).await;
    assert_eq!(response.status(), 200);
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap().to_owned();
    for name in ["metadata", "context_management", "tools[1]", "system.x-anthropic-billing-header"] {
        assert!(ignored.split(", ").any(|ignored| ignored == name), "{name} in {ignored}");
    }
    assert!(!ignored.contains("cache_control"), "{ignored}");
    let text = prompt(&script);
    assert!(!text.contains("billing"), "{text}");
    for part in [
        "¤system:You are an agent.\nBe brief.",
        "¤user:How warm is it?¤",
        "¤system:Agents: none.¤",
        "<think>I look.</think>[toolu_1 get_weather {\"city\": \"Paris\"}]",
        "¤tool:Error: no networktoolu_1¤",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let again = body(server.post(MESSAGES, &turn(2)).await).await;
    let usage = &again["usage"];
    assert!(usage["cache_read_input_tokens"].as_u64().unwrap() > 200, "{usage}");
    assert!(usage["input_tokens"].as_u64().unwrap() < 100, "{usage}");
}

#[tokio::test]
async fn tools_are_enforced_and_counted() {
    let (server, _) = server_that_knows_all("I'd rather not.").await;
    for choice in [
        json!({"type": "any", "disable_parallel_tool_use": true}),
        json!({"type": "tool", "name": "get_weather"}),
    ] {
        let fields =
            json!({"tools": [weather()], "tool_choice": choice, "temperature": 0, "max_tokens": 900});
        let message = body(server.post(MESSAGES, &request(fields)).await).await;
        assert_eq!(message["stop_reason"], "tool_use", "{message}");
        let content = message["content"].as_array().unwrap();
        assert_eq!((content.len(), &content[0]["name"]), (1, &json!("get_weather")));
        assert!(["Paris", "Rome"].map(Value::from).contains(&content[0]["input"]["city"]), "{message}");
    }
    let fields = json!({"tools": [weather()], "tool_choice": {"type": "none"}});
    let message = body(server.post(MESSAGES, &request(fields)).await).await;
    assert_eq!(message["stop_reason"], "end_turn");
}

#[tokio::test]
async fn a_format_is_enforced() {
    let server = server(Script::saying("no JSON")).await;
    let schema = json!({"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "schema": schema});
    for fields in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
        let message = body(server.post(MESSAGES, &request(fields)).await).await;
        let text = message["content"][0]["text"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"n": 7}));
    }
}

#[tokio::test]
async fn thinking_is_the_templates_switch() {
    let (server, script) = server_that_knows_all("<think>\nHm.\n</think>\n\nYes.").await;
    for (thinking, seen) in [
        (json!({"type": "disabled"}), Some("thinking:false")),
        (json!({"type": "enabled", "budget_tokens": 100}), Some("thinking:true")),
        (json!({"type": "adaptive"}), None),
    ] {
        server.post(MESSAGES, &request(json!({ "thinking": thinking }))).await;
        let text = prompt(&script).to_lowercase();
        assert_eq!(
            seen.unwrap_or("thinking:"),
            if text.contains("thinking:") { seen.unwrap() } else { "thinking:" }
        );
    }
    let fields = json!({"thinking": {"type": "adaptive", "display": "omitted"}});
    let message = body(server.post(MESSAGES, &request(fields)).await).await;
    assert_eq!(message["content"][0]["thinking"], "");
    let history = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": "and?"}
    ]);
    server.post(MESSAGES, &request(json!({ "messages": history }))).await;
    assert!(prompt(&script).contains("<think>Hm.</think>Yes."), "{}", prompt(&script));
}

#[tokio::test]
async fn tokens_are_counted() {
    let (server, script) = server_that_knows_all("Yes.").await;
    let fields = json!({"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "tools": [weather()],
                        "system": "Be brief."});
    let counted = body(server.post(COUNT_TOKENS, &fields).await).await;
    let message = body(server.post(MESSAGES, &request(fields)).await).await;
    let usage = &message["usage"];
    let n_prompt =
        usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted, json!({"input_tokens": n_prompt}));
    assert!(prompt(&script).contains("TOOLS"));
}

#[tokio::test]
async fn errors_have_the_envelope() {
    let server = server(Script::saying("x")).await;
    let history = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    ]);
    for (fields, status, kind, says) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error", "`max_tokens` is missing"),
        (json!({"model": "other"}), 404, "not_found_error", "other"),
        (json!({"messages": []}), 400, "invalid_request_error", "`messages` is empty"),
        (json!({"messages": history}), 400, "invalid_request_error", "messages[1] has call `t`"),
        (
            json!({"tools": [{"name": "a b", "input_schema": {}}]}),
            400,
            "invalid_request_error",
            "`tools[0].name` must consist",
        ),
        (json!({"stop_sequences": [""]}), 400, "invalid_request_error", "`stop_sequences` contains"),
        (json!({"mcp_servers": [{}]}), 400, "invalid_request_error", "never calls out"),
        (
            json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]}),
            400,
            "invalid_request_error",
            "prompt is too long: ",
        ),
    ] {
        let response = server.post(MESSAGES, &request(fields)).await;
        assert_eq!(response.status(), status);
        let id = response.headers()["request-id"].to_str().unwrap().to_owned();
        let error = body(response).await;
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(error["request_id"], id);
    }
    let thread = |kind: &str| request(json!({"thread": {"type": kind, "previous_message_id": "msg_1"}}));
    let lost = server.post(MESSAGES, &thread("continue")).await;
    assert_eq!(lost.status(), 404);
    assert_eq!(body(lost).await["error"]["details"], json!({"error_code": "thread_not_found"}));
    assert_eq!(server.post(MESSAGES, &thread("create")).await.headers()["x-ignored-params"], "thread");
    let malformed =
        server.client.post(server.url(MESSAGES)).header("content-type", "application/json").body("{");
    for (response, status) in [
        (malformed.send().await.unwrap(), 400),
        (server.get(MESSAGES).await, 405),
        (server.get("/v1/messages/other").await, 404),
        (server.client.post(server.url(MESSAGES)).body("x").send().await.unwrap(), 415),
    ] {
        assert_eq!(response.status(), status);
        assert_eq!(body(response).await["type"], "error");
    }
    let elsewhere = body(server.get("/v1/messagesx").await).await;
    assert_eq!(elsewhere["error"]["code"], "unknown_url", "other routes keep theirs");
}

#[tokio::test]
async fn keys_are_checked_by_either_header() {
    let server = keyed_server(&["sk-0123456789abcdef"], Limits::default()).await;
    let post =
        || server.client.post(server.url(MESSAGES)).header("content-type", "application/json").body("{}");
    for (request, status, kind) in [
        (post(), 401, "authentication_error"),
        (post().header("x-api-key", "sk-wrong"), 401, "authentication_error"),
        (post().header("x-api-key", "sk-0123456789abcdef"), 400, "invalid_request_error"),
        (post().bearer_auth("sk-0123456789abcdef"), 400, "invalid_request_error"),
    ] {
        let response = request.header("anthropic-version", "2023-06-01").send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(body(response).await["error"]["type"], kind);
    }
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event() {
    let script = Script { panic_on: Some(b'!'), step: Duration::from_millis(5), ..Script::saying("abc!def") };
    let server = server(script).await;
    let events = named_events(server.post(MESSAGES, &request(json!({"stream": true}))).await).await;
    let (name, error) = events.last().unwrap();
    assert_eq!((name.as_str(), &error["error"]["type"]), ("error", &json!("api_error")), "{error}");
    assert!(error["request_id"].is_string());
}

#[tokio::test]
async fn the_chat_page_answers_head() {
    let server = server(Script::saying("x")).await;
    assert_eq!(server.client.head(server.url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn models_have_the_form_of_the_clients_api() {
    let server = server(Script::saying("x")).await;
    let get =
        |path: &str| server.client.get(server.url(path)).header("anthropic-version", "2023-06-01").send();
    let list = body(get("/v1/models").await.unwrap()).await;
    assert_eq!((&list["has_more"], &list["first_id"]), (&json!(false), &json!("scripted")));
    let model = body(get("/v1/models/scripted").await.unwrap()).await;
    assert_eq!(model, list["data"][0]);
    assert_eq!((&model["type"], &model["display_name"]), (&json!("model"), &json!("scripted")));
    assert_eq!(model["max_input_tokens"], 4096);
    let missing = get("/v1/models/none").await.unwrap();
    assert_eq!(missing.status(), 404);
    assert!(missing.headers().contains_key("request-id"));
    let missing = body(missing).await;
    assert_eq!((&missing["type"], &missing["error"]["type"]), (&json!("error"), &json!("not_found_error")));
}
