//! A tokenizer from a `tokenizer.json`, with properties that the file only implies.

use std::path::Path;

use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer as Inner};

use super::model::{SEPARATOR, TokenizerModel, TokenizerParts};
use super::special::SpecialToken;
use super::template::{PairTemplate, TextTemplate};
use super::token_bytes::{byte_level_bytes, fallback_byte, sentence_piece_bytes};
use crate::error::{Error, Result};

/// Reads the parts of a tokenizer from a file.
///
/// # Errors
/// When the file cannot be read or is not a tokenizer.
pub fn read_parts(path: &Path) -> Result<TokenizerParts> {
    let in_file = |e: tokenizers::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
    let mut inner = Inner::from_file(path).map_err(in_file)?;
    inner.with_truncation(None).map_err(in_file)?;
    inner.with_padding(None);
    let text_bytes = text_bytes_fn(&inner);
    let added = inner.get_added_tokens_decoder();
    let n_ids = inner.get_vocab(true).values().max().map_or(0, |&id| id + 1);
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
pub fn splits_words(inner: &Inner) -> bool {
    decoders(inner).iter().any(|step| matches!(step, DecoderWrapper::WordPiece(_)))
}

/// Adds a token for [`SEPARATOR`], and returns its id.
fn add_separator(inner: &mut Inner) -> tokenizers::Result<u32> {
    // Not a special token: the inner tokenizer treats these as text.
    inner.add_tokens([AddedToken::from(SEPARATOR, false).normalized(false)])?;
    inner.token_to_id(SEPARATOR).ok_or_else(|| "the tokenizer takes no more tokens".into())
}

/// Chooses the function from the text of a token to its bytes, by the tokenizer's decoder.
fn text_bytes_fn(inner: &Inner) -> fn(&str) -> Vec<u8> {
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
fn text_template(inner: &Inner) -> tokenizers::Result<TextTemplate> {
    let bare = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast("a", true)?.get_ids().to_vec();
    let start = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    let end = (start + bare.len()).min(whole.len());
    Ok(TextTemplate { before: whole[..start].to_vec(), after: whole[end..].to_vec() })
}

/// Finds the special tokens around and between two texts, if the tokenizer has a template for two.
fn pair_template(inner: &Inner) -> tokenizers::Result<Option<PairTemplate>> {
    let bare = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast(("a", "a"), true)?;
    let (ids, types) = (whole.get_ids(), whole.get_type_ids());
    let matches: Vec<usize> =
        (0..ids.len()).filter(|&idx| !bare.is_empty() && ids[idx..].starts_with(&bare)).collect();
    let (Some(&first), Some(&second)) = (matches.first(), matches.last()) else { return Ok(None) };
    let first_end = first + bare.len();
    if second < first_end {
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
fn has_space_prefix(inner: &Inner) -> bool {
    decoders(inner).iter().any(|step| match step {
        DecoderWrapper::Strip(strip) => strip.content == ' ' && strip.start > 0,
        DecoderWrapper::Metaspace(metaspace) => metaspace.get_prepend_scheme() != PrependScheme::Never,
        _ => false,
    })
}

fn decoders(inner: &Inner) -> &[DecoderWrapper] {
    match inner.get_decoder() {
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(decoder) => std::slice::from_ref(decoder),
        None => &[],
    }
}
