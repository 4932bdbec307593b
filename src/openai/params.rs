//! What becomes of each request parameter: honoured, refused, or ignored and said so. A parameter
//! is a row here before it is anything else; nothing is dropped silently.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What becomes of a parameter.
#[derive(Clone, Copy)]
pub enum Treatment {
    /// It does what OpenAI, or the server that introduced it, says.
    Honoured,
    /// It changes nothing that the client could see in the answer, so it is accepted and named in
    /// `x-ignored-params`.
    Ignored,
    /// Only values that mean what happens anyway are accepted; others are refused, for this reason.
    OnlyDefault { is_default: fn(&Value) -> bool, reason: &'static str },
}

/// A parameter's name and what becomes of it.
pub type Row = (&'static str, Treatment);

/// Parameters of a route.
pub type Rows = &'static [&'static [Row]];

use Treatment::{Honoured, Ignored, OnlyDefault};

/// What chat and completions share: OpenAI's parameters, then those of other servers.
const GENERATION: &[Row] = &[
    ("model", Honoured),
    ("max_tokens", Honoured),
    ("temperature", Honoured),
    ("top_p", Honoured),
    ("seed", Honoured),
    ("stop", Honoured),
    ("stream", Honoured),
    ("stream_options", Honoured),
    ("presence_penalty", Honoured),
    ("frequency_penalty", Honoured),
    ("logit_bias", Honoured),
    ("logprobs", Honoured),
    ("n", Honoured),
    ("user", Ignored),
    ("top_k", Honoured),
    ("min_p", Honoured),
    ("repeat_penalty", Honoured),
    ("repetition_penalty", Honoured),
    ("repeat_last_n", Honoured),
    ("ignore_eos", Honoured),
    ("cache_salt", Honoured),
    ("truncate_prompt_tokens", Honoured),
    ("min_tokens", Honoured),
    ("stop_token_ids", Honoured),
    ("grammar", Honoured),
    ("guided_json", Honoured),
    ("guided_regex", Honoured),
    ("guided_choice", Honoured),
    ("response_format", Honoured),
];

/// Parameters of `/v1/chat/completions`.
pub const CHAT: Rows = &[
    &[
        ("messages", Honoured),
        ("max_completion_tokens", Honoured),
        ("top_logprobs", Honoured),
        ("tools", Honoured),
        ("tool_choice", Honoured),
        ("functions", OnlyDefault { is_default: is_empty, reason: "it was replaced by `tools`, which is" }),
        (
            "function_call",
            OnlyDefault {
                is_default: |v| v == "none" || v == "auto",
                reason: "it was replaced by `tool_choice`, which is",
            },
        ),
        ("parallel_tool_calls", Honoured),
        (
            "modalities",
            OnlyDefault {
                is_default: |v| *v == serde_json::json!(["text"]),
                reason: "only text is supported",
            },
        ),
        ("audio", OnlyDefault { is_default: never, reason: "only text is supported" }),
        ("reasoning_effort", Honoured),
        (
            "verbosity",
            OnlyDefault { is_default: |v| v == "medium", reason: "the model has no verbosity setting" },
        ),
        ("web_search_options", OnlyDefault { is_default: never, reason: "this server never calls out" }),
        ("prediction", Honoured),
        ("metadata", Ignored),
        ("store", Ignored),
        ("safety_identifier", Ignored),
        ("prompt_cache_key", Ignored),
        ("prompt_cache_retention", Ignored),
        ("service_tier", Ignored),
        ("chat_template_kwargs", Honoured),
    ],
    GENERATION,
];

/// Parameters of `/v1/completions`.
pub const COMPLETIONS: Rows =
    &[&[("prompt", Honoured), ("suffix", Honoured), ("best_of", Honoured), ("echo", Honoured)], GENERATION];

/// Parameters of `/v1/embeddings`.
pub const EMBEDDINGS: Rows = &[&[
    ("input", Honoured),
    ("model", Honoured),
    ("encoding_format", Honoured),
    ("dimensions", Honoured),
    ("force_dimensions", Honoured),
    ("input_type", Honoured),
    ("prompt_name", Honoured),
    ("truncate", Honoured),
    ("user", Ignored),
]];

/// Parameters of `/v1/rerank`.
pub const RERANK: Rows = &[&[
    ("model", Honoured),
    ("query", Honoured),
    ("documents", Honoured),
    ("top_n", Honoured),
    ("return_documents", Honoured),
    ("truncate", Honoured),
    ("raw_scores", Honoured),
    ("user", Ignored),
]];

/// Parameters of `/v1/score`.
pub const SCORE: Rows = &[&[
    ("model", Honoured),
    ("text_1", Honoured),
    ("text_2", Honoured),
    ("truncate", Honoured),
    ("raw_scores", Honoured),
    ("user", Ignored),
]];

/// Parameters of `/tokenize`.
pub const TOKENIZE: Rows = &[&[
    ("model", Honoured),
    ("prompt", Honoured),
    ("messages", Honoured),
    ("add_special_tokens", Honoured),
    ("return_token_strs", Honoured),
]];

/// Parameters of `/detokenize`.
pub const DETOKENIZE: Rows = &[&[("model", Honoured), ("tokens", Honoured)]];

/// Keys that are known within a parameter, by their place; `[]` stands for any item of a list. What
/// has no row here, such as a schema, is taken as it is.
const NESTED: &[(&str, &[&str])] = &[
    (
        "messages[]",
        &["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning_content"],
    ),
    ("messages[].content[]", &["type", "text", "refusal"]),
    ("messages[].tool_calls[]", &["id", "type", "function", "index"]),
    ("messages[].tool_calls[].function", &["name", "arguments"]),
    ("tools[]", &["type", "function"]),
    ("tools[].function", &["name", "description", "parameters", "strict"]),
    ("stream_options", &["include_usage"]),
    ("prediction", &["type", "content"]),
    ("response_format", &["type", "json_schema"]),
    ("response_format.json_schema", &["name", "description", "schema", "strict"]),
    ("prediction.content[]", &["type", "text"]),
];

fn never(_: &Value) -> bool {
    false
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Checks a request's fields against `rows`; null counts as absent. Returns the names of those
/// that are ignored, unknown ones among them, in the request's order; those within a parameter by
/// their path, such as `messages[0].mood`.
///
/// # Errors
/// For the first parameter that is refused; the error names it.
pub fn check(rows: Rows, request: &Map<String, Value>) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for (name, value) in request.iter().filter(|(_, value)| !value.is_null()) {
        match rows.iter().copied().flatten().find(|(row, _)| row == name) {
            Some((_, Honoured)) if NESTED.iter().any(|(place, _)| place.starts_with(name)) => {
                name_unknown(value, name, name, &mut ignored);
            }
            Some((_, Honoured)) => {}
            Some((_, OnlyDefault { is_default, .. })) if is_default(value) => {}
            Some((_, OnlyDefault { reason, .. })) => {
                return Err(Error::invalid(
                    name,
                    format!("`{name}` with this value is not supported: {reason}; leave it out"),
                ));
            }
            Some((_, Ignored)) | None => ignored.push(name.clone()),
        }
    }
    Ok(ignored)
}

/// Adds the paths of keys in `value` that its place does not know.
fn name_unknown(value: &Value, place: &str, path: &str, ignored: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            let place = format!("{place}[]");
            for (idx, item) in items.iter().enumerate() {
                name_unknown(item, &place, &format!("{path}[{idx}]"), ignored);
            }
        }
        Value::Object(fields) => {
            let Some((_, known)) = NESTED.iter().find(|(row, _)| *row == place) else { return };
            for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{key}");
                if known.contains(&key.as_str()) {
                    name_unknown(value, &format!("{place}.{key}"), &path, ignored);
                } else {
                    ignored.push(path);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(request: Value) -> Result<Vec<String>> {
        check(CHAT, request.as_object().unwrap())
    }

    #[test]
    fn unknown_and_harmless_parameters_are_named() {
        let ignored = checked(json!({"model": "m", "user": "u", "foo": 1, "store": null, "n": 1})).unwrap();
        assert_eq!(ignored, ["user", "foo"]);
    }

    #[test]
    fn unknown_keys_within_parameters_are_named_by_their_path() {
        let ignored = checked(json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]},
                {"role": "assistant", "content": "b", "mood": "good", "audio": null,
                 "tool_calls": [{"id": "1", "index": 0}]},
            ],
            "stream_options": {"include_usage": true, "foo": 1},
            "logit_bias": {"1": 2}
        }));
        assert_eq!(
            ignored.unwrap(),
            ["messages[0].content[0].cache_control", "messages[1].mood", "stream_options.foo"]
        );
        assert!(checked(json!({"messages": "hi", "stream_options": [1]})).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (name, value) in [("functions", json!([{"name": "f"}])), ("audio", json!({}))] {
            let error = checked(json!({ name: value })).unwrap_err();
            assert_eq!(error.param(), Some(name));
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(checked(json!({"tools": [], "response_format": {"type": "text"}})).unwrap().is_empty());
    }
}
