//! Chat templates: the model's own Jinja, rendered by minijinja within limits of time and memory.
//!
//! The reference is `transformers`, which renders with sandboxed Jinja2 and Python values. minijinja comes close.
//! `repr`, `methods`, `json`, `filters` (also tests and functions) and `clock` add what it lacks; `syntax` rewrites
//! what it does not parse as Jinja2 does.
//!
//! A template comes with a model's files, so it may be hostile, and it must not take the server down:
//! - `syntax` and `expression` refuse sources that are too large or nested too deeply, before minijinja sees them;
//! - minijinja's fuel pays for each instruction and each byte of text;
//! - `guard` bounds every list and dictionary that a template makes, where `expression` has put its filters;
//! - `budget` has a deadline, which those filters and all functions of this folder look at;
//! - `thread` compiles and renders on a thread with a large stack, and turns a panic into an error;
//! - `failures` remembers conversations that exceeded a limit.

mod arguments;
mod budget;
mod builtin;
mod clock;
mod expression;
mod failures;
mod filters;
mod format;
mod guard;
mod json;
mod lexer;
mod methods;
mod repr;
mod source;
mod syntax;
mod thread;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;

pub use builtin::{builtin_names, builtin_template};
pub use source::TemplateSource;

use super::reasoning::ReasoningMarks;
use crate::error::{Error, Kind, Result, quote};
use budget::LimitExceeded;
use failures::Failures;

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    /// Name of the template for conversations with tools.
    with_tools: &'static str,
    /// The variables that the template for conversations without tools uses.
    variables: HashSet<String>,
    has_developer_role: bool,
    /// The template for conversations without tools, as the model has it.
    source: String,
    reasoning: Option<&'static ReasoningMarks>,
    /// The text of all templates, concatenated.
    text: String,
    failures: Failures,
    /// Whether calls in a history have their arguments as text; found out when it is first needed.
    text_arguments: OnceLock<bool>,
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
    /// The time that `strftime_now` formats, and the variable `datetime`.
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
    /// The reasoning, under the name that some templates expect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Results of the calls, which some templates expect in the message that made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_responses: Option<Vec<serde_json::Value>>,
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
            thinking: None,
            tool_responses: None,
            tools: None,
        }
    }
}

/// The format of the variable `datetime`.
const DATETIME_FORMAT: &str = "%b %d %Y %H:%M:%S";

/// Name of the template for conversations without tools, and for all if it is the only one.
const DEFAULT: &str = "default";

/// Name of the template that `transformers` uses for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// Fuel of a rendering. An instruction takes one unit, and so do 64 bytes of text. A message takes about a hundred
/// instructions.
const FUEL: u64 = 2_500_000;

/// The longest message of a refusal; what is longer is cut.
const MAX_REFUSAL_BYTES: usize = 1000;

/// The longest format of the time.
const MAX_TIME_FORMAT_BYTES: usize = 1000;

/// The longest prompt that a template may render: well above any request body.
const MAX_PROMPT_BYTES: usize = 32 << 20;

impl ChatTemplate {
    /// Compiles a model's templates, and renders a short conversation to see that they stay within the limits.
    ///
    /// # Errors
    /// When one is not valid Jinja, or exceeds a limit.
    pub fn new(source: impl Into<TemplateSource>) -> Result<Self> {
        let source = source.into();
        let template = thread::run(|| Self::compile(source))??;
        template.check_limits()?;
        Ok(template)
    }

    fn compile(source: TemplateSource) -> Result<Self> {
        let TemplateSource { default, tool_use, special_tokens } = source;
        let has_developer_role =
            tool_use.iter().chain([&default]).all(|template| template.contains("developer"));
        let text: String = tool_use.iter().chain([&default]).map(String::as_str).collect();
        let mut environment = environment()?;
        let mut add = |name, template: &str| {
            environment
                .add_template_owned(name, syntax::prepare(template)?)
                .map_err(|e| Error::model(format!("the model's chat template is not valid: {e}")))
        };
        add(DEFAULT, &default)?;
        if let Some(tool_use) = &tool_use {
            add(TOOL_USE, tool_use)?;
        }
        let with_tools = if tool_use.is_some() { TOOL_USE } else { DEFAULT };
        let variables =
            environment.get_template(DEFAULT).map(|template| template.undeclared_variables(false));
        Ok(Self {
            variables: variables.unwrap_or_default(),
            environment,
            special_tokens,
            with_tools,
            has_developer_role,
            source: default,
            reasoning: ReasoningMarks::for_template(|marker| text.contains(marker)),
            text,
            failures: Failures::default(),
            text_arguments: OnceLock::new(),
        })
    }

