//! The config file: options of `serve` in TOML, under the names of their flags.
//!
//! A value in the file counts where neither the command line nor an environment variable has one. It is added to the
//! command line as typed, so that it is parsed and checked by the same rules.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;
use toml::{Table, Value};

use crate::error::{Error, Kind, Result};

/// The words that the config file at `path` adds to a command line whose options of `command` are `given`.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has a value of a type that no option has.
pub fn words_from_file(path: &Path, command: &clap::Command, given: &ArgMatches) -> Result<Vec<OsString>> {
    let failed = |e: &dyn std::fmt::Display| {
        let message = format!("cannot use the config file {}: {e}", path.display());
        Error::new(Kind::Config, message)
    };
    let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
    let table: Table = text.parse().map_err(|e| failed(&e))?;
    let mut words = Vec::new();
    for (name, value) in &table {
        let option = command.get_arguments().find(|option| option.get_long() == Some(name));
        if !option.is_some_and(|option| is_set(given, option.get_id().as_str())) {
            words.extend(words_of(name, value).map_err(|e| failed(&e))?);
        }
    }
    Ok(words)
}

/// A config file for an unpacked bundle: these models, from this folder alone.
pub fn bundle_settings(
    cache_dir: &Path,
    models: &[String],
    embedding_model: &str,
    rerank_model: Option<&str>,
) -> String {
    let text = |value: &str| Value::String(value.to_owned());
    let mut table = Table::new();
    table.insert("offline".to_owned(), Value::Boolean(true));
    table.insert("cache-dir".to_owned(), text(&cache_dir.display().to_string()));
    table.insert("model".to_owned(), Value::Array(models.iter().map(|model| text(model)).collect()));
    table.insert("embedding-model".to_owned(), text(embedding_model));
    if let Some(model) = rerank_model {
        table.insert("rerank-model".to_owned(), text(model));
    }
    table.to_string()
}

/// Whether the command line or an environment variable sets an option.
fn is_set(given: &ArgMatches, id: &str) -> bool {
    matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The flag `name` with each of its values.
fn words_of(name: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let word = |value: &str| OsString::from(format!("--{name}={value}"));
    Ok(match value {
        Value::Boolean(true) => vec![format!("--{name}").into()],
        Value::Boolean(false) => Vec::new(),
        Value::Array(values) => {
            values.iter().map(|value| Ok(word(&scalar(name, value)?))).collect::<Result<_, String>>()?
        }
        // Pairs, such as aliases.
        Value::Table(pairs) => pairs
            .iter()
            .map(|(key, value)| Ok(word(&format!("{key}={}", scalar(name, value)?))))
            .collect::<Result<_, String>>()?,
        value => vec![word(&scalar(name, value)?)],
    })
}

fn scalar(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => Err(format!("`{name}` must be a text, a number, true or false, or a list or table of these")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_words() {
        let table: Table =
            "port = 9\npreload = true\nno-auth = false\nmodel = [\"a\", \"b\"]\nalias = {x = \"y\"}"
                .parse()
                .unwrap();
        let words: Vec<OsString> =
            table.iter().flat_map(|(name, value)| words_of(name, value).unwrap()).collect();
        let mut words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.sort_unstable();
        assert_eq!(words, ["--alias=x=y", "--model=a", "--model=b", "--port=9", "--preload"]);
        let nested: Table = "model = [[1]]".parse().unwrap();
        assert!(words_of("model", &nested["model"]).unwrap_err().contains("`model`"));
    }
}
