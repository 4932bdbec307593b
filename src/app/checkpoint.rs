//! Loading of a chat model from its files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::chat_models::LoadPlan;
use super::precision::PrecisionRecord;
use super::served_model::ModelInfo;
use super::weights_hash::{hash_weights, short_hex};
use crate::chat::{ChatModel, ChatTemplate, TemplateSource};
use crate::config::{ContextOverflow, KvPrecision, Limits, PromptActivations};
use crate::error::{Error, Kind, Result};
use crate::inference::{Engine, EngineOptions};
use crate::kernels::attention::kv_block::KvFormat;
use crate::kernels::isa::Isa;
use crate::models::decoder::CausalLm;
use crate::models::load::{GgufFile, SafetensorsFiles, Weights};
use crate::models::{
    Backend, BlockId, Decoder, ForwardInput, ModelConfig, SequenceChunk, SequenceId, SequenceStates,
    StateStep,
};
use crate::registry::{ModelFiles, ModelFormat, ModelKind, Registry, read_file};
use crate::tokenizer::Tokenizer;

/// Stack of the thread that computes a model's first token.
const CHECK_STACK_BYTES: usize = 16 << 20;

/// The shortest context that is served: a chat template takes a part of it before the first word.
const MIN_CONTEXT_TOKENS: usize = 64;

/// Locates the files of `reference`, fetches missing ones, and reads their headers. `template` replaces the model's
/// own chat templates. If the KV cache may be smaller than configured, weights and cache fit into `room_bytes` where
/// that is possible.
///
/// # Errors
/// When the files cannot be fetched, are damaged, or describe a model that is not supported.
pub fn locate(
    reference: &str,
    registry: &Registry,
    limits: &Limits,
    template: Option<&str>,
    room_bytes: u64,
) -> Result<LoadPlan> {
    let files = registry.resolve(reference, ModelKind::Chat)?;
    let with_model = |id: &str, e: Error| e.context(format_args!("cannot load `{id}`"));
    let (config, weights) = read_headers(&files).map_err(|e| with_model(&files.id, e))?;
    let options = EngineOptions {
        queued_requests: limits.queued_requests,
        queue_timeout: limits.queue_timeout,
        running_requests: limits.running_requests,
        batch_time: limits.batch_time,
        prefill_chunk_tokens: limits.prefill_chunk_tokens,
        kv_bytes: limits.kv_bytes,
        kv_format: kv_format(limits.kv_format),
        speculative: limits.speculative,
        rounded_prompts: false,
        queued_tokens: limits.queued_tokens,
        context_shift: limits.context_overflow == ContextOverflow::Shift,
        prompt_logprobs: limits.prompt_logprobs,
    };
    let weight_bytes = weights.memory_bytes();
    let options = if limits.kv_reducible {
        let room_bytes = room_bytes.saturating_sub(weight_bytes);
        options.with_kv_within(usize::try_from(room_bytes).unwrap_or(usize::MAX), &config)
    } else {
        options
    };
    let context_length = options.context_length(&config);
    check_context_length(context_length, &options, &config).map_err(|e| with_model(&files.id, e))?;
    let info = ModelInfo {
        family: config.family.to_owned(),
        format: files.format.name(),
        context_length,
        license: license(&files, &weights)?,
        quantization: weights.main_type(),
        size_bytes: Some(files.size_bytes),
    };
    let n_bytes = weight_bytes.saturating_add(options.max_kv_bytes(&config) as u64);
    let template = template.map(str::to_owned);
    let (activations, cache_dir) = (limits.activations, registry.cache_dir().to_owned());
    let load = move || {
        load(&files, config, &weights, options, template.as_deref(), (activations, &cache_dir))
            .map_err(|e| with_model(&files.id, e))
    };
    Ok(LoadPlan { info, n_bytes, load: Box::new(load) })
}

/// Refuses a context that is too short for anything but errors.
fn check_context_length(context_length: usize, options: &EngineOptions, config: &ModelConfig) -> Result<()> {
    if context_length >= MIN_CONTEXT_TOKENS {
        return Ok(());
    }
    if config.context_length < MIN_CONTEXT_TOKENS {
        return Err(Error::new(
            Kind::Config,
            format!(
                "its context has {} tokens, and at least {MIN_CONTEXT_TOKENS} are needed; choose another model with \
                 --model",
                config.context_length
            ),
        ));
    }
    let holds_enough =
        |kv_bytes: usize| EngineOptions { kv_bytes, ..*options }.context_length(config) >= MIN_CONTEXT_TOKENS;
    let mut needed_mib = 1;
    while needed_mib < 1 << 20 && !holds_enough(needed_mib << 20) {
        needed_mib *= 2;
    }
    Err(Error::new(
        Kind::Config,
        format!(
            "its KV cache of {} bytes holds a context of only {context_length} tokens, and at least \
             {MIN_CONTEXT_TOKENS} are needed; start the server with --kv-memory {needed_mib}M or more",
            options.kv_bytes
        ),
    ))
}

