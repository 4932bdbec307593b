//! The backend on fastembed.
//!
//! fastembed's own downloads are not used: its catalogue says which files a model has, and the
//! registry fetches them. ONNX Runtime is loaded while we run, from `ORT_DYLIB_PATH`, from the
//! system, or out of the Python wheel `onnxruntime`.

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

use super::super::source::EmbeddingSource;
use super::{Backend, Tokenized};
use crate::error::{Error, Result};
use crate::registry::{Registry, read_file};

/// Tokens computed at once, less what is padded. Larger batches are slower: OPTIMIZATIONS.md has the numbers of
/// 2026-11-23.
const BATCH_TOKENS: usize = 2048;

/// Texts that fastembed pads to one length and runs together.
const BATCH_TEXTS: usize = 32;

/// Tokens of padding that cost less than another run.
const FEW_TOKENS: usize = 8;

/// A fastembed model. Its `embed` wants to be alone, hence the lock.
pub struct OnnxBackend {
    model: Mutex<FastEmbed>,
    /// Texts run together.
    batch_texts: usize,
    family: String,
    dimensions: usize,
    max_tokens: usize,
}

impl OnnxBackend {
    /// Starts an ONNX Runtime session for the model.
    ///
    /// # Errors
    /// When ONNX Runtime cannot be found, or the model's files are damaged.
    pub fn load(source: &EmbeddingSource, registry: &Registry) -> Result<Self> {
        let recipe = source.recipe().ok_or_else(|| Error::internal("an encoder reached the ONNX backend"))?;
        let config_json = source.read("config.json")?;
        let config: Value = serde_json::from_slice(&config_json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        let (tokenizer_config, max_tokens) = tokenizer_config(source, &config)?;
        let tokenizer_files = TokenizerFiles {
            tokenizer_file: source.read("tokenizer.json")?,
            config_file: config_json,
            special_tokens_map_file: match source.optional_file("special_tokens_map.json") {
                Some(path) => read_file(path)?,
                None => b"{}".to_vec(),
            },
            tokenizer_config_file: tokenizer_config.to_string().into_bytes(),
        };
        let mut definition = UserDefinedEmbeddingModel::new(read_file(source.main())?, tokenizer_files);
        for name in &recipe.external {
            // The graph refers to them by their bare names.
            let file_name = name.rsplit('/').next().unwrap_or(name).to_owned();
            definition = definition.with_external_initializer(file_name, source.read(name)?);
        }
        definition.pooling = recipe.pooling.clone();
        definition.quantization = recipe.quantization;
        definition.output_key = recipe.output_key.clone();
        let options = InitOptionsUserDefined::new()
            .with_environment(environment(registry)?)
            .with_max_length(max_tokens)
            .with_intra_threads(rayon::current_num_threads())
            // Its threads would otherwise spin for a while after each text and starve the engine's.
            .with_session_config("session.intra_op.allow_spinning", "0");
        let mut model = FastEmbed::try_new_from_user_defined(definition, options)
            .map_err(|e| Error::model(format!("fastembed cannot load `{}`: {e}", source.id())))?;
        let dimensions = embed(&mut model, &["dimensions"])?.first().map_or(0, Vec::len);
        // A dynamically quantized model takes its scale from the whole batch, so that a text's
        // vector would depend on its neighbours.
        let batch_texts = if recipe.quantization == QuantizationMode::Dynamic { 1 } else { BATCH_TEXTS };
        let family = config["model_type"].as_str().unwrap_or("unknown").to_owned();
        Ok(Self { model: Mutex::new(model), batch_texts, family, dimensions, max_tokens })
    }
}

impl Backend for OnnxBackend {
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

