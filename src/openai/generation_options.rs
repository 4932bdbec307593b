//! Options of a generation that chat and text completions share.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::Result;

/// The largest number of choices for each prompt.
pub const MAX_CHOICES: u64 = 16;

/// The largest number of stop strings.
pub const MAX_STOPS: usize = 32;

/// The token limit of a request that wants none, which is -1 on the wire.
pub const NO_TOKEN_LIMIT: u64 = u64::MAX;

/// Model, sampling, limits, constraints and streaming of a generation.
///
/// Both requests flatten these fields into their own. serde loses the path of an error in a flattened field, so
/// requests read them with [`GenerationOptions::from_body`] first.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct GenerationOptions {
    /// Id or alias of a chat model; the first one by default.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// Number of choices to generate.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    pub n: Option<u64>,
    /// Maximum number of tokens to generate; -1 means no limit.
    #[serde(deserialize_with = "token_limit")]
    #[schemars(schema_with = "token_limit_schema")]
    pub max_tokens: Option<u64>,
    /// The server's limit for a request without one. Not part of the wire.
    #[serde(skip)]
    pub default_max_tokens: Option<u64>,
    /// Sampling temperature; 0 always picks the likeliest token.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f32>,
    /// Sample from the likeliest tokens whose probabilities together reach this value (nucleus sampling).
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f32>,
    /// Sample from this many of the likeliest tokens; 0 and -1 mean all of them.
    #[schemars(range(min = -1))]
    pub top_k: Option<i64>,
    /// Sample from tokens that are at least this likely, relative to the likeliest token.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: Option<f32>,
    /// Seed of the sampler; equal seeds draw equal tokens.
    pub seed: Option<i64>,
    /// Strings at which generation stops; they are not part of the text. Up to 32, of 1 to 1,024 bytes each.
    #[schemars(schema_with = "stop_schema")]
    pub stop: Option<OneOrMany>,
    /// Send the response as server-sent events while it is generated.
    pub stream: Option<bool>,
    /// Options of the stream; only valid with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Penalty on the logits of tokens that have occurred in the generated text.
    #[schemars(range(min = -2, max = 2))]
    pub presence_penalty: Option<f32>,
    /// Penalty on the logits of tokens, multiplied by their number of occurrences in the generated text.
    #[schemars(range(min = -2, max = 2))]
    pub frequency_penalty: Option<f32>,
    /// Biases from -100 to 100, added to the logits; the keys are token ids.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": -100, "maximum": 100}))]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Divisor of the logits of tokens that have occurred.
    #[schemars(range(min = 0.01, max = 10))]
    pub repeat_penalty: Option<f32>,
    /// Another name for `repeat_penalty`.
    #[schemars(range(min = 0.01, max = 10))]
    pub repetition_penalty: Option<f32>,
    /// Number of recent tokens that the repeat penalty considers; -1 means all of them.
    #[schemars(range(min = -1))]
    pub repeat_last_n: Option<i64>,
    /// Keep generating after the model's end-of-sequence token.
    pub ignore_eos: Option<bool>,
    /// Minimum number of tokens to generate before a stop token or stop string may end the text.
    pub min_tokens: Option<u64>,
    /// Ids of tokens that end the text, in addition to the model's own.
    #[schemars(length(max = 64))]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Prefix-cache namespace: only requests with the same salt share cached prompt tokens.
    #[schemars(length(max = 256))]
    pub cache_salt: Option<String>,
    /// Keep only this many tokens from the end of the prompt; -1 keeps as many as fit.
    #[schemars(schema_with = "token_limit_schema")]
    pub truncate_prompt_tokens: Option<i64>,
    /// Return the log probabilities of the prompt's tokens, each with this many of the likeliest tokens at its position.
    /// Not available in a stream.
    #[schemars(range(max = 20))]
    pub prompt_logprobs: Option<u64>,
    /// The form that the response must have.
    pub response_format: Option<ResponseFormat>,
    /// The form that the response must have, as vLLM's clients send it.
    pub structured_outputs: Option<StructuredOutputs>,
    /// JSON schema that the response must match, as an object or as text.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub guided_json: Option<Value>,
    /// Regular expression that the whole response must match.
    pub guided_regex: Option<String>,
    /// Allowed responses; the response is exactly one of these strings.
    #[schemars(length(min = 1))]
    pub guided_choice: Option<Vec<String>>,
    /// Grammar that the response must match: Lark, GBNF or EBNF, which are told apart by `::=`.
    pub grammar: Option<String>,
    /// Another name for `grammar`.
    pub guided_grammar: Option<String>,
    /// Another name for `grammar`.
    pub ebnf: Option<String>,
    /// Another name for `guided_regex`.
    pub regex: Option<String>,
    /// Another name for `guided_json`.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub json_schema: Option<Value>,
    /// Free text with parts of a given form, as an object or as text.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub structural_tag: Option<Value>,
    /// Regular expression of the white space in the JSON of `guided_json`.
    pub guided_whitespace_pattern: Option<String>,
}

