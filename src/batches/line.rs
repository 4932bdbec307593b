//! The lines of a batch: what is read of its file, and what is written to its results.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::record::{BatchApi, BatchRecord, CallResult};
use crate::anthropic::batches::MessageBatchItem;
use crate::error::{Error, Kind, Result, quote};
use crate::openai::batches::BatchError;
use crate::store::files::FileStore;

/// The most requests of a batch; OpenAI's own limit.
const MAX_REQUESTS: u64 = 50_000;

/// The most bytes of the name of a request.
const MAX_ID_BYTES: usize = 512;

/// The most mistakes of a file that are reported.
const MAX_MISTAKES: usize = 20;

/// A request of a batch.
#[derive(Debug)]
pub struct BatchLine {
    /// Its number in the batch, from 0.
    pub index: u64,
    /// The client's name for it.
    pub custom_id: String,
    /// The body of the request.
    pub body: Box<RawValue>,
}

/// A line of OpenAI's form.
#[derive(Deserialize)]
struct OpenAiLine {
    custom_id: String,
    method: String,
    url: String,
    body: Box<RawValue>,
}

/// A line of Anthropic's form.
#[derive(Deserialize)]
struct AnthropicLine {
    custom_id: String,
    params: Box<RawValue>,
}

/// The fields of a body that a batch looks at.
#[derive(Deserialize)]
struct BodyHead {
    #[serde(default)]
    model: Option<Value>,
    #[serde(default)]
    stream: Option<Value>,
}

/// How a request ended that the server did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The client wanted no more.
    Cancelled,
    /// Time was over.
    Expired,
}

/// Reads the lines of a file one by one. Blank ones do not count.
pub struct LineReader {
    files: Arc<FileStore>,
    file: String,
    max_line_bytes: usize,
    next_part: u64,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are read.
    start: usize,
    n_lines: u64,
    is_at_end: bool,
}

impl LineReader {
    /// A reader of a file whose lines have at most `max_line_bytes`.
    pub fn new(files: Arc<FileStore>, file: String, max_line_bytes: usize) -> Self {
        let (buffer, is_at_end) = (Vec::new(), false);
        Self { files, file, max_line_bytes, next_part: 0, buffer, start: 0, n_lines: 0, is_at_end }
    }

    /// The next line with its number, from 0; `None` at the end.
    ///
    /// # Errors
    /// When a line is too long, or the file cannot be read.
    pub fn next_line(&mut self) -> Result<Option<(u64, String)>> {
        loop {
            let rest = &self.buffer[self.start..];
            let end = rest.iter().position(|&byte| byte == b'\n');
            if end.is_none() && !self.is_at_end {
                if rest.len() > self.max_line_bytes {
                    return Err(self.too_long());
                }
                self.read_part()?;
                continue;
            }
            let line = &rest[..end.unwrap_or(rest.len())];
            if line.len() > self.max_line_bytes {
                return Err(self.too_long());
            }
            let line = String::from_utf8_lossy(line.trim_ascii()).into_owned();
            self.start += end.map_or(rest.len(), |end| end + 1);
            if !line.is_empty() {
                self.n_lines += 1;
                return Ok(Some((self.n_lines - 1, line)));
            }
            if end.is_none() {
                return Ok(None);
            }
        }
    }

    fn read_part(&mut self) -> Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        match self.files.part(&self.file, self.next_part)? {
            Some((index, part)) => {
                self.buffer.extend_from_slice(&part);
                self.next_part = index + 1;
            }
            None => self.is_at_end = true,
        }
        Ok(())
    }

    fn too_long(&self) -> Error {
        let (line, max) = (self.n_lines + 1, self.max_line_bytes);
        Error::new(Kind::InvalidRequest, format!("line {line} is longer than {max} bytes; shorten it"))
    }
}

