//! Pre-tokenizers: the regular expressions that split text before byte-pair encoding.
//!
//! A GGUF file names its pre-tokenizer without describing it, so the rules stand here, one row each. The expressions
//! are those of the models' own `tokenizer.json`; llama.cpp, which introduced the names, simplifies some of them. An
//! unknown name is refused, since a wrong rule would silently give wrong ids. Left out is `whitespace`, whose
//! vocabularies are of no family that is served.

use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, Result, SplitDelimiterBehavior};

/// The pre-tokenizer of some vocabularies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreTokenizer {
    /// The names that GGUF files use for it.
    pub names: &'static [&'static str],
    /// Regular expressions, applied in order. Each splits the pieces of the one before into its matches and the
    /// text between them.
    pub patterns: &'static [&'static str],
    /// Whether the vocabulary writes bytes as characters of GPT-2's alphabet. One that does not is SentencePiece's:
    /// a space is `▁`, and a character without a token becomes byte tokens.
    pub is_byte_level: bool,
    /// Whether a piece that is a token is used without merging.
    pub ignore_merges: bool,
    /// Whether prompts start with BOS, unless the file says otherwise.
    pub add_bos: bool,
}

/// The pre-tokenizer of a name.
pub fn pre_tokenizer_by_name(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|rule| rule.names.contains(&name))
}

impl PreTokenizer {
    /// The steps of the crate's pre-tokenizer, one for each expression.
    ///
    /// # Errors
    /// When an expression is invalid.
    pub fn steps(&self) -> Result<Vec<PreTokenizerWrapper>> {
        let split = |&pattern: &&str| {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
        };
        self.patterns.iter().map(split).collect()
    }
}

