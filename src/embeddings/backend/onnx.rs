//! The ONNX Runtime backend, by way of fastembed.
//!
//! fastembed's own downloads are not used: its catalog names the files of a model, and the registry
//! fetches them. ONNX Runtime is loaded at run time: from `ORT_DYLIB_PATH`, or from the Python wheel `onnxruntime`
//! if its library has the digest that the registry knows.

use std::env;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use fastembed::{
    InitOptionsUserDefined, QuantizationMode, TextEmbedding as FastEmbed, TokenizerFiles,
    UserDefinedEmbeddingModel,
};
use once_cell::sync::OnceCell;
use ort::environment::Environment;
use serde_json::{Value, json};

use super::super::sentence_config::SentenceConfig;
use super::super::source::EmbeddingSource;
use super::{TokenizedInput, VectorBackend};
use crate::error::{Error, Result};
use crate::registry::{Registry, read_file, read_weights};

/// Tokens per batch, padding not counted. Larger batches are slower (measured 2026-11-23, see
/// OPTIMIZATIONS.md).
const BATCH_TOKENS: usize = 2048;

/// Texts per ONNX Runtime call; fastembed pads them to one length.
const BATCH_TEXTS: usize = 32;

/// Tokens of padding per text that cost less than another call.
const CHEAP_PADDING_TOKENS: usize = 8;

/// A fastembed model, behind a lock because its `embed` takes `&mut self`.
pub struct OnnxBackend {
    model: Mutex<FastEmbed>,
    /// Texts per call.
    batch_texts: usize,
    family: String,
    dimensions: usize,
    max_tokens: usize,
}

