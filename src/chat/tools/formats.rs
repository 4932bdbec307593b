//! The table of tool-call formats, one row per family of models. [`super::parser`] parses them, and
//! [`super::grammar`] constrains a model to them.

/// The form in which a family writes tool calls, usually as JSON objects with the function's name and arguments.
#[derive(Debug, PartialEq)]
pub struct ToolCallFormat {
    /// Name of the family.
    pub name: &'static str,
    /// Texts that occur, all of them, in every template of the family.
    markers: &'static [&'static str],
    /// Mark before a call, or before the list of calls.
    pub open: &'static str,
    /// Whether calls may come without `open`.
    pub is_open_optional: bool,
    /// Mark after a call, or after the list of calls; empty if only the end of the text ends it.
    pub close: &'static str,
    /// Whitespace between the marks and their content.
    pub padding: &'static str,
    /// Whether the marks enclose a JSON array of all calls.
    pub is_list: bool,
    /// Text between two calls.
    pub separator: &'static str,
    /// Key of the arguments in a call's object.
    pub arguments_key: &'static str,
    /// Mark between the name and the arguments, if a call is not an object but a name followed by arguments.
    pub name_end: Option<&'static str>,
    /// Length of call ids (letters and digits only), if the template requires one.
    pub id_len: Option<usize>,
}

/// Qwen, Hermes, SmolLM3 and most others; also the form of the fallback instructions.
const HERMES: ToolCallFormat = ToolCallFormat {
    name: "hermes",
    markers: &["<tool_call>"],
    open: "<tool_call>",
    is_open_optional: false,
    close: "</tool_call>",
    padding: "\n",
    is_list: false,
    separator: "\n",
    arguments_key: "arguments",
    name_end: None,
    id_len: None,
};

/// All formats. The first whose markers all occur in a template is chosen.
const FORMATS: [ToolCallFormat; 6] = [
    ToolCallFormat {
        name: "mistral, names first",
        markers: &["[TOOL_CALLS]", "[ARGS]"],
        name_end: Some("[ARGS]"),
        padding: "",
        separator: "[TOOL_CALLS]",
        is_list: false,
        ..MISTRAL
    },
    MISTRAL,
    ToolCallFormat { name: "phi", markers: &["<|/tool_call|>"], close: "<|/tool_call|>", ..GRANITE },
    GRANITE,
    HERMES,
    ToolCallFormat {
        name: "llama 3",
        markers: &["ipython", "\"parameters\""],
        open: "<|python_tag|>",
        is_open_optional: true,
        close: "",
        padding: "",
        is_list: false,
        separator: "; ",
        arguments_key: "parameters",
        name_end: None,
        id_len: None,
    },
];

const MISTRAL: ToolCallFormat = ToolCallFormat {
    name: "mistral",
    markers: &["[TOOL_CALLS]"],
    open: "[TOOL_CALLS]",
    close: "",
    padding: "",
    is_list: true,
    separator: ", ",
    id_len: Some(9),
    ..HERMES
};

const GRANITE: ToolCallFormat = ToolCallFormat {
    name: "granite",
    markers: &["<|tool_call|>"],
    open: "<|tool_call|>",
    close: "",
    padding: "",
    is_list: true,
    separator: ", ",
    ..HERMES
};

/// Opening and closing marks of the code blocks in which models of any family sometimes write calls.
pub const CODE_BLOCKS: [(&str, &str); 2] = [("```json", "```"), ("```tool_code", "```")];

impl ToolCallFormat {
    /// The format of a model, by its template; `contains` says whether a text occurs in it.
    pub fn for_template(contains: impl Fn(&str) -> bool) -> &'static Self {
        FORMATS.iter().find(|format| format.markers.iter().all(|marker| contains(marker))).unwrap_or(&HERMES)
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
        ] {
            assert_eq!(
                ToolCallFormat::for_template(|marker| template.contains(marker)).name,
                name,
                "{template}"
            );
        }
    }
}
