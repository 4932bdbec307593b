//! `run`, and `chat` without a terminal: one prompt, one answer.

use std::process::ExitCode;

use super::answer::{StreamedAnswer, stream_answer};
use super::connect::Connection;
use super::executor::Executor;
use super::output::Screen;
use super::prompt::{PromptWords, chat_session};
use super::stdin::piped_text;
use crate::config::{Args, ChatArgs};
use crate::error::Result;
use crate::registry::ModelKind;

/// Answers the prompt of the arguments and stdin, and returns the process's exit code. `command` is the name that
/// usage errors show.
///
/// # Errors
/// When the model cannot be used, or the answer fails.
pub fn run(args: ChatArgs, command: &str) -> Result<ExitCode> {
    let mut session = chat_session(&args, command)?;
    // Until it has been read, Ctrl-C ends the process by itself.
    let piped = piped_text()?;
    let words = PromptWords::new(&args);
    if words.is_empty() && piped.trim().is_empty() {
        Args::exit_with_usage(command, "no prompt: pass one as an argument or on stdin");
    }
    Executor::command(async {
        let connection = Connection::open(&args.client, ModelKind::Chat).await?;
        let (model, prompt) = words.split(|word| connection.has_model(word));
        let endpoint = connection.with_model(model.as_deref()).await?;
        let text = with_piped(&prompt, &piped);
        if text.is_empty() {
            Args::exit_with_usage(command, "no prompt: pass one after the model or on stdin");
        }
        let mut screen = Screen::new();
        let mut answer = StreamedAnswer::default();
        let request = session.ask(&endpoint.model, &text);
        let result = stream_answer(&endpoint.client, &request, &mut screen, &mut answer).await;
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            screen.answer("\n")?;
        }
        result?;
        if answer.is_cut && (args.json_schema.is_some() || args.max_tokens.is_none()) {
            screen.line("the answer is incomplete: it reached the limit of tokens");
        }
        if let Some(figures) = answer.figures.filter(|_| args.stats) {
            screen.remark(&figures.line());
        }
        Ok(())
    })
}

/// The prompt, followed by the text of stdin.
fn with_piped(prompt: &str, piped: &str) -> String {
    match (prompt.trim(), piped.trim_end()) {
        (prompt, "") => prompt.to_owned(),
        ("", piped) => piped.to_owned(),
        (prompt, piped) => format!("{prompt}\n\n{piped}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_follows_the_prompt() {
        assert_eq!(with_piped("Summarise.", ""), "Summarise.");
        assert_eq!(with_piped("Summarise.", " a\nb\n"), "Summarise.\n\n a\nb");
        assert_eq!(with_piped("", "a\n"), "a");
    }
}