impl BatchLine {
    /// Reads a line of a batch.
    ///
    /// # Errors
    /// When it is no request for the batch's endpoint.
    pub fn parse(batch: &BatchRecord, index: u64, text: &str) -> Result<Self, BatchError> {
        let mistake = |code: &str, param: Option<&str>, message: String| BatchError {
            code: code.to_owned(),
            message,
            param: param.map(str::to_owned),
            line: Some(index + 1),
        };
        let malformed = |e: serde_json::Error| {
            mistake("invalid_json_line", None, quote(&format!("the line is no request: {e}")))
        };
        // An array could stand for a struct, too.
        let is_object = |json: &str| json.trim_start().starts_with('{');
        if !is_object(text) {
            return Err(mistake("invalid_json_line", None, "the line is no object".to_owned()));
        }
        let (custom_id, body) = match batch.api {
            BatchApi::Anthropic => {
                let AnthropicLine { custom_id, params } = serde_json::from_str(text).map_err(malformed)?;
                (custom_id, params)
            }
            BatchApi::OpenAi => {
                let OpenAiLine { custom_id, method, url, body } =
                    serde_json::from_str(text).map_err(malformed)?;
                if !method.eq_ignore_ascii_case("POST") {
                    let message = format!("`method` is `{}`; it must be `POST`", quote(&method));
                    return Err(mistake("invalid_method", Some("method"), message));
                }
                if url != batch.endpoint {
                    let (url, endpoint) = (quote(&url), &batch.endpoint);
                    let message = format!("`url` is `{url}`, but the batch is for `{endpoint}`");
                    return Err(mistake("mismatched_url", Some("url"), message));
                }
                (custom_id, body)
            }
        };
        if custom_id.is_empty() || custom_id.len() > MAX_ID_BYTES {
            let message = format!("`custom_id` must have 1 to {MAX_ID_BYTES} bytes");
            return Err(mistake("invalid_custom_id", Some("custom_id"), message));
        }
        let head = serde_json::from_str::<BodyHead>(body.get()).ok().filter(|_| is_object(body.get()));
        let no_object = || mistake("invalid_body", Some("body"), "`body` must be an object".to_owned());
        let head = head.ok_or_else(no_object)?;
        if head.stream.is_some_and(|stream| stream == true) {
            let message = "`stream` must be left out: the responses of a batch are files".to_owned();
            return Err(mistake("invalid_stream", Some("body.stream"), message));
        }
        Ok(Self { index, custom_id, body })
    }

    /// The model that it is for, if it names one.
    pub fn model(&self) -> Option<String> {
        let head: BodyHead = serde_json::from_str(self.body.get()).ok()?;
        head.model?.as_str().map(str::to_owned)
    }

    /// The line of its result in the form of an API.
    pub fn result(&self, api: BatchApi, outcome: &CallResult) -> Vec<u8> {
        let body = as_json(&outcome.body);
        match api {
            BatchApi::OpenAi => to_line(&OpenAiResult {
                id: new_id(),
                custom_id: &self.custom_id,
                response: Some(OpenAiResponse {
                    status_code: outcome.status,
                    request_id: &outcome.request_id,
                    body: &body,
                }),
                error: None,
            }),
            BatchApi::Anthropic => to_line(&AnthropicResult {
                custom_id: &self.custom_id,
                result: match outcome.is_success() {
                    true => AnthropicOutcome::Succeeded { message: &body },
                    false => AnthropicOutcome::Errored { error: &body },
                },
            }),
        }
    }

    /// The line of its result when the server did not answer it.
    pub fn unanswered(&self, api: BatchApi, why: Unanswered) -> Vec<u8> {
        match (api, why) {
            (BatchApi::OpenAi, why) => {
                let (code, message) = match why {
                    Unanswered::Cancelled => {
                        ("batch_cancelled", "the batch was cancelled before this request")
                    }
                    Unanswered::Expired => ("batch_expired", "the batch's time was over before this request"),
                };
                let error = Some(json!({"code": code, "message": message}));
                to_line(&OpenAiResult { id: new_id(), custom_id: &self.custom_id, response: None, error })
            }
            (BatchApi::Anthropic, why) => to_line(&AnthropicResult {
                custom_id: &self.custom_id,
                result: match why {
                    Unanswered::Cancelled => AnthropicOutcome::Canceled,
                    Unanswered::Expired => AnthropicOutcome::Expired,
                },
            }),
        }
    }
}

#[derive(Serialize)]
struct OpenAiResult<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<OpenAiResponse<'a>>,
    error: Option<Value>,
}

#[derive(Serialize)]
struct OpenAiResponse<'a> {
    status_code: u16,
    request_id: &'a str,
    body: &'a RawValue,
}

