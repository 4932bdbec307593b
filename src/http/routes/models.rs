//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::app::{App, ModelStatus};
use crate::error::{Error, Kind};
use crate::http::error::ApiError;
use crate::openai::models::{ModelList, ModelObject};

/// Lists the models, and each once more under every alias that the operator gave it.
pub async fn list(State(app): State<App>) -> Json<ModelList> {
    let listed = |status: ModelStatus| {
        let aliases = status.served.own_aliases().to_vec();
        let model = model_object(status);
        let under_alias =
            aliases.into_iter().map(|id| ModelObject { id, ..model.clone() }).collect::<Vec<_>>();
        [model].into_iter().chain(under_alias)
    };
    Json(ModelList { object: "list", data: app.models().flat_map(listed).collect() })
}

/// Describes a model by id or alias. Slashes in it may be raw or percent-encoded.
pub async fn retrieve(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    let Path(id) = id.map_err(|_| Error::new(Kind::ModelNotFound, "the model's name is not UTF-8"))?;
    let status = app.model_status(&id)?;
    let alias = status.served.own_aliases().iter().find(|alias| alias.eq_ignore_ascii_case(&id)).cloned();
    let model = model_object(status);
    Ok(Json(ModelObject { id: alias.unwrap_or(model.id), ..model }))
}

fn model_object(model: ModelStatus) -> ModelObject {
    let ModelStatus { served, kind, info, is_loaded } = model;
    ModelObject {
        id: served.id().to_owned(),
        root: served.id().to_owned(),
        aliases: served.aliases().map(str::to_owned).collect(),
        max_model_len: info.as_ref().map(|info| info.context_length),
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
