//! `GET /openapi.json`: the rows of [`crate::http::table`], the types of [`crate::openai`] and what
//! [`params`](crate::openai::params) says of their fields, as an OpenAPI 3.1 document.

use schemars::Schema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::http::route::{Body, EVENTS, JSON, Route};
use crate::openai::error::ErrorBody;
use crate::openai::params::{Rows, Treatment};

/// What holds for every route.
const ABOUT: &str = "\
An OpenAI-compatible server for chat and embeddings.

Optional fields may be null. Every parameter is honoured, refused by its name, or named in the header \
`x-ignored-params`; unknown ones are of the last kind. A request whose head cannot be read (400) or is too long \
(414, 431) never gets as far as a route and is answered without a body.";

/// Errors that every route may answer with. A route that needs no key never refuses one.
const EVERYWHERE: [u16; 3] = [401, 405, 500];

/// Each error: its status, its name here, what it means, and its headers beside those of every answer.
const ERRORS: &[(u16, &str, &str, &[&str])] = &[
    (
        400,
        "BadRequest",
        "The request is malformed or asks for what is not supported; `param` names the field.",
        &[],
    ),
    (401, "Unauthorized", "Keys are set, and the request shows none of them.", &["www-authenticate"]),
    (404, "NotFound", "No model has this name.", &[]),
    (405, "MethodNotAllowed", "The path was asked with another method.", &["allow"]),
    (408, "RequestTimeout", "The body did not go on.", &[]),
    (413, "ContentTooLarge", "The body is too long.", &[]),
    (415, "UnsupportedMediaType", "The body is not said to be JSON.", &[]),
    (429, "TooManyRequests", "Too much waits already; come back later.", &["retry-after", "retry-after-ms"]),
    (
        500,
        "InternalServerError",
        "A fault of the server's own, which would only happen again.",
        &["x-should-retry"],
    ),
    (503, "ServiceUnavailable", "The server is loading or shutting down, or the model cannot be had.", &[]),
];

/// Each header of answers: what it says, its schema, and whether it is always there.
fn headers() -> Value {
    let header = |description: &str, schema: Value, required: bool| json!({"description": description, "required": required, "schema": schema});
    let text = || json!({"type": "string"});
    let number = || json!({"type": "integer", "minimum": 0});
    json!({
        "x-request-id": header("The request's name in the log: the caller's, or a new one.", text(), true),
        "x-ignored-params": header("Parameters that were accepted and changed nothing.", text(), false),
        "x-cache": header(
            "Where whole answers are kept: whether this one was given before.",
            json!({"enum": ["hit", "miss"]}),
            false,
        ),
        "x-cache-hits": header("How many of the texts were known.", number(), true),
        "www-authenticate": header("How a key is shown.", json!({"const": "Bearer"}), true),
        "allow": header("The methods that the path answers.", text(), true),
        "retry-after": header("Seconds after which the request may succeed.", number(), true),
        "retry-after-ms": header("The same in milliseconds.", number(), true),
        "x-should-retry": header("Tells clients not to try again.", json!({"const": "false"}), true),
    })
}

/// The document of a server with these routes; `key_required` is whether it requires an API key.
pub fn of_routes(routes: &[Route], key_required: bool) -> Value {
    let security = if key_required { json!([{"apiKey": []}]) } else { json!([{}, {"apiKey": []}]) };
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = Schemas {
        of_requests: settings.clone().for_deserialize().into_generator(),
        of_answers: settings.for_serialize().into_generator(),
        parameters: Vec::new(),
    };
    let mut paths = Map::new();
    let mut groups: Vec<&str> = Vec::new();
    for route in routes {
        let (path, _) = route.template();
        let method = route.method().as_str().to_lowercase();
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation(route, &mut schemas);
        if !groups.contains(&route.group) {
            groups.push(route.group);
        }
    }
    let responses: Map<String, Value> = ERRORS
        .iter()
        .map(|&(_, name, description, headers)| {
            let content = json!({JSON: {"schema": (schemas.of_answers.subschema_for::<ErrorBody>())}});
            (name.to_owned(), answer(description, headers, content))
        })
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "predict-otron-9000", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": security,
        "tags": groups.iter().map(|group| json!({"name": group})).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "responses": responses,
            "headers": headers(),
            "parameters": {
                "RequestId": {
                    "name": "x-request-id",
                    "in": "header",
                    "description": "A name for the request, which comes back; one that is longer than 128 bytes does not.",
                    "schema": {"type": "string"},
                },
                "RetryCount": {
                    "name": "x-stainless-retry-count",
                    "in": "header",
                    "description": "Which try of the request this is, from 0; one after the first joins a try that is still computed. What is no number is ignored.",
                    "schema": {"type": "string"},
                },
            },
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A key of `--api-key` or `--api-key-file`, where any are set."},
            },
        },
    })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let content: Map<String, Value> = route
        .answers
        .iter()
        .map(|&(media_type, schema)| {
            let schema = schema(&mut schemas.of_answers);
            let content = match media_type {
                EVENTS => event(&schema, &schemas.of_answers.subschema_for::<ErrorBody>()),
                _ => json!({ "schema": schema }),
            };
            (media_type.to_owned(), content)
        })
        .collect();
    let description = if content.contains_key(EVENTS) {
        "The answer; with `stream`, server-sent events, each with `data`, after the last of which comes `data: [DONE]`. \
         An error in mid-stream is an event, too. With the server's `--heartbeat`, spaces may come before the JSON of an \
         answer that is not streamed, and an error in its place."
    } else {
        "The answer."
    };
    let mut responses =
        Map::from_iter([("200".to_owned(), answer(description, route.headers, content.into()))]);
    let everywhere = EVERYWHERE.into_iter().filter(|&status| status != 401 || route.needs_key());
    let mut errors: Vec<u16> = route.errors.iter().copied().chain(everywhere).collect();
    errors.sort_unstable();
    for (status, name, ..) in errors.iter().flat_map(|status| ERRORS.iter().find(|(row, ..)| row == status)) {
        responses.insert(status.to_string(), json!({"$ref": format!("#/components/responses/{name}")}));
    }
    let mut operation = json!({
        "operationId": route.id,
        "tags": [route.group],
        "summary": route.summary,
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "responses": responses,
    });
    if route.answers.iter().any(|(media_type, _)| *media_type == EVENTS) {
        let parameter = json!({"$ref": "#/components/parameters/RetryCount"});
        operation["parameters"].as_array_mut().into_iter().for_each(|all| all.push(parameter.clone()));
    }
    if let (_, Some(name)) = route.template() {
        let parameter = json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
        operation["parameters"].as_array_mut().into_iter().for_each(|all| all.insert(0, parameter.clone()));
    }
    if let Some(body) = &route.body {
        let schema = schemas.of_request(body);
        operation["requestBody"] = json!({"required": true, "content": {JSON: {"schema": schema}}});
    }
    if !route.needs_key() {
        operation["security"] = json!([]);
    }
    operation
}

