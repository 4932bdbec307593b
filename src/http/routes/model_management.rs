//! Models managed while the server runs: `POST /v1/models/pull`, `POST /v1/models/{id}/load` and its siblings,
//! `DELETE /v1/models/{id}`.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::models::described_model;
use crate::app::{App, PulledModel};
use crate::error::{Error, Kind, Result, quote};
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, respond_with};
use crate::http::generation_response::{comment_ping, data_event, event_stream};
use crate::http::query::PathId;
use crate::openai::models::{DeletedModel, ModelObject, PullProgress, PullRequest};
use crate::openai::params;
use crate::registry::{DownloadState, DownloadWatch};

/// How often the progress of a download is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A download, and its progress. It is cancelled when this is dropped.
pub struct RunningPull {
    progress: mpsc::UnboundedReceiver<PullProgress>,
    result: JoinHandle<Result<PulledModel>>,
}

/// Downloads a model.
pub async fn pull(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    check_allowed(&app)?;
    let (request, ignored) = body.parse::<PullRequest>(params::MODEL_PULL).await?;
    let pull = RunningPull::start(app, request.model);
    if request.stream.unwrap_or(false) {
        return Ok(event_stream(pull.into_stream().map(|progress| Ok(event(progress))), comment_ping()));
    }
    ignored.respond(&pull.finish().await?)
}

fn event(progress: Result<PullProgress>) -> Event {
    match progress {
        Ok(progress) => data_event(None, &progress),
        Err(e) => data_event(None, &ApiError::from(e).into_body()),
    }
}

impl RunningPull {
    /// Starts to download the model that `reference` names.
    pub fn start(app: App, reference: String) -> Self {
        let (sender, progress) = mpsc::unbounded_channel();
        let last = Mutex::new(None::<Instant>);
        let watch = DownloadWatch::new(move |state: DownloadState| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL);
            if is_due || state.size_bytes == Some(state.n_bytes) {
                *last = Some(Instant::now());
                // Nobody listens any more if this fails.
                let _ = sender.send(downloading(state));
            }
            if sender.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let result = tokio::spawn(async move { app.pull(reference, watch).await });
        Self { progress, result }
    }

    /// Returns the end of the download.
    ///
    /// # Errors
    /// When the model cannot be downloaded.
    pub async fn finish(self) -> Result<PullProgress> {
        // The download is cancelled once nobody can receive its progress.
        let Self { progress: _progress, result } = self;
        let pulled = result.await.map_err(|e| Error::internal(format!("the download failed: {e}")))?;
        pulled.map(success)
    }

    /// The progress, and at last the end of the download.
    pub fn into_stream(self) -> impl Stream<Item = Result<PullProgress>> {
        stream::unfold(Some(self), |pull| async move {
            let mut pull = pull?;
            // The sender goes with the download.
            match pull.progress.recv().await {
                Some(progress) => Some((Ok(progress), Some(pull))),
                None => Some((pull.finish().await, None)),
            }
        })
    }
}

fn downloading(state: DownloadState) -> PullProgress {
    PullProgress {
        status: "downloading",
        file: Some(state.what.to_owned()),
        completed: Some(state.n_bytes),
        total: state.size_bytes,
        id: None,
        served: None,
    }
}

fn success(pulled: PulledModel) -> PullProgress {
    PullProgress {
        status: "success",
        file: None,
        completed: Some(pulled.n_bytes),
        total: Some(pulled.n_bytes),
        id: Some(pulled.id),
        served: Some(pulled.is_served),
    }
}

/// Loads, unloads, pins or unpins a model. Its id may have slashes, so the last part of the path is the action.
pub async fn act(State(app): State<App>, PathId(path): PathId) -> Result<Json<ModelObject>, ApiError> {
    check_allowed(&app)?;
    let Some((id, action)) = path.rsplit_once('/') else { return Err(unknown_action(&path)) };
    match action {
        "load" => app.load_model(id).await?,
        "unload" if !app.unload_model(id).await? => return Err(in_use(id)),
        "unload" => {}
        "pin" | "unpin" => app.pin_model(id, action == "pin").await?,
        _ => return Err(unknown_action(action)),
    }
    Ok(Json(described_model(&app, id)?))
}

/// Deletes the files of a model from the folders of downloads.
pub async fn delete(State(app): State<App>, PathId(id): PathId) -> Result<Response, ApiError> {
    let bytes = delete_files(&app, &id).await?;
    respond_with(&DeletedModel { id, object: "model", deleted: true, bytes })
}

/// Deletes the files of a model, and returns how many bytes they had.
///
/// # Errors
/// When clients may not manage models, or the model is in use, not on disk, or was not downloaded by this program.
pub async fn delete_files(app: &App, id: &str) -> Result<u64, ApiError> {
    check_allowed(app)?;
    app.delete_model(id).await?.ok_or_else(|| in_use(id))
}

/// Checks that clients may manage models.
///
/// # Errors
/// When they may not.
pub fn check_allowed(app: &App) -> Result<(), ApiError> {
    if app.manages_models() {
        return Ok(());
    }
    let message = "models cannot be managed through this server, which other machines reach; start it with \
                   --manage-models to allow it";
    Err(ApiError::forbidden("model_management_disabled", message))
}

fn in_use(id: &str) -> ApiError {
    let message = format!("model `{}` is in use; try again when its requests have ended", quote(id));
    ApiError::new(StatusCode::CONFLICT, Some("model_in_use"), message)
}

fn unknown_action(action: &str) -> ApiError {
    let message = format!(
        "`{}` is not an action; end the path with /load, /unload, /pin or /unpin after the model's id",
        quote(action)
    );
    Error::new(Kind::NotFound, message).into()
}
