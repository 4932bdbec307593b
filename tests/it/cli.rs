//! The program as a user runs it: flags, environment variables, messages and signals.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::CommandFactory;
use predict_otron_9000::config::Args;
use predict_otron_9000::registry::Registry;

use crate::support;

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_predict-otron-9000"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Commands whose own flags have no environment variables.
const COMMANDS_WITHOUT_VARIABLES: [&str; 7] =
    ["bench", "chat", "run", "embed", "rerank", "bundle", "unbundle"];

/// Flags that accept any text; it is checked when it is used.
const FREE_TEXT_FLAGS: [&str; 20] = [
    "config",
    "chat-template",
    "api-key",
    "api-key-file",
    "limits",
    "audit-log",
    "model",
    "embedding-model",
    "rerank-model",
    "embedding-cache-dir",
    "cache-dir",
    "state-dir",
    "kl",
    "tls-cert",
    "tls-key",
    "server",
    "system",
    "json-schema",
    "output",
    "to",
];

/// Each command as the program defines it, with the arguments that select it; `serve` is the default, too.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    let mut root = Args::command();
    root.build();
    let subcommands = root.get_subcommands().filter(|command| command.get_name() != "help").cloned();
    let mut commands: Vec<_> =
        subcommands.map(|command| (vec![command.get_name().to_owned()], command)).collect();
    let names: Vec<&str> = commands.iter().map(|(_, command)| command.get_name()).collect();
    let expected = [
        "serve",
        "chat",
        "run",
        "embed",
        "rerank",
        "pull",
        "bench",
        "config",
        "bundle",
        "unbundle",
        "audit",
        "health",
        "models",
        "completions",
        "man",
    ];
    assert_eq!(names, expected);
    commands.push((Vec::new(), root));
    commands
}

fn may_lack_variables(command: &str) -> bool {
    COMMANDS_WITHOUT_VARIABLES.contains(&command)
}

/// The flags of a command, without those that clap adds.
fn flags(command: &clap::Command) -> impl Iterator<Item = (&clap::Arg, &str)> {
    let arguments = command.get_arguments().filter(|arg| !is_clap_flag(arg));
    arguments.filter_map(|arg| Some((arg, arg.get_long()?)))
}

