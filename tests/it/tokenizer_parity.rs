//! Token ids equal those of the reference implementations, for the default model's vocabulary and for small ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use predict_otron_9000::models::load::GgufFile;
use predict_otron_9000::registry::{ModelKind, Registry};
use predict_otron_9000::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde::Deserialize;

use crate::support;
use crate::support::gguf::Gguf;

#[derive(Deserialize)]
struct Case {
    text: String,
    parse_special: bool,
    ids: Vec<u32>,
}

fn tokenizer() -> Tokenizer {
    let registry = Registry::new(support::real_registry());
    let files = registry.resolve("smollm2-135m-instruct", ModelKind::Chat).expect("the default chat model");
    Tokenizer::from_gguf(GgufFile::open(&files.main).unwrap().metadata()).unwrap()
}

#[test]
fn ids_equal_those_of_the_reference() {
    let cases: Vec<Case> =
        serde_json::from_str(&fs::read_to_string("tests/data/smollm2_tokenize.json").unwrap()).unwrap();
    assert!(cases.len() > 50);
    let tokenizer = tokenizer();
    for Case { text, parse_special, ids } in cases {
        let found =
            if parse_special { tokenizer.encode_with_special(&text) } else { tokenizer.encode(&text) };
        assert_eq!(found.unwrap(), ids, "{text:?}, parse_special: {parse_special}");
    }
}

/// Tests every vocabulary in VOCAB_REFERENCE_DIR (default `tests/data/vocab`): GGUF files, and `tokenize.json` with
/// the texts and ids of each. Ids of BERT's vocabularies must be BERT's own: llama.cpp's differ for Hangul, for Indic
/// scripts and for words of more than a hundred characters.
#[test]
fn vocab_reference_ids() {
    let folder = std::env::var_os("VOCAB_REFERENCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vocab"), PathBuf::from);
    let cases =
        fs::read_to_string(folder.join("tokenize.json")).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let cases: BTreeMap<String, Vec<Case>> = serde_json::from_str(&cases).unwrap();
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for (name, cases) in cases {
        let file = GgufFile::open(&folder.join(format!("{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for Case { text, parse_special, ids } in cases {
            let found = if parse_special {
                tokenizer.encode_with_special(&text).unwrap()
            } else {
                tokenizer.encode(&text).unwrap()
            };
            if found != ids {
                wrong
                    .push(format!("{name}: {text:?}, parse_special: {parse_special}: {found:?} for {ids:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_bytes_of_the_ids_are_the_text() {
    let tokenizer = tokenizer();
    let texts =
        ["naïve café 🙂👩‍👩‍👧 日本語", "\t\t a\r\n  b \u{0}\u{7f}", "fn main() { println!(\"{}\", 3.14); }"];
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
}

#[test]
fn escaped_text_encodes_as_text() {
    let tokenizer = tokenizer();
    let text = "a<|im_end|>\n<|im_start|>system\nb";
    let marker = Tokenizer::unused_marker([text].into_iter()).unwrap();
    let escaped = tokenizer.escape_special_tokens(text, marker);
    assert_eq!(tokenizer.encode_prompt(&escaped, Some(marker)).unwrap(), tokenizer.encode(text).unwrap());
    assert_ne!(tokenizer.encode_prompt(text, None).unwrap(), tokenizer.encode(text).unwrap());
}

/// A vocabulary of `tests/data/vocab`.
fn small(name: &str) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/vocab/{name}.gguf"));
    Tokenizer::from_gguf(GgufFile::open(&path).unwrap().metadata()).unwrap()
}

fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect()
}

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| small("byte-level"));
static CHARACTER_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| small("character-level"));
static SENTENCE_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| small("sentence-piece"));
static UNIGRAM: LazyLock<Tokenizer> = LazyLock::new(|| small("unigram"));
static WORD_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| small("word-piece"));

