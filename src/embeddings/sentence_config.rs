//! The settings of a sentence-transformers model that change its tokens.

use serde::Deserialize;
use serde_json::Value;

use super::source::EmbeddingSource;
use crate::error::{Error, Result};
use crate::registry::{EmbeddingSpec, SENTENCE_CONFIGS};

/// The settings in `sentence_bert_config.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentenceConfig {
    /// Maximum number of tokens of a text, special tokens included; `None` leaves it to the model.
    pub max_tokens: Option<usize>,
    /// Whether texts are converted to lower case before they are tokenized.
    pub lowercase: bool,
}

/// The file's fields that are used.
#[derive(Deserialize)]
struct SentenceConfigFile {
    #[serde(default)]
    max_seq_length: Value,
    #[serde(default)]
    do_lower_case: Option<bool>,
}

impl SentenceConfig {
    /// Reads the settings of a model. `known` is what the catalog knows of it, for models without the file.
    ///
    /// # Errors
    /// When the file is malformed, or its limit is not a positive integer.
    pub fn from_source(source: &EmbeddingSource, known: Option<EmbeddingSpec>) -> Result<Self> {
        match SENTENCE_CONFIGS.iter().find(|name| source.optional_file(name).is_some()) {
            Some(name) => Self::from_json(name, &source.read(name)?),
            None => Ok(Self { max_tokens: known.and_then(|spec| spec.max_tokens), ..Self::default() }),
        }
    }

    fn from_json(name: &str, json: &[u8]) -> Result<Self> {
        let file: SentenceConfigFile =
            serde_json::from_slice(json).map_err(|e| Error::model(format!("cannot read {name}: {e}")))?;
        let max_tokens = match &file.max_seq_length {
            Value::Null => None,
            limit => {
                let n = limit.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
                Some(n.ok_or_else(|| {
                    Error::model(format!(
                        "`max_seq_length` in {name} is not a positive integer; correct the file or remove it"
                    ))
                })?)
            }
        };
        Ok(Self { max_tokens, lowercase: file.do_lower_case.unwrap_or(false) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_and_the_case_are_read() {
        let read = |json: &str| SentenceConfig::from_json("x.json", json.as_bytes());
        let config = |max_tokens, lowercase| SentenceConfig { max_tokens, lowercase };
        assert_eq!(
            read(r#"{"max_seq_length": 256, "do_lower_case": false}"#).unwrap(),
            config(Some(256), false)
        );
        assert_eq!(read(r#"{"max_seq_length": null, "do_lower_case": true}"#).unwrap(), config(None, true));
        assert_eq!(read("{}").unwrap(), config(None, false));
        for bad in ["0", "-1", "\"512\"", "1.5", "1e30", "[]"] {
            let error = read(&format!(r#"{{"max_seq_length": {bad}}}"#)).unwrap_err().to_string();
            assert!(error.contains("max_seq_length") && error.contains("x.json"), "{error}");
        }
        assert!(read("5").is_err() && read(r#"{"do_lower_case": 1}"#).is_err());
    }
}
