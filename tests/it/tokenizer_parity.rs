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
/// the texts and ids of each.
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
static SENTENCE_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| small("sentence-piece"));
static UNIGRAM: LazyLock<Tokenizer> = LazyLock::new(|| small("unigram"));
static WORD_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| small("word-piece"));

proptest! {
    #[test]
    fn byte_level_round_trips_any_text(text in any::<String>()) {
        prop_assert_eq!(bytes(&BYTE_LEVEL, &BYTE_LEVEL.encode(&text).unwrap()), text.as_bytes());
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
    for tokenizer in [&*BYTE_LEVEL, &*SENTENCE_PIECE, &*UNIGRAM, &*WORD_PIECE] {
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
    ] {
        let message = build(file).err().unwrap().to_string();
        assert!(message.contains(word), "{word}: {message}");
    }
}
