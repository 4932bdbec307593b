//! The names of served models, and what is known about them.

use std::time::SystemTime;

use crate::error::{Error, Kind, Result};
use crate::registry::{ModelKind, ModelRef};

/// The name that stands for the default model of each route.
pub const DEFAULT: &str = "default";

/// The owner of models whose publisher is unknown.
const UNKNOWN_OWNER: &str = "predict-otron-9000";

/// The least Jaro-Winkler similarity of a name that an error suggests: a typo or a part of the name has more.
const MIN_SIMILARITY: f64 = 0.8;

/// Characters of an unknown name that are compared.
const MAX_COMPARED_CHARS: usize = 200;

/// A served model as clients see it.
#[derive(Debug, Clone)]
pub struct ServedModel {
    id: String,
    /// Names from the model's reference, such as its repository.
    aliases: Vec<String>,
    /// Names from the operator.
    own_aliases: Vec<String>,
    owner: Option<String>,
    /// Unix time in seconds since which the model is served.
    created: u64,
}

/// Facts from a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name of the architecture.
    pub family: String,
    /// Format of the weights: `gguf`, `safetensors` or `onnx`.
    pub format: &'static str,
    /// Maximum number of tokens of a prompt and its response, or of a text.
    pub context_length: usize,
    /// License of the weights, if known.
    pub license: Option<String>,
    /// Type of most of the weights in the file, such as `Q4_K` or `BF16`, if known.
    pub quantization: Option<String>,
    /// Bytes of all files together, if known.
    pub size_bytes: Option<u64>,
}

/// The current state of a served model.
pub struct ModelStatus {
    /// Names and owner.
    pub served: ServedModel,
    /// Purpose of the model.
    pub kind: ModelKind,
    /// Facts from the model's files, once they have been read.
    pub info: Option<ModelInfo>,
    /// Whether the model is in memory.
    pub residence: Residence,
    /// Bytes of the weights and the KV cache in memory, if known.
    pub memory_bytes: Option<u64>,
    /// Whether the model stays in memory.
    pub is_pinned: bool,
    /// Bits of the activations of prompts, for a chat model in memory.
    pub prompt_activation_bits: Option<u8>,
}

/// The place of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In memory.
    Loaded,
    /// On its way into memory.
    Loading,
    /// Not in memory.
    Unloaded,
    /// Not in memory, because the last attempt to load it failed.
    Failed,
}

impl ServedModel {
    /// A model with an id and other names. `owner` is its publisher, if known.
    pub fn new(id: String, aliases: Vec<String>, owner: Option<&str>) -> Self {
        let own_aliases = Vec::new();
        Self { id, aliases, own_aliases, owner: owner.map(str::to_owned), created: unix_time() }
    }

    /// The model that a reference names.
    pub(super) fn from_reference(reference: &ModelRef) -> Self {
        let (id, aliases) = reference.names();
        Self::new(id, aliases, reference.owner())
    }

    /// The name by which responses call the model.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Unix time in seconds since which the model is served.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The publisher, or this server's name if unknown.
    pub fn owner(&self) -> &str {
        self.owner.as_deref().unwrap_or(UNKNOWN_OWNER)
    }

    /// The names that the operator has given the model besides its id.
    pub fn own_aliases(&self) -> &[String] {
        &self.own_aliases
    }

    /// All names besides the id, those of the operator first.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        self.own_aliases.iter().chain(&self.aliases).map(String::as_str)
    }

    /// Whether `name` is the id or an alias. Case is ignored, as on the hub.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.aliases().chain([self.id()]).any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// A name without what other servers' clients put around it: `openai/` before it (LiteLLM), `:latest` after it
/// (Ollama). `None` if there is nothing of this.
pub fn plain_name(name: &str) -> Option<&str> {
    let without_prefix = name.strip_prefix("openai/").unwrap_or(name);
    let plain = without_prefix.strip_suffix(":latest").unwrap_or(without_prefix);
    (plain != name).then_some(plain)
}

/// The name among `names` that is most like `name`, if any is.
pub fn nearest_name<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let of_name: String = name.to_lowercase().chars().take(MAX_COMPARED_CHARS).collect();
    let similarity = |own: &str| strsim::jaro_winkler(&of_name, &own.to_lowercase());
    let compared =
        names.map(|own| (similarity(own), own)).filter(|&(similarity, _)| similarity >= MIN_SIMILARITY);
    compared.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, own)| own)
}

/// Adds the user's aliases, pairs of alias and model name.
///
/// # Errors
/// When an alias is taken or its model is not served, or when two models have the same id.
pub fn assign_aliases(mut models: Vec<&mut ServedModel>, aliases: &[(String, String)]) -> Result<()> {
    let config = |message: String| Error::new(Kind::Config, message);
    for (alias, target) in aliases {
        if is_default(alias) || models.iter().any(|model| model.is_called(alias)) {
            return Err(config(format!("--alias {alias}={target}: `{alias}` is taken; choose another name")));
        }
        let model = models.iter_mut().find(|model| model.is_called(target)).ok_or_else(|| {
            config(format!(
                "--alias {alias}={target}: `{target}` is not served; serve it with --model {target}"
            ))
        })?;
        model.own_aliases.push(alias.clone());
    }
    for (idx, model) in models.iter().enumerate() {
        if models[..idx].iter().any(|other| other.is_called(&model.id)) {
            return Err(config(format!(
                "two models are called `{}`; serve one of them, or give their files different names",
                model.id
            )));
        }
    }
    Ok(())
}

/// Hides an error of loading the model `id`, which may name local files, from clients.
pub fn cannot_load(e: Error, id: &str) -> Error {
    e.with_public(format!("model `{id}` cannot be loaded; the server's log has the reason"))
}

/// Whether `name` stands for a route's default model.
pub fn is_default(name: &str) -> bool {
    name.eq_ignore_ascii_case(DEFAULT)
}

/// The current Unix time in seconds.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_freed_of_what_clients_add() {
        for (name, plain) in [
            ("openai/m", Some("m")),
            ("m:latest", Some("m")),
            ("openai/a/m:latest", Some("a/m")),
            ("m", None),
            ("m:q4", None),
            ("open/m", None),
        ] {
            assert_eq!(plain_name(name), plain, "{name}");
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["smollm2-135m-instruct", "all-minilm-l6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"];
        for (name, nearest) in [
            ("smollm2-135m-instrct", Some(names[0])),
            ("SmolLM2", Some(names[0])),
            ("all-MiniLM-L6", Some(names[1])),
            ("gpt-4o", None),
            ("", None),
        ] {
            assert_eq!(nearest_name(name, names.into_iter()), nearest, "{name}");
        }
        assert_eq!(nearest_name(&"x".repeat(1 << 20), names.into_iter()), None);
    }
}
