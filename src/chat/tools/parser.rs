//! Incremental parsing of tool calls: a function's name is emitted as soon as it is known, then its arguments
//! piece by piece. Everything that is not a call remains text; nothing is lost.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::formats::{CODE_BLOCKS, ToolCallFormat};
use crate::inference::overlap;
use crate::openai::chat::{FunctionCallDelta, FunctionKind, ToolCallDelta};

/// An incremental parser of the tool calls in one choice.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: &'static ToolCallFormat,
    /// Names of the functions that may be called.
    names: Arc<[String]>,
    /// Whether JSON without the format's opening mark can be a call.
    accept_unmarked: bool,
    state: ParserState,
    /// Text that is not yet parsed.
    held: String,
    /// Whether the text so far is blank.
    is_blank: bool,
    n_calls: usize,
}

/// Text and tool calls found in a piece of text.
#[derive(Debug, Default, PartialEq)]
pub struct ParsedDelta {
    /// Text outside of calls.
    pub content: String,
    /// Calls to add or extend.
    pub calls: Vec<ToolCallDelta>,
}

#[derive(Debug, Clone)]
enum ParserState {
    /// Outside of calls.
    Text,
    /// Between calls: another may begin, or the section may end.
    Section(CallSection),
    /// In the object of a call.
    Object(CallSection, Box<PartialCall>),
    /// In the name or arguments of a call that is not an call.
    Named(CallSection, Box<PartialCall>),
}

/// Characters that end a name that arguments follow.
const NAME_ENDS: [char; 2] = ['[', ' '];

/// A section of the text with one or several calls.
#[derive(Debug, Clone)]
struct CallSection {
    /// The mark that ends it.
    close: &'static str,
    /// Whether it can contain nothing but calls. If not, only objects that name an offered function are calls.
    is_certain: bool,
    /// Whether it is a code block.
    is_block: bool,
    /// All of its text, until a call is found in it.
    raw: String,
    has_calls: bool,
}

/// A call parsed so far.
#[derive(Debug, Clone, Default)]
struct PartialCall {
    /// Nesting depth of objects and arrays.
    depth: usize,
    in_string: bool,
    /// Whether the previous character was a backslash in a string.
    is_escaped: bool,
    /// Raw text of the current key or value at depth one.
    item: String,
    /// The key of the current value.
    key: Option<String>,
    /// Whether a key occurred that no call has.
    has_unknown_key: bool,
    name: Option<String>,
    arguments: String,
    /// Bytes of the arguments already emitted.
    n_emitted: usize,
    /// Whether a delta of the call has been emitted.
    is_emitted: bool,
    is_complete: bool,
}

impl ToolCallParser {
    /// A parser of calls of the functions `names` in `format`. With `accept_unmarked`, JSON without the format's
    /// opening mark can be a call too.
    pub fn new(format: &'static ToolCallFormat, names: Arc<[String]>, accept_unmarked: bool) -> Self {
        Self {
            format,
            names,
            accept_unmarked,
            state: ParserState::Text,
            held: String::new(),
            is_blank: true,
            n_calls: 0,
        }
    }

    /// Whether a call has been found.
    pub fn has_calls(&self) -> bool {
        self.n_calls > 0
    }

    /// Parses more text.
    pub fn push(&mut self, text: &str) -> ParsedDelta {
        self.held.push_str(text);
        let mut parsed = ParsedDelta::default();
        while self.step(&mut parsed) {}
        parsed
    }