fn is_clap_flag(arg: &clap::Arg) -> bool {
    ["help", "version"].contains(&arg.get_id().as_str())
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_flag_has_a_help_text_and_a_variable() {
    for (selection, command) in commands() {
        let output = program().args(&selection).arg("--help").output().unwrap();
        let help = on_one_line(&text(&output.stdout));
        for arg in command.get_arguments().filter(|arg| !is_clap_flag(arg)) {
            let line = arg.get_help().map(|line| on_one_line(&line.to_string())).unwrap_or_default();
            assert!(
                !line.is_empty() && help.contains(&line),
                "{selection:?} {}: {line:?}: {help}",
                arg.get_id()
            );
        }
        for (arg, flag) in flags(&command) {
            assert!(help.contains(&format!("--{flag}")), "{selection:?} {flag}: {help}");
            let found = arg.get_env().map(|name| name.to_str().unwrap());
            let variable = format!("PREDICT_OTRON_{}", flag.to_uppercase().replace('-', "_"));
            if found.is_some() || !selection.first().is_some_and(|name| may_lack_variables(name)) {
                assert_eq!(found, Some(variable.as_str()), "{selection:?} {flag}");
                assert!(help.contains(&format!("[env: {variable}")), "{selection:?} {flag}: {help}");
            }
        }
    }
}

#[test]
fn a_bad_value_is_refused_with_the_name_of_its_flag() {
    for (selection, command) in commands() {
        let named = match selection.first().map(String::as_str) {
            Some("pull") => vec!["no-such-model"],
            Some("rerank") => vec!["query", "document"],
            Some("chat" | "run" | "embed") => vec!["text"],
            _ => Vec::new(),
        };
        for (arg, flag) in flags(&command).filter(|(_, flag)| !FREE_TEXT_FLAGS.contains(flag)) {
            let mut by_flag = program();
            by_flag.args(&selection).args(&named).arg(format!("--{flag}=?"));
            let by_variable = arg.get_env().map(|variable| {
                let mut by_variable = program();
                by_variable.args(&selection).args(&named).env(variable, "?");
                by_variable
            });
            for mut refused in [by_flag].into_iter().chain(by_variable) {
                let output = refused.output().unwrap();
                let message = text(&output.stderr);
                assert_eq!(output.status.code(), Some(2), "{refused:?}: {message}");
                assert!(message.contains(&format!("--{flag}")), "{refused:?}: {message}");
            }
        }
    }
}

#[test]
fn models_are_listed_with_size_and_license() {
    let output = output(&["models", "--offline"]);
    assert!(output.status.success());
    let list = text(&output.stdout);
    for name in ["smollm2-135m-instruct", "all-minilm-l6-v2"] {
        let line =
            list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {list}"));
        assert!(line.contains("MB") && line.contains("Apache-2.0"), "{line}");
    }
}

#[test]
fn usage_errors_are_explained() {
    let empty = tempfile::tempdir().unwrap();
    let cache = empty.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, words) in [
        (vec!["--offline", "--port", "0", "--cache-dir", cache], vec!["smollm2-135m-instruct", "offline"]),
        (vec!["--port", "0", "--model", "/no/such/file.gguf"], vec!["/no/such/file.gguf"]),
        (vec!["--port", &port], vec![&port, "--port"]),
        (vec!["--host", "0.0.0.0", "--port", "0"], vec!["--api-key", "--no-auth"]),
        (vec!["--port", "0", "--api-key", "two words"], vec!["API key"]),
        (vec!["--port", "0", "--api-key-file", "/no/such/keys"], vec!["/no/such/keys"]),
        (vec!["pull", "no-such-model", "--offline", "--cache-dir", cache], vec!["no-such-model"]),
        (vec!["pull", "no-such-model"], vec!["predict-otron-9000 models"]),
        (vec!["--threads", "0"], vec!["--threads"]),
        (vec!["--prot", "1"], vec!["--port"]),
        (vec!["--heartbeat", "500ms"], vec!["--heartbeat", "1s"]),
        (vec!["--cors-origin", "https://app.example.com/x"], vec!["--cors-origin", "without a path"]),
        (vec!["--allowed-host", "llm.lan:80"], vec!["--allowed-host", "without a port"]),
    ] {
        let output = output(&args);
        assert!(!output.status.success(), "{args:?}");
        let message = text(&output.stderr);
        for word in words {
            assert!(message.contains(word), "{args:?} does not mention {word}: {message}");
        }
    }
}

