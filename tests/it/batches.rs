//! `/v1/files`, `/v1/batches` and `/v1/messages/batches`, against a scripted model; and a batch whose server is killed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use serde_json::{Value, json};

use crate::cli::{Running, program};
use crate::support::{ENGINE_OPTIONS, Script, scripted_server};

/// A client with an API key.
struct Client {
    http: reqwest::Client,
    base: String,
    key: &'static str,
}

impl Client {
    fn new(base: String, key: &'static str) -> Self {
        Self { http: reqwest::Client::new(), base, key }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, String) {
        let response = request.bearer_auth(self.key).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send(self.http.get(self.base.clone() + path)).await
    }

    async fn delete(&self, path: &str) -> (u16, String) {
        self.send(self.http.delete(self.base.clone() + path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let request = self.http.post(self.base.clone() + path).header("content-type", "application/json");
        self.send(request.body(body.to_string())).await
    }

    async fn form(&self, fields: &[(&str, &str)], file: Option<&str>) -> (u16, String) {
        let part = |name: &str, more: &str, value: &str| {
            format!("--cut\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n{value}\r\n")
        };
        let mut form: String = fields.iter().map(|(name, value)| part(name, "", value)).collect();
        form.extend(file.map(|file| part("file", "; filename=\"in.jsonl\"", file)));
        let request = self.http.post(self.base.clone() + "/v1/files");
        let request = request.header("content-type", "multipart/form-data; boundary=cut");
        self.send(request.body(form + "--cut--\r\n")).await
    }

    async fn upload(&self, lines: &[Value]) -> String {
        let file: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let (status, body) = self.form(&[("purpose", "batch")], Some(&file)).await;
        assert_eq!(status, 200, "{body}");
        text(&parsed(&body)["id"])
    }

    async fn batch(&self, endpoint: &str, lines: &[Value]) -> String {
        let file = self.upload(lines).await;
        let request = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
        let (status, body) = self.post("/v1/batches", &request).await;
        assert_eq!(status, 200, "{body}");
        text(&parsed(&body)["id"])
    }

    /// Waits until a batch of either API has ended.
    async fn ended(&self, path: &str) -> Value {
        let started = Instant::now();
        loop {
            let (status, body) = self.get(path).await;
            assert_eq!(status, 200, "{body}");
            let batch = parsed(&body);
            let is_over = |state: &Value| {
                ["completed", "failed", "cancelled", "expired", "ended"].iter().any(|end| state == end)
            };
            if is_over(&batch["status"]) || is_over(&batch["processing_status"]) {
                return batch;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{batch}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The lines of a file.
    async fn lines(&self, id: &Value) -> Vec<Value> {
        let (status, body) = self.get(&format!("/v1/files/{}/content", text(id))).await;
        assert_eq!(status, 200, "{body}");
        body.lines().map(parsed).collect()
    }
}

fn parsed(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn line(id: impl ToString, endpoint: &str, body: Value) -> Value {
    json!({"custom_id": id.to_string(), "method": "POST", "url": endpoint, "body": body})
}

const CHAT: &str = "/v1/chat/completions";

fn chat(id: impl ToString, content: &str, max_tokens: usize) -> Value {
    let messages = json!([{"role": "user", "content": content}]);
    line(id, CHAT, json!({"messages": messages, "max_tokens": max_tokens}))
}

async fn server(script: Script) -> crate::support::Server {
    let options = EngineOptions { queued_requests: 64, ..ENGINE_OPTIONS };
    scripted_server(script, Limits { files_bytes: 1 << 20, ..Limits::default() }, options).await
}

#[tokio::test]
async fn files_are_uploaded_listed_and_deleted_by_their_owner() {
    let server = server(Script::saying("x")).await;
    let client = Client::new(server.url(""), "a");
    let (status, body) = client.form(&[("purpose", "user_data")], Some("{}\nü\n")).await;
    let file = parsed(&body);
    assert_eq!((status, &file["bytes"], &file["purpose"]), (200, &json!(6), &json!("user_data")), "{body}");
    assert_eq!((&file["filename"], &file["expires_at"]), (&json!("in.jsonl"), &Value::Null));
    let id = text(&file["id"]);
    let expiring =
        [("expires_after[anchor]", "created_at"), ("purpose", "batch"), ("expires_after[seconds]", "3600")];
    let kept = parsed(&client.form(&expiring, Some("x")).await.1);
    let lifetime = kept["expires_at"].as_u64().unwrap() - kept["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 3600);
    assert_eq!(client.get(&format!("/v1/files/{id}/content")).await, (200, "{}\nü\n".to_owned()));
    let listed = parsed(&client.get("/v1/files?purpose=batch").await.1);
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["data"][0]["id"]), (1, &kept["id"]));
    assert_eq!(parsed(&client.get("/v1/files?limit=1&order=asc").await.1)["has_more"], true);
    let other = Client::new(server.url(""), "b");
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(other.get(&path).await.0, 404, "{path}");
    }
    assert_eq!(other.delete(&format!("/v1/files/{id}")).await.0, 404);
    assert_eq!(parsed(&other.get("/v1/files").await.1)["data"], json!([]));
    assert_eq!(parsed(&client.delete(&format!("/v1/files/{id}")).await.1)["deleted"], true);
    assert_eq!(client.get(&format!("/v1/files/{id}")).await.0, 404);
}

#[tokio::test]
async fn uploads_that_are_wrong_or_too_large_say_so() {
    let server = server(Script::saying("x")).await;
    let client = Client::new(server.url(""), "a");
    let large = "x".repeat(600_000);
    for (fields, file, expected) in [
        (&[("purpose", "batch")][..], None, "`file`"),
        (&[], Some("x"), "`purpose`"),
        (&[("purpose", "batch"), ("more", "x")], Some("x"), "`more`"),
        (&[("purpose", "batch"), ("expires_after[seconds]", "5")], Some("x"), "3600"),
        (&[("purpose", "batch")], Some(&*large), "--files-size"),
    ] {
        let (status, body) = client.form(fields, file).await;
        assert!(status == 400 && body.contains(expected), "{status} {body}");
    }
    assert_eq!(client.post("/v1/files", &json!({})).await.0, 415);
    assert_eq!(parsed(&client.get("/v1/files").await.1)["data"], json!([]), "nothing is left over");
}

#[tokio::test]
async fn a_batch_is_answered_line_by_line() {
    let server = server(Script::saying("hello")).await;
    let client = Client::new(server.url(""), "a");
    let mut lines: Vec<Value> = (0..20).map(|i| chat(i, &format!("question {i}"), 20)).collect();
    lines.push(line("wrong", CHAT, json!({"messages": []})));
    let id = client.batch(CHAT, &lines).await;
    let batch = client.ended(&format!("/v1/batches/{id}")).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 21, "completed": 20, "failed": 1}));
    assert_eq!(batch["usage"]["output_tokens"], 20 * 6, "each with its end");
    let results = client.lines(&batch["output_file_id"]).await;
    let ids: Vec<String> = results.iter().map(|result| text(&result["custom_id"])).collect();
    assert_eq!(ids, (0..20).map(|i| i.to_string()).collect::<Vec<_>>(), "in the order of the file");
    for result in &results {
        assert_eq!((&result["response"]["status_code"], &result["error"]), (&json!(200), &Value::Null));
        assert_eq!(result["response"]["body"]["choices"][0]["message"]["content"], "hello");
        assert!(text(&result["response"]["request_id"]).starts_with("req_"));
    }
    let errors = client.lines(&batch["error_file_id"]).await;
    assert_eq!((errors.len(), &errors[0]["custom_id"]), (1, &json!("wrong")));
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "messages", "{errors:?}");
    let listed = parsed(&client.get("/v1/batches").await.1);
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["first_id"]), (1, &json!(id)));
    let other = Client::new(server.url(""), "b");
    assert_eq!(other.get(&format!("/v1/batches/{id}")).await.0, 404);
    assert_eq!(other.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await.0, 404);
    let late = client.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await;
    assert!(late.0 == 400 && late.1.contains("has ended"), "{late:?}");
}

