//! The Responses API: items in, items and events out, on top of the chat layer.
//!
//! [`translate()`] turns a request into one of the chat layer, and a [`ResponseBuilder`] turns the chat layer's
//! events into items and events of the wire. [`ResponseState`] keeps them for later turns. None of them knows HTTP.

mod builder;
mod compaction;
mod custom_input;
mod input;
mod reasoning_blob;
mod sequence;
mod state;
mod tools;
mod translate;

pub use builder::{OutputSettings, ResponseBuilder};
pub use compaction::{ask_for_summary, compacted, max_summary_tokens, summary_request, user_messages};
pub use input::{ContextItem, check_items};
pub use reasoning_blob::BlobSigner;
pub use sequence::replay;
pub use state::{ResponseState, StoredConversation, StoredResponse, new_id, stored_input};
pub use translate::{
    TranslatedRequest, blank_response, check_references, input_items, translate, with_own_names,
};
