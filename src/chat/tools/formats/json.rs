//! Calls as JSON objects with the function's name and arguments, singly or as a list.

use serde_json::Value;

use crate::chat::tools::form::{CallForm, CallGrammar, CallReader};

/// The layout of calls as JSON. The parser reads JSON in any format, whatever its layout.
#[derive(Debug)]
pub struct JsonForm {
    /// Whitespace between the marks and their content.
    pub padding: &'static str,
    /// Whether the marks enclose a JSON array of all calls.
    pub is_list: bool,
    /// Whether every call but the first has an opening mark too.
    pub repeats_open: bool,
    /// Text between two calls.
    pub separator: &'static str,
    /// Key of the name in a call's object.
    pub name_key: &'static str,
    /// Key of the arguments in a call's object.
    pub arguments_key: &'static str,
}

impl CallForm for JsonForm {
    fn reader(&self) -> Option<Box<dyn CallReader>> {
        None
    }

    fn marks(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn add_rules(&self, grammar: &mut CallGrammar<'_>, open: &str, close: &str) {
        let mut calls = Vec::new();
        for (idx, function) in grammar.tools.functions.iter().enumerate() {
            let arguments = grammar.json_arguments(idx);
            let name = Value::from(function.name.as_str());
            let Self { name_key, arguments_key, .. } = self;
            let before = grammar.text(&format!("{{\"{name_key}\": {name}, \"{arguments_key}\": "));
            calls.push(grammar.rule(&format!("{before} {arguments} \"}}\"")));
        }
        let [open, close, padding, separator] =
            [open, close, self.padding, self.separator].map(|text| grammar.text(text));
        if self.is_list {
            let end = format!("\"]\" {close}");
            let end = if grammar.tools.is_parallel { format!("({end})?") } else { end };
            grammar.add_calls(&calls, "\"[\" call", &separator, "call", &end);
        } else if self.repeats_open {
            let one = format!("{padding} call {padding} {close}");
            grammar.add_calls(&calls, &one, &separator, &format!("{open} {one}"), "");
        } else {
            grammar.add_calls(&calls, "call", &separator, "call", "");
        }
    }
}
