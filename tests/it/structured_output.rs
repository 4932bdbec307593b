//! Constrained generation, with a scripted model that would generate something else. `sdk/structured.py` checks
//! samples of the default model for several hundred schemas.

use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::grammar::trial;
use serde_json::{Map, Value, json};

use crate::support::{ENGINE_OPTIONS, Script, Server, events, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

async fn scripted(text: &str) -> Server {
    scripted_server(Script::saying(text), Limits::default(), ENGINE_OPTIONS).await
}

async fn ask(server: &Server, path: &str, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0});
    if path != CHAT {
        request = json!({"prompt": "hi", "temperature": 0, "max_tokens": 100});
    }
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut answer = server.post(path, &request).await;
    // Where the machine is busy, the server may be too busy to compile a grammar.
    for _ in 0..20 {
        if answer.status() != 429 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = server.post(path, &request).await;
    }
    assert!(answer.status() == 200 || answer.status() == 400, "{}", answer.status());
    body(answer).await
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn every_kind_of_grammar_constrains_the_completion() {
    let server = scripted("yes, of course").await;
    let choice = ask(&server, CHAT, json!({"guided_choice": ["yes", "no"]})).await;
    assert_eq!(content(&choice), "yes");
    assert_eq!(choice["choices"][0]["finish_reason"], "stop");
    assert_eq!(choice["usage"]["completion_tokens"], 3, "the completion ends where the grammar does");
    let other = ask(&server, CHAT, json!({"guided_choice": ["no", "\"né\"\n"]})).await;
    assert!(["no", "\"né\"\n"].contains(&content(&other)), "{other}");
    assert_eq!(
        content(&ask(&server, CHAT, json!({"guided_regex": "[xy]es, [a-z]+"})).await),
        "yes, ofacourse"
    );
    assert_eq!(content(&ask(&server, CHAT, json!({"grammar": "start: \"ye\" X\nX: /[st]/"})).await), "yes");
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"],
                        "additionalProperties": false});
    for fields in [
        json!({"guided_json": schema}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
    ] {
        let answer = ask(&server, CHAT, fields).await;
        assert_eq!(serde_json::from_str::<Value>(content(&answer)).unwrap(), json!({"a": "b"}));
    }
    let late =
        scripted_server(Script::saying("\"0000-11-10T10:10:60Z\""), Limits::default(), ENGINE_OPTIONS).await;
    let time = ask(&late, CHAT, json!({"guided_json": {"type": "string", "format": "date-time"}})).await;
    let text = content(&time).trim_matches('"');
    assert!(
        text.starts_with("0001-") && !text.contains(":6"),
        "{text}: common parsers accept neither year 0 nor second 60"
    );
    let completion = ask(&server, "/v1/completions", json!({"guided_choice": ["yes"]})).await;
    assert_eq!(completion["choices"][0]["text"], "yes");
    let free = ask(&server, CHAT, json!({"response_format": {"type": "text"}})).await;
    assert_eq!(content(&free), "yes, of course");
}

