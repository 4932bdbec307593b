//! `POST /v1/responses`, `POST /v1/responses/input_tokens` and `POST /v1/responses/compact`.

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::app::{App, ServedChat, unix_time};
use crate::chat::{Caller, Priority};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject, check_params};
use crate::http::generation_response::RequestLog;
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::http::response_run::{BackgroundRuns, Persistence, ResponseRun, failure};
use crate::http::retry::dedup::{Attempt, PendingResponse, RetryDedup, to_json};
use crate::http::retry::heartbeat::{self, Heartbeat, json_response};
use crate::metering::RequestMeter;
use crate::openai::params::{self, ParamTable};
use crate::openai::responses::output::{ResponseObject, ResponseStatus};
use crate::openai::responses::{ResponseInputTokens, ResponsesRequest};
use crate::responses::{
    ContextItem, ResponseBuilder, TranslatedRequest, ask_for_summary, blank_response, check_references,
    compacted, input_items, max_summary_tokens, new_id, stored_input, summary_request, translate,
    user_messages, with_own_names,
};

/// The path of the route, by which retries are told apart.
const PATH: &str = "/v1/responses";

/// A request as it was sent.
struct IncomingRequest {
    request: ResponsesRequest,
    ignored: IgnoredParams,
    n_bytes: usize,
}

/// A request whose conversation is known.
struct PreparedRequest {
    chat: ServedChat,
    request: ResponsesRequest,
    /// The conversation.
    items: Vec<ContextItem>,
    translated: TranslatedRequest,
    blank: ResponseObject,
    persistence: Persistence,
    caller: Caller,
    headers: HeaderMap,
}

/// Creates a response, whole, streamed, or in the background.
pub async fn create(
    State(app): State<App>,
    (Extension(request_id), Extension(meter)): (Extension<RequestId>, Extension<RequestMeter>),
    Extension(tenant): Extension<Tenant>,
    Extension(dedup): Extension<RetryDedup>,
    Extension(background): Extension<BackgroundRuns>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let caller = tenant.caller();
    let convert = move |object| {
        let attempt = Attempt::from_request(&headers, &tenant.name(), PATH, &object);
        let (object, ignored) = check_params(object, params::RESPONSES, params::NESTED)?;
        let request = ResponsesRequest::from_object(object)?;
        Ok((attempt, IncomingRequest { request, ignored, n_bytes }))
    };
    let (attempt, incoming) = body.parse_with(convert).await?;
    let is_streamed = incoming.request.options.is_streamed();
    let heartbeat = Heartbeat::with_openai_errors(app.limits().heartbeat);
    let log = RequestLog::new(request_id.clone(), meter, "response");
    if incoming.request.background.unwrap_or(false) {
        let prepared = prepare(&app, incoming, caller, Ok).await?;
        return start_in_background(prepared, &background, log, is_streamed).await;
    }
    let for_start = app.clone();
    let started = async move {
        let prepared = prepare(&for_start, incoming, caller, Ok).await?;
        start(prepared, log, is_streamed).await
    };
    if is_streamed {
        let (mut run, headers) = started.await?;
        run.wait_for_first(app.limits().stream_head_delay).await?;
        return Ok((headers, run.into_stream()).into_response());
    }
    let work = async move {
        let (run, headers) = started.await?;
        Ok(PendingResponse::new(headers, run.collect()))
    };
    heartbeat::respond(&dedup, attempt, heartbeat, request_id, work).await
}

/// Counts the tokens of a request's prompt.
pub async fn input_tokens(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let incoming = parse(body, params::RESPONSES).await?;
    let PreparedRequest { chat, request, translated, caller, headers, .. } =
        prepare(&app, incoming, tenant.caller(), Ok).await?;
    let counted = chat.count_prompt_tokens(translated.chat, caller).await;
    let input_tokens = counted.map_err(|e| with_own_names(e, &request))?;
    let json = to_json(&ResponseInputTokens { object: "response.input_tokens", input_tokens })?;
    Ok(json_response(headers, json))
}

/// Compacts a conversation: the user's messages stay, and a summary takes the place of everything else.
pub async fn compact(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let mut incoming = parse(body, params::COMPACTION).await?;
    incoming.request = summary_request(incoming.request);
    let mut prepared = prepare(&app, incoming, tenant.caller(), ask_for_summary).await?;
    let max_tokens = max_summary_tokens(prepared.chat.load().await?.context_length());
    prepared.translated.chat.max_completion_tokens = Some(max_tokens as u64);
    let (owner, messages) = (prepared.persistence.owner.clone(), user_messages(&prepared.items));
    let log = RequestLog::new(request_id, meter, "compaction");
    let (run, headers) = start(prepared, log, false).await?;
    let response = run.collect().await?;
    let compacted = app.with_state(move |state| compacted(messages, response, &state.signer(&owner))).await?;
    Ok(json_response(headers, to_json(&compacted)?))
}