/// Converts the configured precision of the KV cache to the kernels' format.
pub fn kv_format(precision: KvPrecision) -> KvFormat {
    match precision {
        KvPrecision::F16 => KvFormat::F16,
        KvPrecision::Int8 => KvFormat::Int8,
    }
}

/// The license from the catalog or the model card, else from the file itself.
fn license(files: &ModelFiles, weights: &Weights) -> Result<Option<String>> {
    let own = match weights {
        Weights::Gguf(file) => file.metadata().string("general.license")?.map(str::to_owned),
        Weights::Safetensors(_) => None,
    };
    Ok(files.license.clone().or(own))
}

/// Reads the headers of a chat model's files. The weights themselves are not read yet.
///
/// # Errors
/// When a file is damaged, or describes a model that is not supported.
pub fn read_headers(files: &ModelFiles) -> Result<(ModelConfig, Weights)> {
    match files.format {
        ModelFormat::Gguf => {
            let file = GgufFile::open(&files.main)?;
            Ok((ModelConfig::from_gguf(&file)?, Weights::Gguf(file)))
        }
        ModelFormat::Safetensors => {
            let mut config = ModelConfig::from_json(&read_file(files.require("config.json")?)?)?;
            if let Some(path) = files.file("generation_config.json") {
                config = config.with_generation_config(&read_file(path)?)?;
            }
            Ok((config, Weights::Safetensors(SafetensorsFiles::open(&files.main)?)))
        }
        ModelFormat::Onnx => {
            Err(Error::model("ONNX files are read for embeddings only; use GGUF or safetensors"))
        }
    }
}

fn load(
    files: &ModelFiles,
    config: ModelConfig,
    weights: &Weights,
    options: EngineOptions,
    replacement: Option<&str>,
    (activations, cache_dir): (PromptActivations, &Path),
) -> Result<ChatModel> {
    let started = Instant::now();
    let (tokenizer, template) = match weights {
        Weights::Gguf(file) => text_from_gguf(file)?,
        Weights::Safetensors(_) => text_from_folder(files, &config)?,
    };
    tokenizer.check_fits(config.n_vocab)?;
    let template = match replacement {
        Some(replacement) => template.with_template(replacement),
        None => template,
    };
    let weights_hash = hash_weights(&files.main)?;
    let fingerprint = fingerprint(weights_hash.clone(), &template);
    let template = chat_template(&files.id, template, replacement.is_some())?;
    let tokenizer = Arc::new(tokenizer);
    let mut decoder = Box::new(CausalLm::load(config, weights, Backend::Kernels(Isa::current()))?);
    check_finite(&mut *decoder, options.kv_format)?;
    let is_faster = decoder.has_faster_rounded_prompts();
    let record = PrecisionRecord::new(cache_dir, weights_hash);
    let rounded_prompts = record.rounds_prompts(activations, is_faster);
    let trial = record.trial(activations, is_faster, &tokenizer)?;
    let options = EngineOptions { rounded_prompts, ..options };
    // Rounding changes answers.
    let fingerprint = if rounded_prompts {
        format!("{fingerprint}_{}", Isa::current().rounded_form())
    } else {
        fingerprint
    };
    let engine = Engine::spawn_with_trial(decoder, tokenizer.clone(), options, trial)?;
    tracing::info!(
        model = files.id,
        source = %files.source,
        vocabulary = tokenizer.n_vocab(),
        context = engine.context_length(),
        prompt_activation_bits = engine.prompt_activation_bits(),
        load_ms = started.elapsed().as_millis(),
        "chat model loaded"
    );
    Ok(ChatModel::new(template, tokenizer, engine, fingerprint))
}

