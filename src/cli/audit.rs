//! `audit`: checks the audit log of a server.

use std::io::Write;

use super::output::cannot_print;
use crate::config::AuditCommand;
use crate::error::Result;
use crate::metering::{ChainHead, verify_chain};

/// Runs a command, and prints its result to `out`.
///
/// # Errors
/// When the log was changed or cannot be read, or `out` is closed.
pub fn run(command: &AuditCommand, out: &mut impl Write) -> Result<()> {
    let AuditCommand::Verify { file, contains } = command;
    let ChainHead { n_lines, hash } = verify_chain(file, contains.as_deref())?;
    writeln!(out, "{n_lines} lines, none changed, added or removed before the last; its hash: {hash}")
        .map_err(cannot_print)
}
