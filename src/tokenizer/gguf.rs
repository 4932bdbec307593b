//! A tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.
//!
//! The format names its pre-tokenizer instead of describing it, so the rules stand here, one row
//! each. A name without a row is refused: a wrong rule gives wrong ids without any other sign.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{PreTokenizerWrapper, Tokenizer as Inner};

use super::{Tokenizer, byte_level_bytes, special_token};
use crate::error::{Error, Result};

/// Token types of the format.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How text is cut before merging, by the name under `tokenizer.ggml.pre`.
fn pre_tokenizer(name: &str) -> Option<PreTokenizerWrapper> {
    // The GPT-2 rule: contractions, letters, numbers, other signs, each with its leading space.
    let gpt2 = ByteLevel::new(false, false, true);
    match name {
        "gpt-2" => Some(gpt2.into()),
        // Every digit stands alone, before the GPT-2 rule.
        "smollm" | "starcoder" | "refact" | "command-r" => {
            Some(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into())
        }
        _ => None,
    }
}

/// Builds the tokenizer; see [`Tokenizer::from_gguf`].
pub(super) fn build(metadata: &HashMap<String, Value>) -> Result<Tokenizer> {
    let keys = Keys(metadata);
    let model = keys.string("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(Error::model(format!(
            "GGUF tokenizer model `{model}` is not supported; use a file whose tokenizer.ggml.model is `gpt2`, \
             or safetensors with a tokenizer.json"
        )));
    }
    let pre = keys.string("tokenizer.ggml.pre")?;
    let pre_tokenizer = pre_tokenizer(&pre).ok_or_else(|| {
        Error::model(format!(
            "GGUF pre-tokenizer `{pre}` is not known; use safetensors with a tokenizer.json for this model"
        ))
    })?;
    let tokens = keys.strings("tokenizer.ggml.tokens")?;
    let types = keys.integers("tokenizer.ggml.token_type")?;
    if types.len() != tokens.len() {
        return Err(Error::model(format!(
            "GGUF tokenizer has {} tokens but {} token types; the file is damaged",
            tokens.len(),
            types.len()
        )));
    }
    let merges = keys
        .strings("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::model("GGUF tokenizer has a merge that is not a pair; the file is damaged"))?;

    let vocab: Vocab = tokens.iter().cloned().zip(0u32..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| Error::model(format!("GGUF tokenizer is inconsistent: {e}")))?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(pre_tokenizer));

    let of_type = |wanted: i64| {
        tokens.iter().zip(&types).filter(move |&(_, &kind)| kind == wanted).map(|(token, _)| token.as_str())
    };
    // Tokens that users of the vocabulary added match in any text, before merging.
    inner
        .add_special_tokens(of_type(CONTROL).map(special_token))
        .and_then(|_| inner.add_tokens(of_type(USER_DEFINED).map(|text| special_token(text).special(false))))
        .map_err(|e| Error::model(format!("GGUF tokenizer is inconsistent: {e}")))?;

    let special: HashMap<u32, String> = (0u32..)
        .zip(tokens.iter().zip(&types))
        .filter(|(_, (_, kind))| **kind == CONTROL)
        .map(|(id, (token, _))| (id, token.clone()))
        .collect();
    let token_bytes = tokens
        .iter()
        .zip(&types)
        .map(|(token, &kind)| match kind {
            CONTROL => Vec::new(),
            USER_DEFINED => token.as_bytes().to_vec(),
            _ => byte_level_bytes(token),
        })
        .collect();
    let eos_keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let eos = eos_keys.into_iter().filter_map(|key| keys.optional_id(key).transpose());
    let eos = eos.collect::<Result<Vec<u32>>>()?;
    Ok(Tokenizer::assemble(inner, special, token_bytes, true)?.with_text_tokens(
        keys.optional_id("tokenizer.ggml.bos_token_id")?,
        &eos,
        matches!(metadata.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))),
    ))
}

/// Typed access to the metadata, with errors that name the key.
struct Keys<'a>(&'a HashMap<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Result<&Value> {
        self.0
            .get(key)
            .ok_or_else(|| Error::model(format!("GGUF file has no `{key}`; it carries no tokenizer")))
    }

    fn string(&self, key: &str) -> Result<String> {
        self.get(key)?.to_string().cloned().map_err(|_| wrong_type(key, "a string"))
    }

    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let Value::Array(values) = self.get(key)? else { return Err(wrong_type(key, "an array of strings")) };
        values
            .iter()
            .map(|value| value.to_string().cloned().map_err(|_| wrong_type(key, "an array of strings")))
            .collect()
    }

    fn integers(&self, key: &str) -> Result<Vec<i64>> {
        let Value::Array(values) = self.get(key)? else {
            return Err(wrong_type(key, "an array of integers"));
        };
        values
            .iter()
            .map(|value| integer(value).ok_or_else(|| wrong_type(key, "an array of integers")))
            .collect()
    }

    fn optional_id(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        integer(value)
            .and_then(|id| u32::try_from(id).ok())
            .map(Some)
            .ok_or_else(|| wrong_type(key, "a token id"))
    }
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::I8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::I16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::I32(v) => Some(v.into()),
        Value::U64(v) => i64::try_from(v).ok(),
        Value::I64(v) => Some(v),
        _ => None,
    }
}

fn wrong_type(key: &str, expected: &str) -> Error {
    Error::model(format!("GGUF key `{key}` is not {expected}; the file is damaged"))
}
