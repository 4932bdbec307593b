//! The table of tool-call formats, one row per family of models. [`super::parser`] parses them, and
//! [`super::grammar`] constrains a model to them.

mod json;
mod literal;
mod named;
mod tagged;

use super::form::{CallForm, CallHead};
use super::history::CallIds;
use super::literal::GEMMA_QUOTE;
use json::JsonForm;
use literal::{LiteralForm, gemma_value, python_value};
use named::NamedForm;
use tagged::TaggedForm;

/// The format in which a family writes tool calls: marks, and the form of what is between them.
#[derive(Debug)]
pub struct ToolCallFormat {
    /// Name of the family.
    pub name: &'static str,
    /// Texts that occur, all of them, in every template of the family.
    markers: &'static [&'static str],
    /// Mark before a call, or before the list of calls.
    pub open: &'static str,
    /// Text that begins a call where the model has left out `open`.
    pub bare_open: Option<&'static str>,
    /// Whether calls at the beginning of a text may come without any mark.
    pub is_open_optional: bool,
    /// Whether the prompt ends with `open`.
    pub is_open_in_prompt: bool,
    /// Mark after a call, or after the list of calls; empty if only the end of the text ends it.
    pub close: &'static str,
    /// The ids of calls.
    pub ids: CallIds,
    /// The form of the calls.
    pub form: &'static dyn CallForm,
}

/// Qwen, Hermes, SmolLM3, Granite 4 and most others; also the format of the fallback instructions.
const HERMES: ToolCallFormat = ToolCallFormat {
    name: "hermes",
    markers: &["<tool_call>"],
    open: "<tool_call>",
    bare_open: None,
    is_open_optional: false,
    is_open_in_prompt: false,
    close: "</tool_call>",
    ids: CallIds::Any,
    form: &HERMES_FORM,
};

const HERMES_FORM: JsonForm = JsonForm {
    padding: "\n",
    is_list: false,
    repeats_open: true,
    separator: "\n",
    name_key: "name",
    arguments_key: "arguments",
};

/// A list of JSON objects.
const LIST_FORM: JsonForm =
    JsonForm { padding: "", is_list: true, repeats_open: false, separator: ", ", ..HERMES_FORM };

/// JSON objects, the first of which needs no mark.
const LLAMA_FORM: JsonForm = JsonForm {
    padding: "",
    is_list: false,
    repeats_open: false,
    separator: "; ",
    name_key: "name",
    arguments_key: "parameters",
};

const PYTHON_FORM: LiteralForm = LiteralForm {
    call_open: "",
    brackets: ['(', ')'],
    key_end: '=',
    is_list: true,
    separator: ", ",
    value_rule: python_value,
    marks: &[],
};

const QWEN_CODER_FORM: TaggedForm = TaggedForm {
    call_open: "<function=",
    name_end: ">",
    call_close: "</function>",
    key_open: "<parameter=",
    value_open: ">",
    value_close: "</parameter>",
    section_close: "</tool_call>",
    layout: "<function={name}>\n{arguments}</function>",
    key_layout: "<parameter={key}>\n",
    value_end: "\n</parameter>\n",
    separator: None,
    padding: "\n",
    marks: &[],
};

const GLM_MARKS: &[&str] = &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"];

const GLM_FORM: TaggedForm = TaggedForm {
    call_open: "",
    name_end: "",
    call_close: "",
    key_open: "<arg_key>",
    value_open: "<arg_value>",
    value_close: "</arg_value>",
    section_close: "</tool_call>",
    layout: "{name}\n{arguments}",
    key_layout: "<arg_key>{key}</arg_key>\n<arg_value>",
    value_end: "</arg_value>\n",
    separator: None,
    padding: "",
    marks: GLM_MARKS,
};

