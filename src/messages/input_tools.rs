//! The tools of a request as functions. Anthropic's own tools that a client runs have schemas that the request does
//! not contain; here are ours. Those that Anthropic's servers run are never called.

use serde_json::{Value, json};

use crate::anthropic::messages::{InputTool, InputToolChoice, InputToolMode};
use crate::error::{Error, Result, quote};
use crate::openai::chat::{
    FunctionDefinition, FunctionKind, FunctionName, Tool, ToolChoice, ToolChoiceMode, ToolChoiceObject,
};

/// One of Anthropic's tools, by its type without the date.
struct KnownTool {
    kind: &'static str,
    place: ToolPlace,
}

/// The side on which a tool of Anthropic's runs.
enum ToolPlace {
    /// At the client, which knows its input: name, description and schema.
    Client(&'static str, &'static str, fn() -> Value),
    /// At Anthropic; this server has nothing like it.
    Server,
    /// At the client, with images as results, which this server does not read.
    Screen,
}

const KNOWN_TOOLS: &[KnownTool] = &[
    KnownTool {
        kind: "bash",
        place: ToolPlace::Client(
            "bash",
            "Run a command in a shell that keeps its state from call to call. `restart` starts the shell anew.",
            bash_schema,
        ),
    },
    KnownTool {
        kind: "text_editor",
        place: ToolPlace::Client(
            "str_replace_based_edit_tool",
            "View a file or a folder, create a file, replace a text that occurs once in a file, or insert text after \
             a line.",
            editor_schema,
        ),
    },
    KnownTool {
        kind: "memory",
        place: ToolPlace::Client(
            "memory",
            "Keep notes in files below /memories: view, create, change, delete or rename them.",
            memory_schema,
        ),
    },
    KnownTool { kind: "web_search", place: ToolPlace::Server },
    KnownTool { kind: "web_fetch", place: ToolPlace::Server },
    KnownTool { kind: "code_execution", place: ToolPlace::Server },
    KnownTool { kind: "tool_search_tool_regex", place: ToolPlace::Server },
    KnownTool { kind: "tool_search_tool_bm25", place: ToolPlace::Server },
    KnownTool { kind: "advisor", place: ToolPlace::Server },
    KnownTool { kind: "mcp_toolset", place: ToolPlace::Server },
    KnownTool { kind: "computer", place: ToolPlace::Screen },
    KnownTool { kind: "computer_toolset", place: ToolPlace::Screen },
    KnownTool { kind: "browser_toolset", place: ToolPlace::Screen },
];

fn bash_schema() -> Value {
    json!({"type": "object", "properties": {"command": {"type": "string"}, "restart": {"type": "boolean"}}})
}

fn editor_schema() -> Value {
    file_schema(&["view", "create", "str_replace", "insert"])
}

fn memory_schema() -> Value {
    let mut schema = file_schema(&["view", "create", "str_replace", "insert", "delete", "rename"]);
    for name in ["old_path", "new_path"] {
        schema["properties"][name] = json!({"type": "string"});
    }
    schema["required"] = json!(["command"]);
    schema
}

/// The schema of a tool that reads and writes files by `commands`.
fn file_schema(commands: &[&str]) -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "properties": {
            "command": {"type": "string", "enum": commands},
            "path": text(),
            "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            "file_text": text(),
            "old_str": text(),
            "new_str": text(),
            "insert_line": {"type": "integer"},
            "insert_text": text(),
        },
        "required": ["command", "path"],
    })
}

/// A tool of a request.
pub enum TranslatedTool {
    /// A function that the model may call.
    Function(Tool),
    /// A tool that is never called.
    NeverCalled,
}

