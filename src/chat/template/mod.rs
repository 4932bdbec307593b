//! Chat templates: the model's own Jinja, rendered by minijinja within limits of time and memory.
//!
//! The reference is `transformers`, which renders with sandboxed Jinja2 and Python values. minijinja comes close.
//! `repr`, `methods`, `json`, `filters` (also tests and functions) and `clock` add what it lacks; `syntax` rewrites
//! what it does not parse as Jinja2 does.

mod arguments;
mod clock;
mod filters;
mod json;
mod methods;
mod repr;
mod source;
mod syntax;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;

pub use source::TemplateSource;

use crate::error::{Error, Kind, Result};

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    /// Name of the template for conversations with tools.
    with_tools: &'static str,
    has_developer_role: bool,
    has_reasoning: bool,
    /// The text of all templates, concatenated.
    text: String,
}

/// The variables of a template. Arrays and objects keep their order.
pub struct TemplateInput<'a, M> {
    /// The variable `messages`: [`TemplateMessage`]s or JSON.
    pub messages: &'a [M],
    /// The variable `tools`.
    pub tools: Option<&'a [serde_json::Value]>,
    /// The variable `documents`, which no request sets.
    pub documents: Option<&'a [serde_json::Value]>,
    /// Whether the prompt ends with the header of the assistant's message.
    pub add_generation_prompt: bool,
    /// Additional variables, such as `enable_thinking`.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` formats.
    pub now: jiff::civil::DateTime,
}

/// A message in the form that templates expect.
#[derive(Debug, Clone, Serialize)]
pub struct TemplateMessage {
    /// The author's role.
    pub role: &'static str,
    /// The message's text.
    pub content: String,
    /// The author's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls of an assistant message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<serde_json::Value>>,
    /// Id of the call that a tool message is the result of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The reasoning that preceded an assistant message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Functions as JSON, which some templates expect in the system message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
}

impl TemplateMessage {
    /// A message with only a role and text.
    pub fn new(role: &'static str, content: String) -> Self {
        Self {
            role,
            content,
            name: None,
            tool_calls: None,
            tool_call_id: None,
            reasoning_content: None,
            tools: None,
        }
    }
}

/// Name of the template for conversations without tools, and for all if it is the only one.
const DEFAULT: &str = "default";

/// Name of the template that `transformers` uses for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// Fuel of a rendering. An instruction takes one unit, and so do 64 copied bytes.
const FUEL: u64 = 100_000_000;

/// The longest text that a method or filter may produce; a template could ask for more than the machine's
/// memory.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// The longest prompt that a template may render: well above any request body.
const MAX_PROMPT_BYTES: usize = 32 << 20;

impl ChatTemplate {
    /// Compiles a model's templates.
    ///
    /// # Errors
    /// When one is not valid Jinja.
    pub fn new(source: impl Into<TemplateSource>) -> Result<Self> {
        let TemplateSource { default, tool_use, special_tokens } = source.into();
        let has_developer_role =
            tool_use.iter().chain([&default]).all(|template| template.contains("developer"));
        let has_reasoning = tool_use.iter().chain([&default]).any(|template| template.contains("<think>"));
        let text = tool_use.iter().chain([&default]).map(String::as_str).collect();
        let mut environment = environment()?;
        let mut add = |name, template: &str| {
            environment
                .add_template_owned(name, syntax::prepare(template))
                .map_err(|e| Error::model(format!("the model's chat template is not valid: {e}")))
        };
        add(DEFAULT, &default)?;
        if let Some(tool_use) = &tool_use {
            add(TOOL_USE, tool_use)?;
        }
        let with_tools = if tool_use.is_some() { TOOL_USE } else { DEFAULT };
        Ok(Self { environment, special_tokens, with_tools, has_developer_role, has_reasoning, text })
    }

    /// Whether every template distinguishes the role `developer` from `system`.
    pub fn supports_developer_role(&self) -> bool {
        self.has_developer_role
    }

    /// Whether the model reasons before it answers.
    pub fn has_reasoning(&self) -> bool {
        self.has_reasoning
    }

    /// Whether `text` occurs in the source of a template.
    pub fn template_contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// Whether the template for conversations without tools uses a variable.
    pub fn uses_variable(&self, variable: &str) -> bool {
        let template = self.environment.get_template(DEFAULT);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// Renders the prompt for a conversation.
    ///
    /// # Errors
    /// When the template refuses the conversation, fails, or exceeds a limit.
    pub fn render<M: Serialize>(&self, input: TemplateInput<'_, M>) -> Result<String> {
        let named = |name: &str, value: Value| (name.to_owned(), value);
        let now = input.now;
        let context = self
            .special_tokens
            .iter()
            .map(|(name, text)| named(name, Value::from(text.as_str())))
            .chain(input.variables.iter().map(|(name, value)| named(name, Value::from(Serde(value)))))
            .chain([
                named("messages", Value::from(Serde(input.messages))),
                named("tools", Value::from(Serde(input.tools))),
                named("documents", Value::from(Serde(input.documents))),
                named("add_generation_prompt", Value::from(input.add_generation_prompt)),
                named("strftime_now", Value::from_function(move |format: &str| clock::strftime(now, format))),
            ])
            .collect::<BTreeMap<String, Value>>();
        let name = if input.tools.is_some() { self.with_tools } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(render_error)?;
        let mut prompt = BoundedBuffer(Vec::new());
        template.render_captured_to(context, &mut prompt).map_err(render_error)?;
        String::from_utf8(prompt.0)
            .map_err(|e| Error::internal(format!("the chat template did not render UTF-8: {e}")))
    }
}

/// An environment with everything that templates may use.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    // The same options as in `transformers`.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::internal(format!("impossible template syntax: {e}")))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", raise);
    filters::register(&mut environment);
    Ok(environment)
}

