//! A tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Precompiled, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner};

use super::pre_tokenizers::{self, PreTokenizer};
use super::sentence_piece::{SPACE, SentencePiece};
use super::special::SpecialToken;
use super::word_piece::{Form, WordPiece};
use super::{END_OF_GENERATION, Model, Tokenizer, Vocabulary, byte_level_bytes};
use crate::error::{Error, Result};
use crate::gguf::{Metadata, StringList};

/// Types of tokens in the format.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// Tokens that are for control whatever type a file gives them, beside those that end a text: the
/// parts of a gap to be filled.
const CONTROL_LOOKING: [&str; 35] = [
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

/// The vocabulary of a file.
struct Tokens<'a> {
    texts: &'a StringList,
    types: Vec<i64>,
    scores: &'a [f32],
}

/// Builds the tokenizer; see [`Tokenizer::from_gguf`].
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer> {
    let string = |key| required(key, metadata.string(key)?);
    let kind = string("tokenizer.ggml.model")?;
    let tokens = Tokens::read(metadata)?;
    let token_id = |name: &str| metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| metadata.bool(&format!("tokenizer.ggml.{name}"));
    let adds = |name: &str, usual| flag(&format!("add_{name}_token")).ok().flatten().unwrap_or(usual);
    let (mut bos, mut eos, mut unknown) = (token_id("bos")?, token_id("eos")?, token_id("unknown")?);
    let mut adds_bos = false;
    let mut around = (Vec::new(), Vec::new());
    let mut begins_with_space = false;
    let (model, bytes_of): (Model, fn(&str) -> Vec<u8>) = match kind {
        "gpt2" => {
            // Files older than the key mean the oldest rule.
            let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
            let rule = pre_tokenizers::find(pre).ok_or_else(|| {
                Error::model(format!(
                    "GGUF pre-tokenizer `{pre}` is not known; use safetensors with a tokenizer.json for this model"
                ))
            })?;
            adds_bos = rule.adds_bos;
            (Model::Crate(Box::new(byte_level(rule, &tokens, metadata)?)), byte_level_bytes)
        }
        "llama" => {
            adds_bos = true;
            (bos, eos, unknown) = (bos.or(Some(1)), eos.or(Some(2)), unknown.or(Some(0)));
            let adds_space = flag("add_space_prefix")?.unwrap_or(true);
            begins_with_space = adds_space;
            let entries = tokens.texts.iter().zip(tokens.scores.iter().copied());
            let byte = |id: u32| tokens.byte(id as usize);
            (Model::SentencePiece(SentencePiece::new(entries, byte, unknown, adds_space)), spaced_bytes)
        }
        "bert" => {
            let unknown = required("tokenizer.ggml.unknown_token_id", unknown)?;
            // The format itself misspells this key.
            let (first, last) = (token_id("cls")?.or(bos), token_id("seperator")?);
            around = (first.into_iter().collect(), last.into_iter().collect());
            {
                let form = Form {
                    is_lower_case: flag("normalizer.lowercase")?.unwrap_or(true),
                    strips_accents: flag("normalizer.strip_accents")?.unwrap_or(true),
                };
                (Model::WordPiece(WordPiece::new(tokens.texts.iter(), unknown, form)), spaced_bytes)
            }
        }
        "t5" => {
            (eos, unknown) = (eos.or(Some(1)), unknown.or(Some(2)));
            let first = bos.filter(|_| adds("bos", false));
            let last = eos.filter(|_| adds("eos", true));
            around = (first.into_iter().collect(), last.into_iter().collect());
            (Model::Crate(Box::new(unigram(&tokens, unknown, metadata)?)), spaced_bytes)
        }
        other => {
            return Err(Error::model(format!(
                "GGUF tokenizer model `{other}` is not supported; supported: gpt2, llama, bert, t5; or use \
                 safetensors with a tokenizer.json"
            )));
        }
    };
    let ends = [eos, token_id("eot")?, token_id("eom")?].into_iter().flatten().collect::<Vec<u32>>();
    let vocabulary = Vocabulary {
        model,
        special: tokens.special(strips_right(metadata)?),
        token_bytes: (0..tokens.texts.len())
            .zip(tokens.texts.iter())
            .map(|(id, text)| tokens.bytes(id, text, bytes_of))
            .collect(),
        around,
        begins_with_space,
    };
    let adds_bos = flag("add_bos_token")?.unwrap_or(adds_bos);
    Ok(Tokenizer::assemble(vocabulary)?.with_text_tokens(bos, &ends, adds_bos))
}

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let texts_key = "tokenizer.ggml.tokens";
        let texts = required(texts_key, metadata.strings(texts_key)?)?;
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
        for (text, kind) in texts.iter().zip(&mut types) {
            if END_OF_GENERATION.contains(&text) || CONTROL_LOOKING.contains(&text) {
                *kind = CONTROL;
            }
        }
        let kind = metadata.string("tokenizer.ggml.model")?.unwrap_or_default();
        let scores = match scores {
            Some(scores) => scores,
            None if matches!(kind, "llama" | "t5") => required("tokenizer.ggml.scores", None)?,
            None => &[],
        };
        Ok(Self { texts, types, scores })
    }

    /// The byte that a token stands for, if it is one of bytes: `<0x0A>`.
    fn byte(&self, id: usize) -> Option<u8> {
        if self.types.get(id) != Some(&BYTE) {
            return None;
        }
        byte_of(self.texts.get(id)?)
    }

    /// The bytes that a token stands for in text.
    fn bytes(&self, id: usize, text: &str, bytes_of: fn(&str) -> Vec<u8>) -> Vec<u8> {
        match self.types[id] {
            CONTROL | UNKNOWN => Vec::new(),
            USER_DEFINED => text.replace(SPACE, " ").into_bytes(),
            BYTE => byte_of(text).map_or_else(|| bytes_of(text), |byte| vec![byte]),
            _ => bytes_of(text),
        }
    }

    fn special(&self, strips_right: impl Fn(&str) -> bool) -> Vec<SpecialToken> {
        let tokens = (0u32..).zip(self.texts.iter().zip(&self.types));
        tokens
            .filter(|(_, (_, kind))| matches!(**kind, CONTROL | UNKNOWN | USER_DEFINED))
            .map(|(id, (text, &kind))| SpecialToken {
                id,
                text: text.to_owned(),
                is_plain: kind == USER_DEFINED,
                strips_right: strips_right(text),
            })
            .collect()
    }
}

