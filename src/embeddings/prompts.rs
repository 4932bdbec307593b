//! Prompt prefixes: text that a model was trained to see before a query or a document.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::EmbeddingSource;
use crate::error::{Error, Result};

/// Selects the prompt prefix of a request's texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PromptPrefix {
    /// No prefix.
    #[default]
    None,
    /// The model's prefix for search queries.
    Query,
    /// The model's prefix for documents to be found.
    Document,
    /// A prompt by its name in the model's files.
    Named(String),
}

/// The prompt prefixes of a model by name, from its catalog row and its own files.
#[derive(Debug, Default)]
pub struct PromptTable(BTreeMap<String, String>);

/// The prompts in `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct SentenceTransformersConfig {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
}

const QUERY: &str = "query";
const DOCUMENT: &str = "document";

impl PromptTable {
    /// Reads the prefixes of a model. Its own files win over its catalog row.
    ///
    /// # Errors
    /// When `config_sentence_transformers.json` is malformed.
    pub fn from_source(source: &EmbeddingSource) -> Result<Self> {
        const FILE: &str = "config_sentence_transformers.json";
        let mut prompts = BTreeMap::new();
        if source.optional_file(FILE).is_some() {
            let file: SentenceTransformersConfig = serde_json::from_slice(&source.read(FILE)?)
                .map_err(|e| Error::model(format!("cannot read {FILE}: {e}")))?;
            prompts = file.prompts;
        }
        if let Some(spec) = source.spec() {
            for (name, prefix) in [(QUERY, spec.prefixes.query), (DOCUMENT, spec.prefixes.document)] {
                prompts.entry(name.to_owned()).or_insert_with(|| prefix.to_owned());
            }
        }
        Ok(Self(prompts))
    }

    /// The text to put before each input. It is empty for queries and documents of a model that has no prefix
    /// for them.
    ///
    /// # Errors
    /// When the model has no prompt of a given name.
    pub fn prefix(&self, prompt: &PromptPrefix) -> Result<&str> {
        let or_empty = |name: &str| self.0.get(name).map_or("", String::as_str);
        match prompt {
            PromptPrefix::None => Ok(""),
            PromptPrefix::Query => Ok(or_empty(QUERY)),
            PromptPrefix::Document => Ok(or_empty(DOCUMENT)),
            PromptPrefix::Named(name) => self.0.get(name).map(String::as_str).ok_or_else(|| {
                let names: Vec<String> = self.0.keys().map(|name| format!("`{name}`")).collect();
                let remedy = if names.is_empty() {
                    "it has none; leave `prompt_name` out".to_owned()
                } else {
                    format!("it has {}", names.join(", "))
                };
                Error::invalid("prompt_name", format!("this model has no prompt `{name}`; {remedy}"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_by_name() {
        let prompts = PromptTable(BTreeMap::from([
            ("query".to_owned(), "query: ".to_owned()),
            ("sts".to_owned(), "compare: ".to_owned()),
        ]));
        let prefix = |prompt| prompts.prefix(&prompt).map_err(|e| e.to_string());
        assert_eq!(prefix(PromptPrefix::None), Ok(""));
        assert_eq!(prefix(PromptPrefix::Query), Ok("query: "));
        assert_eq!(prefix(PromptPrefix::Document), Ok(""));
        assert_eq!(prefix(PromptPrefix::Named("sts".to_owned())), Ok("compare: "));
        let unknown = prefix(PromptPrefix::Named("x".to_owned())).unwrap_err();
        assert!(unknown.contains("`query`, `sts`"), "{unknown}");
        let none = PromptTable::default().prefix(&PromptPrefix::Named("x".to_owned())).unwrap_err();
        assert!(none.to_string().contains("has none"), "{none}");
    }
}