const INVOKE_FORM: TaggedForm = TaggedForm {
    call_open: "<invoke name=",
    name_end: ">",
    call_close: "</invoke>",
    key_open: "<parameter name=",
    value_open: ">",
    value_close: "</parameter>",
    section_close: "</minimax:tool_call>",
    layout: "<invoke name=\"{name}\">\n{arguments}</invoke>\n",
    key_layout: "<parameter name=\"{key}\">",
    value_end: "</parameter>\n",
    separator: Some(""),
    padding: "\n",
    marks: &[],
};

const DSML_FORM: TaggedForm = TaggedForm {
    call_open: "<｜DSML｜invoke name=",
    name_end: ">",
    call_close: "</｜DSML｜invoke>",
    key_open: "<｜DSML｜parameter name=",
    value_open: ">",
    value_close: "</｜DSML｜parameter>",
    section_close: "</｜DSML｜function_calls>",
    layout: "<｜DSML｜invoke name=\"{name}\">\n{arguments}</｜DSML｜invoke>\n",
    key_layout: "<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">",
    value_end: "</｜DSML｜parameter>\n",
    separator: Some(""),
    padding: "\n",
    marks: &["｜DSML｜"],
};

const KIMI3_FORM: TaggedForm = TaggedForm {
    call_open: "<|open|>call tool=",
    name_end: "<|sep|>",
    call_close: "<|close|>call<|sep|>",
    key_open: "<|open|>argument key=",
    value_open: "<|sep|>",
    value_close: "<|close|>argument<|sep|>",
    section_close: "<|close|>tools<|sep|>",
    layout: "<|open|>call tool=\"{name}\" index=\"1\"<|sep|>{arguments}<|close|>call<|sep|>",
    key_layout: "<|open|>argument key=\"{key}\"<|sep|>",
    value_end: "<|close|>argument<|sep|>",
    separator: Some(""),
    padding: "",
    marks: &["<|open|>", "<|sep|>", "<|close|>"],
};

const DEEPSEEK_MARKS: &[&str] = &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"];

const DEEPSEEK_FORM: NamedForm = NamedForm {
    call_open: "<｜tool▁call▁begin｜>",
    head_end: "",
    call_close: "<｜tool▁call▁end｜>",
    layout: "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
    separator: "",
    marks: DEEPSEEK_MARKS,
    head: |text| {
        let text = text.trim_start();
        let text = text.strip_prefix("function<｜tool▁sep｜>").unwrap_or(text);
        plain_head(text.split(['<', '\n', '`']).next().unwrap_or_default())
    },
    text_name: "",
};

/// The format of Harmony's calls as `chat/harmony.rs` passes them on, which knows the rest of that format.
const HARMONY: ToolCallFormat = ToolCallFormat {
    name: "harmony",
    markers: &["<|channel|>", "<|message|>", "<|call|>"],
    open: "<|channel|>commentary to=",
    close: "",
    form: &&NamedForm {
        call_open: "",
        head_end: "<|message|>",
        call_close: "<|call|>",
        layout: "functions.{name} <|constrain|>json<|message|>{arguments}",
        separator: "",
        marks: &[
            "<|start|>",
            "<|channel|>",
            "<|constrain|>",
            "<|message|>",
            "<|end|>",
            "<|call|>",
            "<|return|>",
        ],
        head: |text| {
            let name = text.split([' ', '<', '\n']).next().unwrap_or_default();
            plain_head(name.strip_prefix("functions.").unwrap_or(name))
        },
        text_name: "",
    },
    ..HERMES
};

