//! A tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Precompiled, Replace};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::file_limits::{MAX_TOKEN_BYTES, check_charsmap};
use super::model::{TokenizerModel, TokenizerParts};
use super::pipeline::{BoundedNormalizer, BoundedPreTokenizer, Pipeline};
use super::pre_tokenizers::{PreTokenizer, pre_tokenizer_by_name};
use super::sentence_piece::SentencePiece;
use super::special::{END_OF_GENERATION, SpecialToken};
use super::template::TextTemplate;
use super::token_bytes::{SPACE, byte_level_bytes, fallback_byte, sentence_piece_bytes};
use crate::error::{Error, Result};
use crate::gguf::{Metadata, StringList};

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// A vocabulary is cased if more than one in so many of its tokens has an upper-case letter. Of BERT's cased one, a
/// third have.
const UNCASED_SHARE: usize = 100;

/// Texts of control tokens for fill-in-the-middle (FIM). Like [`END_OF_GENERATION`] tokens, they are control tokens
/// whatever type a file gives them.
const FIM_CONTROL_TOKENS: [&str; 35] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The vocabulary of a GGUF file, by token id.
struct GgufVocab<'a> {
    texts: &'a StringList,
    types: Vec<i64>,
    scores: &'a [f32],
}

/// Reads the parts of a tokenizer from the metadata of a GGUF file.
///
/// # Errors
/// When a key is missing or malformed, or names an unknown model or pre-tokenizer.
pub fn read_parts(metadata: &Metadata) -> Result<TokenizerParts> {
    let string = |key| require_key(key, metadata.string(key)?);
    let kind = string("tokenizer.ggml.model")?;
    let tokens = GgufVocab::read(metadata)?;
    let token_id = |name: &str| {
        let id = metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"))?;
        match id.filter(|id| *id as usize >= tokens.texts.len()) {
            None => Ok(id),
            Some(id) => Err(Error::model(format!(
                "GGUF tokenizer has {} tokens, but its {name} token is {id}; the file is damaged",
                tokens.texts.len()
            ))),
        }
    };
    let flag = |name: &str| metadata.bool(&format!("tokenizer.ggml.{name}"));
    let adds_token =
        |name: &str, default| flag(&format!("add_{name}_token")).ok().flatten().unwrap_or(default);
    let (mut bos, mut eos, mut unknown) = (token_id("bos")?, token_id("eos")?, token_id("unknown")?);
    let mut add_bos = false;
    let mut template = TextTemplate::default();
    let mut has_space_prefix = false;
    let (model, text_bytes): (TokenizerModel, fn(&str) -> Vec<u8>) = match kind {
        "gpt2" | "gemma4" => {
            // Files from before this key was introduced mean the oldest rule.
            let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
            let pre = if kind == "gemma4" { kind } else { pre };
            let rule = pre_tokenizer_by_name(pre).ok_or_else(|| {
                Error::model(format!(
                    "GGUF pre-tokenizer `{pre:.100}` is not supported; use the model in safetensors format with its tokenizer.json"
                ))
            })?;
            add_bos = rule.add_bos;
            let model = byte_pair_encoding(rule, &tokens, unknown, metadata)?;
            let text_bytes = if rule.is_byte_level { byte_level_bytes } else { sentence_piece_bytes };
            (TokenizerModel::Crate(Box::new(model)), text_bytes)
        }
        "llama" => {
            add_bos = true;
            (bos, eos, unknown) = (bos.or(Some(1)), eos.or(Some(2)), unknown.or(Some(0)));
            has_space_prefix = flag("add_space_prefix")?.unwrap_or(true);
            let entries = tokens.texts.iter().zip(tokens.scores.iter().copied());
            let fallback_byte = |id: u32| tokens.fallback_byte(id as usize);
            let model = SentencePiece::new(entries, fallback_byte, unknown, has_space_prefix);
            (TokenizerModel::SentencePiece(model), sentence_piece_bytes)
        }
        "bert" => {
            let unknown = require_key("tokenizer.ggml.unknown_token_id", unknown)?;
            // GGUF misspells this key.
            let (first, last) = (token_id("cls")?.or(bos), token_id("seperator")?);
            template =
                TextTemplate { before: first.into_iter().collect(), after: last.into_iter().collect() };
            let lowercase = flag("normalizer.lowercase")?.unwrap_or_else(|| !tokens.is_cased());
            let strip_accents = flag("normalizer.strip_accents")?.unwrap_or(lowercase);
            let normalizer = BertNormalizer::new(true, true, Some(strip_accents), lowercase);
            let model = word_piece(&tokens, unknown, normalizer)?;
            (TokenizerModel::Crate(Box::new(model)), sentence_piece_bytes)
        }
        "t5" => {
            (eos, unknown) = (eos.or(Some(1)), unknown.or(Some(2)));
            let first = bos.filter(|_| adds_token("bos", false));
            let last = eos.filter(|_| adds_token("eos", true));
            template =
                TextTemplate { before: first.into_iter().collect(), after: last.into_iter().collect() };
            (TokenizerModel::Crate(Box::new(unigram(&tokens, unknown, metadata)?)), sentence_piece_bytes)
        }
        other => {
            return Err(Error::model(format!(
                "GGUF tokenizer model `{other:.100}` is not supported (gpt2, gemma4, llama, bert and t5 are); use the model in \
                 safetensors format with its tokenizer.json"
            )));
        }
    };
    Ok(TokenizerParts {
        model,
        special_tokens: tokens.special_tokens(strip_right(metadata)?),
        token_bytes: (0..tokens.texts.len())
            .zip(tokens.texts.iter())
            .map(|(id, text)| tokens.bytes(id, text, text_bytes))
            .collect(),
        template,
        pair_template: None,
        has_space_prefix,
        bos,
        eos: [eos, token_id("eot")?, token_id("eom")?].into_iter().flatten().collect(),
        // Early files of Gemma 4 deny it.
        add_bos: flag("add_bos_token")?.unwrap_or(add_bos) || kind == "gemma4",
    })
}