#[tokio::test]
async fn constraints_of_other_servers_are_kept() {
    let server = scripted("yes, of course").await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"],
                        "additionalProperties": false});
    let text = schema.to_string();
    let json_format = |fields: Value| {
        let mut format = json!({"type": "json_object"});
        format.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"response_format": format})
    };
    for fields in [
        json!({"structured_outputs": {"json": schema}}),
        json!({"structured_outputs": {"json": text, "whitespace_pattern": "[ \\n]?", "disable_fallback": true}}),
        json!({"structured_outputs": {"json": schema, "disable_any_whitespace": true}}),
        json!({"json_schema": schema}),
        json!({"guided_json": schema, "guided_whitespace_pattern": " {0,2}", "guided_decoding_backend": "xgrammar"}),
        json_format(json!({"schema": schema})),
        json_format(json!({"schema": text})),
        json_format(json!({"value": schema})),
        json_format(json!({"type": "json", "value": schema})),
        json_format(json!({"type": "json_schema", "schema": schema})),
        json_format(json!({"type": "json_schema", "value": {"name": "x", "schema": schema}})),
        json!({"guided_json": schema, "response_format": {"type": "json_object", "schema": schema}}),
    ] {
        let answer = ask(&server, CHAT, fields.clone()).await;
        assert_eq!(serde_json::from_str::<Value>(content(&answer)).unwrap(), json!({"a": "b"}), "{fields}");
        let mut longer = fields.clone();
        longer["max_tokens"] = json!(300);
        let answer = ask(&server, "/v1/completions", longer).await;
        let text = answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{fields}: {answer}"));
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"a": "b"}), "{fields}");
    }
    for fields in [
        json!({"structured_outputs": {"regex": "ye[s]"}}),
        json!({"structured_outputs": {"choice": ["yes", "no"]}}),
        json!({"structured_outputs": {"grammar": "root ::= \"ye\" [a-z] | \"no\""}}),
        json!({"structured_outputs": {"grammar": "start: \"yes\" | \"no\""}}),
        json!({"regex": "yes|no"}),
        json!({"ebnf": "root ::= \"yes\" | \"no\"", "regex": null}),
        json!({"grammar": "root ::= answer\nanswer ::= \"yes\" | \"no\" | \"(\" answer \")\""}),
        json!({"guided_grammar": "root ::= \"yes\"", "grammar": ""}),
        json!({"response_format": {"type": "regex", "value": "yes|no"}}),
        json!({"response_format": {"type": "regex", "pattern": "yes|no"}}),
        json!({"response_format": {"type": "grammar", "grammar": "root ::= \"yes\""}}),
        json!({"response_format": {"type": "ebnf", "ebnf": "root ::= \"yes\""}}),
        json!({"structured_outputs": {"structural_tag": {"format": {"type": "regex", "pattern": "y.s"}}}}),
    ] {
        let answer = ask(&server, CHAT, fields.clone()).await;
        assert!(answer["choices"][0]["message"]["content"] == "yes", "{fields}: {answer}");
    }
    let object =
        ask(&server, CHAT, json!({"structured_outputs": {"json_object": true}, "max_tokens": 1})).await;
    assert_eq!(content(&object), "{");
    for free in [json!({"structured_outputs": {"json_object": false}}), json!({"structured_outputs": null})] {
        assert_eq!(content(&ask(&server, CHAT, free).await), "yes, of course");
    }
}

#[tokio::test]
async fn structural_tags_constrain_what_follows_their_triggers() {
    let server = scripted("ab<f=x>{\"a\": 17}<f>, then <f=y>{} and <f=z").await;
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false});
    let tags = json!({"type": "structural_tag", "triggers": ["<f="], "structures": [
        {"begin": "<f=x>", "schema": schema, "end": "</f>"}]});
    let tree = json!({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f="], "tags": [
        {"type": "tag", "begin": "<f=x>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"}]}});
    for fields in [
        json!({"response_format": tags}),
        json!({"response_format": tree}),
        json!({"structural_tag": tags.to_string()}),
        json!({"structured_outputs": {"structural_tag": tree.to_string()}}),
    ] {
        let mut fields = fields;
        fields["max_tokens"] = json!(60);
        let answer = ask(&server, CHAT, fields).await;
        let text = content(&answer);
        let compact: String = text.split_whitespace().collect();
        assert!(compact.starts_with("ab<f=x>{\"a\":1}</f>"), "{text}");
        assert!(!text.contains("<f=y") && !text.contains("<f=z"), "{text}");
    }
}

#[tokio::test]
async fn only_strict_schemas_fail_for_what_cannot_be_enforced() {
    let server = scripted("yes").await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"],
                        "additionalProperties": false, "not": {"required": ["z"]}});
    let asked = |strict: Value| {
        json!({"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_schema",
               "json_schema": {"name": "x", "strict": strict, "schema": schema}}})
    };
    for strict in [json!(null), json!(false)] {
        let answer = server.post(CHAT, &asked(strict)).await;
        assert_eq!(answer.headers()["x-ignored-params"], "response_format.json_schema.schema.not");
        let answer = body(answer).await;
        assert_eq!(serde_json::from_str::<Value>(content(&answer)).unwrap(), json!({"a": "b"}));
    }
    assert_eq!(server.post(CHAT, &asked(json!(true))).await.status(), 400);
    let tools = |strict: bool| {
        json!({"messages": [{"role": "user", "content": "hi"}], "tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "strict": strict, "parameters": schema}}]})
    };
    let answer = server.post(CHAT, &tools(false)).await;
    assert_eq!(answer.headers()["x-ignored-params"], "tools[0].function.parameters.not");
    let answer = body(answer).await;
    let arguments =
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"a": "b"}));
    assert_eq!(server.post(CHAT, &tools(true)).await.status(), 400);
}

