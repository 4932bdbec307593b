//! The state of a chat: system prompt, messages, parameters.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::parameters::GenerationSettings;
use crate::error::{Error, Result};
use crate::openai::chat::Role;
use crate::openai::from_value;

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatTurn {
    role: Role,
    content: String,
}

/// A chat. Its messages end with an answer, except while one is generated.
#[derive(Debug, Default)]
pub struct ChatSession {
    /// The system prompt.
    pub system: Option<String>,
    /// The parameters.
    pub settings: GenerationSettings,
    /// JSON schema that answers must match.
    pub schema: Option<Value>,
    turns: Vec<ChatTurn>,
    /// The last message, if it got no answer.
    unanswered: Option<String>,
}

impl ChatSession {
    /// A chat without messages.
    pub fn new(system: Option<String>) -> Self {
        Self { system, ..Self::default() }
    }

    /// Adds a message of the user, and returns the request for its answer.
    pub fn ask(&mut self, model: &str, text: &str) -> Value {
        self.unanswered = None;
        self.turns.push(ChatTurn { role: Role::User, content: text.to_owned() });
        self.request(model)
    }

    /// Ends the message with its answer. Without a text, the message is withdrawn; `/retry` sends it again.
    pub fn end_answer(&mut self, text: &str) {
        if !text.is_empty() {
            self.turns.push(ChatTurn { role: Role::Assistant, content: text.to_owned() });
        } else if let Some(turn) = self.turns.pop_if(|turn| turn.role == Role::User) {
            self.unanswered = Some(turn.content);
        }
    }

    /// Removes the last message and its answer, and returns the message.
    pub fn take_last(&mut self) -> Option<String> {
        if let Some(text) = self.unanswered.take() {
            return Some(text);
        }
        self.turns.pop_if(|turn| turn.role == Role::Assistant);
        self.turns.pop_if(|turn| turn.role == Role::User).map(|turn| turn.content)
    }

    /// Forgets the messages.
    pub fn clear(&mut self) {
        (self.turns, self.unanswered) = (Vec::new(), None);
    }

    /// Number of messages, without the system prompt.
    pub fn n_messages(&self) -> usize {
        self.turns.len()
    }

    /// The messages as a JSON array, the system prompt first.
    pub fn to_json(&self) -> String {
        // Strings can always be serialized.
        serde_json::to_string_pretty(&self.messages()).unwrap_or_default() + "\n"
    }

    /// Replaces the system prompt and the messages by those of a JSON array.
    ///
    /// # Errors
    /// When it is none, or has messages other than text of the system, the user and the model.
    pub fn load_json(&mut self, text: &str) -> Result<()> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::invalid("messages", format!("not JSON: {e}")))?;
        let mut turns: Vec<ChatTurn> = from_value(value)?;
        let is_known = |role| matches!(role, Role::System | Role::User | Role::Assistant);
        if let Some(idx) = turns.iter().position(|turn| !is_known(turn.role)) {
            let message = format!("message {idx} has another role than system, user or assistant");
            return Err(Error::invalid("messages", message));
        }
        self.clear();
        let has_system = turns.first().is_some_and(|turn| turn.role == Role::System);
        self.system = has_system.then(|| turns.remove(0).content);
        self.unanswered = turns.pop_if(|turn| turn.role == Role::User).map(|turn| turn.content);
        self.turns = turns;
        Ok(())
    }

    fn messages(&self) -> Vec<ChatTurn> {
        let system = self.system.iter().map(|text| ChatTurn { role: Role::System, content: text.clone() });
        system.chain(self.turns.iter().cloned()).collect()
    }

    fn request(&self, model: &str) -> Value {
        let mut request = Map::from_iter([
            ("model".to_owned(), json!(model)),
            ("messages".to_owned(), json!(self.messages())),
            ("stream".to_owned(), json!(true)),
            ("stream_options".to_owned(), json!({"include_usage": true})),
        ]);
        if let Some(schema) = &self.schema {
            let format = json!({
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": true},
            });
            request.insert("response_format".to_owned(), format);
        }
        request.extend(self.settings.fields().clone());
        Value::Object(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(request: &Value) -> Vec<&str> {
        let messages = request["messages"].as_array().unwrap();
        messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
    }

    #[test]
    fn requests_have_all_messages_and_parameters() {
        let mut session = ChatSession::new(Some("Be brief.".to_owned()));
        session.settings.set("top_k", "3").unwrap();
        let request = session.ask("m", "one");
        assert_eq!((texts(&request), &request["top_k"]), (vec!["Be brief.", "one"], &json!(3)));
        assert_eq!((&request["model"], &request["stream"]), (&json!("m"), &json!(true)));
        assert!(request.get("response_format").is_none());
        session.end_answer("1");
        session.schema = Some(json!({"type": "object"}));
        let request = session.ask("m", "two");
        assert_eq!(texts(&request), ["Be brief.", "one", "1", "two"]);
        assert_eq!(request["response_format"]["json_schema"]["schema"], json!({"type": "object"}));
    }

    #[test]
    fn a_message_can_be_taken_back() {
        let mut session = ChatSession::default();
        assert_eq!(session.take_last(), None);
        session.ask("m", "one");
        session.end_answer("1");
        session.ask("m", "two");
        // The answer failed.
        session.end_answer("");
        assert_eq!(session.n_messages(), 2);
        assert_eq!(session.take_last().as_deref(), Some("two"));
        assert_eq!(session.take_last().as_deref(), Some("one"));
        assert_eq!((session.take_last(), session.n_messages()), (None, 0));
    }

    #[test]
    fn messages_are_saved_and_loaded() {
        let mut session = ChatSession::new(Some("Be brief.".to_owned()));
        session.ask("m", "one \"é\"");
        session.end_answer("1");
        let saved = session.to_json();
        let mut other = ChatSession::default();
        other.load_json(&saved).unwrap();
        assert_eq!((other.to_json(), other.n_messages()), (saved.clone(), 2));
        other.load_json(r#"[{"role": "user", "content": "x"}]"#).unwrap();
        assert_eq!((other.system.clone(), other.take_last().as_deref()), (None, Some("x")));
        other.load_json(&saved).unwrap();
        for (wrong, word) in [
            ("{", "not JSON"),
            ("{}", "expected an array"),
            (r#"[{"role": "tool", "content": "x"}]"#, "message 0"),
            (r#"[{"role": "robot", "content": "x"}]"#, "expected one of"),
            (r#"[{"role": "user", "content": null}]"#, "expected a string"),
            (r#"[{"role": "user", "content": "x", "tool_calls": []}]"#, "tool_calls"),
        ] {
            let error = other.load_json(wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{wrong}: {error}");
            assert_eq!(other.to_json(), saved, "{wrong}");
        }
    }
}