/// All formats. The first whose markers all occur in a template is chosen.
const FORMATS: &[ToolCallFormat] = &[
    HARMONY,
    ToolCallFormat {
        name: "gemma 4",
        markers: &["<|tool_call>", "<tool_call|>"],
        open: "<|tool_call>",
        close: "<tool_call|>",
        form: &&LiteralForm {
            call_open: "call:",
            brackets: ['{', '}'],
            key_end: ':',
            is_list: false,
            separator: ",",
            value_rule: gemma_value,
            marks: &[GEMMA_QUOTE],
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "deepseek 3.2",
        markers: &["｜DSML｜", "function_calls"],
        open: "<｜DSML｜function_calls>",
        close: "</｜DSML｜function_calls>",
        form: &&DSML_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "deepseek 3",
        markers: &["<｜tool▁sep｜>", "```json"],
        open: "<｜tool▁calls▁begin｜>",
        bare_open: Some("<｜tool▁call▁begin｜>"),
        close: "<｜tool▁calls▁end｜>",
        form: &&NamedForm {
            layout: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>",
            separator: "\n",
            ..DEEPSEEK_FORM
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "deepseek 3.1",
        markers: &["<｜tool▁sep｜>"],
        open: "<｜tool▁calls▁begin｜>",
        bare_open: Some("<｜tool▁call▁begin｜>"),
        close: "<｜tool▁calls▁end｜>",
        form: &&DEEPSEEK_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "kimi k2",
        markers: &["<|tool_call_argument_begin|>"],
        open: "<|tool_calls_section_begin|>",
        bare_open: Some("<|tool_call_begin|>"),
        close: "<|tool_calls_section_end|>",
        ids: CallIds::NameAndIndex,
        form: &&NamedForm {
            call_open: "<|tool_call_begin|>",
            head_end: "<|tool_call_argument_begin|>",
            call_close: "<|tool_call_end|>",
            layout: "<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
            separator: "",
            marks: &["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
            head: |text| {
                let id = text.split('<').next().unwrap_or_default().trim();
                let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
                let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
                CallHead { name, id: Some(id.to_owned()).filter(|id| id.contains(':')) }
            },
            text_name: "",
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "kimi k3",
        markers: &["<|open|>", "<|sep|>", "open_tag('tools')"],
        open: "<|open|>tools<|sep|>",
        close: "<|close|>tools<|sep|>",
        form: &&KIMI3_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "minimax",
        markers: &["<minimax:tool_call>"],
        open: "<minimax:tool_call>",
        bare_open: Some("<invoke name="),
        close: "</minimax:tool_call>",
        form: &&INVOKE_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "glm",
        markers: &["<tool_call>", "<arg_key>{{ k }}</arg_key><arg_value>"],
        form: &&TaggedForm {
            layout: "{name}{arguments}",
            key_layout: "<arg_key>{key}</arg_key><arg_value>",
            value_end: "</arg_value>",
            ..GLM_FORM
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "glm, with new lines",
        markers: &["<tool_call>", "<arg_key>"],
        form: &&GLM_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "seed",
        markers: &["<seed:tool_call>"],
        open: "<seed:tool_call>",
        bare_open: Some("<function="),
        close: "</seed:tool_call>",
        form: &&TaggedForm {
            section_close: "</seed:tool_call>",
            key_layout: "<parameter={key}>",
            value_end: "</parameter>\n",
            ..QWEN_CODER_FORM
        },
        ..HERMES
    },
    // Qwen3-Coder, Qwen3.5, Nemotron 3 and Step 3.5.
    ToolCallFormat {
        name: "qwen coder",
        markers: &["<tool_call>", "<function=", "<parameter="],
        bare_open: Some("<function="),
        form: &&QWEN_CODER_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "functionary 3.2",
        markers: &[">>>all"],
        open: ">>>",
        is_open_in_prompt: true,
        close: "",
        form: &&NamedForm {
            call_open: "",
            head_end: "\n",
            call_close: "",
            layout: "{name}\n{arguments}",
            separator: ">>>",
            marks: &[],
            head: |text| plain_head(text.trim()),
            text_name: "all",
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "functionary 3.1",
        markers: &["<function=", "</function>"],
        open: "<function=",
        close: "",
        form: &&NamedForm {
            call_open: "",
            head_end: ">",
            call_close: "</function>",
            layout: "{name}>{arguments}</function>",
            separator: "<function=",
            marks: &[],
            head: |text| plain_head(text.split('>').next().unwrap_or_default().trim()),
            text_name: "",
        },
        ..HERMES
    },
    ToolCallFormat {
        name: "mistral, names first",
        markers: &["[TOOL_CALLS]", "[ARGS]"],
        form: &&NamedForm {
            call_open: "",
            head_end: "[ARGS]",
            call_close: "",
            layout: "{name}[ARGS]{arguments}",
            separator: "[TOOL_CALLS]",
            marks: &["[ARGS]", "[CALL_ID]"],
            head: |text| plain_head(text.trim_start().split(['[', ' ']).next().unwrap_or_default()),
            text_name: "",
        },
        ..MISTRAL
    },
    MISTRAL,
    ToolCallFormat {
        name: "lfm2",
        markers: &["<|tool_call_start|>"],
        open: "<|tool_call_start|>",
        close: "<|tool_call_end|>",
        form: &&PYTHON_FORM,
        ..HERMES
    },
    ToolCallFormat { name: "phi", markers: &["<|/tool_call|>"], close: "<|/tool_call|>", ..GRANITE },
    GRANITE,
    ToolCallFormat {
        name: "nemotron",
        markers: &["<TOOLCALL>"],
        open: "<TOOLCALL>",
        close: "</TOOLCALL>",
        form: &LIST_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "apriel",
        markers: &["<tool_calls>"],
        open: "<tool_calls>",
        close: "</tool_calls>",
        form: &LIST_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "command r",
        markers: &["<|START_ACTION|>"],
        open: "<|START_ACTION|>",
        close: "<|END_ACTION|>",
        form: &JsonForm { name_key: "tool_name", arguments_key: "parameters", ..LIST_FORM },
        ..HERMES
    },
    HERMES,
    // Llama 4 and others that are told to answer with calls as in Python.
    ToolCallFormat {
        name: "llama 4, pythonic",
        markers: &["func_name1("],
        open: "<|python_start|>",
        close: "<|python_end|>",
        is_open_optional: true,
        form: &&PYTHON_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "llama 4",
        markers: &["<|python_start|>", "\"parameters\""],
        open: "<|python_start|>",
        close: "<|python_end|>",
        is_open_optional: true,
        form: &LLAMA_FORM,
        ..HERMES
    },
    ToolCallFormat {
        name: "llama 3",
        markers: &["ipython", "\"parameters\""],
        open: "<|python_tag|>",
        is_open_optional: true,
        close: "",
        form: &LLAMA_FORM,
        ..HERMES
    },
];

const MISTRAL: ToolCallFormat = ToolCallFormat {
    name: "mistral",
    markers: &["[TOOL_CALLS]"],
    open: "[TOOL_CALLS]",
    close: "",
    ids: CallIds::Alphanumeric(9),
    form: &LIST_FORM,
    ..HERMES
};

const GRANITE: ToolCallFormat = ToolCallFormat {
    name: "granite",
    markers: &["<|tool_call|>"],
    open: "<|tool_call|>",
    close: "",
    form: &LIST_FORM,
    ..HERMES
};

/// Opening and closing marks of the code blocks in which models of any family sometimes write calls.
pub const CODE_BLOCKS: [(&str, &str); 2] = [("```json", "```"), ("```tool_code", "```")];

fn plain_head(name: &str) -> CallHead {
    CallHead { name: name.to_owned(), id: None }
}

impl ToolCallFormat {
    /// The format of a model, by its template; `contains` says whether a text occurs in it.
    pub fn for_template(contains: impl Fn(&str) -> bool) -> &'static Self {
        const FALLBACK: &ToolCallFormat = &HERMES;
        FORMATS.iter().find(|format| format.markers.iter().all(|marker| contains(marker))).unwrap_or(FALLBACK)
    }

    /// Whether calls and answers stand in channels, which the grammar describes.
    pub fn is_framed(&self) -> bool {
        self.name == HARMONY.name
    }

    /// Texts of the format that may be special tokens.
    pub fn marks(&self) -> Vec<&'static str> {
        let own = [self.open, self.close].into_iter().chain(self.bare_open);
        own.chain(self.form.marks()).filter(|mark| !mark.is_empty()).collect()
    }

    /// The format called `name`.
    #[cfg(test)]
    pub fn by_name(name: &str) -> &'static Self {
        FORMATS.iter().find(|format| format.name == name).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_determines_the_format() {
        for (template, name) in [
            ("<tool_call>\n{\"name\": x}", "hermes"),
            ("'[TOOL_CALLS] ['", "mistral"),
            ("'[TOOL_CALLS]' name '[ARGS]'", "mistral, names first"),
            ("<|tool|> <|/tool|> <|tool_call|> <|/tool_call|>", "phi"),
            ("respond only with <|tool_call|> followed by", "granite"),
            ("Environment: ipython {\"name\": x, \"parameters\": y}", "llama 3"),
            ("<|im_start|>", "hermes"),
            ("<|start|>x<|channel|>y<|message|>z<|call|>", "harmony"),
            ("'<|tool_call>call:' name '{' '}<tool_call|>'", "gemma 4"),
            ("dsml_token = '｜DSML｜' '<' dsml_token 'function_calls>'", "deepseek 3.2"),
            ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>x\n```json", "deepseek 3"),
            ("<｜tool▁call▁begin｜>x<｜tool▁sep｜>", "deepseek 3.1"),
            ("<|tool_call_begin|>id<|tool_call_argument_begin|>", "kimi k2"),
            ("'<minimax:tool_call>'\n<invoke name=\"x\">", "minimax"),
            ("<tool_call>{name}\n<arg_key>k</arg_key>\n<arg_value>", "glm, with new lines"),
            ("<tool_call>{name}<arg_key>{{ k }}</arg_key><arg_value>", "glm"),
            ("<seed:tool_call><function=f><parameter=p>", "seed"),
            ("<tool_call>\n<function=f>\n<parameter=p>", "qwen coder"),
            ("'>>>all\n'", "functionary 3.2"),
            ("<function=f>{\"a\": 1}</function>", "functionary 3.1"),
            ("<|tool_call_start|>[f(a=1)]<|tool_call_end|>", "lfm2"),
            ("<TOOLCALL>[{}]</TOOLCALL>", "nemotron"),
            ("<tool_calls>[{}]</tool_calls>", "apriel"),
            ("<|START_ACTION|>[]<|END_ACTION|>", "command r"),
            ("MUST put it in the format of [func_name1(params_name1=params_value1)]", "llama 4, pythonic"),
            ("<|python_start|> {\"name\": x, \"parameters\": y}", "llama 4"),
        ] {
            let found = ToolCallFormat::for_template(|marker| template.contains(marker));
            assert_eq!(found.name, name, "{template}");
        }
    }

    /// Tests the real templates in the file that `CHAT_TEMPLATE_REFERENCE` names, if it is set.
    #[test]
    fn real_templates_select_their_formats() {
        let Ok(path) = std::env::var("CHAT_TEMPLATE_REFERENCE") else { return };
        let reference: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for (family, entry) in reference["templates"].as_object().unwrap() {
            let template = entry["template"].as_str().unwrap();
            let expected = [
                ("mistralai", "mistral"),
                ("microsoft-Phi-4", "phi"),
                ("ibm-granite-granite-3", "granite"),
                ("meta-llama-Llama-3", "llama 3"),
                ("deepseek-ai-DeepSeek-R1", "deepseek 3"),
                ("openai-gpt-oss", "harmony"),
            ];
            let expected = expected.iter().find(|(prefix, _)| family.starts_with(prefix));
            let found = ToolCallFormat::for_template(|marker| template.contains(marker));
            assert_eq!(found.name, expected.map_or("hermes", |(_, name)| name), "{family}");
        }
    }
}
