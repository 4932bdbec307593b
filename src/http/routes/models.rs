//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::app::{App, ModelStatus};
use crate::error::{Error, Kind};
use crate::http::error::ApiError;
use crate::openai::models::{Model, ModelList};

/// All models that are served.
pub async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: app.models().map(describe).collect() })
}

/// One of them, by any of its names; slashes may be raw or encoded.
pub async fn show(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) =
        id.map_err(|_| Error::new(Kind::ModelNotFound, "no model has a name that is not UTF-8"))?;
    Ok(Json(describe(app.any_model(&id)?)))
}

fn describe(model: ModelStatus) -> Model {
    let ModelStatus { served, kind, info, is_loaded } = model;
    Model {
        id: served.id().to_owned(),
        object: "model",
        created: served.created(),
        owned_by: served.owner().to_owned(),
        kind: kind.to_string(),
        loaded: is_loaded,
        context_length: info.as_ref().map(|info| info.context_length),
        family: info.as_ref().map(|info| info.family.clone()),
        format: info.as_ref().map(|info| info.format),
        license: info.and_then(|info| info.license),
    }
}
