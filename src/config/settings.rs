//! The options of `serve` in effect, each with its source, as a config file.

use std::ffi::OsString;
use std::fmt;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches};
use toml::Value;

/// An option, its value and where that comes from. Displayed as a line of a config file.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The flag's name.
    pub name: String,
    /// The value, unless there is none or it is secret.
    pub value: Option<Value>,
    /// The source of the value, or the reason for its absence.
    pub source: String,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}  # {}", self.name, self.source),
            None => write!(f, "# {}: {}", self.name, self.source),
        }
    }
}

/// The options of `serve`, which are `given` on a command line to which the config file `file` has added words.
pub fn settings(
    serve: &clap::Command,
    given: &ArgMatches,
    from_file: &[OsString],
    file: &str,
) -> Vec<Setting> {
    let setting = |option: &clap::Arg| {
        let (id, name) = (option.get_id().as_str(), option.get_long()?);
        if ["help", "version", "config"].contains(&name) {
            return None;
        }
        let is_in_file = from_file.iter().any(|word| {
            let word = word.to_string_lossy();
            word.strip_prefix("--").is_some_and(|word| word == name || word.starts_with(&format!("{name}=")))
        });
        let source = match given.value_source(id) {
            _ if is_in_file => file.to_owned(),
            Some(ValueSource::CommandLine) => "command line".to_owned(),
            Some(ValueSource::EnvVariable) => {
                option.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Some(_) => "default".to_owned(),
            None => "not set".to_owned(),
        };
        let raw = || given.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy());
        let (value, source) = match (option.is_hide_env_values_set(), raw().count()) {
            (_, 0) => (None, source),
            (true, n) => (None, format!("{n}, not shown, {source}")),
            (false, _) if is_list(option) => {
                (Some(Value::Array(raw().map(|text| text.into_owned().into()).collect())), source)
            }
            (false, _) => (raw().next_back().map(|text| value_of(&text)), source),
        };
        Some(Setting { name: name.to_owned(), value, source })
    };
    serve.get_arguments().filter_map(setting).collect()
}

fn is_list(option: &clap::Arg) -> bool {
    matches!(option.get_action(), ArgAction::Append)
}

/// A number or a truth value if it is one, else a text.
fn value_of(text: &str) -> Value {
    text.parse()
        .map(Value::Integer)
        .or_else(|_| text.parse().map(Value::Boolean))
        .unwrap_or(Value::from(text))
}