/// The same WordPiece vocabulary as a GGUF file and as a `tokenizer.json`: all characters of many scripts, each as the
/// start of a word and within one. `cased` adds upper-case words.
fn word_piece_in_both_formats(cased: bool) -> [Tokenizer; 2] {
    let scripts = [
        '!'..='~',
        '\u{A1}'..='\u{17F}',
        '\u{300}'..='\u{52F}',
        '\u{5D0}'..='\u{6FF}',
        '\u{900}'..='\u{9FF}',
        '\u{E00}'..='\u{E7F}',
        '\u{1100}'..='\u{11FF}',
        '\u{2000}'..='\u{22FF}',
        '\u{2580}'..='\u{26FF}',
        '\u{3000}'..='\u{30FF}',
        '\u{4E00}'..='\u{4FFF}',
        '\u{AC00}'..='\u{ACFF}',
        '\u{1F600}'..='\u{1F64F}',
    ];
    let characters: Vec<char> =
        scripts.into_iter().flatten().filter(|c| cased || !c.is_uppercase()).collect();
    let words = ["the", "token", "izer", "한국", "हिन्दी", "unaffable"].map(str::to_owned);
    let starts = characters.iter().map(char::to_string).chain(words.clone());
    let parts = characters.iter().map(char::to_string).chain(words);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let json_tokens: Vec<String> = special
        .map(str::to_owned)
        .into_iter()
        .chain(starts.clone())
        .chain(parts.clone().map(|part| format!("##{part}")))
        .collect();
    let gguf_tokens: Vec<String> = special
        .map(str::to_owned)
        .into_iter()
        .chain(starts.map(|start| format!("▁{start}")))
        .chain(parts)
        .collect();
    let types: Vec<i32> = (0..gguf_tokens.len()).map(|id| if id < special.len() { 3 } else { 1 }).collect();
    let gguf = Gguf::default()
        .string("tokenizer.ggml.model", "bert")
        .strings("tokenizer.ggml.tokens", &gguf_tokens.iter().map(String::as_str).collect::<Vec<&str>>())
        .i32s("tokenizer.ggml.token_type", &types)
        .u32("tokenizer.ggml.unknown_token_id", 1)
        .u32("tokenizer.ggml.cls_token_id", 2)
        .u32("tokenizer.ggml.seperator_token_id", 3);
    let vocab: serde_json::Map<String, serde_json::Value> =
        json_tokens.into_iter().zip(0_u32..).map(|(token, id)| (token, id.into())).collect();
    let added = special.iter().zip(0..).map(|(content, id)| {
        serde_json::json!({
            "id": id, "content": content, "special": true, "normalized": false, "single_word": false, "lstrip": false,
            "rstrip": false
        })
    });
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": !cased
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    [Tokenizer::from_gguf(&gguf.metadata()).unwrap(), Tokenizer::from_file(&path).unwrap()]
}

static UNCASED: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| word_piece_in_both_formats(false));
static CASED: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| word_piece_in_both_formats(true));

/// One model gives one vector, whatever the format of its files.
#[test]
fn word_piece_ids_do_not_depend_on_the_format() {
    let texts = [
        "The Tokenizer is UNAFFABLE, isn't it?",
        "naïve café ÀÈÌÒÙ Ünïcödé ß ı İ ſ ﬁ ﷺ ½ ²",
        "한국어 텍스트 한글 문장입니다.",
        "हिन्दी पाठ और बांग্লা",
        "ภาษาไทย",
        "日本語のテキスト 中文文本测试",
        "Привет, мир! שלום مرحبا بالعالم",
        "🙂 👩\u{200d}👩\u{200d}👧 😀😃",
        "▁a ▁ a▁b ▁▁",
        "a\u{0}b\u{7f}\u{85}\u{fffd}\u{200b}c\t\r\n\u{2028}d\u{a0}e",
        "e\u{301}e\u{301} \u{301}x",
        "$5 €5 a+b <|im_end|> [CLS] [unused1] ##a",
        "",
        " ",
    ];
    let mut texts: Vec<String> = texts.map(str::to_owned).into();
    for n_chars in [99, 100, 101, 200] {
        texts.extend(["x", "é", "한", "가"].map(|c| c.repeat(n_chars)));
    }
    for [gguf, json] in [&*UNCASED, &*CASED] {
        for text in &texts {
            assert_eq!(gguf.encode(text).unwrap(), json.encode(text).unwrap(), "{text:?}");
            assert_eq!(
                gguf.add_template(&gguf.encode_up_to(text, usize::MAX).unwrap().ids),
                json.add_template(&json.encode_up_to(text, usize::MAX).unwrap().ids),
                "{text:?}"
            );
        }
    }
    let [uncased, _] = &*UNCASED;
    assert_eq!(uncased.encode("ÉÀ").unwrap(), uncased.encode("ea").unwrap());
    assert_eq!(uncased.encode(&"x".repeat(101)).unwrap(), [1], "BERT gives up on long words");
    let [cased, _] = &*CASED;
    assert_ne!(cased.encode("É").unwrap(), cased.encode("e").unwrap());
}

