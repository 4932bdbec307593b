//! `POST /v1/decisions` and `POST /v1/systemone`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::chat::ContinuationScores;
use crate::decisions::{DecisionTask, decision, system_one_response};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, check_params};
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::{Attempt, PendingResponse, RetryDedup};
use crate::http::retry::heartbeat::{self, Heartbeat};
use crate::metering::RequestMeter;
use crate::openai::decisions::{DecisionRequest, SystemOneRequest};
use crate::openai::from_value;
use crate::openai::params::{DECISIONS, NESTED, ParamTable, SYSTEM_ONE};

/// A request of either API, and how its response is made.
struct ParsedRequest<F> {
    model: Option<String>,
    task: Arc<DecisionTask>,
    /// Makes the response from the id of the model and the scores.
    respond: F,
}

/// Answers questions about an input.
pub async fn decisions(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(dedup): Extension<RetryDedup>,
    Extension(meter): Extension<RequestMeter>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let parse = |object| {
        let request: DecisionRequest = from_value(object)?;
        let task = Arc::new(DecisionTask::from_decision(&request)?);
        let model = request.model.clone();
        let respond = move |id: &str, scores: &ContinuationScores| Ok(decision(request, id, scores));
        Ok(ParsedRequest { model, task, respond })
    };
    let route =
        DecisionRoute { app, request_id, tenant, dedup, meter, path: "/v1/decisions", params: DECISIONS };
    route.answer(headers, body, parse).await
}

/// Answers named questions about a state.
pub async fn system_one(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(dedup): Extension<RetryDedup>,
    Extension(meter): Extension<RequestMeter>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let parse = |object| {
        let request: SystemOneRequest = from_value(object)?;
        let (task, questions) = DecisionTask::from_system_one(&request)?;
        let (model, task) = (request.model.clone(), Arc::new(task));
        let for_response = task.clone();
        let respond = move |id: &str, scores: &ContinuationScores| {
            system_one_response(&request, (&for_response, &questions), id, scores)
        };
        Ok(ParsedRequest { model, task, respond })
    };
    let route =
        DecisionRoute { app, request_id, tenant, dedup, meter, path: "/v1/systemone", params: SYSTEM_ONE };
    route.answer(headers, body, parse).await
}

/// The parts of a request that both routes treat alike.
struct DecisionRoute {
    app: App,
    request_id: RequestId,
    tenant: Tenant,
    dedup: RetryDedup,
    meter: RequestMeter,
    path: &'static str,
    params: ParamTable,
}

impl DecisionRoute {
    async fn answer<R, F>(
        self,
        headers: HeaderMap,
        body: JsonObject,
        parse: impl FnOnce(Value) -> Result<ParsedRequest<F>> + Send + 'static,
    ) -> Result<Response, ApiError>
    where
        R: Serialize,
        F: FnOnce(&str, &ContinuationScores) -> Result<R> + Send + 'static,
    {
        let Self { app, request_id, tenant, dedup, meter, path, params } = self;
        let (caller, n_bytes) = (tenant.caller(), body.n_bytes());
        let convert = move |object| {
            let attempt = Attempt::from_request(&headers, &tenant.name(), path, &object);
            let (object, ignored) = check_params(object, params, NESTED)?;
            Ok((attempt, parse(Value::Object(object))?, ignored))
        };
        let (attempt, request, mut ignored) = body.parse_with(convert).await?;
        let ParsedRequest { model, task, respond } = request;
        ignored.add_unknown_model(&app, model.as_deref());
        ignored.extend(task.ignored_fields.iter().cloned());
        let heartbeat = Heartbeat::with_openai_errors(app.limits().heartbeat);
        let chat = app.chat(model.as_deref(), n_bytes);
        let for_log = request_id.clone();
        let work = async move {
            let chat = chat?;
            meter.set_model(chat.id());
            let mut headers = HeaderMap::new();
            ignored.insert_into(&mut headers);
            let run = chat.start_decision(task, caller).await?;
            let response = async move {
                let scores = run.await.inspect_err(|_| meter.fail())?;
                meter.add_prompt_tokens(scores.n_tokens);
                meter.add_cached_tokens(scores.n_cached);
                tracing::info!(
                    id = for_log.as_str(),
                    trace_id = for_log.trace_id(),
                    questions = scores.logprobs.len(),
                    tokens = scores.n_tokens,
                    cached_tokens = scores.n_cached,
                    "decisions"
                );
                respond(chat.id(), &scores)
            };
            Ok(PendingResponse::new(headers, response))
        };
        heartbeat::respond(&dedup, attempt, heartbeat, request_id, work).await
    }
}
