//! Functions that a model may call: what a request offers of them, how the model is told, and how what it says
//! becomes calls.
//!
//! A model whose template knows tools is told by it. Others are told by [`INSTRUCTIONS`], at the end of the system
//! message or, without one, before the first user message; calls and results of the conversation so far are then
//! written as those instructions say.

mod formats;
mod grammar;
pub mod history;
mod parser;

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

pub use formats::Format;
pub use parser::{CallParser, Parsed};

use super::structured::{Asked, check_name};
use super::template::{ChatTemplate, TemplateMessage};
use crate::error::{Error, Result};
use crate::inference::Grammar;
use crate::openai::chat::{
    AllowedToolsMode, ChatCompletionRequest, FunctionDefinition, Tool, ToolChoice, ToolChoiceMode,
    ToolChoiceObject,
};

/// OpenAI's bound.
const MAX_TOOLS: usize = 128;

/// What a model is told that was not made for tools, before the list of functions.
const INSTRUCTIONS: &str = "You can call functions. To call one, write nothing but this, once for each call:\n\
    <tool_call>\n{\"name\": \"the function's name\", \"arguments\": {…}}\n</tool_call>\n\
    The result comes in <tool_response>. Where no function helps, answer in words. The functions, as JSON:";

/// What may be called to answer a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    pub functions: Vec<FunctionDefinition>,
    pub choice: Choice,
    /// Whether there may be several calls in one answer.
    pub is_parallel: bool,
}

/// Whether something has to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Auto,
    Required,
}

impl Tools {
    /// What a request offers, of it what it allows; none where nothing may be called.
    ///
    /// # Errors
    /// When a function is malformed or there twice, or the choice is of one that is not there.
    pub fn of(request: &ChatCompletionRequest) -> Result<Option<Self>> {
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
                let message = format!("`tools` has two functions `{}`; leave one out", function.name);
                return Err(Error::invalid(format!("{path}.name"), message));
            }
            if function.parameters.as_ref().is_some_and(|parameters| !parameters.is_object()) {
                let message = format!("`{path}.parameters` must be a JSON schema, an object");
                return Err(Error::invalid(format!("{path}.parameters"), message));
            }
        }
        let (choice, allowed) = match request.tool_choice.as_ref() {
            Some(ToolChoice::Mode(ToolChoiceMode::None)) => return Ok(None),
            None | Some(ToolChoice::Mode(ToolChoiceMode::Auto)) => (Choice::Auto, None),
            Some(ToolChoice::Mode(ToolChoiceMode::Required)) => (Choice::Required, None),
            Some(ToolChoice::Object(ToolChoiceObject::Function { function })) => {
                (Choice::Required, Some(vec![function.name.as_str()]))
            }
            Some(ToolChoice::Object(ToolChoiceObject::AllowedTools { allowed_tools })) => {
                let choice = match allowed_tools.mode {
                    AllowedToolsMode::Auto => Choice::Auto,
                    AllowedToolsMode::Required => Choice::Required,
                };
                let names = allowed_tools.tools.iter().map(|tool| tool.function.name.as_str()).collect();
                (choice, Some(names))
            }
        };
        let is_there = |name: &&str| functions.iter().any(|function| function.name == *name);
        if let Some(missing) = allowed.iter().flatten().find(|name| !is_there(name)) {
            let message = format!("`tool_choice` is of `{missing}`, which is not among `tools`");
            return Err(Error::invalid("tool_choice", message));
        }
        let is_allowed = |name: &str| allowed.as_ref().is_none_or(|allowed| allowed.contains(&name));
        let functions: Vec<FunctionDefinition> =
            functions.into_iter().filter(|function| is_allowed(&function.name)).cloned().collect();
        match (functions.is_empty(), choice) {
            (true, Choice::Required) => {
                Err(Error::invalid("tool_choice", "`tool_choice` needs something to choose: send `tools`"))
            }
            (true, Choice::Auto) => Ok(None),
            // One that was named is called once.
            (false, _) => Ok(Some(Self {
                is_parallel: request.parallel_tool_calls.unwrap_or(true)
                    && !(choice == Choice::Required && allowed.is_some_and(|names| names.len() == 1)),
                functions,
                choice,
            })),
        }
    }

    /// Of all functions.
    pub fn names(&self) -> Arc<[String]> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    /// The functions as templates know them.
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

