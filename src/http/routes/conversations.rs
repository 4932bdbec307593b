//! `/v1/conversations`: stored conversations and their items.

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::app::{App, unix_time};
use crate::error::{Error, Kind, Result, quote};
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, respond_with};
use crate::http::middleware::auth::Owner;
use crate::http::query::{PathId, PathIds, QueryParams};
use crate::openai::responses::JsonMap;
use crate::openai::responses::conversations::{
    ConversationObject, ConversationRequest, ConversationUpdate, Deleted, ItemList, ItemsRequest, id_of_item,
};
use crate::openai::{check_metadata, params};
use crate::responses::{StoredConversation, check_items};

/// The most items of one request; OpenAI's own limit.
const MAX_NEW_ITEMS: usize = 20;

/// Creates a conversation.
pub async fn create(
    State(app): State<App>,
    Owner(owner): Owner,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<ConversationRequest>(params::CONVERSATION).await?;
    let items = request.items.unwrap_or_default();
    check_new_items(&items)?;
    let metadata = request.metadata.unwrap_or_default();
    check_metadata(metadata.iter())?;
    let create = move |state: &crate::responses::ResponseState| {
        state.create_conversation(&owner, metadata, items, unix_time())
    };
    let (id, stored) = app.with_state(create).await?;
    ignored.respond(&conversation_object(id, &stored))
}

/// Describes a conversation.
pub async fn retrieve(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let wanted = id.clone();
    let stored = app.with_state(move |state| state.conversation(&owner, &wanted)).await?;
    respond_with(&conversation_object(id, &stored))
}

/// Replaces the metadata of a conversation.
pub async fn update(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<ConversationUpdate>(params::CONVERSATION_UPDATE).await?;
    let metadata = request.metadata.unwrap_or_default();
    check_metadata(metadata.iter())?;
    let changed = id.clone();
    let change = move |stored: &mut StoredConversation| {
        stored.metadata = metadata;
        Ok(StoredConversation { items: Vec::new(), ..stored.clone() })
    };
    let stored = app.with_state(move |state| state.change_conversation(&owner, &changed, change)).await?;
    ignored.respond(&conversation_object(id, &stored))
}

/// Deletes a conversation.
pub async fn delete(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let removed = id.clone();
    app.with_state(move |state| state.remove_conversation(&owner, &removed)).await?;
    respond_with(&Deleted { id, object: "conversation.deleted", deleted: true })
}

/// Lists the items of a conversation.
pub async fn list_items(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let list = query.list()?;
    let stored = app.with_state(move |state| state.conversation(&owner, &id)).await?;
    let (data, has_more) = list.page(&stored.items, id_of_item)?;
    respond_with(&ItemList::new(data, has_more))
}

/// Adds items to a conversation.
pub async fn create_items(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<ItemsRequest>(params::CONVERSATION_ITEMS).await?;
    check_new_items(&request.items)?;
    let added = app.with_state(move |state| state.append_items(&owner, &id, request.items)).await?;
    ignored.respond(&ItemList::new(added, false))
}

/// Shows an item of a conversation.
pub async fn retrieve_item(
    State(app): State<App>,
    Owner(owner): Owner,
    PathIds(id, item_id): PathIds,
) -> Result<Response, ApiError> {
    let stored = app.with_state(move |state| state.conversation(&owner, &id)).await?;
    let found = stored.items.into_iter().find(|item| is_item(item, &item_id));
    respond_with(&found.ok_or_else(|| no_item(&item_id))?)
}

/// Removes an item from a conversation, and shows the conversation.
pub async fn delete_item(
    State(app): State<App>,
    Owner(owner): Owner,
    PathIds(id, item_id): PathIds,
) -> Result<Response, ApiError> {
    let changed = id.clone();
    let change = move |stored: &mut StoredConversation| {
        let n_before = stored.items.len();
        stored.items.retain(|item| !is_item(item, &item_id));
        if stored.items.len() == n_before {
            return Err(no_item(&item_id));
        }
        Ok(StoredConversation { items: Vec::new(), ..stored.clone() })
    };
    let stored = app.with_state(move |state| state.change_conversation(&owner, &changed, change)).await?;
    respond_with(&conversation_object(id, &stored))
}

fn is_item(item: &JsonMap, id: &str) -> bool {
    id_of_item(item) == Some(id)
}

fn no_item(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("the conversation has no item `{}`", quote(id)))
}

/// Checks the number and the form of new items.
fn check_new_items(items: &[JsonMap]) -> Result<()> {
    if items.len() > MAX_NEW_ITEMS {
        let message = format!("`items` has {} items; at most {MAX_NEW_ITEMS} are allowed", items.len());
        return Err(Error::invalid("items", message));
    }
    check_items(items)
}

fn conversation_object(id: String, stored: &StoredConversation) -> ConversationObject {
    let StoredConversation { created_at, metadata, .. } = stored;
    ConversationObject { id, object: "conversation", created_at: *created_at, metadata: json!(metadata) }
}
