//! `/v1/batches`: batches of requests in a file.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::files::{EXPIRY_SECONDS, find};
use crate::app::{App, unix_time};
use crate::batches::{BatchApi, BatchRecord, BatchRunner, batch_object};
use crate::error::{Error, Result, quote};
use crate::http::batch_calls::ENDPOINTS;
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, respond_with};
use crate::http::middleware::auth::Owner;
use crate::http::query::{PathId, QueryParams};
use crate::openai::batches::{BatchObject, BatchRequest};
use crate::openai::files::ListPage;
use crate::openai::{check_metadata, params};

/// The longest time that a batch may take, in hours.
const MAX_HOURS: u64 = 168;

/// Creates a batch of the requests in a file.
pub async fn create(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<BatchRequest>(params::BATCH).await?;
    let BatchRequest { input_file_id, endpoint, completion_window, metadata, output_expires_after } = request;
    check_metadata(metadata.iter().flatten())?;
    if !ENDPOINTS.contains(&&*endpoint) {
        let message =
            format!("`endpoint` is `{}`; it must be one of {}", quote(&endpoint), ENDPOINTS.join(", "));
        return Err(Error::invalid("endpoint", message).into());
    }
    let seconds = window_seconds(&completion_window)?;
    let results_ttl = match output_expires_after {
        None => None,
        Some(after) if after.anchor == "created_at" && EXPIRY_SECONDS.contains(&after.seconds) => {
            Some(after.seconds)
        }
        Some(_) => {
            let (least, most) = (EXPIRY_SECONDS.start(), EXPIRY_SECONDS.end());
            let message = format!(
                "`output_expires_after` must have `anchor`, which is `created_at`, and `seconds` from {least} to {most}"
            );
            return Err(Error::invalid("output_expires_after", message).into());
        }
    };
    let file = find(&app, owner.clone(), input_file_id).await.map_err(|e| e.with_param("input_file_id"))?;
    if file.purpose != "batch" {
        let message =
            format!("the file is for `{}`; upload it with the purpose `batch`", quote(&file.purpose));
        return Err(Error::invalid("input_file_id", message).into());
    }
    let mut record = BatchRecord::new(BatchApi::OpenAi, &owner, &endpoint, seconds, unix_time());
    record.input_file = file.id;
    record.completion_window = completion_window;
    record.metadata = metadata;
    record.results_ttl = results_ttl.unwrap_or(record.results_ttl);
    runner.create(record.clone()).await?;
    ignored.respond(&batch_object(&record))
}

/// The seconds of a window such as `24h`.
fn window_seconds(window: &str) -> Result<u64> {
    let hours = window.strip_suffix('h').and_then(|hours| hours.parse::<u64>().ok());
    let hours = hours.filter(|hours| (1..=MAX_HOURS).contains(hours));
    let message = || format!("`completion_window` is `{}`; it must be `1h` to `{MAX_HOURS}h`", quote(window));
    hours.map(|hours| 3600 * hours).ok_or_else(|| Error::invalid("completion_window", message()))
}

/// Lists batches, the newest first.
pub async fn list(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let list = query.list()?;
    let mut batches = runner.list(&owner, BatchApi::OpenAi).await?;
    batches.reverse();
    let (page, has_more) = list.page(&batches, |batch| Some(&batch.id))?;
    let data: Vec<BatchObject> = page.iter().map(batch_object).collect();
    let id = |batch: Option<&BatchObject>| batch.map(|batch| batch.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    respond_with(&ListPage { object: "list", first_id, last_id, data, has_more })
}

/// Describes a batch.
pub async fn retrieve(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    respond_with(&batch_object(&runner.find(&owner, &id, BatchApi::OpenAi).await?))
}

/// Begins to cancel a batch.
pub async fn cancel(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    respond_with(&batch_object(&runner.cancel(&owner, &id, BatchApi::OpenAi).await?))
}
