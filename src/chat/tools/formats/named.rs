//! Calls as a name followed by JSON arguments.

use crate::chat::tools::form::{CallForm, CallGrammar, CallHead, CallReader, LastStep, ReadStep};
use crate::chat::tools::json_text::{JsonNesting, escape, overlap_any};
use crate::openai::chat::FunctionDefinition;

/// The layout of calls whose arguments follow their name.
#[derive(Debug)]
pub struct NamedForm {
    /// Mark before each call, after that of the section.
    pub call_open: &'static str,
    /// Mark between name and arguments.
    pub head_end: &'static str,
    /// Mark after each call.
    pub call_close: &'static str,
    /// A call with `{name}`, `{index}` and `{arguments}`, for the grammar.
    pub layout: &'static str,
    /// Text between calls, for the grammar.
    pub separator: &'static str,
    /// Texts of the layout that may be special tokens.
    pub marks: &'static [&'static str],
    /// Reads the name from the text before the arguments.
    pub head: fn(&str) -> CallHead,
    /// A name after which ordinary text follows instead of arguments.
    pub text_name: &'static str,
}

/// The mark of a code block around arguments.
const FENCE: &str = "```json";

/// The longest text before arguments.
const MAX_HEAD_BYTES: usize = 512;

/// The key of arguments that are not JSON, such as the code of a built-in interpreter.
const RAW_KEY: &str = "code";

#[derive(Debug, Clone)]
struct NamedReader {
    form: &'static NamedForm,
    state: NamedState,
    n_calls: usize,
}

#[derive(Debug, Clone)]
enum NamedState {
    Outside,
    Head,
    /// Before the first character of the arguments.
    Arguments,
    Json(JsonNesting),
    /// In arguments that are not JSON.
    Raw,
}

impl CallForm for &'static NamedForm {
    fn reader(&self) -> Option<Box<dyn CallReader>> {
        Some(Box::new(NamedReader { form: self, state: NamedState::Outside, n_calls: 0 }))
    }

    fn marks(&self) -> Vec<&'static str> {
        self.marks.to_vec()
    }

    fn add_rules(&self, grammar: &mut CallGrammar<'_>, _: &str, close: &str) {
        let mut calls = Vec::new();
        for (idx, function) in grammar.tools.functions.iter().enumerate() {
            let arguments = grammar.json_arguments(idx);
            let layout = self.layout.replace("{name}", &function.name);
            let (before, after) = layout.split_once("{arguments}").unwrap_or((&layout, ""));
            let before = match before.split_once("{index}") {
                Some((name, rest)) => format!("{} /[0-9]{{1,3}}/ {}", grammar.text(name), grammar.text(rest)),
                None => grammar.text(before),
            };
            let after = grammar.text(after);
            calls.push(grammar.rule(&format!("{before} {arguments} {after}")));
        }
        let (separator, close) = (grammar.text(self.separator), grammar.text(close));
        let end = match close.is_empty() {
            true => String::new(),
            false if grammar.tools.is_parallel => format!("({close})?"),
            false => close,
        };
        grammar.add_calls(&calls, "call", &separator, "call", &end);
    }
}

impl NamedReader {
    fn read_outside(&mut self, text: &str) -> ReadStep {
        let NamedForm { call_open, call_close, .. } = *self.form;
        let rest = text.trim_start();
        if rest.is_empty() || rest.len() < text.len() {
            return skip_or_wait(text.len() - rest.len());
        }
        if self.n_calls == 0 && call_open.is_empty() {
            self.state = NamedState::Head;
            return ReadStep::Skip(0);
        }
        if !call_open.is_empty() && rest.starts_with(call_open) {
            self.state = NamedState::Head;
            return ReadStep::Skip(call_open.len());
        }
        let ends = [call_close, "```"].into_iter().filter(|end| self.n_calls > 0 && !end.is_empty());
        if let Some(end) = ends.clone().find(|end| rest.starts_with(end)) {
            return ReadStep::Skip(end.len());
        }
        match ends.chain([call_open]).any(|mark| mark.starts_with(rest)) {
            true => ReadStep::Wait,
            false => ReadStep::Leave,
        }
    }

