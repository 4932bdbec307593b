//! The server that a command uses: a running one, or one in this process.

use std::path::MAIN_SEPARATOR;
use std::time::Duration;

use tokio::time::timeout;

use super::client::{ApiClient, ListedModel};
use super::local_server::LocalServer;
use crate::config::{ClientArgs, RegistryConfig};
use crate::error::{Error, Kind, Result, quote};
use crate::registry::{ModelKind, ModelRef, Registry, readable_size};

/// The server that is looked for if none is named.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Time for it to answer.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// A server and a model of it.
pub struct Endpoint {
    /// Client of the server.
    pub client: ApiClient,
    /// Name of the model in requests.
    pub model: String,
    kind: ModelKind,
    args: ClientArgs,
    /// The server, if it is in this process.
    local: Option<LocalServer>,
}

/// A server to be used, before a model is chosen.
pub struct Connection {
    args: ClientArgs,
    kind: ModelKind,
    /// A running server and its models; without one, this process becomes one.
    running: Option<(ApiClient, Vec<ListedModel>)>,
}

impl Connection {
    /// Looks for the server that `args` name or, by default, for one on this machine.
    ///
    /// # Errors
    /// When a server is named that does not answer, or the one that answers wants another API key.
    pub async fn open(args: &ClientArgs, kind: ModelKind) -> Result<Self> {
        let running = match &args.server {
            _ if args.local => None,
            Some(url) => {
                let client = ApiClient::new(url, args.key())?;
                let models = client.models().await?;
                Some((client, models))
            }
            None => detect(args.key()).await?,
        };
        Ok(Self { args: args.clone(), kind, running })
    }

    /// Whether `word` names a model: one of the server's, or one that this process could load.
    pub fn has_model(&self, word: &str) -> bool {
        let models = self.running.iter().flat_map(|(_, models)| models);
        is_reference(word) || models.into_iter().any(|model| model.is_called(word))
    }

    /// Chooses a model by name, or the first of the right kind. Without a running server, starts one in this process
    /// and loads the model.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be loaded.
    pub async fn with_model(self, name: Option<&str>) -> Result<Endpoint> {
        let Self { args, kind, running } = self;
        let (client, model, local) = match running {
            Some((client, models)) => {
                let model = match name {
                    Some(name) => check_model(&client, &models, name).await?,
                    None => default_model(&client, &models, kind)?,
                };
                (client, model, None)
            }
            None => {
                let server = LocalServer::start(&args, kind, name).await?;
                (server.client.clone(), server.model.clone(), Some(server))
            }
        };
        Ok(Endpoint { client, model, kind, args, local })
    }
}

impl Endpoint {
    /// The server for `args`, with the model that they name.
    ///
    /// # Errors
    /// As [`Connection::open`] and [`Connection::with_model`].
    pub async fn open(args: &ClientArgs, kind: ModelKind) -> Result<Self> {
        Connection::open(args, kind).await?.with_model(args.model.as_deref()).await
    }

    /// A line that says which model answers where.
    pub fn describe(&self) -> String {
        match self.local {
            Some(_) => format!("{} in this process", self.model),
            None => format!("{} at {}", self.model, self.client.url()),
        }
    }

    /// Switches to another model. A server in this process starts anew with it.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be loaded; the old one stays.
    pub async fn switch(&mut self, name: &str) -> Result<()> {
        if self.local.is_none() {
            let models = self.client.models().await?;
            self.model = check_model(&self.client, &models, name).await?;
            return Ok(());
        }
        let server = LocalServer::start(&self.args, self.kind, Some(name)).await?;
        (self.client, self.model) = (server.client.clone(), server.model.clone());
        self.local = Some(server);
        Ok(())
    }

