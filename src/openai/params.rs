//! The table of request parameters: each is honored, refused, or ignored and reported. A parameter is a row
//! here before it is anything else; none is dropped silently.

use serde_json::{Map, Value};

use self::Treatment::{Honored, Ignored, OnlyDefault, Parsed};
use crate::error::{Error, Result, quote};

/// How the server treats a parameter.
#[derive(Clone, Copy)]
pub enum Treatment {
    /// Has the effect that OpenAI, or the server that introduced it, documents.
    Honored,
    /// Honored; the route itself names the fields within it that have no effect.
    Parsed,
    /// Has no effect: a hint that the model cannot follow, or a matter of OpenAI's own services. Accepted, and named
    /// in `x-ignored-params`.
    Ignored,
    /// Accepted only with a value that means the default; refused otherwise.
    OnlyDefault {
        /// Whether a value means the default.
        is_default: fn(&Value) -> bool,
        /// Why other values are refused.
        reason: &'static str,
    },
}

/// A parameter's name and treatment.
pub type ParamRow = (&'static str, Treatment);

/// The parameters of a route, as groups of rows. Of several rows of one name the first counts.
pub type ParamTable = &'static [&'static [ParamRow]];

/// The known keys within parameters, by path; `[]` stands for any item of an array. Objects without a row, such as
/// JSON schemas, may have any keys.
pub type NestedKeys = &'static [(&'static str, &'static [&'static str])];

/// Parameters that chat and text completions share: OpenAI's, then those of other servers.
pub const GENERATION: &[ParamRow] = &[
    ("model", Honored),
    ("max_tokens", Honored),
    ("temperature", Honored),
    ("top_p", Honored),
    ("seed", Honored),
    ("stop", Honored),
    ("stream", Honored),
    ("stream_options", Honored),
    ("presence_penalty", Honored),
    ("frequency_penalty", Honored),
    ("logit_bias", Honored),
    ("user", Ignored),
    ("top_k", Honored),
    ("min_p", Honored),
    ("repeat_penalty", Honored),
    ("repetition_penalty", Honored),
    ("repeat_last_n", Honored),
    ("ignore_eos", Honored),
    ("cache_salt", Honored),
    ("truncate_prompt_tokens", Honored),
    ("prompt_logprobs", Honored),
    ("min_tokens", Honored),
    ("stop_token_ids", Honored),
    ("grammar", Honored),
    ("guided_json", Honored),
    ("guided_regex", Honored),
    ("guided_choice", Honored),
    ("guided_grammar", Honored),
    ("guided_whitespace_pattern", Honored),
    ("guided_decoding_backend", Ignored),
    ("regex", Honored),
    ("ebnf", Honored),
    ("json_schema", Honored),
    ("structural_tag", Honored),
    ("structured_outputs", Honored),
    ("response_format", Honored),
    ("grammar_lazy", OnlyDefault { is_default: |v| *v == false, reason: "grammars apply from the start" }),
    ("grammar_triggers", OnlyDefault { is_default: is_empty, reason: "grammars apply from the start" }),
    ("allowed_token_ids", OnlyDefault { is_default: is_empty, reason: "use `logit_bias` or a grammar" }),
    ("bad_words", OnlyDefault { is_default: is_empty, reason: "use `logit_bias` or a grammar" }),
    ("logits_processors", OnlyDefault { is_default: is_empty, reason: "use `logit_bias` or a grammar" }),
];

/// Parameters of responses that may have several choices.
const CHOICES: &[ParamRow] = &[("logprobs", Honored), ("n", Honored)];

