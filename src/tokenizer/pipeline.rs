//! The pipeline of the `tokenizers` crate, with normalizers and pre-tokenizers that stay within
//! [bounds](super::bounds).

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::normalizers::Precompiled;
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::pattern::Invert;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Result, SplitDelimiterBehavior, TokenizerImpl,
};

use super::bounds::{check_growth, exceeded};
use super::pattern::Pattern;

/// The longest text that a normalizer may put in place of a match or before a text.
const MAX_CONTENT_BYTES: usize = 64;

/// Steps of a normalizer or pre-tokenizer.
const MAX_STEPS: usize = 64;

/// Bytes of a text that are measured at once, before a step that may expand it.
const PIECE_BYTES: usize = 1 << 10;

/// A tokenizer whose work is bounded.
pub type Pipeline =
    TokenizerImpl<ModelWrapper, BoundedNormalizer, BoundedPreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// Normalizers that check how long a text becomes before they make it.
pub struct BoundedNormalizer(Vec<NormalizerStep>);

enum NormalizerStep {
    Replace { pattern: Pattern, content: String },
    Precompiled(Precompiled),
    Other(NormalizerWrapper),
}

/// Pre-tokenizers whose regular expressions are [`Pattern`]s.
pub struct BoundedPreTokenizer(Vec<PreTokenizerStep>);

enum PreTokenizerStep {
    Split { pattern: Pattern, behavior: SplitDelimiterBehavior, invert: bool },
    Other(PreTokenizerWrapper),
}

impl BoundedNormalizer {
    /// Takes the steps of a normalizer apart.
    ///
    /// # Errors
    /// When there are too many, or one could expand a text without bound.
    pub fn new(normalizer: NormalizerWrapper) -> Result<Self> {
        let mut steps = Vec::new();
        let mut pending = vec![normalizer];
        while let Some(next) = pending.pop() {
            match next {
                NormalizerWrapper::Sequence(sequence) => {
                    pending.extend(sequence.into_iter().collect::<Vec<_>>().into_iter().rev());
                }
                NormalizerWrapper::Replace(replace) => steps.push(replace_step(&replace)?),
                NormalizerWrapper::Precompiled(map) => steps.push(NormalizerStep::Precompiled(map)),
                NormalizerWrapper::Prepend(prepend) => {
                    check_content(&prepend.prepend)?;
                    steps.push(NormalizerStep::Other(prepend.into()));
                }
                other => steps.push(NormalizerStep::Other(other)),
            }
            check_steps(steps.len() + pending.len())?;
        }
        Ok(Self(steps))
    }
}

fn check_steps(n_steps: usize) -> Result<()> {
    if n_steps > MAX_STEPS {
        return Err(format!("the tokenizer has more than {MAX_STEPS} steps").into());
    }
    Ok(())
}

fn check_content(content: &str) -> Result<()> {
    if content.len() > MAX_CONTENT_BYTES {
        return Err(format!(
            "a normalizer inserts a text of {} bytes; at most {MAX_CONTENT_BYTES} are allowed",
            content.len()
        )
        .into());
    }
    Ok(())
}

fn replace_step(replace: &Replace) -> Result<NormalizerStep> {
    check_content(&replace.content)?;
    // The crate does not give the pattern away otherwise.
    let fields = serde_json::to_value(replace)?;
    let pattern = match (&fields["pattern"]["Regex"], &fields["pattern"]["String"]) {
        (Value::String(regex), _) => Pattern::from_regex(regex)?,
        (_, Value::String(text)) => Pattern::from_text(text)?,
        _ => return Err("a normalizer has no pattern".into()),
    };
    Ok(NormalizerStep::Replace { pattern, content: replace.content.clone() })
}

impl Normalizer for BoundedNormalizer {
    fn normalize(&self, normalized: &mut NormalizedString) -> Result<()> {
        self.0.iter().try_for_each(|step| step.normalize(normalized))
    }
}

