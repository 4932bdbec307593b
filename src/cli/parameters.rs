//! The generation parameters that a chat can set, by the names that the API gives them.

use serde_json::{Map, Value};

use crate::chat::{Caller, chat_generation_request};
use crate::error::{Error, Kind, Result, quote};
use crate::openai::chat::ChatCompletionRequest;

/// Form of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueForm {
    Integer,
    Number,
    /// Text or, where it begins as JSON does, a JSON string or array.
    Text,
}

/// A parameter: its name, the form of its value, its default in words, and its meaning.
type ParameterRow = (&'static str, ValueForm, &'static str, &'static str);

use ValueForm::{Integer, Number, Text};

/// The parameters.
const PARAMETERS: [ParameterRow; 13] = [
    ("max_tokens", Integer, "until the context is full", "most tokens of an answer"),
    ("temperature", Number, "1", "0 always picks the likeliest token, higher values vary more"),
    ("top_p", Number, "1", "sample from the likeliest tokens that together reach this probability"),
    ("top_k", Integer, "0", "sample from this many of the likeliest tokens; 0 is all"),
    ("min_p", Number, "0", "sample from tokens that are this likely, relative to the likeliest"),
    ("seed", Integer, "random", "equal seeds draw equal tokens"),
    ("stop", Text, "none", "text that ends an answer, or a JSON array of texts"),
    ("repeat_penalty", Number, "1", "divides the logits of tokens that have occurred"),
    ("repeat_last_n", Integer, "64", "number of recent tokens for repeat_penalty; -1 is all"),
    ("presence_penalty", Number, "0", "lowers the logits of tokens that have occurred"),
    ("frequency_penalty", Number, "0", "lowers them once more for each occurrence"),
    ("reasoning_effort", Text, "the model's", "none, minimal, low, medium, high, xhigh or max"),
    ("thinking_budget", Integer, "-1", "most tokens of the reasoning; -1 is no limit"),
];

/// The parameters that were set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationSettings {
    values: Map<String, Value>,
}

impl GenerationSettings {
    /// The parameters as fields of a request.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.values
    }

    /// Sets a parameter. The value `default` resets it.
    ///
    /// # Errors
    /// When there is no such parameter, or the value is out of its range.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let (_, form, ..) = row(name)?;
        if value == "default" {
            self.values.remove(name);
            return Ok(());
        }
        let mut changed = self.values.clone();
        changed.insert(name.to_owned(), parse_value(name, *form, value)?);
        // The server would refuse the next message instead.
        let request = ChatCompletionRequest::from_object(changed.clone())?;
        chat_generation_request(&request, Caller::default())?;
        self.values = changed;
        Ok(())
    }

    /// A line about a parameter: its name, its value or default, and its meaning.
    ///
    /// # Errors
    /// When there is no such parameter.
    pub fn describe(&self, name: &str) -> Result<String> {
        Ok(self.line(row(name)?))
    }

    /// A line for each parameter.
    pub fn list(&self) -> String {
        PARAMETERS.iter().map(|row| self.line(row)).collect::<Vec<_>>().join("\n")
    }

    fn line(&self, (name, _, default, meaning): &ParameterRow) -> String {
        let value = match self.values.get(*name) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => format!("{default} (default)"),
        };
        format!("{name:17}  {value:35}  {meaning}")
    }
}

fn row(name: &str) -> Result<&'static ParameterRow> {
    PARAMETERS.iter().find(|row| row.0 == name).ok_or_else(|| {
        let names: Vec<&str> = PARAMETERS.iter().map(|row| row.0).collect();
        Error::new(
            Kind::InvalidRequest,
            format!("unknown parameter `{}`; there are {}", quote(name), names.join(", ")),
        )
    })
}

fn parse_value(name: &str, form: ValueForm, text: &str) -> Result<Value> {
    let value = match form {
        Integer => text.parse().ok().map(|n: i64| Value::from(n)),
        // An integer stays one, so that it is shown as typed.
        Number => match text.parse::<i64>() {
            Ok(n) => Some(Value::from(n)),
            Err(_) => text.parse().ok().filter(|n: &f64| n.is_finite()).map(Value::from),
        },
        Text if text.starts_with(['"', '[']) => serde_json::from_str(text).ok(),
        Text => Some(Value::from(text)),
    };
    let expected = match form {
        Integer => "an integer",
        Number => "a number",
        Text => "text, or JSON in quotes or brackets",
    };
    value.ok_or_else(|| {
        Error::new(
            Kind::InvalidRequest,
            format!("`{name}` is {}; it must be {expected}, or default", quote(text)),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inference::SamplingParams;

    #[test]
    fn parameters_are_set_checked_and_reset() {
        let mut settings = GenerationSettings::default();
        for (name, value, expected) in [
            ("max_tokens", "5", json!(5)),
            ("temperature", "0.7", json!(0.7)),
            ("temperature", "1", json!(1)),
            ("seed", "-3", json!(-3)),
            ("stop", "END", json!("END")),
            ("stop", "\"\\n\"", json!("\n")),
            ("stop", "[\"a\", \"b\"]", json!(["a", "b"])),
            ("reasoning_effort", "low", json!("low")),
        ] {
            settings.set(name, value).unwrap_or_else(|e| panic!("{name} {value}: {e}"));
            assert_eq!(settings.fields()[name], expected, "{name}");
        }
        let before = settings.clone();
        for (name, value, word) in [
            ("warmth", "1", "there are max_tokens"),
            ("temperature", "5", "from 0 to 2"),
            ("temperature", "warm", "must be a number"),
            ("temperature", "inf", "must be a number"),
            ("max_tokens", "1.5", "must be an integer"),
            ("max_tokens", "0", "max_tokens"),
            ("reasoning_effort", "some", "reasoning_effort"),
            ("stop", "[1", "must be text"),
            ("stop", "[1]", "stop"),
        ] {
            let error = settings.set(name, value).unwrap_err().to_string();
            assert!(error.contains(word), "{name} {value}: {error}");
        }
        assert_eq!(settings, before);
        settings.set("stop", "default").unwrap();
        assert!(!settings.fields().contains_key("stop"));
        assert!(settings.list().contains("none (default)") && settings.list().contains("low"));
        assert!(settings.describe("seed").unwrap().contains("-3"));
    }

    #[test]
    fn defaults_are_the_servers() {
        let defaults = SamplingParams::default();
        let default_of = |name: &str| row(name).unwrap().2;
        for (name, value) in [
            ("temperature", defaults.temperature),
            ("top_p", defaults.top_p),
            ("min_p", defaults.min_p),
            ("repeat_penalty", defaults.repeat_penalty),
            ("presence_penalty", defaults.presence_penalty),
            ("frequency_penalty", defaults.frequency_penalty),
        ] {
            assert_eq!(default_of(name), value.to_string(), "{name}");
        }
        assert_eq!(default_of("top_k"), defaults.top_k.to_string());
        assert_eq!(Some(default_of("repeat_last_n").parse().unwrap()), defaults.repeat_last_n);
        assert_eq!(defaults.seed, None);
    }
}
