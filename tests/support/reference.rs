//! Results of `transformers` in float32 for tiny models with random weights.

use std::fs;
use std::path::{Path, PathBuf};

use predict_otron_9000::kernels::attention::kv_block::KvFormat;
use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::encoder::TextEncoder;
use predict_otron_9000::models::{
    Backend, BlockId, Decoder, Encoder, EncoderInput, ForwardInput, SequenceChunk, SequenceId,
    SequenceStates, StateStep,
};
use serde::Deserialize;

/// The model folders of decoders in `TINY_REFERENCE_DIR`, by default `tests/data/tiny`.
pub fn decoders() -> Vec<PathBuf> {
    cases("TINY_REFERENCE_DIR", "tiny")
}

/// The model folders of encoders in `TINY_ENCODER_DIR`, by default `tests/data/tiny-encoders`.
pub fn encoders() -> Vec<PathBuf> {
    cases("TINY_ENCODER_DIR", "tiny-encoders")
}

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

/// Every way to compute that this machine has.
pub fn backends() -> Vec<Backend> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    [Backend::Reference].into_iter().chain(isas.map(Backend::Kernels)).collect()
}

/// How an encoder may compute: as a decoder, or with numbers rounded to bfloat16.
pub fn encoder_backends() -> Vec<Backend> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available() && isa.has_bf16());
    backends().into_iter().chain(isas.map(Backend::KernelsBf16)).collect()
}

/// The contents of a folder's `reference.json`.
pub fn read<T: for<'a> Deserialize<'a>>(folder: &Path) -> T {
    serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap()
}

#[derive(Deserialize)]
pub struct DecoderReference {
    pub input_ids: Vec<u32>,
    /// Logits of the prompt's last positions.
    pub last_logits: Vec<Vec<f32>>,
    pub greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct EncoderReference {
    cases: Vec<EncoderCase>,
}

#[derive(Deserialize)]
struct EncoderCase {
    input_ids: Vec<u32>,
    /// Present for models with a classification head; the others have states.
    logits: Option<Vec<f32>>,
    first: Option<Vec<f32>>,
    last: Option<Vec<f32>>,
}

/// Asserts that the logits equal the reference when computed in chunks of `chunk` tokens, and prints how closely.
pub fn assert_logits(what: &str, model: &mut CausalLm, reference: &DecoderReference, chunk: usize) {
    let logits = logits_in_chunks(model, &reference.input_ids, reference.last_logits.len(), chunk);
    let differences = logits
        .iter()
        .zip(&reference.last_logits)
        .map(|(found, expected)| largest_difference(found, expected));
    let difference = differences.fold(0.0, f32::max);
    println!("{what} in chunks of {chunk}: {difference:.1e}");
    assert!(difference <= 1e-4, "{what} in chunks of {chunk}: {difference}");
}

/// The logits of the prompt's last `n` positions, computed in chunks of `chunk` tokens.
fn logits_in_chunks(model: &mut CausalLm, ids: &[u32], n: usize, chunk: usize) -> Vec<Vec<f32>> {
    let mut states = SequenceStates::new(model.config(), KvFormat::F32);
    let mut logits = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let mut input = ForwardInput::default();
        let blocks = BlockId::consecutive(0, ids.len());
        input.push(SequenceChunk {
            sequence: SequenceId(1),
            n_prompt: ids.len(),
            n_rounded: 0,
            start: index * chunk,
            tables: &[blocks],
            state: Some(&StateStep::default()),
            token_ids: tokens,
            n_logits: tokens.len(),
        });
        logits.extend(model.forward(&mut states, &input).unwrap().to_vec2::<f32>().unwrap());
    }
    logits.split_off(logits.len() - n)
}

/// Asserts that states and scores equal the folder's reference, for single texts and in a batch.
pub fn assert_states_and_scores(folder: &Path, model: &TextEncoder, backend: Backend) {
    // bfloat16 has a relative error of 1/512, and states are of order one.
    let bound = if backend.is_bf16() { 3e-2 } else { 1e-4 };
    let reference: EncoderReference = read(folder);
    let texts: Vec<EncoderInput> = reference.cases.iter().map(|case| case.input_ids.clone().into()).collect();
    let states = |texts: &[EncoderInput]| model.forward(texts).unwrap().to_vec2::<f32>().unwrap();
    let scores = |texts: &[EncoderInput]| model.classify(texts).unwrap().to_vec2::<f32>().unwrap();
    let assert_close = |what: &str, found: &[f32], expected: &Option<Vec<f32>>| {
        let expected = expected.as_ref().unwrap();
        let difference = largest_difference(found, expected);
        assert!(difference <= bound, "{folder:?} {backend:?}: {what} differ by {difference}");
        let (product, lengths) = (dot(found, expected), dot(found, found) * dot(expected, expected));
        let cosine = product / lengths.sqrt();
        assert!(cosine >= 0.9999, "{folder:?} {backend:?}: the cosine of {what} is {cosine}");
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
            let bound = if backend == Backend::Reference { 1e-5 } else { 0.0 };
            assert!(difference <= bound, "{folder:?} {backend:?}: a batch differs by {difference}");
        }
        row += n_tokens;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
