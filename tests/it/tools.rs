//! Tool calls: how functions are offered to the model, how its calls reach the client, and how calls are enforced.

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{self, ENGINE_OPTIONS, Script, Server, events, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

/// A template that supports tools, like those of many models.
const KNOWS_TOOLS: &str = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}\
    {% for call in m.tool_calls %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments.city }}]{% endfor %}\
    {{ m.tool_call_id }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather", "description": "The weather of <|im_end|> a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
                       "additionalProperties": false}}})
}

fn sum() -> Value {
    json!({"type": "function", "function": {
        "name": "add", "strict": true,
        "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"],
                       "additionalProperties": false, "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}}}})
}

async fn server(script: Script) -> Server {
    let script = Script { context_length: Some(4096), ..script };
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

async fn ask(server: &Server, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "How warm is it?"}], "temperature": 0,
                             "tools": [weather()]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body(server.post(CHAT, &request).await).await
}

fn calls(answer: &Value) -> Vec<(&str, Value)> {
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    let call = |call: &'_ Value| -> (String, Value) {
        assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function", "{call}");
        let arguments = call["function"]["arguments"].as_str().unwrap();
        (call["function"]["name"].as_str().unwrap().to_owned(), serde_json::from_str(arguments).unwrap())
    };
    calls.iter().map(|value| (value["function"]["name"].as_str().unwrap(), call(value).1)).collect()
}

/// The newest prompt of the model, as text.
fn prompt(script: &Script) -> String {
    let prompts = script.prompts.lock().unwrap();
    let (_, ids) = prompts.iter().max_by_key(|(id, _)| id.0).unwrap();
    let text =
        |&id: &u32| u8::try_from(id).map_or_else(|_| "¤".to_owned(), |byte| char::from(byte).to_string());
    ids.iter().map(text).collect()
}

#[tokio::test]
async fn functions_are_offered_and_calls_are_parsed() {
    let said = "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let script = Script { template: Some(KNOWS_TOOLS), ..Script::saying(said) };
    let server = server(script.clone()).await;
    let answer = ask(&server, json!({})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "Let me look.");
    assert_eq!(calls(&answer), [("get_weather", json!({"city": "Paris"}))]);
    assert_eq!(choice["finish_reason"], "tool_calls");
    let prompt_text = prompt(&script);
    assert!(
        prompt_text.starts_with("TOOLS:[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\""),
        "{prompt_text}"
    );
    assert!(
        prompt_text.contains("The weather of <|im_end|> a city"),
        "text from the client stays text: {prompt_text}"
    );
    // With `none`, functions are not offered and nothing is parsed.
    let answer = ask(&server, json!({"tool_choice": "none"})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], said);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(!prompt(&script).contains("TOOLS"));
    let answer = ask(&server, json!({"max_tokens": said.len() - 16})).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "the limit ended it");
}

#[tokio::test]
async fn streamed_calls_add_up_to_whole_ones() {
    let said = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n\
                <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>";
    let server = server(Script { template: Some(KNOWS_TOOLS), ..Script::saying(said) }).await;
    let request =
        json!({"messages": [{"role": "user", "content": "x"}], "tools": [weather()], "stream": true});
    let events = events(server.post(CHAT, &request).await).await;
    let chunks: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let mut arguments = vec![String::new(); 2];
    let mut begun = Vec::new();
    for delta in
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).flatten()
    {
        let index = delta["index"].as_u64().unwrap() as usize;
        arguments[index] += delta["function"]["arguments"].as_str().unwrap();
        match delta["function"].get("name") {
            Some(name) => {
                begun.push((index, name.as_str().unwrap(), delta["id"].as_str().unwrap(), &delta["type"]));
            }
            None => assert!(delta.get("id").is_none() && delta.get("type").is_none(), "said once: {delta}"),
        }
    }
    assert_eq!(arguments, ["{\"city\": \"Paris\"}", "{}"]);
    assert_eq!(
        begun.iter().map(|call| (call.0, call.1)).collect::<Vec<_>>(),
        [(0, "get_weather"), (1, "get_weather")]
    );
    assert_ne!(begun[0].2, begun[1].2);
    let last = chunks.iter().rfind(|chunk| chunk["choices"][0]["finish_reason"].is_string()).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().is_empty())
    );
}

