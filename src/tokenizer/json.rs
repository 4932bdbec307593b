//! A tokenizer from a `tokenizer.json`, with properties that the file only implies.

use std::path::Path;

use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, DecoderWrapper};

use super::bounds::with_bounds;
use super::file_limits;
use super::model::{SEPARATOR, TokenizerModel, TokenizerParts};
use super::pipeline::Pipeline;
use super::special::SpecialToken;
use super::template::{PairTemplate, TextTemplate};
use super::token_bytes::{byte_level_bytes, fallback_byte, sentence_piece_bytes};
use crate::error::{Error, Result};

/// Special tokens that a tokenizer may put around a text.
const MAX_TEMPLATE_TOKENS: usize = 64;

/// Reads the parts of a tokenizer from a file.
///
/// # Errors
/// When the file cannot be read, is not a tokenizer, or exceeds a limit.
pub fn read_parts(path: &Path) -> Result<TokenizerParts> {
    let json = file_limits::read(path)?;
    file_limits::check(&json)?;
    // The crate normalizes added tokens, and short texts are encoded to find the templates.
    with_bounds(json.len(), || build(path, json))
        .unwrap_or_else(|e| Err(Error::model(format!("cannot read `{}`: {e}", path.display()))))
}

/// Builds the parts of a tokenizer from the text of a file.
fn build(path: &Path, json: Vec<u8>) -> Result<TokenizerParts> {
    let in_file = |e: tokenizers::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
    let mut inner: Pipeline = serde_json::from_slice(&json).map_err(|e| in_file(e.into()))?;
    drop(json);
    inner.with_truncation(None).map_err(in_file)?;
    inner.with_padding(None);
    let text_bytes = text_bytes_fn(&inner);
    let added = inner.get_added_tokens_decoder();
    let n_ids = inner.get_vocab(true).values().max().map_or(0, |&id| id.saturating_add(1));
    let token_bytes = (0..n_ids)
        .map(|id| match (added.get(&id), inner.id_to_token(id)) {
            (Some(token), _) if token.special => Vec::new(),
            // Added tokens are plain text, not written in the vocabulary's alphabet.
            (Some(token), _) => token.content.clone().into_bytes(),
            (None, Some(text)) => text_bytes(&text),
            (None, None) => Vec::new(),
        })
        .collect();
    let special_tokens = added
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| SpecialToken {
            id,
            text: token.content,
            is_user_defined: false,
            strip_right: token.rstrip,
        })
        .collect();
    // We split the text at special tokens ourselves, so whatever reaches the inner tokenizer is plain text,
    // even if it looks like a special token.
    inner.set_encode_special_tokens(true);
    let template = text_template(&inner).map_err(in_file)?;
    let pair_template = pair_template(&inner).map_err(in_file)?;
    let has_space_prefix = has_space_prefix(&inner);
    let separator = add_separator(&mut inner).map_err(in_file)?;
    Ok(TokenizerParts {
        model: TokenizerModel::Json { inner: Box::new(inner), separator },
        special_tokens,
        token_bytes,
        template,
        pair_template,
        has_space_prefix,
        bos: None,
        eos: Vec::new(),
        add_bos: false,
    })
}

/// Whether the decoder puts spaces between words, which no token contains (WordPiece).
pub fn splits_words(inner: &Pipeline) -> bool {
    decoders(inner).iter().any(|step| matches!(step, DecoderWrapper::WordPiece(_)))
}

/// Adds a token for [`SEPARATOR`], and returns its id.
fn add_separator(inner: &mut Pipeline) -> tokenizers::Result<u32> {
    // Not a special token: the inner tokenizer treats these as text.
    inner.add_tokens([AddedToken::from(SEPARATOR, false).normalized(false)])?;
    inner.token_to_id(SEPARATOR).ok_or_else(|| "the tokenizer takes no more tokens".into())
}