    /// A line for each model of the right kind that [`Endpoint::switch`] accepts, the current one marked.
    ///
    /// # Errors
    /// When the server does not list its models.
    pub async fn list(&self) -> Result<String> {
        let mark = |name: &str| if name == self.model { '*' } else { ' ' };
        if self.local.is_none() {
            let models = self.client.models().await?;
            let names = of_kind(&models, self.kind).map(|model| format!("{} {}", mark(&model.id), model.id));
            return Ok(names.collect::<Vec<_>>().join("\n"));
        }
        let registry = Registry::new(RegistryConfig::resolve(self.args.registry.clone())?);
        let models = registry.list();
        let width = models.iter().map(|model| model.name.len()).max().unwrap_or_default();
        let mut lines: Vec<String> = models
            .iter()
            .filter(|model| model.kind.is_none_or(|kind| kind == self.kind))
            .map(|model| {
                let place = match &model.path {
                    Some(path) => path.display().to_string(),
                    None => format!("{} to download", readable_size(model.size_bytes)),
                };
                format!("{} {:width$}  {place}", mark(&model.name), model.name)
            })
            .collect();
        if !models.iter().any(|model| model.name == self.model) {
            lines.insert(0, format!("* {}", self.model));
        }
        Ok(lines.join("\n"))
    }
}

/// The server at the default address, if one of this program answers there.
///
/// # Errors
/// When it wants another API key.
async fn detect(key: Option<&str>) -> Result<Option<(ApiClient, Vec<ListedModel>)>> {
    let client = ApiClient::new(DEFAULT_URL, key)?;
    match timeout(DETECTION_TIMEOUT, client.models()).await {
        Ok(Ok(models)) if models.iter().any(|model| model.kind.is_some()) => Ok(Some((client, models))),
        Ok(Err(e)) if e.kind() == Kind::Config => {
            Err(with_remedy(&e, "pass --local to run the model in this process"))
        }
        _ => Ok(None),
    }
}

/// The id of the model called `name`.
///
/// # Errors
/// When the server has none.
async fn check_model(client: &ApiClient, models: &[ListedModel], name: &str) -> Result<String> {
    if let Some(model) = models.iter().find(|model| model.is_called(name)) {
        return Ok(model.id.clone());
    }
    // The server may take other spellings and, with --any-model-name, any name.
    match client.model(name).await {
        Ok(_) => Ok(name.to_owned()),
        Err(e) if e.kind() == Kind::ModelNotFound && ModelRef::parse(name).is_ok() => {
            Err(with_remedy(&e, &format!("pass --local to run {} in this process", quote(name))))
        }
        Err(e) => Err(e),
    }
}

/// The id of the first model of a kind.
///
/// # Errors
/// When there is none.
fn default_model(client: &ApiClient, models: &[ListedModel], kind: ModelKind) -> Result<String> {
    let model = match kind {
        // Without a reranker, the embedding model scores.
        ModelKind::Reranker => {
            of_kind(models, kind).next().or_else(|| of_kind(models, ModelKind::Embedding).next())
        }
        kind => of_kind(models, kind).next(),
    };
    model.map(|model| model.id.clone()).ok_or_else(|| {
        let message = format!(
            "the server at {} has no {kind} model; pass --local to run one in this process",
            client.url()
        );
        Error::new(Kind::ModelNotFound, message)
    })
}

/// Whether a word is a reference of a model. A path must exist and have a separator or the extension `.gguf`, so that
/// no name of a folder is mistaken for a model.
fn is_reference(word: &str) -> bool {
    match ModelRef::parse(word) {
        Ok(ModelRef::Path(path)) => {
            let is_file = path.extension().is_some_and(|extension| extension == "gguf");
            path.exists() && (is_file || word.contains(MAIN_SEPARATOR))
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// The error with one more remedy.
fn with_remedy(error: &Error, remedy: &str) -> Error {
    Error::new(error.kind(), format!("{error}; or {remedy}"))
}

/// The models of a kind, and those whose kind the server does not tell.
fn of_kind(models: &[ListedModel], kind: ModelKind) -> impl Iterator<Item = &ListedModel> {
    let kind = kind.to_string();
    models.iter().filter(move |model| model.kind.as_ref().is_none_or(|own| *own == kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_models_or_prompts() {
        for word in ["smollm2-135m-instruct", "hf:owner/repo", "pypi:a==1/b.gguf", "tests/data/tiny/llama"] {
            assert!(is_reference(word), "{word}");
        }
        for word in ["hello", "What is a/b?", "tests", "Cargo.toml", "no/such/model.gguf", "hf:", ""] {
            assert!(!is_reference(word), "{word}");
        }
    }
}