#[tokio::test]
async fn batches_are_for_every_endpoint_that_has_a_model() {
    let server = server(Script::saying("hello")).await;
    let client = Client::new(server.url(""), "a");
    let body = json!({"prompt": "a", "input": "a", "max_tokens": 3, "max_output_tokens": 3});
    for (endpoint, expected) in
        [("/v1/completions", "choices"), ("/v1/responses", "output"), ("/v1/decisions", "answers")]
    {
        let mut body = body.clone();
        let fields = body.as_object_mut().unwrap();
        match endpoint {
            "/v1/completions" => fields.retain(|name, _| ["prompt", "max_tokens"].contains(&&**name)),
            "/v1/responses" => fields.retain(|name, _| ["input", "max_output_tokens"].contains(&&**name)),
            _ => {
                body =
                    json!({"input": "a", "questions": [{"type": "predicate", "instructions": "It is so."}]})
            }
        }
        let id = client.batch(endpoint, &[line("x", endpoint, body)]).await;
        let batch = client.ended(&format!("/v1/batches/{id}")).await;
        assert_eq!(batch["request_counts"]["completed"], 1, "{endpoint}: {batch}");
        let results = client.lines(&batch["output_file_id"]).await;
        assert!(!results[0]["response"]["body"][expected].is_null(), "{results:?}");
    }
    // Those of one second are in no order.
    let listed = parsed(&client.get("/v1/batches").await.1);
    let is_response = |batch: &&Value| batch["endpoint"] == "/v1/responses";
    let response = listed["data"].as_array().unwrap().iter().find(is_response).unwrap();
    let stored = text(&client.lines(&response["output_file_id"]).await[0]["response"]["body"]["id"]);
    assert_eq!(client.get(&format!("/v1/responses/{stored}")).await.0, 200, "the owner has it");
}

