//! Text to token ids and back.
//!
//! A [`Tokenizer`] is built from GGUF metadata (`gguf`) or from a `tokenizer.json`. The work of
//! merging is done by the `tokenizers` crate, which is named nowhere else; what is ours is which
//! parts of a prompt may contain special tokens, and the bytes behind each token.

mod detokenizer;
mod gguf;

use std::collections::HashMap;
use std::path::Path;

use tokenizers::{AddedToken, Tokenizer as Inner};

pub use detokenizer::Detokenizer;

use crate::error::{Error, Result};

/// Turns text into token ids and token ids into bytes. Cheap to share behind an `Arc`.
pub struct Tokenizer {
    inner: Inner,
    /// Special tokens by their text, longest first so that the longest match wins.
    special: Vec<(String, u32)>,
    /// The bytes each token stands for; empty for special tokens, which no text contains.
    token_bytes: Vec<Vec<u8>>,
    end_of_generation: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    adds_bos: Option<u32>,
}

/// Characters that mark special-token look-alikes in user text: Unicode noncharacters, which
/// are never part of interchanged text.
const MARKERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Names under which vocabularies carry the token that ends a turn or a text. A model may emit
/// any of them, whatever its metadata calls "the" end token.
const END_OF_GENERATION: [&str; 10] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<|end_of_turn|>",
    "<EOT>",
];

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes under its `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// When a key is missing or malformed, or names a model or pre-tokenizer that is not known.
    pub fn from_gguf(metadata: &HashMap<String, candle_core::quantized::gguf_file::Value>) -> Result<Self> {
        gguf::build(metadata)
    }

    /// Reads a `tokenizer.json`. Truncation and padding that it may ask for are switched off: both
    /// belong to whoever makes batches, and truncating silently would lose text.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let in_file = |e: tokenizers::Error| Error::model(format!("cannot read `{}`: {e}", path.display()));
        let mut inner = Inner::from_file(path).map_err(in_file)?;
        inner.with_truncation(None).map_err(in_file)?;
        inner.with_padding(None);
        let byte_level = inner
            .get_decoder()
            .is_some_and(|decoder| matches!(decoder, tokenizers::DecoderWrapper::ByteLevel(_)));
        let special: HashMap<u32, String> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let token_bytes = (0..inner.get_vocab_size(true) as u32)
            .map(|id| match inner.id_to_token(id) {
                Some(text) if !special.contains_key(&id) && byte_level => byte_level_bytes(&text),
                Some(text) if !special.contains_key(&id) => text.into_bytes(),
                _ => Vec::new(),
            })
            .collect();
        Ok(Self::assemble(inner, special, token_bytes))
    }

    /// The last steps that both sources share. `special` maps ids to the text of special tokens.
    fn assemble(mut inner: Inner, special: HashMap<u32, String>, token_bytes: Vec<Vec<u8>>) -> Self {
        // Special tokens are cut out by `encode_prompt`; whatever reaches the inner tokenizer is
        // text, also where it looks like a special token.
        inner.set_encode_special_tokens(true);
        let end_of_generation = special
            .iter()
            .filter(|(_, text)| END_OF_GENERATION.contains(&text.as_str()))
            .map(|(&id, _)| id)
            .collect();
        let mut special: Vec<(String, u32)> = special.into_iter().map(|(id, text)| (text, id)).collect();
        special.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
        Self { inner, special, token_bytes, end_of_generation, bos: None, eos: None, adds_bos: None }
    }

    /// Names the tokens that begin and end a text, from the model's own configuration. `adds_bos`
    /// says that every prompt starts with the first.
    fn with_text_tokens(mut self, bos: Option<u32>, eos: &[u32], adds_bos: bool) -> Self {
        self.bos = bos.and_then(|id| self.inner.id_to_token(id));
        self.eos = eos.first().and_then(|&id| self.inner.id_to_token(id));
        self.adds_bos = bos.filter(|_| adds_bos);
        for &id in eos {
            if !self.end_of_generation.contains(&id) {
                self.end_of_generation.push(id);
            }
        }
        self
    }

    /// Adds what a Hugging Face `config.json` says about the first and last token of a text.
    pub fn with_config_tokens(self, bos: Option<u32>, eos: &[u32]) -> Self {
        self.with_text_tokens(bos, eos, false)
    }

    /// Encodes text; nothing in it is special.
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text and none for "unknown".
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, false, &mut ids)?;
        Ok(ids)
    }

    /// Encodes text and puts the model's own first and last tokens around it, as its
    /// post-processor says (`[CLS] … [SEP]`).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_template(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, true, &mut ids)?;
        Ok(ids)
    }

    /// Puts the model's own first and last tokens around ids that lack them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn put_in_template(&self, ids: &[u32]) -> Result<Vec<u32>> {
        // What the template adds shows around a text that is known.
        let known = self.encode("a")?;
        let around = self.encode_with_template("a")?;
        let start = around.windows(known.len().max(1)).position(|window| window == known).unwrap_or(0);
        Ok([&around[..start], ids, &around[(start + known.len()).min(around.len())..]].concat())
    }

    /// Encodes a rendered chat prompt: special tokens are read, except those in which `marker`
    /// stands ([`Tokenizer::defuse`]).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str, marker: Option<char>) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = Vec::new();
        let push_text = |text: &str, ids: &mut Vec<u32>| match marker {
            Some(marker) if text.contains(marker) => self.encode_into(&text.replace(marker, ""), false, ids),
            _ => self.encode_into(text, false, ids),
        };
        let mut rest = prompt;
        while let Some((start, text, id)) = self.next_special(rest) {
            push_text(&rest[..start], &mut ids)?;
            ids.push(id);
            rest = &rest[start + text.len()..];
        }
        push_text(rest, &mut ids)?;
        if let Some(bos) = self.adds_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Breaks every special token that `text` spells out by putting `marker` behind its first
    /// character, so that it survives a chat template as plain text.
    pub fn defuse(&self, text: &str, marker: char) -> String {
        let mut defused = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((start, token, _)) = self.next_special(rest) {
            let first = token.chars().next().map_or(0, char::len_utf8);
            defused.push_str(&rest[..start + first]);
            defused.push(marker);
            rest = &rest[start + first..];
        }
        defused.push_str(rest);
        defused
    }

    /// A marker for [`Tokenizer::defuse`] that occurs in none of `texts`.
    pub fn free_marker<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<char> {
        MARKERS.into_iter().find(|&marker| texts.clone().all(|text| !text.contains(marker)))
    }

    /// The bytes a token stands for in text; none for special tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether a model that emits this token has finished.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// Number of token ids.
    pub fn n_vocab(&self) -> usize {
        self.token_bytes.len()
    }

    /// Text of the token that begins a text, for chat templates that write it themselves.
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// Text of the token that ends a text.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The first special token in `text`: its offset, its text and its id. At one offset the
    /// longest wins.
    fn next_special(&self, text: &str) -> Option<(usize, &str, u32)> {
        let mut first: Option<(usize, &str, u32)> = None;
        for (special, id) in &self.special {
            // Only an earlier match can replace the one in hand.
            let end = first.map_or(text.len(), |(start, found, _)| text.len().min(start + found.len()));
            if let Some(start) = text[..text.floor_char_boundary(end)].find(special.as_str())
                && first.is_none_or(|(earliest, ..)| start < earliest)
            {
                first = Some((start, special, *id));
            }
        }
        first
    }

    fn encode_into(&self, text: &str, with_template: bool, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() && !with_template {
            return Ok(());
        }
        let encoding = self
            .inner
            .encode_fast(text, with_template)
            .map_err(|e| Error::internal(format!("cannot tokenize the text: {e}")))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

/// A special token for the inner tokenizer.
fn special_token(text: &str) -> AddedToken {
    AddedToken::from(text, true).normalized(false)
}

/// The bytes behind a token of a byte-level vocabulary, in which every byte is written as one
/// printable character (the GPT-2 alphabet). A token with any other character is its own text.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The GPT-2 alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes for
/// U+0100 and up, in order.
fn byte_of_char(c: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| is_printable(byte)),
        code => (0..=255u8).filter(|&byte| !is_printable(byte)).nth(code as usize - 0x100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut bytes: Vec<u8> = ('\u{21}'..='\u{143}').filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }
}
