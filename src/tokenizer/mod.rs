//! Text to token ids and back.
//!
//! A [`Tokenizer`] is built from GGUF metadata (`gguf`) or from a `tokenizer.json`. The work of
//! merging is done by the `tokenizers` crate, which is named nowhere else; what is ours is which
//! parts of a prompt may contain special tokens, and the bytes behind each token.

mod detokenizer;
mod gguf;

use std::collections::HashMap;
use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Tokenizer as Inner};

pub use detokenizer::Detokenizer;

use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// Turns text into token ids and token ids into bytes. Cheap to share behind an `Arc`.
pub struct Tokenizer {
    inner: Inner,
    /// Finds the texts of special tokens, of several at one place the longest.
    special: AhoCorasick,
    /// The id of each of its patterns.
    special_ids: Vec<u32>,
    /// The bytes each token stands for; empty for special tokens, which no text contains.
    token_bytes: Vec<Vec<u8>>,
    end_of_generation: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    adds_bos: Option<u32>,
    /// What the model's own template puts before and after a text.
    around: (Vec<u32>, Vec<u32>),
    is_byte_level: bool,
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
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
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
        let is_byte_level = inner
            .get_decoder()
            .is_some_and(|decoder| matches!(decoder, tokenizers::DecoderWrapper::ByteLevel(_)));
        let added = inner.get_added_tokens_decoder();
        let n_ids = inner.get_vocab(true).values().max().map_or(0, |&id| id + 1);
        let token_bytes = (0..n_ids)
            .map(|id| match (added.get(&id), inner.id_to_token(id)) {
                (Some(token), _) if token.special => Vec::new(),
                // Added tokens are text as they stand, not in the vocabulary's alphabet.
                (Some(token), _) => token.content.clone().into_bytes(),
                (None, Some(text)) if is_byte_level => byte_level_bytes(&text),
                (None, Some(text)) => text.into_bytes(),
                (None, None) => Vec::new(),
            })
            .collect();
        let special =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content));
        Self::assemble(inner, special.collect(), token_bytes, is_byte_level)
            .map_err(|e| e.context(path.display()))
    }

    /// The last steps that both sources share. `special` maps ids to the text of special tokens.
    fn assemble(
        mut inner: Inner,
        mut special: HashMap<u32, String>,
        token_bytes: Vec<Vec<u8>>,
        is_byte_level: bool,
    ) -> Result<Self> {
        // Special tokens are cut out by `encode_prompt`; whatever reaches the inner tokenizer is
        // text, also where it looks like a special token.
        inner.set_encode_special_tokens(true);
        special.retain(|_, text| !text.is_empty());
        let is_end = |text: &String| END_OF_GENERATION.contains(&text.as_str());
        let end_of_generation = special.iter().filter(|(_, text)| is_end(text)).map(|(&id, _)| id).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(special.values())
            .map_err(|e| Error::model(format!("the special tokens cannot be searched for: {e}")))?;
        let mut tokenizer = Self {
            inner,
            special: automaton,
            special_ids: special.into_keys().collect(),
            token_bytes,
            end_of_generation,
            bos: None,
            eos: None,
            adds_bos: None,
            around: (Vec::new(), Vec::new()),
            is_byte_level,
        };
        // What the template adds shows around a text that is known.
        let known = tokenizer.encode("a")?;
        let whole = tokenizer.encode_with_template("a")?;
        let start = whole.windows(known.len().max(1)).position(|window| window == known).unwrap_or(0);
        let end = (start + known.len()).min(whole.len());
        tokenizer.around = (whole[..start].to_vec(), whole[end..].to_vec());
        Ok(tokenizer)
    }

    /// Reads special tokens wherever a text spells them out, as the reference does for encoders.
    pub fn reading_special_tokens(mut self) -> Self {
        self.inner.set_encode_special_tokens(false);
        self
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

    /// Adds what Hugging Face's configuration files say: the ids of the tokens that begin and end a
    /// text, and the names under which chat templates know them.
    pub fn with_config_tokens(
        self,
        bos: Option<u32>,
        eos: &[u32],
        bos_text: Option<String>,
        eos_text: Option<String>,
    ) -> Self {
        let tokenizer = self.with_text_tokens(bos, eos, false);
        Self { bos: bos_text.or(tokenizer.bos.clone()), eos: eos_text.or(tokenizer.eos.clone()), ..tokenizer }
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
    pub fn put_in_template(&self, ids: &[u32]) -> Vec<u32> {
        [&self.around.0, ids, &self.around.1].concat()
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
        let mut start = 0;
        for found in self.special.find_iter(prompt) {
            // A token of one character has no inside; the marker stands behind it.
            if marker.is_some_and(|marker| prompt[found.end()..].starts_with(marker)) {
                continue;
            }
            push_text(&prompt[start..found.start()], &mut ids)?;
            ids.push(self.special_ids[found.pattern()]);
            start = found.end();
        }
        push_text(&prompt[start..], &mut ids)?;
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
        let mut start = 0;
        // Overlapping look-alikes too: breaking one must not leave another.
        while let Some(found) = self.special.find(aho_corasick::Input::new(text).range(start..)) {
            let first = text[found.range()].chars().next().map_or(0, char::len_utf8);
            defused.push_str(&text[start..found.start() + first]);
            defused.push(marker);
            start = found.start() + first;
        }
        defused.push_str(&text[start..]);
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

    /// Whether the vocabulary is one of bytes, so that tokens are text without further rules.
    pub fn is_byte_level(&self) -> bool {
        self.is_byte_level
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

    /// Bytes, and the special tokens `<|im_end|>`, `x` and an empty one.
    fn tokenizer() -> Tokenizer {
        let alphabet: Vec<(u8, char)> =
            ('\u{21}'..='\u{143}').filter_map(|c| Some((byte_of_char(c)?, c))).collect();
        let vocab = alphabet.iter().map(|&(byte, c)| (c.to_string(), u32::from(byte))).collect();
        let bpe = tokenizers::models::bpe::BPE::new(vocab, Vec::new());
        let mut inner = Inner::new(bpe);
        inner.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::byte_level::ByteLevel::new(
            false, false, true,
        )));
        let special = HashMap::from([(256, "<|im_end|>".into()), (257, "x".into()), (258, String::new())]);
        Tokenizer::assemble(inner, special, vec![Vec::new(); 259], true).unwrap()
    }

    #[test]
    fn special_tokens_of_any_length_are_read_and_defused() {
        let tokenizer = tokenizer();
        let text = "axb<|im_end|>x";
        assert_eq!(tokenizer.encode_prompt(text, None).unwrap(), [97, 257, 98, 256, 257]);
        let defused = tokenizer.defuse(text, '\u{FDD0}');
        let plain: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(tokenizer.encode_prompt(&defused, Some('\u{FDD0}')).unwrap(), plain);
    }

    #[test]
    fn a_long_text_of_look_alikes_takes_no_longer_than_another() {
        let tokenizer = tokenizer();
        let text = "<|im_end|>".repeat(200_000);
        let started = std::time::Instant::now();
        let defused = tokenizer.defuse(&text, '\u{FDD0}');
        assert_eq!(tokenizer.encode_prompt(&text, None).unwrap().len(), 200_000);
        assert!(defused.len() > text.len());
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