/// Computes one token, so that weights that are no numbers are an error now instead of in every response.
///
/// # Errors
/// When the model cannot be computed, or its logits are not finite.
fn check_finite(decoder: &mut dyn Decoder, format: KvFormat) -> Result<()> {
    const TOKEN: u32 = 0;
    let mut states = SequenceStates::new(decoder.config(), format);
    let mut input = ForwardInput::default();
    input.push(SequenceChunk {
        sequence: SequenceId(0),
        n_prompt: 1,
        n_rounded: 0,
        start: 0,
        tables: &[BlockId::consecutive(0, 1)],
        state: Some(&StateStep::default()),
        token_ids: &[TOKEN],
        n_logits: 1,
    });
    let compute = || Ok(decoder.forward(&mut states, &input)?.flatten_all()?.to_vec1::<f32>()?);
    // On a stack of its own: that of the caller may be small, and is half full.
    let logits: Vec<f32> = thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(CHECK_STACK_BYTES).spawn_scoped(scope, compute);
        let thread =
            thread.map_err(|e| Error::internal(format!("cannot start a thread to check the model: {e}")))?;
        let panicked =
            |_| Err(Error::model("its first token cannot be computed; the server's log has the cause"));
        thread.join().unwrap_or_else(panicked)
    })?;
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    Err(Error::model(
        "its weights yield logits that are not finite numbers: the file is damaged; remove it and download it again",
    ))
}

/// Tokenizer and chat templates of a GGUF file.
fn text_from_gguf(file: &GgufFile) -> Result<(Tokenizer, TemplateSource)> {
    let text = |key| Ok::<_, Error>(file.metadata().string(key)?.map(str::to_owned));
    let template = TemplateSource {
        default: text("tokenizer.chat_template")?.unwrap_or_default(),
        tool_use: text("tokenizer.chat_template.tool_use")?,
        special_tokens: BTreeMap::new(),
    };
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let template = template
        .with_special_token("bos_token", tokenizer.bos())
        .with_special_token("eos_token", tokenizer.eos());
    Ok((tokenizer, template))
}

/// Tokenizer and chat templates from the files beside the safetensors.
fn text_from_folder(files: &ModelFiles, config: &ModelConfig) -> Result<(Tokenizer, TemplateSource)> {
    let tokenizer_config: Value = match files.file("tokenizer_config.json") {
        Some(path) => serde_json::from_slice(&read_file(path)?)
            .map_err(|e| Error::model(format!("cannot read tokenizer_config.json: {e}")))?,
        None => Value::Null,
    };
    let mut template = TemplateSource::from_tokenizer_config(&tokenizer_config);
    let token_text = |key: &str| template.special_tokens.get(key).cloned();
    let tokenizer = Tokenizer::from_file(files.require("tokenizer.json")?)?.with_config_tokens(
        config.bos_token_id,
        &config.eos_token_ids,
        token_text("bos_token"),
        token_text("eos_token"),
    );
    // Templates in separate files replace those of the configuration.
    let text = |path: &Path| Ok::<_, Error>(String::from_utf8_lossy(&read_file(path)?).into_owned());
    if let Some(path) = files.file("chat_template.jinja") {
        template.default = text(path)?;
        template.tool_use = files.file("additional_chat_templates/tool_use.jinja").map(text).transpose()?;
    }
    for (name, token) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
        // A token that the configuration sets to null stays undefined.
        if tokenizer_config.get(name).is_none() {
            template = template.with_special_token(name, token);
        }
    }
    Ok((tokenizer, template))
}

/// Compiles a model's chat templates. A model without a usable one of its own completes texts all the same, and the
/// inner error is for those who want to chat with it.
///
/// # Errors
/// When a template that replaces the model's own cannot be used.
fn chat_template(model: &str, source: TemplateSource, is_replacement: bool) -> Result<Result<ChatTemplate>> {
    if source.is_empty() {
        tracing::warn!(model, "the model has no chat template; it serves /v1/completions only");
        return Ok(Err(Error::invalid(
            "messages",
            "the model has no chat template, so it was not trained for chat; send a `prompt` to /v1/completions, or \
             start the server with --chat-template",
        )));
    }
    match ChatTemplate::new(source) {
        Err(e) if is_replacement => Err(Error::new(Kind::Config, format!("--chat-template: {e}"))),
        Err(e) => {
            tracing::warn!(model, error = %e, "the chat template cannot be used; the model serves /v1/completions only");
            let public = "the model's chat template cannot be used; start the server with --chat-template to replace it";
            Ok(Err(e.context("replace the template with --chat-template").with_public(public)))
        }
        Ok(template) => Ok(Ok(template)),
    }
}

/// A short hash of weights, whose hash is given, templates and program version.
fn fingerprint(mut hash: Sha256, template: &TemplateSource) -> String {
    hash.update(&template.default);
    hash.update(template.tool_use.as_deref().unwrap_or_default());
    format!("fp_{}", short_hex(hash))
}