#[tokio::test]
async fn mistakes_are_named() {
    let server = server(Script::saying("hello")).await;
    let client = Client::new(server.url(""), "a");
    let id =
        client.batch(CHAT, &[chat(1, "a", 1), chat(1, "a", 1), line(2, "/v1/completions", json!({}))]).await;
    let batch = client.ended(&format!("/v1/batches/{id}")).await;
    assert_eq!(batch["status"], "failed");
    let found: Vec<_> =
        batch["errors"]["data"].as_array().unwrap().iter().map(|e| (&e["line"], &e["code"])).collect();
    assert_eq!(found, [(&json!(2), &json!("duplicate_custom_id")), (&json!(3), &json!("mismatched_url"))]);
    let file = client.upload(&[chat(1, "a", 1)]).await;
    let other = text(&parsed(&client.form(&[("purpose", "user_data")], Some("x")).await.1)["id"]);
    for (file, endpoint, window, status, param) in [
        (&*file, "/v1/models", "24h", 400, "endpoint"),
        (&file, CHAT, "24d", 400, "completion_window"),
        (&file, CHAT, "0h", 400, "completion_window"),
        ("file-1", CHAT, "24h", 404, "input_file_id"),
        (&other, CHAT, "24h", 400, "input_file_id"),
    ] {
        let request = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": window});
        let (found, body) = client.post("/v1/batches", &request).await;
        assert_eq!((found, &parsed(&body)["error"]["param"]), (status, &json!(param)), "{body}");
    }
}

#[tokio::test]
async fn a_batch_waits_while_anybody_else_is_served() {
    let script = Script { step: Duration::from_millis(3), ..Script::saying(&"a".repeat(400)) };
    let server = server(script).await;
    let client = Client::new(server.url(""), "a");
    let stream = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "stream": true});
    let live = server.post(CHAT, &stream).await;
    let id = client.batch(CHAT, &[chat(1, "a", 2), chat(2, "a", 2)]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let batch = parsed(&client.get(&format!("/v1/batches/{id}")).await.1);
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("in_progress"), &json!(0)));
    live.text().await.unwrap();
    assert_eq!(client.ended(&format!("/v1/batches/{id}")).await["request_counts"]["completed"], 2);
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_it_has() {
    let script = Script { step: Duration::from_millis(3), ..Script::saying(&"a".repeat(400)) };
    let server = server(script).await;
    let client = Client::new(server.url(""), "a");
    let mut lines: Vec<Value> = (0..3).map(|i| chat(i, "short", 1)).collect();
    lines.extend((3..30).map(|i| chat(i, "long", 400)));
    let id = client.batch(CHAT, &lines).await;
    let path = format!("/v1/batches/{id}");
    while parsed(&client.get(&path).await.1)["request_counts"]["completed"].as_u64() < Some(3) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (status, body) = client.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((status, &parsed(&body)["status"]), (200, &json!("cancelling")), "{body}");
    let batch = client.ended(&path).await;
    assert_eq!(batch["status"], "cancelled");
    let counts = &batch["request_counts"];
    assert_eq!(counts["completed"].as_u64().unwrap() + counts["failed"].as_u64().unwrap(), 30);
    let results = client.lines(&batch["output_file_id"]).await;
    assert_eq!(counts["completed"], results.len());
    assert!((3..12).contains(&results.len()), "{counts}");
}

#[tokio::test]
async fn a_batch_that_fails_keeps_what_it_has() {
    let script = Script { step: Duration::from_millis(3), ..Script::saying(&"a".repeat(400)) };
    let server = server(script).await;
    let client = Client::new(server.url(""), "a");
    // More than one part of the file, so that it is read again.
    let mut lines: Vec<Value> = (0..3).map(|i| chat(i, "short", 1)).collect();
    lines.extend((3..30).map(|i| chat(i, &"long ".repeat(8), 60)));
    lines.extend((30..50).map(|i| line(i, CHAT, json!({"messages": [], "user": "x".repeat(10_000)}))));
    let id = client.batch(CHAT, &lines).await;
    let path = format!("/v1/batches/{id}");
    while parsed(&client.get(&path).await.1)["request_counts"]["completed"].as_u64() < Some(3) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let input = text(&parsed(&client.get(&path).await.1)["input_file_id"]);
    assert_eq!(client.delete(&format!("/v1/files/{input}")).await.0, 200);
    let batch = client.ended(&path).await;
    assert_eq!(batch["status"], "failed", "{batch}");
    assert!(text(&batch["errors"]["data"][0]["message"]).contains("was deleted"), "{batch}");
    assert_eq!(client.lines(&batch["output_file_id"]).await.len(), batch["request_counts"]["completed"]);
}

