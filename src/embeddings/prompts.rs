//! Prompt prefixes: text that a model was trained to see before a query or a document.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::EmbeddingSource;
use crate::error::{Error, Result};
use crate::registry::PromptPrefixes;

/// Selects the prompt prefix of a request's texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PromptPrefix {
    /// The model's default prompt; most models have none.
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
pub struct PromptTable {
    prompts: BTreeMap<String, String>,
    /// The prefix of texts without a prompt.
    default: String,
}

/// The prefix that a request selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectedPrompt<'a> {
    /// The text to put before each input.
    pub prefix: &'a str,
    /// Whether the model has prompts of this kind. Without any, the choice has no effect.
    pub is_known: bool,
}

/// The prompts in `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct SentenceTransformersConfig {
    #[serde(default)]
    prompts: Option<BTreeMap<String, String>>,
    #[serde(default)]
    default_prompt_name: Option<String>,
}

/// The names of the prompt for queries; the first that a model has is used.
const QUERY: &[&str] = &["query", "search_query"];
/// The names of the prompt for documents, as sentence-transformers looks for them, and nomic's.
const DOCUMENT: &[&str] = &["document", "passage", "corpus", "search_document"];

/// The file with a model's prompts.
const FILE: &str = "config_sentence_transformers.json";

/// Bytes of a prompt. Every text of a request gets one, so a model must not make them large.
const MAX_PROMPT_BYTES: usize = 4096;

/// Characters of a name from a request that an error message quotes.
const MAX_QUOTED: usize = 64;

/// Names of prompts that an error message lists.
const MAX_LISTED: usize = 20;

impl PromptTable {
    /// Reads the prefixes of a model. Its own files win over `row`, the prefixes in its catalog row.
    ///
    /// # Errors
    /// When `config_sentence_transformers.json` is malformed.
    pub fn from_source(source: &EmbeddingSource, row: Option<PromptPrefixes>) -> Result<Self> {
        let json = source.optional_file(FILE).map(|_| source.read(FILE)).transpose()?;
        Self::new(json.as_deref(), row)
    }

    fn new(json: Option<&[u8]>, row: Option<PromptPrefixes>) -> Result<Self> {
        let mut table = Self::default();
        if let Some(json) = json {
            let file: SentenceTransformersConfig =
                serde_json::from_slice(json).map_err(|e| Error::model(format!("cannot read {FILE}: {e}")))?;
            table.prompts = file.prompts.unwrap_or_default();
            if let Some(name) = file.default_prompt_name {
                let unknown = || {
                    Error::model(format!("`default_prompt_name` in {FILE} is `{name}`, which is no prompt"))
                };
                table.default = table.prompts.get(&name).ok_or_else(unknown)?.clone();
            }
        }
        if let Some((name, prompt)) = table.prompts.iter().find(|(_, prompt)| prompt.len() > MAX_PROMPT_BYTES)
        {
            return Err(Error::model(format!(
                "the prompt `{name}` in {FILE} has {} bytes; at most {MAX_PROMPT_BYTES} are supported",
                prompt.len()
            )));
        }
        // A row without prefixes says nothing that the model's files do not.
        if let Some(row) = row.filter(|row| !row.query.is_empty() || !row.document.is_empty()) {
            for (names, prefix) in [(QUERY, row.query), (DOCUMENT, row.document)] {
                if table.first_of(names).is_none() {
                    table.prompts.insert(names[0].to_owned(), prefix.to_owned());
                }
            }
        }
        Ok(table)
    }