    /// Ends the text and returns what was held back. Where the token limit has cut the text (`is_cut`), the beginning
    /// of a mark and of a call whose name is not whole are neither text nor calls; a call with a name is emitted as
    /// far as it goes.
    pub fn finish(&mut self, is_cut: bool) -> ParsedDelta {
        let mut parsed = ParsedDelta::default();
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, ParserState::Text) {
            // The text ends in the opening mark of another call.
            ParserState::Text if self.has_calls() && self.format.open.starts_with(rest.trim()) => {}
            ParserState::Text if is_cut && overlap(&rest, self.format.open) > 0 => {}
            ParserState::Text => parsed.content = rest,
            ParserState::Section(section) if !section.has_calls => {
                let is_first = !self.has_calls();
                let text = section.raw + &rest;
                // A block may have any contents, so that its mark alone stays; a list in it was about to be one of
                // calls.
                let is_open_block = section.is_block && !text.trim_end().ends_with('[');
                let is_text = if section.is_certain { is_first && !is_cut } else { is_open_block || !is_cut };
                if is_text {
                    parsed.content = text;
                }
            }
            ParserState::Object(section, call) | ParserState::Named(section, call) if is_cut => {
                self.finish_cut_call(section, call, &rest, &mut parsed);
            }
            ParserState::Object(section, _) | ParserState::Named(section, _) if !section.has_calls => {
                parsed.content = section.raw + &rest;
            }
            ParserState::Section(_) | ParserState::Object(..) | ParserState::Named(..) => {}
        }
        parsed
    }

    /// Emits what there is of a call that was cut, if its name is whole. `rest` is text that is not yet parsed.
    fn finish_cut_call(
        &mut self,
        mut section: CallSection,
        mut call: Box<PartialCall>,
        rest: &str,
        parsed: &mut ParsedDelta,
    ) {
        call.end_name();
        // A name before arguments is whole where something follows it.
        if let Some((name, _)) = rest.trim_start().split_once(NAME_ENDS)
            && self.names.iter().any(|known| known == name)
        {
            call.name.get_or_insert_with(|| name.to_owned());
        }
        let is_call = |name: &String| section.is_certain || self.names.contains(name);
        if call.name.as_ref().is_some_and(is_call) && !call.is_emitted {
            self.emit_new(&mut call, &mut section, parsed);
        }
    }

    /// Parses some of the held text; returns whether more of it can be parsed.
    fn step(&mut self, parsed: &mut ParsedDelta) -> bool {
        match std::mem::replace(&mut self.state, ParserState::Text) {
            ParserState::Text => self.parse_text(parsed),
            ParserState::Section(section) => self.parse_section(section, parsed),
            ParserState::Object(section, call) => self.parse_object(section, call, parsed),
            ParserState::Named(section, call) => self.parse_named_call(section, call, parsed),
        }
    }

    fn parse_text(&mut self, parsed: &mut ParsedDelta) -> bool {
        let ToolCallFormat { open, close, .. } = *self.format;
        let blocks = CODE_BLOCKS.iter().filter(|_| self.accept_unmarked);
        let marks = || {
            [(open, close, true)].into_iter().chain(blocks.clone().map(|&(open, close)| (open, close, false)))
        };
        let begun = self.held.trim_start();
        let found = marks().filter_map(|mark| Some((self.held.find(mark.0)?, mark)));
        let found = found.min_by_key(|&(start, (open, ..))| (start, usize::MAX - open.len()));
        let (start, (open, close, is_certain)) = match found {
            // Text that begins with JSON may be a call without its mark.
            _ if self.accept_unmarked
                && self.is_blank
                && begun.starts_with(['{', '['])
                && !begun.starts_with(open) =>
            {
                if open.starts_with(begun) {
                    return false;
                }
                (self.held.len() - begun.len(), ("", "", false))
            }
            Some(found) => found,
            None => {
                // Hold back a possible beginning of a mark, and whitespace before it.
                let n_held = marks().map(|(open, ..)| overlap(&self.held, open)).max().unwrap_or(0);
                let n_certain = self.held[..self.held.len() - n_held].trim_end().len();
                self.is_blank &= n_certain == 0;
                parsed.content.extend(self.held.drain(..n_certain));
                return false;
            }
        };
        let n_text = self.held[..start].trim_end().len();
        parsed.content.extend(self.held.drain(..n_text));
        let raw = self.held.drain(..start + open.len() - n_text).collect();
        let is_block = !is_certain && !open.is_empty();
        self.state = ParserState::Section(CallSection { close, is_certain, is_block, raw, has_calls: false });
        true
    }

    fn parse_section(&mut self, mut section: CallSection, parsed: &mut ParsedDelta) -> bool {
        let n_skipped = self.held.len()
            - self.held.trim_start_matches(|c: char| c.is_whitespace() || "[],;".contains(c)).len();
        // The opening mark may begin with a bracket, like a list.
        let is_mark = self.held.trim_start().starts_with(self.format.open);
        let begins_mark =
            !is_mark && self.held.contains('[') && self.format.open.starts_with(self.held.trim_start());
        if begins_mark {
            self.state = ParserState::Section(section);
            return false;
        }
        if n_skipped > 0 && !is_mark {
            section.raw.extend(self.held.drain(..n_skipped));
        }
        let close = section.close;
        if self.held.is_empty() || (!close.is_empty() && close != self.held && close.starts_with(&self.held))
        {
            self.state = ParserState::Section(section);
            return false;
        }
        if self.held.starts_with('{') {
            self.state = ParserState::Object(section, Box::default());
            return true;
        }
        if section.is_certain && self.format.name_end.is_some() && !is_mark {
            self.state = ParserState::Named(section, Box::default());
            return true;
        }
        if section.has_calls {
            let n_closing = if self.held.starts_with(close) { close.len() } else { 0 };
            self.held.drain(..n_closing);
            return !self.held.is_empty();
        }
        self.release_as_text(&section, parsed);
        true
    }

    /// Turns a section without calls into text.
    fn release_as_text(&mut self, section: &CallSection, parsed: &mut ParsedDelta) {
        self.is_blank = false;
        parsed.content += &section.raw;
    }

    fn parse_object(
        &mut self,
        mut section: CallSection,
        mut call: Box<PartialCall>,
        parsed: &mut ParsedDelta,
    ) -> bool {
        let n_read = call.parse_object(&self.held);
        let read: String = self.held.drain(..n_read).collect();
        if !section.has_calls {
            section.raw += &read;
        }
        let is_known = |name: &String| self.names.contains(name);
        let is_call = match &call.name {
            Some(name) => section.is_certain || is_known(name),
            None if section.is_certain => !call.is_complete,
            None => !call.is_complete && !call.has_unknown_key && call.may_name_one_of(&self.names),
        };
        if !is_call && !section.has_calls {
            self.release_as_text(&section, parsed);
            return true;
        }
        self.emit(&mut call, &mut section, parsed);
        let is_complete = call.is_complete;
        self.state =
            if is_complete { ParserState::Section(section) } else { ParserState::Object(section, call) };
        is_complete && !self.held.is_empty()
    }

    fn parse_named_call(
        &mut self,
        mut section: CallSection,
        mut call: Box<PartialCall>,
        parsed: &mut ParsedDelta,
    ) -> bool {
        if call.name.is_none() {
            let mark = self.format.name_end.unwrap_or_default();
            let Some(start) = self.held.find('{') else {
                self.state = ParserState::Named(section, call);
                return false;
            };
            let head: String = self.held.drain(..start).collect();
            let name = head.split(NAME_ENDS).next().unwrap_or_default();
            section.raw += &head;
            if name.is_empty() || !(head.contains(mark) || self.names.iter().any(|known| known == name)) {
                self.release_as_text(&section, parsed);
                return true;
            }
            call.name = Some(name.to_owned());
        }
        let n_read = call.parse_arguments(&self.held);
        self.held.drain(..n_read);
        self.emit(&mut call, &mut section, parsed);
        let is_complete = call.is_complete;
        self.state =
            if is_complete { ParserState::Section(section) } else { ParserState::Named(section, call) };
        is_complete && !self.held.is_empty()
    }

    /// Emits the parts of a call that are new, once it has arguments.
    fn emit(&mut self, call: &mut PartialCall, section: &mut CallSection, parsed: &mut ParsedDelta) {
        if !call.is_emitted && call.arguments.is_empty() && !call.is_complete {
            return;
        }
        self.emit_new(call, section, parsed);
    }

    /// Emits the parts of a call that are new, be they no more than its name.
    fn emit_new(&mut self, call: &mut PartialCall, section: &mut CallSection, parsed: &mut ParsedDelta) {
        let Some(name) = &call.name else { return };
        let index = if call.is_emitted { self.n_calls - 1 } else { self.n_calls };
        if call.is_complete && call.arguments.is_empty() {
            call.arguments.push_str("{}");
        }
        let arguments = call.arguments[call.n_emitted..].to_owned();
        call.n_emitted = call.arguments.len();
        if !call.is_emitted {
            call.is_emitted = true;
            self.n_calls += 1;
            section.has_calls = true;
            section.raw.clear();
            parsed.calls.push(ToolCallDelta {
                index,
                id: Some(new_call_id(self.format.id_len)),
                kind: Some(FunctionKind::Function),
                function: FunctionCallDelta { name: Some(name.clone()), arguments },
            });
        } else if !arguments.is_empty() {
            let function = FunctionCallDelta { name: None, arguments };
            parsed.calls.push(ToolCallDelta { index, id: None, kind: None, function });
        }
    }
}

