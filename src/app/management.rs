//! Models that are managed while the server runs: downloads, and chat models that are added, unloaded, pinned and
//! deleted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::chat_models::ChatSlot;
use super::memory_budget::MemoryBudget;
use super::served_model::{ServedModel, plain_name};
use super::{App, Slot, checkpoint};
use crate::config::Limits;
use crate::error::{Error, Kind, Result, quote};
use crate::registry::{DownloadWatch, ModelKind, ModelRef, Registry};
use crate::store::run_blocking;

/// Downloads at the same time.
const MAX_DOWNLOADS: usize = 4;

/// The registry, limits and memory budget by which models are managed.
pub struct ModelManagement {
    registry: Registry,
    limits: Limits,
    budget: Arc<MemoryBudget>,
    downloads: Semaphore,
}

/// A model that was downloaded.
#[derive(Debug, Clone)]
pub struct PulledModel {
    /// Its id.
    pub id: String,
    /// Bytes of its files.
    pub n_bytes: u64,
    /// Whether it is served: chat models are, from now on.
    pub is_served: bool,
}

impl ModelManagement {
    /// Management of models from `registry`, which share `budget`.
    pub fn new(registry: Registry, limits: Limits, budget: Arc<MemoryBudget>) -> Self {
        Self { registry, limits, budget, downloads: Semaphore::new(MAX_DOWNLOADS) }
    }

    /// A chat model that `reference` names, in its place among the served ones. It is not loaded.
    pub(super) fn chat_slot(
        &self,
        served: ServedModel,
        reference: String,
        template: Option<String>,
    ) -> ChatSlot {
        let (registry, limits, budget) = (self.registry.clone(), self.limits.clone(), self.budget.clone());
        let locate = {
            let reference = reference.clone();
            move || {
                let room_bytes = budget.for_chat();
                checkpoint::locate(&reference, &registry, &limits, template.as_deref(), room_bytes)
            }
        };
        ChatSlot::new(served, self.limits.queued_requests, Box::new(locate)).with_reference(reference)
    }
}

impl App {
    /// Whether clients may manage models.
    pub fn manages_models(&self) -> bool {
        self.management.is_some()
    }

    fn management(&self) -> Result<&Arc<ModelManagement>> {
        self.management.as_ref().ok_or_else(|| Error::internal("models are not managed"))
    }

    /// Downloads the model that `reference` names unless it is on disk, and serves it if it is a chat model. `watch`
    /// follows the download, and may cancel it.
    ///
    /// # Errors
    /// When the reference is malformed or a path, too many downloads run, or the model cannot be downloaded.
    pub async fn pull(&self, reference: String, watch: DownloadWatch) -> Result<PulledModel> {
        let management = self.management()?.clone();
        let parsed = downloadable(&reference)?;
        let reference = parsed.to_string();
        let app = self.clone();
        let pull = move || {
            let _permit = management.downloads.try_acquire().map_err(|_| {
                let retry_after = Duration::from_secs(30);
                let message = format!("{MAX_DOWNLOADS} downloads run already; try again later");
                Error::new(Kind::Overloaded { retry_after }, message)
            })?;
            let files = management.registry.watched(watch).resolve(&reference, None)?;
            let kind = match &parsed {
                ModelRef::Catalog(entry) => Some(entry.kind),
                _ => None,
            };
            let is_served = match kind {
                Some(ModelKind::Chat) => app.add_chat_model(&parsed, reference).map(|_| true)?,
                // What the headers say decides.
                None => app.add_chat_model(&parsed, reference).is_ok(),
                Some(_) => false,
            };
            Ok(PulledModel { id: files.id, n_bytes: files.size_bytes, is_served })
        };
        run_blocking(pull).await
    }

    /// Loads the model called `name`. A chat model on disk that is not served yet is served from now on.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be loaded.
    pub async fn load_model(&self, name: &str) -> Result<()> {
        match self.slot_called(name) {
            Some(Slot::Chat(slot)) => self.parts.chat_models.acquire(&slot).await.map(drop),
            Some(Slot::Text(model, _)) => model.embedder.model().await.map(drop),
            None => {
                let slot = self.serve_from_disk(name).await?;
                self.parts.chat_models.acquire(&slot).await.map(drop)
            }
        }
    }

