//! Text to token ids and back.
//!
//! A [`Tokenizer`] is built from GGUF metadata (`gguf`) or from a `tokenizer.json`. The work of
//! merging is done by the `tokenizers` crate, which is named nowhere else; what is ours is which
//! parts of a prompt may contain special tokens, and the bytes behind each token.

mod detokenizer;
mod gguf;
mod json;
mod pre_tokenizers;
mod sentence_piece;
mod special;
mod word_piece;

use std::collections::HashMap;
use std::path::Path;

use tokenizers::Tokenizer as Inner;

pub use detokenizer::Detokenizer;

use self::sentence_piece::SentencePiece;
use self::special::{Piece, SpecialToken, SpecialTokens};
use self::word_piece::WordPiece;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// Turns text into token ids and token ids into bytes. Cheap to share behind an `Arc`.
pub struct Tokenizer {
    model: Model,
    /// All special tokens, for prompts.
    special: SpecialTokens,
    /// Those that are read in any text.
    plain: SpecialTokens,
    /// Whether texts to embed may spell out special tokens.
    reads_special: bool,
    /// The bytes each token stands for; empty for special tokens, which no text contains.
    token_bytes: Vec<Vec<u8>>,
    end_of_generation: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    adds_bos: Option<u32>,
    /// What the model's own template puts before and after a text.
    around: (Vec<u32>, Vec<u32>),
    around_pair: Option<AroundPair>,
    /// The texts of special tokens, by id.
    special_texts: HashMap<u32, String>,
    begins_with_space: bool,
}

/// What a template puts around and between two texts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AroundPair {
    before: Vec<u32>,
    between: Vec<u32>,
    /// How many of those between belong to the first text.
    n_between_of_first: usize,
    after: Vec<u32>,
}

/// What turns text without special tokens into ids.
enum Model {
    Crate(Box<Inner>),
    /// From a `tokenizer.json`: text that does not stand at the beginning is encoded behind a token
    /// that is then dropped, since rules may be others at the beginning.
    Json {
        inner: Box<Inner>,
        separator: u32,
    },
    SentencePiece(SentencePiece),
    WordPiece(WordPiece),
}

/// What a tokenizer is put together from.
struct Vocabulary {
    model: Model,
    special: Vec<SpecialToken>,
    token_bytes: Vec<Vec<u8>>,
    around: (Vec<u32>, Vec<u32>),
    begins_with_space: bool,
}

