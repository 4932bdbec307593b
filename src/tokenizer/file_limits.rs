//! Limits of a `tokenizer.json`, checked before the `tokenizers` crate reads it: the crate would trust the sizes that
//! a file states.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::pattern::check_regex;
use crate::error::{Error, Result};

/// The largest file. The largest vocabularies of models take 35 MB.
const MAX_FILE_BYTES: usize = 64 << 20;

/// Ids that may be unused, in addition to as many as there are tokens.
const SPARE_IDS: u64 = 1 << 16;

/// The longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Bytes of all added tokens together.
const MAX_ADDED_BYTES: usize = 4 << 20;

/// The longest word that WordPiece splits, in characters; BERT's is 100. Its time is quadratic in it.
const MAX_WORD_CHARS: u64 = 1000;

/// The longest replacement of a SentencePiece normalizer, in bytes.
const MAX_REPLACEMENT_BYTES: usize = 128;

/// Values in a part of the file that describes steps, and not tokens.
const MAX_STEP_VALUES: usize = 20_000;

/// The parts of a file that matter here.
#[derive(serde::Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: StepList,
    #[serde(default)]
    pre_tokenizer: StepList,
    #[serde(default)]
    post_processor: StepList,
    #[serde(default)]
    decoder: StepList,
    model: ModelPart,
}

#[derive(serde::Deserialize)]
struct AddedToken {
    content: String,
}

#[derive(serde::Deserialize)]
struct ModelPart {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vocab,
    continuing_subword_prefix: Option<String>,
    max_input_chars_per_word: Option<u64>,
}

/// The tokens of a model: texts and their ids, or a list of texts and their scores.
#[derive(Default)]
struct Vocab {
    n_tokens: u64,
    max_id: u64,
    longest_bytes: usize,
    has_empty: bool,
}

/// A description of steps, without long lists.
#[derive(Default)]
struct StepList(Value);

/// Reads a file of at most [`MAX_FILE_BYTES`].
///
/// # Errors
/// When it cannot be read, or is larger.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot_read = |e: std::io::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
    let mut json = Vec::new();
    let mut file = File::open(path).map_err(cannot_read)?.take(MAX_FILE_BYTES as u64 + 1);
    file.read_to_end(&mut json).map_err(cannot_read)?;
    if json.len() > MAX_FILE_BYTES {
        return Err(refuse(format!("its file has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(json)
}

/// Checks a file's limits.
///
/// # Errors
/// When it is not a tokenizer, or exceeds a limit, which the message names.
pub fn check(json: &[u8]) -> Result<()> {
    let file: TokenizerFile = serde_json::from_slice(json).map_err(|e| refuse(e.to_string()))?;
    check_tokens(&file)?;
    for StepList(steps) in [&file.normalizer, &file.pre_tokenizer, &file.post_processor, &file.decoder] {
        check_steps(steps)?;
    }
    Ok(())
}

fn refuse(why: String) -> Error {
    Error::model(format!("the tokenizer cannot be used: {why}"))
}

fn check_tokens(file: &TokenizerFile) -> Result<()> {
    let TokenizerFile { added_tokens, model, .. } = file;
    let Vocab { n_tokens, max_id, longest_bytes, has_empty } = model.vocab;
    let n_tokens = n_tokens + added_tokens.len() as u64;
    if max_id >= 2 * n_tokens + SPARE_IDS {
        return Err(refuse(format!(
            "a token has the id {max_id}, but there are only {n_tokens} tokens; at most as many ids and {SPARE_IDS} \
             may be unused"
        )));
    }
    let longest_bytes = added_tokens.iter().map(|token| token.content.len()).fold(longest_bytes, usize::max);
    if longest_bytes > MAX_TOKEN_BYTES {
        return Err(refuse(format!(
            "a token has {longest_bytes} bytes; at most {MAX_TOKEN_BYTES} are allowed"
        )));
    }
    let added_bytes: usize = added_tokens.iter().map(|token| token.content.len()).sum();
    if added_bytes > MAX_ADDED_BYTES {
        return Err(refuse(format!(
            "its added tokens have {added_bytes} bytes; at most {MAX_ADDED_BYTES} are allowed"
        )));
    }
    let kind = model.kind.as_deref().unwrap_or_default();
    if has_empty && kind == "Unigram" {
        return Err(refuse("a token is empty".to_owned()));
    }
    if kind == "BPE" && model.continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty()) {
        return Err(refuse(
            "byte-pair encoding with `continuing_subword_prefix` is not supported".to_owned(),
        ));
    }
    match model.max_input_chars_per_word {
        Some(n) if n > MAX_WORD_CHARS => Err(refuse(format!(
            "`max_input_chars_per_word` is {n}; at most {MAX_WORD_CHARS} characters are allowed"
        ))),
        _ => Ok(()),
    }
}

/// Checks all that a description of steps says, wherever it stands.
fn check_steps(steps: &Value) -> Result<()> {
    match steps {
        Value::Array(items) => items.iter().try_for_each(check_steps),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            match (name.as_str(), value.as_str()) {
                ("precompiled_charsmap", Some(map)) => {
                    let map =
                        STANDARD.decode(map).map_err(|e| refuse(format!("its charsmap is damaged: {e}")))?;
                    check_charsmap(&map)?;
                }
                ("Regex", Some(regex)) => check_regex(regex).map_err(|e| refuse(e.to_string()))?,
                (_, Some(text)) if text.len() > MAX_TOKEN_BYTES => {
                    return Err(refuse(format!(
                        "`{name}` has {} bytes; at most {MAX_TOKEN_BYTES} are allowed",
                        text.len()
                    )));
                }
                _ => {}
            }
            check_steps(value)
        }),
        _ => Ok(()),
    }
}