/// Chooses the function from the text of a token to its bytes, by the tokenizer's decoder.
fn text_bytes_fn(inner: &Pipeline) -> fn(&str) -> Vec<u8> {
    let steps = decoders(inner);
    let has = |is_kind: fn(&DecoderWrapper) -> bool| steps.iter().any(is_kind);
    if has(|step| matches!(step, DecoderWrapper::ByteLevel(_))) {
        byte_level_bytes
    } else if has(|step| {
        matches!(
            step,
            DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) | DecoderWrapper::Replace(_)
        )
    }) {
        |token| fallback_byte(token).map_or_else(|| sentence_piece_bytes(token), |byte| vec![byte])
    } else {
        |token| token.as_bytes().to_vec()
    }
}

/// Finds the special tokens around a text, by encoding a known text with and without them.
fn text_template(inner: &Pipeline) -> tokenizers::Result<TextTemplate> {
    let bare = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast("a", true)?.get_ids().to_vec();
    let start = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    let end = (start + bare.len()).min(whole.len());
    if whole.len() - (end - start) > MAX_TEMPLATE_TOKENS {
        return Err(format!("it puts more than {MAX_TEMPLATE_TOKENS} tokens around a text").into());
    }
    Ok(TextTemplate { before: whole[..start].to_vec(), after: whole[end..].to_vec() })
}

/// Finds the special tokens around and between two texts, if the tokenizer has a template for two.
fn pair_template(inner: &Pipeline) -> tokenizers::Result<Option<PairTemplate>> {
    let bare = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast(("a", "a"), true)?;
    let (ids, types) = (whole.get_ids(), whole.get_type_ids());
    let matches: Vec<usize> =
        (0..ids.len()).filter(|&idx| !bare.is_empty() && ids[idx..].starts_with(&bare)).collect();
    let (Some(&first), Some(&second)) = (matches.first(), matches.last()) else { return Ok(None) };
    let first_end = first + bare.len();
    if second < first_end || ids.len() > MAX_TEMPLATE_TOKENS {
        return Ok(None);
    }
    let between = first_end..second;
    Ok(Some(PairTemplate {
        before: ids[..first].to_vec(),
        n_between_first: types[between.clone()].iter().filter(|&&kind| kind == 0).count(),
        between: ids[between].to_vec(),
        after: ids[second + bare.len()..].to_vec(),
    }))
}

/// Whether the tokenizer puts a space before a text, which its decoder removes.
fn has_space_prefix(inner: &Pipeline) -> bool {
    decoders(inner).iter().any(|step| match step {
        DecoderWrapper::Strip(strip) => strip.content == ' ' && strip.start > 0,
        DecoderWrapper::Metaspace(metaspace) => metaspace.get_prepend_scheme() != PrependScheme::Never,
        _ => false,
    })
}

