//! Incremental parsing of tool calls: a function's name is emitted as soon as it is known, then its arguments
//! piece by piece. Everything that is not a call remains text; nothing is lost.

use std::sync::Arc;

use uuid::Uuid;

use super::form::{CallHead, CallReader, ReadStep};
use super::formats::{CODE_BLOCKS, ToolCallFormat};
use super::history::CallIds;
use super::partial_call::PartialCall;
use crate::inference::overlap;
use crate::openai::chat::{FunctionCallDelta, FunctionDefinition, FunctionKind, ToolCallDelta};

/// An incremental parser of the tool calls in one choice.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: &'static ToolCallFormat,
    /// The functions that may be called.
    functions: Arc<[FunctionDefinition]>,
    /// Whether JSON without the format's opening mark can be a call.
    accept_unmarked: bool,
    state: ParserState,
    /// Text that is not yet parsed.
    held: String,
    /// Whether the text so far is blank.
    is_blank: bool,
    n_calls: usize,
    /// Ids that the model gave its calls.
    ids: Vec<String>,
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
    /// In a call that is a JSON object.
    Object(CallSection, Box<PartialCall>),
    /// In or between calls of the format's own form.
    Form(CallSection, Box<dyn CallReader>),
}

/// A section of the text with one or several calls.
#[derive(Debug, Clone)]
struct CallSection {
    /// The mark that ends it.
    close: &'static str,
    /// Whether it can contain nothing but calls. If not, only calls of offered functions are calls.
    is_certain: bool,
    /// Whether it is a code block.
    is_block: bool,
    /// All of its text, until a call is found in it.
    raw: String,
    has_calls: bool,
}

/// A mark that opens a section.
struct OpeningMark {
    open: &'static str,
    close: &'static str,
    is_certain: bool,
    /// Bytes of the mark that belong to the section's contents.
    n_kept: usize,
}

impl ToolCallParser {
    /// A parser of calls of `functions` in `format`. With `accept_unmarked`, JSON without the format's opening mark can
    /// be a call too.
    pub fn new(
        format: &'static ToolCallFormat,
        functions: Arc<[FunctionDefinition]>,
        accept_unmarked: bool,
    ) -> Self {
        let held = if format.is_open_in_prompt { format.open.to_owned() } else { String::new() };
        Self {
            format,
            functions,
            accept_unmarked,
            state: ParserState::Text,
            held,
            is_blank: true,
            n_calls: 0,
            ids: Vec::new(),
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
            ParserState::Text
                if is_cut
                    && self.opening_marks().any(|mark| mark.is_certain && overlap(&rest, mark.open) > 0) => {}
            ParserState::Text => parsed.content = rest,
            ParserState::Form(mut section, mut reader) => {
                let last = reader.finish(&rest, is_cut, &self.functions);
                if let Some(head) = last.head.filter(|head| section.is_certain || self.is_offered(&head.name))
                {
                    self.begin_call(head, &mut section, &mut parsed);
                }
                if section.has_calls {
                    self.extend_call(last.json, &mut parsed);
                } else {
                    parsed.content = self.text_of_end(section, &rest, is_cut);
                }
            }
            ParserState::Section(section) if !section.has_calls => {
                parsed.content = self.text_of_end(section, &rest, is_cut);
            }
            ParserState::Object(section, call) if is_cut => {
                self.finish_cut_call(section, call, &mut parsed);
            }
            ParserState::Object(section, _) if !section.has_calls => {
                parsed.content = section.raw + &rest;
            }
            ParserState::Section(_) | ParserState::Object(..) => {}
        }
        parsed
    }

    /// The text of a section without calls at the end of all text.
    fn text_of_end(&self, section: CallSection, rest: &str, is_cut: bool) -> String {
        let text = section.raw + rest;
        // A block may have any contents, so that its mark alone stays; a list in it was about to be one of calls.
        let is_open_block = section.is_block && !text.trim_end().ends_with('[');
        let is_first = !self.has_calls();
        let is_text = if section.is_certain { is_first && !is_cut } else { is_open_block || !is_cut };
        if is_text { text } else { String::new() }
    }

