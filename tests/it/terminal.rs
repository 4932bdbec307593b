//! The commands that people type: `chat`, `run`, `embed`, `rerank`, `completions` and `man`, as processes that talk to a
//! server of the tests or start one themselves.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::cli::program;
use crate::support::embeddings::{tiny_encoder, tiny_encoder_folder, tiny_reranker};
use crate::support::{
    ENGINE_OPTIONS, Script, Server, embedding_server, json as body, keyed_server, scoring_server,
    scripted_server,
};

/// A process that has ended.
#[derive(Debug)]
struct Finished {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Finished {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = program();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program with this text on stdin.
async fn piped(args: &[&str], stdin: &str) -> Finished {
    let (mut command, stdin) = (command(args), stdin.to_owned());
    spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A program that fails does not read it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        Finished { code: output.status.code(), out: output.stdout, err }
    })
    .await
    .unwrap()
}

async fn run(args: &[&str]) -> Finished {
    piped(args, "").await
}

async fn scripted(script: Script) -> Server {
    scripted_server(script, Limits::default(), ENGINE_OPTIONS).await
}

/// The prompts that the scripted model got, as text.
fn prompts(script: &Script) -> Vec<String> {
    let prompts = script.prompts.lock().unwrap();
    let text = |tokens: &Vec<u32>| -> String {
        tokens.iter().map(|&token| u8::try_from(token).map_or('|', char::from)).collect()
    };
    prompts.values().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn run_prints_the_answer_alone() {
    let script = Script::saying("abc");
    let server = scripted(script.clone()).await;
    let done = run(&["run", "--server", &server.url("/v1"), "say", "abc"]).await;
    assert_eq!((done.code, done.text(), done.err.as_str()), (Some(0), "abc\n", ""));
    assert!(prompts(&script)[0].contains("user:say abc|"), "{:?}", prompts(&script));
    let done = run(&["run", "--stats", "--server", &server.url(""), "hi"]).await;
    assert_eq!((done.code, done.text()), (Some(0), "abc\n"));
    assert!(done.err.contains("tokens/s, first after") && !done.err.contains('\x1b'), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_on_stdin_follows_the_prompt() {
    for command in ["chat", "run"] {
        let script = Script::saying("abc");
        let server = scripted(script.clone()).await;
        let url = server.url("");
        let args = [command, "--server", &url, "--system", "Be brief.", "scripted", "Summarise", "this."];
        let done = piped(&args, "line one\nline two\n").await;
        assert_eq!((done.code, done.text()), (Some(0), "abc\n"), "{}", done.err);
        let prompt = &prompts(&script)[0];
        assert!(prompt.contains("system:Be brief.|"), "{prompt}");
        assert!(prompt.contains("user:Summarise this.\n\nline one\nline two|"), "{prompt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_schemas_reach_the_server() {
    let server = scripted(Script::saying("abcdef")).await;
    let url = server.url("");
    let done = run(&["run", "--server", &url, "--max-tokens", "2", "x"]).await;
    assert_eq!((done.text(), done.err.as_str()), ("ab\n", ""));
    let done = run(&["run", "--server", &url, "--set", "stop=d", "--temperature", "0", "x"]).await;
    assert_eq!((done.text(), done.err.as_str()), ("abc\n", ""));
    let server = scripted(Script::saying("\"nobody\"")).await;
    let (url, folder) = (server.url(""), tempfile::tempdir().unwrap());
    let schema = folder.path().join("schema.json");
    fs::write(&schema, r#"{"enum": ["yes", "no"]}"#).unwrap();
    let args = ["run", "--server", &url, "--temperature", "0", "--json-schema", schema.to_str().unwrap()];
    let done = run(&[&args[..], &["x"]].concat()).await;
    assert_eq!((done.code, done.text(), done.err.as_str()), (Some(0), "\"no\"\n", ""));
    let done = run(&[&args[..], &["--max-tokens", "2", "x"]].concat()).await;
    assert!(done.code == Some(0) && done.err.contains("limit of tokens"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_no_part_of_the_answer() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n";
    let script = Script { template: Some(template), ..Script::saying("hmm</think>\n\nYes.") };
    let server = scripted(script).await;
    let done = run(&["run", "--server", &server.url(""), "x"]).await;
    assert_eq!((done.text(), done.err.as_str()), ("Yes.\n", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_name_the_remedy() {
    let server = scripted(Script::saying("abc")).await;
    let keyed = keyed_server(&["sk-right"], Limits::default()).await;
    let (url, keyed_url) = (server.url(""), keyed.url(""));
    for (args, code, words) in [
        (vec!["run", "--server", &url, "--model", "unheard-of", "x"], 1, vec!["unheard-of", "`scripted`"]),
        (vec!["run", "--server", &url, "qwen3-0.6b", "x"], 1, vec!["qwen3-0.6b", "`scripted`", "--local"]),
        (vec!["embed", "--server", &url, "--model", "scripted", "x"], 1, vec!["scripted"]),
        (vec!["run", "--server", "127.0.0.1:1", "x"], 1, vec!["127.0.0.1:1", "serve", "--local"]),
        (vec!["run", "--server", "ftp://x", "x"], 1, vec!["ftp://x"]),
        (vec!["embed", "--server", &keyed_url, "x"], 1, vec!["requires an API key", "--api-key"]),
        (vec!["embed", "--server", &keyed_url, "--api-key", "sk-no", "x"], 1, vec!["--api-key"]),
        (vec!["chat", "--server", &keyed_url, "--api-key", "sk-right", "x"], 1, vec!["no chat model"]),
        (vec!["run", "--local", "--model", "unheard-of", "x"], 1, vec!["predict-otron-9000 models"]),
        (vec!["run", "--json-schema", "/no/schema", "x"], 1, vec!["--json-schema", "/no/schema"]),
        (vec!["run", "--server", &url], 2, vec!["no prompt", "stdin"]),
        (vec!["run", "--server", &url, "scripted"], 2, vec!["no prompt"]),
        (vec!["chat"], 2, vec!["no prompt", "Usage: predict-otron-9000 chat"]),
        (vec!["run", "--temperature", "3", "x"], 2, vec!["temperature", "from 0 to 2"]),
        (vec!["run", "--set", "warmth=3", "x"], 2, vec!["warmth", "top_k"]),
        (vec!["embed", "--server", &url], 2, vec!["no texts"]),
        (vec!["rerank", "--server", &url, "x"], 2, vec!["no documents"]),
        (vec!["embed", "--output", "/no/folder/file", "x"], 1, vec!["--output", "/no/folder/file"]),
        (vec!["man", "unheard-of"], 2, vec!["unheard-of", "chat"]),
    ] {
        let done = run(&args).await;
        assert_eq!(done.code, Some(code), "{args:?}: {}", done.err);
        for word in words {
            assert!(done.err.contains(word), "{args:?} does not mention {word}: {}", done.err);
        }
        assert_eq!(done.text(), "", "{args:?}");
    }
    let done = run(&["embed", "--server", &keyed_url, "--api-key", "sk-right", "x"]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    let mut keyed_by_variable = command(&["embed", "x"]);
    keyed_by_variable.env("PREDICT_OTRON_SERVER", &keyed_url).env("PREDICT_OTRON_API_KEY", "sk-right,sk-b");
    let output = spawn_blocking(move || keyed_by_variable.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const TEXTS: [&str; 3] = ["the cat", "a dog and a mouse", "the rust model"];

/// The vector in a line of output or in an item of a response.
fn vector_of(item: &Value) -> Vec<f32> {
    serde_json::from_value(item["embedding"].clone()).unwrap()
}

async fn api_vectors(server: &Server, input: &[&str]) -> Vec<Vec<f32>> {
    let answer = body(server.post("/v1/embeddings", &json!({"input": input})).await).await;
    let data = answer["data"].as_array().unwrap().iter();
    data.map(vector_of).collect()
}

/// The rows of a NumPy array of shape `[n, m]` in float32.
fn npy_rows(file: &[u8]) -> Vec<Vec<f32>> {
    assert!(file.starts_with(b"\x93NUMPY\x01\x00"));
    let n_header = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..n_header]).unwrap();
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': ("), "{header}");
    let shape = header.split(['(', ')']).nth(1).unwrap();
    let shape: Vec<usize> = shape.split(", ").map(|n| n.parse().unwrap()).collect();
    let (numbers, rest) = file[n_header..].as_chunks::<4>();
    assert!(rest.is_empty() && numbers.len() == shape[0] * shape[1], "{header}");
    let numbers: Vec<f32> = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    numbers.chunks(shape[1]).map(<[f32]>::to_vec).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn embed_prints_the_vectors_of_the_api() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let url = server.url("");
    let expected = api_vectors(&server, &TEXTS).await;
    let args = [&["embed", "--server", &url][..], &TEXTS].concat();
    for (done, note) in [
        (run(&args).await, ""),
        (piped(&args[..3], &TEXTS.join("\n\n")).await, "empty lines of stdin left out: 2\n"),
    ] {
        assert_eq!(done.err, note);
        for ((index, line), vector) in done.lines().iter().enumerate().zip(&expected) {
            assert_eq!(vector_of(line), *vector);
            assert_eq!((&line["index"], &line["text"]), (&json!(index), &json!(TEXTS[index])));
        }
        assert_eq!(done.lines().len(), 3);
    }
    let done = run(&[&args[..], &["--format", "npy"]].concat()).await;
    assert_eq!(npy_rows(&done.out), expected);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vectors.npy");
    let output = ["--format", "npy", "--output", file.to_str().unwrap(), "--dimensions", "4"];
    let done = run(&[&args[..], &output].concat()).await;
    assert_eq!((done.code, done.text()), (Some(1), ""), "a model without shorter vectors: {}", done.err);
    let done = run(&[&args[..], &output[..4]].concat()).await;
    assert_eq!((done.code, done.text()), (Some(0), ""), "{}", done.err);
    assert_eq!(npy_rows(&fs::read(file).unwrap()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_texts_are_embedded_in_batches() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let url = server.url("");
    let texts: Vec<&str> = (0..600).map(|idx| TEXTS[idx % 3]).collect();
    let expected = api_vectors(&server, &TEXTS).await;
    let done = piped(&["embed", "--server", &url, "--format", "npy"], &texts.join("\n")).await;
    let rows = npy_rows(&done.out);
    assert_eq!(rows.len(), 600, "{}", done.err);
    assert!(rows.iter().enumerate().all(|(idx, row)| *row == expected[idx % 3]));
    let long = "the cat ".repeat(2000);
    let mut with_long = texts;
    with_long[300] = &long;
    let done = piped(&["embed", "--server", &url], &with_long.join("\n")).await;
    assert!(done.code == Some(1) && done.err.contains("texts 256 to 511"), "{}", done.err);
    let done = piped(&["embed", "--truncate", "--server", &url], &with_long.join("\n")).await;
    assert_eq!(done.lines().len(), 600);
    assert!(done.err.contains("only their beginnings embedded: 1"), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn rerank_prints_the_best_first() {
    let server =
        scoring_server(Limits::default(), Box::new(tiny_encoder), Some(Box::new(tiny_reranker))).await;
    let (query, url) = ("the cat", server.url(""));
    let request = json!({"query": query, "documents": TEXTS});
    let results = body(server.post("/v1/rerank", &request).await).await["results"].clone();
    let index = |rank: usize| results[rank]["index"].as_u64().unwrap() as usize;
    let args = [&["rerank", "--server", &url, query][..], &TEXTS].concat();
    let done = run(&[&args[..], &["--json"]].concat()).await;
    for (rank, line) in done.lines().iter().enumerate() {
        let score = &results[rank]["relevance_score"];
        assert_eq!(
            *line,
            json!({"index": index(rank), "relevance_score": score, "text": TEXTS[index(rank)]})
        );
    }
    assert_eq!(done.lines().len(), 3);
    let done = piped(&["rerank", "--server", &url, "--top-n", "2", query], &TEXTS.join("\n")).await;
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = done.text().lines().collect();
    assert_eq!(lines.len(), 2);
    for (rank, line) in lines.iter().enumerate() {
        let score = results[rank]["relevance_score"].as_f64().unwrap();
        assert_eq!(*line, format!("{score:7.4}  {:>4}  {}", index(rank), TEXTS[index(rank)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_stdout_ends_the_program_quietly() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let url = server.url("");
    let texts = TEXTS.join("\n").repeat(1000);
    let mut embed = command(&["embed", "--server", &url]);
    let (code, err) = spawn_blocking(move || {
        let mut child = embed.spawn().unwrap();
        child.stdin.take().unwrap().write_all(texts.as_bytes()).unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.starts_with("{\"index\":0,"), "{first}");
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    })
    .await
    .unwrap();
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_single_answer_with_130() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"abc ".repeat(100)) };
    let server = scripted(script).await;
    let url = server.url("");
    let mut run = command(&["run", "--server", &url, "x"]);
    let (code, rest) = spawn_blocking(move || {
        let mut child = run.spawn().unwrap();
        drop(child.stdin.take());
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 3]).unwrap();
        interrupt(&child);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        (child.wait().unwrap().code(), rest)
    })
    .await
    .unwrap();
    assert_eq!(code, Some(130));
    assert!(rest.len() < 390, "{rest}");
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_the_model_runs_in_the_process() {
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let expected = api_vectors(&server, &TEXTS).await;
    let folder = tiny_encoder_folder();
    let args = ["embed", "--local", "--model", folder.path().to_str().unwrap()];
    let done = run(&[&args[..], &TEXTS].concat()).await;
    assert!(done.err.starts_with("loading ") && done.err.lines().count() == 1, "{}", done.err);
    for (line, vector) in done.lines().iter().zip(&expected) {
        assert_eq!(vector_of(line), *vector);
    }
    let done = run(&["run", "--local", "--max-tokens", "4", "--temperature", "0", "hi"]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.text().trim().len() > 3 && done.err.lines().count() == 1, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_and_manuals_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let done = run(&["completions", shell]).await;
        assert!(done.code == Some(0) && done.text().contains("rerank"), "{shell}: {}", done.err);
    }
    let page = run(&["man"]).await;
    assert!(page.text().contains(".TH predict-otron-9000 1"), "{}", page.text());
    for command in
        ["serve", "chat", "run", "embed", "rerank", "pull", "bench", "models", "completions", "man"]
    {
        assert!(page.text().contains(&format!("predict\\-otron\\-9000\\-{command}(1)")), "{command}");
        let page = run(&["man", command]).await;
        assert!(page.text().contains(&format!(".TH predict-otron-9000-{command} 1")), "{}", page.text());
    }
}

/// A program on a pseudo-terminal of its own.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
    /// Length of what was waited for so far.
    n_seen: usize,
}

/// Runs the program given by the arguments on a pseudo-terminal, which it copies to stdin and stdout.
const RELAY: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

impl Terminal {
    fn start(args: &[&str], state: &std::path::Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", RELAY, env!("CARGO_BIN_EXE_predict-otron-9000")])
            .args(args)
            .env("XDG_STATE_HOME", state)
            .env("TERM", "xterm")
            .env_remove("RUST_LOG")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let shown: Arc<Mutex<String>> = Arc::default();
        let copy = shown.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Self { child, shown, n_seen: 0 }
    }

    fn type_keys(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows `text` after what was waited for before, and returns what it shows up to there.
    fn wait_for(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().clone();
            if let Some(n) = shown[self.n_seen..].find(text) {
                let end = self.n_seen + n + text.len();
                let passed = shown[self.n_seen..end].to_owned();
                self.n_seen = end;
                return passed;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "no {text:?} in {shown:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types a line at the prompt, and returns what is shown until the next one.
    fn enter(&mut self, line: &str) -> String {
        self.type_keys(&format!("{line}\r"));
        self.wait_for(PROMPT)
    }

    fn end(mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if started.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
                panic!("the program does not end: {}", self.shown.lock().unwrap());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The prompt. The line editor shows it again only when a line is edited other than at its end.
const PROMPT: &str = ">>> ";

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_on_a_terminal() {
    let after = vec![("user:long", "abc ".repeat(100)), ("user:second", "two".to_owned())];
    let script = Script {
        step: Duration::from_millis(10),
        context_length: Some(4096),
        after,
        ..Script::saying("Hi \x1b[2Jyou")
    };
    let server = scripted(script.clone()).await;
    let (url, state) = (server.url(""), tempfile::tempdir().unwrap());
    let file = state.path().join("chat.json").to_str().unwrap().to_owned();
    let history = state.path().join("predict-otron-9000/history");
    let code = spawn_blocking(move || {
        let mut terminal = Terminal::start(&["chat", "--server", &url], state.path());
        let greeting = terminal.wait_for(PROMPT);
        assert!(greeting.contains(&format!("scripted at {url}; /help")), "{greeting}");
        let shown = terminal.enter("hello");
        assert!(shown.contains("Hi \u{fffd}[2Jyou"), "no control characters of the model: {shown:?}");
        assert!(shown.contains("tokens/s, first after") && shown.contains("\x1b[2m"), "{shown:?}");
        let shown = terminal.enter("/system Be brief.");
        assert!(shown.contains("system prompt set"), "{shown}");
        let shown = terminal.enter("/set top_k 5");
        assert!(shown.contains("top_k") && shown.contains('5'), "{shown}");
        assert!(terminal.enter("/set top_k x").contains("must be an integer"));
        assert!(terminal.enter("/model").contains("* scripted"));
        assert!(terminal.enter("/model unheard-of").contains("served are `scripted`"));
        assert!(terminal.enter("/nonsense").contains("unknown command"));
        // Ctrl-C stops an answer, drops a line, and drops a message of several lines.
        terminal.type_keys("long\r");
        terminal.wait_for("abc abc");
        terminal.type_keys("\x03");
        terminal.wait_for("stopped");
        terminal.wait_for(PROMPT);
        terminal.type_keys("dropped\x03");
        terminal.wait_for(PROMPT);
        terminal.type_keys("\"\"\"\r");
        terminal.wait_for("... ");
        terminal.type_keys("dropped\r");
        terminal.wait_for("... ");
        terminal.type_keys("\x03");
        terminal.wait_for(PROMPT);
        assert!(terminal.enter("/clear").contains("forgotten"));
        terminal.type_keys("\"\"\"\r");
        terminal.wait_for("... ");
        terminal.type_keys("second\\\r");
        terminal.wait_for("... ");
        assert!(terminal.enter("line\"\"\"").contains("two"));
        assert!(terminal.enter("/retry").contains("two"));
        assert!(terminal.enter(&format!("/save {file}")).contains("2 messages saved"));
        assert!(terminal.enter("/clear").contains("forgotten"));
        assert!(terminal.enter("/retry").contains("no message"));
        assert!(terminal.enter(&format!("/load {file}")).contains("2 messages loaded"));
        let saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(
            saved,
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "second\\\nline"},
                {"role": "assistant", "content": "two"},
            ])
        );
        // A line can be edited.
        terminal.type_keys("last\x1b[DX\x01Y\r");
        terminal.wait_for("tokens/s");
        terminal.wait_for(PROMPT);
        terminal.type_keys("\x04");
        let code = terminal.end();
        let lines = fs::read_to_string(history).unwrap();
        assert!(lines.contains("hello") && lines.contains("YlasXt"), "{lines}");
        code
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0));
    let prompts = prompts(&script);
    let edited = "system:Be brief.||user:second\\\nline||assistant:two||user:YlasXt|";
    assert!(prompts.iter().any(|prompt| prompt.contains(edited)), "{prompts:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_on_the_command_line_begins_the_chat() {
    let server = scripted(Script::saying("abc")).await;
    let (url, state) = (server.url(""), tempfile::tempdir().unwrap());
    let code = spawn_blocking(move || {
        let args = ["chat", "--server", &url, "scripted", "hello", "--set", "seed=1"];
        let mut terminal = Terminal::start(&args, state.path());
        assert!(terminal.wait_for(PROMPT).contains("abc"));
        terminal.type_keys("/exit\r");
        terminal.end()
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0));
}
