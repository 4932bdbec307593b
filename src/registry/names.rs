//! Names of repositories, revisions and files, checked before they become parts of paths.

use crate::error::{Error, Result};

/// The branch meant when none is named.
pub const DEFAULT_REVISION: &str = "main";

/// Whether a revision is a commit: 40 hex digits.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `owner/name`, or the bare name of one of the hub's oldest repositories.
///
/// # Errors
/// When it is not of that form. `--` is refused as the hub does, because the cache folder of a
/// repository joins its two halves by it.
pub fn check_repo(repo: &str) -> Result<()> {
    let n_parts = repo.split('/').count();
    let fits = n_parts <= 2 && !repo.contains("--") && !repo.contains("..");
    if fits && repo.split('/').all(|part| check_word("repository", part, "._-").is_ok()) {
        Ok(())
    } else {
        Err(Error::registry(format!("`{repo}` is not a repository name; write hf:owner/repo")))
    }
}

/// A branch, tag or commit; branches may contain `/`.
///
/// # Errors
/// When it could leave the folder that holds revisions, or is not a revision name.
pub fn check_revision(revision: &str) -> Result<()> {
    check_relative_path(revision)?;
    match revision.chars().find(|&c| !(c.is_ascii_alphanumeric() || "._-/+".contains(c))) {
        None => Ok(()),
        Some(c) => Err(Error::registry(format!("`{revision}` is not a revision: it contains {c:?}"))),
    }
}

/// A path inside a repository, a wheel or a model folder, with `/` between its parts.
///
/// # Errors
/// When the path is absolute, climbs, or has empty or unprintable parts.
pub fn check_relative_path(path: &str) -> Result<()> {
    let safe = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':'])
            && !part.chars().any(char::is_control)
    };
    if path.split('/').all(safe) {
        Ok(())
    } else {
        Err(Error::registry(format!(
            "{path:?} is not a path inside the model: it must be relative, without `..` or empty parts"
        )))
    }
}

/// A name that starts with a letter or digit (so that pip cannot take it for an option) and goes
/// on with letters, digits and `marks`.
pub fn check_word(what: &str, word: &str, marks: &str) -> Result<()> {
    let starts = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && word.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c)) {
        Ok(())
    } else {
        Err(Error::registry(format!("`{word}` is not a {what} name")))
    }
}
