//! What a model was trained to see before a text.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::EmbeddingSource;
use crate::error::{Error, Result};

/// What the model is to see before each text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prompt {
    #[default]
    Nothing,
    /// What it was trained to see before a text that searches.
    Query,
    /// And before one that is found.
    Document,
    /// One of the prompts that its files name.
    Named(String),
}

/// The prompts of a model, by name: those of its catalog row, and those of its own files.
#[derive(Debug, Default)]
pub struct Prompts(BTreeMap<String, String>);

/// `config_sentence_transformers.json`, as far as it is about prompts.
#[derive(Deserialize)]
struct SentenceTransformers {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
}

const QUERY: &str = "query";
const DOCUMENT: &str = "document";

impl Prompts {
    /// Those of a model.
    ///
    /// # Errors
    /// When its file of prompts is malformed.
    pub fn of(source: &EmbeddingSource) -> Result<Self> {
        const FILE: &str = "config_sentence_transformers.json";
        let mut prompts = BTreeMap::new();
        if source.optional_file(FILE).is_some() {
            let file: SentenceTransformers = serde_json::from_slice(&source.read(FILE)?)
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

    /// What stands before each text. A model without a prompt for queries or documents takes these as they are.
    ///
    /// # Errors
    /// When a prompt is asked for by a name that the model does not have.
    pub fn prefix(&self, prompt: &Prompt) -> Result<&str> {
        let of = |name: &str| self.0.get(name).map_or("", String::as_str);
        match prompt {
            Prompt::Nothing => Ok(""),
            Prompt::Query => Ok(of(QUERY)),
            Prompt::Document => Ok(of(DOCUMENT)),
            Prompt::Named(name) => self.0.get(name).map(String::as_str).ok_or_else(|| {
                let names: Vec<String> = self.0.keys().map(|name| format!("`{name}`")).collect();
                let has = if names.is_empty() {
                    "it has none; leave it out".to_owned()
                } else {
                    format!("it has {}", names.join(", "))
                };
                Error::invalid("prompt_name", format!("this model has no prompt `{name}`; {has}"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_found_by_name() {
        let prompts = Prompts(BTreeMap::from([
            ("query".to_owned(), "query: ".to_owned()),
            ("sts".to_owned(), "compare: ".to_owned()),
        ]));
        let prefix = |prompt| prompts.prefix(&prompt).map_err(|e| e.to_string());
        assert_eq!(prefix(Prompt::Nothing), Ok(""));
        assert_eq!(prefix(Prompt::Query), Ok("query: "));
        assert_eq!(prefix(Prompt::Document), Ok(""));
        assert_eq!(prefix(Prompt::Named("sts".to_owned())), Ok("compare: "));
        let unknown = prefix(Prompt::Named("x".to_owned())).unwrap_err();
        assert!(unknown.contains("`query`, `sts`"), "{unknown}");
        let none = Prompts::default().prefix(&Prompt::Named("x".to_owned())).unwrap_err();
        assert!(none.to_string().contains("has none"), "{none}");
    }
}