#[tokio::test]
async fn message_batches_have_the_form_of_their_api() {
    let server = server(Script::saying("hello")).await;
    let client = Client::new(server.url(""), "a");
    const PATH: &str = "/v1/messages/batches";
    let params = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let request = |id: &str, params: &Value| json!({"custom_id": id, "params": params});
    let wrong = json!({"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "x"}]}]});
    let requests = json!({"requests": [request("a", &params), request("b", &wrong), request("c", &params)]});
    let (status, body) = client.post(PATH, &requests).await;
    let created = parsed(&body);
    assert_eq!((status, &created["type"]), (200, &json!("message_batch")), "{body}");
    assert_eq!(created["request_counts"]["processing"], 3);
    assert!(text(&created["created_at"]).ends_with('Z'));
    let id = text(&created["id"]);
    let batch = client.ended(&format!("{PATH}/{id}")).await;
    let counts = json!({"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0});
    assert_eq!(batch["request_counts"], counts, "{batch}");
    let (_, results) = client.get(&text(&batch["results_url"])).await;
    let results: Vec<Value> = results.lines().map(parsed).collect();
    assert_eq!(results.iter().map(|r| text(&r["custom_id"])).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(results[0]["result"]["type"], "succeeded");
    assert_eq!(results[0]["result"]["message"]["content"][0]["text"], "hello");
    assert_eq!(results[1]["result"]["type"], "errored");
    assert_eq!(results[1]["result"]["error"]["type"], "error", "{results:?}");
    assert_eq!(parsed(&client.get(PATH).await.1)["data"][0]["id"], json!(id));
    assert_eq!(client.get(&format!("/v1/batches/{id}")).await.0, 404, "it is no batch of the other API");
    assert_eq!(parsed(&client.get("/v1/files").await.1)["data"], json!([]), "its files are its own");
    let (status, body) = client.delete(&format!("{PATH}/{id}")).await;
    assert_eq!((status, &parsed(&body)["type"]), (200, &json!("message_batch_deleted")));
    let (status, body) = client.get(&format!("{PATH}/{id}")).await;
    assert_eq!((status, &parsed(&body)["error"]["type"]), (404, &json!("not_found_error")), "{body}");
    for requests in
        [json!([]), json!([request("a", &params), request("a", &params)]), json!([request("", &params)])]
    {
        assert_eq!(client.post(PATH, &json!({"requests": requests})).await.0, 400, "{requests}");
    }
}

#[tokio::test]
async fn a_killed_server_goes_on_with_its_batches() {
    let folder = tempfile::tempdir().unwrap();
    let start = |folder: std::path::PathBuf| {
        tokio::task::spawn_blocking(move || {
            let mut command = program();
            command.arg("--state-dir").arg(folder);
            Running::start(command)
        })
    };
    let mut server = start(folder.path().to_owned()).await.unwrap();
    let client = Client::new(format!("http://{}", server.address), "a");
    let lines: Vec<Value> =
        (0..80).map(|i| chat(i, &format!("Write a story about {i} birds."), 24)).collect();
    let id = client.batch(CHAT, &lines).await;
    let path = format!("/v1/batches/{id}");
    let n_done = async |client: &Client| {
        parsed(&client.get(&path).await.1)["request_counts"]["completed"].as_u64().unwrap()
    };
    let mut before = 0;
    for n in [5, 30] {
        let client = Client::new(format!("http://{}", server.address), "a");
        while n_done(&client).await < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        before = n_done(&client).await;
        server.signal("KILL");
        server.wait();
        server = start(folder.path().to_owned()).await.unwrap();
    }
    let client = Client::new(format!("http://{}", server.address), "a");
    assert!(before < 80, "it was killed in the middle");
    assert!(n_done(&client).await >= before, "nothing is lost");
    let batch = client.ended(&path).await;
    assert_eq!(batch["request_counts"], json!({"total": 80, "completed": 80, "failed": 0}));
    let results = client.lines(&batch["output_file_id"]).await;
    let ids: HashSet<String> = results.iter().map(|result| text(&result["custom_id"])).collect();
    assert_eq!((results.len(), ids.len()), (80, 80), "nothing is done twice");
    let tokens =
        results.iter().map(|r| r["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap());
    assert_eq!(batch["usage"]["output_tokens"], tokens.sum::<u64>());
}
