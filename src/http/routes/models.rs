//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::app::{App, ModelStatus};
use crate::error::{Error, Kind};
use crate::http::error::ApiError;
use crate::openai::models::{ModelList, ModelObject};

/// Lists the models.
pub async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: app.models().map(model_object).collect() })
}

/// Describes a model by id or alias. Slashes in it may be raw or percent-encoded.
pub async fn retrieve(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    let Path(id) = id.map_err(|_| Error::new(Kind::ModelNotFound, "the model's name is not UTF-8"))?;
    Ok(Json(model_object(app.model_status(&id)?)))
}

fn model_object(model: ModelStatus) -> ModelObject {
    let ModelStatus { served, kind, info, is_loaded } = model;
    ModelObject {
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
