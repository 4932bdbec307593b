//! Transcripts of every format, cut wherever they can be: each must give the same text and calls.

use std::sync::Arc;

use serde_json::json;

use super::formats::{CODE_BLOCKS, ToolCallFormat};
use super::{ParsedDelta, ToolCallParser};
use crate::openai::chat::FunctionDefinition;

fn functions() -> Arc<[FunctionDefinition]> {
    let function = |name: &str, properties: serde_json::Value| FunctionDefinition {
        name: name.to_owned(),
        parameters: Some(json!({"type": "object", "properties": properties})),
        ..FunctionDefinition::default()
    };
    [
        function("get_weather", json!({"city": {"type": "string"}})),
        function("add", json!({"a": {"type": "integer"}, "b": {"type": "array"}})),
        function(
            "write",
            json!({"path": {"type": "string"}, "text": {"type": "string"}, "force": {"type": "boolean"}}),
        ),
        function("now", json!({})),
    ]
    .into()
}

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
    let mut parser = ToolCallParser::new(ToolCallFormat::by_name(format), functions(), true);
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
const SUM_COMPACT: (&str, &str) = ("add", r#"{"a": 1, "b": [2,{"c":"}"}]}"#);
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
    ("hermes", "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n```", "", &[("add", "{\"a\": 1}")]),
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
    // The forms of other families.
    ("hermes", "<tool_call>\n<tool_call>", "<tool_call>\n<tool_call>", &[]),
    (
        "qwen coder",
        "I'll look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n\
         <tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[2, {\"c\": \"}\"}]\n</parameter>\n\
         </function>\n</tool_call>",
        "I'll look.",
        &[PARIS, SUM_COMPACT],
    ),
    (
        "qwen coder",
        "<tool_call>\n<function=write>\n<parameter=path>\na.rs\n</parameter>\n<parameter=text>\n\n  if a < b {\n\t\"é\\\n</param\n\n\
         </parameter>\n<parameter=force>\nTrue\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"path": "a.rs", "text": "\n  if a < b {\n\t\"é\\\n</param\n", "force": true}"#)],
    ),
    ("qwen coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", &[("now", "{}")]),
    // Without the mark around the call, and with JSON in it.
    ("qwen coder", "<function=now>\n</function>\n</tool_call> Done.", " Done.", &[("now", "{}")]),
    (
        "qwen coder",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
        "",
        &[PARIS],
    ),
    ("qwen coder", "<tool_call> is a tag", "<tool_call> is a tag", &[]),
    (
        "seed",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        "",
        &[PARIS],
    ),
    (
        "glm, with new lines",
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n<tool_call>add\n\
         <arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>[2, {\"c\": \"}\"}]</arg_value>\n</tool_call>",
        "",
        &[PARIS, SUM_COMPACT],
    ),
    (
        "glm",
        "Well.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        "Well.",
        &[PARIS],
    ),
    ("glm", "<tool_call>now</tool_call>", "", &[("now", "{}")]),
    (
        "minimax",
        "\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n</invoke>\n\
         <invoke name=\"add\">\n<parameter name=\"a\">1</parameter>\n<parameter name=\"b\">[2, {\"c\": \"}\"}]</parameter>\n\
         </invoke>\n</minimax:tool_call>",
        "",
        &[PARIS, SUM_COMPACT],
    ),
    (
        "deepseek 3.2",
        "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Paris\
         </｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"add\">\n<｜DSML｜parameter name=\"a\" string=\"false\">1\
         </｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "",
        &[PARIS, ("add", "{\"a\": 1}")],
    ),
    (
        "deepseek 3",
        "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```\
         <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Ok.",
        &[PARIS, ("now", "{}")],
    ),
    (
        "deepseek 3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜>\
         <｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[PARIS, ("now", "{}")],
    ),
    (
        "kimi k2",
        "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\"}\
         <|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "Ok.",
        &[PARIS, ("now", "{}")],
    ),
    (
        "kimi k3",
        "<|open|>tools<|sep|><|open|>call tool=\"get_weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>\
         Paris<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
        "",
        &[PARIS],
    ),
    (
        "lfm2",
        "<|tool_call_start|>[get_weather(city=\"Paris\"), add(a=1, b=[2, {'c': '}'}]), now()]<|tool_call_end|>Checking.",
        "Checking.",
        &[PARIS, SUM_COMPACT, ("now", "{}")],
    ),
    (
        "lfm2",
        "<|tool_call_start|>[write(path='it's', text=\"a, b)\", force=True)]<|tool_call_end|>",
        "",
        &[("write", r#"{"path": "it's", "text": "a, b)", "force": true}"#)],
    ),
    ("llama 4, pythonic", "[get_weather(city='Paris'), now()]", "", &[PARIS, ("now", "{}")]),
    ("llama 4, pythonic", "<|python_start|>[get_weather('Paris')]<|python_end|>", "", &[PARIS]),
    ("llama 4, pythonic", "[fly(a=1)]", "[fly(a=1)]", &[]),
    ("llama 4, pythonic", "[1, 2] is a list", "[1, 2] is a list", &[]),
    (
        "llama 4",
        "<|python_start|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}<|python_end|>",
        "",
        &[PARIS],
    ),
    (
        "gemma 4",
        "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>}<tool_call|><|tool_call>call:add{a:1,b:[2,{c:<|\"|>}<|\"|>}]}<tool_call|>",
        "",
        &[PARIS, SUM_COMPACT],
    ),
    ("gemma 4", "Hm.<|tool_call>call:now{}<tool_call|>", "Hm.", &[("now", "{}")]),
    (
        "nemotron",
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]</TOOLCALL>",
        "",
        &[PARIS],
    ),
    ("apriel", "<tool_calls>[{\"name\": \"now\", \"arguments\": {}}]</tool_calls>", "", &[("now", "{}")]),
    (
        "command r",
        "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}\n]\
         <|END_ACTION|>",
        "",
        &[PARIS],
    ),
    (
        "functionary 3.1",
        "<function=get_weather>{\"city\": \"Paris\"}</function><function=now>{}</function>",
        "",
        &[PARIS, ("now", "{}")],
    ),
    ("functionary 3.2", "get_weather\n{\"city\": \"Paris\"}>>>now\n{}", "", &[PARIS, ("now", "{}")]),
    ("functionary 3.2", "all\nLet me look.>>>get_weather\n{\"city\": \"Paris\"}", "Let me look.", &[PARIS]),
    ("functionary 3.2", "all\nJust text.", "Just text.", &[]),
    (
        "harmony",
        "Ok.<|channel|>commentary to=functions.get_weather<|message|>{\"city\": \"Paris\"}<|call|>",
        "Ok.",
        &[PARIS],
    ),
    // A built-in tool gets code.
    (
        "harmony",
        "<|channel|>commentary to=python<|message|>print(\"1\")\n<|call|>",
        "",
        &[("python", "{\"code\": \"print(\\\"1\\\")\\n\"}")],
    ),
    (
        "harmony",
        "<|channel|>commentary to=browser.search<|message|>{\"query\": \"x\"}<|call|>",
        "",
        &[("browser.search", "{\"query\": \"x\"}")],
    ),
];

#[test]
fn transcripts_are_parsed_wherever_the_pieces_end() {
    for &(format, text, content, calls) in TRANSCRIPTS {
        for n in [1, 2, 3, 7, 1000] {
            let (found_content, found, _) = parsed(format, text, n);
            let expected: Vec<(String, String)> =
                calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
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
                assert_eq!((&found, &found_calls), (&cut.0, &cut.1), "{format}: {:?} by {n}", &text[..end]);
            }
            let (found, found_calls, _) = cut;
            // A code block without a call is text.
            let is_block = CODE_BLOCKS.iter().any(|(open, _)| open.starts_with(found.trim()));
            let is_text = content.trim().starts_with(found.trim()) || is_block;
            assert!(is_text, "{format}: {:?} has the text {found:?}", &text[..end]);
            assert!(found_calls.len() <= calls.len(), "{format}: {:?}", &text[..end]);
            for ((name, arguments), (whole_name, whole)) in found_calls.iter().zip(calls) {
                assert_eq!(name, whole_name, "{format}: {:?}", &text[..end]);
                assert!(whole.starts_with(arguments.as_str()), "{format}: {:?}: {arguments}", &text[..end]);
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