/// What an answer must be that may call functions: what the request asks for, or calls.
///
/// # Errors
/// When a grammar of the client's own is asked for, which knows nothing of calls.
pub fn asked(
    tools: &Tools,
    format: &Format,
    special: impl Fn(&str) -> Option<u32>,
    asked: Option<Asked>,
) -> Result<Option<Asked>> {
    let answer = match &asked {
        Some(Asked { grammar: Grammar::Lark { .. }, param }) if tools.choice == Choice::Auto => {
            let message = format!("`{param}` says nothing of calls; send it without `tools`");
            return Err(Error::invalid(*param, message));
        }
        asked => asked.as_ref().map(|asked| &asked.grammar),
    };
    let param = asked.as_ref().map_or("tools", |asked| asked.param);
    Ok(grammar::grammar(tools, format, special, answer).map(|grammar| Asked { param, grammar }))
}

/// Puts functions, calls and results where the template shows them; gives the functions that it takes as they are.
pub fn show<'a>(
    template: &ChatTemplate,
    format: &Format,
    messages: &mut Vec<TemplateMessage>,
    tools: Option<&'a [Value]>,
) -> Option<&'a [Value]> {
    if let Some(len) = format.id_len {
        history::shorten_ids(messages, len);
    }
    if !template.says("tool_calls") {
        history::as_text(messages);
    }
    let tools = tools?;
    if template.says("message['tools']") {
        if messages.first().is_none_or(|message| message.role != "system") {
            messages.insert(0, TemplateMessage::new("system", String::new()));
        }
        let functions: Vec<&Value> = tools.iter().map(|tool| &tool["function"]).collect();
        messages[0].tools = serde_json::to_string(&functions).ok();
        return None;
    }
    if template.says("tools") {
        return Some(tools);
    }
    tell(messages, tools);
    None
}

/// Tells a model of functions whose template does not.
fn tell(messages: &mut [TemplateMessage], tools: &[Value]) {
    let mut told = INSTRUCTIONS.to_owned();
    for tool in tools {
        let _ = write!(told, "\n{}", tool["function"]);
    }
    match messages.iter_mut().find(|message| message.role == "system") {
        Some(system) => system.content = format!("{}\n\n{told}", system.content),
        None => {
            if let Some(user) = messages.iter_mut().find(|message| message.role == "user") {
                user.content = format!("{told}\n\n{}", user.content);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: Value) -> Result<Option<Tools>> {
        Tools::of(&serde_json::from_value(request).unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn the_choice_tells_what_may_be_called() {
        let tools = json!([function("a"), function("b")]);
        for (choice, expected) in [
            (json!(null), Some((Choice::Auto, vec!["a", "b"], true))),
            (json!("auto"), Some((Choice::Auto, vec!["a", "b"], true))),
            (json!("none"), None),
            (json!("required"), Some((Choice::Required, vec!["a", "b"], true))),
            (function("b"), Some((Choice::Required, vec!["b"], false))),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("b")]}}),
                Some((Choice::Auto, vec!["b"], true)),
            ),
        ] {
            let found = of(json!({"tools": tools, "tool_choice": choice})).unwrap();
            let found = found.map(|tools| (tools.choice, tools.names().to_vec(), tools.is_parallel));
            let expected = expected
                .map(|(choice, names, many)| (choice, names.into_iter().map(str::to_owned).collect(), many));
            assert_eq!(found, expected, "{choice}");
        }
        assert_eq!(of(json!({"tools": [], "tool_choice": "auto"})).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_called_is_refused_by_name() {
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
            assert_eq!(of(request).unwrap_err().param(), Some(param));
        }
    }
}