impl<'a> GgufVocab<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let texts_key = "tokenizer.ggml.tokens";
        let texts = require_key(texts_key, metadata.strings(texts_key)?)?;
        let types_key = "tokenizer.ggml.token_type";
        let mut types = metadata.integers(types_key)?.unwrap_or_else(|| vec![1; texts.len()]);
        let scores = metadata.floats("tokenizer.ggml.scores")?;
        let counts = [Some(types.len()), scores.map(<[f32]>::len)];
        if let Some(n) = counts.into_iter().flatten().find(|&n| n != texts.len()) {
            return Err(Error::model(format!(
                "GGUF tokenizer has {} tokens, but {n} types or scores; the file is damaged",
                texts.len()
            )));
        }
        if let Some(longest) = texts.iter().map(str::len).max().filter(|&longest| longest > MAX_TOKEN_BYTES) {
            return Err(Error::model(format!(
                "GGUF tokenizer has a token of {longest} bytes; at most {MAX_TOKEN_BYTES} are allowed"
            )));
        }
        for (text, kind) in texts.iter().zip(&mut types) {
            if END_OF_GENERATION.contains(&text) || FIM_CONTROL_TOKENS.contains(&text) {
                *kind = CONTROL;
            }
        }
        let kind = metadata.string("tokenizer.ggml.model")?.unwrap_or_default();
        let scores = match scores {
            Some(scores) => scores,
            None if matches!(kind, "llama" | "t5") => require_key("tokenizer.ggml.scores", None)?,
            None => &[],
        };
        Ok(Self { texts, types, scores })
    }

    /// Whether the vocabulary distinguishes upper from lower case. Files do not say so, but one of a model that
    /// converts texts to lower case has no token with an upper-case letter, except special ones.
    fn is_cased(&self) -> bool {
        let is_upper = |(text, kind): (&str, &i64)| {
            *kind == NORMAL && !is_bracketed(text) && text.chars().any(char::is_uppercase)
        };
        let n_upper = self.texts.iter().zip(&self.types).filter(|token| is_upper(*token)).count();
        n_upper * UNCASED_SHARE > self.texts.len()
    }

    /// The byte of a token, if it is a byte-fallback token such as `<0x0A>`.
    fn fallback_byte(&self, id: usize) -> Option<u8> {
        if self.types.get(id) != Some(&BYTE) {
            return None;
        }
        fallback_byte(self.texts.get(id)?)
    }

    /// The bytes of a token; `text_bytes` converts the texts of normal tokens.
    fn bytes(&self, id: usize, text: &str, text_bytes: fn(&str) -> Vec<u8>) -> Vec<u8> {
        match self.types[id] {
            CONTROL | UNKNOWN => Vec::new(),
            USER_DEFINED => sentence_piece_bytes(text),
            BYTE => fallback_byte(text).map_or_else(|| text_bytes(text), |byte| vec![byte]),
            _ => text_bytes(text),
        }
    }

    fn special_tokens(&self, strip_right: impl Fn(&str) -> bool) -> Vec<SpecialToken> {
        let tokens = (0u32..).zip(self.texts.iter().zip(&self.types));
        tokens
            .filter(|(_, (_, kind))| matches!(**kind, CONTROL | UNKNOWN | USER_DEFINED))
            .map(|(id, (text, &kind))| SpecialToken {
                id,
                text: text.to_owned(),
                is_user_defined: kind == USER_DEFINED,
                strip_right: strip_right(text),
            })
            .collect()
    }
}

/// Whether a special token consumes the white space after it. The files of Phi-3 do not say so, and are recognized
/// by name.
fn strip_right(metadata: &Metadata) -> Result<impl Fn(&str) -> bool> {
    let name = metadata.string("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok(move |text: &str| is_phi3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"))
}

