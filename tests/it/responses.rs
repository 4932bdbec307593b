//! The wire format of `/v1/responses` and `/v1/conversations`, and their state, against a scripted model.

use std::time::Duration;

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, Script, Server, json as body, scripted_server};

const RESPONSES: &str = "/v1/responses";

/// A template that shows calls, results and reasoning.
const TEMPLATE: &str = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}\
    {{ m.content }}{% for call in m.tool_calls %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]\
    {% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

/// The same for a model that reasons.
const REASONS: &str = "{# <think> </think> enable_thinking #}\
    {% for m in messages %}<|start|>{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\
    {% endif %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

async fn server(script: Script) -> Server {
    let script =
        Script { context_length: Some(8192), template: script.template.or(Some(TEMPLATE)), ..script };
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

async fn create(server: &Server, request: &Value) -> Value {
    let response = server.post(RESPONSES, request).await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    body(response).await
}

/// The events of a stream; the names of the events are those in their JSON, and the numbers have no gap.
async fn stream(response: reqwest::Response) -> Vec<Value> {
    let text = response.text().await.unwrap();
    let mut names = Vec::new();
    let mut events: Vec<Value> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("event: ") {
            names.push(name.to_owned());
        } else if let Some(data) = line.strip_prefix("data: ") {
            events.push(serde_json::from_str(data).unwrap());
        }
    }
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(names, types);
    let first = events.first().map_or(0, |event| event["sequence_number"].as_u64().unwrap());
    for (number, event) in (first..).zip(&events) {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    events
}

async fn streamed(server: &Server, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let response = server.post(RESPONSES, &request).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    stream(response).await
}

/// The types of events, each run of deltas as one.
fn outline(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    types.dedup_by(|a, b| a == b && a.ends_with(".delta"));
    types
}

/// The deltas of one type, joined.
fn joined(events: &[Value], kind: &str) -> String {
    events
        .iter()
        .filter(|event| event["type"] == kind)
        .map(|event| event["delta"].as_str().unwrap())
        .collect()
}

/// The newest prompt of the model, as text.
fn prompt(script: &Script) -> String {
    let prompts = script.prompts.lock().unwrap();
    let (_, ids) = prompts.iter().max_by_key(|(id, _)| id.0).unwrap();
    let text = |&id: &u32| match u8::try_from(id) {
        Ok(byte) => char::from(byte).to_string(),
        Err(_) => if id == 256 { "<" } else { ">" }.to_owned(),
    };
    ids.iter().map(text).collect()
}

fn weather() -> Value {
    json!({"type": "function", "name": "get_weather", "description": "Weather of a city", "strict": false,
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}})
}

fn call(name: &str, arguments: &Value) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

#[tokio::test]
async fn a_response_repeats_its_settings() {
    let script = Script::saying("Hello.");
    let server = server(script.clone()).await;
    let request = json!({
        "model": "scripted", "input": "hi", "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5,
        "prompt_cache_key": "k", "tools": null, "tool_choice": null, "reasoning": null, "text": null,
        "previous_response_id": null, "conversation": null, "include": null, "store": null, "truncation": "disabled",
    });
    let answer = create(&server, &request).await;
    assert!(
        answer["id"].as_str().unwrap().starts_with("resp_") && answer["object"] == "response",
        "{answer}"
    );
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["output"][0]["content"][0]["text"], "Hello.");
    assert_eq!(answer["output"][0]["content"][0]["annotations"], json!([]));
    assert_eq!(answer["output"][0]["role"], "assistant");
    assert_eq!((&answer["metadata"], &answer["temperature"]), (&json!({"a": "b"}), &json!(0.5)));
    assert_eq!(answer["text"]["format"], json!({"type": "text"}));
    assert_eq!((&answer["tools"], &answer["tool_choice"]), (&json!([]), &json!("auto")));
    assert_eq!(answer["usage"]["output_tokens"], 7, "{}", answer["usage"]);
    assert_eq!(answer["usage"]["input_tokens_details"]["cached_tokens"], 0);
    assert_eq!(prompt(&script), "<system:Be brief.><user:hi><assistant:Hello.");
}