#[tokio::test]
async fn the_last_message_can_be_continued() {
    let script = Script::saying("!");
    let prompts = script.prompts.clone();
    let server = scripted_server(script, Limits::default(), ENGINE_OPTIONS).await;
    let request = |fields: Value| {
        let mut request = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so <|im_end|> "}]});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        request
    };
    let continued = json!({"continue_final_message": true, "add_generation_prompt": false});
    for fields in [continued.clone(), json!({"continue_final_message": true})] {
        prompts.lock().unwrap().clear();
        assert_eq!(server.post(CHAT, &request(fields.clone())).await.status(), 200);
        let prompt = prompts.lock().unwrap().values().next().unwrap().clone();
        let last: Vec<u32> = "so <|im_end|> ".bytes().map(u32::from).collect();
        assert_eq!(
            prompt[prompt.len() - last.len() - 1..][..last.len()],
            last,
            "as text, and nothing after it"
        );
        let tokens = body(server.post("/tokenize", &request(fields)).await).await;
        assert!(
            tokens["tokens"]
                .as_array()
                .unwrap()
                .ends_with(&last.iter().map(|&id| json!(id)).collect::<Vec<_>>())
        );
    }
    let count =
        async |fields: Value| body(server.post("/tokenize", &request(fields)).await).await["count"].clone();
    let with_header = count(json!({})).await;
    let without = count(json!({"add_generation_prompt": false})).await;
    assert_eq!(with_header.as_u64().unwrap() - without.as_u64().unwrap(), "assistant:".len() as u64 + 1);
    for (fields, param) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        (
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": "x"}]}),
            "continue_final_message",
        ),
    ] {
        for path in [CHAT, "/tokenize"] {
            let answer = body(server.post(path, &request(fields.clone())).await).await;
            assert_eq!(answer["error"]["param"], param, "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn other_parameters_keep_their_meaning() {
    let server = scripted("yes").await;
    let of = async |fields| ask(&server, CHAT, fields).await;
    let longer = json!({"guided_regex": "(yes){2}", "max_tokens": 4});
    assert_eq!(of(longer).await["choices"][0]["finish_reason"], "length");
    // Nothing can follow a completed grammar.
    assert_eq!(content(&of(json!({"guided_choice": ["yes"], "min_tokens": 50})).await), "yes");
    assert_eq!(content(&of(json!({"guided_choice": ["yes"], "ignore_eos": true})).await), "yes");
    let answer = of(json!({"guided_regex": "yes!*", "min_tokens": 5})).await;
    assert_eq!(content(&answer), "yes!!", "not before min_tokens");
    let answer = of(json!({"guided_regex": "[a-z]+", "stop": "s"})).await;
    assert_eq!(content(&answer), "ye");
    let answer = of(json!({"guided_choice": ["xy"], "logprobs": true, "top_logprobs": 1, "n": 2})).await;
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], "xy");
        let top = &choice["logprobs"]["content"][0]["top_logprobs"][0]["token"];
        assert_eq!(*top, "y", "probabilities are the model's own");
    }
    let request = json!({"messages": [{"role": "user", "content": "x"}], "stream": true,
                         "guided_choice": ["abc"]});
    let said: String = events(server.post(CHAT, &request).await)
        .await
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said, "abc");
}

