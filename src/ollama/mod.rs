//! Ollama's API: its wire types, the treatment of its parameters, and its requests in terms of chat and of text
//! completions.

pub mod error;
pub mod models;
mod names;
pub mod params;
pub mod requests;
pub mod responses;
mod translate;

pub use names::OllamaNames;
pub use translate::{OllamaPrompt, OllamaSurface, OllamaTranslation};