#[tokio::test]
async fn a_stream_has_every_event_in_order() {
    let server = server(Script::saying("Hé🙂")).await;
    let events = streamed(&server, &json!({"input": "hi"})).await;
    assert_eq!(
        outline(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    assert_eq!(joined(&events, "response.output_text.delta"), "Hé🙂");
    assert!(events[0]["response"]["status"] == "in_progress" && events[0]["response"]["output"] == json!([]));
    let last = &events.last().unwrap()["response"];
    let item = &last["output"][0];
    assert!(last["status"] == "completed" && item["status"] == "completed");
    for event in events.iter().filter(|event| event.get("item_id").is_some()) {
        assert!(event["item_id"] == item["id"] && event["output_index"] == 0, "{event}");
    }
    let delta = events.iter().find(|event| event["type"] == "response.output_text.delta").unwrap();
    assert!(delta["content_index"] == 0 && delta["logprobs"] == json!([]), "{delta}");
}

#[tokio::test]
async fn the_token_limit_makes_a_response_incomplete() {
    let server = server(Script::saying("Hello.")).await;
    let request = json!({"input": "hi", "max_output_tokens": 3});
    let answer = create(&server, &request).await;
    assert_eq!((&answer["status"], &answer["completed_at"]), (&json!("incomplete"), &Value::Null));
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(answer["output"][0]["status"], "incomplete");
    let events = streamed(&server, &request).await;
    assert_eq!(outline(&events).last(), Some(&"response.incomplete"));
}

#[tokio::test]
async fn functions_are_called_and_their_outputs_come_back() {
    let said = call("get_weather", &json!({"city": "Paris"}));
    let script = Script::saying(&said);
    let server = server(script.clone()).await;
    let request = json!({"input": [{"role": "user", "content": "How warm is it?"}], "tools": [weather()]});
    let answer = create(&server, &request).await;
    let item = &answer["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("get_weather")));
    assert_eq!(item["arguments"], "{\"city\":\"Paris\"}");
    assert!(answer["output"].as_array().unwrap().len() == 1 && item.get("namespace").is_none(), "{answer}");
    let events = streamed(&server, &request).await;
    assert_eq!(
        outline(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    assert_eq!(joined(&events, "response.function_call_arguments.delta"), "{\"city\":\"Paris\"}");
    let done = events.iter().find(|event| event["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!(done["name"], "get_weather");
    // The whole history, with the nulls that clients send.
    let mut call = item.clone();
    for key in ["caller", "namespace", "async"] {
        call[key] = Value::Null;
    }
    let output = json!({"type": "function_call_output", "call_id": item["call_id"],
                        "output": [{"type": "input_text", "text": "20"}]});
    let history =
        json!([{"role": "user", "content": [{"type": "input_text", "text": "How warm?"}]}, call, output]);
    create(&server, &json!({"input": history, "tools": [weather()], "store": false})).await;
    let shown = prompt(&script);
    assert!(
        shown.contains("<user:How warm?><assistant:[get_weather {\"city\": \"Paris\"}]><tool:20><assistant:"),
        "{shown}"
    );
    // Only the output, and the response that has the call.
    let request = json!({"input": [output], "previous_response_id": answer["id"], "tools": [weather()]});
    create(&server, &request).await;
    assert!(prompt(&script).contains("<user:How warm is it?><assistant:[get_weather"), "{}", prompt(&script));
}

#[tokio::test]
async fn histories_without_a_pair_are_refused_by_name() {
    let server = server(Script::saying("x")).await;
    let call = json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"});
    let output = json!({"type": "function_call_output", "call_id": "c1", "output": "1"});
    for (input, param) in [
        (json!([call]), "input"),
        (json!([output]), "input[0].call_id"),
        (json!([call, output, output]), "input[2].call_id"),
        (json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id"),
        (json!([{"role": "robot", "content": "x"}]), "input[0].role"),
        (
            json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
            "input[0].content[0]",
        ),
        (json!([{"type": "unheard_of"}]), "input[0].type"),
        (json!([{"type": "item_reference", "id": "msg_1"}]), "input[0].id"),
        (json!([]), "input"),
    ] {
        let response = server.post(RESPONSES, &json!({"input": input})).await;
        let status = if param == "input[0].id" { 404 } else { 400 };
        assert_eq!(response.status(), status, "{input}");
        assert_eq!(body(response).await["error"]["param"], param, "{input}");
    }
    // A message between a call and its output, and outputs in another order.
    let other = json!({"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"});
    let second = json!({"type": "function_call_output", "call_id": "c2", "output": "2"});
    let user = json!({"role": "user", "content": "x"});
    create(&server, &json!({"input": [user, call, other, user, second, output]})).await;
}

#[tokio::test]
async fn tools_of_every_kind_are_offered() {
    let patch = "*** Begin \"Patch\"\n+é";
    let script = Script::saying(&call("apply", &json!({"input": patch})));
    let server = server(script.clone()).await;
    let tools = json!([
        {"type": "custom", "name": "apply", "description": "Patches.", "format": {"type": "text"}},
        {"type": "namespace", "name": "mcp", "description": "d", "tools": [weather(), {"type": "function", "name": "apply"}]},
        {"type": "web_search"}, {"type": "local_shell"},
    ]);
    let response = server.post(RESPONSES, &json!({"input": "x", "tools": tools})).await;
    assert_eq!(response.headers()["x-ignored-params"], "tools[2]");
    let answer = body(response).await;
    let item = &answer["output"][0];
    assert_eq!(
        (&item["type"], &item["name"], &item["input"]),
        (&json!("custom_tool_call"), &json!("apply"), &json!(patch))
    );
    let events = streamed(&server, &json!({"input": "x", "tools": tools})).await;
    assert_eq!(joined(&events, "response.custom_tool_call_input.delta"), patch);
    assert!(outline(&events).contains(&"response.custom_tool_call_input.done"));
    for name in ["\"get_weather\"", "\"mcp__apply\"", "\"local_shell\""] {
        assert!(prompt(&script).contains(name), "{name}: {}", prompt(&script));
    }
    let output = json!({"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "done"});
    create(&server, &json!({"input": [output], "previous_response_id": answer["id"], "tools": tools})).await;
    // A hosted tool cannot be required.
    let request = json!({"input": "x", "tools": tools, "tool_choice": {"type": "web_search_preview"}});
    let response = server.post(RESPONSES, &request).await;
    assert_eq!(
        (response.status().as_u16(), &body(response).await["error"]["param"]),
        (400, &json!("tool_choice"))
    );
}

#[tokio::test]
async fn functions_of_namespaces_keep_their_names() {
    let script = Script::saying(&call("b__f", &json!({})));
    let server = server(script.clone()).await;
    let function = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let space =
        |name: &str| json!({"type": "namespace", "name": name, "description": "", "tools": [function]});
    let tools = json!([space("a"), space("b")]);
    let answer = create(&server, &json!({"input": "x", "tools": tools})).await;
    let item = &answer["output"][0];
    assert_eq!((&item["name"], &item["namespace"]), (&json!("f"), &json!("b")));
    let output = json!({"type": "function_call_output", "call_id": item["call_id"], "output": "1"});
    create(&server, &json!({"input": [{"role": "user", "content": "x"}, item, output], "tools": tools}))
        .await;
    assert!(prompt(&script).contains("[b__f {}]"), "{}", prompt(&script));
}

#[tokio::test]
async fn shells_of_the_client_have_items_of_their_own() {
    let server = server(Script::saying(&call("local_shell", &json!({"command": ["ls", "-l"]})))).await;
    let request = json!({"input": "x", "tools": [{"type": "local_shell"}]});
    let answer = create(&server, &request).await;
    let item = &answer["output"][0];
    assert_eq!(item["type"], "local_shell_call");
    assert_eq!(item["action"], json!({"type": "exec", "command": ["ls", "-l"], "env": {}}));
    let output = json!({"type": "local_shell_call_output", "id": item["call_id"], "output": "total 0"});
    let history = json!([{"role": "user", "content": "x"}, item, output]);
    create(&server, &json!({"input": history, "tools": [{"type": "local_shell"}]})).await;
}

#[tokio::test]
async fn reasoning_is_shown_signed_and_read_back() {
    let script = Script { template: Some(REASONS), ..Script::saying("<think>A < b.</think>Yes.") };
    let server = server(script.clone()).await;
    let request = json!({"input": "x", "include": ["reasoning.encrypted_content"]});
    let events = streamed(&server, &request).await;
    assert_eq!(joined(&events, "response.reasoning_text.delta"), "A < b.");
    assert_eq!(joined(&events, "response.output_text.delta"), "Yes.");
    let output = events.last().unwrap()["response"]["output"].clone();
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "A < b."}]));
    let sealed = output[0]["encrypted_content"].as_str().unwrap();
    let user = json!({"role": "user", "content": "x"});
    let sent_back = json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed});
    let history = json!([user, sent_back, output[1], user]);
    create(&server, &json!({"input": history})).await;
    assert!(prompt(&script).contains("<think>A < b.</think>Yes."), "{}", prompt(&script));
    // Another key's blob says nothing, and is named.
    let response = server.post_as("another", RESPONSES, &json!({"input": history})).await;
    assert_eq!(response.headers()["x-ignored-params"], "input[1]");
    // As a summary.
    let request = json!({"input": "x", "reasoning": {"summary": "auto"}});
    let events = streamed(&server, &request).await;
    assert_eq!(joined(&events, "response.reasoning_summary_text.delta"), "A < b.");
    let item = &events.last().unwrap()["response"]["output"][0];
    assert_eq!(item["summary"], json!([{"type": "summary_text", "text": "A < b."}]));
}

#[tokio::test]
async fn formats_and_logprobs_are_honored() {
    let server = server(Script::saying("no JSON")).await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "x", "schema": schema, "strict": true});
    let answer = create(&server, &json!({"input": "x", "text": {"format": format}})).await;
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"a": 1}));
    let request = json!({"input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let answer = create(&server, &request).await;
    let logprobs = answer["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), (7, 2));
    for (request, param) in [
        (json!({"input": "x", "max_output_tokens": 0}), "max_output_tokens"),
        (
            json!({"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format.schema",
        ),
        (json!({"input": "x", "prompt": {"id": "p"}}), "prompt"),
        (json!({"input": "x", "n": 2}), "n"),
        (json!({"input": "x", "background": true, "store": false}), "background"),
        (json!({"input": "x", "metadata": {"k": "v".repeat(513)}}), "metadata"),
        (
            json!({"input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"}),
            "previous_response_id",
        ),
    ] {
        let response = server.post(RESPONSES, &request).await;
        assert_eq!(response.status(), 400, "{request}");
        assert_eq!(body(response).await["error"]["param"], param, "{request}");
    }
}

#[tokio::test]
async fn stored_responses_belong_to_their_key() {
    let script = Script::saying("Hello.");
    let server = server(script.clone()).await;
    let first = create(&server, &json!({"input": "one"})).await;
    let id = first["id"].as_str().unwrap();
    let second =
        create(&server, &json!({"input": "two", "previous_response_id": id, "instructions": "New."})).await;
    assert_eq!(prompt(&script), "<system:New.><user:one><assistant:Hello.><user:two><assistant:Hello.");
    let path = format!("{RESPONSES}/{id}");
    let get = async |key: &str, path: &str| {
        server.client.get(server.url(path)).bearer_auth(key).send().await.unwrap()
    };
    assert_eq!(body(get("anybody", &path).await).await, first);
    assert_eq!(get("another", &path).await.status(), 404);
    let stolen =
        server.post_as("another", RESPONSES, &json!({"input": "x", "previous_response_id": id})).await;
    assert_eq!(stolen.status(), 400);
    assert_eq!(body(stolen).await["error"]["code"], "previous_response_not_found");
    let items = body(get("anybody", &format!("{path}/input_items")).await).await;
    assert_eq!((&items["data"][0]["content"][0]["text"], &items["has_more"]), (&json!("one"), &json!(false)));
    // A reference to an item.
    let reference = json!({"type": "item_reference", "id": first["output"][0]["id"]});
    create(
        &server,
        &json!({"input": [{"role": "user", "content": "x"}, reference, {"role": "user", "content": "y"}]}),
    )
    .await;
    assert_eq!(prompt(&script), "<user:x><assistant:Hello.><user:y><assistant:Hello.");
    // Deleted, and what came before it with it.
    let deleted = server.client.delete(server.url(&path)).bearer_auth("anybody").send().await.unwrap();
    assert_eq!(body(deleted).await, json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!(get("anybody", &path).await.status(), 404);
    let request = json!({"input": "x", "previous_response_id": second["id"]});
    assert_eq!(server.post(RESPONSES, &request).await.status(), 400);
    // Not stored.
    let unstored = create(&server, &json!({"input": "x", "store": false})).await;
    assert_eq!(
        get("anybody", &format!("{RESPONSES}/{}", unstored["id"].as_str().unwrap())).await.status(),
        404
    );
}

#[tokio::test]
async fn the_events_of_a_stored_response_can_be_read_again() {
    let said = format!("<think>Hm.</think>Let me look.\n{}", call("get_weather", &json!({"city": "Paris"})));
    let template = "{# <think> </think> enable_thinking <tool_call> #}{{ tools }}{{ messages[0].content }}";
    let server = server(Script { template: Some(template), ..Script::saying(&said) }).await;
    let events = streamed(&server, &json!({"input": "x", "tools": [weather()]})).await;
    let id = events[0]["response"]["id"].as_str().unwrap();
    let again = async |after: &str| {
        let url = server.url(&format!("{RESPONSES}/{id}?stream=true{after}"));
        stream(server.client.get(url).bearer_auth("anybody").send().await.unwrap()).await
    };
    assert_eq!(again("").await, events);
    assert_eq!(again("&starting_after=4").await, events[5..]);
}

#[tokio::test]
async fn responses_in_the_background_outlive_their_clients() {
    let server = server(Script { step: Duration::from_millis(30), ..Script::saying("Hello there.") }).await;
    let queued = create(&server, &json!({"input": "x", "background": true})).await;
    assert_eq!((&queued["status"], &queued["background"]), (&json!("queued"), &json!(true)));
    let id = queued["id"].as_str().unwrap();
    let url = server.url(&format!("{RESPONSES}/{id}"));
    let get = async || body(server.client.get(&url).bearer_auth("anybody").send().await.unwrap()).await;
    let followed =
        server.client.get(format!("{url}?stream=true")).bearer_auth("anybody").send().await.unwrap();
    let events = stream(followed).await;
    assert_eq!(outline(&events)[..3], ["response.created", "response.queued", "response.in_progress"]);
    let answer = get().await;
    assert_eq!(answer["status"], "completed", "{answer}");
    assert_eq!(events.last().unwrap()["response"], answer);
    // Cancelled.
    let slow = json!({"input": "x", "background": true, "stream": true});
    let response = server.post(RESPONSES, &slow).await;
    drop(response);
    let queued = create(&server, &json!({"input": "x", "background": true})).await;
    let path = format!("{RESPONSES}/{}/cancel", queued["id"].as_str().unwrap());
    let cancelled = server.client.post(server.url(&path)).bearer_auth("anybody").send().await.unwrap();
    assert_eq!(body(cancelled).await["status"], "cancelled");
    let foreground = create(&server, &json!({"input": "x"})).await;
    let path = format!("{RESPONSES}/{}/cancel", foreground["id"].as_str().unwrap());
    assert_eq!(
        server.client.post(server.url(&path)).bearer_auth("anybody").send().await.unwrap().status(),
        400
    );
}

#[tokio::test]
async fn conversations_grow_with_their_responses() {
    let script = Script::saying("Hello.");
    let server = server(script.clone()).await;
    let items = json!([{"type": "message", "role": "user", "content": "one"}]);
    let conversation =
        body(server.post("/v1/conversations", &json!({"items": items, "metadata": {"a": "b"}})).await).await;
    let id = conversation["id"].as_str().unwrap();
    assert!(id.starts_with("conv_") && conversation["metadata"] == json!({"a": "b"}), "{conversation}");
    create(&server, &json!({"input": "two", "conversation": id})).await;
    create(&server, &json!({"input": "three", "conversation": {"id": id}, "store": false})).await;
    assert_eq!(prompt(&script), "<user:one><user:two><assistant:Hello.><user:three><assistant:Hello.");
    let path = format!("/v1/conversations/{id}");
    let get =
        async |path: &str| server.client.get(server.url(path)).bearer_auth("anybody").send().await.unwrap();
    let list = body(get(&format!("{path}/items?order=asc&limit=2")).await).await;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["has_more"]), (2, &json!(true)));
    let rest =
        body(get(&format!("{path}/items?order=asc&after={}", list["last_id"].as_str().unwrap())).await).await;
    assert_eq!(rest["data"].as_array().unwrap().len(), 3, "{rest}");
    let item_path = format!("{path}/items/{}", list["first_id"].as_str().unwrap());
    assert_eq!(body(get(&item_path).await).await["content"][0]["text"], "one");
    let deleted = server.client.delete(server.url(&item_path)).bearer_auth("anybody").send().await.unwrap();
    assert_eq!(body(deleted).await["object"], "conversation");
    let added =
        server.post(&format!("{path}/items"), &json!({"items": [{"role": "user", "content": "four"}]})).await;
    assert_eq!(body(added).await["data"][0]["status"], "completed");
    let updated = body(server.post(&path, &json!({"metadata": {"c": "d"}})).await).await;
    assert_eq!(updated["metadata"], json!({"c": "d"}));
    assert_eq!(
        server.client.get(server.url(&path)).bearer_auth("another").send().await.unwrap().status(),
        404
    );
    let deleted = server.client.delete(server.url(&path)).bearer_auth("anybody").send().await.unwrap();
    assert_eq!(body(deleted).await["object"], "conversation.deleted");
    assert_eq!(get(&path).await.status(), 404);
    let response = server.post(RESPONSES, &json!({"input": "x", "conversation": id})).await;
    assert_eq!(
        (response.status().as_u16(), &body(response).await["error"]["param"]),
        (404, &json!("conversation"))
    );
}

#[tokio::test]
async fn input_tokens_are_counted_as_they_are_used() {
    let server = server(Script::saying("Hello.")).await;
    let request = json!({"input": "hi", "instructions": "Be brief.", "tools": [weather()]});
    let counted = body(server.post("/v1/responses/input_tokens", &request).await).await;
    let answer = create(&server, &request).await;
    assert_eq!(
        counted,
        json!({"object": "response.input_tokens", "input_tokens": answer["usage"]["input_tokens"]})
    );
}

#[tokio::test]
async fn a_compacted_conversation_goes_on() {
    let script = Script::saying("The user counts.");
    let server = server(script.clone()).await;
    let history = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "three"},
        {"role": "user", "content": [{"type": "input_text", "text": "four"}]},
    ]);
    let response =
        server.post("/v1/responses/compact", &json!({"model": "scripted", "input": history})).await;
    assert_eq!(response.status(), 200);
    let compacted = body(response).await;
    assert_eq!(compacted["object"], "response.compaction");
    assert!(compacted["usage"]["output_tokens"].as_u64().unwrap() > 0);
    // The model saw everything.
    for seen in ["Be brief.", "one", "two", "three", "four", "Summarize our conversation"] {
        assert!(prompt(&script).contains(seen), "{}", prompt(&script));
    }
    let [first, last, summary] = compacted["output"].as_array().unwrap().as_slice() else {
        panic!("{compacted}")
    };
    for (message, text) in [(first, "one"), (last, "four")] {
        assert_eq!(message["content"], json!([{"type": "input_text", "text": text}]));
        assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("user")));
    }
    assert_eq!(summary["type"], "compaction");
    let input = json!([first, last, summary, {"role": "user", "content": "five"}]);
    create(&server, &json!({"input": input})).await;
    let shown = prompt(&script);
    assert!(shown.contains("one") && shown.contains("The user counts.") && shown.contains("five"), "{shown}");
    assert!(!shown.contains("three") && !shown.contains("Summarize our conversation"), "{shown}");
    // A stored conversation, and what cannot be compacted.
    let answer = create(&server, &json!({"input": "six"})).await;
    let request = json!({"previous_response_id": answer["id"], "input": null});
    let response = server.post("/v1/responses/compact", &request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(body(response).await["output"][0]["content"][0]["text"], "six");
    let response = server.post("/v1/responses/compact", &json!({"input": []})).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn an_empty_summary_is_an_error() {
    let server = server(Script::saying("")).await;
    let response = server.post("/v1/responses/compact", &json!({"input": "one"})).await;
    // Not a fault of the server: some conversations have nothing to summarize.
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains("empty summary"));
}
