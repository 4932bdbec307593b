//! A route as one row of data: its path, its handler, and everything the OpenAPI document says of it.

use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter};
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};

use crate::app::App;
use crate::openai::params::Rows;

/// A path and what answers it.
pub struct Route {
    /// As axum writes it: `{*id}` is an id that may hold slashes.
    pub path: &'static str,
    pub handler: fn(MethodFilter) -> MethodRouter<App>,
    /// A name for it in generated clients.
    pub id: &'static str,
    /// The routes it stands with.
    pub group: &'static str,
    pub summary: &'static str,
    /// What it is asked with; a route with a body is asked by POST, the others by GET.
    pub body: Option<Body>,
    /// Media types of the answer, and what stands in it.
    pub answers: &'static [(&'static str, SchemaOf)],
    /// Headers of the answer, beside those of every answer.
    pub headers: &'static [&'static str],
    /// Errors, beside those that every route may answer with.
    pub errors: &'static [u16],
}

/// What a request holds.
pub struct Body {
    pub schema: SchemaOf,
    pub parameters: Rows,
}

pub const JSON: &str = "application/json";
pub const EVENTS: &str = "text/event-stream";
pub const HTML: &str = "text/html";
pub const TEXT: &str = "text/plain";

/// What orchestrators ask, which have no keys.
pub const PROBES: [&str; 3] = ["/health", "/readyz", "/livez"];

/// Writes a type's schema.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The schema of `T`.
pub fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema of a JSON object of which no more is said.
pub fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

impl Route {
    pub fn method(&self) -> Method {
        if self.body.is_some() { Method::POST } else { Method::GET }
    }

    /// What answers it.
    pub fn response(&self) -> MethodRouter<App> {
        (self.handler)(if self.body.is_some() { MethodFilter::POST } else { MethodFilter::GET })
    }

    /// Whether it asks for a key where keys are set.
    pub fn needs_key(&self) -> bool {
        !PROBES.contains(&self.path)
    }

    /// Its path as OpenAPI writes it, and the parameter in it.
    pub fn template(&self) -> (String, Option<&'static str>) {
        let parameter = self.path.split_once("{*").map(|(_, rest)| rest.trim_end_matches('}'));
        (self.path.replace('*', ""), parameter)
    }
}
