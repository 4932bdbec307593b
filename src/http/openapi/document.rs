//! The OpenAPI 3.1 document, made from the rows of [`crate::http::table`], the types of [`crate::openai`] and
//! the treatment of their fields in [`params`](crate::openai::params).

use schemars::Schema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::anthropic::error::AnthropicErrorBody;
use crate::http::route::{EVENT_STREAM, JSON, NDJSON, RequestBody, Route, is_anthropic, is_ollama};
use crate::ollama::error::OllamaErrorBody;
use crate::openai::error::ErrorBody;
use crate::openai::params::{ParamTable, Treatment};

/// The description of the whole API.
const ABOUT: &str = "\
An OpenAI-compatible server for chat and embeddings.

Optional fields may be null. Every parameter is honored, refused by name, or listed in the header \
`x-ignored-params`; unknown parameters are listed there. A request whose head is malformed (400) or too long \
(414, 431) never reaches a route; its response has the envelope, but no `x-request-id`.";

/// Status codes of errors of every route.
const COMMON_ERRORS: [u16; 4] = [400, 403, 405, 500];
/// Status codes of errors of every route that needs a key.
const KEY_ERRORS: [u16; 2] = [401, 429];

/// All errors: status code, name in the document, description, and headers besides those of every response.
const ERRORS: &[(u16, &str, &str, &[&str])] = &[
    (
        400,
        "BadRequest",
        "The request is malformed or needs something unsupported; `param` names the field.",
        &[],
    ),
    (
        401,
        "Unauthorized",
        "The server requires an API key, and the request has none or an invalid one.",
        &["www-authenticate"],
    ),
    (
        403,
        "Forbidden",
        "The host of the request, or the web page that sent it, is not one that the server allows; or models may not be \
         managed.",
        &[],
    ),
    (404, "NotFound", "There is no model of this name.", &[]),
    (405, "MethodNotAllowed", "The route does not support this method.", &["allow"]),
    (409, "Conflict", "The model is in use.", &[]),
    (408, "RequestTimeout", "No request data was received in time.", &[]),
    (413, "ContentTooLarge", "The request body is too long.", &[]),
    (415, "UnsupportedMediaType", "The content type of the request is not JSON.", &[]),
    (
        429,
        "TooManyRequests",
        "The queue is full, or too many requests had a wrong key; retry later.",
        &["retry-after", "retry-after-ms"],
    ),
    (500, "InternalServerError", "An internal error, which a retry would only repeat.", &["x-should-retry"]),
    (503, "ServiceUnavailable", "The server is starting or shutting down, or the model is unavailable.", &[]),
];

/// The headers of responses: description, schema, and whether the header is always present.
fn header_components() -> Value {
    let header = |description: &str, schema: Value, required: bool| json!({"description": description, "required": required, "schema": schema});
    let text = || json!({"type": "string"});
    let number = || json!({"type": "integer", "minimum": 0});
    json!({
        "x-request-id": header("The id of the request in the server's log: the client's own, or a new one.", text(), true),
        "traceparent": header(
            "The trace of the request (W3C Trace Context): the client's own, or a new one, with a span for this request.",
            text(),
            true,
        ),
        "request-id": header("The value of `x-request-id`, under Anthropic's name.", text(), true),
        "x-ignored-params": header("Parameters that were accepted without effect.", text(), false),
        "x-cache": header(
            "Whether the response came from the response cache; absent if the server has none.",
            json!({"enum": ["hit", "miss"]}),
            false,
        ),
        "x-cache-hits": header("The number of texts that were found in the embedding cache.", number(), true),
        "x-truncated-inputs": header("The texts that were truncated, such as `input[3]`.", text(), false),
        "www-authenticate": header("The authentication scheme.", json!({"const": "Bearer"}), true),
        "allow": header("The methods that the route supports.", text(), true),
        "retry-after": header("Seconds to wait before a retry.", number(), true),
        "retry-after-ms": header("Milliseconds to wait before a retry.", number(), true),
        "x-should-retry": header("Tells clients not to retry.", json!({"const": "false"}), true),
    })
}

