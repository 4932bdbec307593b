//! Instructions in the middle of a conversation. Some templates refuse a system message there or leave it out; for
//! those it becomes part of the user's message beside it.

use super::template::TemplateMessage;
use crate::error::Result;

/// Separates instructions from the text before or after them.
const BREAK: &str = "\n\n";

/// Renders `messages`, after moving the instructions in their middle if the template does not show them where they
/// are.
///
/// # Errors
/// When the template refuses the messages.
pub fn render_all(
    messages: &mut Vec<TemplateMessage>,
    render: impl Fn(&[TemplateMessage]) -> Result<String>,
) -> Result<String> {
    let prompt = render(messages);
    let is_moved = |idx: usize| idx > 0 && is_instruction(&messages[idx]);
    if !(0..messages.len()).any(is_moved) {
        return prompt;
    }
    if let Ok(prompt) = &prompt {
        let kept = (0..messages.len()).filter(|&idx| !is_moved(idx));
        let without: Vec<TemplateMessage> = kept.map(|idx| messages[idx].clone()).collect();
        // A template that fails without them uses them.
        if !render(&without).is_ok_and(|without| without == *prompt) {
            return Ok(prompt.clone());
        }
    }
    let merged = merge(messages);
    match render(&merged) {
        Ok(rendered) => {
            *messages = merged;
            Ok(rendered)
        }
        Err(_) => prompt,
    }
}

fn is_instruction(message: &TemplateMessage) -> bool {
    matches!(message.role, "system" | "developer")
}

/// The messages with all instructions but the first joined to the message before or after them.
fn merge(messages: &[TemplateMessage]) -> Vec<TemplateMessage> {
    let mut merged: Vec<TemplateMessage> = Vec::with_capacity(messages.len());
    // Whether the last message is the user's and ends with an instruction, so that the user's next text joins it.
    let mut is_begun = false;
    for message in messages {
        let is_joined = is_instruction(message) || (is_begun && message.role == "user");
        match merged.last_mut().filter(|last| is_joined && (is_instruction(last) || last.role == "user")) {
            Some(last) => {
                last.content = format!("{}{BREAK}{}", last.content, message.content);
                is_begun = is_instruction(message) && last.role == "user";
            }
            None => {
                is_begun = is_instruction(message) && !merged.is_empty();
                let role = if is_begun { "user" } else { message.role };
                merged.push(TemplateMessage { role, ..message.clone() });
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn conversation(messages: &[(&'static str, &str)]) -> Vec<TemplateMessage> {
        messages.iter().map(|(role, content)| TemplateMessage::new(role, (*content).to_owned())).collect()
    }

    fn outline(messages: &[TemplateMessage]) -> Result<String> {
        Ok(messages.iter().map(|message| format!("{}:{};", message.role, message.content)).collect())
    }

    /// Refuses a system message after the first message.
    fn strict(messages: &[TemplateMessage]) -> Result<String> {
        if messages.iter().skip(1).any(is_instruction) {
            return Err(Error::invalid("messages", "the template refuses the conversation"));
        }
        outline(messages)
    }

    /// Leaves out a system message after the first message.
    fn silent(messages: &[TemplateMessage]) -> Result<String> {
        let shown =
            messages.iter().enumerate().filter(|(idx, message)| *idx == 0 || !is_instruction(message));
        outline(&shown.map(|(_, message)| message.clone()).collect::<Vec<_>>())
    }

    #[test]
    fn instructions_are_moved_only_where_they_would_not_be_shown() {
        let turns = conversation(&[("system", "a"), ("user", "b"), ("system", "c"), ("assistant", "d")]);
        let moved = "system:a;user:b\n\nc;assistant:d;";
        assert_eq!(render_all(&mut turns.clone(), outline).unwrap(), "system:a;user:b;system:c;assistant:d;");
        assert_eq!(render_all(&mut turns.clone(), strict).unwrap(), moved);
        let mut messages = turns;
        assert_eq!(render_all(&mut messages, silent).unwrap(), moved);
        assert_eq!(messages.len(), 3);
    }

    #[test]
    fn instructions_join_the_message_beside_them() {
        for (messages, expected) in [
            (&[("system", "a"), ("system", "b"), ("user", "c")][..], "system:a\n\nb;user:c;"),
            (
                &[("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")],
                "user:a;assistant:b;user:c\n\nd;",
            ),
            (&[("user", "a"), ("tool", "b"), ("system", "c")], "user:a;tool:b;user:c;"),
            (&[("user", "a"), ("system", "b"), ("user", "c")], "user:a\n\nb\n\nc;"),
        ] {
            assert_eq!(render_all(&mut conversation(messages), strict).unwrap(), expected);
        }
    }

    #[test]
    fn a_refusal_for_another_reason_stays() {
        let refuse = |_: &[TemplateMessage]| Err(Error::invalid("messages", "no"));
        let mut messages = conversation(&[("user", "a"), ("system", "b")]);
        assert_eq!(render_all(&mut messages, refuse).unwrap_err().to_string(), "no");
        assert_eq!(messages.len(), 2);
    }
}