    /// Renders a short conversation. A template that exceeds a limit even for that is of no use for any other.
    fn check_limits(&self) -> Result<()> {
        let input = TemplateInput {
            messages: &[TemplateMessage::new("user", "hi".to_owned())],
            tools: None,
            documents: None,
            add_generation_prompt: true,
            variables: serde_json::Map::new(),
            now: jiff::civil::DateTime::default(),
        };
        match thread::run(|| self.render_here(&input))? {
            Err(RenderError::Limit(limit)) => Err(Error::model(format!(
                "the model's chat template exceeds a limit even for a short conversation: {limit}; replace it with \
                 --chat-template"
            ))),
            // It may refuse or need something that this conversation has not.
            _ => Ok(()),
        }
    }

    /// Whether every template distinguishes the role `developer` from `system`.
    pub fn supports_developer_role(&self) -> bool {
        self.has_developer_role
    }

    /// The marks around the model's reasoning, if it reasons before it answers.
    pub(in crate::chat) fn reasoning_marks(&self) -> Option<&'static ReasoningMarks> {
        self.reasoning
    }

    /// The source of the template for conversations without tools.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a special token by the name of a template variable, such as `pad_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).map(String::as_str)
    }

    /// Whether `text` occurs in the source of a template.
    pub fn template_contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// Whether the template expects the arguments of calls as the text of a JSON object, and not as an object: it fails
    /// with an object, or writes it as Python would.
    pub fn takes_text_arguments(&self) -> bool {
        *self.text_arguments.get_or_init(|| {
            let object = serde_json::json!({"probe_key": "probe_value"});
            let text = serde_json::Value::from(object.to_string());
            let rendered = self.render_probe(object);
            let is_json = rendered.is_ok_and(|rendered| !rendered.contains("'probe_key': 'probe_value'"));
            !is_json && self.render_probe(text).is_ok()
        })
    }

    /// Renders a conversation with a call that has these arguments.
    fn render_probe(&self, arguments: serde_json::Value) -> Result<String> {
        let id = "abcdefgh1";
        let function = serde_json::json!({"name": "probe", "arguments": arguments});
        let call = serde_json::json!({"id": id, "type": "function", "function": function});
        let message = |role, content: &str| TemplateMessage::new(role, content.to_owned());
        let calls = TemplateMessage { tool_calls: Some(vec![call]), ..message("assistant", "") };
        let result = TemplateMessage {
            tool_call_id: Some(id.to_owned()),
            name: Some("probe".to_owned()),
            ..message("tool", "1")
        };
        self.render(TemplateInput {
            messages: &[message("user", "hi"), calls, result],
            tools: None,
            documents: None,
            add_generation_prompt: true,
            variables: serde_json::Map::new(),
            now: jiff::civil::DateTime::default(),
        })
    }

    /// Whether the template for conversations without tools uses a variable.
    pub fn uses_variable(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Renders the prompt for a conversation.
    ///
    /// # Errors
    /// When the template refuses the conversation, fails, or exceeds a limit.
    pub fn render<M: Serialize + Sync>(&self, input: TemplateInput<'_, M>) -> Result<String> {
        if let Some(e) = self.failures.find(&input) {
            return Err(e);
        }
        thread::run(|| self.render_here(&input))?.map_err(|e| match e {
            RenderError::Other(e) => e,
            RenderError::Limit(limit) => {
                let message = format!(
                    "the model's chat template exceeds a limit with these messages: {limit}; send fewer or shorter ones"
                );
                let e = Error::invalid("messages", message);
                self.failures.remember(&input, &e);
                e
            }
        })
    }

    /// Renders on this thread.
    fn render_here<M: Serialize>(&self, input: &TemplateInput<'_, M>) -> Result<String, RenderError> {
        budget::start();
        let named = |name: &str, value: Value| (name.to_owned(), value);
        let now = input.now;
        // Some templates expect it ready-made; the client's variable of this name precedes.
        let datetime = clock::strftime(now, DATETIME_FORMAT);
        let context = [named("datetime", Value::from(datetime))]
            .into_iter()
            .chain(self.special_tokens.iter().map(|(name, text)| named(name, Value::from(text.as_str()))))
            .chain(input.variables.iter().map(|(name, value)| named(name, Value::from(Serde(value)))))
            .chain([
                named("messages", Value::from(Serde(input.messages))),
                named("tools", Value::from(Serde(input.tools))),
                named("documents", Value::from(Serde(input.documents))),
                named("add_generation_prompt", Value::from(input.add_generation_prompt)),
                named("strftime_now", Value::from_function(move |format: &str| strftime(now, format))),
            ])
            .collect::<BTreeMap<String, Value>>();
        let name = if input.tools.is_some() { self.with_tools } else { DEFAULT };
        let template = self.environment.get_template(name)?;
        let mut prompt = BoundedBuffer(Vec::new());
        template.render_captured_to(context, &mut prompt)?;
        String::from_utf8(prompt.0).map_err(|e| {
            RenderError::Other(Error::internal(format!("the chat template did not render UTF-8: {e}")))
        })
    }
}