/// Parameters of `/v1/chat/completions`.
pub const CHAT: ParamTable = &[
    &[
        ("messages", Honored),
        ("max_completion_tokens", Honored),
        ("top_logprobs", Honored),
        ("tools", Honored),
        ("tool_choice", Honored),
        ("functions", OnlyDefault { is_default: is_empty, reason: "it was replaced by `tools`, which is" }),
        (
            "function_call",
            OnlyDefault {
                is_default: |v| v == "none" || v == "auto",
                reason: "it was replaced by `tool_choice`, which is",
            },
        ),
        ("parallel_tool_calls", Honored),
        (
            "modalities",
            OnlyDefault {
                is_default: |v| *v == serde_json::json!(["text"]),
                reason: "only text is supported",
            },
        ),
        ("audio", OnlyDefault { is_default: never, reason: "only text is supported" }),
        ("reasoning_effort", Honored),
        ("thinking_budget", Honored),
        ("reasoning", Honored),
        ("thinking", Honored),
        ("verbosity", Ignored),
        ("web_search_options", Ignored),
        ("prediction", Honored),
        ("metadata", Ignored),
        ("store", Ignored),
        ("safety_identifier", Ignored),
        ("prompt_cache_key", Ignored),
        ("prompt_cache_retention", Ignored),
        ("prompt_cache_options", Ignored),
        ("moderation", OnlyDefault { is_default: never, reason: "no moderation model is served" }),
        ("service_tier", Ignored),
        ("chat_template_kwargs", Honored),
        ("add_generation_prompt", Honored),
        ("continue_final_message", Honored),
    ],
    CHOICES,
    GENERATION,
];

/// Parameters of `/v1/responses`.
pub const RESPONSES: ParamTable = &[RESPONSE_ITEMS, RESPONSE_OPTIONS, GENERATION];

/// Parameters of `/v1/responses/compact`.
pub const COMPACTION: ParamTable = &[&[
    ("model", Honored),
    ("input", Parsed),
    ("instructions", Honored),
    ("previous_response_id", Honored),
    ("image", Ignored),
    ("prompt_cache_key", Ignored),
    ("prompt_cache_options", Ignored),
    ("prompt_cache_retention", Ignored),
    ("service_tier", Ignored),
]];

/// Parameters of `POST /v1/models/pull`.
pub const MODEL_PULL: ParamTable = &[&[("model", Honored), ("stream", Honored)]];

/// Parameters of `POST /v1/conversations`.
pub const CONVERSATION: ParamTable = &[&[("items", Parsed), ("metadata", Honored)]];

/// Parameters of `POST /v1/conversations/{id}`.
pub const CONVERSATION_UPDATE: ParamTable = &[&[("metadata", Honored)]];

/// Parameters of `POST /v1/conversations/{id}/items`.
pub const CONVERSATION_ITEMS: ParamTable = &[&[("items", Parsed), ("include", Ignored)]];

/// Fields of the form of `POST /v1/files`.
pub const FILE_UPLOAD: ParamTable = &[&[
    ("file", Honored),
    ("purpose", Honored),
    ("expires_after[anchor]", Honored),
    ("expires_after[seconds]", Honored),
]];

/// Parameters of `POST /v1/batches`.
pub const BATCH: ParamTable = &[&[
    ("input_file_id", Honored),
    ("endpoint", Honored),
    ("completion_window", Honored),
    ("metadata", Honored),
    ("output_expires_after", Honored),
]];

/// Parameters that are part of the prompt of a response.
const RESPONSE_ITEMS: &[ParamRow] = &[
    ("input", Parsed),
    ("instructions", Honored),
    ("previous_response_id", Honored),
    ("conversation", Parsed),
    ("tools", Parsed),
];

/// Parameters of `/v1/responses` besides those of its prompt.
const RESPONSE_OPTIONS: &[ParamRow] = &[
    ("store", Honored),
    ("background", Honored),
    ("max_output_tokens", Honored),
    ("max_tool_calls", Honored),
    ("parallel_tool_calls", Honored),
    ("reasoning", Honored),
    ("text", Honored),
    ("tool_choice", Parsed),
    ("top_logprobs", Honored),
    ("include", Honored),
    ("metadata", Honored),
    ("truncation", Honored),
    ("n", OnlyDefault { is_default: |v| v == 1, reason: "a response has one output" }),
    (
        "logprobs",
        OnlyDefault { is_default: |v| v == false, reason: "it is spelled `include` here, which is" },
    ),
    ("prompt", OnlyDefault { is_default: never, reason: "this server stores no prompts" }),
    ("moderation", OnlyDefault { is_default: never, reason: "this server has no model for moderation" }),
    ("background_options", Ignored),
    ("client_metadata", Ignored),
    ("context_management", Ignored),
    ("prompt_cache_key", Ignored),
    ("prompt_cache_options", Ignored),
    ("prompt_cache_retention", Ignored),
    ("safety_identifier", Ignored),
    ("service_tier", Ignored),
];

