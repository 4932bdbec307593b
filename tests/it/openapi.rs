//! The OpenAPI document describes every route, every parameter and its range, and the server behaves as
//! described. The page at `/docs` has the same content.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use predict_otron_9000::anthropic;
use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;
use predict_otron_9000::ollama;
use predict_otron_9000::openai::params::{self, ParamTable, Treatment};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::support::embeddings::tiny_encoder;
use crate::support::{
    ENGINE_OPTIONS, Script, Server, embedding_server, json as body, keyed_server, scripted_server,
};

async fn server() -> Server {
    // Room for as many choices as a request may have.
    let options = EngineOptions { queued_requests: 16, ..ENGINE_OPTIONS };
    scripted_server(Script::saying("abc"), Limits::default(), options).await
}

async fn document(server: &Server) -> Value {
    let response = server.get("/openapi.json").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    body(response).await
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("not an object: {value}"))
}

/// An outline of the document.
#[tokio::test]
async fn outline_of_the_document() {
    let document = document(&server().await).await;
    assert_eq!(document["openapi"], "3.1.0");
    let schema = |content: &Value| {
        let data = content.pointer("/schema/properties/data/anyOf/0/contentSchema/anyOf/0");
        let schema = data.unwrap_or(&content["schema"]);
        schema["$ref"]
            .as_str()
            .map_or_else(|| schema.to_string(), |path| path.rsplit('/').next().unwrap().to_owned())
    };
    let contents = |response: &Value| -> Vec<String> {
        let contents = response["content"].as_object().into_iter().flatten();
        contents.map(|(media_type, content)| format!("{media_type}: {}", schema(content))).collect()
    };
    let mut outline = Map::new();
    for (path, operations) in object(&document["paths"]) {
        for (method, operation) in object(operations) {
            let statuses: Vec<&str> = object(&operation["responses"]).keys().map(String::as_str).collect();
            let headers: Vec<&str> =
                object(&operation["responses"]["200"]["headers"]).keys().map(String::as_str).collect();
            let row = json!({
                "id": operation["operationId"],
                "body": contents(&operation["requestBody"]),
                "response": contents(&operation["responses"]["200"]),
                "headers": headers.join(" "),
                "statuses": statuses.join(" "),
            });
            outline.insert(format!("{} {path}", method.to_uppercase()), row);
        }
    }
    insta::assert_json_snapshot!("the_document", outline);
    let schemas = &document["components"]["schemas"];
    let input_type = &schemas["InputType"]["oneOf"];
    assert!(input_type.to_string().contains("search_query"), "{input_type}");
    insta::assert_json_snapshot!("a_request", schemas["ChatCompletionRequest"]["properties"]["stop"]);
    insta::assert_json_snapshot!("a_response", schemas["AssistantMessage"]);
}

#[tokio::test]
async fn documented_routes_are_those_of_the_router() {
    let server = server().await;
    let document = document(&server).await;
    for (path, operations) in object(&document["paths"]) {
        let path = path.replace("{id}", "scripted");
        let documented: BTreeSet<String> =
            object(operations).keys().map(|name| name.to_uppercase()).collect();
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        {
            let answer = server.client.request(method.clone(), server.url(&path)).send().await.unwrap();
            if documented.contains(method.as_str()) {
                let has_body = operations[method.as_str().to_lowercase()].get("requestBody").is_some();
                // POST without a body, and things that are not stored.
                let expected = if has_body {
                    415
                } else if path.starts_with("/v1/models/") && method != Method::GET {
                    // This server manages no models.
                    403
                } else if path.contains("_id}") || path.starts_with("/page/") {
                    404
                } else {
                    200
                };
                assert_eq!(answer.status(), expected, "{method} {path}");
            } else {
                assert_eq!(answer.status(), 405, "{method} {path}");
                let allowed = answer.headers()["allow"].to_str().unwrap().split(',').map(str::to_owned);
                // GET comes with HEAD.
                let allowed: BTreeSet<String> = allowed.filter(|name| name != "HEAD").collect();
                assert_eq!(allowed, documented, "{path}");
            }
        }
    }
}

/// The text of every file below `folder`.
fn source_below(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { source_below(&path) } else { fs::read_to_string(path).unwrap() })
        .collect()
}