impl PartialCall {
    /// Parses more of a call's object; returns the number of bytes up to its end.
    fn parse_object(&mut self, text: &str) -> usize {
        for (start, c) in text.char_indices() {
            let was_inner = self.depth > 1 || self.in_string;
            let is_structure = !self.in_string;
            self.track_nesting(c);
            match c {
                _ if was_inner || !is_structure => self.push_item_char(c),
                '{' if self.item.is_empty() && self.key.is_none() && self.depth == 1 => {}
                ':' if self.key.is_none() => {
                    let key = std::mem::take(&mut self.item);
                    let key: String = serde_json::from_str(key.trim()).unwrap_or_default();
                    self.has_unknown_key |=
                        !["name", "arguments", "parameters", "type", "id"].contains(&key.as_str());
                    self.key = Some(key);
                }
                ',' => self.end_item(),
                '}' | ']' if self.depth == 0 => {
                    self.end_item();
                    self.is_complete = true;
                }
                c => self.push_item_char(c),
            }
            if self.is_complete {
                return start + c.len_utf8();
            }
        }
        text.len()
    }

    /// Parses more of arguments that follow a name; returns the number of bytes up to their end.
    fn parse_arguments(&mut self, text: &str) -> usize {
        for (start, c) in text.char_indices() {
            self.track_nesting(c);
            self.arguments.push(c);
            if self.depth == 0 {
                self.is_complete = true;
                return start + c.len_utf8();
            }
        }
        text.len()
    }

