//! `GET /api/tags`, `GET /api/ps`, `POST /api/show`, `POST /api/pull`, `DELETE /api/delete` and `GET /api/version`,
//! Ollama's API.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use super::model_management::{RunningPull, check_allowed, delete_files};
use crate::anthropic::rfc_3339;
use crate::app::{App, ModelInfo, ModelStatus, Residence, ServedModel};
use crate::cache::name_digest;
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::JsonObject;
use crate::http::generation_response::{json_line, line_stream, space_ping};
use crate::ollama::models::{
    Capability, OllamaLoadedModel, OllamaModel, OllamaModelDescription, OllamaModelDetails, OllamaModels,
    OllamaPullProgress, OllamaVersion,
};
use crate::ollama::params;
use crate::ollama::requests::{OllamaDeleteRequest, OllamaPullRequest, OllamaShowRequest};
use crate::registry::ModelKind;

/// Lists the models, and each once more under every alias that the operator gave it.
pub async fn tags(State(app): State<App>) -> Json<OllamaModels<OllamaModel>> {
    let listed = |ModelStatus { served, info, .. }: ModelStatus| {
        let names = [served.id()].into_iter().chain(served.own_aliases().iter().map(String::as_str));
        let model = |name: &str| OllamaModel {
            name: name.to_owned(),
            model: name.to_owned(),
            modified_at: rfc_3339(served.created()),
            size: info.as_ref().and_then(|info| info.size_bytes),
            digest: digest(&served),
            details: details(info.as_ref()),
        };
        names.map(model).collect::<Vec<_>>()
    };
    Json(OllamaModels { models: app.models().flat_map(listed).collect() })
}

/// Lists the models in memory.
pub async fn ps(State(app): State<App>) -> Json<OllamaModels<OllamaLoadedModel>> {
    let loaded = app.models().filter(|model| model.residence == Residence::Loaded);
    let model = |ModelStatus { served, info, memory_bytes, .. }: ModelStatus| OllamaLoadedModel {
        name: served.id().to_owned(),
        model: served.id().to_owned(),
        size: memory_bytes,
        size_vram: 0,
        digest: digest(&served),
        details: details(info.as_ref()),
        context_length: info.map(|info| info.context_length),
    };
    Json(OllamaModels { models: loaded.map(model).collect() })
}

/// Describes a model by id or alias, as far as that takes no loading.
pub async fn show(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<OllamaShowRequest>(params::SHOW).await?;
    let name = request.model.into_name()?;
    let ModelStatus { served, kind, info, .. } = app.model_status(&name)?;
    let chat = match kind {
        ModelKind::Chat => app.chat(Some(served.id()), 0)?.loaded(),
        _ => None,
    };
    let template = chat.as_ref().and_then(|chat| Some(chat.template().ok()?.source().to_owned()));
    let capabilities = match kind {
        ModelKind::Chat => {
            let chat = chat.as_ref();
            let optional = [
                (Capability::Tools, chat.is_none_or(|chat| chat.template().is_ok())),
                (Capability::Thinking, chat.is_some_and(|chat| chat.is_reasoning())),
                (Capability::Insert, chat.is_some_and(|chat| chat.can_insert())),
            ];
            let optional = optional.into_iter().filter(|(_, is_present)| *is_present);
            [Capability::Completion].into_iter().chain(optional.map(|(capability, _)| capability)).collect()
        }
        ModelKind::Embedding => vec![Capability::Embedding],
        ModelKind::Reranker => vec![Capability::Reranking],
    };
    ignored.respond(&OllamaModelDescription {
        license: info.as_ref().and_then(|info| info.license.clone()).unwrap_or_default(),
        modelfile: String::new(),
        parameters: String::new(),
        template: template.unwrap_or_default(),
        details: details(info.as_ref()),
        model_info: info.map(|info| model_info(&info)).unwrap_or_default(),
        capabilities,
        modified_at: rfc_3339(served.created()),
    })
}

/// Downloads a model, with its progress as lines unless the client wants the end alone.
pub async fn pull(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    check_allowed(&app)?;
    let (request, ignored) = body.parse::<OllamaPullRequest>(params::PULL).await?;
    let pull = RunningPull::start(app, request.model.into_name()?);
    if !request.stream.unwrap_or(true) {
        return ignored.respond(&OllamaPullProgress::from(pull.finish().await?));
    }
    let first = json_line(&OllamaPullProgress::first());
    let others = pull.into_stream().map(|progress| match progress {
        Ok(progress) => json_line(&OllamaPullProgress::from(progress)),
        Err(e) => json_line(&ApiError::from(e).into_ollama_body()),
    });
    let mut response = line_stream(stream::iter([first]).chain(others), space_ping());
    ignored.insert_into(response.headers_mut());
    Ok(response)
}

/// Deletes the files of a model. The response is empty.
pub async fn delete(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<OllamaDeleteRequest>(params::DELETE).await?;
    delete_files(&app, &request.model.into_name()?).await?;
    let mut response = Response::default();
    ignored.insert_into(response.headers_mut());
    Ok(response)
}

/// The version of this server.
pub async fn version() -> Json<OllamaVersion> {
    Json(OllamaVersion { version: env!("CARGO_PKG_VERSION") })
}

fn details(info: Option<&ModelInfo>) -> OllamaModelDetails {
    let Some(info) = info else { return OllamaModelDetails::default() };
    OllamaModelDetails {
        format: info.format.to_owned(),
        family: info.family.clone(),
        families: vec![info.family.clone()],
        quantization_level: info.quantization.clone().unwrap_or_default(),
        ..OllamaModelDetails::default()
    }
}

/// Facts under the names of GGUF's metadata.
fn model_info(info: &ModelInfo) -> Map<String, Value> {
    Map::from_iter([
        ("general.architecture".to_owned(), info.family.clone().into()),
        (format!("{}.context_length", info.family), info.context_length.into()),
    ])
}

fn digest(served: &ServedModel) -> String {
    name_digest(served.id().as_bytes())
}
