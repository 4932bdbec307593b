//! The model code equals `transformers` in float32, on tiny models with random weights.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use predict_otron_9000::models::bert::{Bert, BertConfig};
use predict_otron_9000::models::llama::Llama;
use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use predict_otron_9000::models::{Decoder, DecoderConfig, Encoder, ForwardInput, KvStore, SequenceId};
use serde::Deserialize;

/// Sub-folders of the folder that `variable` names, else of `tests/data/<default>`; only those
/// whose config.json is of `model_type`.
fn cases(variable: &str, default: &str, model_type: &str) -> Vec<PathBuf> {
    let root = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(default),
        PathBuf::from,
    );
    let mut folders: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| {
            let config = fs::read_to_string(folder.join("config.json")).unwrap_or_default();
            let has_head = config.contains("ForSequenceClassification");
            config.contains(&format!("\"model_type\": \"{model_type}\"")) && !has_head
        })
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "no {model_type} among the references");
    folders
}

fn weights(folder: &Path) -> Weights {
    Weights::Safetensors(SafetensorsFiles::open(&[folder.join("model.safetensors")]).unwrap())
}

fn read<T: for<'a> Deserialize<'a>>(folder: &Path) -> T {
    serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[derive(Deserialize)]
struct DecoderReference {
    input_ids: Vec<u32>,
    last_logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn decoder(folder: &Path) -> Llama {
    let config = DecoderConfig::from_json(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    Llama::load(config, &weights(folder)).unwrap()
}

/// Logits of the prompt's last `n` positions, computed in chunks of `chunk` tokens.
fn logits_in_chunks(model: &mut Llama, ids: &[u32], n: usize, chunk: usize) -> Vec<Vec<f32>> {
    let mut kv = KvStore::default();
    let mut logits = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let mut input = ForwardInput::default();
        input.push(SequenceId(1), index * chunk, tokens, false);
        input.logit_rows = (0..tokens.len() as u32).collect();
        logits.extend(model.forward(&mut kv, &input).unwrap().to_vec2::<f32>().unwrap());
    }
    logits.split_off(logits.len() - n)
}

#[test]
fn decoder_reference_logits_whole_and_in_chunks() {
    for folder in cases("TINY_REFERENCE_DIR", "tiny", "llama") {
        let reference: DecoderReference = read(&folder);
        let mut model = decoder(&folder);
        for chunk in [reference.input_ids.len(), 33, 7, 1] {
            let logits =
                logits_in_chunks(&mut model, &reference.input_ids, reference.last_logits.len(), chunk);
            for (found, expected) in logits.iter().zip(&reference.last_logits) {
                let difference = largest_difference(found, expected);
                assert!(difference <= 1e-4, "{folder:?} in chunks of {chunk}: {difference}");
            }
        }
    }
}

#[test]
fn decoder_reference_greedy_tokens_alone_and_beside_others() {
    for folder in cases("TINY_REFERENCE_DIR", "tiny", "llama") {
        let reference: DecoderReference = read(&folder);
        let mut model = decoder(&folder);
        for n_neighbours in [0, 3] {
            assert_eq!(greedy(&mut model, &reference, n_neighbours), reference.greedy, "{folder:?}");
        }
    }
}

/// Generates greedily while `n_neighbours` other sequences, of other lengths, share every batch.
fn greedy(model: &mut Llama, reference: &DecoderReference, n_neighbours: usize) -> Vec<u32> {
    let mut kv = KvStore::default();
    let mut sequences: Vec<(SequenceId, Vec<u32>)> =
        (0..=n_neighbours).map(|n| (SequenceId(n as u64), reference.input_ids[7 * n..].to_vec())).collect();
    let mut n_computed = vec![0; sequences.len()];
    let mut generated = Vec::new();
    while generated.len() < reference.greedy.len() {
        let mut input = ForwardInput::default();
        for ((id, tokens), computed) in sequences.iter().zip(&mut n_computed) {
            input.push(*id, *computed, &tokens[*computed..], true);
            *computed = tokens.len();
        }
        let logits: Tensor = model.forward(&mut kv, &input).unwrap();
        let next = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        generated.push(next[0]);
        for ((_, tokens), next) in sequences.iter_mut().zip(next) {
            tokens.push(next);
        }
    }
    generated
}

#[derive(Deserialize)]
struct EncoderReference {
    cases: Vec<EncoderCase>,
}

#[derive(Deserialize)]
struct EncoderCase {
    input_ids: Vec<u32>,
    first: Vec<f32>,
    last: Vec<f32>,
}

#[test]
fn encoder_reference_states_alone_and_in_a_batch() {
    for folder in cases("TINY_ENCODER_DIR", "tiny-encoders", "bert") {
        let reference: EncoderReference = read(&folder);
        let config = BertConfig::from_json(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let model = Bert::load(config, &weights(&folder)).unwrap();
        let texts: Vec<Vec<u32>> = reference.cases.iter().map(|case| case.input_ids.clone()).collect();
        let batch = model.forward(&texts).unwrap().to_vec2::<f32>().unwrap();
        let mut row = 0;
        for case in &reference.cases {
            let n_tokens = case.input_ids.len();
            let alone =
                model.forward(std::slice::from_ref(&case.input_ids)).unwrap().to_vec2::<f32>().unwrap();
            for states in [&alone[..], &batch[row..row + n_tokens]] {
                for (found, expected) in [(&states[0], &case.first), (&states[n_tokens - 1], &case.last)] {
                    let difference = largest_difference(found, expected);
                    assert!(difference <= 1e-4, "{folder:?}, {n_tokens} tokens: {difference}");
                }
            }
            row += n_tokens;
        }
    }
}