/// Builds a model of byte-pair encoding by the ranks of merges.
fn byte_pair_encoding(
    rule: &PreTokenizer,
    tokens: &GgufVocab,
    unknown: Option<u32>,
    metadata: &Metadata,
) -> Result<Pipeline> {
    let key = "tokenizer.ggml.merges";
    let merges = require_key(key, metadata.strings(key)?)?
        .iter()
        // The first token may itself start with a space.
        .map(|merge| {
            let at = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
            Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::model("GGUF tokenizer has a merge that is not a pair; the file is damaged"))?;
    let vocab: Vocab = tokens.texts.iter().map(str::to_owned).zip(0u32..).collect();
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(rule.ignore_merges);
    let mut steps = rule.steps().map_err(inconsistent)?;
    let mut normalizer = None;
    if rule.is_byte_level {
        steps.push(ByteLevel::new(false, false, false).into());
    } else {
        builder = builder.byte_fallback(true).fuse_unk(true);
        if let Some(text) = unknown.and_then(|id| tokens.texts.get(id as usize)) {
            builder = builder.unk_token(text.to_owned());
        }
        normalizer = Some(escape_spaces()?);
    }
    pipeline(builder.build().map_err(inconsistent)?, normalizer, Sequence::new(steps).into())
}

/// Writes spaces as `▁`.
fn escape_spaces() -> Result<NormalizerWrapper> {
    let space = ReplacePattern::String(" ".to_owned());
    Ok(Replace::new(space, SPACE.to_string()).map_err(inconsistent)?.into())
}

/// Builds BERT's WordPiece. Files write a token that starts a word with `▁` before it, and one that continues a word
/// without `##`, while special tokens keep their texts.
fn word_piece(tokens: &GgufVocab, unknown: u32, normalizer: BertNormalizer) -> Result<Pipeline> {
    let text = |(text, kind): (&str, &i64)| match text.strip_prefix(SPACE) {
        _ if *kind != NORMAL || is_bracketed(text) => text.to_owned(),
        Some(start) if !start.is_empty() => start.to_owned(),
        _ => format!("##{text}"),
    };
    let texts: Vec<String> = tokens.texts.iter().zip(&tokens.types).map(text).collect();
    let unknown = texts.get(unknown as usize).cloned().unwrap_or_default();
    let vocab: Vocab = texts.into_iter().zip(0u32..).collect();
    let model = WordPiece::builder().vocab(vocab).unk_token(unknown).build().map_err(inconsistent)?;
    pipeline(model, Some(normalizer.into()), BertPreTokenizer.into())
}

/// Whether a token is written as special ones are, such as `[CLS]`.
fn is_bracketed(text: &str) -> bool {
    text.len() > 2 && text.starts_with('[') && text.ends_with(']')
}

/// A pipeline that splits text at nothing but its pre-tokenizer.
fn pipeline(
    model: impl Into<ModelWrapper>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizerWrapper,
) -> Result<Pipeline> {
    let mut pipeline = Pipeline::new(model.into());
    let normalizer = normalizer.map(BoundedNormalizer::new).transpose().map_err(inconsistent)?;
    pipeline.with_normalizer(normalizer).map_err(inconsistent)?;
    pipeline.with_pre_tokenizer(Some(BoundedPreTokenizer::new(pre_tokenizer).map_err(inconsistent)?));
    Ok(pipeline)
}

/// Builds a SentencePiece unigram model: the most likely tokens by their scores.
fn unigram(tokens: &GgufVocab, unknown: Option<u32>, metadata: &Metadata) -> Result<Pipeline> {
    let scores = tokens.scores.iter().map(|&score| f64::from(score));
    // Special tokens are split off before; here their texts must not match.
    let vocab_text = |(id, text): (usize, &str)| match tokens.types[id] {
        CONTROL | UNKNOWN => format!("\u{10FFFF}{id}\u{10FFFF}"),
        _ if text.is_empty() => format!("\u{10FFFF}{id}\u{10FFFF}"),
        _ => text.to_owned(),
    };
    let vocab = tokens.texts.iter().enumerate().map(vocab_text).zip(scores).collect();
    let model = Unigram::from(vocab, unknown.map(|id| id as usize), false).map_err(inconsistent)?;
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(map) = metadata.integers("tokenizer.ggml.precompiled_charsmap")? {
        let bytes: Vec<u8> = map.into_iter().map(|byte| byte as u8).collect();
        check_charsmap(&bytes)?;
        steps.push(NormalizerWrapper::from(Precompiled::from(&bytes).map_err(|e| inconsistent(e.into()))?));
    }
    let collapse_spaces = metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
    if collapse_spaces {
        for (pattern, replacement) in [(r"\A +| +\z", ""), (" {2,}", " ")] {
            let pattern = ReplacePattern::Regex(pattern.to_owned());
            steps.push(Replace::new(pattern, replacement).map_err(inconsistent)?.into());
        }
    }
    if collapse_spaces || metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false) {
        steps.push(Prepend::new(SPACE.to_string()).into());
    }
    steps.push(escape_spaces()?);
    pipeline(model, Some(normalizers::Sequence::new(steps).into()), Sequence::new(Vec::new()).into())
}

fn inconsistent(e: tokenizers::Error) -> Error {
    Error::model(format!("GGUF tokenizer is inconsistent: {e}"))
}

fn require_key<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        Error::model(format!(
            "GGUF file has no `{key}`, so it has no usable tokenizer; use another conversion of the model"
        ))
    })
}
