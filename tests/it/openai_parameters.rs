//! OpenAI's lists of parameters: each is honored, refused by name, or named as ignored; none is dropped.

use predict_otron_9000::config::Limits;
use predict_otron_9000::openai::params::{self, ParamTable, Treatment};
use serde_json::{Value, json};

use crate::support::embeddings::tiny_encoder;
use crate::support::{ENGINE_OPTIONS, Script, Server, embedding_server, json as body, scripted_server};

/// The parameters of `POST /chat/completions` in OpenAI's published document, each with a value other than its
/// default.
fn chat() -> Vec<(&'static str, Value)> {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    vec![
        ("messages", json!([{"role": "user", "content": "hi"}])),
        ("model", json!("default")),
        ("frequency_penalty", json!(1)),
        ("logit_bias", json!({"97": -100})),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(2)),
        ("max_tokens", json!(3)),
        ("max_completion_tokens", json!(3)),
        ("n", json!(2)),
        ("presence_penalty", json!(1)),
        ("seed", json!(1)),
        ("stop", json!(["x"])),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("temperature", json!(0.5)),
        ("top_p", json!(0.5)),
        ("prediction", json!({"type": "content", "content": "hi"})),
        ("reasoning_effort", json!("none")),
        ("response_format", json!({"type": "json_object"})),
        ("tools", json!([tool])),
        ("tool_choice", json!("required")),
        ("parallel_tool_calls", json!(false)),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "ash", "format": "wav"})),
        ("web_search_options", json!({})),
        ("verbosity", json!("low")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(true)),
        ("user", json!("u")),
        ("safety_identifier", json!("u")),
        ("prompt_cache_key", json!("k")),
        ("prompt_cache_retention", json!("24h")),
        ("prompt_cache_options", json!({"mode": "explicit"})),
        ("moderation", json!({"model": "omni-moderation-latest"})),
        ("service_tier", json!("flex")),
    ]
}

/// The parameters of `POST /completions`, likewise.
fn completions() -> Vec<(&'static str, Value)> {
    vec![
        ("prompt", json!("hi")),
        ("model", json!("default")),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("frequency_penalty", json!(1)),
        ("logit_bias", json!({"97": -100})),
        ("logprobs", json!(2)),
        ("max_tokens", json!(3)),
        ("n", json!(2)),
        ("presence_penalty", json!(1)),
        ("seed", json!(1)),
        ("stop", json!("x")),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("suffix", json!("x")),
        ("temperature", json!(0.5)),
        ("top_p", json!(0.5)),
        ("user", json!("u")),
    ]
}

/// The parameters of `POST /embeddings`, likewise.
fn embeddings() -> Vec<(&'static str, Value)> {
    vec![
        ("input", json!("hi")),
        ("model", json!("default")),
        ("encoding_format", json!("base64")),
        ("dimensions", json!(64)),
        ("user", json!("u")),
    ]
}

/// Sends each parameter along with `plain` and the parameters it needs, and checks that it is treated as its row says.
async fn walk(server: &Server, path: &str, rows: ParamTable, plain: &Value, all: Vec<(&str, Value)>) {
    for (name, value) in all {
        let row = rows.iter().copied().flatten().find(|(row, _)| *row == name);
        let (_, treatment) = row.unwrap_or_else(|| panic!("{path} does not know `{name}`"));
        let mut request = plain.clone();
        request[name] = value;
        match name {
            "top_logprobs" => request["logprobs"] = json!(true),
            "stream_options" => request["stream"] = json!(true),
            "tool_choice" | "parallel_tool_calls" => {
                let function = json!({"name": "f", "parameters": {"type": "object"}});
                request["tools"] = json!([{"type": "function", "function": function}]);
            }
            _ => {}
        }
        let response = server.post(path, &request).await;
        let status = response.status().as_u16();
        let ignored =
            response.headers().get("x-ignored-params").map(|names| names.to_str().unwrap().to_owned());
        let is_named = ignored.as_deref() == Some(name);
        match treatment {
            Treatment::Honored if name == "suffix" => assert_eq!(status, 400, "this model cannot fill in"),
            Treatment::Honored | Treatment::Parsed => {
                assert!(status == 200 && ignored.is_none(), "{path} {name}: {status} {ignored:?}")
            }
            Treatment::Ignored => assert!(status == 200 && is_named, "{path} {name}: {status} {ignored:?}"),
            Treatment::OnlyDefault { .. } => {
                assert_eq!(status, 400, "{path} {name}");
                assert_eq!(body(response).await["error"]["param"], name);
            }
        }
    }
}

#[tokio::test]
async fn every_openai_parameter_is_treated_as_documented() {
    // Room for the tool instructions.
    let script = Script { context_length: Some(4096), ..Script::saying("abc") };
    let server = scripted_server(script, Limits::default(), ENGINE_OPTIONS).await;
    let plain = json!({"messages": [{"role": "user", "content": "hi"}]});
    walk(&server, "/v1/chat/completions", params::CHAT, &plain, chat()).await;
    walk(&server, "/v1/completions", params::COMPLETIONS, &json!({"prompt": "hi"}), completions()).await;
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    walk(&server, "/v1/embeddings", params::EMBEDDINGS, &json!({"input": "cat"}), embeddings()).await;
}
