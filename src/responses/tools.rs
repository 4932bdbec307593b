//! Tools of a request as functions of the chat layer, and the way back: each kind of tool is a row of [`ToolKind`].
//!
//! The model sees functions only. A namespace is unfolded; a custom tool is a function with one argument, its input;
//! the shells and the patch tool, which clients run, are functions with the arguments of their calls. Hosted tools
//! are never called: their paths are reported as ignored.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::cache::name_digest;
use crate::error::{Error, Result, quote};
use crate::openai::chat::Tool;
use crate::openai::responses::JsonMap;

/// The longest name of a function that the chat layer takes.
const MAX_NAME_BYTES: usize = 64;

/// The item that a call becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolKind {
    /// `function_call`.
    Function,
    /// `custom_tool_call`.
    Custom,
    /// `local_shell_call`.
    LocalShell,
    /// `shell_call`.
    Shell,
    /// `apply_patch_call`.
    ApplyPatch,
}

/// A tool that clients run and that has no definition of its own.
struct BuiltInTool {
    /// Its type, and the name that the model sees.
    name: &'static str,
    kind: ToolKind,
    description: &'static str,
    /// The schema of its arguments.
    arguments: fn() -> Value,
}

const BUILT_IN: [BuiltInTool; 3] = [
    BuiltInTool {
        name: "local_shell",
        kind: ToolKind::LocalShell,
        description: "Runs a command on the user's machine.",
        arguments: local_shell_arguments,
    },
    BuiltInTool {
        name: "shell",
        kind: ToolKind::Shell,
        description: "Runs shell commands on the user's machine.",
        arguments: shell_arguments,
    },
    BuiltInTool {
        name: "apply_patch",
        kind: ToolKind::ApplyPatch,
        description: "Creates, changes or deletes a file of the user. `diff` has lines that begin with `+`, `-` or a \
                      space, in sections that begin with `@@`.",
        arguments: patch_arguments,
    },
];

/// Types of tools that OpenAI's servers run. A type may have a date at its end.
const HOSTED: [&str; 9] = [
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer",
    "mcp",
    "tool_search",
    "programmatic_tool_calling",
    "code_execution",
];

fn local_shell_arguments() -> Value {
    json!({
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}, "description": "The program and its arguments."},
            "working_directory": {"type": "string"},
            "timeout_ms": {"type": "integer"},
        },
        "required": ["command"],
        "additionalProperties": false,
    })
}

fn shell_arguments() -> Value {
    json!({
        "type": "object",
        "properties": {
            "commands": {"type": "array", "items": {"type": "string"}, "description": "Commands to run one after another."},
            "timeout_ms": {"type": "integer"},
            "max_output_length": {"type": "integer"},
        },
        "required": ["commands"],
        "additionalProperties": false,
    })
}

fn patch_arguments() -> Value {
    json!({
        "type": "object",
        "properties": {
            "type": {"enum": ["create_file", "update_file", "delete_file"]},
            "path": {"type": "string"},
            "diff": {"type": "string"},
        },
        "required": ["type", "path"],
        "additionalProperties": false,
    })
}

/// A tool that the model may call.
#[derive(Debug, Clone)]
pub struct OfferedTool {
    /// The name that the model sees.
    pub chat_name: String,
    /// The tool's own name.
    pub name: String,
    /// The namespace that it is part of.
    pub namespace: Option<String>,
    /// The item that a call becomes.
    pub kind: ToolKind,
    /// The tool in the form of the chat layer, but for its name.
    function: JsonMap,
    /// Rules in Lark's form that a custom tool's input must match.
    input_grammar: Option<String>,
}

/// The tools of a request.
#[derive(Debug, Clone, Default)]
pub struct OfferedTools {
    tools: Vec<OfferedTool>,
    /// Types of hosted tools, which are never called.
    hosted: Vec<String>,
}

