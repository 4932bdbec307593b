//! Stored responses and conversations of tenants.
//!
//! A response is stored with the input of its own turn and a reference to the one before, so a long conversation
//! takes no more room than its items. A conversation is one record with its items.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::builder::{item_id, owner_of_item};
use super::input::{ContextItem, item_type};
use super::reasoning_blob::BlobSigner;
use crate::error::{Error, Kind, Result, quote};
use crate::openai::responses::output::ResponseObject;
use crate::openai::responses::{JsonMap, ResponsesRequest};
use crate::store::RecordStore;

/// The most responses of a chain of `previous_response_id`.
const MAX_CHAIN: usize = 1000;

/// The most bytes of the stored items that a request refers to.
const MAX_CONTEXT_BYTES: usize = 16 << 20;

/// The most items of a conversation.
const MAX_ITEMS: usize = 4096;

/// The name of the key for signatures in the store.
const BLOB_KEY: &str = "blob_key";

/// The stored responses and conversations, and the key for signatures.
pub struct ResponseState {
    store: RecordStore,
    blob_key: [u8; 32],
}

/// A stored response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredResponse {
    /// The response.
    pub response: ResponseObject,
    /// The items of its own turn, each with an id.
    pub input: Vec<JsonMap>,
    /// Bytes of the deltas of every item of the output.
    pub deltas: Vec<Vec<u32>>,
}

/// A stored conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredConversation {
    /// Unix time at which it was created, in seconds.
    pub created_at: u64,
    /// The client's pairs of a key and a text.
    pub metadata: BTreeMap<String, String>,
    /// The items, each with an id.
    pub items: Vec<JsonMap>,
    /// The number of the next item.
    pub next_number: usize,
}

impl ResponseState {
    /// State in `store`.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn new(store: RecordStore) -> Result<Self> {
        let make = || [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
        let key = store.meta(BLOB_KEY, make)?;
        let blob_key = key.try_into().map_err(|_| Error::internal("the stored key has another length"))?;
        Ok(Self { store, blob_key })
    }

    /// The signer of a tenant's texts.
    pub fn signer(&self, tenant: &str) -> BlobSigner {
        BlobSigner::new(&self.blob_key, tenant)
    }

    /// The conversation of a request: stored items that it refers to, then its own `input`.
    ///
    /// # Errors
    /// When something that it refers to is not stored, or is too large.
    pub fn context(
        &self,
        tenant: &str,
        request: &ResponsesRequest,
        input: &[ContextItem],
    ) -> Result<Vec<ContextItem>> {
        let mut items = match (&request.previous_response_id, &request.conversation) {
            (Some(id), _) => self.chain(tenant, id)?,
            (None, Some(conversation)) => {
                let stored =
                    self.conversation(tenant, conversation.id()).map_err(|e| e.with_param("conversation"))?;
                stored.items.into_iter().map(|item| stored_item(item, "conversation")).collect()
            }
            (None, None) => Vec::new(),
        };
        for context in input {
            if item_type(&context.item, &context.path)? == "item_reference" {
                let item = self.referenced(tenant, context, &items)?;
                items.push(stored_item(item, &context.path));
            } else {
                items.push(context.clone());
            }
        }
        Ok(items)
    }

