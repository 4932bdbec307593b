//! A route as one row of data: its path, its handler, and its description for the OpenAPI document.

use axum::http::{HeaderMap, Method};
use axum::routing::{MethodFilter, MethodRouter};
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};

use super::page::ASSET_PREFIX;
use crate::app::{App, RequestClass};
use crate::openai::params::ParamTable;

/// A path, its handler and its description.
pub struct Route {
    /// The path in axum's syntax: `{*id}` is an id that may contain slashes. A method before it, as in
    /// `DELETE /v1/x/{id}`, replaces POST for a route with a body and GET for one without.
    pub path: &'static str,
    /// The class by which requests are admitted; `None` for routes that cost next to nothing.
    pub admission: Option<RequestClass>,
    /// Binds the handler to a method.
    pub handler: fn(MethodFilter) -> MethodRouter<App>,
    /// The name of the function in generated clients.
    pub operation_id: &'static str,
    /// The group of routes in which the documentation lists it.
    pub tag: &'static str,
    /// One line of documentation.
    pub summary: &'static str,
    /// The body of a request.
    pub request: Option<RequestBody>,
    /// Media types of the response, each with its schema.
    pub responses: &'static [(&'static str, SchemaFn)],
    /// Headers of the response, besides those of every response.
    pub response_headers: &'static [&'static str],
    /// Status codes of errors, besides those of every route.
    pub error_statuses: &'static [u16],
}

/// The body of a request.
pub struct RequestBody {
    /// Its media type.
    pub media_type: &'static str,
    /// The type of the body.
    pub schema: SchemaFn,
    /// The treatment of each of its fields.
    pub parameters: ParamTable,
}

/// The media type of JSON.
pub const JSON: &str = "application/json";
/// The media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// The media type of JSON values, one per line.
pub const JSON_LINES: &str = "application/x-jsonl";
/// The media type of JSON values, one per line, as Ollama calls it.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of forms with files.
pub const FORM: &str = "multipart/form-data";
/// The media type of bytes.
pub const BINARY: &str = "application/octet-stream";
/// The media type of HTML.
pub const HTML: &str = "text/html";
/// The media type of plain text.
pub const TEXT: &str = "text/plain";

/// Paths of probes. They need no API key, because orchestrators have none.
pub const PROBES: [&str; 3] = ["/health", "/readyz", "/livez"];

/// Whether requests for a path need an API key on a server that requires one. The chat page needs none: it is the same
/// for everyone, and asks for the key.
pub fn needs_key(path: &str) -> bool {
    !PROBES.contains(&path) && path != "/" && !path.starts_with(ASSET_PREFIX)
}

/// The beginning of the paths of Anthropic's API.
const ANTHROPIC: &str = "/v1/messages";

/// Whether a path belongs to Anthropic's API.
pub fn is_anthropic(path: &str) -> bool {
    path.strip_prefix(ANTHROPIC).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a client speaks Anthropic's API, which its version says.
pub fn has_anthropic_version(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Whether a path belongs to Ollama's API.
pub fn is_ollama(path: &str) -> bool {
    path.starts_with("/api/")
}

/// A function that returns the schema of a type.
pub type SchemaFn = fn(&mut SchemaGenerator) -> Schema;

/// Returns the schema of `T`.
pub fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Returns the schema of an arbitrary JSON object.
pub fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// The route that a client may mean by a path that is none: one that the path ends with, whatever slashes, versions or
/// other text its base URL has put before it. The longest one, and of equally long ones that with a version.
pub fn meant_by<'a>(routes: &'a [Route], path: &str) -> Option<&'a Route> {
    fn segments(path: &str) -> Vec<&str> {
        path.split('/').filter(|segment| !segment.is_empty()).collect()
    }
    let asked = segments(path);
    let n_matched = |route: &&Route| {
        let own = segments(route.path().trim_start_matches("/v1"));
        let is_equal = |(own, asked): (&&str, &&str)| own.starts_with('{') || own == asked;
        let is_end = own.len() <= asked.len() && own.iter().rev().zip(asked.iter().rev()).all(is_equal);
        if is_end { own.len() } else { 0 }
    };
    let best = routes.iter().max_by_key(|route| (n_matched(route), route.path().starts_with("/v1")));
    best.filter(|route| n_matched(route) > 0)
}

impl Route {
    /// The path in axum's syntax.
    pub fn path(&self) -> &'static str {
        self.path.split_once(' ').map_or(self.path, |(_, path)| path)
    }

    /// The method that the route takes.
    pub fn method(&self) -> Method {
        match self.path.split_once(' ') {
            Some(("DELETE", _)) => Method::DELETE,
            Some(("POST", _)) => Method::POST,
            _ if self.request.is_some() => Method::POST,
            _ => Method::GET,
        }
    }

    /// The handler, bound to the route's method.
    pub fn method_router(&self) -> MethodRouter<App> {
        (self.handler)(match self.method() {
            Method::DELETE => MethodFilter::DELETE,
            Method::POST => MethodFilter::POST,
            _ => MethodFilter::GET,
        })
    }

    /// Whether the route needs an API key on a server that requires one.
    pub fn needs_key(&self) -> bool {
        needs_key(self.path())
    }

    /// The path in OpenAPI's syntax, and the names of the parameters in it.
    pub fn template(&self) -> (String, Vec<&'static str>) {
        let names = self.path().split('{').skip(1).filter_map(|rest| rest.split('}').next());
        (self.path().replace('*', ""), names.map(|name| name.trim_start_matches('*')).collect())
    }
}
