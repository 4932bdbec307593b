//! Stdin of the commands that read texts from it.

use std::io::{IsTerminal, Read, stdin};

use crate::config::Args;
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// The text on stdin; none if it is a terminal, where a person would have to end it.
///
/// # Errors
/// When it cannot be read, or is not UTF-8.
pub fn piped_text() -> Result<String> {
    let mut text = String::new();
    if !stdin().is_terminal() {
        stdin().lock().read_to_string(&mut text).map_err(|e| {
            Error::new(Kind::InvalidRequest, format!("cannot read stdin: {e}; it must be UTF-8 text"))
        })?;
    }
    Ok(text)
}

/// The `given` arguments of a command or, without any, the lines of stdin that have text; the user is told how many have
/// none. Exits the process if there are neither: `what` is missing.
///
/// # Errors
/// When stdin cannot be read, or is not UTF-8.
pub fn given_or_piped(given: &[String], command: &str, what: &str) -> Result<Vec<String>> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let (lines, n_empty) = split_lines(&piped_text()?);
    if n_empty > 0 {
        telemetry::print_lines(&format!("empty lines of stdin left out: {n_empty}"));
    }
    if lines.is_empty() {
        Args::exit_with_usage(command, format!("no {what}: pass them as arguments or as lines of stdin"));
    }
    Ok(lines)
}

/// The lines that have text, and the number of those that have none.
fn split_lines(text: &str) -> (Vec<String>, usize) {
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    let n_empty = text.lines().count() - lines.len();
    (lines, n_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_text_are_counted() {
        assert_eq!(split_lines(" a\r\n\nb\n \n"), (vec![" a".to_owned(), "b".to_owned()], 2));
        assert_eq!(split_lines(""), (vec![], 0));
    }
}