/// Returns the document of a server with `routes`; `key_required` is whether it requires an API key.
pub fn for_routes(routes: &[Route], key_required: bool) -> Value {
    let mut security = vec![json!({"apiKey": []}), json!({"apiKeyHeader": []})];
    if !key_required {
        security.insert(0, json!({}));
    }
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = Schemas {
        requests: settings.clone().for_deserialize().into_generator(),
        responses: settings.for_serialize().into_generator(),
        parameters: Vec::new(),
    };
    let mut paths = Map::new();
    let mut tags: Vec<&str> = Vec::new();
    for route in routes {
        let (path, _) = route.template();
        let method = route.method().as_str().to_lowercase();
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation(route, &mut schemas);
        if !tags.contains(&route.tag) {
            tags.push(route.tag);
        }
    }
    let responses: Map<String, Value> = ERRORS
        .iter()
        .map(|&(_, name, description, headers)| {
            let content = json!({JSON: {"schema": (schemas.responses.subschema_for::<ErrorBody>())}});
            (name.to_owned(), response_object(description, headers, content))
        })
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "predict-otron-9000", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": security,
        "tags": tags.iter().map(|tag| json!({"name": tag})).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas.into_definitions(),
            "responses": responses,
            "headers": header_components(),
            "parameters": {
                "RequestId": {
                    "name": "x-request-id",
                    "in": "header",
                    "description": "An id for the request, which the response repeats. Ids longer than 128 bytes are replaced.",
                    "schema": {"type": "string"},
                },
                "TraceParent": {
                    "name": "traceparent",
                    "in": "header",
                    "description": "The caller's place in a trace (W3C Trace Context). Invalid values are replaced.",
                    "schema": {"type": "string"},
                },
                "RetryCount": {
                    "name": "x-stainless-retry-count",
                    "in": "header",
                    "description": "Retry count, starting at 0. A retry joins an attempt that is still running. Non-numeric values are ignored.",
                    "schema": {"type": "string"},
                },
            },
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A key from `--api-key` or `--api-key-file`, if the server requires one."},
                "apiKeyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same in another header; `api-key` is accepted, too."},
            },
        },
    })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let has_own_errors = is_anthropic(route.path()) || is_ollama(route.path());
    let error = match is_anthropic(route.path()) {
        true => schemas.responses.subschema_for::<AnthropicErrorBody>(),
        false if is_ollama(route.path()) => schemas.responses.subschema_for::<OllamaErrorBody>(),
        false => schemas.responses.subschema_for::<ErrorBody>(),
    };
    let content: Map<String, Value> = route
        .responses
        .iter()
        .map(|&(media_type, schema)| {
            let schema = schema(&mut schemas.responses);
            let content = match media_type {
                // Its events have names, errors among them, and no end mark.
                EVENT_STREAM if is_anthropic(route.path()) => event_content(&[&schema], None),
                EVENT_STREAM => event_content(&[&schema, &error], Some("[DONE]")),
                _ => json!({ "schema": schema }),
            };
            (media_type.to_owned(), content)
        })
        .collect();
    let description = if content.contains_key(EVENT_STREAM) && is_anthropic(route.path()) {
        "The message. With `stream`, server-sent events, each with `event`, its type, and `data`. An error in mid-stream is \
         an event, too. With the server's `--heartbeat`, the JSON of a response that is not streamed may have leading \
         spaces, and may be an error."
    } else if content.contains_key(EVENT_STREAM) {
        "The completion. With `stream`, server-sent events, each with `data`; the last one is `data: [DONE]`. \
         An error in mid-stream is an event, too. With the server's `--heartbeat`, the JSON of a response that is not \
         streamed may have leading spaces, and may be an error."
    } else if content.contains_key(NDJSON) {
        "The response, as lines of JSON unless `stream` is false; the last one has `done`, that of a download the \
         `status` `success`. An error in mid-stream is a line with `error`. With the server's `--heartbeat`, the JSON of \
         a response that is not streamed may have leading spaces, and may be an error; lines may have leading spaces, \
         too."
    } else {
        "Success."
    };
    let mut responses = Map::from_iter([(
        "200".to_owned(),
        response_object(description, route.response_headers, content.into()),
    )]);
    let for_keys = KEY_ERRORS.into_iter().filter(|_| route.needs_key());
    let mut errors: Vec<u16> =
        route.error_statuses.iter().copied().chain(COMMON_ERRORS).chain(for_keys).collect();
    errors.sort_unstable();
    for (status, name, description, headers) in
        errors.iter().flat_map(|status| ERRORS.iter().find(|(row, ..)| row == status))
    {
        let response = match has_own_errors {
            true => response_object(description, headers, json!({JSON: {"schema": error}})),
            false => json!({"$ref": format!("#/components/responses/{name}")}),
        };
        responses.insert(status.to_string(), response);
    }
    let mut operation = json!({
        "operationId": route.operation_id,
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [
            {"$ref": "#/components/parameters/RequestId"},
            {"$ref": "#/components/parameters/TraceParent"},
        ],
        "responses": responses,
    });
    if route.responses.iter().any(|(media_type, _)| *media_type == EVENT_STREAM) {
        let parameter = json!({"$ref": "#/components/parameters/RetryCount"});
        operation["parameters"].as_array_mut().into_iter().for_each(|all| all.push(parameter.clone()));
    }
    for name in route.template().1.into_iter().rev() {
        let parameter = json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
        operation["parameters"].as_array_mut().into_iter().for_each(|all| all.insert(0, parameter.clone()));
    }
    if let Some(body) = &route.request {
        let schema = schemas.request_schema(body);
        operation["requestBody"] =
            json!({"required": true, "content": {body.media_type: {"schema": schema}}});
    }
    if !route.needs_key() {
        operation["security"] = json!([]);
    }
    operation
}