    async fn serve_from_disk(&self, name: &str) -> Result<Arc<ChatSlot>> {
        let management = self.management()?.clone();
        let parsed = downloadable(name).map_err(|_| self.not_served(name))?;
        let (app, reference) = (self.clone(), parsed.to_string());
        run_blocking(move || {
            let found = management.registry.offline().resolve(&reference, ModelKind::Chat);
            found.map_err(|_| {
                let message = format!(
                    "model `{}` is not on disk; download it with POST /v1/models/pull first",
                    quote(&reference)
                );
                Error::new(Kind::ModelNotFound, message).with_param("model")
            })?;
            app.add_chat_model(&parsed, reference)
        })
        .await
    }

    /// The chat model of a reference, added to those served if it is not among them. Blocks.
    fn add_chat_model(&self, parsed: &ModelRef, reference: String) -> Result<Arc<ChatSlot>> {
        let served = ServedModel::from_reference(parsed);
        if let Some(Slot::Chat(slot)) = self.slot_called(served.id()) {
            return Ok(slot);
        }
        let slot = self.management()?.chat_slot(served, reference, None);
        // Reads the headers: a model that cannot be served is not added.
        slot.locate()?;
        Ok(self.parts.chat_models.add(slot))
    }

    /// Unloads a chat model. Returns whether it is out of memory now; it stays while a request uses it.
    ///
    /// # Errors
    /// When there is no such model, or it is not a chat model.
    pub async fn unload_model(&self, name: &str) -> Result<bool> {
        let slot = self.chat_slot_called(name)?;
        run_blocking(move || Ok(slot.unload() || !slot.is_loaded())).await
    }

    /// Keeps a chat model in memory, where it is loaded now, or no longer keeps it.
    ///
    /// # Errors
    /// When there is no such model, it is not a chat model, or it cannot be loaded.
    pub async fn pin_model(&self, name: &str, is_pinned: bool) -> Result<()> {
        let slot = self.chat_slot_called(name)?;
        if is_pinned {
            self.parts.chat_models.acquire(&slot).await?;
        }
        slot.pin(is_pinned);
        Ok(())
    }

    /// Deletes the files of the model called `name`; one that was added is no longer served. Returns how many bytes
    /// were deleted, or `None` if the model is in use.
    ///
    /// # Errors
    /// When the model is not on disk, or was not downloaded by this program.
    pub async fn delete_model(&self, name: &str) -> Result<Option<u64>> {
        let management = self.management()?.clone();
        let (app, name) = (self.clone(), name.to_owned());
        run_blocking(move || {
            let reference = match app.slot_called(&name) {
                Some(Slot::Text(..)) => return Ok(None),
                Some(Slot::Chat(slot)) => {
                    if !slot.unload() && slot.is_loaded() {
                        return Ok(None);
                    }
                    app.parts.chat_models.remove_added(&slot);
                    slot.reference().to_owned()
                }
                None => downloadable(&name).map_err(|_| app.not_served(&name))?.to_string(),
            };
            management.registry.delete(&reference).map(Some)
        })
        .await
    }

    fn chat_slot_called(&self, name: &str) -> Result<Arc<ChatSlot>> {
        match self.slot_called(name) {
            Some(Slot::Chat(slot)) => Ok(slot),
            Some(Slot::Text(_, kind)) => {
                let message = format!("`{}` is {kind} model, which stays in memory", quote(name));
                Err(Error::invalid("model", message))
            }
            None => Err(self.not_served(name)),
        }
    }
}

/// Parses the reference of a model that can be downloaded, without what clients add to it.
fn downloadable(reference: &str) -> Result<ModelRef> {
    let name = plain_name(reference).unwrap_or(reference);
    match ModelRef::parse(name).map_err(|e| Error::invalid("model", e.to_string()))? {
        ModelRef::Path(_) => {
            let message = format!(
                "`{}` is neither in the catalog nor a reference to a repository; send `hf:owner/repo`, \
                 `pypi:package==version/path`, or a name that `predict-otron-9000 models` lists",
                quote(reference)
            );
            Err(Error::invalid("model", message))
        }
        parsed => Ok(parsed),
    }
}