/// Which special tokens swallow the white space behind them: the files of Phi-3 do not say it, and
/// are known by their name.
fn strips_right(metadata: &Metadata) -> Result<impl Fn(&str) -> bool> {
    let name = metadata.string("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok(move |text: &str| is_phi3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"))
}

/// Byte-level byte-pair encoding.
fn byte_level(rule: &PreTokenizer, tokens: &Tokens, metadata: &Metadata) -> Result<Inner> {
    let key = "tokenizer.ggml.merges";
    let merges = required(key, metadata.strings(key)?)?
        .iter()
        // A token may begin with the space that parts the two.
        .map(|merge| {
            let at = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
            Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::model("GGUF tokenizer has a merge that is not a pair; the file is damaged"))?;
    let vocab: Vocab = tokens.texts.iter().map(str::to_owned).zip(0u32..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(rule.ignores_merges)
        .build()
        .map_err(inconsistent)?;
    let mut steps = rule
        .patterns
        .iter()
        .map(|&pattern| {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(inconsistent)?;
            Ok(PreTokenizerWrapper::from(split))
        })
        .collect::<Result<Vec<_>>>()?;
    steps.push(ByteLevel::new(false, false, false).into());
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(inner)
}

/// The likeliest tokens by their scores, of a text in SentencePiece's normal form.
fn unigram(tokens: &Tokens, unknown: Option<u32>, metadata: &Metadata) -> Result<Inner> {
    let scores = tokens.scores.iter().map(|&score| f64::from(score));
    // Special tokens are cut out before; here their texts must match nothing.
    let text = |(id, text): (usize, &str)| match tokens.types[id] {
        CONTROL | UNKNOWN => format!("\u{10FFFF}{id}\u{10FFFF}"),
        _ => text.to_owned(),
    };
    let vocab = tokens.texts.iter().enumerate().map(text).zip(scores).collect();
    let model = Unigram::from(vocab, unknown.map(|id| id as usize), false).map_err(inconsistent)?;
    let mut inner = Inner::new(model);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(map) = metadata.integers("tokenizer.ggml.precompiled_charsmap")? {
        let bytes: Vec<u8> = map.into_iter().map(|byte| byte as u8).collect();
        steps.push(NormalizerWrapper::from(Precompiled::from(&bytes).map_err(|e| inconsistent(e.into()))?));
    }
    let merges_spaces = metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
    if merges_spaces {
        for (spaces, one) in [(r"\A +| +\z", ""), (" {2,}", " ")] {
            let spaces = ReplacePattern::Regex(spaces.to_owned());
            steps.push(Replace::new(spaces, one).map_err(inconsistent)?.into());
        }
    }
    if merges_spaces || metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false) {
        steps.push(Prepend::new(SPACE.to_string()).into());
    }
    let space = ReplacePattern::String(" ".to_owned());
    steps.push(Replace::new(space, SPACE.to_string()).map_err(inconsistent)?.into());
    inner.with_normalizer(Some(normalizers::Sequence::new(steps))).map_err(inconsistent)?;
    Ok(inner)
}

/// The text of a token in which spaces are written `▁`.
pub(super) fn spaced_bytes(token: &str) -> Vec<u8> {
    token.replace(SPACE, " ").into_bytes()
}

/// The byte that the text of a token names.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

fn inconsistent(e: tokenizers::Error) -> Error {
    Error::model(format!("GGUF tokenizer is inconsistent: {e}"))
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::model(format!("GGUF file has no `{key}`; it carries no tokenizer")))
}