    /// Tracks strings and nesting.
    fn track_nesting(&mut self, c: char) {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' if self.in_string => self.is_escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_deref(), Some("arguments" | "parameters"))
    }

    /// Whether what there is of a name is the beginning of one of `names`.
    fn may_name_one_of(&self, names: &[String]) -> bool {
        let item = self.item.trim_end();
        self.key.as_deref() != Some("name")
            || names.iter().any(|name| Value::from(name.as_str()).to_string().starts_with(item))
    }

    /// Takes the value that the text was cut in or after as the name, if it is a whole one.
    fn end_name(&mut self) {
        if self.name.is_none() && self.key.as_deref() == Some("name") {
            self.name = serde_json::from_str(self.item.trim()).ok();
        }
    }

    fn push_item_char(&mut self, c: char) {
        if self.item.is_empty() && c.is_whitespace() {
            return;
        }
        self.item.push(c);
        if self.is_arguments() && self.item.starts_with('{') && (self.depth > 1 || c == '}') {
            self.arguments.push(c);
        }
    }

    fn end_item(&mut self) {
        let is_arguments = self.is_arguments();
        let item = std::mem::take(&mut self.item);
        match self.key.take().as_deref() {
            Some("name") => self.name = serde_json::from_str(item.trim()).ok(),
            // Some models write the arguments as a string with JSON in it.
            Some(_) if is_arguments && item.starts_with('"') => {
                self.arguments = serde_json::from_str::<String>(item.trim()).unwrap_or(item);
            }
            Some(_) if is_arguments && self.arguments.is_empty() && item.trim() != "null" => {
                self.arguments = Value::from(item.trim()).to_string();
            }
            _ => {}
        }
    }
}