impl NormalizerStep {
    fn normalize(&self, normalized: &mut NormalizedString) -> Result<()> {
        let n_bytes = normalized.get().len();
        match self {
            Self::Replace { pattern, content } => {
                let matches =
                    tokenizers::tokenizer::pattern::Pattern::find_matches(&pattern, normalized.get())?;
                // The crate cannot replace nothing by something.
                if matches.iter().any(|((start, end), is_match)| *is_match && start == end) {
                    return Err(exceeded("a normalizer of the tokenizer replaces nothing".to_owned()).into());
                }
                let n_matches = matches.iter().filter(|(_, is_match)| *is_match).count();
                check_growth(n_bytes, n_bytes + n_matches * content.len())?;
                normalized.replace(Found(matches), content)
            }
            Self::Precompiled(map) => {
                check_growth(n_bytes, measured(normalized.get(), |piece| map.normalize_string(piece).len()))?;
                map.normalize(normalized)
            }
            Self::Other(other) => {
                check_growth(n_bytes, length_after(other, normalized.get()))?;
                other.normalize(normalized)
            }
        }
    }
}

/// Bytes of a text after a normalizer, unless it makes no text much longer.
fn length_after(normalizer: &NormalizerWrapper, text: &str) -> usize {
    let expands = matches!(
        normalizer,
        NormalizerWrapper::NFD(_)
            | NormalizerWrapper::NFKC(_)
            | NormalizerWrapper::NFKD(_)
            | NormalizerWrapper::BertNormalizer(_)
    );
    match normalizer {
        NormalizerWrapper::Prepend(prepend) => text.len() + prepend.prepend.len(),
        _ if expands && !text.is_ascii() => measured(text, |piece| {
            let mut piece = NormalizedString::from(piece);
            normalizer.normalize(&mut piece).map_or(0, |()| piece.get().len())
        }),
        _ => text.len(),
    }
}

/// Bytes that a normalizer makes of a text, measured in pieces, so that no piece takes much memory.
fn measured(text: &str, measure: impl Fn(&str) -> usize) -> usize {
    let mut rest = text;
    let mut n_bytes = 0;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(PIECE_BYTES.min(rest.len())));
        n_bytes += measure(piece);
        rest = after;
    }
    n_bytes
}

/// Matches that have been found before.
struct Found(Vec<(tokenizers::Offsets, bool)>);

impl tokenizers::tokenizer::pattern::Pattern for Found {
    fn find_matches(&self, _: &str) -> Result<Vec<(tokenizers::Offsets, bool)>> {
        Ok(self.0.clone())
    }
}

impl BoundedPreTokenizer {
    /// Takes the steps of a pre-tokenizer apart.
    ///
    /// # Errors
    /// When there are too many, or one cannot work.
    pub fn new(pre_tokenizer: PreTokenizerWrapper) -> Result<Self> {
        let mut steps = Vec::new();
        let mut pending = vec![pre_tokenizer];
        while let Some(next) = pending.pop() {
            match next {
                PreTokenizerWrapper::Sequence(sequence) => {
                    pending.extend(sequence.into_iter().collect::<Vec<_>>().into_iter().rev());
                }
                PreTokenizerWrapper::Split(Split { pattern, behavior, invert, .. }) => {
                    let pattern = match pattern {
                        SplitPattern::Regex(regex) => Pattern::from_regex(&regex)?,
                        SplitPattern::String(text) => Pattern::from_text(&text)?,
                    };
                    steps.push(PreTokenizerStep::Split { pattern, behavior, invert });
                }
                PreTokenizerWrapper::FixedLength(fixed) if fixed.length == 0 => {
                    return Err("the pre-tokenizer splits a text into pieces of length 0".into());
                }
                other => steps.push(PreTokenizerStep::Other(other)),
            }
            check_steps(steps.len() + pending.len())?;
        }
        Ok(Self(steps))
    }
}

impl PreTokenizer for BoundedPreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        self.0.iter().try_for_each(|step| match step {
            PreTokenizerStep::Split { pattern, behavior, invert: false } => {
                text.split(|_, piece| piece.split(pattern, *behavior))
            }
            PreTokenizerStep::Split { pattern, behavior, invert: true } => {
                text.split(|_, piece| piece.split(Invert(pattern), *behavior))
            }
            PreTokenizerStep::Other(other) => other.pre_tokenize(text),
        })
    }
}

impl<'de> Deserialize<'de> for BoundedNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(NormalizerWrapper::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for BoundedPreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(PreTokenizerWrapper::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