    fn read_head(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        let NamedForm { head_end, text_name, head, .. } = self.form;
        let mark = text.find(head_end).filter(|_| !head_end.is_empty());
        let brace = text.find('{').filter(|&brace| mark.is_none_or(|mark| brace < mark));
        let (n_head, n_bytes) = match (brace, mark) {
            (Some(brace), _) => (brace, brace),
            (None, Some(mark)) => (mark, mark + head_end.len()),
            (None, None) if text.len() > MAX_HEAD_BYTES => return ReadStep::Leave,
            (None, None) => return ReadStep::Wait,
        };
        let head = head(&text[..n_head]);
        let is_known = functions.iter().any(|function| function.name == head.name);
        let is_marked = brace.is_none() || head_end.is_empty();
        if !text_name.is_empty() && head.name == *text_name {
            return ReadStep::Text(n_bytes);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if head.name.is_empty() || !head.name.chars().all(is_name) || !(is_known || is_marked) {
            return ReadStep::Leave;
        }
        self.state = NamedState::Arguments;
        ReadStep::Call { n_bytes, head }
    }

    fn read_first(&mut self, text: &str) -> ReadStep {
        let NamedForm { call_close, .. } = *self.form;
        let rest = text.trim_start();
        if rest.is_empty() || rest.len() < text.len() {
            return skip_or_wait(text.len() - rest.len());
        }
        if rest.starts_with(FENCE) {
            return ReadStep::Skip(FENCE.len());
        }
        let is_close = !call_close.is_empty() && rest.starts_with(call_close);
        let may_close = !call_close.is_empty() && call_close.starts_with(rest);
        if rest.starts_with('{') {
            self.state = NamedState::Json(JsonNesting::default());
            return ReadStep::Skip(0);
        }
        if is_close {
            self.end_call();
            return ReadStep::Arguments { n_bytes: 0, json: "{}".to_owned() };
        }
        if may_close || FENCE.starts_with(rest) {
            return ReadStep::Wait;
        }
        self.state = NamedState::Raw;
        ReadStep::Arguments { n_bytes: 0, json: format!("{{\"{RAW_KEY}\": \"") }
    }

    fn read_raw(&mut self, text: &str) -> ReadStep {
        let close = self.form.call_close;
        match text.find(close).filter(|_| !close.is_empty()) {
            Some(end) => {
                self.end_call();
                ReadStep::Arguments { n_bytes: end, json: format!("{}\"}}", escape(&text[..end])) }
            }
            None => match text.len() - overlap_any(text, &[close]) {
                0 => ReadStep::Wait,
                n_bytes => ReadStep::Arguments { n_bytes, json: escape(&text[..n_bytes]) },
            },
        }
    }

    fn end_call(&mut self) {
        self.state = NamedState::Outside;
        self.n_calls += 1;
    }
}

fn skip_or_wait(n_bytes: usize) -> ReadStep {
    if n_bytes == 0 { ReadStep::Wait } else { ReadStep::Skip(n_bytes) }
}

impl CallReader for NamedReader {
    fn read(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        match &mut self.state {
            NamedState::Outside => self.read_outside(text),
            NamedState::Head => self.read_head(text, functions),
            NamedState::Arguments => self.read_first(text),
            NamedState::Json(_) if text.is_empty() => ReadStep::Wait,
            NamedState::Json(nesting) => {
                let n_bytes = nesting.end_of_value(text).unwrap_or(text.len());
                if nesting.is_outside() {
                    self.end_call();
                }
                ReadStep::Arguments { n_bytes, json: text[..n_bytes].to_owned() }
            }
            NamedState::Raw => self.read_raw(text),
        }
    }

    fn finish(&mut self, rest: &str, is_cut: bool, functions: &[FunctionDefinition]) -> LastStep {
        let json = |json: String| LastStep { head: None, json };
        match self.state {
            // A name is whole where something follows it.
            NamedState::Head if is_cut => {
                let head = (self.form.head)(rest);
                let is_whole = !rest.trim_end().ends_with(&head.name);
                let is_known = functions.iter().any(|function| function.name == head.name);
                LastStep { head: Some(head).filter(|_| is_whole && is_known), json: String::new() }
            }
            NamedState::Arguments if !is_cut => json("{}".to_owned()),
            NamedState::Raw if is_cut => {
                let n_bytes = rest.len() - overlap_any(rest, &[self.form.call_close]);
                json(escape(&rest[..n_bytes]))
            }
            NamedState::Raw => json(format!("{}\"}}", escape(rest))),
            _ => LastStep::default(),
        }
    }

    fn boxed_clone(&self) -> Box<dyn CallReader> {
        Box::new(self.clone())
    }
}