/// The JSON pointer from an event's content to the schema of its data.
pub const EVENT_DATA_POINTER: &str = "/schema/properties/data/anyOf/0/contentSchema";

/// The content of an event stream. The data of an event is JSON of one of the `schemas`, or the end mark.
fn event_content(schemas: &[&Schema], end_mark: Option<&str>) -> Value {
    let mut data = vec![json!({"contentMediaType": JSON, "contentSchema": {"anyOf": schemas}})];
    data.extend(end_mark.map(|mark| json!({ "const": mark })));
    let data = json!({"type": "string", "anyOf": data});
    json!({"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}})
}

/// A response object; `headers` are those besides the ones of every response.
fn response_object(description: &str, headers: &[&str], content: Value) -> Value {
    let headers: Map<String, Value> = ["x-request-id", "traceparent"]
        .iter()
        .chain(headers)
        .map(|&name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")})))
        .collect();
    json!({"description": description, "headers": headers, "content": content})
}

/// The schemas of requests and of responses. They differ: an optional field may be absent from a request, but is
/// always present in a response.
struct Schemas {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
    /// The treatment of the fields of each request type, by the type's name.
    parameters: Vec<(String, ParamTable)>,
}

impl Schemas {
    /// The schema of a request body.
    fn request_schema(&mut self, body: &RequestBody) -> Schema {
        let schema = (body.schema)(&mut self.requests);
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
        self.parameters.extend(name.map(|name| (name.to_owned(), body.parameters)));
        schema
    }

    /// All schemas, by name.
    fn into_definitions(mut self) -> Map<String, Value> {
        let mut schemas = self.responses.take_definitions(true);
        for (name, mut schema) in self.requests.take_definitions(true) {
            if let Some((_, rows)) = self.parameters.iter().find(|(row, _)| *row == name) {
                describe_treatment(&mut schema, rows);
            }
            let other = schemas.insert(name.clone(), schema.clone());
            assert!(
                other.is_none_or(|other| other == schema),
                "`{name}` names two schemas; rename one of them"
            );
        }
        schemas.values_mut().for_each(tidy);
        schemas
    }
}

/// Removes the fields that the route does not honor from a request's schema, and lists them in its description.
fn describe_treatment(schema: &mut Value, rows: ParamTable) {
    let rows = || rows.iter().copied().flatten();
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        fields.retain(|name, _| {
            let treatment = rows().find(|(row, _)| row == name).map(|(_, treatment)| treatment);
            matches!(treatment, Some(Treatment::Honored | Treatment::Parsed))
        });
    }
    let mut description = schema["description"].as_str().unwrap_or_default().to_owned();
    let ignored: Vec<String> = rows()
        .filter(|(_, treatment)| matches!(treatment, Treatment::Ignored))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    if !ignored.is_empty() {
        description +=
            &format!("\n\nAccepted without effect and listed in `x-ignored-params`: {}.", ignored.join(", "));
    }
    let refused: Vec<String> = rows()
        .filter_map(|(name, treatment)| match treatment {
            Treatment::OnlyDefault { reason, .. } => Some(format!("`{name}` ({reason})")),
            _ => None,
        })
        .collect();
    if !refused.is_empty() {
        description += &format!(
            "\n\nRefused with 400, except for the value that has no effect: {}.",
            refused.join(", ")
        );
    }
    schema["description"] = description.into();
}

/// Removes noise: null defaults and Rust's names of integer types.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| match (name.as_str(), value) {
                ("default", value) => !value.is_null() && *value != json!([]),
                ("format", Value::String(format)) => !format.starts_with("uint"),
                _ => true,
            });
            if let Some(Value::String(text)) = fields.get_mut("description") {
                // A doc comment: its lines are joined, and an empty line begins a paragraph.
                let paragraphs: Vec<String> =
                    text.split("\n\n").map(|lines| lines.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
