//! Reads calls out of what a model says, as it says it: the function's name as soon as it is known, then its
//! arguments piece by piece. Everything that is no call stays text, and nothing is lost.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::formats::{BLOCKS, Format};
use crate::inference::overlap;
use crate::openai::chat::{FunctionCallDelta, FunctionKind, ToolCallDelta};

/// Reads the calls of one answer.
#[derive(Debug, Clone)]
pub struct CallParser {
    format: &'static Format,
    /// Of all functions that may be called.
    names: Arc<[String]>,
    /// Whether JSON without the family's mark is a call too.
    reads_unmarked: bool,
    state: State,
    /// Text that is not decided on.
    held: String,
    /// Whether nothing but space has come.
    is_blank: bool,
    n_calls: usize,
}

/// A piece of an answer: text, and calls or parts of them.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    pub content: String,
    pub calls: Vec<ToolCallDelta>,
}

#[derive(Debug, Clone)]
enum State {
    Text,
    /// Where a call may begin or the section end.
    Section(Section),
    Object(Section, Box<Object>),
    /// In the name of a call that begins with it, and in its arguments.
    Named(Section, Box<Object>),
}

/// A stretch in which calls stand.
#[derive(Debug, Clone)]
struct Section {
    /// What ends it.
    close: &'static str,
    /// Whether anything but a call may stand in it: then it is one only if its function is there.
    is_certain: bool,
    /// All of it so far, until there is a call in it.
    raw: String,
    has_calls: bool,
}

/// A call as far as it has come.
#[derive(Debug, Clone, Default)]
struct Object {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The key or value at depth one that is being read, as it is written.
    part: String,
    /// The key of that value.
    key: Option<String>,
    /// Whether a key came that no call has.
    is_foreign: bool,
    name: Option<String>,
    arguments: String,
    /// Bytes of the arguments that are given out.
    n_given: usize,
    /// Whether the call has been given out, as far as it had come.
    has_begun: bool,
    is_over: bool,
}

impl CallParser {
    /// Of an answer by a model that may call the functions `names`, with the mark of its family, or if it
    /// `reads_unmarked`, without.
    pub fn new(format: &'static Format, names: Arc<[String]>, reads_unmarked: bool) -> Self {
        Self {
            format,
            names,
            reads_unmarked,
            state: State::Text,
            held: String::new(),
            is_blank: true,
            n_calls: 0,
        }
    }

    /// Whether anything has been called.
    pub fn has_calls(&self) -> bool {
        self.n_calls > 0
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Parsed {
        self.held.push_str(text);
        let mut parsed = Parsed::default();
        while self.step(&mut parsed) {}
        parsed
    }

    /// What was held back when no more text comes.
    pub fn finish(&mut self) -> Parsed {
        let mut parsed = Parsed::default();
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            // Cut short where another call was about to begin.
            State::Text if self.has_calls() && self.format.open.starts_with(rest.trim()) => {}
            State::Text => parsed.content = rest,
            State::Section(section) | State::Object(section, _) | State::Named(section, _)
                if !section.has_calls =>
            {
                parsed.content = section.raw + &rest;
            }
            State::Section(_) | State::Object(..) | State::Named(..) => {}
        }
        parsed
    }