#[tokio::test]
async fn a_loop_of_equal_calls_ends() {
    let call = |city: &str| {
        format!(
            "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {{\"city\": \"{city}\"}}}}\n</tool_call>"
        )
    };
    let said = [call("Paris"), call("Rome"), call("Paris"), call("Rome"), call("Paris")].join("\n");
    // Slow enough for the end to come before the whole text.
    let step = std::time::Duration::from_millis(1);
    let script = Script { template: Some(KNOWS_TOOLS), step, ..Script::saying(&said) };
    let server = server(script).await;
    let answer = ask(&server, json!({"tool_choice": "required"})).await;
    let expected = [("get_weather", json!({"city": "Paris"})), ("get_weather", json!({"city": "Rome"}))];
    assert_eq!(calls(&answer), expected);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let n_tokens = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert!(n_tokens < said.len() - 20, "{n_tokens} of {}", said.len());
    // Elsewhere the model may repeat itself.
    assert_eq!(calls(&ask(&server, json!({"tool_choice": "auto"})).await).len(), 5);
    let warm = json!({"tool_choice": "required", "temperature": 0.01});
    assert_eq!(calls(&ask(&server, warm).await).len(), 5);
}

#[tokio::test]
async fn the_first_delta_is_null_where_a_call_may_follow() {
    let server = server(Script { template: Some(KNOWS_TOOLS), ..Script::saying("x") }).await;
    for (fields, content) in [
        (json!({"tools": [weather()]}), Some(Value::Null)),
        (json!({"tools": [weather()], "tool_choice": "required", "max_tokens": 5}), Some(Value::Null)),
        (json!({"tools": [weather()], "tool_choice": "none"}), Some(json!(""))),
        (json!({"tools": []}), Some(json!(""))),
    ] {
        let mut request = json!({"messages": [{"role": "user", "content": "x"}], "stream": true});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let events = events(server.post(CHAT, &request).await).await;
        let first: Value = serde_json::from_str(&events[0]).unwrap();
        let delta = &first["choices"][0]["delta"];
        assert_eq!(
            (&delta["role"], delta.get("content").cloned()),
            (&json!("assistant"), content),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn required_functions_are_called() {
    let server = server(Script { template: Some(KNOWS_TOOLS), ..Script::saying("I'd rather not.") }).await;
    let both = json!([weather(), sum()]);
    let of = async |fields: Value| {
        let mut all = json!({"tools": both, "max_tokens": 300});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        ask(&server, all).await
    };
    let answer = of(json!({"tool_choice": "required", "parallel_tool_calls": false})).await;
    assert_eq!(calls(&answer).len(), 1, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let name = |name: &str| json!({"type": "function", "function": {"name": name}});
    let answer = of(json!({"tool_choice": name("add")})).await;
    let [("add", arguments)] = &calls(&answer)[..] else { panic!("{answer}") };
    assert!((1..=9).contains(&arguments["a"].as_i64().unwrap()), "{answer}");
    let answer = of(json!({"tool_choice": name("get_weather")})).await;
    let [("get_weather", arguments)] = &calls(&answer)[..] else { panic!("{answer}") };
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{answer}");
    let allowed =
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [name("add")]}});
    assert_eq!(calls(&of(json!({"tool_choice": allowed})).await)[0].0, "add");
    // If a text is allowed, it may come instead, even where arguments are constrained by a schema.
    let answer = of(json!({})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "I'd rather not.");
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}});
    let answer = of(json!({"response_format": format})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "\"yes\"");
    let answer = of(json!({"guided_regex": "1\\/2"})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "1/2");
    let answer = of(json!({"guided_choice": ["1 \"call\""]})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "1 \"call\"");
}

#[tokio::test]
async fn strict_arguments_match_their_schema() {
    let said = "Well: <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 77}}\n</tool_call>";
    let server = server(Script { template: Some(KNOWS_TOOLS), ..Script::saying(said) }).await;
    let answer = ask(&server, json!({"tools": [sum()]})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Well:");
    let [("add", arguments)] = &calls(&answer)[..] else { panic!("{answer}") };
    assert_eq!(arguments["a"], 7, "{answer}");
    // Without the mark it is text, which is not constrained.
    let bare = "{\"name\": \"add\", \"arguments\": {\"a\": 77}}";
    let unmarked = self::server(Script { template: Some(KNOWS_TOOLS), ..Script::saying(bare) }).await;
    let answer = ask(&unmarked, json!({"tools": [sum()]})).await;
    assert_eq!((answer["choices"][0]["message"]["content"].as_str(), calls(&answer).len()), (Some(bare), 0));
    let mut loose = sum();
    loose["function"]["strict"] = json!(false);
    let answer = ask(&server, json!({"tools": [loose]})).await;
    assert_eq!(calls(&answer), [("add", json!({"a": 77}))]);
}

#[tokio::test]
async fn special_tokens_can_mark_calls() {
    let mistral = "[TOOL_CALLS]{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{{ tool_calls }}";
    let mark = support::N_VOCAB as u32;
    let mut script = Script::saying("[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]");
    script.answer.insert(0, mark);
    script = Script { special: vec!["[TOOL_CALLS]"], template: Some(mistral), ..script };
    let server = server(script).await;
    let answer = ask(&server, json!({})).await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}));
    let id = call["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    let mut strict = weather();
    strict["function"]["strict"] = json!(true);
    for fields in [json!({"tool_choice": "required"}), json!({"tools": [strict]})] {
        let answer = ask(&server, fields).await;
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        assert_eq!(call["arguments"], "{\"city\": \"Rome\"}", "{answer}");
    }
}

