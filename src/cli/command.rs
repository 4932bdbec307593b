//! The commands of a chat, which begin with a slash.

use std::path::PathBuf;

/// A command of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatCommand {
    /// Shows, sets or, with `none`, removes the system prompt.
    System(Option<String>),
    /// Lists the parameters, shows one, or sets one.
    Set(Option<(String, Option<String>)>),
    /// Lists the models, or switches to one.
    Model(Option<String>),
    /// Answers the last message once more.
    Retry,
    /// Writes the messages to a file.
    Save(PathBuf),
    /// Reads the messages from a file.
    Load(PathBuf),
    /// Forgets the messages.
    Clear,
    /// Lists the commands.
    Help,
    /// Ends the chat.
    Exit,
}

/// Commands with their arguments, and what they do.
const COMMANDS: [(&str, &str); 9] = [
    ("/system [TEXT]", "show or set the system prompt; `none` removes it"),
    ("/set [NAME [VALUE]]", "list or set parameters; the value `default` resets one"),
    ("/model [NAME]", "list the models, or switch to one; the messages stay"),
    ("/retry", "answer the last message once more"),
    ("/save FILE", "write the messages to a file, as JSON"),
    ("/load FILE", "read the messages from a file"),
    ("/clear", "forget the messages; the system prompt stays"),
    ("/help", "print this list"),
    ("/exit", "end the chat, as Ctrl-D does"),
];

/// An entry at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum ChatEntry {
    /// A message for the model.
    Message(String),
    /// A command.
    Command(ChatCommand),
}

impl ChatEntry {
    /// Interprets a typed line.
    ///
    /// # Errors
    /// When it is an unknown command, or its arguments are wrong; the error says what is right.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else { return Ok(Self::Message(line.to_owned())) };
        if command.starts_with('/') {
            return Ok(Self::Message(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let optional = (!rest.is_empty()).then(|| rest.to_owned());
        let needs_no = |command: ChatCommand| match rest {
            "" => Ok(command),
            _ => Err(format!("/{name} takes no argument")),
        };
        let file = || match rest {
            "" => Err(format!("/{name} needs a file, as in: /{name} chat.json")),
            rest => Ok(PathBuf::from(rest)),
        };
        let command = match name {
            "system" => ChatCommand::System(optional),
            "set" => ChatCommand::Set(optional.map(|setting| {
                match setting.split_once(|c: char| c.is_whitespace() || c == '=') {
                    None => (setting, None),
                    Some((name, value)) => {
                        (name.to_owned(), Some(value.trim_start_matches([' ', '=']).to_owned()))
                    }
                }
            })),
            "model" => ChatCommand::Model(optional),
            "retry" => needs_no(ChatCommand::Retry)?,
            "save" => ChatCommand::Save(file()?),
            "load" => ChatCommand::Load(file()?),
            "clear" => needs_no(ChatCommand::Clear)?,
            "help" | "?" => needs_no(ChatCommand::Help)?,
            "exit" | "quit" => needs_no(ChatCommand::Exit)?,
            _ => {
                return Err(format!(
                    "unknown command /{name}; /help lists the commands, and a message that begins with a slash is \
                     written with two"
                ));
            }
        };
        Ok(Self::Command(command))
    }
}

/// The text of `/help`.
pub fn help() -> String {
    let width = COMMANDS.iter().map(|(usage, _)| usage.len()).max().unwrap_or_default();
    let rows: String = COMMANDS.iter().map(|(usage, text)| format!("{usage:width$}  {text}\n")).collect();
    rows + "\nWrite a message of several lines between \"\"\" and \"\"\", or end a line with \\ to go on. \
            Ctrl-C stops an answer."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        let message = |text: &str| Ok(ChatEntry::Message(text.to_owned()));
        let command = |command| Ok(ChatEntry::Command(command));
        let some = |text: &str| Some(text.to_owned());
        for (line, entry) in [
            (" hello ", message("hello")),
            ("", message("")),
            ("//etc is a folder", message("/etc is a folder")),
            ("/system", command(ChatCommand::System(None))),
            ("/system  Be brief. ", command(ChatCommand::System(some("Be brief.")))),
            ("/set", command(ChatCommand::Set(None))),
            ("/set top_k", command(ChatCommand::Set(Some(("top_k".to_owned(), None))))),
            ("/set top_k 40", command(ChatCommand::Set(Some(("top_k".to_owned(), some("40")))))),
            ("/set top_k = 40", command(ChatCommand::Set(Some(("top_k".to_owned(), some("40")))))),
            ("/set stop=a b", command(ChatCommand::Set(Some(("stop".to_owned(), some("a b")))))),
            ("/model", command(ChatCommand::Model(None))),
            ("/model a/b", command(ChatCommand::Model(some("a/b")))),
            ("/retry", command(ChatCommand::Retry)),
            ("/save my chat.json", command(ChatCommand::Save("my chat.json".into()))),
            ("/load chat.json", command(ChatCommand::Load("chat.json".into()))),
            ("/clear", command(ChatCommand::Clear)),
            ("/?", command(ChatCommand::Help)),
            ("/quit", command(ChatCommand::Exit)),
        ] {
            assert_eq!(ChatEntry::parse(line), entry, "{line}");
        }
        for (line, word) in [
            ("/sytem x", "unknown command /sytem"),
            ("/", "unknown command /"),
            ("/save", "/save needs a file"),
            ("/load ", "/load needs a file"),
            ("/exit now", "/exit takes no argument"),
        ] {
            assert!(ChatEntry::parse(line).unwrap_err().contains(word), "{line}");
        }
    }

    #[test]
    fn every_command_of_the_help_exists() {
        for (usage, _) in COMMANDS {
            let name = usage.split(' ').next().unwrap();
            let line = if usage.contains(" FILE") { format!("{name} x") } else { name.to_owned() };
            assert!(matches!(ChatEntry::parse(&line), Ok(ChatEntry::Command(_))), "{usage}");
            assert!(help().contains(usage));
        }
    }
}