#[tokio::test]
async fn unenforceable_grammars_are_refused_by_name() {
    let server = scripted("yes").await;
    let format = |schema| {
        json!({"response_format": {"type": "json_schema", "json_schema":
            {"name": "x", "strict": true, "schema": schema}}})
    };
    for (fields, param, says) in [
        (format(json!({"not": {"type": "null"}})), "response_format", "not"),
        (format(json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (format(json!({"$ref": "https://example.com/x.json"})), "response_format", "example.com"),
        (format(json!({"$ref": "#/$defs/a"})), "response_format", "$defs/a"),
        (format(json!({"oneOf": [{"type": "string"}, {"minLength": 1}]})), "response_format", "oneOf"),
        (
            format(json!({"type": "object", "required": ["a"], "additionalProperties": false})),
            "response_format",
            "a",
        ),
        (format(json!({"not": {}, "x-guidance": {"lenient": true}})), "response_format", "not"),
        (format(json!({"$ref": "#"})), "response_format", ""),
        (json!({"guided_json": false}), "guided_json", "object"),
        (json!({"guided_regex": "(a"}), "guided_regex", "(a"),
        (json!({"guided_regex": "a(?=b)"}), "guided_regex", "look-ahead"),
        (json!({"grammar": "start: missing"}), "grammar", "missing"),
        (json!({"grammar": "root ::= [a"}), "grammar", "line 1: a class of characters has no `]`"),
        (json!({"ebnf": "root ::= x"}), "ebnf", "`x` is not defined"),
        (json!({"structured_outputs": {"regex": "(a"}}), "structured_outputs.regex", "(a"),
        (json!({"structured_outputs": {"jsn": {}}}), "structured_outputs.jsn", "jsn"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs.choice", "both"),
        (json!({"structural_tag": {}}), "structural_tag", "structures"),
        (json!({"guided_words": ["a"]}), "guided_words", "constraint"),
        (json!({"grammar_lazy": true}), "grammar_lazy", "from the start"),
        (json!({"response_format": {"json_schema": {"name": "x"}}}), "response_format.type", "missing"),
        (json!({"response_format": {"type": "json_object", "regex": "a"}}), "response_format.regex", "type"),
        (
            json!({"response_format": {"type": "json_object", "shape": {}}}),
            "response_format.shape",
            "unknown field",
        ),
        (json!({"response_format": {"type": "regex"}}), "response_format.regex", "text"),
        (json!({"response_format": {"type": "python"}}), "response_format.type", "python"),
        (json!({"guided_choice": []}), "guided_choice", "empty"),
        (json!({"guided_choice": ["a"], "guided_regex": "b"}), "guided_choice", "guided_regex"),
    ] {
        let answer = ask(&server, CHAT, fields.clone()).await;
        assert_eq!(answer["error"]["param"], param, "{fields}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{fields}: {answer}");
    }
}

/// Requests whose grammars would take minutes or gigabytes, had they no bounds.
fn hostile_grammars() -> Vec<Value> {
    let n = 100_000;
    let regex = |regex: String| json!({"guided_regex": regex});
    let lark = |rules: String| json!({"grammar": rules});
    let schema = |schema: Value| json!({"guided_json": schema});
    let chain = |name: &str, n: usize| {
        let rules: String = (0..n).map(|idx| format!("{name}{idx}: {name}{}\n", idx + 1)).collect();
        lark(format!("start: {name}0\n{rules}{name}{n}: \"a\"\n"))
    };
    let doubling = |name: &str| {
        let rules: String =
            (0..60).map(|idx| format!("{name}{idx}: {name}{0} {name}{0}\n", idx + 1)).collect();
        lark(format!("start: {name}0\n{rules}{name}60: \"a\""))
    };
    let refs: Map<String, Value> = (0..3000)
        .map(|idx| {
            (format!("d{idx}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", idx + 1)}}))
        })
        .chain([("d3000".to_owned(), json!({"type": "null"}))])
        .collect();
    let one_of = |n: usize| {
        json!({"anyOf": (0..n).map(|idx| json!({"properties":
        {format!("p{idx}"): {"type": "string"}, "k": {"enum": ["a", idx]}}})).collect::<Vec<_>>()})
    };
    let names = |n: usize| (0..n).map(|idx| format!("p{idx}")).collect::<Vec<_>>();
    let object_of = |n: usize, property: Value| {
        let properties: Map<String, Value> =
            names(n).into_iter().map(|name| (name, property.clone())).collect();
        json!({"type": "object", "properties": properties, "required": names(n)})
    };
    let patterns: Map<String, Value> =
        (0..300).map(|idx| (format!("^(a|b)*{idx}(a|b){{20}}$"), json!({"type": "string"}))).collect();
    let words = |n: usize| (0..n).map(|idx| format!("w{idx:05}")).collect::<Vec<_>>();
    vec![
        lark(format!("start: {}\"a\"{}", "(".repeat(n / 2), ")".repeat(n / 2))),
        lark(format!("start: {}\"b\"", "\"a\" | ".repeat(n / 6))),
        lark(format!("start: {}", "\"a\" ".repeat(n / 4))),
        lark(format!("start: {}", "\"a\"? ".repeat(n / 5))),
        lark("start: (\"a\"{0,1000000}){0,1000000}".to_owned()),
        lark("start: x\nx: x x x | x x | /[a-z ]/ | /[a-z]+/".to_owned()),
        lark("start: x\nx: x x | \"a\" | \"\"".to_owned()),
        lark("start: A+\nA: /a/\n%ignore /(b|c)*d(b|c){900}/".to_owned()),
        lark("start: %json {\"type\": \"integer\", \"multipleOf\": 9999991}".to_owned()),
        lark(format!("start: %regex {{\"substring_chars\": \"{}\"}}", "abcdefghij".repeat(5000))),
        lark(format!(
            "start: A\nA: {}",
            words(30).iter().map(|word| format!("/(.*{word}){{3}}.*/")).collect::<Vec<_>>().join(" & ")
        )),
        doubling("A"),
        doubling("a"),
        chain("r", 7000),
        chain("A", 7000),
        regex(format!("{}a{}", "(".repeat(n / 2), ")".repeat(n / 2))),
        regex("((a{1000}){1000}){1000}".to_owned()),
        regex("((((a{0,50}){0,50}){0,50}){0,50}){0,50}".to_owned()),
        regex("(.*a){30}b".to_owned()),
        regex("(a|b|c){0,5000}".to_owned()),
        regex("(a|b)*a(a|b){1000}".to_owned()),
        regex("[ab]?".repeat(26_000)),
        regex("[ab]?".repeat(500)),
        regex("\\p{L}{1,1000}".to_owned()),
        regex("(\\w+\\s*){1,500}".to_owned()),
        regex(words(18_000).join("|")),
        regex("a".repeat(n)),
        regex("a".repeat(2 * n)),
        json!({"guided_choice": vec!["x".repeat(50); n / 60]}),
        json!({"guided_choice": words(n)}),
        json!({"guided_choice": words(15_000)}),
        json!({"guided_choice": (1..480).map(|len| "x".repeat(len)).collect::<Vec<_>>()}),
        json!({"guided_choice": ["y".repeat(n)]}),
        schema(json!({"type": "integer", "multipleOf": 9_999_991})),
        schema(json!({"type": "integer", "multipleOf": 9973})),
        schema(json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]})),
        schema(object_of(500, json!({"type": "integer", "multipleOf": 9973}))),
        schema(json!({"$ref": "#/$defs/d0", "$defs": refs})),
        schema(json!({"allOf": [one_of(12), one_of(12), one_of(12), one_of(12), one_of(12)]})),
        schema(json!({"allOf": [one_of(60), one_of(60)]})),
        schema(json!({"type": "array", "minItems": 1_000_000_000})),
        schema(
            json!({"type": "array", "maxItems": 1_000_000_000, "items": {"type": "object", "maxProperties": 1_000_000}}),
        ),
        schema(json!({"type": "array", "prefixItems": vec![json!({"type": "integer"}); 4000]})),
        schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
        schema(json!({"type": "string", "maxLength": 1_000_000_000})),
        schema(json!({"type": "string", "minLength": 100_000})),
        schema(
            json!({"type": "string", "pattern": "^(a|b)*a(a|b){100}$", "minLength": 1000, "maxLength": 2000}),
        ),
        schema(json!({"type": "string", "pattern": "[ab]?".repeat(20_000)})),
        schema(json!({"type": "string", "format": "email", "minLength": 3000})),
        schema(json!({"type": "object", "patternProperties": patterns})),
        schema(json!({"enum": words(12_000)})),
        schema(json!({"const": "z".repeat(n)})),
        schema(object_of(2500, json!({"type": "integer"}))),
        schema(json!({"type": "object", "required": names(9000)})),
        schema(
            json!({"anyOf": (0..800).map(|n| json!({"type": "number", "minimum": f64::from(n) + 0.123_456_789,
            "maximum": f64::from(n) + 0.923_456_789})).collect::<Vec<_>>()}),
        ),
    ]
}

