//! What an answer must be: the grammar that a request asks for, in any of the forms that clients send.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::inference::Grammar;
use crate::openai::chat::{ChatCompletionRequest, ResponseFormatKind};

/// A grammar, and the parameter that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub param: &'static str,
    pub grammar: Grammar,
}

/// OpenAI's bound on names of formats and of functions.
const MAX_NAME_BYTES: usize = 64;

/// What the answer to `request` must be, if not anything.
///
/// # Errors
/// When a form of grammar is malformed, or two are asked for at once.
pub fn asked(request: &ChatCompletionRequest) -> Result<Option<Asked>> {
    let mut all = Vec::new();
    let mut ask = |param, grammar| all.push(Asked { param, grammar });
    match request.response_format.as_ref().map(|format| (format.kind, &format.json_schema)) {
        None | Some((ResponseFormatKind::Text, _)) => {}
        Some((ResponseFormatKind::JsonObject, _)) => {
            ask("response_format", Grammar::JsonSchema(json!({"type": "object"})));
        }
        Some((ResponseFormatKind::JsonSchema, None)) => {
            let message =
                "`response_format` of type `json_schema` needs `json_schema` with a name and a schema";
            return Err(Error::invalid("response_format.json_schema", message));
        }
        Some((ResponseFormatKind::JsonSchema, Some(json_schema))) => {
            check_name("response_format.json_schema.name", &json_schema.name)?;
            let schema = json_schema.schema.clone().unwrap_or_else(|| json!({"type": "object"}));
            ask("response_format", Grammar::JsonSchema(schema));
        }
    }
    match &request.guided_json {
        None => {}
        Some(Value::String(text)) => {
            let schema = serde_json::from_str(text)
                .map_err(|e| Error::invalid("guided_json", format!("`guided_json` is not JSON: {e}")))?;
            ask("guided_json", Grammar::JsonSchema(schema));
        }
        Some(schema) => ask("guided_json", Grammar::JsonSchema(schema.clone())),
    }
    if let Some(regex) = &request.guided_regex {
        ask("guided_regex", Grammar::Regex(regex.clone()));
    }
    match request.guided_choice.as_deref() {
        None => {}
        Some([]) => {
            return Err(Error::invalid(
                "guided_choice",
                "`guided_choice` is empty; give at least one string to choose from",
            ));
        }
        Some(choices) => ask("guided_choice", Grammar::Choice(choices.to_vec())),
    }
    match &request.grammar {
        None => {}
        Some(rules) if rules.contains("::=") => {
            return Err(Error::invalid(
                "grammar",
                "`grammar` looks like GBNF, with `::=`; write it in Lark's form, such as `start: \"yes\" | \"no\"`",
            ));
        }
        Some(rules) => ask("grammar", Grammar::Lark { rules: rules.clone(), parts: Vec::new() }),
    }
    if let [first, second, ..] = &all[..] {
        let message =
            format!("`{}` and `{}` both say what the answer must be; send one", first.param, second.param);
        return Err(Error::invalid(second.param, message));
    }
    Ok(all.pop())
}

/// Refuses a name that OpenAI would; it stands at `path` in the request.
///
/// # Errors
/// When it is empty or too long, or has other characters than letters, digits, `_` and `-`.
pub fn check_name(path: &str, name: &str) -> Result<()> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_known) {
        return Ok(());
    }
    let message = format!(
        "`{path}` must be 1 to {MAX_NAME_BYTES} letters, digits, `_` or `-`, and `{}` is not",
        name.chars().take(MAX_NAME_BYTES).collect::<String>()
    );
    Err(Error::invalid(path, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: Value) -> Result<Option<Asked>> {
        asked(&serde_json::from_value(request).unwrap())
    }

    #[test]
    fn every_form_is_a_grammar() {
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
            assert_eq!(of(request).unwrap(), Some(Asked { param, grammar }));
        }
        assert_eq!(of(json!({"response_format": {"type": "text"}, "guided_json": null})).unwrap(), None);
    }

    #[test]
    fn what_is_no_grammar_is_refused_by_name() {
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
            assert_eq!(of(request).unwrap_err().param(), Some(param));
        }
    }
}
