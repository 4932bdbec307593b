//! Names of Ollama's API in place of the chat route's, in errors and in lists of ignored parameters.

use crate::error::Error;

/// The names of the parts of a translated request.
#[derive(Debug, Default)]
pub struct OllamaNames {
    /// Paths in the chat request of fields that the client has not sent.
    pub invented: Vec<String>,
}

/// Names of the chat route and what they are called here, the longest first.
const NAMES: &[(&str, &str)] = &[
    ("response_format.json_schema.schema", "format"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("presence_penalty", "options.presence_penalty"),
    ("reasoning_effort", "think"),
    ("response_format", "format"),
    ("repeat_penalty", "options.repeat_penalty"),
    ("repeat_last_n", "options.repeat_last_n"),
    ("temperature", "options.temperature"),
    ("max_tokens", "options.num_predict"),
    ("top_k", "options.top_k"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("seed", "options.seed"),
    ("stop", "options.stop"),
];

/// Other phrases of the chat route's errors.
const PHRASES: &[(&str, &str)] =
    &[(".reasoning_content", ".thinking"), ("with this `tool_call_id`", "with its `tool_name`")];

impl OllamaNames {
    /// The error of a chat request or text completion in the words of this API.
    pub fn rename_error(&self, e: Error) -> Error {
        let names = NAMES.iter().map(|(chat, own)| (format!("`{chat}`"), format!("`{own}`")));
        let message = names.fold(e.to_string(), |text, (chat, own)| text.replace(&chat, &own));
        let message = PHRASES.iter().fold(message, |text, (chat, own)| text.replace(chat, own));
        let param = e.param().map(rename_param);
        let e = e.with_message(message);
        match param {
            Some(param) => e.with_param(param),
            None => e,
        }
    }

    /// The path of a parameter that had no effect; `None` if the client has not sent it.
    pub fn rename_path(&self, path: &str) -> Option<String> {
        (!self.invented.iter().any(|invented| invented == path)).then(|| rename_param(path))
    }
}

/// The path of a parameter of this API, by its path in a chat request or text completion.
fn rename_param(path: &str) -> String {
    if let Some((message, field)) = path.split_once("].").filter(|_| path.starts_with("messages[")) {
        let field = match field {
            "reasoning_content" => "thinking",
            "name" => "tool_name",
            field => field,
        };
        return format!("{message}].{field}");
    }
    let renamed = NAMES.iter().find_map(|(chat, own)| Some(format!("{own}{}", path.strip_prefix(chat)?)));
    renamed.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_paths_name_the_fields_of_this_api() {
        let names = OllamaNames { invented: vec!["messages[3].tool_call_id".to_owned()] };
        for (chat, own) in [
            ("`max_tokens` is 9", "`options.num_predict` is 9"),
            ("`temperature` is 3; it must be", "`options.temperature` is 3; it must be"),
            ("`response_format` is malformed", "`format` is malformed"),
            ("messages[1].reasoning_content", "messages[1].thinking"),
            ("`tools[0].function.name` must", "`tools[0].function.name` must"),
            ("a message with this `tool_call_id`", "a message with its `tool_name`"),
        ] {
            assert_eq!(names.rename_error(Error::invalid("x", chat)).to_string(), own);
        }
        for (chat, own) in [
            ("max_tokens", "options.num_predict"),
            ("reasoning_effort", "think"),
            ("response_format.json_schema.schema.properties.name", "format.properties.name"),
            ("messages[2].name", "messages[2].tool_name"),
            ("model", "model"),
        ] {
            assert_eq!(names.rename_path(chat).as_deref(), Some(own));
            assert_eq!(names.rename_error(Error::invalid(chat, "x")).param(), Some(own));
        }
        assert_eq!(names.rename_path("messages[3].tool_call_id"), None);
    }
}
