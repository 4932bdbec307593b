//! Constrained generation, with a scripted model that would generate something else. `sdk/structured.py` checks
//! samples of the default model for several hundred schemas.

use predict_otron_9000::config::Limits;
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
    let answer = server.post(path, &request).await;
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
        (format(json!({"type": "string", "format": "colour"})), "response_format", "colour"),
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
        (json!({"grammar": "root ::= \"a\""}), "grammar", "Lark"),
        (json!({"guided_choice": []}), "guided_choice", "empty"),
        (json!({"guided_choice": ["a"], "guided_regex": "b"}), "guided_choice", "guided_regex"),
    ] {
        let answer = ask(&server, CHAT, fields.clone()).await;
        assert_eq!(answer["error"]["param"], param, "{fields}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{fields}: {answer}");
    }
}

#[tokio::test]
async fn hostile_grammars_cost_one_request() {
    let server = scripted("yes").await;
    let n = 100_000;
    let chain = |name: &str, n: usize| {
        let rules: String = (0..n).map(|idx| format!("{name}{idx}: {name}{}\n", idx + 1)).collect();
        json!({"grammar": format!("start: {name}0\n{rules}{name}{n}: \"a\"\n")})
    };
    let doubling: String = (0..60).map(|idx| format!("A{idx}: A{0} A{0}\n", idx + 1)).collect();
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
    for fields in [
        json!({"grammar": format!("start: {}\"a\"{}", "(".repeat(n / 2), ")".repeat(n / 2))}),
        json!({"grammar": format!("start: {}\"b\"", "\"a\" | ".repeat(n / 6))}),
        json!({"grammar": format!("start: {}", "\"a\" ".repeat(n / 4))}),
        json!({"grammar": format!("start: A0\n{doubling}A60: \"a\"")}),
        chain("r", 7000),
        chain("A", 7000),
        json!({"guided_regex": format!("{}a{}", "(".repeat(n / 2), ")".repeat(n / 2))}),
        json!({"guided_regex": "((a{1000}){1000}){1000}"}),
        json!({"guided_regex": "(.*a){30}b"}),
        json!({"guided_choice": vec!["x".repeat(50); n / 60]}),
        json!({"guided_json": {"$ref": "#/$defs/d0", "$defs": refs}}),
        json!({"guided_json": {"allOf": [one_of(12), one_of(12), one_of(12), one_of(12), one_of(12)]}}),
        json!({"guided_json": {"type": "array", "minItems": 1_000_000_000}}),
        json!({"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}),
        json!({"guided_regex": "a".repeat(200_000)}),
    ] {
        let start = std::time::Instant::now();
        let mut fields = fields;
        fields["max_tokens"] = json!(20);
        let request = ask(&server, CHAT, fields.clone()).await;
        assert!(start.elapsed().as_secs() < 10, "{:.100}", fields.to_string());
        assert!(
            request["error"]["type"] == "invalid_request_error" || request["error"].is_null(),
            "{request}"
        );
    }
    assert_eq!(content(&ask(&server, CHAT, json!({"guided_choice": ["still here"]})).await), "still here");
}
