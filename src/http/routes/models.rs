//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;

use crate::anthropic::models::{AnthropicModel, AnthropicModelList, InApiForm};
use crate::anthropic::rfc_3339;
use crate::app::{App, ModelStatus, Residence};
use crate::config::KvPrecision;
use crate::error::{Error, Kind, Result};
use crate::http::error::ApiError;
use crate::http::route::has_anthropic_version;
use crate::openai::models::{ModelList, ModelObject};
use crate::registry::ModelKind;

/// The models, in the form of the client's API.
pub type ListedModels = InApiForm<ModelList, AnthropicModelList>;

/// A model, in the form of the client's API.
pub type DescribedModel = InApiForm<ModelObject, AnthropicModel>;

/// Lists the models, and each once more under every alias that the operator gave it; in the form of the client's API.
pub async fn list(State(app): State<App>, headers: HeaderMap) -> Json<ListedModels> {
    let models = listed_models(&app);
    if !has_anthropic_version(&headers) {
        return Json(ListedModels::OpenAi(ModelList { object: "list", data: models }));
    }
    let [first_id, last_id] =
        [models.first(), models.last()].map(|model| model.map(|model| model.id.clone()));
    let data = models.into_iter().map(anthropic_model).collect();
    Json(ListedModels::Anthropic(AnthropicModelList { data, has_more: false, first_id, last_id }))
}

fn listed_models(app: &App) -> Vec<ModelObject> {
    let listed = |status: ModelStatus| {
        let aliases = status.served.own_aliases().to_vec();
        let model = model_object(app, status);
        let under_alias =
            aliases.into_iter().map(|id| ModelObject { id, ..model.clone() }).collect::<Vec<_>>();
        [model].into_iter().chain(under_alias)
    };
    app.models().flat_map(listed).collect()
}

/// Describes a model by id or alias, in the form of the client's API. Slashes in the id may be raw or percent-encoded.
pub async fn retrieve(
    State(app): State<App>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<DescribedModel>, ApiError> {
    let Path(id) = id.map_err(|_| Error::new(Kind::ModelNotFound, "the model's name is not UTF-8"))?;
    let model = described_model(&app, &id)?;
    Ok(Json(match has_anthropic_version(&headers) {
        true => DescribedModel::Anthropic(anthropic_model(model)),
        false => DescribedModel::OpenAi(model),
    }))
}

/// The description of the model called `name`.
///
/// # Errors
/// When no model has this name.
pub fn described_model(app: &App, name: &str) -> Result<ModelObject> {
    let status = app.model_status(name)?;
    let alias = status.served.own_aliases().iter().find(|alias| alias.eq_ignore_ascii_case(name)).cloned();
    let model = model_object(app, status);
    Ok(ModelObject { id: alias.unwrap_or(model.id), ..model })
}

fn anthropic_model(model: ModelObject) -> AnthropicModel {
    AnthropicModel {
        display_name: model.id.clone(),
        id: model.id,
        kind: "model",
        created_at: rfc_3339(model.created),
        lifecycle: "active",
        max_input_tokens: model.context_length,
        max_tokens: model.context_length,
    }
}

fn model_object(app: &App, model: ModelStatus) -> ModelObject {
    let ModelStatus { served, kind, info, residence, memory_bytes, is_pinned, prompt_activation_bits } =
        model;
    ModelObject {
        id: served.id().to_owned(),
        root: served.id().to_owned(),
        aliases: served.aliases().map(str::to_owned).collect(),
        max_model_len: info.as_ref().map(|info| info.context_length),
        object: "model",
        created: served.created(),
        owned_by: served.owner().to_owned(),
        kind: kind.to_string(),
        loaded: residence == Residence::Loaded,
        context_length: info.as_ref().map(|info| info.context_length),
        family: info.as_ref().map(|info| info.family.clone()),
        format: info.as_ref().map(|info| info.format),
        quantization: info.as_ref().and_then(|info| info.quantization.clone()),
        license: info.and_then(|info| info.license),
        state: match residence {
            Residence::Loaded => "loaded",
            Residence::Loading => "loading",
            Residence::Unloaded => "unloaded",
            Residence::Failed => "failed",
        },
        memory_bytes,
        pinned: is_pinned,
        kv_format: (kind == ModelKind::Chat).then(|| kv_format_name(app.limits().kv_format)),
        prompt_activation_bits,
    }
}

fn kv_format_name(precision: KvPrecision) -> &'static str {
    match precision {
        KvPrecision::F16 => "f16",
        KvPrecision::Int8 => "int8",
    }
}
