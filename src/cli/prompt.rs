//! The start of a chat, from its command line: prompt, model, system prompt, parameters, schema.

use std::fs;

use super::session::ChatSession;
use crate::config::{Args, ChatArgs};
use crate::error::{Error, Kind, Result};

/// The words of the command line, of which the first may name a model.
pub struct PromptWords<'a> {
    /// The model of `--model`, after which all words are the prompt.
    model: Option<&'a str>,
    words: Vec<&'a str>,
}

impl<'a> PromptWords<'a> {
    /// The words of a command line.
    pub fn new(args: &'a ChatArgs) -> Self {
        let words = args.first_word.iter().chain(&args.prompt).map(String::as_str).collect();
        Self { model: args.client.model.as_deref(), words }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The model, if one is named, and the prompt.
    pub fn split(&self, is_model: impl Fn(&str) -> bool) -> (Option<String>, String) {
        let (model, words) = match (self.model, self.words.split_first()) {
            (None, Some((first, rest))) if is_model(first) => (Some(*first), rest),
            (model, _) => (model, self.words.as_slice()),
        };
        (model.map(str::to_owned), words.join(" "))
    }
}

/// A chat without messages, with the parameters of the command line. Exits the process if one has a wrong value.
///
/// # Errors
/// When the file of the schema cannot be read.
pub fn chat_session(args: &ChatArgs, command: &str) -> Result<ChatSession> {
    let mut session = ChatSession::new(args.system.clone());
    let flags = [
        ("max_tokens", args.max_tokens.map(|n| n.to_string())),
        ("temperature", args.temperature.map(|t| t.to_string())),
        ("top_p", args.top_p.map(|p| p.to_string())),
        ("seed", args.seed.map(|n| n.to_string())),
    ];
    let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    for (name, value) in flags.chain(args.set.iter().cloned()) {
        if let Err(e) = session.settings.set(&name, &value) {
            Args::exit_with_usage(command, e);
        }
    }
    if let Some(path) = &args.json_schema {
        let unreadable = |e: &dyn std::fmt::Display| {
            Error::new(Kind::Config, format!("cannot use --json-schema {}: {e}", path.display()))
        };
        let text = fs::read_to_string(path).map_err(|e| unreadable(&e))?;
        session.schema = Some(serde_json::from_str(&text).map_err(|e| unreadable(&e))?);
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_may_name_a_model() {
        let split = |model, words: &[&str]| {
            let words = PromptWords { model, words: words.to_vec() };
            words.split(|word| word == "m")
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(split(None, &["m", "say", "hi"]), (some("m"), "say hi".to_owned()));
        assert_eq!(split(None, &["say", "m"]), (None, "say m".to_owned()));
        assert_eq!(split(Some("other"), &["m", "x"]), (some("other"), "m x".to_owned()));
        assert_eq!(split(None, &["m"]), (some("m"), String::new()));
        assert_eq!(split(None, &[]), (None, String::new()));
    }
}
