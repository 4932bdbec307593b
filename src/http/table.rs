//! The table of routes: one row each. The router, the OpenAPI document at `/openapi.json`, and the page at `/docs` are
//! made from these rows.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::error::{self, ApiError};
use super::openapi::{docs_page, document};
use super::page;
use super::route::{
    BINARY, EVENT_STREAM, FORM, HTML, JSON, JSON_LINES, NDJSON, RequestBody, Route, SchemaFn, TEXT,
    any_object, meant_by, schema,
};
use super::routes::chat::ChatRoute;
use super::routes::completions::CompletionRoute;
use super::routes::generation::generate;
use super::routes::messages::MessagesRoute;
use super::routes::ollama::OllamaRoute;
use super::routes::{
    batches, conversations, decisions, embeddings, files, message_batches, messages, model_management,
    models, ollama_embeddings, ollama_models, probes, rerank, responses, stored_responses, tokens, usage,
};
use crate::anthropic::batches::{
    DeletedMessageBatch, MessageBatchList, MessageBatchObject, MessageBatchRequest,
};
use crate::anthropic::messages::{CountTokensRequest, MessagesRequest};
use crate::anthropic::params as anthropic_params;
use crate::anthropic::response::{MessageEvent, MessageObject, TokenCount};
use crate::app::{App, RequestClass};
use crate::ollama::models::{
    OllamaLoadedModel, OllamaModel, OllamaModelDescription, OllamaModels, OllamaPullProgress, OllamaVersion,
};
use crate::ollama::params as ollama_params;
use crate::ollama::requests::{
    OllamaChatRequest, OllamaDeleteRequest, OllamaEmbedRequest, OllamaEmbeddingsRequest,
    OllamaGenerateRequest, OllamaPullRequest, OllamaShowRequest,
};
use crate::ollama::responses::{
    OllamaChat, OllamaEmbedResponse, OllamaEmbeddingsResponse, OllamaResponse, OllamaText,
};
use crate::openai::batches::{BatchObject, BatchRequest};
use crate::openai::chat::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest};
use crate::openai::completions::{Completion, CompletionRequest};
use crate::openai::decisions::{Decision, DecisionRequest, SystemOneRequest, SystemOneResponse};
use crate::openai::embeddings::{EmbeddingsRequest, EmbeddingsResponse};
use crate::openai::files::{FileObject, FileUploadForm, ListPage};
use crate::openai::models::{DeletedModel, ModelObject, PullProgress, PullRequest};
use crate::openai::params::{self, ParamTable};
use crate::openai::probes::{Health, Loads};
use crate::openai::rerank::{RerankAnswer, RerankRequest, ScoreRequest, ScoreResponse};
use crate::openai::responses::conversations::{
    ConversationObject, ConversationRequest, ConversationUpdate, Deleted, ItemList, ItemsRequest,
};
use crate::openai::responses::events::ResponseEvent;
use crate::openai::responses::output::{CompactionObject, ResponseObject};
use crate::openai::responses::{CompactRequest, ResponseInputTokens, ResponsesRequest};
use crate::openai::tokens::{
    ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, TokenizeRequest,
    TokenizeResponse, TokenizerInfo,
};
use crate::openai::usage::UsagePage;

/// Status codes of errors of a route that takes a body and runs a model.
const MODEL_ERRORS: &[u16] = &[400, 404, 408, 413, 415, 429, 503];

