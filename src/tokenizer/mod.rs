//! Tokenizer and detokenizer: text to token ids and back.
//!
//! A [`Tokenizer`] is built from GGUF metadata (`gguf`) or from a `tokenizer.json` (`json`). The `tokenizers`
//! crate, which no other module names, does most of the encoding. Our own code decides which parts of a
//! prompt may contain special tokens, and knows the bytes of each token. The [`Detokenizer`] turns the bytes of
//! generated tokens into text, one token at a time.
//!
//! Tokenizers come with a model's files, so they may be hostile: `file_limits` checks sizes before the crate reads a
//! file, `pipeline` and `pattern` bound the work of encoding by `bounds`, and `trial` encodes a few texts first.

mod bounds;
mod detokenizer;
mod file_limits;
mod gguf;
mod json;
mod model;
mod pattern;
mod pieces;
mod pipeline;
mod pre_tokenizers;
mod sentence_piece;
mod special;
mod template;
mod token_bytes;
mod trial;

use std::collections::HashMap;
use std::path::Path;

pub use detokenizer::Detokenizer;
pub use pieces::BoundedEncoding;

use self::model::{TokenizerModel, TokenizerParts};
use self::special::{SpecialTokens, TextSegment};
use self::template::{PairTemplate, TextTemplate};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// Turns text into token ids, and token ids into bytes. Share it behind an `Arc`.
pub struct Tokenizer {
    model: TokenizerModel,
    /// All special tokens, which are parsed in prompts.
    special_tokens: SpecialTokens,
    /// The special tokens that are parsed in any text.
    user_defined_tokens: SpecialTokens,
    /// Whether special tokens are parsed in texts to embed.
    parse_special: bool,
    /// The bytes of each token by id; empty for special tokens.
    token_bytes: Vec<Vec<u8>>,
    end_of_generation: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    /// The BOS token, if every prompt starts with it.
    bos_to_add: Option<u32>,
    template: TextTemplate,
    pair_template: Option<PairTemplate>,
    /// The texts of special tokens by id.
    special_texts: HashMap<u32, String>,
    has_space_prefix: bool,
}

