//! The server in this process, for a command that finds no running one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::client::ApiClient;
use super::progress::Spinner;
use crate::app::App;
use crate::config::{ClientArgs, Config, ServeArgs};
use crate::embeddings::EmbeddingSource;
use crate::error::{Error, Kind, Result};
use crate::http;
use crate::registry::{ModelKind, Registry};

/// A server in this process, which stops on drop. It listens on a free port of the loopback interface and has a key
/// of its own, so that nobody else on the machine can use it.
pub struct LocalServer {
    /// A client with its key.
    pub client: ApiClient,
    /// Id of its first model of the wanted kind.
    pub model: String,
    _stop: oneshot::Sender<Duration>,
}

impl LocalServer {
    /// Starts a server as `serve` would with the environment's options, and loads the model `reference`, or the
    /// default one of this kind.
    ///
    /// # Errors
    /// When the model cannot be found, downloaded or loaded, or the server cannot be started.
    pub async fn start(args: &ClientArgs, kind: ModelKind, reference: Option<&str>) -> Result<Self> {
        let key = Uuid::new_v4().simple().to_string();
        let (options, kind, reference) = serve_args(args, kind, reference, &key);
        let config = Config::resolve(options)?;
        // Downloads show a progress of their own.
        let (registry, located) = (Registry::new(config.registry.clone()), reference.clone());
        spawn_blocking(move || download(&registry, kind, &located)).await.map_err(failed)??;
        let _spinner = Spinner::start(&format!("loading {reference}"));
        let cannot_listen = |e| Error::new(Kind::Config, format!("cannot listen on 127.0.0.1: {e}"));
        let listener = TcpListener::bind(SocketAddr::new(config.host, 0)).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let app = spawn_blocking(move || App::new(&config)).await.map_err(failed)??;
        let (stop, stopped) = oneshot::channel::<Duration>();
        let serving = app.clone();
        tokio::spawn(async move {
            http::serve(listener, serving, async { stopped.await.unwrap_or_default() }).await;
        });
        let first = app.models().find(|model| model.kind == kind);
        let id = first.map(|model| model.served.id().to_owned()).unwrap_or_default();
        app.load_any(Some(&id)).await?;
        let client = ApiClient::new(&format!("http://{address}"), Some(&key))?;
        Ok(Self { client, model: id, _stop: stop })
    }
}

/// The options of the server, and kind and reference of the model to load.
fn serve_args(
    args: &ClientArgs,
    kind: ModelKind,
    reference: Option<&str>,
    key: &str,
) -> (ServeArgs, ModelKind, String) {
    let mut options = ServeArgs {
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        api_key: vec![key.to_owned()],
        api_key_file: None,
        tls_cert: None,
        tls_key: None,
        // A running server may hold these folders.
        embedding_cache_dir: None,
        state_dir: None,
        compute: args.compute.clone(),
        registry: args.registry.clone(),
        ..ServeArgs::from_environment()
    };
    let reference = reference.map(str::to_owned);
    match kind {
        ModelKind::Chat => {
            if let Some(reference) = reference {
                options.model = vec![reference];
            }
            let first = options.model.first().cloned().unwrap_or_default();
            (options, kind, first)
        }
        ModelKind::Embedding => {
            let model = reference.unwrap_or(options.embedding_model);
            (ServeArgs { embedding_model: model.clone(), ..options }, kind, model)
        }
        ModelKind::Reranker => match reference.or(options.rerank_model.take()) {
            Some(model) => (ServeArgs { rerank_model: Some(model.clone()), ..options }, kind, model),
            // The embedding model scores.
            None => {
                let model = options.embedding_model.clone();
                (options, ModelKind::Embedding, model)
            }
        },
    }
}

/// Makes sure that the files of a model are on disk.
fn download(registry: &Registry, kind: ModelKind, reference: &str) -> Result<()> {
    match kind {
        ModelKind::Chat => registry.resolve(reference, kind).map(drop),
        ModelKind::Embedding => EmbeddingSource::locate(reference, registry).map(drop),
        ModelKind::Reranker => EmbeddingSource::locate_reranker(reference, registry).map(drop),
    }
}

fn failed(error: tokio::task::JoinError) -> Error {
    Error::internal(format!("starting the server failed: {error}"))
}