/// A random call id; of `len` letters and digits, if given.
fn new_call_id(len: Option<usize>) -> String {
    let id = Uuid::new_v4().simple().to_string();
    match len {
        Some(len) => id[..len.min(id.len())].to_owned(),
        None => format!("call_{}", &id[..24]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and calls of a text that arrives in pieces of `n` bytes, and the number of call deltas.
    fn parsed(format: &str, text: &str, n: usize) -> (String, Vec<(String, String)>, usize) {
        parsed_until_end(format, text, n, false)
    }

    fn parsed_until_end(
        format: &str,
        text: &str,
        n: usize,
        is_cut: bool,
    ) -> (String, Vec<(String, String)>, usize) {
        let names = ["get_weather", "add"].map(str::to_owned);
        let mut parser = ToolCallParser::new(ToolCallFormat::by_name(format), names.into(), true);
        let (mut content, mut calls, mut n_deltas) = (String::new(), Vec::new(), 0);
        let mut pieces: Vec<String> = Vec::new();
        for c in text.chars() {
            match pieces.last_mut().filter(|piece| piece.len() < n) {
                Some(piece) => piece.push(c),
                None => pieces.push(c.to_string()),
            }
        }
        let all: Vec<ParsedDelta> = pieces.iter().map(|piece| parser.push(piece)).collect();
        for parsed in all.into_iter().chain([parser.finish(is_cut)]) {
            content += &parsed.content;
            for call in parsed.calls {
                n_deltas += 1;
                match call.function.name {
                    Some(name) => {
                        assert!(call.id.is_some() && call.kind.is_some() && call.index == calls.len());
                        calls.push((name, call.function.arguments));
                    }
                    None => {
                        assert!(call.id.is_none() && call.kind.is_none() && call.index + 1 == calls.len());
                        calls.last_mut().unwrap().1 += &call.function.arguments;
                    }
                }
            }
        }
        assert_eq!(parser.has_calls(), !calls.is_empty());
        (content, calls, n_deltas)
    }

    const PARIS: (&str, &str) = ("get_weather", r#"{"city": "Paris"}"#);
    const SUM: (&str, &str) = ("add", r#"{"a": 1, "b": [2, {"c": "}"}]}"#);

    /// A format, a model's output, the text in it, and the calls.
    type Transcript = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

    const TRANSCRIPTS: &[Transcript] = &[
        (
            "hermes",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
            "",
            &[PARIS],
        ),
        (
            "hermes",
            "I'll look.\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n\
             <tool_call>\n{\"arguments\": {\"a\": 1, \"b\": [2, {\"c\": \"}\"}]}, \"name\": \"add\"}\n</tool_call>\n",
            "I'll look.",
            &[PARIS, SUM],
        ),
        // The output ends before the closing mark.
        ("hermes", "<tool_call>{\"name\": \"add\"}", "", &[("add", "{}")]),
        (
            "hermes",
            "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call> done",
            " done",
            &[("add", "{}")],
        ),
        // Arguments as a string.
        (
            "hermes",
            r#"<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}</tool_call>"#,
            "",
            &[PARIS],
        ),
        // A call of a function that is not offered, where the text can be nothing else.
        ("hermes", "<tool_call>{\"name\": \"fly\", \"arguments\": {}}</tool_call>", "", &[("fly", "{}")]),
        ("hermes", "a <tool_cal", "a <tool_cal", &[]),
        ("hermes", "<tool_call>{\"name\": \"add\"}</tool_call>\n<tool", "", &[("add", "{}")]),
        ("hermes", "a <tool_call> b", "a <tool_call> b", &[]),
        (
            "hermes",
            "<tool_call>{\"city\": \"Paris\"}</tool_call>",
            "<tool_call>{\"city\": \"Paris\"}</tool_call>",
            &[],
        ),
        // JSON without a mark is a call only if the function is offered.
        ("hermes", " {\"name\": \"add\", \"parameters\": {\"a\": 1}}", "", &[("add", "{\"a\": 1}")]),
        ("hermes", "{\"name\": \"Ann\", \"age\": 3}", "{\"name\": \"Ann\", \"age\": 3}", &[]),
        ("hermes", "[1, 2]", "[1, 2]", &[]),
        ("hermes", "{\"answer\": \"x {\"}\n", "{\"answer\": \"x {\"}\n", &[]),
        ("hermes", "Say {\"name\": \"add\"}", "Say {\"name\": \"add\"}", &[]),
        (
            "hermes",
            "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n```",
            "",
            &[("add", "{\"a\": 1}")],
        ),
        ("hermes", "So:\n```json\n{\"x\": 1}\n```\n", "So:\n```json\n{\"x\": 1}\n```\n", &[]),
        // Gemma's form.
        ("hermes", "```tool_code\n[{\"name\": \"add\", \"parameters\": {}}]\n```", "", &[("add", "{}")]),
        ("llama 3", "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}", "", &[PARIS]),
        (
            "llama 3",
            "<|python_tag|>{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; \
             {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": [2, {\"c\": \"}\"}]}}",
            "",
            &[PARIS, SUM],
        ),
        ("llama 3", "It is 4.", "It is 4.", &[]),
        (
            "mistral",
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"add\", \
             \"arguments\": {\"a\": 1, \"b\": [2, {\"c\": \"}\"}]}, \"id\": \"abc123def\"}]",
            "",
            &[PARIS, SUM],
        ),
        (
            "mistral, names first",
            "Well. [TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]add[CALL_ID]abc123def[ARGS]\
             {\"a\": 1, \"b\": [2, {\"c\": \"}\"}]}",
            "Well.",
            &[PARIS, SUM],
        ),
        (
            "phi",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]<|/tool_call|>",
            "",
            &[PARIS],
        ),
        (
            "granite",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]",
            "",
            &[PARIS],
        ),
    ];

    #[test]
    fn transcripts_are_parsed_wherever_the_pieces_end() {
        for &(format, text, content, calls) in TRANSCRIPTS {
            for n in [1, 2, 3, 7, 1000] {
                let (found_content, found, _) = parsed(format, text, n);
                let expected: Vec<(String, String)> = calls
                    .iter()
                    .map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned()))
                    .collect();
                assert_eq!(found, expected, "{format}: {text:?} in pieces of {n}");
                assert_eq!(found_content, content, "{format}: {text:?} in pieces of {n}");
            }
        }
    }

    #[test]
    fn arguments_are_streamed() {
        let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}";
        let (_, calls, n_deltas) = parsed("hermes", text, 1);
        assert_eq!(calls.len(), 1);
        assert_eq!(n_deltas, PARIS.1.len(), "one for each piece of the arguments");
        // A truncated call has the arguments so far.
        let (content, calls, _) = parsed_until_end("hermes", &text[..text.len() - 6], 1, true);
        assert_eq!((content.as_str(), calls[0].1.as_str()), ("", "{\"city\": \"Pa"));
    }

    #[test]
    fn no_markup_is_text_wherever_the_token_limit_cuts_it() {
        let whole_calls = TRANSCRIPTS.iter().filter(|(.., calls)| !calls.is_empty());
        for &(format, text, content, calls) in whole_calls {
            for (end, _) in text.char_indices() {
                let cut = parsed_until_end(format, &text[..end], 1, true);
                for n in [2, 3, 7, 1000] {
                    let (found, found_calls, _) = parsed_until_end(format, &text[..end], n, true);
                    assert_eq!(
                        (&found, &found_calls),
                        (&cut.0, &cut.1),
                        "{format}: {:?} by {n}",
                        &text[..end]
                    );
                }
                let (found, found_calls, _) = cut;
                // A code block without a call is text.
                let is_block = CODE_BLOCKS.iter().any(|(open, _)| open.starts_with(found.trim()));
                let is_text = content.trim().starts_with(found.trim()) || is_block;
                assert!(is_text, "{format}: {:?} has the text {found:?}", &text[..end]);
                assert!(found_calls.len() <= calls.len(), "{format}: {:?}", &text[..end]);
                for ((name, arguments), (whole_name, whole)) in found_calls.iter().zip(calls) {
                    assert_eq!(name, whole_name, "{format}: {:?}", &text[..end]);
                    assert!(
                        whole.starts_with(arguments.as_str()),
                        "{format}: {:?}: {arguments}",
                        &text[..end]
                    );
                }
            }
        }
    }

    #[test]
    fn a_cut_call_is_emitted_once_its_name_is_whole() {
        for (format, text, expected) in [
            ("hermes", "<tool_call>\n{\"name\": \"get_weath", None),
            ("hermes", "<tool_call>\n{\"name\": \"get_weather\"", Some("")),
            ("hermes", "<tool_call>\n{\"name\": \"get_weather\", \"argum", Some("")),
            ("hermes", "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"ci", Some("{\"ci")),
            ("llama 3", "{\"name\": \"get_weather\"", Some("")),
            ("mistral, names first", "[TOOL_CALLS]get_weather", None),
            ("mistral, names first", "[TOOL_CALLS]get_weather[AR", Some("")),
            ("mistral, names first", "[TOOL_CALLS]get_weather[ARGS]{", Some("{")),
        ] {
            let (content, calls, _) = parsed_until_end(format, text, 1, true);
            let found = calls.first().map(|(_, arguments)| arguments.as_str());
            assert_eq!((content.as_str(), found), ("", expected), "{format}: {text}");
        }
    }

    #[test]
    fn text_that_the_token_limit_cuts_stays() {
        for (format, text) in [
            ("hermes", "{\"name\": \"An"),
            ("hermes", "{\"city\": \"Pa"),
            ("llama 3", "{\"age\": 1"),
            ("hermes", "So:\n```json"),
            ("hermes", "So:\n```json\n"),
            ("hermes", "1 > "),
        ] {
            assert_eq!(parsed_until_end(format, text, 1, true).0, text, "{format}");
        }
    }
}
