//! The wire types: the JSON of OpenAI's API and of its extensions, their JSON schemas, and the treatment of
//! each parameter. Uses only serde and schemars.

pub mod batches;
pub mod call_arguments;
pub mod chat;
pub mod completions;
pub mod decisions;
pub mod embeddings;
pub mod error;
pub mod files;
pub mod generation_options;
pub mod models;
pub mod params;
pub mod probes;
pub mod prompt_logprobs;
pub mod rerank;
pub mod responses;
pub mod tokens;
pub mod usage;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Kind, Result, quote};

/// Parses a request of type `T`.
///
/// # Errors
/// When `body` is not a `T`; the error names the field.
pub fn from_value<'de, T: Deserialize<'de>>(
    body: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T> {
    serde_path_to_error::deserialize(body).map_err(|e| {
        // Both may quote the client.
        let message = in_json_terms(&e.inner().to_string());
        let path = quote(&e.path().to_string());
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        match (path.as_str(), missing) {
            (".", Some(field)) => Error::invalid(field, format!("`{field}` is missing")),
            (path, Some(field)) => {
                Error::invalid(format!("{path}.{field}"), format!("`{path}.{field}` is missing"))
            }
            (".", None) => Error::new(Kind::InvalidRequest, message),
            // The keys are the client's own, not parameters.
            (path, None) if path.starts_with("logit_bias.") => {
                Error::invalid("logit_bias", format!("`{path}`: {message}"))
            }
            (path, None) => Error::invalid(path, format!("`{path}`: {message}")),
        }
    })
}

/// The most entries of `metadata`, and the longest key and value.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// Checks the number and the length of metadata.
///
/// # Errors
/// When there is too much.
pub fn check_metadata<'a>(metadata: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    let (max_entries, max_key, max_value) = MAX_METADATA;
    let mut n = 0;
    for (key, value) in metadata {
        n += 1;
        if n > max_entries || key.chars().count() > max_key || value.chars().count() > max_value {
            let message = format!(
                "`metadata` may have {max_entries} entries, with keys of at most {max_key} characters and values of at \
                 most {max_value}"
            );
            return Err(Error::invalid("metadata", message));
        }
    }
    Ok(())
}

/// Replaces Rust's type names with JSON's in a message of serde, and cuts what it quotes.
fn in_json_terms(message: &str) -> String {
    const FOUND: &[(&str, &str)] = &[
        ("invalid type: map", "invalid type: object"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: floating point", "invalid type: number"),
        ("invalid value: floating point", "invalid value: number"),
        ("invalid value: map", "invalid type: object"),
    ];
    // The first part may quote the client, and so contain "expected" too.
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return quote(message) };
    let found = FOUND
        .iter()
        .find_map(|(rust, json)| Some(format!("{json}{}", found.strip_prefix(rust)?)))
        .unwrap_or_else(|| found.to_owned());
    let found = quote(&found);
    let expected = match expected {
        "f32" | "f64" => "a number",
        "i64" => "an integer",
        "u32" | "u64" | "usize" => "an integer of 0 or more",
        "a nonzero u64" => "an integer of 1 or more",
        "a sequence" => "an array",
        "a map" => "an object",
        "string or map" | "map with a single key" => "a string",
        rust if rust.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::chat::ChatCompletionRequest;
    use super::embeddings::EmbeddingsRequest;
    use super::*;
    use serde_json::{Map, json};

    #[test]
    fn type_errors_use_json_terms() {
        for (field, value, param, expected) in [
            ("temperature", json!("warm"), "temperature", "string \"warm\", expected a number"),
            ("temperature", json!("x, expected u64"), "temperature", "expected a number"),
            ("max_tokens", json!(1.5), "max_tokens", "number `1.5`, expected an integer of 1 or more, or -1"),
            ("max_tokens", json!(-2), "max_tokens", "integer `-2`, expected an integer of 1 or more, or -1"),
            ("min_tokens", json!(-1), "min_tokens", "expected an integer of 0 or more"),
            ("seed", json!([]), "seed", "array, expected an integer"),
            ("stream", json!("yes"), "stream", "expected a boolean"),
            ("messages", json!({}), "messages", "object, expected an array"),
            ("messages", json!([5]), "messages[0]", "expected an object"),
            ("messages", json!([{"content": "x"}]), "messages[0].role", "`messages[0].role` is missing"),
            ("messages", json!([{"role": 5}]), "messages[0].role", "integer `5`, expected a string"),
            ("messages", json!([{"role": {}}]), "messages[0].role", "object, expected a string"),
            ("messages", json!([{"role": "robot"}]), "messages[0].role", "expected one of `developer`"),
            ("logit_bias", json!({"1": null}), "logit_bias", "null, expected a number"),
            ("stream_options", json!(true), "stream_options", "boolean `true`, expected an object"),
        ] {
            let body = Map::from_iter([(field.to_owned(), value)]);
            let error = ChatCompletionRequest::from_object(body).unwrap_err();
            assert_eq!(error.param(), Some(param), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let long = "x\n".repeat(1 << 20);
        for (field, value) in [
            ("temperature", json!(long)),
            ("messages", json!([{"role": long}])),
            ("stop", json!([{"a": long}])),
            ("logit_bias", json!({&long: null})),
            ("tools", json!([{"type": long, "function": {"name": "f"}}])),
            ("messages", json!([{"role": "user", "content": "x", "tool_calls": [{ &long: 1 }]}])),
        ] {
            let body = Map::from_iter([(field.to_owned(), value)]);
            let error = ChatCompletionRequest::from_object(body).unwrap_err();
            let (message, param) = (error.to_string(), error.param().unwrap_or_default());
            assert!(message.len() < 1000 && param.len() < 500, "{message}");
            assert!(!message.contains('\n') && !param.contains('\n'), "{message}");
        }
        let error = from_value::<EmbeddingsRequest>(json!({})).unwrap_err();
        assert_eq!((error.param(), error.to_string().as_str()), (Some("input"), "`input` is missing"));
    }
}