impl GenerationOptions {
    /// Reads the options from a request's JSON object; other fields are skipped.
    ///
    /// # Errors
    /// When a field has the wrong form; the error names the field.
    pub fn from_body(body: &Value) -> Result<Self> {
        super::from_value(body)
    }

    /// Whether the response is streamed.
    pub fn is_streamed(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a grammar may constrain the response.
    pub fn has_grammar(&self) -> bool {
        let schemas = [&self.guided_json, &self.json_schema, &self.structural_tag];
        let texts = [&self.guided_regex, &self.regex, &self.grammar, &self.guided_grammar, &self.ebnf];
        self.response_format.is_some()
            || self.structured_outputs.is_some()
            || self.guided_choice.is_some()
            || schemas.into_iter().any(Option::is_some)
            || texts.into_iter().any(Option::is_some)
    }

    /// Whether a stream ends with the token counts.
    pub fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Whether every event of a stream has the token counts so far.
    pub fn continuous_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.continuous_usage_stats).unwrap_or(false)
    }
}

/// A string or an array of strings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum OneOrMany {
    /// A string.
    One(String),
    /// An array of strings.
    Many(Vec<String>),
}

/// Options of a streamed response.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// Send one more chunk at the end with the token counts.
    pub include_usage: Option<bool>,
    /// Send the token counts so far with every chunk. Those of cached and reasoning tokens come at the end.
    pub continuous_usage_stats: Option<bool>,
}

/// The form that the response must have: OpenAI's three types, and those of other servers.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// The kind of form.
    #[serde(rename = "type")]
    pub kind: ResponseFormatKind,
    /// The schema of type `json_schema`.
    #[serde(default)]
    pub json_schema: Option<JsonSchemaFormat>,
    /// The schema of type `json_object` or `json_schema`, as an object or as text.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    #[serde(default, alias = "response_schema")]
    pub schema: Option<Value>,
    /// The schema, regular expression or grammar, by the type.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    #[serde(default)]
    pub value: Option<Value>,
    /// The regular expression of type `regex`.
    #[serde(default, alias = "pattern", alias = "regex_schema")]
    pub regex: Option<String>,
    /// The grammar of type `grammar`.
    #[serde(default, alias = "ebnf")]
    pub grammar: Option<String>,
    /// Whether a schema of this object, not of `json_schema`, is enforced completely or refused.
    #[serde(default)]
    pub strict: Option<bool>,
    /// Accepted for compatibility; names nothing.
    #[serde(default)]
    pub name: Option<String>,
    /// Accepted for compatibility; the model does not see it.
    #[serde(default)]
    pub description: Option<String>,
    /// The tags of type `structural_tag`.
    #[schemars(schema_with = "array_or_null")]
    #[serde(default)]
    pub structures: Option<Value>,
    /// The texts that begin tags of type `structural_tag`.
    #[schemars(schema_with = "array_or_null")]
    #[serde(default)]
    pub triggers: Option<Value>,
    /// The tree of type `structural_tag`.
    #[schemars(schema_with = "object_or_null")]
    #[serde(default)]
    pub format: Option<Value>,
}