/// The router adds its routes in one place, from the rows of which the document is made.
#[test]
fn the_router_has_no_undocumented_routes() {
    let source = source_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http"));
    for (call, n) in
        [(".route(", 1), (".route(route.path(), handler(route))", 1), (".nest(", 0), (".merge(", 0)]
    {
        assert_eq!(source.matches(call).count(), n, "{call}");
    }
}

const REQUESTS: [(&str, ParamTable); 17] = [
    ("ChatCompletionRequest", params::CHAT),
    ("CompletionRequest", params::COMPLETIONS),
    ("ResponsesRequest", params::RESPONSES),
    ("MessagesRequest", anthropic::params::MESSAGES),
    ("CountTokensRequest", anthropic::params::COUNT_TOKENS),
    ("EmbeddingsRequest", params::EMBEDDINGS),
    ("OllamaChatRequest", ollama::params::CHAT),
    ("OllamaGenerateRequest", ollama::params::GENERATE),
    ("OllamaEmbedRequest", ollama::params::EMBED),
    ("OllamaEmbeddingsRequest", ollama::params::EMBEDDINGS),
    ("OllamaShowRequest", ollama::params::SHOW),
    ("OllamaPullRequest", ollama::params::PULL),
    ("OllamaDeleteRequest", ollama::params::DELETE),
    ("RerankRequest", params::RERANK),
    ("ScoreRequest", params::SCORE),
    ("TokenizeRequest", params::TOKENIZE),
    ("DetokenizeRequest", params::DETOKENIZE),
];

#[tokio::test]
async fn every_parameter_is_documented() {
    let document = document(&server().await).await;
    for (name, rows) in REQUESTS {
        let schema = &document["components"]["schemas"][name];
        let fields: BTreeSet<&str> = object(&schema["properties"]).keys().map(String::as_str).collect();
        let rows = || rows.iter().copied().flatten();
        let first = |name: &str| rows().find(|(row, _)| *row == name).map(|(_, treatment)| treatment);
        let honored: BTreeSet<&str> = rows()
            .map(|(name, _)| *name)
            .filter(|name| matches!(first(name), Some(Treatment::Honored | Treatment::Parsed)))
            .collect();
        assert_eq!(fields, honored, "{name}");
        assert!(schema.get("additionalProperties").is_none(), "{name} accepts unknown fields");
        let description = schema["description"].as_str().unwrap();
        for (row, _) in
            rows().filter(|(_, treatment)| !matches!(treatment, Treatment::Honored | Treatment::Parsed))
        {
            assert!(description.contains(&format!("`{row}`")), "{name}: {row}");
        }
    }
}

#[tokio::test]
async fn every_field_of_a_request_has_a_description() {
    let document = document(&server().await).await;
    for (name, _) in REQUESTS {
        for (field, schema) in object(&document["components"]["schemas"][name]["properties"]) {
            assert!(schema["description"].is_string(), "{name}.{field}: {schema}");
        }
    }
}

/// Sends each number's documented bounds and values beyond them. Returns how many were checked.
async fn check_ranges(server: &Server, path: &str, schema: &Value, plain: &Value) -> usize {
    let mut n_checked = 0;
    for (name, field) in object(&schema["properties"]) {
        let step = if field["type"].to_string().contains("integer") { 1.0 } else { 0.005 };
        for (bound, beyond) in [("minimum", -step), ("maximum", step)] {
            let Some(limit) = field[bound].as_f64() else { continue };
            let value = |x: f64| if step == 1.0 { json!(x as i64) } else { json!(x) };
            for (value, accepted) in [(value(limit), true), (value(limit + beyond), false)] {
                let mut request = plain.clone();
                request[name] = value.clone();
                match name.as_str() {
                    "top_logprobs" => request["logprobs"] = json!(true),
                    "best_of" => request["n"] = json!(1),
                    _ => {}
                }
                let response = server.post(path, &request).await;
                assert_eq!(response.status() == 200, accepted, "{path} {name}: {value}");
                if !accepted {
                    assert_eq!(response.status(), 400, "{path} {name}: {value}");
                    assert_eq!(body(response).await["error"]["param"], *name);
                }
                n_checked += 1;
            }
        }
    }
    n_checked
}