    /// The items of a response and of those before it, the oldest first.
    fn chain(&self, tenant: &str, id: &str) -> Result<Vec<ContextItem>> {
        let param = "previous_response_id";
        let mut turns: Vec<Vec<JsonMap>> = Vec::new();
        let mut n_bytes = 0;
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            let Some((stored, size)) = self.read::<StoredResponse>(tenant, &id)? else {
                let message = format!(
                    "the previous response `{}` is not stored; it was deleted, has expired, or was created with `store: \
                     false`; send the whole conversation as `input`",
                    quote(&id)
                );
                return Err(Error::new(Kind::PreviousResponseNotFound, message).with_param(param));
            };
            n_bytes += size;
            if turns.len() == MAX_CHAIN || n_bytes > MAX_CONTEXT_BYTES {
                let message = format!(
                    "the conversation before `{}` has more than {MAX_CHAIN} responses or {MAX_CONTEXT_BYTES} bytes; send \
                     the part that matters as `input`",
                    quote(&id)
                );
                return Err(Error::invalid(param, message));
            }
            if stored.response.status.is_running() {
                let message =
                    format!("response `{}` is still generated; wait until it is complete", quote(&id));
                return Err(Error::invalid(param, message));
            }
            next = stored.response.previous_response_id.clone();
            let mut turn = stored.input;
            turn.extend(output_items(&stored.response)?);
            turns.push(turn);
        }
        Ok(turns.into_iter().rev().flatten().map(|item| stored_item(item, param)).collect())
    }

    /// The item that a reference names: one of the conversation so far, or of any stored response or conversation.
    fn referenced(&self, tenant: &str, reference: &ContextItem, context: &[ContextItem]) -> Result<JsonMap> {
        let path = format!("{}.id", reference.path);
        let id = super::tools::text_field(&reference.item, "id", &reference.path)?;
        let is_named = |item: &&JsonMap| item.get("id").and_then(Value::as_str) == Some(id);
        if let Some(found) = context.iter().map(|context| &context.item).find(is_named) {
            return Ok(found.clone());
        }
        if let Some(owner) = owner_of_item(id) {
            if let Some((stored, _)) = self.read::<StoredResponse>(tenant, &format!("resp_{owner}"))? {
                let output = output_items(&stored.response)?;
                if let Some(found) = output.iter().chain(&stored.input).find(is_named) {
                    return Ok(found.clone());
                }
            }
            if let Some((stored, _)) = self.read::<StoredConversation>(tenant, &format!("conv_{owner}"))?
                && let Some(found) = stored.items.iter().find(is_named)
            {
                return Ok(found.clone());
            }
        }
        let message = format!(
            "`{path}` is `{}`, which is not stored; it was deleted, has expired, or is of a response with `store: false`; \
             send the item itself",
            quote(id)
        );
        Err(Error::new(Kind::NotFound, message).with_param(path))
    }

    /// Stores a response, and adds its turn to its conversation.
    ///
    /// # Errors
    /// When it is too large, or the store cannot be written.
    pub fn store_response(&self, tenant: &str, stored: &StoredResponse) -> Result<()> {
        let id = stored.response.id.clone();
        self.store.put(tenant, &id, to_bytes(stored)?, SystemTime::now())
    }

    /// Adds the turn of a response to a conversation.
    ///
    /// # Errors
    /// When the conversation is gone or full, or the store cannot be written.
    pub fn append_turn(
        &self,
        tenant: &str,
        conversation: &str,
        input: &[JsonMap],
        response: &ResponseObject,
    ) -> Result<()> {
        let items = input.iter().cloned().chain(output_items(response)?).collect();
        self.append_items(tenant, conversation, items).map(drop)
    }

    /// A stored response.
    ///
    /// # Errors
    /// When it is not stored, or the store cannot be read.
    pub fn response(&self, tenant: &str, id: &str) -> Result<StoredResponse> {
        let found = self.read(tenant, id)?;
        found.map(|(stored, _)| stored).ok_or_else(|| not_stored("response", id))
    }

    /// Removes a response.
    ///
    /// # Errors
    /// When it is not stored, or the store cannot be written.
    pub fn remove_response(&self, tenant: &str, id: &str) -> Result<()> {
        self.remove(tenant, id, "response")
    }

    /// Creates a conversation, and returns its id.
    ///
    /// # Errors
    /// When there are too many items, or the store cannot be written.
    pub fn create_conversation(
        &self,
        tenant: &str,
        metadata: BTreeMap<String, String>,
        items: Vec<JsonMap>,
        created_at: u64,
    ) -> Result<(String, StoredConversation)> {
        let id = new_id("conv");
        let mut stored = StoredConversation { created_at, metadata, items: Vec::new(), next_number: 0 };
        stored.append(&id, items)?;
        self.store.put(tenant, &id, to_bytes(&stored)?, SystemTime::now())?;
        Ok((id, stored))
    }

    /// A stored conversation.
    ///
    /// # Errors
    /// When it is not stored, or the store cannot be read.
    pub fn conversation(&self, tenant: &str, id: &str) -> Result<StoredConversation> {
        let found = self.read(tenant, id)?;
        found.map(|(stored, _)| stored).ok_or_else(|| not_stored("conversation", id))
    }

    /// Changes a conversation, and returns what `change` returns.
    ///
    /// # Errors
    /// When it is not stored, `change` fails, or the store cannot be written.
    pub fn change_conversation<T>(
        &self,
        tenant: &str,
        id: &str,
        change: impl FnOnce(&mut StoredConversation) -> Result<T>,
    ) -> Result<T> {
        if !id.starts_with("conv_") {
            return Err(not_stored("conversation", id));
        }
        self.store.update(tenant, id, SystemTime::now(), |value| {
            let value = value.ok_or_else(|| not_stored("conversation", id))?;
            let mut stored: StoredConversation = from_bytes(&value)?;
            let result = change(&mut stored)?;
            Ok((Some(to_bytes(&stored)?), result))
        })
    }

    /// Adds items to a conversation, and returns them with their ids.
    ///
    /// # Errors
    /// When the conversation is not stored or full, or the store cannot be written.
    pub fn append_items(&self, tenant: &str, id: &str, items: Vec<JsonMap>) -> Result<Vec<JsonMap>> {
        self.change_conversation(tenant, id, |stored| {
            let n_before = stored.items.len();
            stored.append(id, items)?;
            Ok(stored.items[n_before..].to_vec())
        })
    }

    /// Removes a conversation.
    ///
    /// # Errors
    /// When it is not stored, or the store cannot be written.
    pub fn remove_conversation(&self, tenant: &str, id: &str) -> Result<()> {
        self.remove(tenant, id, "conversation")
    }

    fn remove(&self, tenant: &str, id: &str, what: &str) -> Result<()> {
        let is_kind = id.starts_with(if what == "response" { "resp_" } else { "conv_" });
        match is_kind && self.store.remove(tenant, id, SystemTime::now())? {
            true => Ok(()),
            false => Err(not_stored(what, id)),
        }
    }

    /// A record and its size.
    fn read<T: DeserializeOwned + Record>(&self, tenant: &str, id: &str) -> Result<Option<(T, usize)>> {
        if !id.starts_with(T::ID_PREFIX) {
            return Ok(None);
        }
        let Some(bytes) = self.store.get(tenant, id, SystemTime::now())? else { return Ok(None) };
        Ok(Some((from_bytes(&bytes)?, bytes.len())))
    }
}