/// An environment with everything that templates may use.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    // The same options as in `transformers`.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::internal(format!("impossible template syntax: {e}")))?);
    environment.set_fuel(Some(FUEL));
    // It would print all that it can reach.
    environment.remove_global("debug");
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", raise);
    filters::register(&mut environment);
    guard::register(&mut environment);
    Ok(environment)
}

/// The function `strftime_now`.
fn strftime(now: jiff::civil::DateTime, format: &str) -> Result<String, minijinja::Error> {
    if format.len() > MAX_TIME_FORMAT_BYTES {
        let limit = format!("a format of the time is longer than {MAX_TIME_FORMAT_BYTES} bytes");
        return Err(budget::exceeded(limit));
    }
    Ok(clock::strftime(now, format))
}

/// The function `raise_exception`, by which a template refuses a conversation.
fn raise(mut message: String) -> Result<Value, minijinja::Error> {
    message.truncate(message.floor_char_boundary(MAX_REFUSAL_BYTES));
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

/// A failure to render.
enum RenderError {
    /// The template exceeds a limit, which the text names.
    Limit(String),
    /// The template refuses the conversation, or fails.
    Other(Error),
}

/// Converts an error of a template. A refusal is an error in the messages; any other is a fault of the template.
impl From<minijinja::Error> for RenderError {
    fn from(e: minijinja::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
        while let Some(error) = cause {
            if let Some(Refusal(message)) = error.downcast_ref() {
                let message = format!("the model's chat template refuses these messages: {}", quote(message));
                return Self::Other(Error::new(Kind::InvalidRequest, message).with_param("messages"));
            }
            // An error of the output is inside of an I/O error, which does not count it as its source.
            let output = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let limit = output.and_then(|e| e.downcast_ref()).or_else(|| error.downcast_ref());
            if let Some(LimitExceeded(limit)) = limit {
                return Self::Limit(limit.clone());
            }
            let is_out_of_fuel = error
                .downcast_ref::<minijinja::Error>()
                .is_some_and(|error| error.kind() == ErrorKind::OutOfFuel);
            if is_out_of_fuel {
                return Self::Limit(format!("rendering takes more than {FUEL} steps"));
            }
            cause = error.source();
        }
        Self::Other(Error::model(format!("the model's chat template failed: {:.1000}", e.to_string())))
    }
}

/// A buffer of at most [`MAX_PROMPT_BYTES`].
struct BoundedBuffer(Vec<u8>);

impl Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            let limit = LimitExceeded(format!("the prompt is longer than {MAX_PROMPT_BYTES} bytes"));
            return Err(io::Error::other(limit));
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

    /// The error of a template for a short conversation, which must come soon.
    fn stopped(source: &str) -> Error {
        let started = std::time::Instant::now();
        let messages =
            [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "ho"})];
        let error = render(source, &messages).err().unwrap_or_else(|| panic!("not stopped: {source:.200}"));
        let elapsed = started.elapsed();
        assert!(error.to_string().len() < 2000, "{source:.200}");
        // A debug build of our own code, beside other tests, takes its time.
        assert!(elapsed.as_secs() < 12, "{elapsed:?} for {source:.200}");
        error
    }

    #[test]
    fn hostile_templates_are_stopped() {
        for source in [
            "{% for a in range(9999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f(1) }}",
            "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}",
            "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
            "{{ 'x' * 90000000 }}",
            "{{ 'x' | center(99999999999) }}",
            "{% set x = 'x' * 1000000 %}{{ x.replace('x', x) }}",
            "{% set x = 'x' * 1000000 %}{{ x | replace('x', x) }}",
            "{% set x = 'x' * 1000000 %}{{ x.join(x) }}",
            "{% set x = 'x' * 1000000 %}{{ ([x] * 100000) | join }}",
            "{{ ('{0}' * 100000).format('x' * 1000000) }}",
            "{{ '{:>1000000000}'.format(1) }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '%1000000000d' | format(1) }}",
            "{% set x = '\n' * 1000000 %}{{ x | indent(x, blank=true) }}",
            "{% set x = 'x' * 1000000 %}{{ range(99999) | list | tojson(separators=(x, x)) }}",
            "{% set x = 'x' * 1000000 %}{{ range(99999) | list | tojson(indent=x) }}",
            "{% set x = ([1] * 90000000) + [2] %}",
            "{% set a, b = [1] * 90000000 %}",
            "{{ ('x ' * 8000000).split() | length }}{{ ('x ' * 8000000).split(' ') | length }}",
            "{{ ([1] * 90000000) | list | length }}",
            "{{ strftime_now('%c' * 5000000) }}",
            "{{ raise_exception('x' * 10000000) }}",
            "{% include 'default' %}",
            "{% import 'default' as x %}",
            "{% extends 'default' %}",
        ] {
            stopped(source);
        }
    }

    /// Values that share their parts take no memory, but every visit of them takes as long as if they did not.
    #[test]
    fn doubled_values_are_refused() {
        let double = |start: &str, doubled: &str| {
            format!(
                "{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range(40) %}}\
                 {{% set ns.x = {doubled} %}}{{% set ns.y = {} %}}{{% endfor %}}{{{{ ns.x == ns.y }}}}",
                doubled.replace('x', "y")
            )
        };
        for (start, doubled) in [
            ("['a']", "[ns.x, ns.x]"),
            ("['a']", "ns.x + ns.x"),
            ("['a']", "ns.x * 2"),
            ("'a'", "ns.x + ns.x"),
            ("'a'", "ns.x ~ ns.x"),
            ("'a'", "ns.x * 2"),
            ("('a',)", "(ns.x, ns.x)"),
            ("{}", "{'a': ns.x, 'b': ns.x}"),
            ("{}", "dict(a=ns.x, b=ns.x)"),
            ("['a']", "[ns.x]|map('list')|list + [ns.x]"),
        ] {
            stopped(&double(start, doubled));
        }
        for use_of_x in
            ["x == [x]", "[x, [x]]|sort", "x|tojson", "x|string", "x in [[x]]", "{x: 1}", "x ~ ''"]
        {
            let doublings = "{% set x = [x, x] %}".repeat(40);
            stopped(&format!("{{% set x = [1] %}}{doublings}{{{{ {use_of_x} }}}}"));
        }
        stopped(&format!("{{% set x = 1 %}}{}{{{{ x }}}}", "{% set x = x, x %}".repeat(40)));
    }

    #[test]
    fn a_deep_chain_of_values_is_refused_or_flattened() {
        for link in ["[ns.l]", "{'a': ns.l}", "(ns.l,)", "ns.l|batch(1)", "[ns.l]|list", "dict(a=ns.l)"] {
            let source = format!(
                "{{% set ns = namespace(l=[1]) %}}{{% for i in range(99999) %}}{{% set ns.l = {link} %}}{{% endfor %}}"
            );
            stopped(&source);
        }
        for link in ["ns.l[:]", "ns.l + []", "ns.l * 1", "ns.l|list", "ns.l|reverse"] {
            let source = format!(
                "{{% set ns = namespace(l=[1]) %}}{{% for i in range(9999) %}}{{% set ns.l = {link} %}}{{% endfor %}}\
                 {{{{ ns.l }}}}"
            );
            assert_eq!(render(source.as_str(), &[]).unwrap(), "[1]", "{link}");
        }
    }

    #[test]
    fn a_namespace_cannot_refer_to_itself() {
        for source in [
            "{% set ns = namespace() %}{% set ns.x = ns %}",
            "{% set ns = namespace() %}{% set ns.x = [ns] %}",
            "{% set ns = namespace() %}{% set ns.x = {'a': ns} %}",
            "{% set ns = namespace() %}{% set m = namespace(x=[ns]) %}",
            "{% set ns = namespace() %}{% for i in [1] %}{% set ns.x = loop %}{% endfor %}",
            "{% set ns = namespace() %}{% set ns.x = cycler(ns) %}",
            "{% set ns = namespace() %}{% set ns.x, y = ns, 1 %}",
        ] {
            stopped(source);
        }
        let fine = "{% set ns = namespace(a=1) %}{% set ns.b = {'c': [ns.a]} %}{{ ns.b.c }}";
        assert_eq!(render(fine, &[]).unwrap(), "[1]");
    }

    #[test]
    fn a_template_that_cannot_render_a_short_conversation_is_refused_at_once() {
        let error =
            ChatTemplate::new("{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}").err().unwrap();
        assert_eq!(error.kind(), Kind::Model);
        assert!(error.to_string().contains("--chat-template"), "{error}");
    }

    #[test]
    fn a_conversation_that_exceeds_a_limit_does_not_affect_others() {
        let template = ChatTemplate::new(
            "{% for m in messages %}{% for i in range(m.content|length * 1000) %}x{% endfor %}{% endfor %}",
        )
        .unwrap();
        let long = vec![json!({"role": "user", "content": "x".repeat(90)}); 20];
        let error = template.render(input(&long)).unwrap_err();
        assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, Some("messages")), "{error}");
        assert!(error.to_string().contains("limit"), "{error}");
        let started = std::time::Instant::now();
        let again = template.render(input(&long)).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        assert!(started.elapsed().as_millis() < 50, "not remembered: {:?}", started.elapsed());
        assert_eq!(template.render(input(&[json!({"content": "x"})])).unwrap().len(), 1000);
    }

    #[test]
    fn long_conversations_are_rendered() {
        let messages: Vec<Json> =
            (0..3000).map(|i| json!({"role": "user", "content": format!("message {i}")})).collect();
        let template = ChatTemplate::new(
            "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m] %}{% endfor %}\
             {% for m in ns.all[1:] %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
        )
        .unwrap();
        let short = &messages[..200];
        assert_eq!(template.render(input(short)).unwrap().lines().count(), 199);
        let template = ChatTemplate::new(builtin_template("chatml").unwrap()).unwrap();
        assert_eq!(template.render(input(&messages)).unwrap().lines().count(), 6001);
    }

    #[test]
    fn built_in_templates_render_turns() {
        let message = |role, content: &str| TemplateMessage::new(role, content.to_owned());
        let messages =
            [message("system", "S"), message("user", "U"), message("assistant", "A"), message("user", "V")];
        for (name, expected) in [
            (
                "alpaca",
                "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n### Response:\n",
            ),
            (
                "chatml",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
                 <|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "gemma",
                "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n\
                 <start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
            ),
            ("llama-2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
            (
                "Llama-3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
                 U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            ("mistral", "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]"),
            (
                "phi-3",
                "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
            ),
            (
                "zephyr",
                "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
            ),
        ] {
            let source = TemplateSource::from(builtin_template(name).unwrap())
                .with_special_token("bos_token", Some("<s>"))
                .with_special_token("eos_token", Some("</s>"));
            let rendered = ChatTemplate::new(source).unwrap().render(input(&messages)).unwrap();
            assert_eq!(rendered, expected, "{name}");
        }
        assert_eq!(builtin_names().count(), 8);
    }
}
