//! `/v1/rerank`, as in Cohere's and Jina's APIs, and `/v1/score`, as in vLLM's.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::embeddings::{InputUsage, items_after};
use crate::config::MAX_EMBEDDING_INPUTS;

/// A query and the documents to rank by relevance to it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RerankRequest {
    /// Id or alias of the reranker or the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The query.
    #[schemars(example = "What is the capital of France?")]
    pub query: String,
    /// The documents.
    #[serde(deserialize_with = "documents")]
    #[schemars(length(min = 1, max = MAX_EMBEDDING_INPUTS), example = ["Berlin is in Germany.", "Paris is the capital."])]
    pub documents: Vec<Document>,
    /// Number of best documents to return; all by default.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub top_n: Option<usize>,
    /// Another name of `top_n`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub top_k: Option<usize>,
    /// Id of the request in SGLang's API; if it is sent, even as null, the response has the form of that.
    #[serde(default, deserialize_with = "even_if_null")]
    pub rid: Option<Option<String>>,
    /// Include the documents' texts in the response.
    #[serde(default)]
    pub return_documents: Option<bool>,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Truncate documents to this many tokens.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_tokens_per_doc: Option<usize>,
    /// Return the model's raw scores.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

/// A document: a string, or an object with `text`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(untagged)]
pub enum Document {
    /// The text alone.
    Text(String),
    /// The text in an object.
    Object {
        /// The text.
        text: String,
    },
}

impl Document {
    /// Returns the text.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DocumentVisitor;

        impl<'de> Visitor<'de> for DocumentVisitor {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an object with `text`")
            }

            fn visit_str<E>(self, text: &str) -> Result<Document, E> {
                Ok(Document::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Document, E> {
                Ok(Document::Text(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Document, A::Error> {
                let mut text = None;
                while let Some(name) = fields.next_key::<String>()? {
                    if name == "text" {
                        text = Some(fields.next_value()?);
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                let text =
                    text.ok_or_else(|| A::Error::custom("expected a string or an object with `text`"))?;
                Ok(Document::Object { text })
            }
        }

        deserializer.deserialize_any(DocumentVisitor)
    }
}

/// Reads the documents, no further than to the largest number.
fn documents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Document>, D::Error> {
    struct DocumentsVisitor;

    impl<'de> Visitor<'de> for DocumentsVisitor {
        type Value = Vec<Document>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of documents")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Document>, A::Error> {
            match items.next_element()? {
                None => Ok(Vec::new()),
                Some(first) => items_after(first, items),
            }
        }
    }

    deserializer.deserialize_seq(DocumentsVisitor)
}

/// A field that was sent, whether or not it is null.
fn even_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// The response, in the form of the client's API.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RerankAnswer {
    /// As in Cohere's and Jina's APIs.
    Object(RerankResponse),
    /// As in SGLang's API: the documents alone, best first.
    List(Vec<SglangRanking>),
}

/// A ranked document in SGLang's form.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SglangRanking {
    /// Relevance to the query; higher is better.
    pub score: f32,
    /// The text of the document, if `return_documents` was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Index of the document in the request.
    pub index: usize,
}

impl From<RerankResult> for SglangRanking {
    fn from(RerankResult { index, relevance_score, document }: RerankResult) -> Self {
        Self { score: relevance_score, document: document.map(|document| document.text), index }
    }
}

/// The response: documents by descending relevance.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResponse {
    /// Id of the response.
    pub id: String,
    /// Id of the model.
    pub model: String,
    /// The documents, best first.
    pub results: Vec<RerankResult>,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// A ranked document.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RerankResult {
    /// Index of the document in the request.
    pub index: usize,
    /// Relevance to the query; higher is better.
    pub relevance_score: f32,
    /// The document, if `return_documents` was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<ReturnedDocument>,
}

/// A document of the request, returned.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReturnedDocument {
    /// The text.
    pub text: String,
}

/// Pairs of texts to score.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ScoreRequest {
    /// Id or alias of the reranker or the embedding model.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The first texts of the pairs.
    #[schemars(example = "a cat")]
    pub text_1: ScoreTexts,
    /// The second texts: as many as in `text_1`, or one of the two has a single text.
    #[schemars(example = ["a dog", "a car"])]
    pub text_2: ScoreTexts,
    /// Truncate texts that are too long instead of refusing them.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Return the model's raw scores.
    #[serde(default)]
    pub raw_scores: Option<bool>,
}

/// One text or several, in a request for scores.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(untagged)]
pub enum ScoreTexts {
    /// A text.
    One(String),
    /// An array of texts.
    Many(#[schemars(length(min = 1, max = MAX_EMBEDDING_INPUTS))] Vec<String>),
}

impl ScoreTexts {
    /// The texts.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl<'de> Deserialize<'de> for ScoreTexts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;

        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = ScoreTexts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<ScoreTexts, E> {
                Ok(ScoreTexts::One(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<ScoreTexts, E> {
                Ok(ScoreTexts::One(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ScoreTexts, A::Error> {
                Ok(ScoreTexts::Many(match items.next_element()? {
                    None => Vec::new(),
                    Some(first) => items_after(first, items)?,
                }))
            }
        }

        deserializer.deserialize_any(TextsVisitor)
    }
}

/// The response: one score per pair.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ScoreResponse {
    /// Id of the response.
    pub id: String,
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// Unix time of the response in seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// The scores, in the order of the pairs.
    pub data: Vec<Score>,
    /// Tokens of the request.
    pub usage: InputUsage,
}

/// The score of one pair.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Score {
    /// Index of the pair.
    pub index: usize,
    /// Always `score`.
    #[schemars(extend("const" = "score"))]
    pub object: &'static str,
    /// The score; higher is more similar.
    pub score: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_strings_or_objects() {
        let read = |json: &str| serde_json::from_str::<Document>(json).map_err(|e| e.to_string());
        assert_eq!(read(r#""a""#), Ok(Document::Text("a".into())));
        assert_eq!(read(r#"{"x": [1], "text": "a"}"#), Ok(Document::Object { text: "a".into() }));
        for bad in ["5", "{}", r#"{"text": 5}"#, "[]"] {
            assert!(read(bad).unwrap_err().contains("expected a string"), "{bad}");
        }
    }

    #[test]
    fn lists_are_read_up_to_the_largest_number() {
        let read = |n: usize| {
            let texts = serde_json::json!(vec!["x"; n]);
            let rerank = serde_json::json!({"query": "q", "documents": texts});
            let score = serde_json::json!({"text_1": "q", "text_2": texts});
            let rerank =
                serde_json::from_value::<RerankRequest>(rerank).map(|request| request.documents.len());
            let score =
                serde_json::from_value::<ScoreRequest>(score).map(|request| request.text_2.into_vec().len());
            [rerank.map_err(|e| e.to_string()), score.map_err(|e| e.to_string())]
        };
        assert_eq!(read(MAX_EMBEDDING_INPUTS), [Ok(2048), Ok(2048)]);
        for refused in read(MAX_EMBEDDING_INPUTS + 1) {
            assert!(refused.unwrap_err().contains("at most 2048"));
        }
    }
}