/// All routes, in the order of the documentation.
pub static ROUTES: &[Route] = &[
    Route {
        path: "/v1/chat/completions",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, generate::<ChatRoute>),
        operation_id: "createChatCompletion",
        tag: CHAT,
        summary: "Create a chat completion, whole or streamed",
        request: Some(json_body(schema::<ChatCompletionRequest>, params::CHAT)),
        responses: &[(JSON, schema::<ChatCompletion>), (EVENT_STREAM, schema::<ChatCompletionChunk>)],
        response_headers: &["x-ignored-params", "x-cache"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/completions",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, generate::<CompletionRoute>),
        operation_id: "createCompletion",
        tag: CHAT,
        summary: "Create a text completion (no chat template)",
        request: Some(json_body(schema::<CompletionRequest>, params::COMPLETIONS)),
        responses: &[(JSON, schema::<Completion>), (EVENT_STREAM, schema::<Completion>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/decisions",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, decisions::decisions),
        operation_id: "createDecision",
        tag: CHAT,
        summary: "Answer questions about an input by the probabilities of their labels",
        request: Some(json_body(schema::<DecisionRequest>, params::DECISIONS)),
        responses: &[(JSON, schema::<Decision>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/systemone",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, decisions::system_one),
        operation_id: "systemOne",
        tag: CHAT,
        summary: "Answer named questions about a state by the probabilities of their labels",
        request: Some(json_body(schema::<SystemOneRequest>, params::SYSTEM_ONE)),
        responses: &[(JSON, schema::<SystemOneResponse>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/responses",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, responses::create),
        operation_id: "createResponse",
        tag: RESPONSES,
        summary: "Create a response, whole, streamed or in the background",
        request: Some(json_body(schema::<ResponsesRequest>, params::RESPONSES)),
        responses: &[(JSON, schema::<ResponseObject>), (EVENT_STREAM, schema::<ResponseEvent>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/responses/input_tokens",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, responses::input_tokens),
        operation_id: "countResponseInputTokens",
        tag: RESPONSES,
        summary: "Count the input tokens of a response",
        request: Some(json_body(schema::<ResponsesRequest>, params::RESPONSES)),
        responses: &[(JSON, schema::<ResponseInputTokens>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/responses/compact",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, responses::compact),
        operation_id: "compactResponse",
        tag: RESPONSES,
        summary: "Compact a conversation: the user's messages and a summary of everything",
        request: Some(json_body(schema::<CompactRequest>, params::COMPACTION)),
        responses: &[(JSON, schema::<CompactionObject>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        responses: &[(JSON, schema::<ResponseObject>), (EVENT_STREAM, schema::<ResponseEvent>)],
        ..stored(
            "/v1/responses/{response_id}",
            |method| on(method, stored_responses::retrieve),
            "retrieveResponse",
            RESPONSES,
            "Get a stored response, or with `stream=true` its events after `starting_after`",
        )
    },
    Route {
        responses: &[(JSON, schema::<Deleted>)],
        ..stored(
            "DELETE /v1/responses/{response_id}",
            |method| on(method, stored_responses::delete),
            "deleteResponse",
            RESPONSES,
            "Delete a stored response",
        )
    },
    Route {
        responses: &[(JSON, schema::<ResponseObject>)],
        ..stored(
            "POST /v1/responses/{response_id}/cancel",
            |method| on(method, stored_responses::cancel),
            "cancelResponse",
            RESPONSES,
            "Cancel a response that is generated in the background",
        )
    },
    Route {
        responses: &[(JSON, schema::<ItemList>)],
        ..stored(
            "/v1/responses/{response_id}/input_items",
            |method| on(method, stored_responses::input_items),
            "listResponseInputItems",
            RESPONSES,
            "List the input items of a stored response",
        )
    },
    Route {
        path: "/v1/conversations",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, conversations::create),
        operation_id: "createConversation",
        summary: "Create a conversation",
        request: Some(json_body(schema::<ConversationRequest>, params::CONVERSATION)),
        ..CONVERSATION
    },
    Route {
        path: "/v1/conversations/{conversation_id}",
        operation_id: "retrieveConversation",
        summary: "Get a conversation",
        handler: |method| on(method, conversations::retrieve),
        ..CONVERSATION
    },
    Route {
        path: "/v1/conversations/{conversation_id}",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, conversations::update),
        operation_id: "updateConversation",
        summary: "Replace the metadata of a conversation",
        request: Some(json_body(schema::<ConversationUpdate>, params::CONVERSATION_UPDATE)),
        ..CONVERSATION
    },
    Route {
        responses: &[(JSON, schema::<Deleted>)],
        ..stored(
            "DELETE /v1/conversations/{conversation_id}",
            |method| on(method, conversations::delete),
            "deleteConversation",
            RESPONSES,
            "Delete a conversation",
        )
    },
    Route {
        responses: &[(JSON, schema::<ItemList>)],
        ..stored(
            "/v1/conversations/{conversation_id}/items",
            |method| on(method, conversations::list_items),
            "listConversationItems",
            RESPONSES,
            "List the items of a conversation",
        )
    },
    Route {
        path: "/v1/conversations/{conversation_id}/items",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, conversations::create_items),
        operation_id: "createConversationItems",
        summary: "Add items to a conversation",
        request: Some(json_body(schema::<ItemsRequest>, params::CONVERSATION_ITEMS)),
        responses: &[(JSON, schema::<ItemList>)],
        ..CONVERSATION
    },
    Route {
        responses: &[(JSON, any_object)],
        ..stored(
            "/v1/conversations/{conversation_id}/items/{item_id}",
            |method| on(method, conversations::retrieve_item),
            "retrieveConversationItem",
            RESPONSES,
            "Get an item of a conversation",
        )
    },
    Route {
        responses: &[(JSON, schema::<ConversationObject>)],
        ..stored(
            "DELETE /v1/conversations/{conversation_id}/items/{item_id}",
            |method| on(method, conversations::delete_item),
            "deleteConversationItem",
            RESPONSES,
            "Delete an item of a conversation",
        )
    },
    Route {
        path: "/v1/messages",
        admission: Some(RequestClass::Generation),
        handler: |method| on(method, generate::<MessagesRoute>),
        operation_id: "createMessage",
        tag: CHAT,
        summary: "Create a message, whole or streamed (Anthropic's API)",
        request: Some(json_body(schema::<MessagesRequest>, anthropic_params::MESSAGES)),
        responses: &[(JSON, schema::<MessageObject>), (EVENT_STREAM, schema::<MessageEvent>)],
        response_headers: &["request-id", "x-ignored-params", "x-cache"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/v1/messages/count_tokens",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, messages::count_tokens),
        operation_id: "countMessageTokens",
        tag: CHAT,
        summary: "Count the tokens of a message's prompt (Anthropic's API)",
        request: Some(json_body(schema::<CountTokensRequest>, anthropic_params::COUNT_TOKENS)),
        responses: &[(JSON, schema::<TokenCount>)],
        response_headers: &["request-id", "x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "POST /v1/files",
        handler: |method| on(method, files::upload),
        operation_id: "uploadFile",
        summary: "Upload a file",
        request: Some(RequestBody {
            media_type: FORM,
            schema: schema::<FileUploadForm>,
            parameters: params::FILE_UPLOAD,
        }),
        responses: &[(JSON, schema::<FileObject>)],
        response_headers: &[],
        error_statuses: &[400, 408, 413, 415, 429, 503],
        ..BATCH
    },
    Route {
        responses: &[(JSON, schema::<ListPage<FileObject>>)],
        error_statuses: &[400],
        ..get("/v1/files", |method| on(method, files::list), "listFiles", BATCHES, "List files")
    },
    Route {
        responses: &[(JSON, schema::<FileObject>)],
        ..stored(
            "/v1/files/{file_id}",
            |method| on(method, files::retrieve),
            "retrieveFile",
            BATCHES,
            "Describe a file",
        )
    },
    Route {
        responses: &[(JSON, schema::<Deleted>)],
        ..stored(
            "DELETE /v1/files/{file_id}",
            |method| on(method, files::delete),
            "deleteFile",
            BATCHES,
            "Delete a file",
        )
    },
    Route {
        responses: &[(BINARY, schema::<String>)],
        ..stored(
            "/v1/files/{file_id}/content",
            |method| on(method, files::content),
            "downloadFile",
            BATCHES,
            "Get the content of a file",
        )
    },
    Route {
        path: "/v1/batches",
        operation_id: "createBatch",
        summary: "Create a batch of the requests in a file",
        request: Some(json_body(schema::<BatchRequest>, params::BATCH)),
        responses: &[(JSON, schema::<BatchObject>)],
        ..BATCH
    },
    Route {
        responses: &[(JSON, schema::<ListPage<BatchObject>>)],
        error_statuses: &[400],
        ..get("/v1/batches", |method| on(method, batches::list), "listBatches", BATCHES, "List batches")
    },
    Route {
        responses: &[(JSON, schema::<BatchObject>)],
        ..stored(
            "/v1/batches/{batch_id}",
            |method| on(method, batches::retrieve),
            "retrieveBatch",
            BATCHES,
            "Describe a batch",
        )
    },
    Route {
        responses: &[(JSON, schema::<BatchObject>)],
        error_statuses: &[400, 404],
        ..get(
            "POST /v1/batches/{batch_id}/cancel",
            |method| on(method, batches::cancel),
            "cancelBatch",
            BATCHES,
            "Cancel a batch",
        )
    },
    Route {
        path: "/v1/messages/batches",
        handler: |method| on(method, message_batches::create),
        operation_id: "createMessageBatch",
        summary: "Create a batch of requests for messages, in Anthropic's form",
        request: Some(json_body(schema::<MessageBatchRequest>, anthropic_params::MESSAGE_BATCH)),
        responses: &[(JSON, schema::<MessageBatchObject>)],
        ..BATCH
    },
    Route {
        responses: &[(JSON, schema::<MessageBatchList>)],
        error_statuses: &[400],
        ..get(
            "/v1/messages/batches",
            |method| on(method, message_batches::list),
            "listMessageBatches",
            BATCHES,
            "List batches, in Anthropic's form",
        )
    },
    Route {
        responses: &[(JSON, schema::<MessageBatchObject>)],
        ..stored(
            "/v1/messages/batches/{message_batch_id}",
            |method| on(method, message_batches::retrieve),
            "retrieveMessageBatch",
            BATCHES,
            "Describe a batch, in Anthropic's form",
        )
    },
    Route {
        responses: &[(JSON, schema::<DeletedMessageBatch>)],
        error_statuses: &[400, 404],
        ..get(
            "DELETE /v1/messages/batches/{message_batch_id}",
            |method| on(method, message_batches::delete),
            "deleteMessageBatch",
            BATCHES,
            "Delete a batch that has ended",
        )
    },
    Route {
        responses: &[(JSON, schema::<MessageBatchObject>)],
        error_statuses: &[400, 404],
        ..get(
            "POST /v1/messages/batches/{message_batch_id}/cancel",
            |method| on(method, message_batches::cancel),
            "cancelMessageBatch",
            BATCHES,
            "Cancel a batch, in Anthropic's form",
        )
    },
    Route {
        responses: &[(JSON_LINES, schema::<String>)],
        ..stored(
            "/v1/messages/batches/{message_batch_id}/results",
            |method| on(method, message_batches::results),
            "messageBatchResults",
            BATCHES,
            "Get the results of a batch that has ended",
        )
    },
    Route {
        path: "/v1/embeddings",
        admission: Some(RequestClass::Embedding),
        handler: |method| on(method, embeddings::embeddings),
        operation_id: "createEmbedding",
        tag: EMBEDDINGS,
        summary: "Create embeddings",
        request: Some(json_body(schema::<EmbeddingsRequest>, params::EMBEDDINGS)),
        responses: &[(JSON, schema::<EmbeddingsResponse>)],
        response_headers: &["x-ignored-params", "x-cache-hits", "x-truncated-inputs"],
        error_statuses: MODEL_ERRORS,
    },
    RERANK,
    Route { path: "/rerank", operation_id: "rerankWithoutVersion", summary: "Alias of /v1/rerank", ..RERANK },
    Route {
        path: "/v1/score",
        admission: Some(RequestClass::Embedding),
        handler: |method| on(method, rerank::score),
        operation_id: "score",
        tag: EMBEDDINGS,
        summary: "Score pairs of texts by similarity",
        request: Some(json_body(schema::<ScoreRequest>, params::SCORE)),
        responses: &[(JSON, schema::<ScoreResponse>)],
        response_headers: &["x-ignored-params", "x-cache-hits", "x-truncated-inputs"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/tokenize",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, tokens::tokenize),
        operation_id: "tokenize",
        tag: TOKENS,
        summary: "Convert a text or a conversation into token ids",
        request: Some(json_body(schema::<TokenizeRequest>, params::TOKENIZE)),
        responses: &[(JSON, schema::<TokenizeResponse>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/detokenize",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, tokens::detokenize),
        operation_id: "detokenize",
        tag: TOKENS,
        summary: "Convert token ids into text",
        request: Some(json_body(schema::<DetokenizeRequest>, params::DETOKENIZE)),
        responses: &[(JSON, schema::<DetokenizeResponse>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    APPLY_TEMPLATE,
    Route {
        path: "/apply_template",
        operation_id: "applyTemplateByItsOtherName",
        summary: "Alias of /apply-template",
        ..APPLY_TEMPLATE
    },
    Route {
        responses: &[(JSON, schema::<TokenizerInfo>)],
        error_statuses: &[404, 429, 503],
        ..get(
            "/tokenizer_info",
            |method| on(method, tokens::tokenizer_info),
            "tokenizerInfo",
            TOKENS,
            "Describe the tokenizer and the chat template of the first chat model",
        )
    },
    Route {
        responses: &[(JSON, schema::<models::ListedModels>)],
        ..get("/v1/models", |method| on(method, models::list), "listModels", MODELS, "List the models")
    },
    Route {
        responses: &[(JSON, schema::<models::DescribedModel>)],
        error_statuses: &[404],
        ..get(
            "/v1/models/{*id}",
            |method| on(method, models::retrieve),
            "retrieveModel",
            MODELS,
            "Describe a model, by id or alias; slashes may be raw or percent-encoded",
        )
    },
    Route {
        path: "/v1/models/pull",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, model_management::pull),
        operation_id: "pullModel",
        tag: MODELS,
        summary: "Download a model, with its progress as a stream",
        request: Some(json_body(schema::<PullRequest>, params::MODEL_PULL)),
        responses: &[(JSON, schema::<PullProgress>), (EVENT_STREAM, schema::<PullProgress>)],
        response_headers: &["x-ignored-params"],
        error_statuses: &[400, 403, 404, 408, 413, 415, 429, 503],
    },
    Route {
        responses: &[(JSON, schema::<ModelObject>)],
        error_statuses: &[400, 403, 404, 409, 429, 503],
        ..get(
            "POST /v1/models/{*id}",
            |method| on(method, model_management::act),
            "actOnModel",
            MODELS,
            "Load, unload, pin or unpin a model: `{id}` is its id, then `/load`, `/unload`, `/pin` or `/unpin`",
        )
    },
    Route {
        responses: &[(JSON, schema::<DeletedModel>)],
        error_statuses: &[400, 403, 404, 409],
        ..get(
            "DELETE /v1/models/{*id}",
            |method| on(method, model_management::delete),
            "deleteModel",
            MODELS,
            "Delete the files of a model",
        )
    },
    Route {
        path: "/api/chat",
        handler: |method| on(method, generate::<OllamaRoute<OllamaChat>>),
        operation_id: "ollamaChat",
        summary: "Continue a conversation, streamed or whole (Ollama's API)",
        request: Some(json_body(schema::<OllamaChatRequest>, ollama_params::CHAT)),
        responses: &[
            (JSON, schema::<OllamaResponse<OllamaChat>>),
            (NDJSON, schema::<OllamaResponse<OllamaChat>>),
        ],
        ..OLLAMA_GENERATION
    },
    Route {
        path: "/api/generate",
        handler: |method| on(method, generate::<OllamaRoute<OllamaText>>),
        operation_id: "ollamaGenerate",
        summary: "Answer a prompt or continue a text, streamed or whole (Ollama's API)",
        request: Some(json_body(schema::<OllamaGenerateRequest>, ollama_params::GENERATE)),
        responses: &[
            (JSON, schema::<OllamaResponse<OllamaText>>),
            (NDJSON, schema::<OllamaResponse<OllamaText>>),
        ],
        ..OLLAMA_GENERATION
    },
    Route {
        path: "/api/embed",
        handler: |method| on(method, ollama_embeddings::embed),
        operation_id: "ollamaEmbed",
        summary: "Create embeddings (Ollama's API)",
        request: Some(json_body(schema::<OllamaEmbedRequest>, ollama_params::EMBED)),
        responses: &[(JSON, schema::<OllamaEmbedResponse>)],
        ..OLLAMA_EMBEDDING
    },
    Route {
        path: "/api/embeddings",
        handler: |method| on(method, ollama_embeddings::embeddings),
        operation_id: "ollamaEmbeddings",
        summary: "Create an embedding (Ollama's predecessor of /api/embed)",
        request: Some(json_body(schema::<OllamaEmbeddingsRequest>, ollama_params::EMBEDDINGS)),
        responses: &[(JSON, schema::<OllamaEmbeddingsResponse>)],
        ..OLLAMA_EMBEDDING
    },
    Route {
        responses: &[(JSON, schema::<OllamaModels<OllamaModel>>)],
        ..get(
            "/api/tags",
            |method| on(method, ollama_models::tags),
            "ollamaTags",
            OLLAMA,
            "List the models (Ollama's API)",
        )
    },
    Route {
        responses: &[(JSON, schema::<OllamaModels<OllamaLoadedModel>>)],
        ..get(
            "/api/ps",
            |method| on(method, ollama_models::ps),
            "ollamaPs",
            OLLAMA,
            "List the models in memory (Ollama's API)",
        )
    },
    Route {
        path: "/api/show",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, ollama_models::show),
        operation_id: "ollamaShow",
        tag: OLLAMA,
        summary: "Describe a model (Ollama's API)",
        request: Some(json_body(schema::<OllamaShowRequest>, ollama_params::SHOW)),
        responses: &[(JSON, schema::<OllamaModelDescription>)],
        response_headers: &["x-ignored-params"],
        error_statuses: MODEL_ERRORS,
    },
    Route {
        path: "/api/pull",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, ollama_models::pull),
        operation_id: "ollamaPull",
        tag: OLLAMA,
        summary: "Download a model, with its progress as a stream (Ollama's API)",
        request: Some(json_body(schema::<OllamaPullRequest>, ollama_params::PULL)),
        responses: &[(JSON, schema::<OllamaPullProgress>), (NDJSON, schema::<OllamaPullProgress>)],
        response_headers: &["x-ignored-params"],
        error_statuses: &[400, 403, 404, 408, 413, 415, 429, 503],
    },
    Route {
        path: "DELETE /api/delete",
        admission: Some(RequestClass::Tokens),
        handler: |method| on(method, ollama_models::delete),
        operation_id: "ollamaDelete",
        tag: OLLAMA,
        summary: "Delete the files of a model (Ollama's API)",
        request: Some(json_body(schema::<OllamaDeleteRequest>, ollama_params::DELETE)),
        responses: &[],
        response_headers: &["x-ignored-params"],
        error_statuses: &[400, 403, 404, 408, 409, 413, 415, 429, 503],
    },
    Route {
        responses: &[(JSON, schema::<OllamaVersion>)],
        ..get(
            "/api/version",
            |method| on(method, ollama_models::version),
            "ollamaVersion",
            OLLAMA,
            "The version of this server (Ollama's API)",
        )
    },
    Route {
        responses: &[(JSON, schema::<Health>)],
        error_statuses: &[503],
        ..get(
            "/health",
            |method| on(method, probes::health),
            "health",
            OPERATIONS,
            "Health check: 200 if the server is ready for requests",
        )
    },
    Route {
        responses: &[(JSON, schema::<Health>)],
        error_statuses: &[503],
        ..get(
            "/readyz",
            |method| on(method, probes::health),
            "ready",
            OPERATIONS,
            "Readiness probe, alias of /health",
        )
    },
    Route {
        responses: &[(JSON, schema::<Health>)],
        ..get(
            "/livez",
            |method| on(method, probes::alive),
            "alive",
            OPERATIONS,
            "Liveness probe: 200 if the process responds",
        )
    },
    Route {
        responses: &[(TEXT, schema::<String>)],
        ..get(
            "/metrics",
            |method| on(method, probes::metrics),
            "metrics",
            OPERATIONS,
            "Metrics in the Prometheus text format",
        )
    },
    Route {
        responses: &[(JSON, schema::<Loads>)],
        ..get(
            "/v1/loads",
            |method| on(method, probes::loads),
            "loads",
            OPERATIONS,
            "Load of each chat model, for load balancers",
        )
    },
    Route {
        responses: &[(JSON, schema::<UsagePage>)],
        error_statuses: &[400],
        ..get(
            "/v1/usage",
            |method| on(method, usage::usage),
            "usage",
            OPERATIONS,
            "Requests and tokens of the client's API key, by day and model",
        )
    },
    Route {
        responses: &[(JSON, any_object)],
        ..get(
            "/openapi.json",
            |method| on(method, openapi_json),
            "describe",
            DOCUMENTATION,
            "This documentation as an OpenAPI document",
        )
    },
    get(
        "/docs",
        |method| on(method, docs),
        "readDescription",
        DOCUMENTATION,
        "This documentation as a web page",
    ),
    get("/", |method| on(method, page::index), "openChatPage", DOCUMENTATION, "Chat page for people"),
    Route {
        responses: &[(BINARY, schema::<String>)],
        error_statuses: &[404],
        ..get(
            "/page/{*path}",
            |method| on(method, page::file),
            "getChatPageFile",
            DOCUMENTATION,
            "A file of the chat page",
        )
    },
];

const RERANK: Route = Route {
    path: "/v1/rerank",
    admission: Some(RequestClass::Embedding),
    handler: |method| on(method, rerank::rerank),
    operation_id: "rerank",
    tag: EMBEDDINGS,
    summary: "Rank documents by relevance to a query",
    request: Some(json_body(schema::<RerankRequest>, params::RERANK)),
    responses: &[(JSON, schema::<RerankAnswer>)],
    response_headers: &["x-ignored-params", "x-cache-hits", "x-truncated-inputs"],
    error_statuses: MODEL_ERRORS,
};

const APPLY_TEMPLATE: Route = Route {
    path: "/apply-template",
    admission: Some(RequestClass::Tokens),
    handler: |method| on(method, tokens::apply_template),
    operation_id: "applyTemplate",
    tag: TOKENS,
    summary: "Render a conversation with the model's chat template",
    request: Some(json_body(schema::<ApplyTemplateRequest>, params::APPLY_TEMPLATE)),
    responses: &[(JSON, schema::<ApplyTemplateResponse>)],
    response_headers: &["x-ignored-params"],
    error_statuses: MODEL_ERRORS,
};

const CONVERSATION: Route = Route {
    path: "",
    admission: None,
    handler: |method| on(method, conversations::retrieve),
    operation_id: "",
    tag: RESPONSES,
    summary: "",
    request: None,
    responses: &[(JSON, schema::<ConversationObject>)],
    response_headers: &["x-ignored-params"],
    error_statuses: &[400, 404, 408, 413, 415, 429, 503],
};

/// The common parts of Ollama's routes that generate.
const OLLAMA_GENERATION: Route = Route {
    path: "",
    admission: Some(RequestClass::Generation),
    handler: |method| on(method, generate::<OllamaRoute<OllamaChat>>),
    operation_id: "",
    tag: OLLAMA,
    summary: "",
    request: None,
    responses: &[],
    response_headers: &["x-ignored-params", "x-cache"],
    error_statuses: MODEL_ERRORS,
};

/// The common parts of Ollama's routes that embed.
const OLLAMA_EMBEDDING: Route = Route {
    admission: Some(RequestClass::Embedding),
    handler: |method| on(method, ollama_embeddings::embed),
    response_headers: &["x-ignored-params", "x-cache-hits", "x-truncated-inputs"],
    ..OLLAMA_GENERATION
};

/// A JSON body.
const fn json_body(schema: SchemaFn, parameters: ParamTable) -> RequestBody {
    RequestBody { media_type: JSON, schema, parameters }
}

/// The common parts of routes that create batches.
const BATCH: Route = Route {
    path: "",
    admission: Some(RequestClass::Tokens),
    handler: |method| on(method, batches::create),
    operation_id: "",
    tag: BATCHES,
    summary: "",
    request: None,
    responses: &[],
    response_headers: &["x-ignored-params"],
    error_statuses: MODEL_ERRORS,
};

const CHAT: &str = "Chat and completions";
const RESPONSES: &str = "Responses and conversations";
const BATCHES: &str = "Files and batches";
const EMBEDDINGS: &str = "Embeddings and reranking";
const TOKENS: &str = "Tokens";
const MODELS: &str = "Models";
const OLLAMA: &str = "Ollama's API";
const OPERATIONS: &str = "Operations";
const DOCUMENTATION: &str = "Documentation";

/// A GET route that responds with HTML; rows may override the rest.
const fn get(
    path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<App>,
    operation_id: &'static str,
    tag: &'static str,
    summary: &'static str,
) -> Route {
    Route {
        path,
        admission: None,
        handler,
        operation_id,
        tag,
        summary,
        request: None,
        responses: &[(HTML, schema::<String>)],
        response_headers: &[],
        error_statuses: &[],
    }
}

/// A route without a body about something stored; rows set the response.
const fn stored(
    path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<App>,
    operation_id: &'static str,
    tag: &'static str,
    summary: &'static str,
) -> Route {
    Route { error_statuses: &[404], ..get(path, handler, operation_id, tag, summary) }
}

/// The API's description, rendered once: each takes milliseconds, and clients may ask for it as often as they like.
struct Description {
    /// The OpenAPI document.
    json: Bytes,
    /// The document as a page.
    page: Bytes,
}

impl Description {
    fn new(requires_key: bool) -> Self {
        let document = document::for_routes(ROUTES, requires_key);
        Self { json: document.to_string().into(), page: docs_page::render(&document).into() }
    }
}

/// The description of a server that requires an API key.
static KEYED: LazyLock<Description> = LazyLock::new(|| Description::new(true));
/// The description of a server that requires none.
static OPEN: LazyLock<Description> = LazyLock::new(|| Description::new(false));

fn description(app: &App) -> &'static Description {
    if app.api_keys().are_required() { &KEYED } else { &OPEN }
}

/// The response to an unknown path.
pub async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    error::unknown_route(&method, &uri, meant_by(ROUTES, uri.path()).map(Route::path))
}

/// `GET /openapi.json`.
async fn openapi_json(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, JSON)], description(&app).json.clone()).into_response()
}

/// `GET /docs`.
async fn docs(State(app): State<App>) -> Html<Bytes> {
    Html(description(&app).page.clone())
}
