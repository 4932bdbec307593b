//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};

use super::error::ApiError;
use crate::app::{App, ServedModel};
use crate::openai::models::{Model, ModelList};

/// All models that are served.
pub async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: app.models().map(describe).collect() })
}

/// One of them, by any of its names; slashes may be raw or encoded.
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    Ok(Json(describe(app.any_model(&id)?)))
}

fn describe(model: &ServedModel) -> Model {
    Model {
        id: model.id().to_owned(),
        object: "model",
        created: model.created(),
        owned_by: model.owner().to_owned(),
    }
}