#[tokio::test]
async fn documented_ranges_are_enforced() {
    let server = server().await;
    let document = document(&server).await;
    let schema = |name: &str| &document["components"]["schemas"][name];
    let plain = json!({"messages": [{"role": "user", "content": "hi"}]});
    let n = check_ranges(&server, "/v1/chat/completions", schema("ChatCompletionRequest"), &plain).await;
    assert!(n > 40, "{n}");
    let plain = json!({"prompt": "hi"});
    let n = check_ranges(&server, "/v1/completions", schema("CompletionRequest"), &plain).await;
    assert!(n > 40, "{n}");
    for (fields, ok) in [
        (json!({"stop": vec!["a"; 32]}), true),
        (json!({"stop": vec!["a"; 33]}), false),
        (json!({"max_tokens": -1, "max_completion_tokens": -1}), true),
        (json!({"stop": ""}), false),
        (json!({"stop": "x".repeat(1024)}), true),
        (json!({"stop": "x".repeat(1025)}), false),
        (json!({"logit_bias": {"97": 100}}), true),
        (json!({"logit_bias": {"97": 100.5}}), false),
        (json!({"max_tokens": 0, "max_completion_tokens": 3}), false),
        (json!({"stop_token_ids": vec![1; 64]}), true),
        (json!({"stop_token_ids": vec![1; 65]}), false),
    ] {
        let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
        request.as_object_mut().unwrap().extend(object(&fields).clone());
        assert_eq!(server.post("/v1/chat/completions", &request).await.status() == 200, ok, "{fields}");
    }
    let server = embedding_server(Limits::default(), Box::new(tiny_encoder)).await;
    let plain = json!({"input": "cat", "force_dimensions": true});
    assert!(check_ranges(&server, "/v1/embeddings", schema("EmbeddingsRequest"), &plain).await > 0);
    let plain = json!({"query": "cat", "documents": ["dog"]});
    assert!(check_ranges(&server, "/v1/rerank", schema("RerankRequest"), &plain).await > 0);
}

#[tokio::test]
async fn references_resolve() {
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(path)) = fields.get("$ref") {
                    let path = path.strip_prefix('#').unwrap();
                    assert!(document.pointer(path).is_some(), "{path}");
                }
                fields.values().for_each(|value| check(value, document));
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, document)),
            _ => {}
        }
    }
    let document = document(&server().await).await;
    check(&document, &document);
}

#[tokio::test]
async fn the_document_requires_a_key_if_the_server_does() {
    let open = document(&server().await).await;
    assert_eq!(open["security"], json!([{}, {"apiKey": []}, {"apiKeyHeader": []}]));
    let server = keyed_server(&["sk-one"], Limits::default()).await;
    let keyed =
        body(server.client.get(server.url("/openapi.json")).bearer_auth("sk-one").send().await.unwrap())
            .await;
    assert_eq!(keyed["security"], json!([{"apiKey": []}, {"apiKeyHeader": []}]));
    for (path, operations) in object(&keyed["paths"]) {
        for operation in object(operations).values() {
            let needs_key = operation.get("security").is_none();
            let open = ["/health", "/readyz", "/livez", "/", "/page/{path}"];
            assert_eq!(needs_key, !open.contains(&path.as_str()), "{path}");
            assert_eq!(operation["responses"].get("401").is_some(), needs_key, "{path}");
        }
    }
}

#[tokio::test]
async fn the_docs_page_is_complete_and_self_contained() {
    let server = server().await;
    let document = document(&server).await;
    let response = server.get("/docs").await;
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let page = response.text().await.unwrap();
    for path in object(&document["paths"]).keys() {
        assert!(page.contains(path), "{path}");
    }
    for name in object(&document["components"]["schemas"]).keys() {
        assert!(page.contains(&format!("<details id=\"{name}\">")), "{name}");
    }
    for row in params::CHAT.iter().copied().flatten() {
        assert!(page.contains(&format!("<code>{}</code>", row.0)), "{}", row.0);
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let links = page
        .match_indices("href=\"#")
        .map(|(start, mark)| page[start + mark.len()..].split('"').next().unwrap());
    for link in links {
        assert!(page.contains(&format!("id=\"{link}\"")), "{link}");
    }
}