/// Parameters of `/v1/completions`.
pub const COMPLETIONS: ParamTable = &[
    &[("prompt", Honored), ("suffix", Honored), ("best_of", Honored), ("echo", Honored)],
    CHOICES,
    GENERATION,
];

/// Parameters of `/v1/embeddings`.
pub const EMBEDDINGS: ParamTable = &[&[
    ("input", Honored),
    ("model", Honored),
    ("encoding_format", Honored),
    ("dimensions", Honored),
    ("force_dimensions", Honored),
    ("input_type", Honored),
    ("prompt_name", Honored),
    ("truncate", Honored),
    ("truncate_prompt_tokens", Honored),
    ("user", Ignored),
]];

/// Parameters of `/v1/rerank`.
pub const RERANK: ParamTable = &[&[
    ("model", Honored),
    ("query", Honored),
    ("documents", Honored),
    ("top_n", Honored),
    ("top_k", Honored),
    ("rid", Honored),
    ("return_documents", Honored),
    ("truncate", Honored),
    ("max_tokens_per_doc", Honored),
    ("raw_scores", Honored),
    ("user", Ignored),
]];

/// Parameters of `/v1/score`.
pub const SCORE: ParamTable = &[&[
    ("model", Honored),
    ("text_1", Honored),
    ("text_2", Honored),
    ("truncate", Honored),
    ("raw_scores", Honored),
    ("user", Ignored),
]];

/// Parameters of `/tokenize`.
pub const TOKENIZE: ParamTable = &[&[
    ("model", Honored),
    ("prompt", Honored),
    ("messages", Honored),
    ("add_special_tokens", Honored),
    ("return_token_strs", Honored),
    ("tools", Honored),
    ("chat_template_kwargs", Honored),
    ("add_generation_prompt", Honored),
    ("continue_final_message", Honored),
]];

/// Parameters of `/detokenize`.
pub const DETOKENIZE: ParamTable = &[&[("model", Honored), ("tokens", Honored)]];

/// Parameters of `/apply-template`.
pub const APPLY_TEMPLATE: ParamTable =
    &[&[("model", Honored), ("messages", Honored), ("tools", Honored), ("chat_template_kwargs", Honored)]];

/// Parameters of `/v1/decisions`.
pub const DECISIONS: ParamTable = &[&[
    ("model", Honored),
    ("input", Honored),
    ("questions", Honored),
    ("prompt_cache_key", Honored),
    ("prompt_cache_options", Ignored),
    ("safety_identifier", Ignored),
]];

/// Parameters of `/v1/systemone`.
pub const SYSTEM_ONE: ParamTable = &[&[("model", Honored), ("state", Honored), ("questions", Honored)]];

/// The known keys within the parameters of OpenAI's routes.
pub const NESTED: NestedKeys = &[
    (
        "messages[]",
        &["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning_content"],
    ),
    ("messages[].content[]", &["type", "text", "refusal"]),
    ("messages[].tool_calls[]", &["id", "type", "function", "index"]),
    ("messages[].tool_calls[].function", &["name", "arguments"]),
    ("tools[]", &["type", "function"]),
    ("tools[].function", &["name", "description", "parameters", "strict"]),
    ("stream_options", &["include_usage", "continuous_usage_stats"]),
    ("text", &["format", "verbosity"]),
    ("text.format", &["type", "name", "description", "schema", "strict"]),
    ("reasoning", &["effort", "summary", "generate_summary", "max_tokens", "enabled"]),
    ("thinking", &["type", "budget_tokens"]),
    ("prediction", &["type", "content"]),
    (
        "response_format",
        &[
            "type",
            "json_schema",
            "schema",
            "response_schema",
            "value",
            "regex",
            "pattern",
            "regex_schema",
            "grammar",
            "ebnf",
            "strict",
            "structures",
            "triggers",
            "format",
        ],
    ),
    ("response_format.json_schema", &["name", "description", "schema", "strict"]),
    (
        "structured_outputs",
        &[
            "json",
            "regex",
            "choice",
            "grammar",
            "json_object",
            "structural_tag",
            "disable_any_whitespace",
            "disable_additional_properties",
            "whitespace_pattern",
        ],
    ),
    ("prediction.content[]", &["type", "text"]),
];