impl OfferedTools {
    /// Reads tools, and adds the paths of what has no effect to `ignored`. `path` is the list's path in the request.
    ///
    /// # Errors
    /// When a tool is malformed or has an unknown type.
    pub fn read(tools: &[JsonMap], path: &str, ignored: &mut Vec<String>) -> Result<Self> {
        let mut offered = Self::default();
        offered.add(tools, path, ignored)?;
        Ok(offered)
    }

    /// Adds more tools.
    ///
    /// # Errors
    /// The same as for [`OfferedTools::read`].
    pub fn add(&mut self, tools: &[JsonMap], path: &str, ignored: &mut Vec<String>) -> Result<()> {
        for (idx, tool) in tools.iter().enumerate() {
            let path = format!("{path}[{idx}]");
            match tool_type(tool, &path)? {
                "namespace" => self.add_namespace(tool, &path, ignored)?,
                _ => self.add_tool(tool, None, &path, ignored)?,
            }
        }
        self.assign_names();
        Ok(())
    }

    fn add_namespace(&mut self, tool: &JsonMap, path: &str, ignored: &mut Vec<String>) -> Result<()> {
        let namespace = text_field(tool, "name", path)?;
        let inner = match tool.get("tools") {
            Some(Value::Array(inner)) => inner,
            _ => {
                return Err(Error::invalid(
                    format!("{path}.tools"),
                    format!("`{path}.tools` must be an array of tools"),
                ));
            }
        };
        for (idx, tool) in inner.iter().enumerate() {
            let path = format!("{path}.tools[{idx}]");
            let Value::Object(tool) = tool else {
                return Err(Error::invalid(path.clone(), format!("`{path}` must be an object")));
            };
            self.add_tool(tool, Some(namespace), &path, ignored)?;
        }
        Ok(())
    }

    fn add_tool(
        &mut self,
        tool: &JsonMap,
        namespace: Option<&str>,
        path: &str,
        ignored: &mut Vec<String>,
    ) -> Result<()> {
        let kind = tool_type(tool, path)?;
        let (kind, name, known, function) = match kind {
            "function" => {
                let name = text_field(tool, "name", path)?;
                let copied = ["description", "parameters", "strict"];
                let function =
                    copied.iter().filter_map(|&key| Some((key.to_owned(), tool.get(key)?.clone())));
                (
                    ToolKind::Function,
                    name,
                    &["name", "description", "parameters", "strict"][..],
                    function.collect(),
                )
            }
            "custom" => {
                let name = text_field(tool, "name", path)?;
                (ToolKind::Custom, name, &["name", "description", "format"][..], custom_function(tool, path)?)
            }
            other => match BUILT_IN.iter().find(|row| row.name == other) {
                Some(row) => {
                    let function = json!({"description": row.description, "parameters": (row.arguments)(), "strict": true});
                    let function = function.as_object().cloned().unwrap_or_default();
                    (row.kind, row.name, &["environment"][..], function)
                }
                None if is_hosted(other) => {
                    ignored.push(path.to_owned());
                    self.hosted.push(other.to_owned());
                    return Ok(());
                }
                None => {
                    return Err(Error::invalid(
                        format!("{path}.type"),
                        format!(
                            "`{path}.type` is `{}`, which is not supported; send tools of type `function` or `custom`",
                            quote(other)
                        ),
                    ));
                }
            },
        };
        let unknown = tool
            .iter()
            .filter(|(key, value)| !value.is_null() && *key != "type" && !known.contains(&key.as_str()));
        ignored.extend(unknown.map(|(key, _)| format!("{path}.{key}")));
        let is_twice = |other: &OfferedTool| other.name == name && other.namespace.as_deref() == namespace;
        if self.tools.iter().any(is_twice) {
            let message =
                format!("`{path}` is the second tool named `{}`; rename or remove one", quote(name));
            return Err(Error::invalid(format!("{path}.name"), message));
        }
        let namespace = namespace.map(str::to_owned);
        let name = name.to_owned();
        let input_grammar = lark_rules(tool).filter(|_| kind == ToolKind::Custom).map(str::to_owned);
        self.tools.push(OfferedTool {
            chat_name: String::new(),
            name,
            namespace,
            kind,
            function,
            input_grammar,
        });
        Ok(())
    }