/// Where the schema of an event's data stands in that of the event.
pub const EVENT_DATA: &str = "/schema/properties/data/anyOf/0/contentSchema";

/// An event of a stream: a piece of the answer, an error, or the end.
fn event(piece: &Schema, error: &Schema) -> Value {
    let data = json!([
        {"contentMediaType": JSON, "contentSchema": {"anyOf": [piece, error]}},
        {"const": "[DONE]"},
    ]);
    let data = json!({"type": "string", "anyOf": data});
    json!({"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}})
}

fn answer(description: &str, headers: &[&str], content: Value) -> Value {
    let headers: Map<String, Value> = ["x-request-id"]
        .iter()
        .chain(headers)
        .map(|&name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")})))
        .collect();
    json!({"description": description, "headers": headers, "content": content})
}

/// The types of requests and of answers: fields that may be left out of the former are always there in the latter.
struct Schemas {
    of_requests: SchemaGenerator,
    of_answers: SchemaGenerator,
    /// What becomes of the fields of each request, by its type's name.
    parameters: Vec<(String, Rows)>,
}

impl Schemas {
    fn of_request(&mut self, body: &Body) -> Schema {
        let schema = (body.schema)(&mut self.of_requests);
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
        self.parameters.extend(name.map(|name| (name.to_owned(), body.parameters)));
        schema
    }

    /// All of them, by their names.
    fn finish(mut self) -> Map<String, Value> {
        let mut schemas = self.of_answers.take_definitions(true);
        for (name, mut schema) in self.of_requests.take_definitions(true) {
            if let Some((_, rows)) = self.parameters.iter().find(|(row, _)| *row == name) {
                keep_honoured(&mut schema, rows);
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

/// Takes out of a request's schema what the route does not honour, and says of the rest what becomes of it.
fn keep_honoured(schema: &mut Value, rows: Rows) {
    let rows = || rows.iter().copied().flatten();
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        fields.retain(|name, _| rows().any(|(row, how)| row == name && matches!(how, Treatment::Honoured)));
    }
    let mut about = schema["description"].as_str().unwrap_or_default().to_owned();
    let ignored: Vec<String> = rows()
        .filter(|(_, how)| matches!(how, Treatment::Ignored))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    if !ignored.is_empty() {
        about += &format!(
            "\n\nAccepted, without any effect, and named in `x-ignored-params`: {}.",
            ignored.join(", ")
        );
    }
    let refused: Vec<String> = rows()
        .filter_map(|(name, how)| match how {
            Treatment::OnlyDefault { reason, .. } => Some(format!("`{name}` ({reason})")),
            _ => None,
        })
        .collect();
    if !refused.is_empty() {
        about += &format!(
            "\n\nRefused with 400, unless the value means what happens anyway: {}.",
            refused.join(", ")
        );
    }
    schema["description"] = about.into();
}

/// Takes out what says nothing: defaults that are null, and Rust's names for the widths of numbers.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| match (name.as_str(), value) {
                ("default", value) => !value.is_null() && *value != json!([]),
                ("format", Value::String(format)) => !format.starts_with("uint"),
                _ => true,
            });
            if let Some(Value::String(text)) = fields.get_mut("description") {
                // Lines of a doc comment; an empty one begins a paragraph.
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
