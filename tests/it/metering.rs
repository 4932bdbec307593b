//! Quotas of API keys, their usage, and the audit log.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use predict_otron_9000::app::ApiKeys;
use predict_otron_9000::config::KeyLimitsTable;
use predict_otron_9000::metering::{AuditLog, Metering, UsageLedger, verify_chain};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::support::{Script, Server, events, json as body, metered_server};

const CHAT: &str = "/v1/chat/completions";

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// The keys `sk-a` and `sk-a2` of the account `team-a`, and `sk-b` of `team-b`.
fn keys() -> ApiKeys {
    ApiKeys::new(&[], Some(file("sk-a team-a\nsk-a2 team-a\nsk-b team-b\n").path())).unwrap()
}

async fn server(script: Script, limits: &str, audit: Option<&Path>) -> Server {
    let limits = KeyLimitsTable::read(file(limits).path()).unwrap();
    let audit = audit.map(|path| AuditLog::open(path).unwrap());
    let metering = Metering::start(limits, UsageLedger::open(None).unwrap(), audit, true).unwrap();
    metered_server(script, keys(), metering).await
}

fn chat(more: Value) -> Value {
    let mut request = json!({"model": "scripted", "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// The usage of a key's account today, by model; waits until `n` requests are counted.
async fn usage(server: &Server, key: &str, n: u64) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let response =
            server.client.get(server.url("/v1/usage?limit=1")).bearer_auth(key).send().await.unwrap();
        let page = body(response).await;
        let results = page["data"][0]["results"].as_array().unwrap().clone();
        let counted: u64 = results.iter().map(|result| result["num_model_requests"].as_u64().unwrap()).sum();
        if counted >= n || Instant::now() > deadline {
            return results;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_a_keys_limit_are_refused() {
    let limits = "[default]\nrequests-per-minute = 2\n[keys.team-b]\nrequests-per-minute = \"unlimited\"\n";
    let server = server(Script::saying("yes"), limits, None).await;
    let first = server.post_as("sk-a", CHAT, &chat(json!({}))).await;
    assert_eq!(first.status(), 200);
    let header =
        |response: &reqwest::Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), "2");
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "1");
    assert!(header(&first, "x-ratelimit-reset-requests").ends_with('s'));
    assert!(!first.headers().contains_key("x-ratelimit-limit-tokens"), "tokens are not limited");
    // Another key of the account, and another route.
    let input = json!({"input": "cat"});
    assert_eq!(server.post_as("sk-a2", "/v1/embeddings", &input).await.status(), 200);
    let refused = server.post_as("sk-a", CHAT, &chat(json!({}))).await;
    assert_eq!(refused.status(), 429);
    let seconds: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "0");
    let error = &body(refused).await["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`team-a`") && message.contains("2 requests per minute"), "{message}");
    for _ in 0..5 {
        assert_eq!(server.post_as("sk-b", CHAT, &chat(json!({}))).await.status(), 200);
    }
    let models = server.client.get(server.url("/v1/models")).bearer_auth("sk-a").send().await.unwrap();
    assert_eq!(models.status(), 200, "what costs nothing is not limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_beyond_a_keys_limit_are_refused_in_the_form_of_each_api() {
    let server = server(Script::saying(&"x".repeat(60)), "[default]\ntokens-per-minute = 50\n", None).await;
    let first = server.post_as("sk-a", CHAT, &chat(json!({}))).await;
    assert_eq!(first.status(), 200, "the last request may exceed what is left");
    drop(first.bytes().await);
    usage(&server, "sk-a", 1).await;
    let error = body(server.post_as("sk-a", CHAT, &chat(json!({}))).await).await["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("tokens"), &json!("rate_limit_exceeded")));
    let message =
        json!({"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    let refused = server.post_as("sk-a", "/v1/messages", &message).await;
    assert_eq!(refused.status(), 429);
    let headers = refused.headers();
    assert_eq!(headers["anthropic-ratelimit-tokens-limit"], "50");
    assert_eq!(headers["anthropic-ratelimit-tokens-remaining"], "0");
    let reset = headers["anthropic-ratelimit-tokens-reset"].to_str().unwrap().to_owned();
    assert!(reset.starts_with("20") && reset.ends_with('Z'), "{reset}");
    assert_eq!(body(refused).await["error"]["type"], "rate_limit_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_progress_are_limited_until_their_response_is_sent() {
    let script = Script { step: Duration::from_millis(20), ..Script::saying(&"x".repeat(50)) };
    let server = server(script, "[default]\nconcurrent-requests = 1\n", None).await;
    let running = server.post_as("sk-a", CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(running.status(), 200);
    let refused = server.post_as("sk-a", CHAT, &chat(json!({}))).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    let message = body(refused).await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("1 concurrent requests"), "{message}");
    assert_eq!(server.post_as("sk-b", CHAT, &chat(json!({"max_tokens": 1}))).await.status(), 200);
    events(running).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.post_as("sk-a", CHAT, &chat(json!({"max_tokens": 1}))).await.status() != 200 {
        assert!(Instant::now() < deadline, "the place is given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_counted_by_key_and_model() {
    let script = Script { step: Duration::from_millis(5), ..Script::saying("yes") };
    let server = server(script, "", None).await;
    let whole = body(server.post_as("sk-a", CHAT, &chat(json!({"n": 2}))).await).await;
    let include = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = events(server.post_as("sk-a2", CHAT, &chat(include)).await).await;
    let streamed: Value = serde_json::from_str(&streamed[streamed.len() - 2]).unwrap();
    let embedded =
        body(server.post_as("sk-a", "/v1/embeddings", &json!({"input": ["cat", "dog"]})).await).await;
    let refused = server.post_as("sk-a", CHAT, &chat(json!({"temperature": 9}))).await;
    assert_eq!(refused.status(), 400);
    let results = usage(&server, "sk-a", 3).await;
    let of = |model: &str| results.iter().find(|result| result["model"] == model).unwrap();
    let sum =
        |field: &str| whole["usage"][field].as_u64().unwrap() + streamed["usage"][field].as_u64().unwrap();
    let chat_usage = of("scripted");
    assert_eq!(chat_usage["num_model_requests"], 2, "{results:?}");
    assert_eq!(chat_usage["api_key_id"], "team-a");
    assert_eq!(chat_usage["input_tokens"], sum("prompt_tokens"));
    assert_eq!(chat_usage["output_tokens"], sum("completion_tokens"));
    let texts = of("no-embeddings");
    assert_eq!(texts["input_tokens"], embedded["usage"]["prompt_tokens"]);
    assert_eq!(texts["output_tokens"], 0);
    assert!(usage(&server, "sk-b", 0).await.is_empty(), "another account");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_client_that_goes_count() {
    let script = Script { step: Duration::from_millis(10), ..Script::saying(&"x".repeat(200)) };
    let server = server(script, "", None).await;
    let mut response = server.post_as("sk-a", CHAT, &chat(json!({"stream": true}))).await;
    for _ in 0..4 {
        response.chunk().await.unwrap();
    }
    drop(response);
    let results = usage(&server, "sk-a", 1).await;
    let n = results[0]["output_tokens"].as_u64().unwrap();
    assert!((1..200).contains(&n) && results[0]["input_tokens"].as_u64().unwrap() > 0, "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_before_the_first_token_pays_for_its_prompt() {
    let script = Script { step: Duration::from_millis(400), ..Script::saying("x") };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let server = server(script, "", Some(&path)).await;
    let request = chat(json!({"stream": true}));
    let sent = server.post_as("sk-a", CHAT, &request);
    assert!(tokio::time::timeout(Duration::from_millis(150), sent).await.is_err(), "the head is held");
    let results = usage(&server, "sk-a", 1).await;
    assert!(results[0]["input_tokens"].as_u64().unwrap() > 0, "{results:?}");
    assert!(fs::read_to_string(&path).unwrap().contains("\"outcome\":\"cancelled\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_usage_cover_days() {
    let server = server(Script::saying("yes"), "", None).await;
    let get = async |query: &str| {
        let url = server.url(&format!("/v1/usage{query}"));
        let response = server.client.get(url).bearer_auth("sk-a").send().await.unwrap();
        (response.status().as_u16(), body(response).await)
    };
    let (_, page) = get("").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 7);
    let (_, page) = get("?start_time=1700000000&end_time=1700200000&limit=2").await;
    let starts: Vec<u64> =
        page["data"].as_array().unwrap().iter().map(|day| day["start_time"].as_u64().unwrap()).collect();
    assert_eq!(starts, [1_699_920_000, 1_700_006_400]);
    assert_eq!(page["has_more"], true);
    let next = page["next_page"].as_str().unwrap().to_owned();
    let (_, page) = get(&format!("?start_time=1700000000&end_time=1700200000&limit=2&page={next}")).await;
    assert_eq!((page["data"].as_array().unwrap().len(), &page["has_more"]), (2, &json!(false)));
    for query in ["?limit=32", "?bucket_width=1h", "?start_time=x"] {
        assert_eq!(get(query).await.0, 400, "{query}");
    }
    assert_eq!(get("?start_time=99999999999").await.1["data"], json!([]), "no day of the future");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_has_every_request_to_a_model_and_no_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let server = server(Script::saying("secret answer"), "", Some(&path)).await;
    let request = chat(json!({"messages": [{"role": "user", "content": "secret question"}]}));
    let response = server.post_as("sk-a", CHAT, &request).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let usage = body(response).await["usage"].clone();
    assert_eq!(server.post_as("sk-b", CHAT, &chat(json!({"model": "none"}))).await.status(), 404);
    let deadline = Instant::now() + Duration::from_secs(10);
    let lines: Vec<Value> = loop {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("secret") && !text.contains("sk-"), "{text}");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.len() == 3 || Instant::now() > deadline {
            break lines;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(lines[0]["event"], "started");
    let served = &lines[1];
    assert_eq!((&served["event"], &served["key"]), (&json!("request"), &json!("team-a")));
    assert_eq!((&served["model"], &served["route"]), (&json!("scripted"), &json!(CHAT)));
    assert_eq!((&served["status"], &served["outcome"]), (&json!(200), &json!("completed")));
    assert_eq!(served["request_id"], id);
    for field in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(served[field], usage[field], "{field}");
    }
    assert_eq!((&lines[2]["status"], &lines[2]["outcome"]), (&json!(404), &json!("failed")));
    assert_eq!(verify_chain(&path, None).unwrap().n_lines, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_batch_are_metered_without_quota() {
    let server = server(Script::saying("yes"), "[default]\nrequests-per-minute = 9\n", None).await;
    let line = |idx: usize| json!({"custom_id": idx.to_string(), "method": "POST", "url": CHAT, "body": chat(json!({}))});
    let lines: Vec<String> = (0..20).map(|idx| line(idx).to_string()).collect();
    let form = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: form-data; \
         name=\"file\"; filename=\"x.jsonl\"\r\n\r\n{}\r\n--b--\r\n",
        lines.join("\n")
    );
    let upload = server.client.post(server.url("/v1/files")).bearer_auth("sk-a");
    let upload =
        upload.header("content-type", "multipart/form-data; boundary=b").body(form).send().await.unwrap();
    let file = body(upload).await["id"].clone();
    let request = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
    assert_eq!(server.post_as("sk-a", "/v1/batches", &request).await.status(), 200);
    let results = usage(&server, "sk-a", 20).await;
    assert_eq!(results[0]["num_model_requests"], 20, "{results:?}");
    assert_eq!(server.post_as("sk-a", CHAT, &chat(json!({}))).await.status(), 200, "its quota is untouched");
}