    /// Decides on some of what is held; says whether there is more to decide on.
    fn step(&mut self, parsed: &mut Parsed) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(parsed),
            State::Section(section) => self.section(section, parsed),
            State::Object(section, object) => self.object(section, object, parsed),
            State::Named(section, object) => self.named(section, object, parsed),
        }
    }

    fn text(&mut self, parsed: &mut Parsed) -> bool {
        let Format { open, close, .. } = *self.format;
        let blocks = BLOCKS.iter().filter(|_| self.reads_unmarked);
        let marks = || {
            [(open, close, true)].into_iter().chain(blocks.clone().map(|&(open, close)| (open, close, false)))
        };
        let begun = self.held.trim_start();
        let found = marks().filter_map(|mark| Some((self.held.find(mark.0)?, mark)));
        let found = found.min_by_key(|&(start, (open, ..))| (start, usize::MAX - open.len()));
        let (start, (open, close, is_certain)) = match found {
            // What is JSON from the beginning may be a call too.
            _ if self.reads_unmarked
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
                // What may be a mark, and space before it, waits for what comes next.
                let n_held = marks().map(|(open, ..)| overlap(&self.held, open)).max().unwrap_or(0);
                let n_sure = self.held[..self.held.len() - n_held].trim_end().len();
                self.is_blank &= n_sure == 0;
                parsed.content.extend(self.held.drain(..n_sure));
                return false;
            }
        };
        let n_said = self.held[..start].trim_end().len();
        parsed.content.extend(self.held.drain(..n_said));
        let raw = self.held.drain(..start + open.len() - n_said).collect();
        self.state = State::Section(Section { close, is_certain, raw, has_calls: false });
        true
    }

    fn section(&mut self, mut section: Section, parsed: &mut Parsed) -> bool {
        let n_skipped = self.held.len()
            - self.held.trim_start_matches(|c: char| c.is_whitespace() || "[],;".contains(c)).len();
        // A mark may begin like a list.
        let is_mark = self.held.trim_start().starts_with(self.format.open);
        let begins_mark =
            !is_mark && self.held.contains('[') && self.format.open.starts_with(self.held.trim_start());
        if begins_mark {
            self.state = State::Section(section);
            return false;
        }
        if n_skipped > 0 && !is_mark {
            section.raw.extend(self.held.drain(..n_skipped));
        }
        let close = section.close;
        if self.held.is_empty() || (!close.is_empty() && close != self.held && close.starts_with(&self.held))
        {
            self.state = State::Section(section);
            return false;
        }
        if self.held.starts_with('{') {
            self.state = State::Object(section, Box::default());
            return true;
        }
        if section.is_certain && self.format.named_by.is_some() && !is_mark {
            self.state = State::Named(section, Box::default());
            return true;
        }
        if section.has_calls {
            let n_closing = if self.held.starts_with(close) { close.len() } else { 0 };
            self.held.drain(..n_closing);
            return !self.held.is_empty();
        }
        self.give_up(&section, parsed);
        true
    }

    /// What was taken for a section of calls is text.
    fn give_up(&mut self, section: &Section, parsed: &mut Parsed) {
        self.is_blank = false;
        parsed.content += &section.raw;
    }

    fn object(&mut self, mut section: Section, mut object: Box<Object>, parsed: &mut Parsed) -> bool {
        let n_read = object.read(&self.held);
        let read: String = self.held.drain(..n_read).collect();
        if !section.has_calls {
            section.raw += &read;
        }
        let is_known = |name: &String| self.names.contains(name);
        let is_call = match &object.name {
            Some(name) => section.is_certain || is_known(name),
            None => !object.is_over && (section.is_certain || !object.is_foreign),
        };
        if !is_call && !section.has_calls {
            self.give_up(&section, parsed);
            return true;
        }
        self.give(&mut object, &mut section, parsed);
        let is_over = object.is_over;
        self.state = if is_over { State::Section(section) } else { State::Object(section, object) };
        is_over && !self.held.is_empty()
    }

    fn named(&mut self, mut section: Section, mut object: Box<Object>, parsed: &mut Parsed) -> bool {
        if object.name.is_none() {
            let mark = self.format.named_by.unwrap_or_default();
            let Some(start) = self.held.find('{') else {
                self.state = State::Named(section, object);
                return false;
            };
            let head: String = self.held.drain(..start).collect();
            let name = head.split(['[', ' ']).next().unwrap_or_default();
            section.raw += &head;
            if name.is_empty() || !(head.contains(mark) || self.names.iter().any(|known| known == name)) {
                self.give_up(&section, parsed);
                return true;
            }
            object.name = Some(name.to_owned());
        }
        let n_read = object.read_arguments(&self.held);
        self.held.drain(..n_read);
        self.give(&mut object, &mut section, parsed);
        let is_over = object.is_over;
        self.state = if is_over { State::Section(section) } else { State::Named(section, object) };
        is_over && !self.held.is_empty()
    }

    /// Gives out what is known of a call.
    fn give(&mut self, object: &mut Object, section: &mut Section, parsed: &mut Parsed) {
        let Some(name) = &object.name else { return };
        if !object.has_begun && object.arguments.is_empty() && !object.is_over {
            return;
        }
        let index = if object.has_begun { self.n_calls - 1 } else { self.n_calls };
        if object.is_over && object.arguments.is_empty() {
            object.arguments.push_str("{}");
        }
        let arguments = object.arguments[object.n_given..].to_owned();
        object.n_given = object.arguments.len();
        if !object.has_begun {
            object.has_begun = true;
            self.n_calls += 1;
            section.has_calls = true;
            section.raw.clear();
            parsed.calls.push(ToolCallDelta {
                index,
                id: Some(new_id(self.format.id_len)),
                kind: Some(FunctionKind::Function),
                function: FunctionCallDelta { name: Some(name.clone()), arguments },
            });
        } else if !arguments.is_empty() {
            let function = FunctionCallDelta { name: None, arguments };
            parsed.calls.push(ToolCallDelta { index, id: None, kind: None, function });
        }
    }
}