/// The function `raise_exception`, by which a template refuses a conversation.
fn raise(message: String) -> Result<Value, minijinja::Error> {
    let refusal = Refusal(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the template refuses the conversation")
        .with_source(refusal))
}

/// A template's reason to refuse a conversation.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Converts an error of a template. A refusal is an error in the messages; any other is a fault of the template.
fn render_error(e: minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            let message = format!("the model's chat template refuses these messages: {message}");
            return Error::new(Kind::InvalidRequest, message).with_param("messages");
        }
        cause = error.source();
    }
    Error::model(format!("the model's chat template failed: {e}"))
}

/// Refuses a text longer than [`MAX_TEXT_BYTES`] before it is produced.
fn check_size(n_bytes: usize) -> Result<(), minijinja::Error> {
    if n_bytes > MAX_TEXT_BYTES {
        let message = format!("the text would be longer than {MAX_TEXT_BYTES} bytes");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// A buffer of at most [`MAX_PROMPT_BYTES`].
struct BoundedBuffer(Vec<u8>);

impl Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(io::Error::other(format!("the prompt is longer than {MAX_PROMPT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn input<M>(messages: &[M]) -> TemplateInput<'_, M> {
        TemplateInput {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            variables: serde_json::Map::new(),
            now: jiff::civil::date(2026, 7, 26).at(12, 0, 0, 0),
        }
    }

    fn render(source: impl Into<TemplateSource>, messages: &[Json]) -> Result<String> {
        ChatTemplate::new(source)?.render(input(messages))
    }

    #[test]
    fn typed_messages_have_only_the_keys_they_need() {
        let message = TemplateMessage::new("user", "hi".to_owned());
        let template = ChatTemplate::new("{{ messages | tojson }}").unwrap();
        assert_eq!(template.render(input(&[message])).unwrap(), r#"[{"role": "user", "content": "hi"}]"#);
    }

    #[test]
    fn variables_override_special_tokens() {
        let source = TemplateSource::from("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}");
        let source =
            source.with_special_token("bos_token", Some("<s>")).with_special_token("eos_token", None);
        assert_eq!(render(source.clone(), &[]).unwrap(), "<s>False");
        let mut input = input::<Json>(&[]);
        input.variables.insert("bos_token".to_owned(), json!("<t>"));
        assert_eq!(ChatTemplate::new(source).unwrap().render(input).unwrap(), "<t>False");
    }

    #[test]
    fn conversations_with_tools_have_their_own_template() {
        let source = TemplateSource { tool_use: Some("tools".to_owned()), ..TemplateSource::from("plain") };
        let template = ChatTemplate::new(source).unwrap();
        assert_eq!(template.render(input::<Json>(&[])).unwrap(), "plain");
        let tools = [json!({"type": "function"})];
        let with_tools = TemplateInput { tools: Some(&tools), ..input::<Json>(&[]) };
        assert_eq!(template.render(with_tools).unwrap(), "tools");
    }

    #[test]
    fn every_template_must_support_the_developer_role() {
        let source = TemplateSource::from("{% if m.role == 'developer' %}{% endif %}");
        assert!(ChatTemplate::new(source.clone()).unwrap().supports_developer_role());
        let source = TemplateSource { tool_use: Some(String::new()), ..source };
        assert!(!ChatTemplate::new(source).unwrap().supports_developer_role());
    }

    #[test]
    fn a_refusal_reaches_the_client_verbatim() {
        for source in [
            "{{ raise_exception('roles must alternate') }}",
            "{% macro f() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{% filter upper %}{{ f() }}{% endfilter %}",
        ] {
            let error = render(source, &[]).unwrap_err();
            assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, Some("messages")), "{error}");
            assert!(error.to_string().ends_with(": roles must alternate"), "{error}");
        }
    }

    #[test]
    fn any_other_failure_is_the_models_fault() {
        for source in ["{{ messages[0].role.name.x }}", "{{ 'a' + none }}", "{{ f() }}", "{% for %}"] {
            let error = render(source, &[json!({"role": "user"})]).unwrap_err();
            assert_eq!((error.kind(), error.param()), (Kind::Model, None), "{error}");
        }
    }

    #[test]
    fn hostile_templates_are_stopped() {
        for source in [
            "{% for a in range(9999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'x' * 90000000 }}",
            "{{ 'x' | center(99999999999) }}",
            "{% set x = 'x' * 1000000 %}{{ x.replace('x', x) }}",
            "{% set x = 'x' * 1000000 %}{{ x | replace('x', x) }}",
            "{% set x = 'x' * 1000000 %}{{ x.join(x) }}",
            "{% set x = 'x' * 1000000 %}{{ ([x] * 100000) | join }}",
            "{{ ('{0}' * 100000).format('x' * 1000000) }}",
            "{% set x = '\n' * 1000000 %}{{ x | indent(x, blank=true) }}",
            "{% set x = 'x' * 1000000 %}{{ range(99999) | list | tojson(separators=(x, x)) }}",
            "{% set x = 'x' * 1000000 %}{{ range(99999) | list | tojson(indent=x) }}",
        ] {
            assert!(render(source, &[]).is_err(), "{source}");
        }
    }
}