/// Checks SentencePiece's normalizer: the size of a double array, the array, and replacements that end with zeros.
///
/// # Errors
/// When a size or position lies outside of it, or a replacement is too long.
pub fn check_charsmap(map: &[u8]) -> Result<()> {
    let damaged = || refuse("its charsmap is damaged".to_owned());
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(damaged)?;
    let n_array_bytes = u32::from_le_bytes(*size) as usize;
    let (array, replacements) = rest.split_at_checked(n_array_bytes).ok_or_else(damaged)?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| damaged())?;
    if array.len() < 4 || array.len() % 4 != 0 {
        return Err(damaged());
    }
    for unit in array.chunks_exact(4) {
        let unit = unit.iter().rev().fold(0_usize, |unit, byte| unit << 8 | usize::from(*byte));
        // The position of a replacement; other units point to units.
        if unit >> 31 == 1 && !replacements.is_char_boundary(unit & 0x7FFF_FFFF) {
            return Err(damaged());
        }
    }
    match replacements.split('\0').map(str::len).max() {
        Some(n) if n > MAX_REPLACEMENT_BYTES => Err(refuse(format!(
            "its charsmap has a replacement of {n} bytes; at most {MAX_REPLACEMENT_BYTES} are allowed"
        ))),
        _ => Ok(()),
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with ids or scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while let Some((text, id)) = entries.next_entry::<String, u64>()? {
                    vocab.add(&text, id);
                }
                Ok(vocab)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while let Some((text, _)) = entries.next_element::<(String, IgnoredAny)>()? {
                    vocab.add(&text, vocab.n_tokens);
                }
                Ok(vocab)
            }
        }

        deserializer.deserialize_any(Entries)
    }
}

impl Vocab {
    fn add(&mut self, text: &str, id: u64) {
        self.n_tokens += 1;
        self.max_id = self.max_id.max(id);
        self.longest_bytes = self.longest_bytes.max(text.len());
        self.has_empty |= text.is_empty();
    }
}

impl<'de> Deserialize<'de> for StepList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values_left = MAX_STEP_VALUES;
        CountedValue(&mut values_left).deserialize(deserializer).map(Self)
    }
}

/// Reads a value of at most so many values, and stops where there are more.
struct CountedValue<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for CountedValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| {
            serde::de::Error::custom(format!("its steps have more than {MAX_STEP_VALUES} values"))
        })?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CountedValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(CountedValue(self.0))? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = serde_json::Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            object.insert(name, fields.next_value_seed(CountedValue(self.0))?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_json(json: &Value) -> Result<()> {
        check(json.to_string().as_bytes())
    }

    #[test]
    fn files_beyond_a_limit_are_refused_by_name() {
        let fine =
            json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "normalizer": null});
        assert!(check_json(&fine).is_ok());
        let model = |model: Value| json!({ "model": model });
        let charsmap = |map: &[u8]| {
            let map = STANDARD.encode(map);
            json!({"model": {"vocab": {}}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": map}})
        };
        let replacement = [&[4, 0, 0, 0, 0, 0, 0, 0][..], &[b'x'; 1000]].concat();
        for (json, word) in [
            (model(json!({"vocab": {"a": 4_294_967_290_u32}})), "4294967290"),
            (model(json!({"vocab": {"x".repeat(10_000): 0}})), "10000 bytes"),
            (model(json!({"type": "Unigram", "vocab": [["", 0.0]]})), "empty"),
            (
                model(json!({"type": "BPE", "vocab": {}, "continuing_subword_prefix": "##"})),
                "continuing_subword",
            ),
            (model(json!({"vocab": {}, "max_input_chars_per_word": 1_000_000})), "1000000"),
            (
                json!({"model": {"vocab": {}}, "added_tokens": [{"content": "x".repeat(10_000)}]}),
                "10000 bytes",
            ),
            (json!({"model": {"vocab": {}}, "post_processor": vec![0; 30_000]}), "20000 values"),
            (json!({"model": {"vocab": {}}, "pre_tokenizer": {"Regex": "(".repeat(100)}}), "64 deep"),
            (json!({"model": {"vocab": {}}, "decoder": {"content": "x".repeat(10_000)}}), "10000 bytes"),
            (charsmap(&[0xFF; 8]), "damaged"),
            (charsmap(&[4, 0, 0, 0, 0, 0, 0, 0x80, b'a']), ""),
            (charsmap(&[4, 0, 0, 0, 9, 0, 0, 0x80, b'a']), "damaged"),
            (charsmap(&replacement), "1000 bytes"),
            (json!({}), "model"),
        ] {
            match check_json(&json) {
                Ok(()) => assert_eq!(word, "", "{json:.200}"),
                Err(e) => assert!(!word.is_empty() && e.to_string().contains(word), "{word}: {e}"),
            }
        }
    }
}