#[tokio::test]
async fn hostile_grammars_cost_one_request() {
    trial::set_trial_program(env!("CARGO_BIN_EXE_predict-otron-9000").into());
    let server = scripted("yes").await;
    for mut fields in hostile_grammars() {
        fields["max_tokens"] = json!(20);
        fields["messages"] = json!([{"role": "user", "content": "hi"}]);
        let start = Instant::now();
        let answer = server.post(CHAT, &fields).await;
        assert!(start.elapsed().as_secs() < 10, "{:.100}", fields.to_string());
        let status = answer.status().as_u16();
        assert!([200, 400, 429].contains(&status), "{status}: {:.100}", fields.to_string());
    }
    assert_eq!(content(&ask(&server, CHAT, json!({"guided_choice": ["still here"]})).await), "still here");
}

#[tokio::test]
async fn a_grammar_is_compiled_once() {
    let server = scripted("ab").await;
    let n_hits = async || {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("predict_otron_grammar_cache_hits_total "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    for fields in [json!({"guided_regex": "[abc]+"}), json!({"guided_json": {"not": {}}})] {
        let first = ask(&server, CHAT, fields.clone()).await;
        let before = n_hits().await;
        for _ in 0..3 {
            let again = ask(&server, CHAT, fields.clone()).await;
            assert_eq!((&again["error"], &again["choices"]), (&first["error"], &first["choices"]));
        }
        assert!(n_hits().await >= before + 3);
    }
}

#[tokio::test]
async fn a_large_divisor_is_refused_by_name() {
    let server = scripted("1").await;
    for divisor in [json!(9_999_991), json!(0.999_999_1)] {
        let schema =
            json!({"type": "object", "properties": {"a": {"type": "number", "multipleOf": divisor}}});
        let answer = ask(&server, CHAT, json!({"guided_json": schema})).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("multipleOf") && message.contains("10000"), "{answer}");
    }
}
