//! How families of models write calls of functions. A family is a row here; [`super::parser`] reads what it
//! writes and [`super::grammar`] makes a model write it.

/// How a family writes calls: each as a JSON object with the function's name and its arguments.
#[derive(Debug, PartialEq)]
pub struct Format {
    pub name: &'static str,
    /// Texts that are all in the template of every model of the family.
    signs: &'static [&'static str],
    /// What stands before a call, or before the list of all.
    pub open: &'static str,
    /// Whether calls may come without it.
    pub is_open_optional: bool,
    /// What stands behind; nothing, where the end of the text is the end.
    pub close: &'static str,
    /// White space between these and what they enclose.
    pub padding: &'static str,
    /// Whether they enclose a JSON list of all calls.
    pub is_list: bool,
    /// What stands between two calls.
    pub between: &'static str,
    /// Name of the arguments.
    pub arguments: &'static str,
    /// Where a call is no object but a name and its arguments: what stands between these two.
    pub named_by: Option<&'static str>,
    /// Characters of a call's id, letters and digits alone, where the template asks for that.
    pub id_len: Option<usize>,
}

/// Qwen, Hermes, SmolLM3 and most others; and what models are told to write that were not made for tools.
const HERMES: Format = Format {
    name: "hermes",
    signs: &["<tool_call>"],
    open: "<tool_call>",
    is_open_optional: false,
    close: "</tool_call>",
    padding: "\n",
    is_list: false,
    between: "\n",
    arguments: "arguments",
    named_by: None,
    id_len: None,
};

/// The first whose signs are in a template is its.
const FORMATS: [Format; 6] = [
    Format {
        name: "mistral, names first",
        signs: &["[TOOL_CALLS]", "[ARGS]"],
        named_by: Some("[ARGS]"),
        padding: "",
        between: "[TOOL_CALLS]",
        is_list: false,
        ..MISTRAL
    },
    MISTRAL,
    Format { name: "phi", signs: &["<|/tool_call|>"], close: "<|/tool_call|>", ..GRANITE },
    GRANITE,
    HERMES,
    Format {
        name: "llama 3",
        signs: &["ipython", "\"parameters\""],
        open: "<|python_tag|>",
        is_open_optional: true,
        close: "",
        padding: "",
        is_list: false,
        between: "; ",
        arguments: "parameters",
        named_by: None,
        id_len: None,
    },
];

const MISTRAL: Format = Format {
    name: "mistral",
    signs: &["[TOOL_CALLS]"],
    open: "[TOOL_CALLS]",
    close: "",
    padding: "",
    is_list: true,
    between: ", ",
    id_len: Some(9),
    ..HERMES
};

const GRANITE: Format = Format {
    name: "granite",
    signs: &["<|tool_call|>"],
    open: "<|tool_call|>",
    close: "",
    padding: "",
    is_list: true,
    between: ", ",
    ..HERMES
};

/// Marks of code blocks in which models of any family put a call now and then, and what ends them.
pub const BLOCKS: [(&str, &str); 2] = [("```json", "```"), ("```tool_code", "```")];

impl Format {
    /// Of a model whose template says what `says` tells.
    pub fn of(says: impl Fn(&str) -> bool) -> &'static Self {
        FORMATS.iter().find(|format| format.signs.iter().all(|sign| says(sign))).unwrap_or(&HERMES)
    }

    /// The one that is called `name`.
    #[cfg(test)]
    pub fn named(name: &str) -> &'static Self {
        FORMATS.iter().find(|format| format.name == name).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_tells_its_family() {
        for (template, name) in [
            ("<tool_call>\n{\"name\": x}", "hermes"),
            ("'[TOOL_CALLS] ['", "mistral"),
            ("'[TOOL_CALLS]' name '[ARGS]'", "mistral, names first"),
            ("<|tool|> <|/tool|> <|tool_call|> <|/tool_call|>", "phi"),
            ("respond only with <|tool_call|> followed by", "granite"),
            ("Environment: ipython {\"name\": x, \"parameters\": y}", "llama 3"),
            ("<|im_start|>", "hermes"),
        ] {
            assert_eq!(Format::of(|sign| template.contains(sign)).name, name, "{template}");
        }
    }
}