impl Object {
    /// Reads on in an object of a call, as far as it goes; says how many bytes that is.
    fn read(&mut self, text: &str) -> usize {
        for (start, c) in text.char_indices() {
            let was_inner = self.depth > 1 || self.in_string;
            let is_structure = !self.in_string;
            self.follow(c);
            match c {
                _ if was_inner || !is_structure => self.push_part(c),
                '{' if self.part.is_empty() && self.key.is_none() && self.depth == 1 => {}
                ':' if self.key.is_none() => {
                    let key = std::mem::take(&mut self.part);
                    let key: String = serde_json::from_str(key.trim()).unwrap_or_default();
                    self.is_foreign |=
                        !["name", "arguments", "parameters", "type", "id"].contains(&key.as_str());
                    self.key = Some(key);
                }
                ',' => self.end_value(),
                '}' | ']' if self.depth == 0 => {
                    self.end_value();
                    self.is_over = true;
                }
                c => self.push_part(c),
            }
            if self.is_over {
                return start + c.len_utf8();
            }
        }
        text.len()
    }

    /// Reads on in arguments that stand alone.
    fn read_arguments(&mut self, text: &str) -> usize {
        for (start, c) in text.char_indices() {
            self.follow(c);
            self.arguments.push(c);
            if self.depth == 0 {
                self.is_over = true;
                return start + c.len_utf8();
            }
        }
        text.len()
    }

    /// Keeps count of strings, objects and lists.
    fn follow(&mut self, c: char) {
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

    fn push_part(&mut self, c: char) {
        if self.part.is_empty() && c.is_whitespace() {
            return;
        }
        self.part.push(c);
        if self.is_arguments() && self.part.starts_with('{') && (self.depth > 1 || c == '}') {
            self.arguments.push(c);
        }
    }

    fn end_value(&mut self) {
        let is_arguments = self.is_arguments();
        let part = std::mem::take(&mut self.part);
        match self.key.take().as_deref() {
            Some("name") => self.name = serde_json::from_str(part.trim()).ok(),
            // Some models write them as the text of an object.
            Some(_) if is_arguments && part.starts_with('"') => {
                self.arguments = serde_json::from_str::<String>(part.trim()).unwrap_or(part);
            }
            Some(_) if is_arguments && self.arguments.is_empty() && part.trim() != "null" => {
                self.arguments = Value::from(part.trim()).to_string();
            }
            _ => {}
        }
    }
}

/// An id of a call, of letters and digits alone where it has a certain length.
fn new_id(len: Option<usize>) -> String {
    let id = Uuid::new_v4().simple().to_string();
    match len {
        Some(len) => id[..len.min(id.len())].to_owned(),
        None => format!("call_{}", &id[..24]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and calls of an answer that comes in pieces of `n` bytes, and how many pieces of calls there were.
    fn parsed(format: &str, text: &str, n: usize) -> (String, Vec<(String, String)>, usize) {
        let names = ["get_weather", "add"].map(str::to_owned);
        let mut parser = CallParser::new(Format::named(format), names.into(), true);
        let (mut content, mut calls, mut n_deltas) = (String::new(), Vec::new(), 0);
        let mut pieces: Vec<String> = Vec::new();
        for c in text.chars() {
            match pieces.last_mut().filter(|piece| piece.len() < n) {
                Some(piece) => piece.push(c),
                None => pieces.push(c.to_string()),
            }
        }
        let all: Vec<Parsed> = pieces.iter().map(|piece| parser.push(piece)).collect();
        for parsed in all.into_iter().chain([parser.finish()]) {
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

    /// A family, what one of its models says, the text in it, and the calls.
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
        // The end came before the closing mark.
        ("hermes", "<tool_call>{\"name\": \"add\"}", "", &[("add", "{}")]),
        (
            "hermes",
            "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call> done",
            " done",
            &[("add", "{}")],
        ),
        // Arguments that are themselves text.
        (
            "hermes",
            r#"<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}</tool_call>"#,
            "",
            &[PARIS],
        ),
        // A function that nobody offered is still a call where nothing else can be meant.
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
        // JSON alone is a call only of a function that is there.
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
        // Gemma's way.
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
    fn transcripts_of_each_family_are_read_wherever_the_pieces_end() {
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
    fn arguments_come_as_they_are_written() {
        let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}";
        let (_, calls, n_deltas) = parsed("hermes", text, 1);
        assert_eq!(calls.len(), 1);
        assert_eq!(n_deltas, PARIS.1.len(), "one for each piece, of which the first begins it");
        // Cut short, they are what was said.
        let (content, calls, _) = parsed("hermes", &text[..text.len() - 6], 1);
        assert_eq!((content.as_str(), calls[0].1.as_str()), ("", "{\"city\": \"Pa"));
    }
}