/// What is stored, by the beginning of its ids.
trait Record {
    const ID_PREFIX: &'static str;
}

impl Record for StoredResponse {
    const ID_PREFIX: &'static str = "resp_";
}

impl Record for StoredConversation {
    const ID_PREFIX: &'static str = "conv_";
}

impl StoredConversation {
    /// Adds items, each with an id.
    fn append(&mut self, id: &str, items: Vec<JsonMap>) -> Result<()> {
        if self.items.len() + items.len() > MAX_ITEMS {
            let message = format!("a conversation has at most {MAX_ITEMS} items; begin another one");
            return Err(Error::invalid("items", message));
        }
        for (item, number) in items.into_iter().zip(self.next_number..) {
            self.items.push(with_id(item, id, number));
            self.next_number = number + 1;
        }
        Ok(())
    }
}

/// A new id that begins with `prefix`.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

/// The items of a turn as they are stored: each has an id and a type, and a message has parts.
pub fn stored_input(input: &[ContextItem], response_id: &str) -> Vec<JsonMap> {
    // Numbers that the items of the output do not have.
    let numbers = FIRST_INPUT_NUMBER..;
    let own = input.iter().filter(|context| !is_reference(&context.item));
    own.zip(numbers).map(|(context, number)| with_id(context.item.clone(), response_id, number)).collect()
}

/// The number in the id of the first item of a response's input.
const FIRST_INPUT_NUMBER: usize = 0x8000;

fn is_reference(item: &JsonMap) -> bool {
    item_type(item, "").is_ok_and(|kind| kind == "item_reference")
}

/// An item with an id, a type and, where it can have one, a status.
fn with_id(mut item: JsonMap, owner: &str, number: usize) -> JsonMap {
    let kind = item_type(&item, "").unwrap_or("message").to_owned();
    if !item.get("id").is_some_and(Value::is_string) {
        let prefix = match kind.as_str() {
            "message" => "msg",
            "function_call" => "fc",
            "function_call_output" => "fco",
            "custom_tool_call" => "ctc",
            "custom_tool_call_output" => "ctco",
            "reasoning" => "rs",
            _ => "item",
        };
        item.insert("id".to_owned(), item_id(prefix, owner, number).into());
    }
    if kind == "message" {
        let is_output = item.get("role").is_some_and(|role| role == "assistant");
        let part_kind = if is_output { "output_text" } else { "input_text" };
        if let Some(text) = item.get("content").and_then(Value::as_str) {
            let mut part =
                JsonMap::from_iter([("type".to_owned(), part_kind.into()), ("text".to_owned(), text.into())]);
            if is_output {
                part.insert("annotations".to_owned(), Value::Array(Vec::new()));
            }
            item.insert("content".to_owned(), Value::Array(vec![part.into()]));
        }
    }
    item.insert("type".to_owned(), kind.into());
    if !item.get("status").is_some_and(Value::is_string) {
        item.insert("status".to_owned(), "completed".into());
    }
    item
}

/// The items of a response's output as JSON.
fn output_items(response: &ResponseObject) -> Result<Vec<JsonMap>> {
    let failed = |e| Error::internal(format!("an item cannot be serialized: {e}"));
    let values = response.output.iter().map(|item| serde_json::to_value(item).map_err(failed));
    values.map(|value| Ok(value?.as_object().cloned().unwrap_or_default())).collect()
}

fn stored_item(item: JsonMap, path: &str) -> ContextItem {
    ContextItem { item, path: path.to_owned(), is_stored: true }
}

fn not_stored(what: &str, id: &str) -> Error {
    let message = format!(
        "{what} `{}` is not stored; it was deleted, has expired, or belongs to another key",
        quote(id)
    );
    Error::new(Kind::NotFound, message)
}

fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::internal(format!("cannot serialize what is to be stored: {e}")))
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::internal(format!("what is stored cannot be read: {e}")))
}