/// Translates a tool; `path` is its path in the request.
///
/// # Errors
/// When its type is unknown or needs images, or it lacks a name or a schema.
pub fn translate_tool(tool: &InputTool, path: &str) -> Result<TranslatedTool> {
    let function = match tool.kind.as_deref() {
        None | Some("custom") => {
            let Some(name) = tool.name.clone() else {
                return Err(Error::invalid(format!("{path}.name"), format!("`{path}.name` is missing")));
            };
            let Some(schema) = &tool.input_schema else {
                let message =
                    format!("`{path}.input_schema` is missing; send a JSON schema of the tool's input");
                return Err(Error::invalid(format!("{path}.input_schema"), message));
            };
            FunctionDefinition {
                name,
                description: tool.description.clone(),
                parameters: Some(schema.clone()),
                strict: tool.strict,
                ..FunctionDefinition::default()
            }
        }
        Some(kind) => match known_tool(kind) {
            Some(ToolPlace::Server) => return Ok(TranslatedTool::NeverCalled),
            Some(ToolPlace::Client(name, description, schema)) => FunctionDefinition {
                name: tool.name.clone().unwrap_or_else(|| (*name).to_owned()),
                description: Some(tool.description.clone().unwrap_or_else(|| (*description).to_owned())),
                parameters: Some(schema()),
                strict: tool.strict,
                ..FunctionDefinition::default()
            },
            Some(ToolPlace::Screen) => {
                let message = format!(
                    "`{path}` is a tool of type `{kind}`, which answers with screenshots, and this server reads only \
                     text; leave it out"
                );
                return Err(Error::invalid(path, message));
            }
            None => {
                let message = format!(
                    "`{path}` has the type `{}`, which is unknown; send a tool with `name` and `input_schema`, without a type",
                    quote(kind)
                );
                return Err(Error::invalid(format!("{path}.type"), message));
            }
        },
    };
    Ok(TranslatedTool::Function(Tool { kind: FunctionKind::Function, function }))
}

/// The tool of a type such as `bash_20250124`.
fn known_tool(kind: &str) -> Option<&'static ToolPlace> {
    let is_date = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    let undated = kind.rsplit_once('_').filter(|(_, date)| is_date(date)).map_or(kind, |(name, _)| name);
    KNOWN_TOOLS.iter().find(|known| known.kind == undated).map(|known| &known.place)
}

/// Translates a choice, and whether one response may use several tools.
///
/// # Errors
/// When it should name a tool and does not.
pub fn translate_choice(choice: &InputToolChoice) -> Result<(ToolChoice, Option<bool>)> {
    let chosen = match (choice.kind, &choice.name) {
        (InputToolMode::Auto, _) => ToolChoice::Mode(ToolChoiceMode::Auto),
        (InputToolMode::Any, _) => ToolChoice::Mode(ToolChoiceMode::Required),
        (InputToolMode::None, _) => ToolChoice::Mode(ToolChoiceMode::None),
        (InputToolMode::Tool, Some(name)) => {
            ToolChoice::Object(ToolChoiceObject::Function { function: FunctionName { name: name.clone() } })
        }
        (InputToolMode::Tool, None) => {
            let message = "`tool_choice` of type `tool` needs `name`, the tool to use";
            return Err(Error::invalid("tool_choice.name", message));
        }
    };
    Ok((chosen, choice.disable_parallel_tool_use.map(|is_disabled| !is_disabled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(tool: Value) -> Result<Option<FunctionDefinition>> {
        let tool = serde_json::from_value(tool).unwrap();
        Ok(match translate_tool(&tool, "tools[0]")? {
            TranslatedTool::Function(tool) => Some(tool.function),
            TranslatedTool::NeverCalled => None,
        })
    }

    #[test]
    fn tools_that_the_client_runs_become_functions() {
        let custom =
            json!({"type": "custom", "name": "f", "input_schema": {"type": "object"}, "strict": true});
        let function = translated(custom).unwrap().unwrap();
        assert_eq!((function.name.as_str(), function.strict), ("f", Some(true)));
        for (kind, name, property) in [
            ("bash_20250124", "bash", "command"),
            ("text_editor_20250728", "str_replace_based_edit_tool", "old_str"),
            ("text_editor_20241022", "str_replace_editor", "old_str"),
            ("memory_20250818", "memory", "new_path"),
        ] {
            let function = translated(json!({"type": kind, "name": name})).unwrap().unwrap();
            assert_eq!(function.name, name);
            assert!(function.parameters.unwrap()["properties"][property].is_object(), "{kind}");
        }
    }

    #[test]
    fn other_tools_are_never_called_or_refused() {
        for kind in [
            "web_search_20250305",
            "code_execution_20260521",
            "tool_search_tool_bm25_20251119",
            "mcp_toolset",
        ] {
            assert_eq!(translated(json!({"type": kind, "name": "x"})).unwrap(), None, "{kind}");
        }
        for (tool, says) in [
            (json!({"type": "computer_20250124", "name": "computer"}), "screenshots"),
            (json!({"type": "teleport_20300101", "name": "x"}), "unknown"),
            (json!({"name": "f"}), "`tools[0].input_schema` is missing"),
            (json!({"input_schema": {}}), "`tools[0].name` is missing"),
        ] {
            let error = translated(tool).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
