//! Parity of models in GGUF files with `transformers`, for every family.

use std::fs;
use std::path::Path;

use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::encoder::{EncoderConfig, TextEncoder};
use predict_otron_9000::models::load::{GgufFile, Weights};
use predict_otron_9000::models::{Backend, ModelConfig};

use crate::support::converter::{as_gguf, config};
use crate::support::gguf::Gguf;
use crate::support::reference::{self, DecoderReference};

/// The references that cannot be converted to GGUF, and why.
const SKIPPED: [(&str, &str); 6] = [
    ("mistral", "its architecture in GGUF is llama, which has no window"),
    ("moe-mixed", "in GGUF every layer is a mixture with normalized weights"),
    ("smollm3", "in GGUF every fourth layer has no rotary embedding; here it is every second"),
    ("yarn-mscale", "GGUF has neither `mscale` nor `truncate`"),
    ("bert-reranker", "GGUF has no pooler, which these scores depend on"),
    ("mpnet", "GGUF has no such architecture"),
];

fn is_skipped(folder: &Path) -> bool {
    SKIPPED.iter().any(|(name, _)| folder.ends_with(name))
}

fn has_gguf(folder: &Path) -> bool {
    folder.join("model.gguf").is_file()
}

fn model_type(folder: &Path) -> String {
    config(folder)["model_type"].as_str().unwrap().to_owned()
}

fn open(gguf: &Gguf) -> GgufFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), gguf.bytes()).unwrap();
    GgufFile::open(file.path()).unwrap()
}

fn assert_decoder(folder: &Path, model_type: &str) {
    let what = format!("{folder:?} as {model_type}");
    let file = open(&as_gguf(folder, model_type));
    let config = ModelConfig::from_gguf(&file).unwrap_or_else(|e| panic!("{what}: {e}"));
    let model = CausalLm::load(config, &Weights::Gguf(file), Backend::Reference);
    let mut model = model.unwrap_or_else(|e| panic!("{what}: {e}"));
    let reference: DecoderReference = reference::read(folder);
    reference::assert_logits(&what, &mut model, &reference, reference.input_ids.len());
}

/// The decoders whose folder has the file that llama.cpp's converter wrote.
#[test]
fn converted_decoders_equal_their_references() {
    for folder in reference::decoders().into_iter().filter(|folder| has_gguf(folder)) {
        let reference: DecoderReference = reference::read(&folder);
        for backend in reference::backends() {
            let file = GgufFile::open(&folder.join("model.gguf")).unwrap();
            let config = ModelConfig::from_gguf(&file).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
            let model = CausalLm::load(config, &Weights::Gguf(file), backend);
            let mut model = model.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
            let what = format!("{folder:?} in GGUF, {backend:?}");
            for chunk in [reference.input_ids.len(), 7, 1] {
                reference::assert_logits(&what, &mut model, &reference, chunk);
            }
        }
    }
}

#[test]
fn decoders_in_gguf_files_equal_their_references() {
    let is_other = |folder: &Path| is_skipped(folder) || has_gguf(folder);
    for folder in reference::decoders().into_iter().filter(|folder| !is_other(folder)) {
        assert_decoder(&folder, &model_type(&folder));
        // The first three layers of SmolLM3 are those of llama.
        if folder.ends_with("llama") {
            assert_decoder(&folder, "smollm3");
        }
    }
}

#[test]
fn encoders_in_gguf_files_equal_their_references() {
    for folder in reference::encoders().into_iter().filter(|folder| !is_skipped(folder)) {
        let file = open(&as_gguf(&folder, &model_type(&folder)));
        let config = EncoderConfig::from_gguf(&file).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        let backend = Backend::KernelsBf16(Isa::current());
        let model = TextEncoder::load(config, &Weights::Gguf(file), backend);
        let model = model.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        reference::assert_states_and_scores(&folder, &model, backend);
    }
}

#[test]
fn an_encoder_has_the_activation_function_of_its_gguf_file() {
    let gguf = || as_gguf(Path::new("tests/data/tiny-encoders/modernbert"), "modernbert");
    let activation = |gguf: Gguf| EncoderConfig::from_gguf(&open(&gguf)).map(|config| config.activation);
    assert_eq!(format!("{:?}", activation(gguf()).unwrap()), "Gelu");
    let stating = |name| activation(gguf().string("modern-bert.hidden_activation", name));
    assert_eq!(format!("{:?}", stating("silu").unwrap()), "Silu");
    assert!(stating("relu").unwrap_err().to_string().contains("`relu`"));
}
