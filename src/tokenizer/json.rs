//! What a `tokenizer.json` leaves unsaid.

use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer as Inner};

use super::AroundPair;
use super::byte_level_bytes;
use super::gguf::{byte_of, spaced_bytes};

/// A text that occurs in no other: three noncharacters.
pub const SEPARATOR: &str = "\u{10FFFE}\u{10FFFF}\u{10FFFE}";

/// Adds a token for [`SEPARATOR`]; its id.
///
/// # Errors
/// When the tokenizer takes no more tokens.
pub fn add_separator(inner: &mut Inner) -> tokenizers::Result<u32> {
    // Not a special one: those are text to the inner tokenizer.
    inner.add_tokens([AddedToken::from(SEPARATOR, false).normalized(false)])?;
    inner.token_to_id(SEPARATOR).ok_or_else(|| "the tokenizer takes no more tokens".into())
}

/// How the text of a token becomes the bytes it stands for, by the tokenizer's decoder.
pub fn bytes_of(inner: &Inner) -> fn(&str) -> Vec<u8> {
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
        |token| byte_of(token).map_or_else(|| spaced_bytes(token), |byte| vec![byte])
    } else {
        |token| token.as_bytes().to_vec()
    }
}

/// Whether words are parted by spaces that no token holds.
pub fn parts_words(inner: &Inner) -> bool {
    decoders(inner).iter().any(|step| matches!(step, DecoderWrapper::WordPiece(_)))
}

/// What the tokenizer's template puts before and after a text.
///
/// # Errors
/// When a text cannot be encoded.
pub fn around(inner: &Inner) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    // It shows around a text that is known.
    let known = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast("a", true)?.get_ids().to_vec();
    let start = whole.windows(known.len().max(1)).position(|window| window == known).unwrap_or(0);
    let end = (start + known.len()).min(whole.len());
    Ok((whole[..start].to_vec(), whole[end..].to_vec()))
}

/// What the tokenizer's template puts around and between two texts, if it has one for two.
///
/// # Errors
/// When a text cannot be encoded.
pub fn around_pair(inner: &Inner) -> tokenizers::Result<Option<AroundPair>> {
    let known = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast(("a", "a"), true)?;
    let (ids, types) = (whole.get_ids(), whole.get_type_ids());
    let places: Vec<usize> =
        (0..ids.len()).filter(|&place| !known.is_empty() && ids[place..].starts_with(&known)).collect();
    let (Some(&first), Some(&second)) = (places.first(), places.last()) else { return Ok(None) };
    let end_of_first = first + known.len();
    if second < end_of_first {
        return Ok(None);
    }
    let between = end_of_first..second;
    Ok(Some(AroundPair {
        before: ids[..first].to_vec(),
        n_between_of_first: types[between.clone()].iter().filter(|&&kind| kind == 0).count(),
        between: ids[between].to_vec(),
        after: ids[second + known.len()..].to_vec(),
    }))
}

/// Whether texts begin with a space that the decoder takes away again.
pub fn begins_with_space(inner: &Inner) -> bool {
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