/// English contractions in any case.
macro_rules! contraction {
    () => {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// Words in upper and lower case, split as in camel case, each with one leading symbol and followed by `$suffix`. The
/// letters of scripts without case belong to both; `$but` excludes characters.
macro_rules! camel_case {
    ($but:literal, $suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]*[\p{Ll}\p{Lm}\p{Lo}\p{M}",
            $but,
            "]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}",
            $but,
            r"]+[\p{Ll}\p{Lm}\p{Lo}\p{M}",
            $but,
            "]*",
            $suffix
        )
    };
}

/// Line breaks with the spaces before them; spaces, of which the last belongs to what follows.
macro_rules! spaces {
    () => {
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// Symbols with a leading space and line breaks after them, then [`spaces`].
macro_rules! symbols_and_spaces {
    () => {
        concat!(r"| ?[^\s\p{L}\p{N}]+[\r\n]*", spaces!())
    };
}

/// Contractions, letters, numbers, other characters, each with its leading space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// Contractions; words with one leading symbol; up to three digits; symbols and spaces.
const LLAMA3: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", symbols_and_spaces!());

/// [`LLAMA3`] with single digits.
const QWEN2: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", symbols_and_spaces!());

/// Words in camel case with their contractions; up to three digits.
const GPT4O: &str = concat!(
    camel_case!("", concat!(contraction!(), "?")),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    spaces!()
);

/// [`GPT4O`] without contractions and with single digits.
const TEKKEN: &str = concat!(camel_case!("", ""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*", spaces!());

/// A symbol followed by Latin letters; words; symbols; spaces.
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"##,
    spaces!()
);

/// The letters of alphabets with two cases, by code point, since some are canonically equivalent to others.
const CASED_WORDS: &str = concat!(
    "\\s?[A-Za-z",
    "\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    "\u{370}-\u{373}\u{376}-\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    "\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    "\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}",
    "\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}",
    "\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}",
    "\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}",
    "\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}",
    "\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
    "\u{2145}-\u{2149}\u{214E}\u{2183}-\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}",
    "\u{2CF2}-\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}",
    "\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}",
    "\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}",
    "\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}",
    "]+"
);

/// Text up to white space or punctuation.
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// The scripts from Indic to Hangul.
const EAST_ASIAN: &str = "[\u{800}-\u{9FA5}\u{AC00}-\u{D7FF}]+";

/// Chinese characters, hiragana and katakana.
const HAN_AND_KANA: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";

/// The scripts that are written without spaces, and kana of half width.
const UNSPACED: &str = "[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{E00}-\u{E7F}\u{E80}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+";

/// A pre-tokenizer with the default flags.
const fn rule(names: &'static [&'static str], patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, patterns, is_byte_level: true, ignore_merges: false, add_bos: false }
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    rule(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    rule(
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "trillion",
            "granite-docling",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[GPT2],
    ),
    rule(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..rule(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            &[LLAMA3],
        )
    },
    rule(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    PreTokenizer { ignore_merges: true, ..rule(&["glm4", "glm5"], &[LLAMA3]) },
    rule(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    rule(
        &["qwen35"],
        &[concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            spaces!()
        )],
    ),
    PreTokenizer { ignore_merges: true, add_bos: true, ..rule(&["tekken"], &[TEKKEN]) },
    rule(&["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"], &[GPT4O]),
    PreTokenizer { ignore_merges: true, ..rule(&["granite-embed-multi-97m"], &[GPT4O]) },
    // Digits in groups of three from the right, if no letter follows. The models' own `\d{1,3}(?=(?:\d{3})*\b)` takes
    // quadratic time.
    rule(&["tiny_aya", "cohere2moe"], &[r"(?<!\d)\d{1,2}(?=(?:\d{3})*\b)|\d{3}", GPT4O]),
    // Likewise `(?=(\d{3})+(?!\d))`.
    rule(&["superbpe"], &[r"\p{N}+", r"(?<!\d)\d{1,2}(?=(?:\d{3})+(?!\d))|\d{3}"]),
    rule(&["afmoe"], &[r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}{3}", UNSPACED, DEEPSEEK3]),
    PreTokenizer {
        is_byte_level: false,
        add_bos: true,
        ..rule(&["gemma4", "granite-embed-multi-311m"], &[])
    },
    PreTokenizer { is_byte_level: false, ..rule(&["sarvam-moe"], &[]) },
    rule(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            CASED_WORDS,
            "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
            r"(?<!\s)\s+\z",
            EAST_ASIAN,
            r"\p{N}+",
        ],
    ),
    rule(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"]),
    rule(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK3]),
    rule(
        &["spark2_5"],
        &[
            r"\p{N}",
            HAN_AND_KANA,
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
        ],
    ),
    rule(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    rule(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    rule(&["viking"], &[BLOOM, r"\p{N}"]),
    PreTokenizer {
        add_bos: true,
        ..rule(
            &["chameleon"],
            &[
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ],
        )
    },
    rule(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    ),
    rule(
        &["seed-coder"],
        &[concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+", spaces!())],
    ),
    rule(
        &["exaone-moe"],
        &[concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    rule(
        &["jais-2"],
        &[concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
    ),
    PreTokenizer {
        ignore_merges: true,
        ..rule(
            &["youtu"],
            &[
                "[\u{AC00}-\u{D7A3}\u{3131}-\u{318E}]+|[\u{FF01}\u{2026}\u{201C}\u{201D}\u{2018}\u{2019}\u{2014}\u{FF1A}\u{FF1B}\u{FF0C}\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[\u{3105}-\u{312F}]+|[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
                concat!(
                    camel_case!("", concat!(contraction!(), "?")),
                    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
                    spaces!()
                ),
            ],
        )
    },
    rule(&["laguna"], &[r"[^\n]+|\n+", QWEN2]),
    rule(&["ufakzeka"], &[concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", symbols_and_spaces!())]),
    PreTokenizer {
        ignore_merges: true,
        ..rule(
            &["minicpm5"],
            &[
                r"\p{N}{1,3}",
                concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+", symbols_and_spaces!()),
            ],
        )
    },
    rule(
        &["kimi-k2"],
        &[concat!(
            r"\p{Han}+|",
            camel_case!(r"&&[^\p{Han}]", concat!(contraction!(), "?")),
            r"|\p{N}{1,3}",
            symbols_and_spaces!()
        )],
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tokenizers::pre_tokenizers::sequence::Sequence;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::super::pipeline::BoundedPreTokenizer;
    use super::*;

    #[test]
    fn every_name_is_unique() {
        let mut names = BTreeSet::new();
        for name in PRE_TOKENIZERS.iter().flat_map(|rule| rule.names) {
            assert!(names.insert(name), "{name}");
            assert!(pre_tokenizer_by_name(name).is_some());
        }
        assert_eq!(pre_tokenizer_by_name("no-such-rule"), None);
    }

    /// Texts, and the lengths of their pieces by the first name of a rule; see `pre_tokenizers.py` beside the file.
    #[derive(serde::Deserialize)]
    struct Reference {
        texts: Vec<String>,
        splits: BTreeMap<String, Vec<Vec<usize>>>,
    }

    #[test]
    fn pieces_are_those_of_the_models_own_expressions() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vocab/pre_tokenizers.json");
        let mut reference: Reference = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut wrong = Vec::new();
        for rule in PRE_TOKENIZERS {
            let name = rule.names[0];
            let expected = reference.splits.remove(name).unwrap_or_else(|| panic!("{name} has no reference"));
            let steps = Sequence::new(rule.steps().unwrap());
            let pre_tokenizer = BoundedPreTokenizer::new(steps.into()).unwrap();
            for (text, expected) in reference.texts.iter().zip(expected) {
                let mut split = PreTokenizedString::from(text.as_str());
                pre_tokenizer.pre_tokenize(&mut split).unwrap();
                let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let pieces: Vec<&str> =
                    pieces.into_iter().map(|piece| piece.0).filter(|piece| !piece.is_empty()).collect();
                if !pieces.iter().map(|piece| piece.chars().count()).eq(expected.iter().copied()) {
                    wrong.push(format!("{name}: {pieces:?} for {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
        assert!(reference.splits.is_empty(), "{:?} have no rule", reference.splits.keys());
    }
}