/// Reads a request with the parameters of `table`.
async fn parse(body: JsonObject, table: ParamTable) -> Result<IncomingRequest> {
    let n_bytes = body.n_bytes();
    let convert = move |object| {
        let (object, ignored) = check_params(object, table, params::NESTED)?;
        Ok(IncomingRequest { request: ResponsesRequest::from_object(object)?, ignored, n_bytes })
    };
    body.parse_with(convert).await
}

/// Finds the model and the conversation of a request, and translates it; `complete` may add to the conversation.
async fn prepare(
    app: &App,
    incoming: IncomingRequest,
    mut caller: Caller,
    complete: fn(Vec<ContextItem>) -> Result<Vec<ContextItem>>,
) -> Result<PreparedRequest> {
    let IncomingRequest { request, mut ignored, n_bytes } = incoming;
    check_references(request.previous_response_id.as_deref(), request.conversation.as_ref())?;
    let is_stored = request.store.unwrap_or(true);
    if request.background.unwrap_or(false) {
        if !is_stored {
            let message = "`background` needs `store` to be true: the response is fetched from the store";
            return Err(Error::invalid("background", message));
        }
        caller.priority = Priority::Background;
    }
    let chat = app.chat(request.options.model.as_deref(), n_bytes)?;
    let blank = blank_response(&request, new_id("resp"), chat.id().to_owned(), unix_time());
    let owner = app.state_owner(&caller.tenant);
    let (for_owner, response_id) = (owner.clone(), blank.id.clone());
    let read = app.with_state(move |state| {
        let input = input_items(request.input.as_ref());
        let items = complete(state.context(&for_owner, &request, &input)?)?;
        let translated = translate(&request, &items, &state.signer(&for_owner))?;
        Ok((request, items, translated, stored_input(&input, &response_id)))
    });
    let (request, items, translated, input) = read.await?;
    ignored.extend(translated.ignored.iter().cloned());
    let mut headers = HeaderMap::new();
    ignored.insert_into(&mut headers);
    let conversation = request.conversation.as_ref().map(|conversation| conversation.id().to_owned());
    let persistence = Persistence { app: app.clone(), owner, input, conversation, is_stored };
    Ok(PreparedRequest { chat, request, items, translated, blank, persistence, caller, headers })
}

/// Starts the generation of a response; returns it with the headers of its HTTP response.
async fn start(
    prepared: PreparedRequest,
    mut log: RequestLog,
    is_streamed: bool,
) -> Result<(ResponseRun, HeaderMap)> {
    let PreparedRequest { chat, request, translated, blank, persistence, caller, headers, .. } = prepared;
    let TranslatedRequest { chat: chat_request, tools, settings, .. } = translated;
    log.set_model(chat.id());
    let started = chat.start_chat(chat_request, caller).await;
    let stream = started.map_err(|e| with_own_names(e, &request)).inspect_err(|_| log.abandon())?;
    let builder = ResponseBuilder::new(blank, tools, settings, is_streamed);
    Ok((ResponseRun::new(stream, builder, log, persistence), headers))
}

/// Stores a response that waits, generates it on a task of its own, and responds at once or with its events.
async fn start_in_background(
    prepared: PreparedRequest,
    runs: &BackgroundRuns,
    log: RequestLog,
    is_streamed: bool,
) -> Result<Response, ApiError> {
    let headers = prepared.headers.clone();
    let persistence = prepared.persistence.clone();
    let queued = ResponseObject { status: ResponseStatus::Queued, ..prepared.blank.clone() };
    let guard = runs.register(&queued.id, persistence.owner.clone())?;
    persistence.save(queued.clone(), Vec::new()).await?;
    let run = guard.run.clone();
    let failed = queued.clone();
    tokio::spawn(async move {
        match start(prepared, log, true).await {
            Ok((response, _)) => response.into_background(guard.run.clone()).await,
            Err(e) => {
                let (code, message) = failure(e);
                let mut builder = ResponseBuilder::failed(failed, code, &message);
                let saved = persistence.save(builder.response().clone(), Vec::new()).await;
                builder.end_stream(saved.unwrap_or(false));
                guard.run.publish(builder.take_events());
            }
        }
        drop(guard);
    });
    if is_streamed {
        return Ok((headers, run.follow(None)).into_response());
    }
    Ok(json_response(headers, to_json(&queued)?))
}
