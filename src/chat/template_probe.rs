//! Detection of message fields that a template ignores: the prompt is rendered again without a field, and if it
//! stays the same, the model would not see the field.

use super::template::TemplateMessage;
use crate::error::{Error, Result};

/// A message field that a template may ignore.
struct ProbedField {
    name: &'static str,
    is_set: fn(&TemplateMessage) -> bool,
    clear: fn(&mut TemplateMessage),
    /// Whether a request is refused if the template ignores the field. Otherwise the response names it.
    is_essential: bool,
}

const FIELDS: &[ProbedField] = &[
    ProbedField {
        name: "tool_calls",
        is_set: |message| message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()),
        clear: |message| message.tool_calls = None,
        is_essential: true,
    },
    ProbedField {
        name: "content",
        is_set: |message| message.role == "tool" && !message.content.is_empty(),
        clear: |message| message.content.clear(),
        is_essential: true,
    },
    ProbedField {
        name: "tool_call_id",
        is_set: |message| message.tool_call_id.is_some(),
        clear: |message| message.tool_call_id = None,
        is_essential: false,
    },
    ProbedField {
        name: "reasoning_content",
        is_set: |message| message.reasoning_content.is_some(),
        clear: |message| (message.reasoning_content, message.thinking) = (None, None),
        is_essential: false,
    },
    ProbedField {
        name: "name",
        is_set: |message| message.name.is_some(),
        clear: |message| message.name = None,
        is_essential: false,
    },
];

/// The paths of fields that do not occur in `prompt`, which is `messages` as rendered by `render`.
///
/// # Errors
/// When an essential field does not occur.
pub fn ignored_fields(
    messages: &[TemplateMessage],
    prompt: &str,
    render: impl Fn(&[TemplateMessage]) -> Result<String>,
) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for ProbedField { name, is_set, clear, is_essential } in FIELDS {
        let set = messages.iter().enumerate().filter(|(_, message)| is_set(message));
        let paths: Vec<String> = set.map(|(idx, _)| format!("messages[{idx}].{name}")).collect();
        let Some(first) = paths.first() else { continue };
        let mut without = messages.to_vec();
        without.iter_mut().filter(|message| is_set(message)).for_each(clear);
        // A template that fails without the field uses it.
        if !render(&without).is_ok_and(|rendered| rendered == prompt) {
            continue;
        }
        if *is_essential {
            return Err(Error::invalid(
                first,
                format!(
                    "the model's chat template ignores `{first}`, so the model would not see it; leave it out, or use a \
                     model that supports tools"
                ),
            ));
        }
        ignored.extend(paths);
    }
    Ok(ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<TemplateMessage> {
        let message = |role, content: &str| TemplateMessage::new(role, content.to_owned());
        vec![
            TemplateMessage { name: Some("ann".to_owned()), ..message("user", "2+2?") },
            TemplateMessage {
                tool_calls: Some(vec![serde_json::json!({"id": "1"})]),
                ..message("assistant", "")
            },
            TemplateMessage { tool_call_id: Some("1".to_owned()), ..message("tool", "4") },
        ]
    }

    fn ignored(show: fn(&TemplateMessage) -> String) -> Result<Vec<String>> {
        let render = |messages: &[TemplateMessage]| Ok(messages.iter().map(show).collect::<String>());
        let messages = conversation();
        ignored_fields(&messages, &render(&messages)?, render)
    }

    #[test]
    fn fields_that_a_template_ignores_are_found() {
        assert_eq!(ignored(|message| format!("{message:?}")).unwrap(), [""; 0]);
        let harmless = ignored(|message| format!("{}{:?}", message.content, message.tool_calls)).unwrap();
        assert_eq!(harmless, ["messages[2].tool_call_id", "messages[0].name"]);
        let calls = ignored(|message| message.content.clone()).unwrap_err();
        assert_eq!(calls.param(), Some("messages[1].tool_calls"));
        let result = ignored(|message| match message.role {
            "tool" => String::new(),
            _ => format!("{message:?}"),
        });
        assert_eq!(result.unwrap_err().param(), Some("messages[2].content"));
    }
}