impl OnnxBackend {
    /// Starts an ONNX Runtime session for a model.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, or the model's files are damaged.
    pub fn load(source: &EmbeddingSource, registry: &Registry) -> Result<Self> {
        let settings = source
            .onnx_config()
            .ok_or_else(|| Error::internal("the ONNX backend was given a model without a graph"))?;
        let config_json = source.read("config.json")?;
        let config: Value = serde_json::from_slice(&config_json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        let SentenceConfig { max_tokens, .. } = SentenceConfig::from_source(source, source.spec())?;
        let (tokenizer_config, max_tokens) = complete_tokenizer_config(source, &config, max_tokens)?;
        let tokenizer_files = TokenizerFiles {
            tokenizer_file: source.read("tokenizer.json")?,
            config_file: config_json,
            special_tokens_map_file: match source.optional_file("special_tokens_map.json") {
                Some(path) => read_file(path)?,
                None => b"{}".to_vec(),
            },
            tokenizer_config_file: tokenizer_config.to_string().into_bytes(),
        };
        let mut definition = UserDefinedEmbeddingModel::new(read_weights(source.main())?, tokenizer_files);
        for name in &settings.external_data {
            // The graph refers to them by file name.
            let file_name = name.rsplit('/').next().unwrap_or(name).to_owned();
            definition = definition.with_external_initializer(file_name, read_weights(source.file(name)?)?);
        }
        definition.pooling = settings.pooling.clone();
        definition.quantization = settings.quantization;
        definition.output_key = settings.output_key.clone();
        let options = InitOptionsUserDefined::new()
            .with_environment(onnx_environment(registry)?)
            .with_max_length(max_tokens)
            .with_intra_threads(rayon::current_num_threads())
            // Threads that spin after each call would starve the engine's.
            .with_session_config("session.intra_op.allow_spinning", "0");
        let mut model = FastEmbed::try_new_from_user_defined(definition, options)
            .map_err(|e| Error::model(format!("fastembed cannot load `{}`: {e}", source.id())))?;
        let dimensions = run_fastembed(&mut model, &["dimensions"])?.first().map_or(0, Vec::len);
        // Dynamic quantization takes its scale from the whole batch: a text's vector would depend on
        // the other texts.
        let batch_texts = if settings.quantization == QuantizationMode::Dynamic { 1 } else { BATCH_TEXTS };
        let family = config["model_type"].as_str().unwrap_or("unknown").to_owned();
        Ok(Self { model: Mutex::new(model), batch_texts, family, dimensions, max_tokens })
    }
}

impl VectorBackend for OnnxBackend {
    fn family(&self) -> &str {
        &self.family
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    fn needs_text(&self) -> bool {
        true
    }

    fn embed(&self, inputs: &[&TokenizedInput]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = inputs.iter().map(|input| input.ids.len()).collect();
        let texts =
            inputs.iter().map(|input| input.text.as_deref()).collect::<Option<Vec<&str>>>().ok_or_else(
                || Error::invalid("input", "ONNX models take text, not token ids; send strings"),
            )?;
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vectors = vec![Vec::new(); texts.len()];
        for group in group_by_length(&lengths, self.batch_texts) {
            let group_texts: Vec<&str> = group.iter().map(|&idx| texts[idx]).collect();
            for (idx, vector) in group.into_iter().zip(run_fastembed(&mut model, &group_texts)?) {
                vectors[idx] = vector;
            }
        }
        Ok(vectors)
    }
}

/// Runs texts in one ONNX Runtime call.
fn run_fastembed(model: &mut FastEmbed, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
    model.embed(texts, None).map_err(|e| Error::internal(format!("fastembed failed: {e}")))
}

/// Groups texts of similar lengths, by index, shortest first, at most `max_texts` per group: fastembed pads each
/// group to its longest text.
fn group_by_length(lengths: &[usize], max_texts: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&idx| lengths[idx]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for idx in order {
        match groups.last_mut() {
            Some(group)
                if group.len() < max_texts
                    && lengths[idx] <= lengths[group[0]] * 5 / 4 + CHEAP_PADDING_TOKENS =>
            {
                group.push(idx);
            }
            _ => groups.push(vec![idx]),
        }
    }
    groups
}

/// The tokenizer's configuration, completed with the fields that fastembed requires, and the maximum
/// number of tokens of a text. `most` is the limit in the model's other files.
fn complete_tokenizer_config(
    source: &EmbeddingSource,
    config: &Value,
    most: Option<usize>,
) -> Result<(Value, usize)> {
    let mut tokenizer_config = match source.optional_file("tokenizer_config.json") {
        Some(path) => serde_json::from_slice(&read_file(path)?)
            .map_err(|e| Error::model(format!("cannot read tokenizer_config.json: {e}")))?,
        None => json!({}),
    };
    // Some models write "no limit" as a huge number.
    let limit = |value: &Value| value.as_f64().filter(|n| (1.0..1e6).contains(n)).map(|n| n as usize);
    let max_tokens = [&tokenizer_config["model_max_length"], &config["max_position_embeddings"]]
        .into_iter()
        .filter_map(limit)
        .chain(most)
        .min()
        .unwrap_or(512);
    tokenizer_config["model_max_length"] = json!(max_tokens);
    if tokenizer_config["pad_token"].is_null() {
        tokenizer_config["pad_token"] = json!("[PAD]");
    }
    Ok((tokenizer_config, max_tokens))
}

/// The process's ONNX Runtime, loaded on first use.
fn onnx_environment(registry: &Registry) -> Result<Environment> {
    static ENVIRONMENT: OnceCell<Environment> = OnceCell::new();
    ENVIRONMENT.get_or_try_init(|| load_runtime(registry)).cloned()
}

/// Loads ONNX Runtime from `ORT_DYLIB_PATH` or, where that is not set, from the wheel. A library that the system finds
/// by its name might be any code.
fn load_runtime(registry: &Registry) -> Result<Environment> {
    let start = |library: &Path| -> Result<Environment, String> {
        let environment = ort::init_from(library).map_err(|e| e.to_string())?;
        environment.with_name("predict-otron-9000").build().map_err(|e| e.to_string())
    };
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return start(Path::new(&path)).map_err(|e| {
            Error::registry(format!("cannot load ONNX Runtime from {path:?} (ORT_DYLIB_PATH): {e}"))
        });
    }
    registry.onnx_runtime().map_err(|e| e.to_string()).and_then(|library| start(&library)).map_err(|e| {
        Error::registry(format!(
            "this embedding model needs ONNX Runtime, which is not available: {e}; set ORT_DYLIB_PATH to a library \
             that you trust, or use a model that does not need it, such as --embedding-model all-minilm-l6-v2"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_similar_length_share_a_call() {
        assert_eq!(group_by_length(&[100, 3, 9, 110, 5, 200], 32), [vec![1, 4, 2], vec![0, 3], vec![5]]);
        assert_eq!(group_by_length(&[7; 5], 2), [vec![0, 1], vec![2, 3], vec![4]]);
        assert!(group_by_length(&[], 2).is_empty());
    }
}