#[derive(Serialize)]
struct AnthropicResult<'a> {
    custom_id: &'a str,
    result: AnthropicOutcome<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum AnthropicOutcome<'a> {
    Succeeded { message: &'a RawValue },
    Errored { error: &'a RawValue },
    Canceled,
    Expired,
}

fn new_id() -> String {
    format!("batch_req_{}", Uuid::new_v4().simple())
}

fn to_line(result: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(result).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A body as it is, or as a string if it is no JSON.
fn as_json(body: &[u8]) -> Box<RawValue> {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        serde_json::value::to_raw_value(&text).unwrap_or_default()
    })
}

/// The lines of a Messages batch.
///
/// # Errors
/// When there are none or too many, or one is none that a batch can answer.
pub fn message_lines(batch: &BatchRecord, requests: &[MessageBatchItem]) -> Result<Vec<u8>> {
    let n = requests.len() as u64;
    if n == 0 || n > MAX_REQUESTS {
        let message = format!("`requests` has {n} entries; it must have 1 to {MAX_REQUESTS}");
        return Err(Error::invalid("requests", message));
    }
    let (mut lines, mut names) = (Vec::new(), HashSet::new());
    for (index, request) in requests.iter().enumerate() {
        let line = serde_json::to_string(request)
            .map_err(|e| Error::internal(format!("a request cannot be written: {e}")))?;
        if let Err(mistake) = BatchLine::parse(batch, index as u64, &line) {
            return Err(Error::invalid(format!("requests[{index}]"), mistake.message));
        }
        if !names.insert(&request.custom_id) {
            let message = format!("`custom_id` `{}` occurs twice", quote(&request.custom_id));
            return Err(Error::invalid(format!("requests[{index}].custom_id"), message));
        }
        lines.extend_from_slice(line.as_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What is found in the lines of a batch.
#[derive(Debug)]
pub struct CheckedLines {
    /// Their number.
    pub n_lines: u64,
    /// The model of the first one.
    pub model: Option<String>,
    /// Mistakes, the first of many; with one the others do not count.
    pub mistakes: Vec<BatchError>,
}

/// Checks all lines of a batch.
///
/// # Errors
/// When they cannot be read.
pub fn check_lines(batch: &BatchRecord, mut lines: LineReader) -> Result<CheckedLines> {
    let mut mistakes = Vec::new();
    let (mut names, mut model) = (HashSet::new(), None);
    let file_mistake =
        |code: &str, message: String| BatchError { code: code.to_owned(), message, param: None, line: None };
    let mut n_lines = 0;
    loop {
        let (index, text) = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(e) if e.kind() == Kind::InvalidRequest => {
                mistakes.push(file_mistake("line_too_long", e.to_string()));
                break;
            }
            Err(e) => return Err(e),
        };
        n_lines = index + 1;
        if n_lines > MAX_REQUESTS {
            let message = format!("the file has more than {MAX_REQUESTS} requests; split it");
            mistakes.push(file_mistake("too_many_requests", message));
            break;
        }
        match BatchLine::parse(batch, index, &text) {
            Ok(line) => {
                if index == 0 {
                    model = line.model();
                }
                let message = format!("`custom_id` `{}` occurs twice", quote(&line.custom_id));
                if !names.insert(line.custom_id) {
                    mistakes.push(BatchError {
                        code: "duplicate_custom_id".to_owned(),
                        message,
                        param: Some("custom_id".to_owned()),
                        line: Some(index + 1),
                    });
                }
            }
            Err(mistake) => mistakes.push(mistake),
        }
        if mistakes.len() >= MAX_MISTAKES {
            break;
        }
    }
    if n_lines == 0 && mistakes.is_empty() {
        mistakes.push(file_mistake("empty_file", "the file has no requests".to_owned()));
    }
    Ok(CheckedLines { n_lines, model, mistakes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::FileLimits;

    fn batch(api: BatchApi) -> BatchRecord {
        BatchRecord::new(api, "a", "/v1/completions", 60, 0)
    }

    fn stored(content: &str) -> (Arc<FileStore>, LineReader) {
        let files = FileStore::in_memory(FileLimits { max_bytes: 8 << 20, max_file_bytes: 4 << 20 }).unwrap();
        let mut upload = files.upload("a".into(), "f".into()).unwrap();
        upload.append(content.as_bytes()).unwrap();
        upload.finish_hidden().unwrap();
        (files.clone(), LineReader::new(files, "f".into(), 200_000))
    }

    fn line(id: &str, rest: &str) -> String {
        format!(r#"{{"custom_id":"{id}","method":"POST","url":"/v1/completions","body":{{{rest}}}}}"#)
    }

    #[test]
    fn lines_are_read_across_parts_and_blank_ones_skipped() {
        let long = "x".repeat(150_000);
        let (_files, mut lines) = stored(&format!("\n a\r\n\n{long}\nlast"));
        let mut read = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            read.push(line);
        }
        assert_eq!(read, [(0, "a".to_owned()), (1, long), (2, "last".to_owned())]);
        let (_files, mut lines) = stored(&"x".repeat(200_001));
        assert!(lines.next_line().unwrap_err().to_string().contains("200000"));
    }

    #[test]
    fn mistakes_name_their_line() {
        let content = [
            line("a", r#""model":"m""#),
            "{".to_owned(),
            line("a", ""),
            line("b", "").replace("completions", "embeddings"),
            line("c", "").replace("POST", "GET"),
            line("", ""),
            line("d", r#""stream":true"#),
            r#"{"custom_id":"e","method":"POST","url":"/v1/completions","body":[]}"#.to_owned(),
        ];
        let (_files, lines) = stored(&content.join("\n"));
        let mistakes = check_lines(&batch(BatchApi::OpenAi), lines).unwrap().mistakes;
        let found: Vec<_> = mistakes.iter().map(|e| (e.line.unwrap(), &*e.code)).collect();
        let expected = [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "mismatched_url"),
            (5, "invalid_method"),
            (6, "invalid_custom_id"),
            (7, "invalid_stream"),
            (8, "invalid_body"),
        ];
        assert_eq!(found, expected);
        let (_files, lines) = stored(&[line("a", r#""model":"m""#), line("b", "")].join("\n"));
        let checked = check_lines(&batch(BatchApi::OpenAi), lines).unwrap();
        assert_eq!((checked.n_lines, checked.model.as_deref(), checked.mistakes), (2, Some("m"), Vec::new()));
        let (_files, lines) = stored(" \n");
        assert_eq!(check_lines(&batch(BatchApi::OpenAi), lines).unwrap().mistakes[0].code, "empty_file");
    }

    #[test]
    fn results_have_the_form_of_their_api() {
        let openai = BatchLine::parse(&batch(BatchApi::OpenAi), 3, &line("a", r#""x":1.50"#)).unwrap();
        assert_eq!((openai.index, openai.body.get()), (3, r#"{"x":1.50}"#));
        let outcome =
            CallResult { status: 200, request_id: "req_1".into(), body: br#" {"v":0.012345679}"#.to_vec() };
        let written = String::from_utf8(openai.result(BatchApi::OpenAi, &outcome)).unwrap();
        let response =
            r#""response":{"status_code":200,"request_id":"req_1","body":{"v":0.012345679}},"error":null}"#;
        assert!(
            written.ends_with(&format!("{response}\n")) && written.contains(r#""custom_id":"a""#),
            "{written}"
        );
        let text = r#"{"custom_id":"b","params":{"max_tokens":1}}"#;
        let anthropic = BatchLine::parse(&batch(BatchApi::Anthropic), 0, text).unwrap();
        let result = |outcome: &CallResult| -> Value {
            serde_json::from_slice(&anthropic.result(BatchApi::Anthropic, outcome)).unwrap()
        };
        assert_eq!(result(&outcome)["result"], json!({"type": "succeeded", "message": {"v": 0.012345679}}));
        let failed = CallResult { status: 400, body: b"not JSON".to_vec(), ..outcome };
        assert_eq!(result(&failed)["result"], json!({"type": "errored", "error": "not JSON"}));
        let expired: Value =
            serde_json::from_slice(&anthropic.unanswered(BatchApi::Anthropic, Unanswered::Expired)).unwrap();
        assert_eq!(expired, json!({"custom_id": "b", "result": {"type": "expired"}}));
    }
}
