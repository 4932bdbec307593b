//! Tool calls: offering a request's functions to the model, and parsing its text into calls.
//!
//! A model whose template supports tools gets them through its template. Others get [`INSTRUCTIONS`], at the end
//! of the system message or, without one, before the first user message; the calls and results of the
//! conversation so far are then written in the form of these instructions.

mod argument_types;
mod form;
mod formats;
mod grammar;
pub mod history;
mod json_text;
mod literal;
mod parser;
mod partial_call;
mod repeats;
mod tool_set;
#[cfg(test)]
mod transcripts;

use std::fmt::Write as _;

use serde_json::Value;

pub use formats::ToolCallFormat;
pub use parser::{ParsedDelta, ToolCallParser};
pub use repeats::RepeatedCalls;
pub use tool_set::ToolSet;

use self::tool_set::CallMode;
use super::structured::ConstraintSpec;
use super::template::{ChatTemplate, TemplateMessage};
use crate::error::{Error, Result, quote};
use crate::inference::Grammar;
use crate::openai::chat::Tool;

/// Fallback system prompt for models without native tool support; the list of functions follows.
const INSTRUCTIONS: &str = "You can call functions. To call one, write nothing but this, once for each call:\n\
    <tool_call>\n{\"name\": \"the function's name\", \"arguments\": {…}}\n</tool_call>\n\
    The result comes in <tool_response>. Where no function helps, answer in words. The functions, as JSON:";

/// The constraint of a response that may contain tool calls: what the request asks for, or calls. `special` returns
/// the id of a special token.
///
/// # Errors
/// When the request has a grammar of its own, which does not allow for calls.
pub fn tool_constraint(
    tools: &ToolSet,
    format: &ToolCallFormat,
    special: impl Fn(&str) -> Option<u32>,
    spec: Option<ConstraintSpec>,
) -> Result<Option<ConstraintSpec>> {
    let content = match &spec {
        Some(ConstraintSpec { grammar: Grammar::Lark { .. }, param }) if tools.mode == CallMode::Auto => {
            let message = format!("`{param}` does not allow for tool calls; send it without `tools`");
            return Err(Error::invalid(*param, message));
        }
        spec => spec.as_ref().map(|spec| &spec.grammar),
    };
    let strict = tools.functions.iter().filter(|function| function.strict == Some(true));
    for function in strict {
        let keyword = function.parameters.as_ref().and_then(|schema| format.form.unenforced_keyword(schema));
        if let Some(keyword) = keyword {
            let name = quote(&function.name);
            let message = format!(
                "function `{name}` is strict, and this model's form of calls does not enforce the schema keyword \
                 `{}`; leave out the keyword or `strict`",
                quote(&keyword)
            );
            return Err(Error::invalid("tools", message));
        }
    }
    let param = spec.as_ref().map_or("tools", |spec| spec.param);
    let grammar = grammar::call_grammar(tools, format, special, content);
    Ok(grammar.map(|grammar| ConstraintSpec { param, grammar }))
}

/// The paths of keywords that the grammar of calls leaves out of the schemas of `offered` functions.
pub fn unenforced_keywords(tools: &ToolSet, offered: &[Tool]) -> Vec<String> {
    let offered = offered.iter().enumerate().filter(|(_, tool)| tools.functions.contains(&tool.function));
    offered
        .flat_map(|(idx, tool)| {
            grammar::unenforced_keywords(&tool.function, &format!("tools[{idx}].function.parameters"))
        })
        .collect()
}

/// Rewrites tools, calls and results in `messages` to the form that the template expects. Returns the tools
/// if the template takes them as a variable.
pub fn prepare_messages<'a>(
    template: &ChatTemplate,
    format: &ToolCallFormat,
    messages: &mut Vec<TemplateMessage>,
    tools: Option<&'a [Value]>,
) -> Option<&'a [Value]> {
    format.ids.rewrite(messages);
    history::name_reasoning(template, messages);
    if format.is_framed() {
        history::separate_calls(messages);
    }
    if template.template_contains("tool_responses") && !template.template_contains("== 'tool'") {
        history::results_to_calls(messages);
    }
    if messages.iter().any(|message| message.tool_calls.is_some()) && template.takes_text_arguments() {
        history::arguments_to_text(messages);
    }
    if !template.template_contains("tool_calls") {
        history::calls_to_text(messages);
    }
    let tools = tools?;
    if template.template_contains("message['tools']") {
        if messages.first().is_none_or(|message| message.role != "system") {
            messages.insert(0, TemplateMessage::new("system", String::new()));
        }
        let functions: Vec<&Value> = tools.iter().map(|tool| &tool["function"]).collect();
        messages[0].tools = serde_json::to_string(&functions).ok();
        return None;
    }
    if template.template_contains("tools") {
        return Some(tools);
    }
    inject_tool_prompt(messages, tools);
    None
}

/// Adds instructions and functions to the system message or the first user message.
fn inject_tool_prompt(messages: &mut [TemplateMessage], tools: &[Value]) {
    let mut prompt = INSTRUCTIONS.to_owned();
    for tool in tools {
        let _ = write!(prompt, "\n{}", tool["function"]);
    }
    match messages.iter_mut().find(|message| message.role == "system") {
        Some(system) => system.content = format!("{}\n\n{prompt}", system.content),
        None => {
            if let Some(user) = messages.iter_mut().find(|message| message.role == "user") {
                user.content = format!("{prompt}\n\n{}", user.content);
            }
        }
    }
}