    /// Gives every tool a name of its own: its plain name where that is unique, else one that begins with the
    /// namespace.
    fn assign_names(&mut self) {
        let plain: Vec<String> = self.tools.iter().map(|tool| tool.name.clone()).collect();
        let mut taken = HashSet::new();
        for tool in &mut self.tools {
            let is_unique = plain.iter().filter(|name| **name == tool.name).count() == 1;
            tool.chat_name = match &tool.namespace {
                Some(namespace) if !is_unique => format!("{namespace}__{}", tool.name),
                _ => tool.name.clone(),
            };
            if tool.namespace.is_some()
                && (tool.chat_name.len() > MAX_NAME_BYTES || taken.contains(&tool.chat_name))
            {
                let digest = &name_digest(format!("{:?} {}", tool.namespace, tool.name).as_bytes())[..8];
                let end = tool.chat_name.floor_char_boundary(MAX_NAME_BYTES - digest.len() - 1);
                tool.chat_name = format!("{}_{digest}", &tool.chat_name[..end]);
            }
            taken.insert(tool.chat_name.clone());
        }
    }

    /// The tool whose function the model sees as `chat_name`.
    pub fn by_chat_name(&self, chat_name: &str) -> Option<&OfferedTool> {
        self.tools.iter().find(|tool| tool.chat_name == chat_name)
    }

    /// The name that the model sees for a tool of a kind; its own name if it is not offered.
    pub fn chat_name<'a>(&'a self, name: &'a str, namespace: Option<&str>) -> &'a str {
        let exact = |tool: &&OfferedTool| tool.name == name && tool.namespace.as_deref() == namespace;
        let loose = |tool: &&OfferedTool| tool.name == name && namespace.is_none();
        let found = self.tools.iter().find(exact).or_else(|| self.tools.iter().find(loose));
        found.map_or(name, |tool| &tool.chat_name)
    }

    /// The tools in the form of the chat layer.
    ///
    /// # Errors
    /// When a field of a tool has the wrong form.
    pub fn for_chat(&self) -> Result<Vec<Tool>> {
        let tool = |tool: &OfferedTool| {
            let mut function = tool.function.clone();
            function.insert("name".to_owned(), tool.chat_name.clone().into());
            json!({"type": "function", "function": function})
        };
        let tools = Value::Array(self.tools.iter().map(tool).collect());
        let mut tools: Vec<Tool> = crate::openai::from_value(tools).map_err(|e| e.with_param("tools"))?;
        for (tool, offered) in tools.iter_mut().zip(&self.tools) {
            tool.function.input_grammar = offered.input_grammar.clone();
        }
        Ok(tools)
    }

