//! Extraction of request bodies: JSON within limits of size, shape and time, checked against the known parameters.

use std::future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::sleep;

use super::error::ApiError;
use super::json_shape::JsonShape;
use super::offload;
use super::retry::dedup::to_json;
use super::retry::heartbeat::json_response;
use super::server::shutdown::Shutdown;
use crate::app::{AdmissionGuard, App};
use crate::config::Limits;
use crate::error::{Error, Kind, Result};
use crate::openai::params::{self, NestedKeys, ParamTable};

/// A request body: JSON, not yet parsed.
pub struct JsonObject {
    bytes: Vec<u8>,
    max_values: usize,
    max_containers: usize,
}

/// The deepest nesting of a body. Real requests stay below 20; the schema of a tool may reach 30.
const MAX_DEPTH: usize = 64;

/// The longest list of names in a header. Proxies reject responses with a head of more than 4 or 8 KiB.
const MAX_LIST_BYTES: usize = 1536;

/// The longest name in such a list.
const MAX_NAME_BYTES: usize = 128;

/// Time for the rest of a body once the server is shutting down.
const SHUTDOWN_BODY_GRACE: Duration = Duration::from_secs(1);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = read_json(request, app).await?;
        let limits = app.limits();
        Ok(Self { bytes, max_values: limits.body_values, max_containers: limits.body_containers })
    }
}

impl JsonObject {
    /// Size of the body in bytes.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Parses the request as `T`. Also returns the parameters that are ignored.
    ///
    /// # Errors
    /// When the body is not a JSON object within the limits, or a parameter is refused or has the wrong type.
    pub async fn parse<T>(self, rows: ParamTable) -> Result<(T, IgnoredParams)>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let convert = move |object| {
            let (object, ignored) = check_params(object, rows, params::NESTED)?;
            Ok((crate::openai::from_value(Value::Object(object))?, ignored))
        };
        self.parse_with(convert).await
    }

    /// Parses the body and converts the object with `convert`, on a thread for that if it is large.
    ///
    /// # Errors
    /// When the body is not a JSON object within the limits, or `convert` fails.
    pub async fn parse_with<T: Send + 'static>(
        self,
        convert: impl FnOnce(Map<String, Value>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        offload::run(self.bytes.len(), move || convert(self.into_object()?)).await
    }

    fn into_object(self) -> Result<Map<String, Value>> {
        let Self { bytes, max_values, max_containers } = self;
        let JsonShape { depth, n_values, n_containers } = JsonShape::scan(&bytes);
        if depth > MAX_DEPTH {
            return Err(malformed(format!("the body is nested deeper than {MAX_DEPTH} levels")));
        }
        if n_values > max_values {
            return Err(malformed(format!(
                "the body has about {n_values} values, and {max_values} is the limit; send several requests"
            )));
        }
        if n_containers > max_containers {
            return Err(malformed(format!(
                "the body has {n_containers} arrays and objects, and {max_containers} is the limit; send several \
                 requests"
            )));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(malformed("the body is not a JSON object")),
            Err(e) => Err(malformed(format!("the body is not valid JSON: {e}"))),
        }
    }
}

/// Returns the fields that a route knows, and the parameters that are ignored.
///
/// # Errors
/// When a parameter is refused.
pub fn check_params(
    mut object: Map<String, Value>,
    rows: ParamTable,
    nested: NestedKeys,
) -> Result<(Map<String, Value>, IgnoredParams)> {
    let ignored = params::check_params(rows, nested, &object)?;
    object.retain(|name, _| rows.iter().copied().flatten().any(|(row, _)| row == name));
    Ok((object, IgnoredParams(ignored)))
}

/// Names of parameters that were accepted without effect.
#[derive(Default)]
pub struct IgnoredParams(Vec<String>);

impl IgnoredParams {
    /// Adds parameters that the model's template ignores.
    pub fn extend(&mut self, paths: impl IntoIterator<Item = String>) {
        self.0.extend(paths);
    }

    /// Adds the name of the model, if the server answers with a default one although it does not serve that.
    pub fn add_unknown_model(&mut self, app: &App, name: Option<&str>) {
        if app.ignores_name(name) {
            self.0.push("model".to_owned());
        }
    }

    /// The response with this body, and a header that names them.
    ///
    /// # Errors
    /// When the body cannot be written as JSON.
    pub fn respond(self, body: &impl Serialize) -> Result<Response, ApiError> {
        let mut headers = HeaderMap::new();
        self.insert_into(&mut headers);
        Ok(json_response(headers, to_json(body)?))
    }