/// Characters that mark special-token look-alikes in user text: Unicode noncharacters, which
/// are never part of interchanged text.
const MARKERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Names under which vocabularies carry the token that ends a turn or a text. A model may emit
/// any of them, whatever its metadata calls "the" end token.
const END_OF_GENERATION: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
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
        let bytes_of = json::bytes_of(&inner);
        let added = inner.get_added_tokens_decoder();
        let n_ids = inner.get_vocab(true).values().max().map_or(0, |&id| id + 1);
        let token_bytes = (0..n_ids)
            .map(|id| match (added.get(&id), inner.id_to_token(id)) {
                (Some(token), _) if token.special => Vec::new(),
                // Added tokens are text as they stand, not in the vocabulary's alphabet.
                (Some(token), _) => token.content.clone().into_bytes(),
                (None, Some(text)) => bytes_of(&text),
                (None, None) => Vec::new(),
            })
            .collect();
        let special = added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| SpecialToken {
                id,
                text: token.content,
                is_plain: false,
                strips_right: token.rstrip,
            })
            .collect();
        // Special tokens are cut out before; whatever reaches the inner tokenizer is text, also where
        // it looks like a special token.
        inner.set_encode_special_tokens(true);
        let around = json::around(&inner).map_err(in_file)?;
        let around_pair = json::around_pair(&inner).map_err(in_file)?;
        let begins_with_space = json::begins_with_space(&inner);
        let separator = json::add_separator(&mut inner).map_err(in_file)?;
        let model = Model::Json { inner: Box::new(inner), separator };
        let tokenizer = Self::assemble(Vocabulary { model, special, token_bytes, around, begins_with_space })
            .map_err(|e| e.context(path.display()))?;
        Ok(Self { around_pair, ..tokenizer })
    }

    /// The last steps that both sources share.
    fn assemble(vocabulary: Vocabulary) -> Result<Self> {
        let Vocabulary { model, special, token_bytes, around, begins_with_space } = vocabulary;
        let has = |text: &str| special.iter().any(|token| token.text == text);
        // Where a format has tokens of its own for the end, these part its sections.
        let parts_sections = |text: &str| match text {
            "<|end|>" => has("<|call|>") && (has("<|return|>") || has("<|flush|>")),
            "</s>" => has("<|tool_response>"),
            _ => false,
        };
        let is_end = |token: &&SpecialToken| {
            END_OF_GENERATION.contains(&token.text.as_str()) && !parts_sections(&token.text)
        };
        let end_of_generation = special.iter().filter(is_end).map(|token| token.id).collect();
        Ok(Self {
            model,
            plain: SpecialTokens::new(special.iter().filter(|token| token.is_plain).cloned())?,
            special_texts: special.iter().map(|token| (token.id, token.text.clone())).collect(),
            special: SpecialTokens::new(special)?,
            reads_special: false,
            token_bytes,
            end_of_generation,
            bos: None,
            eos: None,
            adds_bos: None,
            around,
            around_pair: None,
            begins_with_space,
        })
    }

    /// Reads special tokens wherever a text to embed spells them out, as the reference does.
    pub fn with_special_tokens_in_text(self) -> Self {
        Self { reads_special: true, ..self }
    }

    /// Names the tokens that begin and end a text, from the model's own configuration. `adds_bos`
    /// says that every prompt starts with the first.
    fn with_text_tokens(mut self, bos: Option<u32>, eos: &[u32], adds_bos: bool) -> Self {
        self.bos = bos.and_then(|id| self.special_texts.get(&id).cloned());
        self.eos = eos.first().and_then(|id| self.special_texts.get(id).cloned());
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

    /// Encodes text; nothing in it is special but what users of the vocabulary added to it.
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text and none for "unknown".
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_pieces(self.plain.cut(text, None), &mut ids)?;
        Ok(ids)
    }

    /// Encodes text in which special tokens may be spelled out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_pieces(self.special.cut(text, None), &mut ids)?;
        Ok(ids)
    }

    /// Encodes text and puts the model's own first and last tokens around it (`[CLS] … [SEP]`).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_template(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.add_template(&self.encode_to_embed(text)?))
    }

    /// Encodes two texts and puts the model's own tokens around and between them (`[CLS] … [SEP] … [SEP]`),
    /// in all at most `max_tokens` if it `truncates`, of which the second text gets what the first leaves.
    /// Gives the ids and how many belong to the first text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and when the model has no template for two texts.
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
        max_tokens: usize,
        truncates: bool,
    ) -> Result<(Vec<u32>, usize)> {
        let AroundPair { before, between, n_between_of_first, after } =
            self.around_pair.as_ref().ok_or_else(|| {
                Error::model("the model's tokenizer has no template for two texts; use another reranker")
            })?;
        let first = self.encode_to_embed(first)?;
        let mut second = self.encode_to_embed(second)?;
        if truncates {
            let n_others = before.len() + first.len() + between.len() + after.len();
            second.truncate(max_tokens.saturating_sub(n_others));
        }
        let n_first = before.len() + first.len() + n_between_of_first;
        Ok(([before, &first[..], between, &second[..], after].concat(), n_first))
    }

    fn encode_to_embed(&self, text: &str) -> Result<Vec<u32>> {
        if self.reads_special { self.encode_special(text) } else { self.encode(text) }
    }

    /// Encodes any text, in which special tokens may be spelled out, with what the model's own template puts
    /// around it if `is_whole`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str, is_whole: bool) -> Result<Vec<u32>> {
        let ids = self.encode_special(text)?;
        if !is_whole {
            return Ok(ids);
        }
        let ids = self.add_template(&ids);
        let lacks = self.adds_bos.filter(|bos| ids.first() != Some(bos));
        Ok(lacks.into_iter().chain(ids).collect())
    }

    /// The text that ids stand for, special tokens as they are spelled.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.check_ids(ids, "tokens", "send ids of this model's tokenizer")?;
        if let Model::Json { inner, .. } = &self.model
            && json::parts_words(inner)
        {
            return inner
                .decode(ids, false)
                .map_err(|e| Error::internal(format!("the tokens could not be decoded: {e}")));
        }
        let mut bytes = Vec::new();
        for &id in ids {
            match self.special_texts.get(&id) {
                Some(text) => bytes.extend_from_slice(text.as_bytes()),
                None => bytes.extend_from_slice(self.token_bytes(id)),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(if self.begins_with_space {
            text.strip_prefix(' ').map_or(text.clone(), str::to_owned)
        } else {
            text
        })
    }

    /// A token as it is shown: a special one as it is spelled, another by its bytes.
    pub fn token_text(&self, id: u32) -> String {
        let special = self.special_texts.get(&id).cloned();
        special.unwrap_or_else(|| String::from_utf8_lossy(self.token_bytes(id)).into_owned())
    }

    /// Puts the model's own first and last tokens around ids that lack them.
    pub fn add_template(&self, ids: &[u32]) -> Vec<u32> {
        [&self.around.0, ids, &self.around.1].concat()
    }

    /// Leaves away what is too much of ids with the model's own first and last tokens around them, before the
    /// last.
    pub fn truncate_in_template(&self, ids: &mut Vec<u32>, max_tokens: usize) {
        let last = &self.around.1;
        ids.truncate(max_tokens.saturating_sub(last.len()));
        ids.extend_from_slice(last);
    }

    /// Encodes a rendered chat prompt: special tokens are read, except those in which `marker`
    /// stands ([`Tokenizer::defuse`]).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str, marker: Option<char>) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = Vec::new();
        let mut at_start = true;
        for piece in self.special.cut(prompt, marker) {
            match (piece, marker) {
                // What was broken up is text again.
                (Piece::Text(text), Some(marker)) if text.contains(marker) => {
                    let text = text.replace(marker, "");
                    for piece in self.plain.cut(&text, None) {
                        self.encode_piece(piece, &mut at_start, &mut ids)?;
                    }
                }
                (piece, _) => self.encode_piece(piece, &mut at_start, &mut ids)?,
            }
        }
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
        self.special.defuse(text, marker)
    }

    /// A marker for [`Tokenizer::defuse`] that occurs in none of `texts`.
    pub fn free_marker<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<char> {
        MARKERS.into_iter().find(|&marker| texts.clone().all(|text| !text.contains(marker)))
    }

    /// The bytes a token stands for in text; none for special tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The text of a special token.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.special_texts.get(&id).map(String::as_str)
    }

    /// The special token that is spelled like this.
    pub fn special(&self, text: &str) -> Option<u32> {
        self.single(text).filter(|id| self.special_texts.contains_key(id))
    }

    /// The token that alone stands for `text`, if there is one, special or not.
    pub fn single(&self, text: &str) -> Option<u32> {
        match self.encode_special(text).ok()?[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// The tokens with which a model says that it has finished.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether the first text of an answer begins with a space that the vocabulary, not the model,
    /// put there.
    pub fn begins_with_space(&self) -> bool {
        self.begins_with_space
    }

    /// Number of token ids.
    pub fn n_vocab(&self) -> usize {
        self.token_bytes.len()
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

    /// Text of the token that begins a text, for chat templates that write it themselves.
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// Text of the token that ends a text.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    fn encode_pieces(&self, pieces: Vec<Piece>, ids: &mut Vec<u32>) -> Result<()> {
        let mut at_start = true;
        pieces.into_iter().try_for_each(|piece| self.encode_piece(piece, &mut at_start, ids))
    }

    /// `at_start` says whether a text would stand at the beginning or behind a special token.
    fn encode_piece(&self, piece: Piece, at_start: &mut bool, ids: &mut Vec<u32>) -> Result<()> {
        match piece {
            Piece::Special(id) => ids.push(id),
            Piece::Text(text) => self.model.encode(text, *at_start, ids)?,
        }
        *at_start = matches!(piece, Piece::Special(_));
        Ok(())
    }
}

impl Model {
    fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Crate(inner) => {
                let encoding = inner
                    .encode_fast(text, false)
                    .map_err(|e| Error::internal(format!("cannot tokenize the text: {e}")))?;
                ids.extend_from_slice(encoding.get_ids());
            }
            Self::Json { inner, separator } => {
                let behind = if ids.is_empty() { "" } else { json::SEPARATOR };
                let encoding = inner
                    .encode_fast(format!("{behind}{text}"), false)
                    .map_err(|e| Error::internal(format!("cannot tokenize the text: {e}")))?;
                ids.extend(encoding.get_ids().iter().filter(|&id| id != separator));
            }
            Self::SentencePiece(model) => model.encode(text, at_start, ids),
            Self::WordPiece(model) => model.encode(text, ids),
        }
        Ok(())
    }
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
        let special = [(256, "<|im_end|>"), (257, "x"), (258, "")].map(|(id, text)| SpecialToken {
            id,
            text: text.to_owned(),
            is_plain: false,
            strips_right: false,
        });
        let vocabulary = Vocabulary {
            model: Model::Crate(Box::new(inner)),
            special: special.into(),
            token_bytes: vec![Vec::new(); 259],
            around: (Vec::new(), Vec::new()),
            begins_with_space: false,
        };
        Tokenizer::assemble(vocabulary).unwrap()
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
