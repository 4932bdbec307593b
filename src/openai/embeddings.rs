//! `/v1/embeddings`.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::generation_options::token_limit_schema;
use crate::config::MAX_EMBEDDING_INPUTS;

/// A request for embeddings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct EmbeddingsRequest {
    /// Id or alias of the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The texts to embed.
    #[schemars(example = "A man is eating food.")]
    pub input: TextsOrTokens,
    /// Encoding of the vectors; `float` by default.
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// Number of leading dimensions of each vector to return.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub dimensions: Option<usize>,
    /// Shorten vectors even if the model was not trained for it.
    #[serde(default)]
    pub force_dimensions: Option<bool>,
    /// Purpose of the texts; selects the prompt that the model expects before them.
    #[serde(default)]
    pub input_type: Option<InputType>,
    /// Name of one of the model's prompts, which is put before the texts.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Keep only this many tokens from the beginning of each text, the model's special tokens included; -1 keeps as
    /// many as the model takes.
    #[serde(default)]
    #[schemars(schema_with = "token_limit_schema")]
    pub truncate_prompt_tokens: Option<i64>,
}

/// Purpose of the texts to embed. Names in parentheses are aliases from other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
// With the aliases, which schemars does not see.
#[schemars(extend("oneOf" = [
    {"enum": ["query", "search_query"], "description": "A search query."},
    {"enum": ["document", "search_document", "passage"], "description": "A document to be found."},
]))]
pub enum InputType {
    /// A search query (`search_query`).
    #[serde(alias = "search_query")]
    Query,
    /// A document to be found (`search_document`, `passage`).
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// One or more texts, as strings or as token ids of the model's vocabulary.
///
/// Read without serde's buffer for untagged enums, which takes many times the bytes of a list of numbers, and no
/// further than to the largest number of items.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Input")]
pub enum TextsOrTokens {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(#[schemars(length(min = 1, max = MAX_EMBEDDING_INPUTS))] Vec<String>),
    /// One text as token ids.
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    /// Several texts as token ids.
    TokenLists(
        #[schemars(length(min = 1, max = MAX_EMBEDDING_INPUTS), inner(length(min = 1)))] Vec<Vec<u32>>,
    ),
}

impl<'de> Deserialize<'de> for TextsOrTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

/// Reads the whole input.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = TextsOrTokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a string, an array of strings, an array of token ids, or an array of arrays of token ids",
        )
    }

    fn visit_str<E>(self, text: &str) -> Result<TextsOrTokens, E> {
        Ok(TextsOrTokens::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<TextsOrTokens, E> {
        Ok(TextsOrTokens::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TextsOrTokens, A::Error> {
        // The first item decides for all.
        Ok(match items.next_element::<InputItem>()? {
            None => TextsOrTokens::Texts(Vec::new()),
            Some(InputItem::Text(first)) => TextsOrTokens::Texts(items_after(first, items)?),
            Some(InputItem::Tokens(first)) => TextsOrTokens::TokenLists(items_after(first, items)?),
            Some(InputItem::Token(first)) => {
                let mut ids = vec![first];
                while let Some(id) = items.next_element()? {
                    ids.push(id);
                }
                TextsOrTokens::Tokens(ids)
            }
        })
    }
}

/// The first item of an array.
enum InputItem {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for InputItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;

        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = InputItem;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<InputItem, E> {
                Ok(InputItem::Text(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<InputItem, E> {
                let invalid = |_| E::invalid_value(serde::de::Unexpected::Unsigned(id), &self);
                u32::try_from(id).map(InputItem::Token).map_err(invalid)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<InputItem, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element()? {
                    ids.push(id);
                }
                Ok(InputItem::Tokens(ids))
            }
        }

        deserializer.deserialize_any(ItemVisitor)
    }
}

/// Reads the items that follow the `first`, up to the largest number.
///
/// # Errors
/// When an item is of another type, or there are too many.
pub(super) fn items_after<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut items: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(item) = items.next_element()? {
        if all.len() == MAX_EMBEDDING_INPUTS {
            return Err(A::Error::custom(format!(
                "more than {MAX_EMBEDDING_INPUTS} items; send at most {MAX_EMBEDDING_INPUTS} per request"
            )));
        }
        all.push(item);
    }
    Ok(all)
}

/// Encoding of embedding vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// An array of numbers.
    Float,
    /// Little-endian float32 in base64; the default of OpenAI's own clients.
    Base64,
}

/// The response: one embedding per text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct EmbeddingsResponse {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The embeddings, in the order of the texts.
    pub data: Vec<EmbeddingObject>,
    /// Id of the model.
    pub model: String,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// The embedding of one text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Embedding")]
pub struct EmbeddingObject {
    /// Always `embedding`.
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    /// Index of the text in the request.
    pub index: usize,
    /// The vector.
    pub embedding: EmbeddingVector,
}

/// An embedding vector in the requested encoding.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Vector")]
pub enum EmbeddingVector {
    /// Numbers.
    Float(Vec<f32>),
    /// Little-endian float32 in base64.
    Base64(String),
}

/// Token counts of a request that generates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InputUsage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// Equal to `prompt_tokens`.
    pub total_tokens: usize,
    /// Number of texts that were truncated; left out if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub truncated_inputs: usize,
}

impl InputUsage {
    /// The usage of `n_tokens` tokens, after `n_truncated` texts were truncated.
    pub fn new(n_tokens: usize, n_truncated: usize) -> Self {
        Self { prompt_tokens: n_tokens, total_tokens: n_tokens, truncated_inputs: n_truncated }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<TextsOrTokens, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_of_input_is_read() {
        assert_eq!(read(r#""a""#), Ok(TextsOrTokens::Text("a".into())));
        assert_eq!(read("[]"), Ok(TextsOrTokens::Texts(vec![])));
        assert_eq!(read(r#"["a", "\u00e9"]"#), Ok(TextsOrTokens::Texts(vec!["a".into(), "é".into()])));
        assert_eq!(read("[1, 2]"), Ok(TextsOrTokens::Tokens(vec![1, 2])));
        assert_eq!(
            read("[[1], [], [2, 3]]"),
            Ok(TextsOrTokens::TokenLists(vec![vec![1], vec![], vec![2, 3]]))
        );
    }

    #[test]
    fn other_forms_are_refused() {
        for (json, word) in [
            ("5", "expected a string, an array"),
            ("{}", "expected a string, an array"),
            ("[true]", "expected a string, a token id"),
            (r#"["a", 1]"#, "expected a string"),
            (r#"[1, "a"]"#, "expected u32"),
            ("[-1]", "expected a string, a token id"),
            ("[4294967296]", "expected a string, a token id"),
            ("[[1], 1]", "expected a sequence"),
            ("[[\"a\"]]", "expected u32"),
            ("[1.5]", "expected a string, a token id"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn only_the_largest_number_of_items_is_read() {
        let texts = |n: usize| serde_json::to_string(&vec!["x"; n]).unwrap();
        assert!(read(&texts(MAX_EMBEDDING_INPUTS)).is_ok());
        let lists = serde_json::to_string(&vec![[1]; MAX_EMBEDDING_INPUTS + 1]).unwrap();
        for many in [texts(MAX_EMBEDDING_INPUTS + 1), lists] {
            assert!(read(&many).unwrap_err().contains("at most 2048"));
        }
        let ids = serde_json::to_string(&vec![7; 5000]).unwrap();
        assert_eq!(read(&ids), Ok(TextsOrTokens::Tokens(vec![7; 5000])));
    }
}