proptest! {
    #[test]
    fn word_piece_ids_of_any_text_do_not_depend_on_the_format(text in any::<String>()) {
        for [gguf, json] in [&*UNCASED, &*CASED] {
            prop_assert_eq!(gguf.encode(&text).unwrap(), json.encode(&text).unwrap());
        }
    }

    #[test]
    fn byte_level_round_trips_any_text(text in any::<String>()) {
        prop_assert_eq!(bytes(&BYTE_LEVEL, &BYTE_LEVEL.encode(&text).unwrap()), text.as_bytes());
    }

    /// Except that spaces and `▁` are the same.
    #[test]
    fn character_level_round_trips_any_text(text in any::<String>()) {
        let expected = text.replace('▁', " ");
        prop_assert_eq!(bytes(&CHARACTER_LEVEL, &CHARACTER_LEVEL.encode(&text).unwrap()), expected.as_bytes());
    }

    /// Except for the space prefix, and since spaces and `▁` are the same.
    #[test]
    fn sentence_piece_round_trips_any_text(text in any::<String>()) {
        let expected = if text.is_empty() { String::new() } else { format!(" {text}").replace('▁', " ") };
        prop_assert_eq!(bytes(&SENTENCE_PIECE, &SENTENCE_PIECE.encode(&text).unwrap()), expected.as_bytes());
    }

    #[test]
    fn any_text_and_any_ids_are_accepted(text in any::<String>(), ids in prop::collection::vec(any::<u32>(), 0..8)) {
        for tokenizer in [&*UNIGRAM, &*WORD_PIECE] {
            let encoded = tokenizer.encode_with_special(&text).unwrap();
            prop_assert!(encoded.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
            bytes(tokenizer, &ids);
        }
    }

    #[test]
    fn escaped_text_is_text_in_any_prompt(text in "[<|ims_end>/x ]{0,40}") {
        for tokenizer in [&*BYTE_LEVEL, &*SENTENCE_PIECE] {
            let marker = Tokenizer::unused_marker([text.as_str()].into_iter()).unwrap();
            let prompt = tokenizer.encode_prompt(&tokenizer.escape_special_tokens(&text, marker), Some(marker)).unwrap();
            let plain = tokenizer.encode(&text).unwrap();
            // The prompt may start with BOS.
            prop_assert!(prompt.ends_with(&plain) && prompt.len() <= plain.len() + 1);
        }
    }
}

#[test]
fn a_repetitive_megabyte_is_encoded_in_linear_time() {
    for tokenizer in [&*BYTE_LEVEL, &*CHARACTER_LEVEL, &*SENTENCE_PIECE, &*UNIGRAM, &*WORD_PIECE] {
        for text in ["a", " ", "\n", "ab ", "🙂", "<|im_end|>"] {
            let text = text.repeat((1 << 20) / text.len());
            let started = Instant::now();
            assert!(tokenizer.encode(&text).unwrap().len() <= text.len() + 1);
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{:?} for {:?}…",
                started.elapsed(),
                &text[..4]
            );
        }
    }
}

/// A byte-level vocabulary of three tokens, without the keys in `but`.
fn vocabulary(but: &[&str]) -> Gguf {
    let has = |name: &str| !but.contains(&name);
    let mut file = Gguf::default();
    if has("model") {
        file = file.string("tokenizer.ggml.model", "gpt2");
    }
    if has("pre") {
        file = file.string("tokenizer.ggml.pre", "gpt-2");
    }
    if has("tokens") {
        file = file.strings("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    }
    if has("token_type") {
        file = file.i32s("tokenizer.ggml.token_type", &[1, 1, 1]);
    }
    if has("merges") {
        file = file.strings("tokenizer.ggml.merges", &["a b"]);
    }
    file
}

#[test]
fn missing_and_malformed_keys_are_named() {
    let build = |file: Gguf| Tokenizer::from_gguf(&file.metadata());
    assert_eq!(build(vocabulary(&[])).unwrap().encode("aab").unwrap(), [0, 2]);
    // Gemma 4's model implies its pre-tokenizer, and that prompts start with BOS.
    let gemma4 = vocabulary(&["model"]).string("tokenizer.ggml.model", "gemma4");
    let gemma4 =
        build(gemma4.u32("tokenizer.ggml.bos_token_id", 1).bool("tokenizer.ggml.add_bos_token", false));
    assert_eq!(gemma4.unwrap().encode_prompt("aab", None).unwrap(), [1, 0, 2]);
    // Old files do not have these keys.
    assert!(build(vocabulary(&["pre"])).is_ok() && build(vocabulary(&["token_type"])).is_ok());
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    for (file, word) in [
        (vocabulary(&["model"]), "tokenizer.ggml.model"),
        (vocabulary(&["tokens"]), "tokenizer.ggml.tokens"),
        (vocabulary(&["merges"]), "tokenizer.ggml.merges"),
        (vocabulary(&["pre"]).string(&key("pre"), "new-rule"), "new-rule"),
        (vocabulary(&["model"]).string(&key("model"), "plamo2"), "plamo2"),
        (vocabulary(&["model"]).u32(&key("model"), 1), "tokenizer.ggml.model"),
        (vocabulary(&["model"]).string(&key("model"), "llama"), "tokenizer.ggml.scores"),
        (vocabulary(&["model"]).string(&key("model"), "bert"), "tokenizer.ggml.unknown_token_id"),
        (vocabulary(&["token_type"]).i32s(&key("token_type"), &[1, 1]), "2 types"),
        (vocabulary(&["merges"]).strings(&key("merges"), &["ab"]), "not a pair"),
        (vocabulary(&["merges"]).strings(&key("merges"), &["☃ ☃"]), "inconsistent"),
        (vocabulary(&[]).string(&key("eos_token_id"), "x"), "tokenizer.ggml.eos_token_id"),
        (vocabulary(&[]).u32(&key("eos_token_id"), 3), "its eos token is 3"),
        (vocabulary(&[]).u32(&key("bos_token_id"), u32::MAX), "its bos token is 4294967295"),
    ] {
        let message = build(file).err().unwrap().to_string();
        assert!(message.contains(word), "{word}: {message}");
    }
}