fn decoders(inner: &Pipeline) -> &[DecoderWrapper] {
    match inner.get_decoder() {
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(decoder) => std::slice::from_ref(decoder),
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::super::Tokenizer;
    use super::super::pre_tokenizers::pre_tokenizer_by_name;
    use crate::error::{Kind, Result};

    /// A tokenizer of the letters `a` to `z`, with some parts replaced.
    fn tokenizer(parts: Value) -> Result<Tokenizer> {
        let vocab: serde_json::Map<String, Value> = ('a'..='z')
            .zip(0..)
            .map(|(c, id)| (c.to_string(), json!(id)))
            .chain([("?".to_owned(), json!(26))])
            .collect();
        let mut file = json!({
            "version": "1.0",
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false}
        });
        file.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, file.to_string()).unwrap();
        let started = Instant::now();
        let tokenizer = Tokenizer::from_file(&path);
        assert!(started.elapsed().as_secs() < 20, "{:?} for {file:.300}", started.elapsed());
        tokenizer
    }

    fn split(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    fn replace(regex: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"Regex": regex}, "content": content})
    }

    #[test]
    fn hostile_files_are_refused_when_they_are_loaded() {
        assert_eq!(tokenizer(json!({})).unwrap().encode("abé").unwrap(), [0, 1, 26]);
        for parts in [
            json!({"model": {"type": "WordLevel", "vocab": {"a": 4_294_967_295_u32}, "unk_token": "a"}}),
            json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}),
            json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}),
            json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
            json!({"pre_tokenizer": split("(a+)+$")}),
            json!({"pre_tokenizer": split("(a|aa)+$")}),
            json!({"pre_tokenizer": split("(")}),
            json!({"normalizer": replace("(.*)*x", "")}),
            json!({"normalizer": replace("a", &"b".repeat(1000))}),
            json!({"normalizer": {"type": "Prepend", "prepend": "b".repeat(1000)}}),
            json!({"normalizer": {"type": "Sequence", "normalizers": vec![replace("[ab]", "abababab"); 9]}}),
            json!({"normalizer": {"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 100]}}),
            json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}),
            json!({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}}),
            json!({"model": 1}),
        ] {
            let error = tokenizer(parts.clone()).err().unwrap_or_else(|| panic!("{parts:.300}"));
            assert_eq!(error.kind(), Kind::Model, "{error}");
        }
    }

    #[test]
    fn a_text_that_a_normalizer_expands_is_refused() {
        let eightfold = vec![replace("[ab]", "abab"), replace("b", "cc")];
        let tokenizer =
            tokenizer(json!({"normalizer": {"type": "Sequence", "normalizers": eightfold}})).unwrap();
        assert_eq!(tokenizer.encode("b").unwrap().len(), 6);
        let error = tokenizer.encode(&"b".repeat(1 << 20)).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidRequest, "{error}");
        assert!(error.to_string().contains("expand"), "{error}");
    }

    #[test]
    fn a_text_that_a_pattern_backtracks_over_is_refused() {
        // Quadratic, so short texts are no trouble.
        let tokenizer = tokenizer(json!({"pre_tokenizer": split("a([^b]{0,20}[^c]*d)?")})).unwrap();
        let started = Instant::now();
        let error = tokenizer.encode(&("d".to_owned() + &"a".repeat(600_000))).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidRequest, "{error}");
        assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
    }

    #[test]
    fn a_vocabulary_must_fit_the_model() {
        let tokenizer = tokenizer(json!({})).unwrap();
        assert!(tokenizer.check_fits(27).is_ok());
        let error = tokenizer.check_fits(26).unwrap_err().to_string();
        assert!(error.contains("27 ids") && error.contains("26"), "{error}");
    }

    #[test]
    fn the_text_of_tokens_is_bounded() {
        let long = "z".repeat(8000);
        let tokenizer = tokenizer(json!({"added_tokens": [{
            "id": 27, "content": long, "special": false, "normalized": false, "single_word": false, "lstrip": false,
            "rstrip": false
        }]}))
        .unwrap();
        assert_eq!(tokenizer.decode(&[27, 0]).unwrap().len(), 8001);
        assert_eq!(tokenizer.decode(&[27; 10_000]).unwrap_err().kind(), Kind::InvalidRequest);
    }

    #[test]
    fn patterns_of_models_take_linear_time() {
        for name in [
            "llama-bpe",
            "qwen2",
            "gpt-4o",
            "tekken",
            "deepseek-v3",
            "smollm",
            "kimi-k2",
            "tiny_aya",
            "superbpe",
            "afmoe",
        ] {
            for pattern in pre_tokenizer_by_name(name).unwrap().patterns {
                let tokenizer = tokenizer(json!({"pre_tokenizer": split(pattern)})).unwrap();
                for piece in ["a", " ", "\n", "Aa", "日", "1", "! ", "'s"] {
                    let text = piece.repeat((1 << 19) / piece.len());
                    tokenizer.encode(&text).unwrap_or_else(|e| panic!("{name}, {piece:?}: {e}"));
                }
            }
        }
    }
}
