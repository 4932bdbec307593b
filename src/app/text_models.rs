//! Models that read whole texts: embedding models and rerankers.

use std::fs;
use std::sync::Arc;

use once_cell::sync::OnceCell;

use super::memory_budget::MemoryBudget;
use super::served_model::{ServedModel, cannot_load};
use crate::config::{EmbeddingBackend, Limits};
use crate::embeddings::{
    Embedder, EmbedderOptions, EmbeddingSource, Fingerprint, LedgerLimits, TextEmbedding,
};
use crate::error::{Kind, Result};
use crate::models::load::{GgufFile, SafetensorsFiles, Weights};
use crate::registry::{ModelFormat, ModelKind, ModelRef, Registry, catalog_entries};

/// An embedding model or reranker, with the thread that runs it.
#[derive(Clone)]
pub struct TextModel {
    /// Names and owner.
    pub served: ServedModel,
    /// Embedding or reranking.
    pub kind: ModelKind,
    /// Whether it is the model that is served unless another one is named.
    pub is_default: bool,
    /// Handle of the model's thread.
    pub embedder: Embedder,
}

/// The options of an embedder without a disk cache.
pub fn embedder_options(limits: &Limits) -> EmbedderOptions {
    EmbedderOptions {
        queue: LedgerLimits {
            requests: limits.embedding_requests,
            bytes: limits.embedding_queue_bytes,
            tokens: limits.embedding_queue_tokens,
        },
        queue_timeout: limits.queue_timeout,
        max_request_tokens: limits.embedding_tokens,
        cache_bytes: limits.embedding_cache_bytes,
        cache_ttl: limits.embedding_cache_ttl,
        is_cache_shared: limits.share_embedding_cache,
        key_owners: Fingerprint::default(),
        disk_cache: None,
    }
}

impl TextModel {
    /// The model that `reference` names. [`TextModel::preload`] or the first request loads it. Its memory is reserved
    /// from `budget` as soon as its files are there.
    ///
    /// # Errors
    /// When the reference is invalid, a path does not exist, the budget is too small, or a thread cannot be started.
    pub fn new(
        reference: &str,
        kind: ModelKind,
        backend: EmbeddingBackend,
        registry: Registry,
        options: EmbedderOptions,
        budget: Arc<MemoryBudget>,
    ) -> Result<Self> {
        let locate = move |reference: &str, registry: &Registry| match kind {
            ModelKind::Reranker => EmbeddingSource::locate_reranker(reference, registry),
            _ => EmbeddingSource::locate_for_backend(reference, backend, registry),
        };
        let reservation = OnceCell::new();
        let reserve = move |source: &EmbeddingSource| {
            let reserve =
                || budget.reserve(&format!("{kind} model `{}`", source.id()), memory_bytes(source)?);
            reservation.get_or_try_init(reserve).copied()
        };
        let parsed = ModelRef::parse(reference).ok();
        let owner = parsed.as_ref().and_then(ModelRef::owner);
        // Look only on disk for now: a slow network must not delay the listener.
        let served = match (locate(reference, &registry.offline()), &parsed) {
            (Ok(source), _) => {
                reserve(&source)?;
                ServedModel::new(source.id().to_owned(), source.aliases().to_vec(), owner)
            }
            // A path that does not exist will not appear by itself.
            (Err(e), Some(ModelRef::Path(_))) => return Err(e),
            (Err(_), _) => {
                let (id, aliases) = EmbeddingSource::names(reference, kind)?;
                ServedModel::new(id, aliases, owner)
            }
        };
        let default = catalog_entries().find(|entry| entry.kind == ModelKind::Embedding);
        let is_default = match parsed {
            Some(ModelRef::Catalog(entry)) => Some(entry) == default,
            _ => false,
        };
        let reference = reference.to_owned();
        let is_kept = options.disk_cache.is_some();
        let key_owners = options.key_owners;
        let load = move || {
            let source = locate(&reference, &registry)?;
            reserve(&source)?;
            let model = TextEmbedding::load(&source, &registry)?;
            Ok(if is_kept {
                model.with_fingerprint(source.fingerprint(&registry, &key_owners)?)
            } else {
                model
            })
        };
        let id = served.id().to_owned();
        let loader = move || load().map_err(|e| cannot_load(e, &id));
        let embedder = match kind {
            ModelKind::Reranker => {
                static RERANKER: OnceCell<TextEmbedding> = OnceCell::new();
                Embedder::spawn_with_cell(&RERANKER, Box::new(loader), options)?
            }
            _ => Embedder::spawn(Box::new(loader), options)?,
        };
        Ok(Self { served, kind, is_default, embedder })
    }

    /// Loads the model, so that one that cannot be served is an error at start. Blocks.
    ///
    /// # Errors
    /// When it cannot be loaded. Files of the default model that are not available are only logged, since many
    /// users want chat alone; a request for the model tries again.
    pub fn preload(&self) -> Result<()> {
        match self.embedder.load() {
            Ok(_) => Ok(()),
            Err(e) if self.is_default && e.kind() == Kind::Registry => {
                tracing::warn!(error = %e, "the {} model is not available; its first request tries again", self.kind);
                Ok(())
            }
            Err(e) => Err(e.context(format!("the {} model cannot be served", self.kind))),
        }
    }
}

/// The memory that a model's weights will take.
fn memory_bytes(source: &EmbeddingSource) -> Result<u64> {
    let weights = match source.format() {
        ModelFormat::Gguf => Weights::Gguf(GgufFile::open(source.main())?),
        ModelFormat::Safetensors => Weights::Safetensors(SafetensorsFiles::open(source.main())?),
        // ONNX Runtime keeps the weights as they are in the files.
        ModelFormat::Onnx => {
            let sizes = source.files().values().filter_map(|path| fs::metadata(path).ok());
            return Ok(sizes.map(|file| file.len()).sum());
        }
    };
    Ok(weights.encoder_memory_bytes())
}
