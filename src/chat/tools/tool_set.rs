//! The functions that a request offers, and whether they may or must be called.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::chat::structured::check_name;
use crate::error::{Error, Result, quote};
use crate::openai::chat::{
    AllowedToolsMode, ChatCompletionRequest, FunctionDefinition, Tool, ToolChoice, ToolChoiceMode,
    ToolChoiceObject,
};

/// OpenAI's limit of `tools`.
const MAX_TOOLS: usize = 128;

/// The functions that a request allows the model to call; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSet {
    /// The allowed functions.
    pub functions: Arc<[FunctionDefinition]>,
    /// Whether one of them must be called.
    pub mode: CallMode,
    /// Whether one response may contain several calls.
    pub is_parallel: bool,
}

/// Whether the model may or must call a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallMode {
    /// The model decides.
    Auto,
    /// At least one function must be called.
    Required,
}

impl ToolSet {
    /// The functions of a request, or `None` if none may be called.
    ///
    /// # Errors
    /// When a function is malformed or occurs twice, or `tool_choice` names one that is not in `tools`.
    pub fn from_request(request: &ChatCompletionRequest) -> Result<Option<Self>> {
        let offered = request.tools.as_deref().unwrap_or_default();
        if offered.len() > MAX_TOOLS {
            let message = format!("`tools` has {} functions; at most {MAX_TOOLS} are allowed", offered.len());
            return Err(Error::invalid("tools", message));
        }
        let functions: Vec<&FunctionDefinition> = offered.iter().map(|tool: &Tool| &tool.function).collect();
        for (idx, function) in functions.iter().enumerate() {
            let path = format!("tools[{idx}].function");
            check_name(&format!("{path}.name"), &function.name)?;
            if functions[..idx].iter().any(|other| other.name == function.name) {
                let message =
                    format!("`tools` has two functions named `{}`; rename or remove one", function.name);
                return Err(Error::invalid(format!("{path}.name"), message));
            }
            if function.parameters.as_ref().is_some_and(|parameters| !parameters.is_object()) {
                let message = format!("`{path}.parameters` must be a JSON schema, that is, an object");
                return Err(Error::invalid(format!("{path}.parameters"), message));
            }
        }
        let (mode, allowed) = match request.tool_choice.as_ref() {
            Some(ToolChoice::Mode(ToolChoiceMode::None)) => return Ok(None),
            None | Some(ToolChoice::Mode(ToolChoiceMode::Auto)) => (CallMode::Auto, None),
            Some(ToolChoice::Mode(ToolChoiceMode::Required)) => (CallMode::Required, None),
            Some(ToolChoice::Object(ToolChoiceObject::Function { function })) => {
                (CallMode::Required, Some(vec![function.name.as_str()]))
            }
            Some(ToolChoice::Object(ToolChoiceObject::AllowedTools { allowed_tools })) => {
                let mode = match allowed_tools.mode {
                    AllowedToolsMode::Auto => CallMode::Auto,
                    AllowedToolsMode::Required => CallMode::Required,
                };
                let names = allowed_tools.tools.iter().map(|tool| tool.function.name.as_str()).collect();
                (mode, Some(names))
            }
        };
        let is_offered = |name: &&str| functions.iter().any(|function| function.name == *name);
        if let Some(missing) = allowed.iter().flatten().find(|name| !is_offered(name)) {
            let message = format!("`tool_choice` names `{}`, which is not in `tools`", quote(missing));
            return Err(Error::invalid("tool_choice", message));
        }
        let is_allowed = |name: &str| allowed.as_ref().is_none_or(|allowed| allowed.contains(&name));
        let functions: Arc<[FunctionDefinition]> =
            functions.into_iter().filter(|function| is_allowed(&function.name)).cloned().collect();
        match (functions.is_empty(), mode) {
            (true, CallMode::Required) => Err(Error::invalid(
                "tool_choice",
                "`tool_choice` requires a function call, but `tools` is empty; send `tools`",
            )),
            (true, CallMode::Auto) => Ok(None),
            // A single required function is called once.
            (false, _) => Ok(Some(Self {
                is_parallel: request.parallel_tool_calls.unwrap_or(true)
                    && !(mode == CallMode::Required && allowed.is_some_and(|names| names.len() == 1)),
                functions,
                mode,
            })),
        }
    }

    /// The functions in the form that templates expect.
    pub fn for_template(&self) -> Vec<Value> {
        let function = |function: &FunctionDefinition| {
            let FunctionDefinition { name, description, parameters, .. } = function;
            let parameters =
                parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
            json!({"type": "function", "function":
                   {"name": name, "description": description.clone().unwrap_or_default(), "parameters": parameters}})
        };
        self.functions.iter().map(function).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool_set(request: Value) -> Result<Option<ToolSet>> {
        ToolSet::from_request(&serde_json::from_value(request).unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn the_choice_restricts_what_may_be_called() {
        let tools = json!([function("a"), function("b")]);
        for (choice, expected) in [
            (json!(null), Some((CallMode::Auto, vec!["a", "b"], true))),
            (json!("auto"), Some((CallMode::Auto, vec!["a", "b"], true))),
            (json!("none"), None),
            (json!("required"), Some((CallMode::Required, vec!["a", "b"], true))),
            (function("b"), Some((CallMode::Required, vec!["b"], false))),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("b")]}}),
                Some((CallMode::Auto, vec!["b"], true)),
            ),
        ] {
            let found = tool_set(json!({"tools": tools, "tool_choice": choice})).unwrap();
            let names = |tools: &ToolSet| {
                tools.functions.iter().map(|function| function.name.clone()).collect::<Vec<String>>()
            };
            let found = found.map(|tools| (tools.mode, names(&tools), tools.is_parallel));
            let expected = expected
                .map(|(mode, names, many)| (mode, names.into_iter().map(str::to_owned).collect(), many));
            assert_eq!(found, expected, "{choice}");
        }
        assert_eq!(tool_set(json!({"tools": [], "tool_choice": "auto"})).unwrap(), None);
    }

    #[test]
    fn invalid_tools_are_refused_by_name() {
        for (request, param) in [
            (json!({"tools": [function("a b")]}), "tools[0].function.name"),
            (json!({"tools": [function("a"), function("a")]}), "tools[1].function.name"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}),
                "tools[0].function.parameters",
            ),
            (json!({"tools": [function("a")], "tool_choice": function("b")}), "tool_choice"),
            (json!({"tool_choice": "required"}), "tool_choice"),
        ] {
            assert_eq!(tool_set(request).unwrap_err().param(), Some(param));
        }
    }
}