    fn embed(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let texts = texts.iter().map(|text| text.text.as_deref()).collect::<Option<Vec<&str>>>().ok_or_else(
            || Error::invalid("input", "models on fastembed take text, not token ids; send strings"),
        )?;
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vectors = vec![Vec::new(); texts.len()];
        for group in groups(&lengths, self.batch_texts) {
            let of_group: Vec<&str> = group.iter().map(|&idx| texts[idx]).collect();
            for (idx, vector) in group.into_iter().zip(embed(&mut model, &of_group)?) {
                vectors[idx] = vector;
            }
        }
        Ok(vectors)
    }
}

/// The vectors of texts that run together.
fn embed(model: &mut FastEmbed, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
    model.embed(texts, None).map_err(|e| Error::internal(format!("fastembed failed: {e}")))
}

/// Texts of like lengths by their places, shortest first, up to `most` to a group: fastembed pads those that
/// run together to the longest of them.
fn groups(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&idx| lengths[idx]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for idx in order {
        match groups.last_mut() {
            Some(group) if group.len() < most && lengths[idx] <= lengths[group[0]] * 5 / 4 + FEW_TOKENS => {
                group.push(idx);
            }
            _ => groups.push(vec![idx]),
        }
    }
    groups
}

/// The tokenizer's configuration with what fastembed needs filled in, and the most tokens of a
/// text.
fn tokenizer_config(source: &EmbeddingSource, config: &Value) -> Result<(Value, usize)> {
    let mut tokenizer_config = match source.optional_file("tokenizer_config.json") {
        Some(path) => serde_json::from_slice(&read_file(path)?)
            .map_err(|e| Error::model(format!("cannot read tokenizer_config.json: {e}")))?,
        None => json!({}),
    };
    // Some models write "no limit" as a number beyond any length.
    let limit = |value: &Value| value.as_f64().filter(|n| (1.0..1e6).contains(n)).map(|n| n as usize);
    let max_tokens = [&tokenizer_config["model_max_length"], &config["max_position_embeddings"]]
        .into_iter()
        .filter_map(limit)
        .min()
        .unwrap_or(512);
    tokenizer_config["model_max_length"] = json!(max_tokens);
    if tokenizer_config["pad_token"].is_null() {
        tokenizer_config["pad_token"] = json!("[PAD]");
    }
    Ok((tokenizer_config, max_tokens))
}

/// The process's ONNX Runtime, loaded when first needed.
fn environment(registry: &Registry) -> Result<Environment> {
    static ENVIRONMENT: OnceCell<Environment> = OnceCell::new();
    ENVIRONMENT.get_or_try_init(|| find_runtime(registry)).cloned()
}

/// Tries the places where ONNX Runtime may be, in order.
fn find_runtime(registry: &Registry) -> Result<Environment> {
    let start = |library: &Path| -> Result<Environment, String> {
        let environment = ort::init_from(library).map_err(|e| e.to_string())?;
        environment.with_name("predict-otron-9000").build().map_err(|e| e.to_string())
    };
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return start(Path::new(&path)).map_err(|e| {
            Error::registry(format!("ORT_DYLIB_PATH is {path:?}, which is no usable ONNX Runtime: {e}"))
        });
    }
    let on_system = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };
    let system_error = match start(Path::new(on_system)) {
        Ok(environment) => return Ok(environment),
        Err(e) => e,
    };
    registry.onnx_runtime().map_err(|e| e.to_string()).and_then(|library| start(&library)).map_err(|wheel_error| {
        Error::registry(format!(
            "this embedding model needs ONNX Runtime, and none was found. {on_system} of the system: {system_error}. \
             The Python wheel `onnxruntime`: {wheel_error}. Set ORT_DYLIB_PATH to the library, or use a model that \
             needs none, such as --embedding-model all-minilm-l6-v2"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_like_length_run_together() {
        assert_eq!(groups(&[100, 3, 9, 110, 5, 200], 32), [vec![1, 4, 2], vec![0, 3], vec![5]]);
        assert_eq!(groups(&[7; 5], 2), [vec![0, 1], vec![2, 3], vec![4]]);
        assert!(groups(&[], 2).is_empty());
    }
}