    fn is_offered(&self, name: &str) -> bool {
        self.functions.iter().any(|function| function.name == name)
    }

    /// Emits what there is of a JSON call that was cut, if its name is whole.
    fn finish_cut_call(
        &mut self,
        mut section: CallSection,
        mut call: Box<PartialCall>,
        parsed: &mut ParsedDelta,
    ) {
        call.end_name();
        let is_call = |name: &String| section.is_certain || self.is_offered(name);
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
            ParserState::Form(section, reader) => self.parse_form(section, reader, parsed),
        }
    }

    /// The marks that may open a section.
    fn opening_marks(&self) -> impl Iterator<Item = OpeningMark> + use<> {
        let ToolCallFormat { open, bare_open, close, .. } = *self.format;
        let mark = move |open: &'static str, n_kept| OpeningMark { open, close, is_certain: true, n_kept };
        let own = [mark(open, 0)].into_iter().chain(bare_open.map(|open| mark(open, open.len())));
        let blocks = if self.accept_unmarked { &CODE_BLOCKS[..] } else { &[] };
        let block = |&(open, close)| OpeningMark { open, close, is_certain: false, n_kept: 0 };
        own.chain(blocks.iter().map(block))
    }

    fn parse_text(&mut self, parsed: &mut ParsedDelta) -> bool {
        let begun = self.held.trim_start();
        let found = self.opening_marks().filter_map(|mark| Some((self.held.find(mark.open)?, mark)));
        let found = found.min_by_key(|(start, mark)| (*start, usize::MAX - mark.open.len()));
        let begins_mark = |text: &str| self.opening_marks().any(|mark| mark.open.starts_with(text));
        let has_mark = |text: &str| self.opening_marks().any(|mark| text.starts_with(mark.open));
        let (start, mark) = match found {
            // Text that begins with JSON may be a call without its mark.
            _ if self.accept_unmarked
                && self.is_blank
                && begun.starts_with(['{', '['])
                && !has_mark(begun) =>
            {
                if begins_mark(begun) {
                    return false;
                }
                let mark = OpeningMark { open: "", close: "", is_certain: false, n_kept: 0 };
                (self.held.len() - begun.len(), mark)
            }
            Some(found) => found,
            None => {
                // Hold back a possible beginning of a mark, and whitespace before it.
                let n_held =
                    self.opening_marks().map(|mark| overlap(&self.held, mark.open)).max().unwrap_or(0);
                let n_certain = self.held[..self.held.len() - n_held].trim_end().len();
                self.is_blank &= n_certain == 0;
                parsed.content.extend(self.held.drain(..n_certain));
                return false;
            }
        };
        let n_text = self.held[..start].trim_end().len();
        parsed.content.extend(self.held.drain(..n_text));
        let OpeningMark { open, close, is_certain, n_kept } = mark;
        let raw = self.held.drain(..start + open.len() - n_kept - n_text).collect();
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
            let skipped: String = self.held.drain(..n_skipped).collect();
            section.raw += &skipped;
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
        let is_own = section.is_certain || (self.format.is_open_optional && !section.is_block);
        if is_own
            && !section.has_calls
            && !is_mark
            && let Some(reader) = self.format.form.reader()
        {
            self.state = ParserState::Form(section, reader);
            return true;
        }
        if section.has_calls {
            return self.end_section(&section);
        }
        self.release_as_text(&section, parsed);
        true
    }

    /// Skips the mark that ends a section with calls; returns whether text follows.
    fn end_section(&mut self, section: &CallSection) -> bool {
        let n_closing = if self.held.starts_with(section.close) { section.close.len() } else { 0 };
        self.held.drain(..n_closing);
        !self.held.is_empty()
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
        let n_read = call.parse(&self.held);
        let read: String = self.held.drain(..n_read).collect();
        if !section.has_calls {
            section.raw += &read;
        }
        let names = || self.functions.iter().map(|function| function.name.as_str());
        let is_call = match &call.name {
            Some(name) => section.is_certain || self.is_offered(name),
            None if section.is_certain => !call.is_complete,
            None => !call.is_complete && !call.has_unknown_key && call.may_name_one_of(names()),
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

    fn parse_form(
        &mut self,
        mut section: CallSection,
        mut reader: Box<dyn CallReader>,
        parsed: &mut ParsedDelta,
    ) -> bool {
        let n_read = match reader.read(&self.held, &self.functions) {
            ReadStep::Wait => {
                self.state = ParserState::Form(section, reader);
                return false;
            }
            ReadStep::Skip(n_bytes) => n_bytes,
            ReadStep::Call { n_bytes, head } => {
                if !section.is_certain && !self.is_offered(&head.name) && !section.has_calls {
                    self.release_as_text(&section, parsed);
                    return true;
                }
                self.begin_call(head, &mut section, parsed);
                n_bytes
            }
            ReadStep::Arguments { n_bytes, json } => {
                self.extend_call(json, parsed);
                n_bytes
            }
            ReadStep::Text(n_bytes) => {
                self.held.drain(..n_bytes);
                self.is_blank = false;
                return !self.held.is_empty();
            }
            ReadStep::Leave => {
                let close = section.close;
                if close != self.held && close.starts_with(&self.held) {
                    self.state = ParserState::Form(section, reader);
                    return false;
                }
                if section.has_calls {
                    return self.end_section(&section);
                }
                self.release_as_text(&section, parsed);
                return true;
            }
        };
        let read: String = self.held.drain(..n_read).collect();
        if !section.has_calls {
            section.raw += &read;
        }
        self.state = ParserState::Form(section, reader);
        true
    }

    /// Emits the name of a new call.
    fn begin_call(&mut self, head: CallHead, section: &mut CallSection, parsed: &mut ParsedDelta) {
        section.has_calls = true;
        section.raw.clear();
        let CallHead { name, id } = head;
        self.emit_head(name, id, String::new(), parsed);
    }

    /// Emits more arguments of the newest call.
    fn extend_call(&mut self, arguments: String, parsed: &mut ParsedDelta) {
        if !arguments.is_empty() {
            let function = FunctionCallDelta { name: None, arguments };
            parsed.calls.push(ToolCallDelta { index: self.n_calls - 1, id: None, kind: None, function });
        }
    }

    fn emit_head(&mut self, name: String, id: Option<String>, arguments: String, parsed: &mut ParsedDelta) {
        let id = match id.filter(|id| self.format.ids.allow(id) && !self.ids.contains(id)) {
            Some(id) => {
                self.ids.push(id.clone());
                id
            }
            None => new_call_id(self.format.ids, &name, self.n_calls),
        };
        let index = self.n_calls;
        self.n_calls += 1;
        parsed.calls.push(ToolCallDelta {
            index,
            id: Some(id),
            kind: Some(FunctionKind::Function),
            function: FunctionCallDelta { name: Some(name), arguments },
        });
    }

    /// Emits the parts of a JSON call that are new, once it has arguments.
    fn emit(&mut self, call: &mut PartialCall, section: &mut CallSection, parsed: &mut ParsedDelta) {
        if !call.is_emitted && call.arguments.is_empty() && !call.is_complete {
            return;
        }
        self.emit_new(call, section, parsed);
    }

    /// Emits the parts of a JSON call that are new, be they no more than its name.
    fn emit_new(&mut self, call: &mut PartialCall, section: &mut CallSection, parsed: &mut ParsedDelta) {
        let Some(name) = &call.name else { return };
        if call.is_complete && call.arguments.is_empty() {
            call.arguments.push_str("{}");
        }
        let arguments = call.arguments[call.n_emitted..].to_owned();
        call.n_emitted = call.arguments.len();
        if call.is_emitted {
            return self.extend_call(arguments, parsed);
        }
        call.is_emitted = true;
        section.has_calls = true;
        section.raw.clear();
        self.emit_head(name.clone(), None, arguments, parsed);
    }
}

/// An id for the call number `n_before` of a response.
fn new_call_id(ids: CallIds, name: &str, n_before: usize) -> String {
    let random = Uuid::new_v4().simple().to_string();
    match ids {
        CallIds::Any => format!("call_{}", &random[..24]),
        CallIds::Alphanumeric(len) => random[..len.min(random.len())].to_owned(),
        CallIds::NameAndIndex => format!("functions.{name}:{n_before}"),
    }
}