/// Characters that can escape special tokens in user text: Unicode noncharacters, which do not occur in
/// interchanged text.
const MARKERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The longest text that ids are decoded into.
const MAX_DECODED_BYTES: usize = 32 << 20;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes under its `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// When a key is missing or malformed, or names an unknown model or pre-tokenizer.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        trial::run(|| Self::from_parts(gguf::read_parts(metadata)?))
    }

    /// Reads a `tokenizer.json`. Its truncation and padding settings are ignored: padding is up to the code that
    /// builds batches, and truncation would silently drop text.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        trial::run(|| Self::from_parts(json::read_parts(path)?)).map_err(|e| e.context(path.display()))
    }

    fn from_parts(parts: TokenizerParts) -> Result<Self> {
        let TokenizerParts { model, special_tokens, token_bytes, template, pair_template, .. } = parts;
        let pair_ids = pair_template.iter().flat_map(PairTemplate::ids);
        if let Some(id) = template.ids().chain(pair_ids).find(|id| *id as usize >= token_bytes.len()) {
            let n_ids = token_bytes.len();
            return Err(Error::model(format!(
                "the tokenizer puts the token {id} around a text, but has only {n_ids} ids; its file is damaged"
            )));
        }
        let user_defined = special_tokens.iter().filter(|token| token.is_user_defined).cloned();
        let tokenizer = Self {
            model,
            user_defined_tokens: SpecialTokens::new(user_defined)?,
            special_texts: special_tokens.iter().map(|token| (token.id, token.text.clone())).collect(),
            end_of_generation: special::end_of_generation(&special_tokens),
            special_tokens: SpecialTokens::new(special_tokens)?,
            parse_special: false,
            token_bytes,
            bos: None,
            eos: None,
            bos_to_add: None,
            template,
            pair_template,
            has_space_prefix: parts.has_space_prefix,
        };
        Ok(tokenizer.with_text_tokens(parts.bos, &parts.eos, parts.add_bos))
    }

    /// Makes [`Tokenizer::encode_up_to`] parse special tokens that a text spells out, as the reference
    /// implementations of embedding models do.
    pub fn with_special_tokens_in_text(self) -> Self {
        Self { parse_special: true, ..self }
    }

    /// Sets the tokens that start and end a text; `add_bos` makes every prompt start with BOS.
    fn with_text_tokens(mut self, bos: Option<u32>, eos: &[u32], add_bos: bool) -> Self {
        self.bos = bos.and_then(|id| self.special_texts.get(&id).cloned());
        self.eos = eos.first().and_then(|id| self.special_texts.get(id).cloned());
        self.bos_to_add = bos.filter(|_| add_bos);
        for &id in eos {
            if !self.end_of_generation.contains(&id) {
                self.end_of_generation.push(id);
            }
        }
        self
    }

    /// Sets the tokens that start and end a text as Hugging Face's configuration files name them: their ids, and
    /// the texts that chat templates use.
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

    /// Encodes text. No special tokens are parsed, except user-defined ones.
    ///
    /// # Errors
    /// When the vocabulary has no token for a part of the text, and no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.append_segments(self.user_defined_tokens.split(text, None), &mut ids)?;
        Ok(ids)
    }

    /// Encodes text, and parses the special tokens in it.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.append_segments(self.special_tokens.split(text, None), &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of a text that follows `ids` in a prompt. No special tokens are parsed, except user-defined ones.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn append(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        self.append_segments(self.user_defined_tokens.split(text, None), ids)
    }

    /// Appends the ids of a text that follows `ids` in a prompt, and parses the special tokens in it.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn append_with_special(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        self.append_segments(self.special_tokens.split(text, None), ids)
    }

    /// Encodes text, and parses the special tokens in it. With `add_special_tokens`, adds those of the model's
    /// template and BOS.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let ids = self.encode_with_special(text)?;
        if !add_special_tokens {
            return Ok(ids);
        }
        let ids = self.add_template(&ids);
        let missing_bos = self.bos_to_add.filter(|bos| ids.first() != Some(bos));
        Ok(missing_bos.into_iter().chain(ids).collect())
    }

    /// Decodes ids into text, special tokens included.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.check_ids(ids, "tokens", "send ids of this model's tokenizer")?;
        let n_bytes = |id: &u32| self.special_texts.get(id).map_or(self.token_bytes(*id).len(), String::len);
        if ids.iter().map(n_bytes).sum::<usize>() > MAX_DECODED_BYTES {
            let message =
                format!("the tokens' text is longer than {MAX_DECODED_BYTES} bytes; send fewer tokens");
            return Err(Error::invalid("tokens", message));
        }
        if let TokenizerModel::Json { inner, .. } = &self.model
            && json::splits_words(inner)
        {
            return inner
                .decode(ids, false)
                .map_err(|e| Error::internal(format!("cannot decode the tokens: {e}")));
        }
        let mut bytes = Vec::new();
        for &id in ids {
            match self.special_texts.get(&id) {
                Some(text) => bytes.extend_from_slice(text.as_bytes()),
                None => bytes.extend_from_slice(self.token_bytes(id)),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(if self.has_space_prefix {
            text.strip_prefix(' ').map_or(text.clone(), str::to_owned)
        } else {
            text
        })
    }

    /// The text of a token for display: invalid UTF-8 becomes U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        let special = self.special_texts.get(&id).cloned();
        special.unwrap_or_else(|| String::from_utf8_lossy(self.token_bytes(id)).into_owned())
    }

    /// Adds the model's first and last special tokens to ids.
    pub fn add_template(&self, ids: &[u32]) -> Vec<u32> {
        [&self.template.before, ids, &self.template.after].concat()
    }

    /// Encodes a rendered chat prompt: parses special tokens, except those that are escaped by `marker`
    /// ([`Tokenizer::escape_special_tokens`]).
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str, marker: Option<char>) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = Vec::new();
        let mut at_start = true;
        for segment in self.special_tokens.split(prompt, marker) {
            match (segment, marker) {
                // Unescape.
                (TextSegment::Text(text), Some(marker)) if text.contains(marker) => {
                    let text = text.replace(marker, "");
                    for segment in self.user_defined_tokens.split(&text, None) {
                        self.encode_segment(segment, &mut at_start, &mut ids)?;
                    }
                }
                (segment, _) => self.encode_segment(segment, &mut at_start, &mut ids)?,
            }
        }
        if let Some(bos) = self.bos_to_add
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Escapes every special token that `text` spells out, by inserting `marker` after its first character. The
    /// text then goes through a chat template as plain text.
    pub fn escape_special_tokens(&self, text: &str, marker: char) -> String {
        self.special_tokens.escape(text, marker)
    }

    /// A marker for [`Tokenizer::escape_special_tokens`] that does not occur in `texts`.
    pub fn unused_marker<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<char> {
        MARKERS.into_iter().find(|&marker| texts.clone().all(|text| !text.contains(marker)))
    }

    /// Bytes that a token adds to a text at most; 0 for unknown ids.
    pub fn n_text_bytes(&self, id: u32) -> usize {
        let special = self.special_texts.get(&id).map_or(0, String::len);
        // A decoder may put a space before a word.
        self.token_bytes.get(id as usize).map_or(0, |bytes| bytes.len().max(special) + 1)
    }

    /// The bytes of a token; none for special tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The text of a special token.
    pub fn special_token_text(&self, id: u32) -> Option<&str> {
        self.special_texts.get(&id).map(String::as_str)
    }

    /// The bytes that a token adds to a text in which the special tokens `visible` are visible.
    pub fn visible_bytes(&self, id: u32, visible: &[u32]) -> &[u8] {
        let special = visible.contains(&id).then(|| self.special_token_text(id)).flatten();
        special.map_or_else(|| self.token_bytes(id), str::as_bytes)
    }

    /// The id of a special token by its text.
    pub fn special_token_id(&self, text: &str) -> Option<u32> {
        self.single_token_id(text).filter(|id| self.special_texts.contains_key(id))
    }

    /// The id of `text` if it is a single token, special or not.
    pub fn single_token_id(&self, text: &str) -> Option<u32> {
        match self.encode_with_special(text).ok()?[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// The end-of-generation (EOG) tokens, with which the model stops.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether decoded text starts with a space that the vocabulary added, and that is to be removed.
    pub fn has_space_prefix(&self) -> bool {
        self.has_space_prefix
    }

    /// Number of token ids.
    pub fn n_vocab(&self) -> usize {
        self.token_bytes.len()
    }

    /// Refuses a model that has logits for `n_logits` tokens only.
    ///
    /// # Errors
    /// When the vocabulary has more ids.
    pub fn check_fits(&self, n_logits: usize) -> Result<()> {
        if self.n_vocab() > n_logits {
            return Err(Error::model(format!(
                "the tokenizer has {} ids, but the model's vocabulary has only {n_logits}; use the tokenizer that \
                 belongs to the model",
                self.n_vocab()
            )));
        }
        Ok(())
    }

    /// Refuses token ids outside the vocabulary. The error is about the request's `param`, and ends with `remedy`.
    ///
    /// # Errors
    /// When an id is [`Tokenizer::n_vocab`] or more.
    pub fn check_ids(&self, ids: &[u32], param: &str, remedy: &str) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.n_vocab()) {
            None => Ok(()),
            Some(id) => Err(Error::invalid(
                param,
                format!(
                    "token id {id} is outside this model's vocabulary of {} ids; {remedy}",
                    self.n_vocab()
                ),
            )),
        }
    }

    /// The text of the BOS token, for chat templates.
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The text of the EOS token, for chat templates.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    fn append_segments(&self, segments: Vec<TextSegment>, ids: &mut Vec<u32>) -> Result<()> {
        let mut at_start = ids.last().is_none_or(|id| self.special_texts.contains_key(id));
        segments.into_iter().try_for_each(|segment| self.encode_segment(segment, &mut at_start, ids))
    }

    /// Encodes one segment. `at_start` says whether it stands at the start or after a special token, and is
    /// updated for the next one.
    fn encode_segment(&self, segment: TextSegment, at_start: &mut bool, ids: &mut Vec<u32>) -> Result<()> {
        match segment {
            TextSegment::Special(id) => ids.push(id),
            TextSegment::Text(text) => self.model.encode(text, *at_start, ids)?,
        }
        *at_start = matches!(segment, TextSegment::Special(_));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::pipeline::{BoundedPreTokenizer, Pipeline};
    use super::special::SpecialToken;
    use super::token_bytes::gpt2_byte;
    use super::*;

    /// A byte-level vocabulary with the special tokens `<|im_end|>`, `x` and an empty one.
    fn tokenizer() -> Tokenizer {
        let alphabet: Vec<(u8, char)> =
            ('\u{21}'..='\u{143}').filter_map(|c| Some((gpt2_byte(c)?, c))).collect();
        let vocab = alphabet.iter().map(|&(byte, c)| (c.to_string(), u32::from(byte))).collect();
        let bpe = tokenizers::models::bpe::BPE::new(vocab, Vec::new());
        let mut inner = Pipeline::new(bpe.into());
        let byte_level = tokenizers::pre_tokenizers::byte_level::ByteLevel::new(false, false, true);
        inner.with_pre_tokenizer(Some(BoundedPreTokenizer::new(byte_level.into()).unwrap()));
        let special = [(256, "<|im_end|>"), (257, "x"), (258, "")].map(|(id, text)| SpecialToken {
            id,
            text: text.to_owned(),
            is_user_defined: false,
            strip_right: false,
        });
        let parts = TokenizerParts {
            model: TokenizerModel::Crate(Box::new(inner)),
            special_tokens: special.into(),
            token_bytes: vec![Vec::new(); 259],
            template: TextTemplate::default(),
            pair_template: None,
            has_space_prefix: false,
            bos: None,
            eos: Vec::new(),
            add_bos: false,
        };
        Tokenizer::from_parts(parts).unwrap()
    }

    #[test]
    fn special_tokens_of_any_length_are_parsed_and_escaped() {
        let tokenizer = tokenizer();
        let text = "axb<|im_end|>x";
        assert_eq!(tokenizer.encode_prompt(text, None).unwrap(), [97, 257, 98, 256, 257]);
        let escaped = tokenizer.escape_special_tokens(text, '\u{FDD0}');
        let plain: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(tokenizer.encode_prompt(&escaped, Some('\u{FDD0}')).unwrap(), plain);
    }

    #[test]
    fn escaping_many_special_tokens_takes_linear_time() {
        let tokenizer = tokenizer();
        let text = "<|im_end|>".repeat(200_000);
        let started = std::time::Instant::now();
        let escaped = tokenizer.escape_special_tokens(&text, '\u{FDD0}');
        assert_eq!(tokenizer.encode_prompt(&text, None).unwrap().len(), 200_000);
        assert!(escaped.len() > text.len());
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
