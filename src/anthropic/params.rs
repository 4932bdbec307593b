//! The table of the Messages API's parameters, by the rules of [`crate::openai::params`].

use crate::openai::params::Treatment::{Honored, Ignored, OnlyDefault};
use crate::openai::params::{GENERATION, NestedKeys, ParamRow, ParamTable, is_empty, never};

/// Parameters that `/v1/messages` and `/v1/messages/count_tokens` share.
const CONVERSATION: &[ParamRow] = &[
    ("model", Honored),
    ("messages", Honored),
    ("system", Honored),
    ("tools", Honored),
    ("tool_choice", Honored),
    ("thinking", Honored),
    ("output_config", Honored),
    ("output_format", Honored),
    // The prefix cache is automatic.
    ("cache_control", Honored),
    ("chat_template_kwargs", Honored),
    ("mcp_servers", OnlyDefault { is_default: is_empty, reason: "this server never calls out" }),
    ("thread", Honored),
];

/// Names that are listed because they are Anthropic's; whatever else is unknown is treated alike.
const HINTS: &[ParamRow] = &[
    ("context_management", Ignored),
    ("metadata", Ignored),
    ("service_tier", Ignored),
    ("container", Ignored),
    ("inference_geo", Ignored),
    ("diagnostics", Ignored),
    ("speed", Ignored),
    ("fallbacks", Ignored),
];

/// Parameters of `/v1/messages` alone. They come before those of the chat route, which it takes too: some of those
/// bound a response.
const OWN: &[ParamRow] = &[
    ("stop_sequences", Honored),
    ("compaction", OnlyDefault { is_default: never, reason: "this server does not summarize conversations" }),
    ("n", OnlyDefault { is_default: |v| *v == 1, reason: "a message has no alternatives" }),
    ("logprobs", OnlyDefault { is_default: |v| v == false, reason: "a message has no log probabilities" }),
    ("prompt_logprobs", OnlyDefault { is_default: never, reason: "a message has no log probabilities" }),
    ("stream_options", Ignored),
];

/// Parameters of `/v1/messages`.
pub const MESSAGES: ParamTable = &[CONVERSATION, OWN, HINTS, GENERATION];

/// Parameters of `/v1/messages/count_tokens`.
pub const COUNT_TOKENS: ParamTable = &[CONVERSATION, HINTS];

/// Parameters of `/v1/messages/batches`.
pub const MESSAGE_BATCH: ParamTable = &[&[("requests", Honored)]];

/// The known keys within a parameter.
pub const NESTED: NestedKeys = &[
    ("messages[]", &["role", "content"]),
    ("messages[].content[]", BLOCK_KEYS),
    ("messages[].content[].content[]", BLOCK_KEYS),
    ("system[]", &["type", "text", "cache_control"]),
    (
        "tools[]",
        &["type", "name", "description", "input_schema", "strict", "cache_control", "max_characters"],
    ),
    ("tool_choice", &["type", "name", "disable_parallel_tool_use"]),
    ("thinking", &["type", "budget_tokens", "display"]),
    ("output_config", &["effort", "format"]),
    ("output_config.format", &["type", "schema", "name"]),
    ("output_format", &["type", "schema", "name"]),
];

/// The keys of all kinds of content blocks.
const BLOCK_KEYS: &[&str] = &[
    "type",
    "text",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "is_error",
    "thinking",
    "signature",
    "data",
    "source",
    "title",
    "context",
    "tool_name",
    "cache_control",
    "caller",
];