/// Beginnings of names that other servers give to constraints. A parameter with such a name that has no row is
/// refused: the client would take an unconstrained answer for a constrained one.
const CONSTRAINT_PREFIXES: &[&str] = &["guided_", "grammar_", "structured_", "structural_"];

/// Accepts no value.
pub fn never(_: &Value) -> bool {
    false
}

/// Accepts an empty array or object.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Checks a request's fields against `table` and `nested`; null counts as absent. Returns the names of ignored
/// fields, unknown ones included, in the request's order; fields within a parameter are named by
/// path, such as `messages[0].mood`.
///
/// # Errors
/// When a parameter is refused; the error names the first one.
pub fn check_params(
    table: ParamTable,
    nested: NestedKeys,
    request: &Map<String, Value>,
) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for (name, value) in request.iter().filter(|(_, value)| !value.is_null()) {
        match table.iter().copied().flatten().find(|(row, _)| row == name) {
            Some((_, Honored)) if nested.iter().any(|(path, _)| path.starts_with(name)) => {
                collect_unknown_keys(value, nested, (name, name), &mut ignored)?;
            }
            Some((_, Honored | Parsed)) => {}
            Some((_, OnlyDefault { is_default, .. })) if is_default(value) => {}
            Some((_, OnlyDefault { reason, .. })) => {
                return Err(Error::invalid(
                    name,
                    format!("`{name}` with this value is not supported: {reason}; leave it out"),
                ));
            }
            None if CONSTRAINT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {
                return Err(Error::invalid(
                    quote(name),
                    format!(
                        "`{}` is not known, and its name is that of a constraint; leave it out",
                        quote(name)
                    ),
                ));
            }
            Some((_, Ignored)) | None => ignored.push(name.clone()),
        }
    }
    Ok(ignored)
}

/// Adds the paths of keys in `value` that `nested` does not list. `pattern` is the value's path with `[]` for every
/// index, `path` the one with indices.
///
/// # Errors
/// When there is an array in the place of an object: serde would take its items for the object's fields.
fn collect_unknown_keys(
    value: &Value,
    nested: NestedKeys,
    (pattern, path): (&str, &str),
    unknown: &mut Vec<String>,
) -> Result<()> {
    match value {
        Value::Array(_) if nested.iter().any(|(row, _)| *row == pattern) => {
            return Err(Error::invalid(path, format!("`{path}` is an array, but must be an object")));
        }
        Value::Array(items) => {
            let pattern = format!("{pattern}[]");
            for (idx, item) in items.iter().enumerate() {
                collect_unknown_keys(item, nested, (&pattern, &format!("{path}[{idx}]")), unknown)?;
            }
        }
        Value::Object(fields) => {
            let Some((_, known)) = nested.iter().find(|(row, _)| *row == pattern) else { return Ok(()) };
            for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{key}");
                if known.contains(&key.as_str()) {
                    collect_unknown_keys(value, nested, (&format!("{pattern}.{key}"), &path), unknown)?;
                } else {
                    unknown.push(path);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(request: Value) -> Result<Vec<String>> {
        check_params(CHAT, NESTED, request.as_object().unwrap())
    }

    #[test]
    fn an_array_is_no_object() {
        for (request, param) in [
            (json!({"stream_options": [true]}), "stream_options"),
            (json!({"messages": [["user", "hi"]]}), "messages[0]"),
        ] {
            assert_eq!(checked(request).unwrap_err().param(), Some(param));
        }
    }

    #[test]
    fn unknown_and_ignored_parameters_are_named() {
        let ignored = checked(json!({"model": "m", "user": "u", "foo": 1, "store": null, "n": 1})).unwrap();
        assert_eq!(ignored, ["user", "foo"]);
    }

    #[test]
    fn unknown_nested_keys_are_named_by_path() {
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
        assert!(checked(json!({"messages": "hi"})).unwrap().is_empty());
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (name, value) in [("functions", json!([{"name": "f"}])), ("audio", json!({}))] {
            let error = checked(json!({ name: value })).unwrap_err();
            assert_eq!(error.param(), Some(name));
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(checked(json!({"tools": [], "response_format": {"type": "text"}})).unwrap().is_empty());
    }
}
