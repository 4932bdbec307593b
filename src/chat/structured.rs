//! Structured output: the grammar that a request asks for, in any of the forms that clients send.

use serde_json::{Value, json};

use crate::error::{Error, Result, quote};
use crate::inference::Grammar;
use crate::openai::generation_options::{GenerationOptions, ResponseFormatKind};

/// A grammar that the response must match.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstraintSpec {
    /// The request parameter that asks for it, for error messages.
    pub param: &'static str,
    /// The grammar, not yet compiled.
    pub grammar: Grammar,
}

/// OpenAI's limit for names of response formats and functions.
const MAX_NAME_BYTES: usize = 64;

/// The constraint that the options ask for, if any.
///
/// # Errors
/// When a grammar is malformed, or several are requested.
pub fn constraint_of(options: &GenerationOptions) -> Result<Option<ConstraintSpec>> {
    let mut specs = Vec::new();
    let mut add = |param, grammar| specs.push(ConstraintSpec { param, grammar });
    match options.response_format.as_ref().map(|format| (format.kind, &format.json_schema)) {
        None | Some((ResponseFormatKind::Text, _)) => {}
        Some((ResponseFormatKind::JsonObject, _)) => {
            add("response_format", Grammar::JsonSchema(json!({"type": "object"})));
        }
        Some((ResponseFormatKind::JsonSchema, None)) => {
            let message =
                "`response_format` of type `json_schema` needs `json_schema` with a name and a schema";
            return Err(Error::invalid("response_format.json_schema", message));
        }
        Some((ResponseFormatKind::JsonSchema, Some(json_schema))) => {
            check_name("response_format.json_schema.name", &json_schema.name)?;
            let schema = json_schema.schema.clone().unwrap_or_else(|| json!({"type": "object"}));
            add("response_format", Grammar::JsonSchema(schema));
        }
    }
    match &options.guided_json {
        None => {}
        Some(Value::String(text)) => {
            let schema = serde_json::from_str(text)
                .map_err(|e| Error::invalid("guided_json", format!("`guided_json` is not JSON: {e}")))?;
            add("guided_json", Grammar::JsonSchema(schema));
        }
        Some(schema) => add("guided_json", Grammar::JsonSchema(schema.clone())),
    }
    if let Some(regex) = &options.guided_regex {
        add("guided_regex", Grammar::Regex(regex.clone()));
    }
    match options.guided_choice.as_deref() {
        None => {}
        Some([]) => {
            return Err(Error::invalid(
                "guided_choice",
                "`guided_choice` is empty; send at least one string to choose from",
            ));
        }
        Some(choices) => add("guided_choice", Grammar::Choice(choices.to_vec())),
    }
    match &options.grammar {
        None => {}
        Some(rules) if rules.contains("::=") => {
            return Err(Error::invalid(
                "grammar",
                "`grammar` looks like GBNF (`::=`); write it in Lark syntax, such as `start: \"yes\" | \"no\"`",
            ));
        }
        Some(rules) => add("grammar", Grammar::Lark { rules: rules.clone(), parts: Vec::new() }),
    }
    if let [first, second, ..] = &specs[..] {
        let message =
            format!("`{}` and `{}` both constrain the response; send only one", first.param, second.param);
        return Err(Error::invalid(second.param, message));
    }
    Ok(specs.pop())
}

/// Checks a name by OpenAI's rules. `path` is its path in the request.
///
/// # Errors
/// When the name is empty or too long, or has characters other than letters, digits, `_` and `-`.
pub fn check_name(path: &str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_allowed) {
        return Ok(());
    }
    let message = format!(
        "`{path}` must consist of 1 to {MAX_NAME_BYTES} letters, digits, `_` or `-`; `{}` does not",
        quote(name)
    );
    Err(Error::invalid(path, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(options: Value) -> Result<Option<ConstraintSpec>> {
        constraint_of(&serde_json::from_value(options).unwrap())
    }

    #[test]
    fn every_form_becomes_a_grammar() {
        let schema = json!({"type": "array", "items": {"type": "integer"}});
        let object = Grammar::JsonSchema(json!({"type": "object"}));
        for (request, param, grammar) in [
            (json!({"response_format": {"type": "json_object"}}), "response_format", object.clone()),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a-b_1"}}}),
                "response_format",
                object,
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema":
                    {"name": "a", "strict": true, "schema": schema}}}),
                "response_format",
                Grammar::JsonSchema(schema.clone()),
            ),
            (json!({"guided_json": schema}), "guided_json", Grammar::JsonSchema(schema.clone())),
            (json!({"guided_json": schema.to_string()}), "guided_json", Grammar::JsonSchema(schema.clone())),
            (json!({"guided_regex": "a+"}), "guided_regex", Grammar::Regex("a+".to_owned())),
            (json!({"guided_choice": ["a"]}), "guided_choice", Grammar::Choice(vec!["a".to_owned()])),
            (
                json!({"grammar": "start: \"a\""}),
                "grammar",
                Grammar::Lark { rules: "start: \"a\"".to_owned(), parts: Vec::new() },
            ),
        ] {
            assert_eq!(spec_of(request).unwrap(), Some(ConstraintSpec { param, grammar }));
        }
        assert_eq!(spec_of(json!({"response_format": {"type": "text"}, "guided_json": null})).unwrap(), None);
    }

    #[test]
    fn malformed_grammars_are_refused_by_name() {
        for (request, param) in [
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"grammar": "root ::= \"a\""}), "grammar"),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}),
                "response_format.json_schema.name",
            ),
        ] {
            assert_eq!(spec_of(request).unwrap_err().param(), Some(param));
        }
    }
}
