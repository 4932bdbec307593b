//! The tables of Ollama's parameters, by the rules of [`crate::openai::params`].

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::openai::params::Treatment::{Honored, Ignored, OnlyDefault, Parsed};
use crate::openai::params::{NestedKeys, ParamRow, ParamTable, check_params, is_empty, never};

/// Parameters that `/api/chat` and `/api/generate` share.
const GENERATION: &[ParamRow] = &[
    ("model", Honored),
    ("stream", Honored),
    ("format", Honored),
    ("options", Parsed),
    ("think", Honored),
    ("logprobs", Honored),
    ("top_logprobs", Honored),
    // Models are unloaded by the server's own rules.
    ("keep_alive", Ignored),
    // Prompts that are too long are treated by the server's `--context-overflow`.
    ("truncate", Ignored),
    ("shift", Ignored),
];

/// Parameters of `/api/chat`.
pub const CHAT: ParamTable = &[&[("messages", Honored), ("tools", Honored)], GENERATION];

/// Parameters of `/api/generate`.
pub const GENERATE: ParamTable = &[
    &[
        ("prompt", Honored),
        ("system", Honored),
        ("suffix", Honored),
        ("raw", Honored),
        ("template", OnlyDefault { is_default: |v| v == "", reason: "the model's own template is used" }),
        ("images", OnlyDefault { is_default: is_empty, reason: "this server reads only text" }),
        ("context", Ignored),
        ("width", OnlyDefault { is_default: never, reason: "this server generates only text" }),
        ("height", OnlyDefault { is_default: never, reason: "this server generates only text" }),
        ("steps", OnlyDefault { is_default: never, reason: "this server generates only text" }),
    ],
    GENERATION,
];

/// The keys of `options`. Whatever else is unknown is treated like the hints at the end.
const OPTIONS: ParamTable = &[&[
    ("num_predict", Honored),
    ("temperature", Honored),
    ("top_k", Honored),
    ("top_p", Honored),
    ("min_p", Honored),
    ("seed", Honored),
    ("stop", Honored),
    ("repeat_penalty", Honored),
    ("repeat_last_n", Honored),
    ("presence_penalty", Honored),
    ("frequency_penalty", Honored),
    ("typical_p", OnlyDefault { is_default: |v| v.as_f64() == Some(1.0), reason: "use `top_p` or `min_p`" }),
    ("tfs_z", OnlyDefault { is_default: |v| v.as_f64() == Some(1.0), reason: "use `top_p` or `min_p`" }),
    ("mirostat", OnlyDefault { is_default: |v| v.as_f64() == Some(0.0), reason: "use `top_p` or `min_p`" }),
    ("num_ctx", Ignored),
]];

/// Parameters of `/api/embed`.
pub const EMBED: ParamTable = &[&[
    ("model", Honored),
    ("input", Honored),
    ("truncate", Honored),
    ("dimensions", Honored),
    ("options", Ignored),
    ("keep_alive", Ignored),
]];

/// Parameters of `/api/embeddings`.
pub const EMBEDDINGS: ParamTable =
    &[&[("model", Honored), ("prompt", Honored), ("options", Ignored), ("keep_alive", Ignored)]];

/// Parameters of `/api/show`.
pub const SHOW: ParamTable = &[&[
    ("model", Honored),
    ("name", Honored),
    ("verbose", Ignored),
    ("system", Ignored),
    ("template", Ignored),
    ("options", Ignored),
]];

/// Parameters of `/api/pull`.
pub const PULL: ParamTable = &[&[
    ("model", Honored),
    ("name", Honored),
    ("stream", Honored),
    // Downloads use the hub and the package index of the server.
    ("insecure", Ignored),
]];

/// Parameters of `/api/delete`.
pub const DELETE: ParamTable = &[&[("model", Honored), ("name", Honored)]];

/// The known keys within a parameter.
pub const NESTED: NestedKeys = &[
    ("messages[]", &["role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"]),
    ("messages[].tool_calls[]", &["id", "type", "function"]),
    ("messages[].tool_calls[].function", &["name", "arguments", "index"]),
    ("tools[]", &["type", "function"]),
    ("tools[].function", &["name", "description", "parameters", "strict"]),
];

/// Checks the `options` of a request, and returns the paths of those that are ignored.
///
/// # Errors
/// When one is refused, or they are no object.
pub fn check_options(request: &Map<String, Value>) -> Result<Vec<String>> {
    let options = match request.get("options") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(options)) => options,
        // serde would take the items of an array for the object's fields.
        Some(_) => return Err(Error::invalid("options", "`options` must be an object")),
    };
    let ignored = check_params(OPTIONS, &[], options).map_err(|e| {
        let name = e.param().unwrap_or_default().to_owned();
        let message = e.to_string().replacen(&format!("`{name}`"), &format!("`options.{name}`"), 1);
        Error::invalid(format!("options.{name}"), message)
    })?;
    Ok(ignored.into_iter().map(|name| format!("options.{name}")).collect())
}
