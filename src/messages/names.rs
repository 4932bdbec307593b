//! Names of the Messages API in place of the chat route's, in errors and in lists of ignored parameters.

use crate::error::Error;

/// The origins of the parts of a translated request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    /// For each chat message, the path of its origin, such as `messages[1]` or `system`.
    pub messages: Vec<String>,
    /// For each function, the path of its tool.
    pub tools: Vec<String>,
    /// The parameter that sets the reasoning effort.
    pub effort: &'static str,
}

/// Phrases of the chat route and what they are called here, the longest first.
const PHRASES: &[(&str, &str)] = &[
    ("a message of role `tool` with this `tool_call_id`", "a `tool_result` block with this `tool_use_id`"),
    ("response_format.json_schema.schema", "output_config.format.schema"),
    ("`response_format`", "`output_config.format`"),
    ("`max_completion_tokens`", "`max_tokens`"),
    ("`tool_call_id`", "`tool_use_id`"),
    ("`reasoning_effort`", "`output_config.effort`"),
    ("`stop`", "`stop_sequences`"),
    (".function.parameters", ".input_schema"),
    (".function.name", ".name"),
    (".reasoning_content", ".content"),
    (".tool_call_id", ".content"),
    (".tool_calls", ".content"),
];

impl Origins {
    /// The error of a chat request in the words of the Messages API.
    pub fn rename_error(&self, e: Error) -> Error {
        let message = self.rename(&e.to_string());
        e.with_message(message)
    }

    /// The path of an ignored parameter.
    pub fn rename_path(&self, path: &str) -> String {
        match path {
            "reasoning_effort" => self.effort.to_owned(),
            path => self.rename(path),
        }
    }

    fn rename(&self, text: &str) -> String {
        let text = replace_indexed(text, "messages[", &self.messages);
        let text = replace_indexed(&text, "tools[", &self.tools);
        PHRASES.iter().fold(text, |text, (chat, own)| text.replace(chat, own))
    }
}

/// Replaces each `name[idx]`, where `opening` is `name[`, by the text with this index.
fn replace_indexed(text: &str, opening: &str, by: &[String]) -> String {
    let mut pieces = text.split(opening);
    let mut replaced = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let other =
            piece.split_once(']').and_then(|(idx, rest)| Some((by.get(idx.parse::<usize>().ok()?)?, rest)));
        match other {
            Some((path, rest)) => replaced.extend([path, rest]),
            None => replaced.extend([opening, piece]),
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_fields_of_this_api() {
        let origins = Origins {
            messages: ["system", "messages[0]", "messages[0]"].map(str::to_owned).to_vec(),
            tools: ["tools[3]"].map(str::to_owned).to_vec(),
            effort: "thinking",
        };
        for (chat, own) in [
            ("`tools[0].function.parameters` must be", "`tools[3].input_schema` must be"),
            ("messages[2] has no content", "messages[0] has no content"),
            ("messages[7] and messages[x]", "messages[7] and messages[x]"),
            ("`stop` has 40 strings", "`stop_sequences` has 40 strings"),
        ] {
            assert_eq!(origins.rename_error(Error::invalid("x", chat)).to_string(), own);
        }
        assert_eq!(origins.rename_path("reasoning_effort"), "thinking");
        assert_eq!(origins.rename_path("messages[1].reasoning_content"), "messages[0].content");
    }
}
