//! The log of a server process: its formats, quotes of requests, and a stderr that nobody reads.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{Running, program};
use crate::support::embeddings::tiny_encoder_folder;

/// Folders of tiny models.
struct TinyModels {
    chat: tempfile::TempDir,
    encoder: tempfile::TempDir,
}

impl TinyModels {
    fn new() -> Self {
        let chat = tempfile::tempdir().unwrap();
        copy_llama(chat.path());
        Self { chat, encoder: tiny_encoder_folder() }
    }

    /// A server of these models.
    fn server(&self) -> Command {
        let mut command = program();
        command.args(["--offline", "--threads", "1", "--model"]).arg(self.chat.path());
        command.arg("--embedding-model").arg(self.encoder.path());
        command
    }
}

fn copy_llama(folder: &Path) {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(format!("tests/data/tiny/llama/{file}"), folder.join(file)).unwrap();
    }
    let template = r#"{"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}"#;
    std::fs::write(folder.join("tokenizer_config.json"), template).unwrap();
}

async fn start(command: Command) -> Running {
    tokio::task::spawn_blocking(|| Running::start(command)).await.unwrap()
}

/// The lines of the log that contain `text`, once there are `n`.
async fn lines_with(server: &Running, text: &str, n: usize) -> Vec<String> {
    let started = Instant::now();
    loop {
        let lines: Vec<String> =
            server.log.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect();
        if lines.len() >= n {
            return lines;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:#?}", server.log.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stalled_stderr_stalls_no_request() {
    let models = TinyModels::new();
    let command = models.server();
    let mut server = tokio::task::spawn_blocking(|| Running::start_unread(command)).await.unwrap();
    let client = reqwest::Client::new();
    let path = "x".repeat(300);
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..4000 {
        let sent = Instant::now();
        let response = client.get(format!("http://{}/{path}", server.address)).send();
        let response =
            tokio::time::timeout(Duration::from_secs(5), response).await.expect("an answer").unwrap();
        assert_eq!(response.status(), 404);
        slowest = slowest.max(sent.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?} of {:?}", started.elapsed());
    let metrics = client.get(format!("http://{}/metrics", server.address)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("predict_otron_log_lines_dropped_total"));
    let n_dropped: u64 = line.unwrap_or(&metrics).rsplit(' ').next().unwrap().parse().unwrap();
    assert!(n_dropped > 0, "{metrics}");
    server.signal("INT");
    assert!(server.wait().success());
}

#[tokio::test]
async fn quotes_of_requests_are_short_and_stay_on_one_line() {
    let models = TinyModels::new();
    let server = start(models.server()).await;
    let url = |path: &str| format!("http://{}{path}", server.address);
    let long = "x\nINFO forged ".repeat(10_000);
    let client = reqwest::Client::new();
    let bodies = [
        serde_json::json!({"model": long, "messages": []}),
        serde_json::json!({"messages": [{"role": long, "content": "x"}]}),
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "temperature": long}),
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "logit_bias": {&long: 1}}),
        serde_json::json!({"messages": [{"role": "user", "content": [{"type": long}]}]}),
        serde_json::json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": long}]}),
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "tool_choice":
            {"type": "function", "function": {"name": long}}}),
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "response_format":
            {"type": "json_schema", "json_schema": {"name": long}}}),
    ];
    for body in &bodies {
        let response = client.post(url("/v1/chat/completions")).header("content-type", "application/json");
        let response = response.body(body.to_string()).send().await.unwrap();
        assert!(response.status().is_client_error());
        let answer = response.text().await.unwrap();
        assert!(answer.len() < 1500, "{answer}");
        let error: Value = serde_json::from_str(&answer).unwrap();
        assert!(!error["error"]["message"].as_str().unwrap().contains('\n'), "{error}");
    }
    let lines = lines_with(&server, "request refused", bodies.len()).await;
    assert_eq!(lines.len(), bodies.len());
    assert!(lines.iter().all(|line| line.len() < 2000), "{lines:#?}");
    assert!(!server.log.lock().unwrap().iter().any(|line| line.starts_with("INFO forged")));
}

#[tokio::test]
async fn the_log_is_json_on_request() {
    let models = TinyModels::new();
    let mut command = models.server();
    command.args(["--log-format", "json"]);
    let server = start(command).await;
    let response = reqwest::Client::new()
        .get(format!("http://{}/no%0a-such-route", server.address))
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("x-request-id", "mine")
        .send();
    assert_eq!(response.await.unwrap().status(), 404);
    let line = lines_with(&server, "request refused", 1).await.remove(0);
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["level"], "INFO");
    assert_eq!((&event["id"], &event["status"]), (&"mine".into(), &404.into()), "{event}");
    assert_eq!(event["trace_id"], "0af7651916cd43dd8448eb211c80319c", "{event}");
    for line in server.log.lock().unwrap().iter() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|event| event.is_object()), "{line}");
    }
}

#[tokio::test]
async fn faults_of_a_model_stay_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("secret-folder").join("broken");
    std::fs::create_dir_all(&model).unwrap();
    copy_llama(&model);
    std::fs::write(model.join("model.safetensors"), b"no tensors").unwrap();
    let models = TinyModels::new();
    let mut command = models.server();
    command.arg("--model").arg(&model);
    let server = start(command).await;
    let response = server.post(
        "/v1/chat/completions",
        r#"{"model": "broken", "messages": [{"role": "user", "content": "x"}]}"#,
    );
    let (status, answer) = response.await;
    assert!(status >= 500, "{answer}");
    assert!(answer.contains("model `broken` cannot be loaded"), "{answer}");
    assert!(!answer.contains("secret-folder"), "{answer}");
    let lines = lines_with(&server, "request failed", 1).await;
    assert!(lines[0].contains("secret-folder"), "{lines:?}");
}

#[test]
fn a_home_is_not_needed_for_models_at_paths() {
    let models = TinyModels::new();
    let mut command = models.server();
    command.env_remove("HOME").env_remove("XDG_CACHE_HOME").env_remove("HF_HOME").stdout(Stdio::null());
    let mut server = Running::start(command);
    server.signal("INT");
    assert!(server.wait().success());
}
