//! The model code equals `transformers` in float32, on tiny models with random weights.

use std::fs;
use std::path::{Path, PathBuf};

use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::encoder::{EncoderConfig, TextEncoder};
use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use predict_otron_9000::models::{
    Decoder, Encoder, EncoderInput, ForwardInput, KvStore, ModelConfig, SequenceId,
};
use serde::Deserialize;

/// Sub-folders of the folder that `variable` names, else of `tests/data/<default>`.
fn cases(variable: &str, default: &str) -> Vec<PathBuf> {
    let root = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(default),
        PathBuf::from,
    );
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("cannot read {root:?}, see {variable}: {e}"))
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("reference.json").is_file())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "no references in {root:?}, see {variable}");
    folders
}

fn weights(folder: &Path) -> Weights {
    Weights::Safetensors(SafetensorsFiles::open(&folder.join("model.safetensors")).unwrap())
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

fn decoder(folder: &Path) -> CausalLm {
    let config = ModelConfig::from_json(&fs::read(folder.join("config.json")).unwrap());
    let config = config.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    CausalLm::load(config, &weights(folder)).unwrap_or_else(|e| panic!("{folder:?}: {e}"))
}

/// Logits of the prompt's last `n` positions, computed in chunks of `chunk` tokens.
fn logits_in_chunks(model: &mut CausalLm, ids: &[u32], n: usize, chunk: usize) -> Vec<Vec<f32>> {
    let mut kv = KvStore::default();
    let mut logits = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let mut input = ForwardInput::default();
        input.push(SequenceId(1), ids.len(), index * chunk, tokens, false);
        input.logit_rows = (0..tokens.len() as u32).collect();
        logits.extend(model.forward(&mut kv, &input).unwrap().to_vec2::<f32>().unwrap());
    }
    logits.split_off(logits.len() - n)
}

#[test]
fn decoder_reference_logits_whole_and_in_chunks() {
    for folder in cases("TINY_REFERENCE_DIR", "tiny") {
        let reference: DecoderReference = read(&folder);
        let mut model = decoder(&folder);
        for chunk in [reference.input_ids.len(), 33, 16, 7, 1] {
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
    for folder in cases("TINY_REFERENCE_DIR", "tiny") {
        let reference: DecoderReference = read(&folder);
        let mut model = decoder(&folder);
        for n_neighbours in [0, 3] {
            assert_eq!(greedy(&mut model, &reference, n_neighbours), reference.greedy, "{folder:?}");
        }
    }
}

/// Generates greedily while `n_neighbours` other sequences, of other lengths, share every batch.
fn greedy(model: &mut CausalLm, reference: &DecoderReference, n_neighbours: usize) -> Vec<u32> {
    let mut kv = KvStore::default();
    let mut sequences: Vec<(SequenceId, usize, Vec<u32>)> = (0..=n_neighbours)
        .map(|n| (SequenceId(n as u64), &reference.input_ids[7 * n..]))
        .map(|(id, prompt)| (id, prompt.len(), prompt.to_vec()))
        .collect();
    // The references were made to be this long: their end tokens were never chosen.
    let ends = model.config().eos_token_ids.clone();
    let mut n_computed = vec![0; sequences.len()];
    let mut generated = Vec::new();
    while generated.len() < reference.greedy.len() {
        let mut input = ForwardInput::default();
        for ((id, n_prompt, tokens), computed) in sequences.iter().zip(&mut n_computed) {
            input.push(*id, *n_prompt, *computed, &tokens[*computed..], true);
            *computed = tokens.len();
        }
        let logits = model.forward(&mut kv, &input).unwrap();
        let logits = logits.to_vec2::<f32>().unwrap();
        let next: Vec<u32> = logits.iter().map(|logits| likeliest(logits, &ends)).collect();
        generated.push(next[0]);
        for ((.., tokens), next) in sequences.iter_mut().zip(next) {
            tokens.push(next);
        }
    }
    generated
}

fn likeliest(logits: &[f32], but: &[u32]) -> u32 {
    let ids = (0..logits.len() as u32).filter(|id| !but.contains(id));
    ids.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap()
}

#[derive(Deserialize)]
struct EncoderReference {
    cases: Vec<EncoderCase>,
}

#[derive(Deserialize)]
struct EncoderCase {
    input_ids: Vec<u32>,
    /// Of a model with a classification head; the others have states.
    logits: Option<Vec<f32>>,
    first: Option<Vec<f32>>,
    last: Option<Vec<f32>>,
}

#[test]
fn encoder_reference_states_and_scores_alone_and_in_a_batch() {
    for folder in cases("TINY_ENCODER_DIR", "tiny-encoders") {
        let reference: EncoderReference = read(&folder);
        let config = EncoderConfig::from_json(&fs::read(folder.join("config.json")).unwrap());
        let config = config.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        let model =
            TextEncoder::load(config, &weights(&folder)).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        let texts: Vec<EncoderInput> =
            reference.cases.iter().map(|case| case.input_ids.clone().into()).collect();
        let states = |texts: &[EncoderInput]| model.forward(texts).unwrap().to_vec2::<f32>().unwrap();
        let scores = |texts: &[EncoderInput]| model.classify(texts).unwrap().to_vec2::<f32>().unwrap();
        let assert_close = |what: &str, found: &[f32], expected: &Option<Vec<f32>>| {
            let expected = expected.as_ref().unwrap();
            let difference = largest_difference(found, expected);
            assert!(difference <= 1e-4, "{folder:?}: {what} differ by {difference}");
        };
        let mut row = 0;
        for (idx, case) in reference.cases.iter().enumerate() {
            let n_tokens = case.input_ids.len();
            let alone = &texts[idx..=idx];
            if case.logits.is_some() {
                assert_close("scores", &scores(alone)[0], &case.logits);
                assert_close("scores in a batch", &scores(&texts)[idx], &case.logits);
            } else {
                let (alone, batch) = (states(alone), &states(&texts)[row..row + n_tokens]);
                for (what, states) in [("states", &alone[..]), ("states in a batch", batch)] {
                    assert_close(what, &states[0], &case.first);
                    assert_close(what, &states[n_tokens - 1], &case.last);
                }
                let difference = largest_difference(&alone.concat(), &batch.concat());
                assert!(difference <= 1e-5, "{folder:?}: a batch differs from singles by {difference}");
            }
            row += n_tokens;
        }
    }
}
