//! A tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.
//!
//! The format names its pre-tokenizer instead of describing it, so the rules stand here, one row
//! each. A name without a row is refused: a wrong rule gives wrong ids without any other sign.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{PreTokenizerWrapper, Tokenizer as Inner};

use super::{Tokenizer, byte_level_bytes, special_token};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

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
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer> {
    let string = |key| required(key, metadata.string(key)?);
    let strings = |key| required(key, metadata.strings(key)?);
    let model = string("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(Error::model(format!(
            "GGUF tokenizer model `{model}` is not supported; use a file whose tokenizer.ggml.model is `gpt2`, \
             or safetensors with a tokenizer.json"
        )));
    }
    let pre = string("tokenizer.ggml.pre")?;
    let pre_tokenizer = pre_tokenizer(pre).ok_or_else(|| {
        Error::model(format!(
            "GGUF pre-tokenizer `{pre}` is not known; use safetensors with a tokenizer.json for this model"
        ))
    })?;
    let tokens = strings("tokenizer.ggml.tokens")?;
    let types_key = "tokenizer.ggml.token_type";
    let types = required(types_key, metadata.integers(types_key)?)?;
    if types.len() != tokens.len() {
        return Err(Error::model(format!(
            "GGUF tokenizer has {} tokens but {} token types; the file is damaged",
            tokens.len(),
            types.len()
        )));
    }
    let merges = strings("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::model("GGUF tokenizer has a merge that is not a pair; the file is damaged"))?;

    let vocab: Vocab = tokens.iter().map(str::to_owned).zip(0u32..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| Error::model(format!("GGUF tokenizer is inconsistent: {e}")))?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(pre_tokenizer));

    let of_type = |wanted: i64| {
        tokens.iter().zip(&types).filter(move |&(_, &kind)| kind == wanted).map(|(token, _)| token)
    };
    // Tokens that users of the vocabulary added match in any text, before merging.
    inner
        .add_special_tokens(of_type(CONTROL).map(special_token))
        .and_then(|_| inner.add_tokens(of_type(USER_DEFINED).map(|text| special_token(text).special(false))))
        .map_err(|e| Error::model(format!("GGUF tokenizer is inconsistent: {e}")))?;

    let special: HashMap<u32, String> = (0u32..)
        .zip(tokens.iter().zip(&types))
        .filter(|(_, (_, kind))| **kind == CONTROL)
        .map(|(id, (token, _))| (id, token.to_owned()))
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
    let eos = eos_keys.into_iter().filter_map(|key| metadata.token_id(key).transpose());
    let eos = eos.collect::<Result<Vec<u32>>>()?;
    Ok(Tokenizer::assemble(inner, special, token_bytes, true)?.with_text_tokens(
        metadata.token_id("tokenizer.ggml.bos_token_id")?,
        &eos,
        metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false),
    ))
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::model(format!("GGUF file has no `{key}`; it carries no tokenizer")))
}