#[tokio::test]
async fn models_without_tool_support_get_instructions() {
    let said = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    let script = Script::saying(said);
    let server = server(script.clone()).await;
    assert_eq!(calls(&ask(&server, json!({})).await), [("get_weather", json!({"city": "Rome"}))]);
    let prompt_text = prompt(&script);
    assert!(prompt_text.starts_with("¤user:You can call functions."), "{prompt_text}");
    assert!(
        prompt_text.contains("<tool_call>\n{\"name\": ") && prompt_text.contains("\n\nHow warm is it?¤"),
        "{prompt_text}"
    );
    let messages = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]);
    ask(&server, json!({"messages": messages})).await;
    assert!(
        prompt(&script).starts_with("¤system:Be kind.\n\nYou can call functions."),
        "{}",
        prompt(&script)
    );
}

#[tokio::test]
async fn calls_and_results_go_back_to_the_model() {
    let history = |id: &str| {
        json!([
            {"role": "user", "content": "How warm is it?"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": id, "type": "function", "function":
                {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
            {"role": "tool", "tool_call_id": id, "content": "21 degrees"},
        ])
    };
    let script = Script { template: Some(KNOWS_TOOLS), ..Script::saying("21") };
    let server_with = server(script.clone()).await;
    let answer = ask(&server_with, json!({"messages": history("call_1")})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "21");
    let prompt_text = prompt(&script);
    assert!(
        prompt_text.contains("assistant:[call_1 get_weather Rome]")
            && prompt_text.contains("tool:21 degreescall_1"),
        "{prompt_text}"
    );
    let plain = Script::saying("21");
    let server_without = server(plain.clone()).await;
    ask(&server_without, json!({"messages": history("call_1"), "tools": []})).await;
    let prompt_text = prompt(&plain);
    assert!(prompt_text.contains("<tool_call>\n{\"name\":\"get_weather\""), "{prompt_text}");
    assert!(prompt_text.contains("¤user:<tool_response>\n21 degrees\n</tool_response>"), "{prompt_text}");
    for (messages, param) in [
        (json!([{"role": "tool", "tool_call_id": "x", "content": "1"}]), "messages[0].tool_call_id"),
        (json!([history("a")[0], history("a")[1], history("a")[0]]), "messages[1].tool_calls"),
        (
            json!([history("a")[0], {"role": "assistant", "tool_calls": [{"id": "a"}]}]),
            "messages[1].tool_calls[0].type",
        ),
    ] {
        let answer = ask(&server_with, json!({"messages": messages})).await;
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
}

#[tokio::test]
async fn calls_that_a_limit_has_cut_go_back_as_text() {
    let history = json!([
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function":
            {"name": "get_weather", "arguments": "{\"city\": \"Ro"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the call is incomplete"},
    ]);
    let shows_text = "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls %}[{{ call.function.name }} \
                      {{ call.function.arguments }}]{% endfor %}{% endfor %}";
    // Fails at arguments that are text.
    let lists = "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls %}[{% for key, value in \
                 call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}]{% endfor %}{% endfor %}";
    for (template, shown) in [
        (Some(shows_text), "[get_weather {\"city\": \"Ro]"),
        (Some(lists), "[raw={\"city\": \"Ro]"),
        (
            None,
            "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":\"{\\\"city\\\": \\\"Ro\"}\n</tool_call>",
        ),
    ] {
        let script = Script { template, ..Script::saying("Well.") };
        let server = server(script.clone()).await;
        let answer = ask(&server, json!({"messages": history, "tools": []})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "Well.", "{answer}");
        assert!(prompt(&script).contains(shown), "{}", prompt(&script));
    }
}

#[tokio::test]
async fn tokens_of_a_conversation_include_those_of_its_tools() {
    let server = server(Script { template: Some(KNOWS_TOOLS), ..Script::saying("x") }).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let n_prompt =
        ask(&server, json!({"messages": messages, "max_tokens": 1})).await["usage"]["prompt_tokens"].clone();
    let request =
        json!({"messages": messages, "tools": [weather()], "chat_template_kwargs": {"mood": "good"}});
    let response = server.post("/tokenize", &request).await;
    assert_eq!(response.headers()["x-ignored-params"], "chat_template_kwargs");
    assert_eq!(body(response).await["count"], n_prompt);
    let bare = body(server.post("/tokenize", &json!({ "messages": messages })).await).await;
    assert!(bare["count"].as_u64() < n_prompt.as_u64());
    let text = json!({"prompt": "x", "tools": [weather()]});
    assert_eq!(server.post("/tokenize", &text).await.headers()["x-ignored-params"], "tools");
    let wrong = json!({"messages": messages, "tools": [weather(), weather()]});
    assert_eq!(
        body(server.post("/tokenize", &wrong).await).await["error"]["param"],
        "tools[1].function.name"
    );
}

#[tokio::test]
async fn invalid_tools_are_refused_by_name() {
    let server = server(Script::saying("x")).await;
    let parameters = |schema: Value| json!([{"type": "function", "function": {"name": "f", "strict": true, "parameters": schema}}]);
    for (fields, param) in [
        (json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        (json!({"tools": [weather(), weather()]}), "tools[1].function.name"),
        (json!({"tools": vec![weather(); 129]}), "tools"),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "fly"}}}), "tool_choice"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tools": parameters(json!({"not": {}}))}), "tools"),
        (json!({"grammar": "start: \"a\""}), "grammar"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
    ] {
        let answer = ask(&server, fields.clone()).await;
        assert_eq!(answer["error"]["param"], param, "{fields}: {answer}");
    }
}

/// For each format of calls: texts that occur in the templates of its family, the opening mark, a call of
/// `get_weather`, and the text that separates it from the next.
const FORMATS: &[(&str, &str, &str, &str)] = &[
    (
        "<tool_call>",
        "",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        "\n",
    ),
    ("[TOOL_CALLS]", "[TOOL_CALLS][", JSON_CALL, ", "),
    ("[TOOL_CALLS] [ARGS]", "[TOOL_CALLS]", "get_weather[ARGS]{\"city\": \"Rome\"}", "[TOOL_CALLS]"),
    ("<|tool_call|> <|/tool_call|>", "<|tool_call|>[", JSON_CALL, ", "),
    ("<|tool_call|>", "<|tool_call|>[", JSON_CALL, ", "),
    ("ipython \"parameters\"", "", "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}", "; "),
    (
        "<tool_call> <function= <parameter=",
        "",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "\n",
    ),
    (
        "<tool_call> <arg_key>",
        "",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
        "\n",
    ),
    (
        "<minimax:tool_call>",
        "<minimax:tool_call>\n",
        "<invoke name=\"get_weather\">\n<parameter name=\"city\">Rome</parameter>\n</invoke>\n",
        "",
    ),
    (
        "｜DSML｜ function_calls",
        "<｜DSML｜function_calls>\n",
        "<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Rome</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n",
        "",
    ),
    (
        "<｜tool▁sep｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rome\"}<｜tool▁call▁end｜>",
        "",
    ),
    (
        "<|tool_call_argument_begin|>",
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Rome\"}<|tool_call_end|>",
        "",
    ),
    ("<|tool_call_start|>", "<|tool_call_start|>[", "get_weather(city=\"Rome\")", ", "),
    ("func_name1(", "[", "get_weather(city=\"Rome\")", ", "),
    ("<|tool_call> <tool_call|>", "", "<|tool_call>call:get_weather{city:<|\"|>Rome<|\"|>}<tool_call|>", ""),
    ("<TOOLCALL>", "<TOOLCALL>[", JSON_CALL, ", "),
    ("<function= </function>", "<function=", "get_weather>{\"city\": \"Rome\"}</function>", "<function="),
    (">>>all", "", "get_weather\n{\"city\": \"Rome\"}", ">>>"),
];

const JSON_CALL: &str = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}";

/// A template of the family that `markers` identify.
fn template_of(markers: &str) -> &'static str {
    let messages = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{{ tool_calls }}";
    Box::leak(format!("{markers}{messages}").into_boxed_str())
}