    /// `tool_choice` in the form of the chat layer.
    ///
    /// # Errors
    /// When it names a tool that is not offered or is never called, or has an unknown form.
    pub fn choice_for_chat(&self, choice: &Value) -> Result<Value> {
        let Value::Object(fields) = choice else { return Ok(choice.clone()) };
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind != "allowed_tools" {
            return Ok(json!({"type": "function", "function": {"name": self.chosen(fields)?}}));
        }
        let tools = fields.get("tools").and_then(Value::as_array);
        let Some(tools) = tools else {
            return Err(Error::invalid("tool_choice.tools", "`tool_choice.tools` must be an array of tools"));
        };
        let mut allowed = Vec::new();
        for tool in tools {
            let Value::Object(tool) = tool else {
                return Err(Error::invalid("tool_choice.tools", "`tool_choice.tools` must contain objects"));
            };
            let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
            // A hosted tool may be allowed; it is never called.
            if !self.hosted.iter().any(|hosted| hosted == kind) {
                allowed.push(json!({"type": "function", "function": {"name": self.chosen(tool)?}}));
            }
        }
        let mode = fields.get("mode").cloned().unwrap_or_else(|| "auto".into());
        Ok(json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}))
    }

    /// The name that the model sees for a tool that `tool_choice` names.
    fn chosen(&self, choice: &JsonMap) -> Result<&str> {
        let kind = choice.get("type").and_then(Value::as_str).unwrap_or_default();
        let name = match kind {
            "function" | "custom" => text_field(choice, "name", "tool_choice")?,
            other if is_hosted(other) => {
                let message = format!(
                    "`tool_choice` requires a call of `{}`, which this server never calls; send `auto`, or offer a \
                     function",
                    quote(other)
                );
                return Err(Error::invalid("tool_choice", message));
            }
            other => other,
        };
        let namespace = choice.get("namespace").and_then(Value::as_str);
        let found = self.tools.iter().find(|tool| {
            tool.name == name
                && namespace.is_none_or(|namespace| tool.namespace.as_deref() == Some(namespace))
        });
        found.map(|tool| tool.chat_name.as_str()).ok_or_else(|| {
            let message = format!("`tool_choice` names `{}`, which is not in `tools`", quote(name));
            Error::invalid("tool_choice", message)
        })
    }
}

/// The function of a custom tool: its input is the only argument.
fn custom_function(tool: &JsonMap, path: &str) -> Result<JsonMap> {
    let mut description = tool.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut input = json!({"type": "string"});
    let mut is_strict = false;
    if let Some(format) = tool.get("format").filter(|format| !format.is_null()) {
        let field = |key: &str| format.get(key).and_then(Value::as_str);
        match (field("type"), field("syntax"), field("definition")) {
            (Some("text"), ..) => {}
            (Some("grammar"), Some("regex"), Some(definition)) => {
                input["pattern"] = format!("^(?:{definition})$").into();
                is_strict = true;
            }
            (Some("grammar"), Some("lark"), Some(definition)) => {
                let space = if description.is_empty() { "" } else { "\n" };
                description += &format!("{space}The input matches this grammar:\n{definition}");
                is_strict = true;
            }
            _ => {
                let path = format!("{path}.format");
                let message = format!(
                    "`{path}` must be of type `text`, or of type `grammar` with a `syntax` of `lark` or `regex` and a \
                     `definition`"
                );
                return Err(Error::invalid(path, message));
            }
        }
    }
    let parameters = json!({
        "type": "object",
        "properties": {CUSTOM_ARGUMENT: input},
        "required": [CUSTOM_ARGUMENT],
        "additionalProperties": false,
    });
    Ok(Map::from_iter([
        ("description".to_owned(), description.into()),
        ("parameters".to_owned(), parameters),
        ("strict".to_owned(), is_strict.into()),
    ]))
}

/// The grammar of a custom tool's input.
fn lark_rules(tool: &JsonMap) -> Option<&str> {
    let format = tool.get("format").filter(|format| format["syntax"] == "lark")?;
    format["definition"].as_str()
}

/// The argument that has the input of a custom tool.
pub const CUSTOM_ARGUMENT: &str = "input";

fn is_hosted(kind: &str) -> bool {
    HOSTED.iter().any(|row| kind.starts_with(row))
}

fn tool_type<'a>(tool: &'a JsonMap, path: &str) -> Result<&'a str> {
    text_field(tool, "type", path)
}

/// A field of an object at `path` that must be a text.
///
/// # Errors
/// When it is missing or of another type.
pub fn text_field<'a>(object: &'a JsonMap, field: &str, path: &str) -> Result<&'a str> {
    object.get(field).and_then(Value::as_str).ok_or_else(|| {
        let path = format!("{path}.{field}");
        let problem = if object.get(field).is_some_and(|value| !value.is_null()) {
            "is not a string"
        } else {
            "is missing"
        };
        Error::invalid(path.clone(), format!("`{path}` {problem}"))
    })
}
