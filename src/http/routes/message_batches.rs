//! `/v1/messages/batches`: batches of requests for messages.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::files::parts_response;
use crate::anthropic::batches::{
    DeletedMessageBatch, MessageBatchList, MessageBatchObject, MessageBatchRequest,
};
use crate::anthropic::params;
use crate::app::{App, unix_time};
use crate::batches::{BatchApi, BatchRecord, BatchRunner, message_batch, message_lines};
use crate::error::{Error, Kind, Result, quote};
use crate::http::batch_calls::MESSAGES;
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, check_params, respond_with};
use crate::http::middleware::auth::Owner;
use crate::http::query::{PathId, QueryParams};
use crate::http::route::JSON_LINES;

/// The time that a batch may take, in seconds; Anthropic's own limit.
const WINDOW_SECONDS: u64 = 24 * 3600;

/// The default of `limit` in the list of batches, and its maximum.
const LIST_LIMITS: (usize, usize) = (20, 1000);

/// Creates a batch.
pub async fn create(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let record = BatchRecord::new(BatchApi::Anthropic, &owner, MESSAGES, WINDOW_SECONDS, unix_time());
    let for_lines = record.clone();
    let convert = move |object| {
        let (object, ignored) = check_params(object, params::MESSAGE_BATCH, params::NESTED)?;
        let request: MessageBatchRequest = crate::openai::from_value(serde_json::Value::Object(object))?;
        Ok((message_lines(&for_lines, &request.requests)?, request.requests.len(), ignored))
    };
    let (lines, n_requests, ignored) = body.parse_with(convert).await?;
    let id = record.input_file.clone();
    let store = move |files: &Arc<crate::store::files::FileStore>| {
        let mut upload = files.upload(owner, id)?;
        upload.append(&lines)?;
        upload.finish_hidden()
    };
    app.with_files(store).await?;
    runner.create(record.clone()).await?;
    let mut created = message_batch(&record);
    created.request_counts.processing = n_requests as u64;
    ignored.respond(&created)
}

/// Lists batches, the newest first.
pub async fn list(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let mut batches = runner.list(&owner, BatchApi::Anthropic).await?;
    let position = |param: &str| {
        let id = query.text(param);
        let message = |id: &str| format!("`{param}` is `{}`, which is not in the list", quote(id));
        let find = |id| batches.iter().position(|batch| batch.id == id);
        id.map(|id| find(id).ok_or_else(|| Error::invalid(param, message(id)))).transpose()
    };
    let limit = query.limit(LIST_LIMITS)?;
    let (first, end) = match (position("before_id")?, position("after_id")?) {
        (Some(before), _) => (before.saturating_sub(limit), before),
        (None, after) => {
            let first = after.map_or(0, |after| after + 1);
            (first, batches.len().min(first + limit))
        }
    };
    let has_more = if query.text("before_id").is_some() { first > 0 } else { end < batches.len() };
    let data: Vec<MessageBatchObject> =
        batches.drain(first..end).map(|batch| message_batch(&batch)).collect();
    let id = |batch: Option<&MessageBatchObject>| batch.map(|batch| batch.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    respond_with(&MessageBatchList { data, first_id, last_id, has_more })
}

/// Describes a batch.
pub async fn retrieve(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    respond_with(&message_batch(&runner.find(&owner, &id, BatchApi::Anthropic).await?))
}

/// Begins to cancel a batch.
pub async fn cancel(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    respond_with(&message_batch(&runner.cancel(&owner, &id, BatchApi::Anthropic).await?))
}

/// Deletes a batch that has ended.
pub async fn delete(
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    runner.delete(&owner, &id).await?;
    respond_with(&DeletedMessageBatch { id, kind: "message_batch_deleted" })
}

/// Sends the results of a batch that has ended.
pub async fn results(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(runner): Extension<BatchRunner>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let record = runner.find(&owner, &id, BatchApi::Anthropic).await?;
    if !record.state.is_final() {
        let message = format!("the batch `{}` has not ended; its results come then", quote(&id));
        return Err(Error::new(Kind::NotFound, message).into());
    }
    let results = record.results;
    Ok(parts_response(app.files().clone(), results.id, results.n_bytes, JSON_LINES))
}