#[tokio::test]
async fn required_calls_end_where_the_model_ends_them() {
    for &(markers, open, call, separator) in FORMATS {
        for (said, n_calls) in [
            (format!("{open}{call}"), 1),
            (format!("{open}{call}{separator}"), 1),
            // Another call: an equal one would end the response.
            (format!("{open}{call}{separator}{}", call.replace("Rome", "Paris")), 2),
        ] {
            let server =
                server(Script { template: Some(template_of(markers)), ..Script::saying(&said) }).await;
            let answer = ask(&server, json!({"tool_choice": "required", "max_tokens": 400})).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{markers}: {answer}");
            assert_eq!(choice["message"]["content"], Value::Null, "{markers}: {answer}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), n_calls, "{markers}: {said}: {answer}");
            assert_eq!(answer["usage"]["completion_tokens"], said.len() + 1, "{markers}: {said}");
        }
    }
}

/// The input of a custom tool matches its grammar however the model's family writes calls: as JSON, where quotes and
/// line breaks are escaped, or as it is.
#[tokio::test]
async fn inputs_of_custom_tools_match_their_grammar() {
    const RULES: &str = "start: \"say \\\"\" WORD \"\\\"\\n\"\nWORD: /[xy]{1,3}/";
    let format = json!({"type": "grammar", "syntax": "lark", "definition": RULES});
    let tool = json!({"type": "custom", "name": "get_weather", "format": format});
    for &(markers, open, call, _) in FORMATS {
        let said = format!("{open}{call}").replace("city", "input");
        let server = server(Script { template: Some(template_of(markers)), ..Script::saying(&said) }).await;
        let request =
            json!({"input": "hi", "tools": [tool], "tool_choice": "required", "max_output_tokens": 400});
        let response = server.post("/v1/responses", &request).await;
        assert_eq!(response.headers().get("x-ignored-params"), None);
        let answer = body(response).await;
        let item = &answer["output"][0];
        assert_eq!(item["type"], "custom_tool_call", "{markers}: {answer}");
        let input = item["input"].as_str().unwrap();
        let word = input.strip_prefix("say \"").and_then(|rest| rest.strip_suffix("\"\n"));
        let is_word = |word: &str| (1..=3).contains(&word.len()) && word.chars().all(|c| "xy".contains(c));
        assert!(word.is_some_and(is_word), "{markers}: {input:?}");
    }
    // What no grammar can express in JSON is an error that says so.
    let server = server(Script::saying("x")).await;
    for rules in ["start: /^a/", "start: b"] {
        let format = json!({"type": "grammar", "syntax": "lark", "definition": rules});
        let tool = json!({"type": "custom", "name": "f", "format": format});
        let response = server.post("/v1/responses", &json!({"input": "hi", "tools": [tool]})).await;
        assert_eq!(response.status(), 400, "{rules}");
        assert_eq!(body(response).await["error"]["param"], "tools", "{rules}");
    }
}

#[tokio::test]
async fn a_call_that_the_token_limit_cuts_is_never_text() {
    for &(markers, open, call, _) in FORMATS {
        let call = format!("{open}{call}");
        let server = server(Script { template: Some(template_of(markers)), ..Script::saying(&call) }).await;
        for choice in ["auto", "required"] {
            for max_tokens in (1..call.len()).step_by(7) {
                let fields = json!({"tool_choice": choice, "max_tokens": max_tokens});
                let answer = ask(&server, fields.clone()).await;
                let whole = &answer["choices"][0];
                let cut = &call[..call.floor_char_boundary(max_tokens)];
                assert_eq!(whole["finish_reason"], "length", "{cut}: {answer}");
                let message = &whole["message"];
                assert!(message["content"].as_str().is_none_or(str::is_empty), "{cut}: {answer}");
                let mut request = json!({"messages": [{"role": "user", "content": "How warm is it?"}],
                    "temperature": 0, "tools": [weather()], "stream": true});
                request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
                let (content, streamed, finish) = collected(&server, &request).await;
                let call = message["tool_calls"].as_array().map(|calls| &calls[0]["function"]);
                let call = call.map(|function| {
                    let text = |field: &str| function[field].as_str().unwrap().to_owned();
                    (text("name"), text("arguments"))
                });
                assert_eq!((content.as_str(), streamed, finish.as_str()), ("", call, "length"), "{cut}");
            }
        }
    }
}

/// The text, the first call and the end of a streamed response.
async fn collected(server: &Server, request: &Value) -> (String, Option<(String, String)>, String) {
    let (mut content, mut call, mut finish) = (String::new(), None, String::new());
    for event in events(server.post(CHAT, request).await).await {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else { continue };
        let choice = &chunk["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        finish += choice["finish_reason"].as_str().unwrap_or_default();
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &delta["function"];
            let (_, arguments) =
                call.get_or_insert_with(|| (function["name"].as_str().unwrap().to_owned(), String::new()));
            *arguments += function["arguments"].as_str().unwrap();
        }
    }
    (content, call, finish)
}
