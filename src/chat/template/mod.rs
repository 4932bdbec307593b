//! Chat templates: the model's own Jinja, run by minijinja within bounds.
//!
//! The measure is what `transformers` renders: Jinja2 in its sandbox, whose values are Python's.
//! minijinja comes near by itself; [`json`], [`python`], [`filters`] and [`clock`] are what is left,
//! and [`source`] rewrites what minijinja cannot parse.

mod arguments;
mod clock;
mod filters;
mod json;
mod python;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;

use crate::error::{Error, Kind, Result};

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    knows_developer: bool,
}

/// A conversation and what the request says about it. Lists and objects keep the order they have.
pub struct TemplateInput<'a, M> {
    /// What becomes `messages`: a [`TemplateMessage`] or JSON.
    pub messages: &'a [M],
    pub tools: Option<&'a [serde_json::Value]>,
    pub documents: Option<&'a [serde_json::Value]>,
    /// Whether the prompt ends where the assistant is to answer.
    pub add_generation_prompt: bool,
    /// Names that only this template knows, such as `enable_thinking`.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// What `strftime_now` tells.
    pub now: jiff::civil::DateTime,
}

/// One message as templates expect it.
#[derive(Debug, Clone, Serialize)]
pub struct TemplateMessage {
    pub role: &'static str,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// Name of the template for conversations without tools, and for all where there is no other.
const DEFAULT: &str = "default";

/// Name of the template that `transformers` takes when there are tools.
const TOOL_USE: &str = "tool_use";

/// Instructions a template may execute, or 64 bytes it may copy for each.
const FUEL: u64 = 100_000_000;

/// Bytes a template may write: well above any request body.
const MAX_PROMPT_BYTES: usize = 32 << 20;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is not valid Jinja.
    pub fn new(template: &str) -> Result<Self> {
        let mut environment = environment()?;
        environment
            .add_template_owned(DEFAULT, source::prepare(template))
            .map_err(|e| Error::model(format!("the model's chat template is not valid: {e}")))?;
        Ok(Self {
            environment,
            special_tokens: BTreeMap::new(),
            knows_developer: template.contains("developer"),
        })
    }

    /// Makes the text of a special token known under a name such as `bos_token`.
    pub fn with_special_token(mut self, name: &str, text: Option<&str>) -> Self {
        self.special_tokens.extend(text.map(|text| (name.to_owned(), text.to_owned())));
        self
    }

    /// Whether the template tells the role `developer` from `system`.
    pub fn knows_developer(&self) -> bool {
        self.knows_developer
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// When the template refuses the conversation, fails, or exceeds its bounds.
    pub fn render<M: Serialize>(&self, input: TemplateInput<'_, M>) -> Result<String> {
        let named = |name: &str, value: Value| (name.to_owned(), value);
        let now = input.now;
        let context = self
            .special_tokens
            .iter()
            .map(|(name, text)| named(name, Value::from(text.as_str())))
            .chain(input.options.iter().map(|(name, value)| named(name, Value::from(Serde(value)))))
            .chain([
                named("messages", Value::from(Serde(input.messages))),
                named("tools", Value::from(Serde(input.tools))),
                named("documents", Value::from(Serde(input.documents))),
                named("add_generation_prompt", Value::from(input.add_generation_prompt)),
                named("strftime_now", Value::from_function(move |format: &str| clock::strftime(now, format))),
            ])
            .collect::<BTreeMap<String, Value>>();
        let name = if input.tools.is_some() && self.environment.get_template(TOOL_USE).is_ok() {
            TOOL_USE
        } else {
            DEFAULT
        };
        let template = self.environment.get_template(name).map_err(failed)?;
        let mut prompt = Bounded(Vec::new());
        template.render_captured_to(context, &mut prompt).map_err(failed)?;
        String::from_utf8(prompt.0)
            .map_err(|e| Error::internal(format!("the chat template wrote no text: {e}")))
    }
}

/// An environment with all that templates may use.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    // As `transformers` sets Jinja2.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::internal(format!("impossible template syntax: {e}")))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::call_method);
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", raise);
    filters::add(&mut environment);
    Ok(environment)
}

/// `raise_exception`: how a template says that it does not take a conversation.
fn raise(message: String) -> Result<Value, minijinja::Error> {
    let refusal = Refusal(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the template refuses").with_source(refusal))
}

/// What a template said when it refused a conversation.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// A refusal is about the messages; all else is a fault of the template.
fn failed(e: minijinja::Error) -> Error {
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

/// A buffer that refuses to grow beyond [`MAX_PROMPT_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
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