/// The kind of form that the response must have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormatKind {
    /// Any text.
    #[default]
    Text,
    /// JSON of a given schema, or any JSON object.
    #[serde(alias = "json")]
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema,
    /// Text that a regular expression matches.
    #[serde(alias = "regex_schema")]
    Regex,
    /// Text that matches a grammar.
    #[serde(alias = "ebnf")]
    Grammar,
    /// Free text with parts of a given form.
    StructuralTag,
}

/// The form that the response must have, in vLLM's words. One of the first six fields at most is set.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StructuredOutputs {
    /// JSON schema that the response must match, as an object or as text.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub json: Option<Value>,
    /// Regular expression that the whole response must match.
    pub regex: Option<String>,
    /// Allowed responses.
    #[schemars(length(min = 1))]
    pub choice: Option<Vec<String>>,
    /// Grammar that the response must match: Lark, GBNF or EBNF.
    pub grammar: Option<String>,
    /// Whether the response is any JSON object.
    pub json_object: Option<bool>,
    /// Free text with parts of a given form, as an object or as text.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub structural_tag: Option<Value>,
    /// Forbid white space between the parts of JSON.
    pub disable_any_whitespace: Option<bool>,
    /// Forbid properties that a schema does not name.
    pub disable_additional_properties: Option<bool>,
    /// Accepted for compatibility; this server has no other way to constrain a response.
    pub disable_fallback: Option<bool>,
    /// Regular expression of the white space between the parts of JSON.
    pub whitespace_pattern: Option<String>,
}

/// A named JSON schema that the response must match.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct JsonSchemaFormat {
    /// Name of 1 to 64 letters, digits, `_` or `-`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: String,
    /// Description of the schema's purpose.
    #[serde(default)]
    pub description: Option<String>,
    /// The JSON schema; any object if left out.
    #[serde(default)]
    #[schemars(schema_with = "object_or_null")]
    pub schema: Option<Value>,
    /// Refuse a schema with keywords that cannot be enforced; otherwise they are left out and named.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// The schema of a JSON schema.
pub fn object_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["object", "null"]})
}

/// The schema of an array.
fn array_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["array", "null"]})
}

/// The schema of `stop`, with bounds that [`OneOrMany`] has only here.
fn stop_schema(_: &mut SchemaGenerator) -> Schema {
    let text = || json_schema!({"type": "string", "minLength": 1, "maxLength": 1024});
    json_schema!({"anyOf": [text(), {"type": "array", "items": text(), "maxItems": MAX_STOPS}, {"type": "null"}]})
}

/// The schema of a number of tokens that is -1 or at least 1.
pub(super) fn token_limit_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["integer", "null"], "minimum": -1, "not": {"const": 0}})
}

/// Reads a limit on tokens; -1 becomes [`NO_TOKEN_LIMIT`].
///
/// # Errors
/// When it is no integer, or another negative one.
pub(super) fn token_limit<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u64>, D::Error> {
    struct LimitVisitor;

    impl<'de> Visitor<'de> for LimitVisitor {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer of 1 or more, or -1 for no limit")
        }

        fn visit_unit<E>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u64>, D::Error> {
            deserializer.deserialize_any(self)
        }

        fn visit_u64<E>(self, n: u64) -> Result<Option<u64>, E> {
            Ok(Some(n))
        }

        fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Option<u64>, E> {
            match u64::try_from(n) {
                Ok(n) => Ok(Some(n)),
                Err(_) if n == -1 => Ok(Some(NO_TOKEN_LIMIT)),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(n), &self)),
            }
        }
    }

    deserializer.deserialize_option(LimitVisitor)
}
