//! Stdout and stderr of the commands that people read: text as it is generated, dimmed remarks, colors only where they
//! are wanted.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::process;

use crate::config::no_color;
use crate::error::{Error, Result};

/// Stdout. The process ends quietly when the reader has closed it, as `head` does.
pub struct Output {
    out: io::Stdout,
}

impl Output {
    /// The process's stdout.
    pub fn new() -> Self {
        Self { out: io::stdout() }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(exit_if_closed)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(exit_if_closed)
    }
}

/// Ends the process if the error says that nobody reads its output.
fn exit_if_closed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        process::exit(0);
    }
    error
}

/// The error for output that cannot be written.
pub fn cannot_print(error: io::Error) -> Error {
    Error::internal(format!("cannot print: {error}"))
}

/// A terminal, or what stands in for one: answers go to stdout, everything else to stderr.
pub struct Screen {
    out: Output,
    is_out_terminal: bool,
    is_err_terminal: bool,
    has_colors: bool,
    /// Whether a model's reasoning was written last.
    after_reasoning: bool,
}

impl Screen {
    /// The process's stdout and stderr.
    pub fn new() -> Self {
        let is_err_terminal = io::stderr().is_terminal();
        Self {
            out: Output::new(),
            is_out_terminal: io::stdout().is_terminal(),
            is_err_terminal,
            has_colors: is_err_terminal && !no_color(),
            after_reasoning: false,
        }
    }

    /// Whether stderr is a terminal.
    pub fn is_err_terminal(&self) -> bool {
        self.is_err_terminal
    }

    /// Writes text of an answer to stdout at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn answer(&mut self, text: &str) -> Result<()> {
        self.end_reasoning("\n\n");
        let text = if self.is_out_terminal { visible(text) } else { Cow::Borrowed(text) };
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(cannot_print)
    }

    /// Writes text of a model's reasoning to stderr, dimmed, if that is a terminal.
    pub fn reasoning(&mut self, text: &str) {
        if self.is_err_terminal {
            self.dim(&visible(text));
            self.after_reasoning = true;
        }
    }

    /// Writes a dimmed line to stderr.
    pub fn remark(&mut self, line: &str) {
        self.end_reasoning("\n");
        self.dim(&visible(line));
        write_err("\n");
    }

    /// Writes a line to stderr.
    pub fn line(&mut self, line: &str) {
        self.end_reasoning("\n");
        write_err(&format!("{}\n", visible(line)));
    }

    fn end_reasoning(&mut self, separator: &str) {
        if std::mem::take(&mut self.after_reasoning) {
            write_err(separator);
        }
    }

    fn dim(&self, text: &str) {
        match self.has_colors {
            true => write_err(&format!("\x1b[2m{text}\x1b[0m")),
            false => write_err(text),
        }
    }
}

fn write_err(text: &str) {
    // Nothing can be done about a closed stderr, and answers do not depend on it.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Text without the control characters by which a model or a server could change the terminal's state.
fn visible(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(is_hidden) {
        Cow::Owned(text.replace(is_hidden, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(visible("é\n\tx"), "é\n\tx");
        assert_eq!(visible("a\x1b[2Jb\u{9b}c\x07\r"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\u{fffd}");
    }
}
