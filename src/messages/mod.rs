//! Anthropic's Messages API in terms of chat: requests are translated to chat requests, and responses back.

mod content;
mod input_tools;
mod names;
mod request;
mod response;
mod signature;

pub use names::Origins;
pub use request::{MessagesTranslation, translate, translate_prompt};
pub use response::{MessageEvents, MessageForm, MessageParts};
