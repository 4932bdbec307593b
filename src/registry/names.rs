//! Names of repositories, revisions and files: checks that they are safe as parts of a path.

use crate::error::{Error, Result};

/// The branch that a reference without a revision means.
pub const DEFAULT_REVISION: &str = "main";

/// Whether a revision is a commit hash: 40 hex digits.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Checks a repository name: `owner/name`, or the bare name of one of the hub's oldest repositories.
///
/// # Errors
/// When it has another form. `--` is refused, as on the hub, because it separates owner and name in the name of
/// the cache folder.
pub fn check_repo(repo: &str) -> Result<()> {
    let n_parts = repo.split('/').count();
    let fits = n_parts <= 2 && !repo.contains("--") && !repo.contains("..");
    if fits && repo.split('/').all(|part| check_word("repository", part, "._-").is_ok()) {
        Ok(())
    } else {
        Err(Error::registry(format!("`{repo}` is not a repository name; write hf:owner/repo")))
    }
}

/// Checks the name of a branch, tag or commit. Branches may contain `/`.
///
/// # Errors
/// When the path of the revision would leave its folder, or the name contains other characters.
pub fn check_revision(revision: &str) -> Result<()> {
    check_relative_path(revision)?;
    match revision.chars().find(|&c| !(c.is_ascii_alphanumeric() || "._-/+".contains(c))) {
        None => Ok(()),
        Some(c) => Err(Error::registry(format!("`{revision}` is not a revision name: it contains {c:?}"))),
    }
}

/// Checks a path inside a repository, a wheel or a model folder, with `/` between its parts.
///
/// # Errors
/// When the path is absolute, contains `..`, or has empty parts or control characters.
pub fn check_relative_path(path: &str) -> Result<()> {
    let is_safe = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':'])
            && !part.chars().any(char::is_control)
    };
    if path.split('/').all(is_safe) {
        Ok(())
    } else {
        Err(Error::registry(format!(
            "{path:?} is not a path inside the model: it must be relative, without `..` or empty parts"
        )))
    }
}

/// Checks a name of letters, digits and `punctuation` that starts with a letter or digit, so that pip cannot take
/// it for an option. `what` says in the error what kind of name it is.
///
/// # Errors
/// When it has another form.
pub fn check_word(what: &str, word: &str, punctuation: &str) -> Result<()> {
    let starts = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && word.chars().all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c)) {
        Ok(())
    } else {
        Err(Error::registry(format!("`{word}` is not a valid {what} name")))
    }
}