    fn first_of(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|&name| self.prompts.get(name)).map(String::as_str)
    }

    /// The text to put before each input. It is empty for queries and documents of a model that has no prefix
    /// for them.
    ///
    /// # Errors
    /// When the model has no prompt of a given name.
    pub fn select(&self, prompt: &PromptPrefix) -> Result<SelectedPrompt<'_>> {
        // With a prefix for queries alone, documents are known to have none, and the other way round.
        let is_known = self.first_of(QUERY).or(self.first_of(DOCUMENT)).is_some();
        let for_purpose = |names| {
            let prefix = self.first_of(names).unwrap_or(if is_known { "" } else { &self.default });
            SelectedPrompt { prefix, is_known }
        };
        match prompt {
            PromptPrefix::None => Ok(SelectedPrompt { prefix: &self.default, is_known: true }),
            PromptPrefix::Query => Ok(for_purpose(QUERY)),
            PromptPrefix::Document => Ok(for_purpose(DOCUMENT)),
            PromptPrefix::Named(name) => {
                let prefix = self.prompts.get(name).ok_or_else(|| self.unknown(name))?;
                Ok(SelectedPrompt { prefix, is_known: true })
            }
        }
    }

    /// The error of a prompt that the model does not have.
    fn unknown(&self, name: &str) -> Error {
        let quote = |name: &str| format!("`{}`", name.chars().take(MAX_QUOTED).collect::<String>());
        let mut names: Vec<String> = self.prompts.keys().take(MAX_LISTED).map(|name| quote(name)).collect();
        if self.prompts.len() > MAX_LISTED {
            names.push(format!("and {} more", self.prompts.len() - MAX_LISTED));
        }
        let remedy = if names.is_empty() {
            "it has none; leave `prompt_name` out".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        Error::invalid("prompt_name", format!("this model has no prompt {}; {remedy}", quote(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(json: &str, row: Option<PromptPrefixes>) -> Result<PromptTable> {
        PromptTable::new((!json.is_empty()).then_some(json.as_bytes()), row)
    }

    /// The prefix, and whether it is known.
    fn selected(table: &PromptTable, prompt: &PromptPrefix) -> Result<(String, bool), String> {
        let selected = table.select(prompt).map_err(|e| e.to_string())?;
        Ok((selected.prefix.to_owned(), selected.is_known))
    }

    fn named(name: &str) -> PromptPrefix {
        PromptPrefix::Named(name.to_owned())
    }

    const ROW: PromptPrefixes = PromptPrefixes { query: "q: ", document: "d: " };

    #[test]
    fn prefixes_are_found_by_name() {
        let prompts = table(r#"{"prompts": {"query": "query: ", "sts": "compare: "}}"#, None).unwrap();
        let known = |prefix: &str| Ok((prefix.to_owned(), true));
        assert_eq!(selected(&prompts, &PromptPrefix::None), known(""));
        assert_eq!(selected(&prompts, &PromptPrefix::Query), known("query: "));
        assert_eq!(selected(&prompts, &PromptPrefix::Document), known(""));
        assert_eq!(selected(&prompts, &named("sts")), known("compare: "));
        let unknown = selected(&prompts, &named("x")).unwrap_err();
        assert!(unknown.contains("`query`, `sts`"), "{unknown}");
        let none = selected(&PromptTable::default(), &named("x")).unwrap_err();
        assert!(none.contains("has none"), "{none}");
    }

    #[test]
    fn without_prompts_the_purpose_is_not_known() {
        let plain = PromptPrefixes { query: "", document: "" };
        for prompts in
            [table("", None), table("", Some(plain)), table(r#"{"prompts": {"sts": "s: "}}"#, None)]
        {
            let prompts = prompts.unwrap();
            for purpose in [PromptPrefix::Query, PromptPrefix::Document] {
                assert_eq!(selected(&prompts, &purpose), Ok((String::new(), false)));
            }
        }
    }

    #[test]
    fn the_files_win_over_the_catalog() {
        let of = |json: &str| {
            let prompts = table(json, Some(ROW)).unwrap();
            [PromptPrefix::Query, PromptPrefix::Document]
                .map(|purpose| selected(&prompts, &purpose).unwrap().0)
        };
        assert_eq!(of(""), ["q: ", "d: "]);
        assert_eq!(of(r#"{"prompts": {"query": "own: "}}"#), ["own: ", "d: "]);
        assert_eq!(of(r#"{"prompts": {"passage": "p: "}}"#), ["q: ", "p: "]);
        assert_eq!(of(r#"{"prompts": null}"#), ["q: ", "d: "]);
    }

    #[test]
    fn the_default_prompt_applies_where_none_is_chosen() {
        let prompts =
            table(r#"{"prompts": {"query": "q: ", "sts": "s: "}, "default_prompt_name": "sts"}"#, None)
                .unwrap();
        assert_eq!(selected(&prompts, &PromptPrefix::None).unwrap().0, "s: ");
        assert_eq!(selected(&prompts, &PromptPrefix::Document).unwrap().0, "");
        let error = table(r#"{"default_prompt_name": "x"}"#, None).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }

    #[test]
    fn large_prompts_are_refused_and_many_are_not_listed() {
        let large = format!(r#"{{"prompts": {{"query": "{}"}}}}"#, "x".repeat(MAX_PROMPT_BYTES + 1));
        assert!(table(&large, None).unwrap_err().to_string().contains("4097 bytes"));
        let many: Vec<String> = (0..1000).map(|idx| format!(r#""p{idx}": """#)).collect();
        let many = table(&format!(r#"{{"prompts": {{{}}}}}"#, many.join(",")), None).unwrap();
        let error = selected(&many, &named("x")).unwrap_err();
        assert!(error.ends_with("and 980 more") && error.len() < 400, "{error}");
        assert!(selected(&many, &named(&"é".repeat(1 << 20))).unwrap_err().len() < 600);
    }
}
