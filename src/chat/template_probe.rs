//! What a template makes of a conversation's tool history and names: the prompt is rendered again
//! without them, and where it stays the same the model would not have seen them.

use super::template::TemplateMessage;
use crate::error::{Error, Result};

/// A field that templates may leave out.
struct Field {
    name: &'static str,
    is_given: fn(&TemplateMessage) -> bool,
    remove: fn(&mut TemplateMessage),
    /// Whether a request is refused where the field is not shown; else the answer names it.
    matters: bool,
}

const FIELDS: &[Field] = &[
    Field {
        name: "tool_calls",
        is_given: |message| message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()),
        remove: |message| message.tool_calls = None,
        matters: true,
    },
    Field {
        name: "content",
        is_given: |message| message.role == "tool" && !message.content.is_empty(),
        remove: |message| message.content.clear(),
        matters: true,
    },
    Field {
        name: "tool_call_id",
        is_given: |message| message.tool_call_id.is_some(),
        remove: |message| message.tool_call_id = None,
        matters: false,
    },
    Field {
        name: "reasoning_content",
        is_given: |message| message.reasoning_content.is_some(),
        remove: |message| message.reasoning_content = None,
        matters: false,
    },
    Field {
        name: "name",
        is_given: |message| message.name.is_some(),
        remove: |message| message.name = None,
        matters: false,
    },
];

/// The paths of fields that `prompt`, which `render` made of `messages`, does not show.
///
/// # Errors
/// When a field is not shown without which the conversation is another one.
pub fn ignored_fields(
    messages: &[TemplateMessage],
    prompt: &str,
    render: impl Fn(&[TemplateMessage]) -> Result<String>,
) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for Field { name, is_given, remove, matters } in FIELDS {
        let given = messages.iter().enumerate().filter(|(_, message)| is_given(message));
        let paths: Vec<String> = given.map(|(idx, _)| format!("messages[{idx}].{name}")).collect();
        let Some(first) = paths.first() else { continue };
        let mut without = messages.to_vec();
        without.iter_mut().filter(|message| is_given(message)).for_each(remove);
        // A template that fails without the field makes use of it.
        if !render(&without).is_ok_and(|rendered| rendered == prompt) {
            continue;
        }
        if *matters {
            return Err(Error::invalid(
                first,
                format!(
                    "the model's chat template has no place for `{first}`, so the model would not see it; leave it out, \
                     or use a model that was made for tools"
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
    fn what_a_template_shows_is_told_from_what_it_does_not() {
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