    /// Lists the names in the `x-ignored-params` header.
    pub fn insert_into(self, headers: &mut HeaderMap) {
        insert_list(headers, "x-ignored-params", &self.0);
    }
}

/// The response with this body.
///
/// # Errors
/// When the body cannot be written as JSON.
pub fn respond_with(body: &impl Serialize) -> Result<Response, ApiError> {
    IgnoredParams::default().respond(body)
}

/// Lists names in a header, escaped for it and as many as fit; adds no header without names.
pub fn insert_list(headers: &mut HeaderMap, header: &'static str, names: &[String]) {
    if let Some(list) = header_list(names)
        && let Ok(value) = HeaderValue::from_str(&list)
    {
        headers.insert(header, value);
    }
}

fn header_list(names: &[String]) -> Option<String> {
    let mut list = String::new();
    for (n_listed, name) in names.iter().enumerate() {
        let mut escaped: String = name.escape_default().take(MAX_NAME_BYTES + 1).collect();
        if escaped.len() > MAX_NAME_BYTES {
            escaped.replace_range(MAX_NAME_BYTES.., "...");
        }
        if list.len() + escaped.len() > MAX_LIST_BYTES {
            return Some(format!("{list}, ... and {} more", names.len() - n_listed));
        }
        if n_listed > 0 {
            list += ", ";
        }
        list += &escaped;
    }
    (!list.is_empty()).then_some(list)
}

/// Reads a body that must be JSON, within the limits and the room that admission control has for it.
async fn read_json(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !content_type.is_some_and(is_json) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Some("unsupported_media_type"),
            "the body must be JSON; send the header `content-type: application/json`",
        ));
    }
    let shutdown = request.extensions().get::<Shutdown>().cloned();
    let guard = request.extensions().get::<Arc<AdmissionGuard>>().cloned();
    let limits = app.limits();
    let reading = read_body(request.into_body(), limits, shutdown, guard.as_deref());
    let bytes = match &guard {
        None => reading.await?,
        Some(guard) => tokio::select! {
            bytes = reading => bytes?,
            e = guard.evicted() => return Err(e.into()),
        },
    };
    if let Some(guard) = &guard {
        guard.complete_body()?;
    }
    Ok(bytes)
}

fn is_json(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(b"application/json")
        || media_type.to_ascii_lowercase().ends_with(b"+json")
}

/// Reads a body up to the size limit; its connection checks that it arrives in time. During shutdown it waits only
/// [`SHUTDOWN_BODY_GRACE`] for the rest.
async fn read_body(
    mut body: Body,
    limits: &Limits,
    shutdown: Option<Shutdown>,
    guard: Option<&AdmissionGuard>,
) -> Result<Vec<u8>, ApiError> {
    let mut shutdown_deadline = pin!(async {
        match shutdown {
            Some(mut shutdown) => shutdown.begun().await,
            None => future::pending().await,
        }
        sleep(SHUTDOWN_BODY_GRACE).await;
    });
    // A body that is announced as too long is rejected before it is read.
    let mut n_bytes = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while n_bytes <= limits.body_bytes {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut shutdown_deadline => return Err(Error::new(Kind::Unavailable, "the server is shutting down").into()),
        };
        let Some(frame) = frame else { return Ok(bytes) };
        let frame = frame.map_err(|e| ApiError::unreadable_body(&e))?;
        let data = frame.into_data().unwrap_or_default();
        let n_received = bytes.len() + data.len();
        n_bytes = n_bytes.max(n_received);
        if let Some(guard) = guard {
            guard.grow(n_received)?;
        }
        bytes.extend_from_slice(&data);
    }
    let message = format!("the body is longer than {} bytes; send a shorter one", limits.body_bytes);
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message))
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_media_types_are_recognized() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded", ""] {
            assert!(!is_json(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn ignored_names_are_cut_to_fit_a_header() {
        let names = |names: Vec<String>| header_list(&names);
        assert_eq!(names(Vec::new()), None);
        assert_eq!(names(vec!["a".into(), "b é\n".into()]).unwrap(), "a, b \\u{e9}\\n");
        let many = names((0..60_000).map(|i| format!("key{i}")).collect()).unwrap();
        assert!(many.len() < 1700 && many.starts_with("key0, key1, ") && many.ends_with(" more"), "{many}");
        let long = names(vec!["é".repeat(1 << 20)]).unwrap();
        assert!(long.len() < 140 && long.ends_with("..."), "{long}");
    }
}
