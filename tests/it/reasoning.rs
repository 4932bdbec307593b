//! Reasoning: its marks, its budget, and calls in channels.

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};

use crate::support::{ENGINE_OPTIONS, N_VOCAB, START, Script, Server, json as body, scripted_server};

const CHAT: &str = "/v1/chat/completions";

async fn server(template: &'static str, said: &str) -> Server {
    server_with(template, said, &[]).await
}

/// A server whose model has special tokens.
async fn server_with(template: &'static str, said: &str, special: &[&'static str]) -> Server {
    let mut answer = Vec::new();
    let mut rest = said;
    while !rest.is_empty() {
        let found = special.iter().position(|mark| rest.starts_with(mark));
        let (token, n_bytes) = match found {
            None if !special.is_empty() && rest.starts_with("<|start|>") => (START, "<|start|>".len()),
            Some(idx) => ((N_VOCAB + idx) as u32, special[idx].len()),
            None => (u32::from(rest.as_bytes()[0]), 1),
        };
        answer.push(token);
        rest = &rest[n_bytes..];
    }
    let script = Script {
        context_length: Some(4096),
        template: Some(template),
        special: special.to_vec(),
        answer,
        ..Script::default()
    };
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

async fn ask(server: &Server, fields: Value) -> Value {
    let mut request =
        json!({"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 300});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body(server.post(CHAT, &request).await).await
}

fn texts(answer: &Value) -> (&str, &str) {
    let message = &answer["choices"][0]["message"];
    let text = |field: &str| message[field].as_str().unwrap_or_default();
    (text("reasoning_content"), text("content"))
}

const OPENED: &str = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n";
const UNOPENED: &str = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}";

#[tokio::test]
async fn a_budget_closes_the_thought() {
    // The scripted model goes on where it would be without the nine forced tokens of a new line and `</think>`.
    let opened = server(OPENED, "abcdefghijklYes.").await;
    for fields in [
        json!({"thinking_budget": 3}),
        json!({"reasoning": {"max_tokens": 3}}),
        json!({"thinking": {"type": "enabled", "budget_tokens": 3}}),
        json!({"thinking_budget": 5, "reasoning": {"max_tokens": 3, "effort": null}}),
    ] {
        let answer = ask(&opened, fields.clone()).await;
        assert_eq!(texts(&answer), ("abc", "Yes."), "{fields}: {answer}");
        assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 12, "{answer}");
    }
    let unlimited = ask(&opened, json!({"thinking_budget": -1})).await;
    assert_eq!(texts(&unlimited), ("abcdefghijklYes.", ""), "{unlimited}");
    let none = ask(&opened, json!({"thinking_budget": 0})).await;
    assert_eq!(texts(&none), ("", "jklYes."), "{none}");
    // An answer under a grammar begins after the thought.
    let answer = ask(&opened, json!({"thinking_budget": 3, "guided_choice": ["Yes.", "No."]})).await;
    assert_eq!(texts(&answer), ("abc", "Yes."), "{answer}");
    // The model opens its thought by itself, or has none.
    let unopened = server(UNOPENED, "<think>abcdefghijklYes.").await;
    assert_eq!(texts(&ask(&unopened, json!({"thinking_budget": 3})).await), ("abc", "Yes."));
    let without = server(UNOPENED, "abcdefgh").await;
    assert_eq!(texts(&ask(&without, json!({"thinking_budget": 3})).await), ("", "abcdefgh"));
    for (fields, param) in [
        (json!({"thinking_budget": "few"}), "thinking_budget"),
        (json!({"thinking": {"type": "often"}}), "thinking.type"),
    ] {
        assert_eq!(ask(&without, fields).await["error"]["param"], param);
    }
}

const HARMONY: &str = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}{{ m.thinking }}\
    {% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments|tojson }}<|call|>{% endfor %}\
    {% endfor %}{{ tools }}<|start|>assistant{% if false %}<|channel|>analysis{% endif %}";

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
           "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}}})
}

#[tokio::test]
async fn channels_hold_thoughts_calls_and_answers() {
    let special = &["<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>", "<|return|>"];
    let thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    let final_message = format!("{thought}<|channel|>final<|message|>\"Yes\"");
    let answering = server_with(HARMONY, &final_message, special).await;
    for fields in [
        json!({}),
        json!({"tools": [weather()]}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Yes"]}}}}),
        json!({"tools": [weather()],
               "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Yes"]}}}}),
    ] {
        let answer = ask(&answering, fields.clone()).await;
        assert_eq!(texts(&answer), ("Hm.", "\"Yes\""), "{fields}: {answer}");
    }
    let call =
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Rome\"}";
    let calling = server_with(HARMONY, &format!("{thought}{call}<|call|>"), special).await;
    for fields in [json!({}), json!({"tool_choice": "required"}), json!({"parallel_tool_calls": false})] {
        let mut all = json!({"tools": [weather()]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = ask(&calling, all).await;
        let choice = &answer["choices"][0];
        assert_eq!(texts(&answer), ("Hm.", ""), "{fields}: {answer}");
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(
            *function,
            json!({"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}),
            "{answer}"
        );
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
    // The budget ends thoughts, under a grammar too.
    let thinking =
        server_with(HARMONY, &format!("{thought}{call}<|call|>").replace("Hm.", "Hmmm"), special).await;
    for choice in ["auto", "required"] {
        let fields = json!({"tools": [weather()], "tool_choice": choice, "thinking_budget": 3});
        let answer = ask(&thinking, fields).await;
        assert_eq!(texts(&answer).0, "Hmm", "{answer}");
    }
    // Only the end of the thought is forced before a required call, so that the script goes on in time.
    let answer =
        ask(&thinking, json!({"tools": [weather()], "tool_choice": "required", "thinking_budget": 4})).await;
    let function = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(function["arguments"], "{\"city\": \"Rome\"}", "{answer}");
}