#[test]
fn bench_prints_one_object_or_a_table() {
    let args =
        ["bench", "--offline", "--model", "tests/data/tiny/llama", "--isa", "scalar", "--threads", "1"];
    let sizes = ["-p", "8,24", "-n", "4", "--streams", "2,3", "--depths", "16"];
    let done = output(&[&args[..], &sizes, &["--json"]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(report["model"].as_str().unwrap().contains("llama"), "{report}");
    assert_eq!((&report["threads"], &report["isa"]), (&1.into(), &"scalar".into()), "{report}");
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|number| number > 0.0);
    for figure in ["load_s", "rss_mb"] {
        assert!(positive(&report[figure]), "{figure}: {report}");
    }
    for limit in ["read_gb_s", "matrix_tflop_s"] {
        assert!(positive(&report["limits"][limit]), "{limit}: {report}");
    }
    let measured = |what: &str, sizes: &[&str]| -> Vec<Vec<u64>> {
        let rows = report[what].as_array().unwrap();
        assert!(rows.iter().all(|row| positive(&row["tok_s"]) && positive(&row["share"])), "{report}");
        rows.iter().map(|row| sizes.iter().map(|size| row[*size].as_u64().unwrap()).collect()).collect()
    };
    assert_eq!(measured("prefill", &["tokens"]), [[8], [24]]);
    assert_eq!(measured("decode", &["streams", "depth"]), [[2, 128], [3, 128], [1, 16]]);

    let done = output(&[&args[..], &sizes].concat());
    let table = text(&done.stdout);
    assert_eq!(table.lines().filter(|line| line.starts_with("prefill")).count(), 2, "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("decode")).count(), 3, "{table}");
}

#[test]
fn bench_breaks_the_time_down_by_operation() {
    let args = ["bench", "--offline", "--model", "tests/data/tiny/llama", "--isa", "scalar", "--profile"];
    let sizes = ["--threads", "1", "-p", "24", "-n", "4", "--streams", "2", "--depths", "0"];
    let done = output(&[&args[..], &sizes, &["--json"]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    for row in ["prefill", "decode"].map(|what| &report[what][0]) {
        let parts = row["profile"].as_array().unwrap();
        let ops: Vec<&str> = parts.iter().map(|part| part["op"].as_str().unwrap()).collect();
        assert_eq!(ops, ["Embedding", "Qkv", "Attention", "Output", "Mlp", "Head"], "{row}");
        for part in parts {
            assert!(part["ms"].as_f64().unwrap() > 0.0, "{part}");
            // Operations without a matrix have no limit to compare with.
            let has_matrix = !["Embedding", "Attention"].contains(&part["op"].as_str().unwrap());
            assert_eq!(part["share"].as_f64().is_some_and(|share| share > 0.0), has_matrix, "{part}");
        }
    }

    let done = output(&[&args[..], &sizes].concat());
    let table = text(&done.stdout);
    assert_eq!(table.lines().filter(|line| line.trim_start().starts_with("Attention")).count(), 3, "{table}");
}

/// A server process, which is killed on drop.
pub struct Running {
    child: Child,
    pub address: String,
    /// Lines that it has logged since it began to listen.
    pub log: Arc<Mutex<Vec<String>>>,
    /// Its stderr, if nobody reads it.
    _unread: Option<BufReader<ChildStderr>>,
}

impl Running {
    /// Starts `command` on a free port and waits until it listens.
    pub fn start(command: Command) -> Self {
        let mut server = Self::start_unread(command);
        let log = server._unread.take().unwrap();
        let lines = server.log.clone();
        std::thread::spawn(move || {
            for line in log.lines().map_while(|line| line.ok()) {
                lines.lock().unwrap().push(line);
            }
        });
        server
    }

    /// The same, but nobody reads its stderr once it listens.
    pub fn start_unread(mut command: Command) -> Self {
        let mut child = command.args(["--port", "0"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let start = seen.len();
            assert!(log.read_line(&mut seen).unwrap() > 0, "the server exited: {seen}");
            if let Some((_, address)) = seen[start..].split_once("listening on http://") {
                break address.split([' ', '"', '\n']).next().unwrap().to_owned();
            }
        };
        Self { child, address, log: Arc::default(), _unread: Some(log) }
    }

    pub async fn post(&self, path: &str, body: &'static str) -> (u16, String) {
        let response = reqwest::Client::new()
            .post(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "the server does not exit");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_server_answers_and_exits_cleanly_on_signals() {
    for signal in ["TERM", "INT"] {
        let mut server = tokio::task::spawn_blocking(|| Running::start(program())).await.unwrap();
        let request = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
        assert_eq!(server.post("/v1/chat/completions", request).await.0, 200);
        server.signal(signal);
        assert!(server.wait().success(), "SIG{signal}");
    }
}

#[tokio::test]
async fn a_refusal_is_logged_once_with_its_id() {
    let server = tokio::task::spawn_blocking(|| Running::start(program())).await.unwrap();
    assert_eq!(server.post("/v1/chat/completions", "{").await.0, 400);
    assert_eq!(server.post("/v1/embeddings", r#"{"input": 5}"#).await.0, 400);
    std::thread::sleep(Duration::from_millis(200));
    let log = server.log.lock().unwrap();
    for reason in ["not valid JSON", "expected a string, an array of strings"] {
        let lines: Vec<&String> = log.iter().filter(|line| line.contains(reason)).collect();
        assert_eq!(lines.len(), 1, "{log:#?}");
        assert!(lines[0].contains("id=\"req_") && lines[0].contains("status=400"), "{lines:?}");
    }
}

#[test]
fn environment_variables_set_flags() {
    let cache = tempfile::tempdir().unwrap();
    let output = program()
        .env("PREDICT_OTRON_OFFLINE", "1")
        .env("PREDICT_OTRON_CACHE_DIR", cache.path())
        .env("PREDICT_OTRON_PORT", "0")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert!(message.contains("offline"), "{message}");
}

#[test]
fn a_config_file_sets_what_nothing_else_sets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let path = file.to_str().unwrap();
    let config = |text: &str, args: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let mut command = program();
        command.env("PREDICT_OTRON_MAX_QUEUE", "7").env("PREDICT_OTRON_CONFIG", path);
        command.arg("config").args(args).output().unwrap()
    };
    let options = "port = 9000\nhost = \"127.0.0.2\"\nmax-queue = 5\nmodel = [\"a\", \"b\"]\napi-key = \"sk-1\"\n\
                   idle-unload = \"10m\"\noffline = true\n[alias]\nx = \"a\"\n";
    let output = config(options, &["--host", "127.0.0.3"]);
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for line in [
        "host = \"127.0.0.3\"  # command line".to_owned(),
        "max-queue = 7  # PREDICT_OTRON_MAX_QUEUE".to_owned(),
        "max-concurrent = 32  # default".to_owned(),
        format!("port = 9000  # {path}"),
        format!("model = [\"a\", \"b\"]  # {path}"),
        format!("offline = true  # {path}"),
        format!("idle-unload = \"10m\"  # {path}"),
        format!("alias = [\"x=a\"]  # {path}"),
        format!("# api-key: 1, not shown, {path}"),
        "# memory-budget: not set".to_owned(),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
    assert!(!printed.contains("sk-1"));
    // What is printed is a config file.
    let again = config(&printed, &[]);
    assert!(
        text(&again.stdout).contains(&format!("host = \"127.0.0.3\"  # {path}")),
        "{}",
        text(&again.stderr)
    );
    for (options, words) in [
        ("prot = 1", vec!["server.toml", "--prot", "--port"]),
        ("port = \"x\"", vec!["server.toml", "--port"]),
        ("port = [[1]]", vec!["server.toml", "`port`"]),
        ("port 1", vec!["server.toml", "line 1"]),
    ] {
        let output = config(options, &[]);
        assert_eq!(output.status.code(), Some(2), "{options}");
        let message = text(&output.stderr);
        for word in words {
            assert!(message.contains(word), "{options}: {word}: {message}");
        }
    }
}

#[test]
fn a_service_manager_passes_the_socket_and_is_notified() {
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // The first socket is file descriptor 3, and the variable names the process that it is for.
    let mut command = Command::new("sh");
    let start = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0";
    command.args(["-c", start, program().get_program().to_str().unwrap()]);
    command.args(["--model", "tests/data/tiny/llama", "--offline"]);
    command.env("NOTIFY_SOCKET", folder.path().join("notify")).stdin(OwnedFd::from(socket));
    let mut server = Running::start(command);
    assert_eq!(server.address, address.to_string(), "--port counts for nothing");
    let receive = || {
        let mut message = [0; 64];
        let n_bytes = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..n_bytes]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    server.signal("INT");
    assert_eq!(receive(), "STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn a_passed_socket_for_other_machines_needs_a_key() {
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut command = Command::new("sh");
    let start = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0";
    command.args(["-c", start, program().get_program().to_str().unwrap()]);
    command.args(["--model", "tests/data/tiny/llama", "--offline"]).stdin(OwnedFd::from(socket));
    let refused = command.output().unwrap();
    let message = text(&refused.stderr);
    assert!(!refused.status.success() && message.contains("0.0.0.0 accepts other machines"), "{message}");
}

#[tokio::test]
async fn a_bundle_starts_a_server_without_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("bundle.tar");
    let encoder = folder.path().join("encoder");
    std::fs::create_dir(&encoder).unwrap();
    std::fs::copy("tests/data/bert-onnx/model.onnx", encoder.join("model.onnx")).unwrap();
    std::fs::copy("tests/data/bert-onnx/tokenizer.json", encoder.join("tokenizer.json")).unwrap();
    std::fs::write(encoder.join("config.json"), "{}").unwrap();
    let packed = program()
        .args(["bundle", "--model", "tests/data/tiny/llama", "--no-onnx-runtime", "--embedding-model"])
        .args([&encoder, &archive])
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    assert!(text(&packed.stdout).contains("unbundle"), "{}", text(&packed.stdout));
    // As on the other machine: only the archive and what comes out of it.
    let mut tar = Command::new("tar");
    tar.arg("xf").arg(&archive).arg("-C").arg(folder.path()).arg("predict-otron-9000");
    assert!(tar.status().unwrap().success());
    let own = folder.path().join("predict-otron-9000");
    let target = folder.path().join("there");
    let unbundle =
        || Command::new(&own).arg("unbundle").arg(&archive).arg("--to").arg(&target).output().unwrap();
    let done = unbundle();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let printed = text(&done.stdout);
    let command: Vec<&str> = printed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(command[0], target.join("predict-otron-9000").to_str().unwrap());
    let mut server = Command::new(command[0]);
    server.args(&command[1..]).args(["--embedding-backend", "fastembed"]).env_clear();
    // ONNX Runtime is missing, so only the start of the server itself is checked.
    let mut log = String::new();
    let mut child = server.args(["--port", "0"]).stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut log).unwrap();
    let _ = (child.kill(), child.wait());
    assert!(log.contains("listening on"), "{log}");
    assert!(text(&unbundle().stderr).contains("exists already"));
}

#[test]
fn health_tells_whether_a_server_is_ready() {
    let mut command = program();
    command.args(["--model", "tests/data/tiny/llama", "--offline"]);
    let server = Running::start(command);
    let health = |address: &str| output(&["health", "--server", &format!("http://{address}")]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !health(&server.address).status.success() {
        assert!(Instant::now() < deadline, "it becomes ready");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let absent = health(&free.to_string());
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("cannot reach the server"), "{}", text(&absent.stderr));
}

#[tokio::test]
async fn the_audit_log_of_a_server_can_be_verified() {
    let folder = tempfile::tempdir().unwrap();
    let [keys, limits, log] = ["keys", "limits.toml", "audit.jsonl"].map(|name| folder.path().join(name));
    std::fs::write(&keys, "sk-a team-a\n").unwrap();
    std::fs::write(&limits, "[keys.team-a]\nrequests-per-minute = 1\n").unwrap();
    let mut command = program();
    command.args(["--model", "tests/data/tiny/llama", "--offline", "--api-key-file"]).arg(&keys);
    command.arg("--limits").arg(&limits).arg("--audit-log").arg(&log);
    let mut server = tokio::task::spawn_blocking(|| Running::start(command)).await.unwrap();
    let complete = async || {
        let request = reqwest::Client::new().post(format!("http://{}/v1/completions", server.address));
        let request = request.bearer_auth("sk-a").header("content-type", "application/json");
        request.body(r#"{"prompt": "hi", "max_tokens": 2}"#).send().await.unwrap().status().as_u16()
    };
    assert_eq!((complete().await, complete().await), (200, 429));
    server.signal("INT");
    assert!(server.wait().success());
    let verify = |more: &[&str]| output(&[&["audit", "verify", log.to_str().unwrap()], more].concat());
    let verified = verify(&[]);
    let printed = text(&verified.stdout);
    assert!(verified.status.success() && printed.starts_with("3 lines"), "{printed}");
    let hash = printed.trim_end().rsplit(' ').next().unwrap();
    assert!(verify(&["--contains", hash]).status.success());
    let changed = std::fs::read_to_string(&log).unwrap().replace("team-a", "team-b");
    std::fs::write(&log, changed).unwrap();
    let refused = verify(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("line 2 is wrong"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn keys_are_read_again_on_sighup() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "sk-old\nsk-kept\n").unwrap();
    let mut command = program();
    command.args(["--model", "tests/data/tiny/llama", "--offline", "--api-key-file"]).arg(&file);
    let server = tokio::task::spawn_blocking(|| Running::start(command)).await.unwrap();
    let client = reqwest::Client::new();
    let status = async |key: &str| {
        let url = format!("http://{}/v1/models", server.address);
        client.get(url).bearer_auth(key).send().await.unwrap().status().as_u16()
    };
    let wait_for = async |line: &str| {
        for _ in 0..200 {
            if server.log.lock().unwrap().iter().any(|logged| logged.contains(line)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{line} is not in {:#?}", server.log.lock().unwrap());
    };
    assert_eq!((status("sk-old").await, status("sk-new").await), (200, 401));
    std::fs::write(&file, "sk-new\nsk-kept\n").unwrap();
    server.signal("HUP");
    wait_for("API keys and limits reloaded").await;
    assert_eq!((status("sk-old").await, status("sk-new").await, status("sk-kept").await), (401, 200, 200));
    std::fs::write(&file, "").unwrap();
    server.signal("HUP");
    wait_for("API keys and limits not reloaded").await;
    assert_eq!(status("sk-new").await, 200);
}

#[test]
fn an_empty_environment_variable_counts_as_unset() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = program();
    for flag in ["HOST", "PORT", "MODEL", "THREADS", "IDLE_UNLOAD", "MEMORY_BUDGET", "PRELOAD", "ALIAS"] {
        command.env(format!("PREDICT_OTRON_{flag}"), "");
    }
    let args = ["serve", "--port", "0", "--offline", "--cache-dir", cache.path().to_str().unwrap()];
    let output = command.env("PREDICT_OTRON_OFFLINE", "").args(args).output().unwrap();
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("smollm2-135m-instruct"), "{message}");
}

#[test]
fn an_empty_key_does_not_open_the_server() {
    for (variable, value) in [
        ("PREDICT_OTRON_API_KEY", ""),
        ("PREDICT_OTRON_API_KEY", " "),
        ("PREDICT_OTRON_API_KEY", "sk-a,"),
        ("PREDICT_OTRON_API_KEY_FILE", ""),
    ] {
        let args = ["--offline", "--port", "0", "--model", "tests/data/tiny/llama"];
        let output = program().env(variable, value).args(args).output().unwrap();
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{variable}={value:?}");
        assert!(
            message.contains("API_KEY") || message.contains("--api-key"),
            "{variable}={value:?}: {message}"
        );
    }
}

/// A folder with the tests' tiny ONNX encoder.
fn onnx_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["bert-onnx/model.onnx", "bert-onnx/tokenizer.json", "tiny-encoders/bert/config.json"] {
        let name = file.rsplit('/').next().unwrap();
        std::fs::copy(format!("tests/data/{file}"), folder.path().join(name)).unwrap();
    }
    folder
}

#[tokio::test]
async fn onnx_runtime_is_loaded_from_ort_dylib_path() {
    let library = tokio::task::spawn_blocking(|| Registry::new(support::real_registry()).onnx_runtime());
    let library = library.await.unwrap().expect("the wheel onnxruntime, through pip");
    let folder = onnx_folder();
    let start = |path: &Path| {
        let mut command = program();
        command.env("ORT_DYLIB_PATH", path).arg("--embedding-model").arg(folder.path());
        command
    };
    let with_library = start(&library);
    let server = tokio::task::spawn_blocking(|| Running::start(with_library)).await.unwrap();
    let answer = server.post("/v1/embeddings", r#"{"input": "the cat"}"#).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    let output = start(Path::new("/no/such/library.so")).args(["--port", "0"]).output().unwrap();
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("ORT_DYLIB_PATH"), "{message}");
}

#[test]
fn an_embedding_model_that_cannot_be_served_is_an_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    for (from, name) in [
        ("tiny-encoders/bert/config.json", "config.json"),
        ("tiny-encoders/bert/model.safetensors", "model.safetensors"),
        ("bert-onnx/tokenizer.json", "tokenizer.json"),
    ] {
        std::fs::copy(format!("tests/data/{from}"), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.replace("\"bert\"", "\"unheard-of\"")).unwrap();
    for flag in ["--embedding-model", "--rerank-model"] {
        let output = output(&["--port", "0", flag, folder.path().to_str().unwrap()]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{flag}: {message}");
        assert!(message.contains("cannot be served") && message.contains("unheard-of"), "{flag}: {message}");
    }
}
