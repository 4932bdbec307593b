//! Chat templates: the model's own Jinja, run by minijinja within bounds.

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::error::{Error, Kind, Result};

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    knows_developer: bool,
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

/// Name the template is registered under.
const NAME: &str = "chat";

/// Instructions a template may execute. The default model's template takes about 40 per message.
const FUEL: u64 = 10_000_000;

/// Bytes a template may write: well above any request body.
const MAX_PROMPT_BYTES: usize = 32 << 20;

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the tokens that begin and end a text.
    ///
    /// # Errors
    /// When it is not valid Jinja.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // As Hugging Face's own renderer is set.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|e| Error::internal(format!("impossible template syntax: {e}")))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            jiff::Zoned::now().strftime(format.as_bytes()).to_string()
        });
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| Error::model(format!("the model's chat template is not valid: {e}")))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            knows_developer: source.contains("developer"),
        })
    }

    /// Whether the template tells the role `developer` from `system`.
    pub fn knows_developer(&self) -> bool {
        self.knows_developer
    }

    /// The prompt for a conversation, up to where the assistant is to answer.
    ///
    /// # Errors
    /// When the template refuses the conversation or exceeds its bounds.
    pub fn render(&self, messages: &[TemplateMessage]) -> Result<String> {
        let refused = |e: minijinja::Error| {
            Error::new(Kind::InvalidRequest, format!("the model's chat template refuses these messages: {e}"))
                .with_param("messages")
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut prompt = Bounded(Vec::new());
        template
            .render_captured_to(
                context! {
                    messages => Serde(messages),
                    add_generation_prompt => true,
                    bos_token => self.bos.as_str(),
                    eos_token => self.eos.as_str(),
                },
                &mut prompt,
            )
            .map_err(refused)?;
        String::from_utf8(prompt.0)
            .map_err(|e| Error::internal(format!("the chat template wrote no text: {e}")))
    }
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

/// Python's `json.dumps(value, ensure_ascii=False)`, which is what templates were written
/// against: `", "` and `": "` between items, and no escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |e: &dyn fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let mut json = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
    }
    .map_err(|e| failed(&e))?;
    String::from_utf8(json).map(Value::from_safe_string).map_err(|e| failed(&e))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &'static str, content: &str) -> TemplateMessage {
        TemplateMessage {
            role,
            content: content.to_owned(),
            name: None,
            tool_calls: None,
            tool_call_id: None,
        }
    }

    fn render(source: &str, messages: &[TemplateMessage]) -> Result<String> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages)
    }

    #[test]
    fn the_usual_names_are_there() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m.role.upper() }}:{{ m['content'] | trim }}{{ eos_token }}\
                      {% endfor %}{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(render(source, &[message("user", " hi ")]).unwrap(), "<s>USER:hi</s>>");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let source = "{{ {'a': [1, 'é<>&'], 'b': none} | tojson }}";
        assert_eq!(render(source, &[]).unwrap(), r#"{"a": [1, "é<>&"], "b": null}"#);
    }

    #[test]
    fn a_refusal_reaches_the_client_with_its_words() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, Some("messages")));
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn hostile_templates_end() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(endless, &[]).is_err());
        let huge = "{{ 'x' * 90000000 }}";
        assert!(render(huge, &[]).is_err());
        assert!(ChatTemplate::new("{% for %}", "", "").is_err());
    }
}
