//! `chat` on a terminal: a loop of messages and answers.

use std::fs;
use std::io::{IsTerminal, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use super::answer::{StreamedAnswer, stream_answer};
use super::command::{ChatCommand, ChatEntry, help};
use super::connect::{Connection, Endpoint};
use super::executor::Executor;
use super::one_shot;
use super::output::Screen;
use super::prompt::{PromptWords, chat_session};
use super::prompt_input::{LineJoiner, TypedText};
use super::session::ChatSession;
use crate::config::{ChatArgs, history_file};
use crate::error::{Error, Kind, Result};
use crate::registry::ModelKind;

/// Lines that the history keeps.
const MAX_HISTORY_LINES: usize = 1000;

/// The prompt of a new message, and of its further lines.
const PROMPTS: [&str; 2] = [">>> ", "... "];

/// Chats until the user ends it. Without a terminal, answers stdin once. Returns the process's exit code.
///
/// # Errors
/// When the model cannot be used, or the terminal fails.
pub fn run(args: ChatArgs) -> Result<ExitCode> {
    if !stdin().is_terminal() {
        return one_shot::run(args, "chat");
    }
    let session = chat_session(&args, "chat")?;
    let executor = Executor::start()?;
    let words = PromptWords::new(&args);
    let opened = executor.run(async {
        let connection = Connection::open(&args.client, ModelKind::Chat).await?;
        let (model, prompt) = words.split(|word| connection.has_model(word));
        Ok((connection.with_model(model.as_deref()).await?, prompt))
    })?;
    let Some((endpoint, prompt)) = opened else { return Ok(Executor::interrupted()) };
    let mut chat = Chat { executor, endpoint, session, screen: Screen::new(), has_stats: args.stats };
    let mut reader = MessageReader::open()?;
    chat.screen
        .remark(&format!("{}; /help lists the commands, Ctrl-D ends the chat", chat.endpoint.describe()));
    if !prompt.is_empty() {
        chat.ask(&prompt)?;
    }
    while let Some(entry) = reader.next()? {
        if !chat.enter(entry)? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A chat with its server.
struct Chat {
    executor: Executor,
    endpoint: Endpoint,
    session: ChatSession,
    screen: Screen,
    /// Whether figures are shown even without a terminal.
    has_stats: bool,
}

impl Chat {
    /// Does what the user typed. Returns whether the chat goes on.
    ///
    /// # Errors
    /// When an answer cannot be printed.
    fn enter(&mut self, entry: TypedText) -> Result<bool> {
        let entry = match entry.is_quoted {
            true => Ok(ChatEntry::Message(entry.text)),
            false => ChatEntry::parse(&entry.text),
        };
        match entry {
            Ok(ChatEntry::Message(text)) if text.trim().is_empty() => {}
            Ok(ChatEntry::Message(text)) => self.ask(&text)?,
            Ok(ChatEntry::Command(ChatCommand::Exit)) => return Ok(false),
            Ok(ChatEntry::Command(ChatCommand::Retry)) => match self.session.take_last() {
                Some(text) => self.ask(&text)?,
                None => self.screen.line("there is no message to answer once more"),
            },
            Ok(ChatEntry::Command(command)) => match self.obey(command) {
                Ok(report) => self.screen.line(&report),
                Err(e) => self.screen.line(&format!("error: {e}")),
            },
            Err(message) => self.screen.line(&format!("error: {message}")),
        }
        Ok(true)
    }

    /// Sends a message and prints the answer. Ctrl-C stops it; the part that there is stays.
    fn ask(&mut self, text: &str) -> Result<()> {
        let request = self.session.ask(&self.endpoint.model, text);
        let mut answer = StreamedAnswer::default();
        let work = stream_answer(&self.endpoint.client, &request, &mut self.screen, &mut answer);
        let result = self.executor.run(work);
        if !answer.text.is_empty() {
            self.screen.answer("\n")?;
        }
        self.session.end_answer(&answer.text);
        match result {
            Ok(Some(())) if answer.is_cut => {
                self.screen.line("the answer is incomplete: it reached the limit of tokens");
            }
            Ok(Some(())) => {}
            Ok(None) => self.screen.remark("stopped; /retry answers once more"),
            Err(e) => self.screen.line(&format!("error: {e}")),
        }
        let shows_figures = self.has_stats || self.screen.is_err_terminal();
        if let Some(figures) = answer.figures.filter(|_| shows_figures) {
            self.screen.remark(&figures.line());
        }
        Ok(())
    }

    /// Runs a command that needs no answer, and returns what to tell the user.
    fn obey(&mut self, command: ChatCommand) -> Result<String> {
        let Self { session, .. } = self;
        Ok(match command {
            ChatCommand::System(None) => match &session.system {
                Some(text) => text.clone(),
                None => "there is no system prompt; /system TEXT sets one".to_owned(),
            },
            ChatCommand::System(Some(text)) => {
                session.system = (text != "none").then_some(text);
                match session.system {
                    Some(_) => "system prompt set".to_owned(),
                    None => "system prompt removed".to_owned(),
                }
            }
            ChatCommand::Set(None) => session.settings.list(),
            ChatCommand::Set(Some((name, value))) => {
                if let Some(value) = value {
                    session.settings.set(&name, &value)?;
                }
                session.settings.describe(&name)?
            }
            ChatCommand::Model(name) => self.model(name.as_deref())?,
            ChatCommand::Save(path) => {
                fs::write(&path, session.to_json()).map_err(|e| file_error("write", &path, &e))?;
                format!("{} messages saved in {}", session.n_messages(), path.display())
            }
            ChatCommand::Load(path) => {
                let text = fs::read_to_string(&path).map_err(|e| file_error("read", &path, &e))?;
                session.load_json(&text).map_err(|e| file_error("use", &path, &e))?;
                format!("{} messages loaded from {}", session.n_messages(), path.display())
            }
            ChatCommand::Clear => {
                session.clear();
                "messages forgotten".to_owned()
            }
            ChatCommand::Help => help(),
            // The loop does these itself.
            ChatCommand::Retry | ChatCommand::Exit => String::new(),
        })
    }

    fn model(&mut self, name: Option<&str>) -> Result<String> {
        let Self { executor, endpoint, .. } = self;
        match name {
            None => Ok(executor.run(endpoint.list())?.unwrap_or_default()),
            Some(name) => match executor.run(endpoint.switch(name))? {
                Some(()) => Ok(endpoint.describe()),
                None => Ok(format!("stopped; still {}", endpoint.describe())),
            },
        }
    }
}

fn file_error(operation: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::InvalidRequest, format!("cannot {operation} {}: {error}", path.display()))
}

/// Reads messages from the terminal, with line editing and a history.
struct MessageReader {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
    joiner: LineJoiner,
}

impl MessageReader {
    /// Opens the terminal, and the history of earlier chats.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    fn open() -> Result<Self> {
        // Stdout may be a file, where prompts do not belong.
        let config = Config::builder().behavior(Behavior::PreferTerm).history_ignore_space(true);
        let config = config.max_history_size(MAX_HISTORY_LINES).map_err(|e| terminal_error(&e))?.build();
        let mut editor = Editor::with_config(config).map_err(|e| terminal_error(&e))?;
        let history = history_file();
        if let Some(path) = &history {
            // There is none before the first chat.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history, joiner: LineJoiner::default() })
    }

    /// The next entry; `None` at the end, which is Ctrl-D. Ctrl-C drops what is typed.
    ///
    /// # Errors
    /// When the terminal fails.
    fn next(&mut self) -> Result<Option<TypedText>> {
        loop {
            let prompt = PROMPTS[usize::from(self.joiner.is_pending())];
            match self.editor.readline(prompt) {
                Ok(line) => {
                    // A line that is not kept can still be sent.
                    let _ = self.editor.add_history_entry(line.as_str());
                    if let Some(entry) = self.joiner.push(&line) {
                        return Ok(Some(entry));
                    }
                }
                Err(ReadlineError::Interrupted) => self.joiner.clear(),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(e) => return Err(terminal_error(&e)),
            }
        }
    }
}

impl Drop for MessageReader {
    fn drop(&mut self) {
        if let Some(path) = &self.history {
            // A chat is worth more than its history.
            let _ = path.parent().map(fs::create_dir_all);
            let _ = self.editor.append_history(path);
        }
    }
}

fn terminal_error(error: &ReadlineError) -> Error {
    Error::internal(format!("cannot read from the terminal: {error}"))
}
