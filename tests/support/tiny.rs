//! Servers with the tiny models of random weights, whose tokens are bytes and which have no chat template.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use clap::Parser;
use predict_otron_9000::app::App;
use predict_otron_9000::config::{Args, Config};
use tempfile::TempDir;

use super::{METRICS, Server, serve};

/// A server with the model of this family, and the folder of its files.
pub async fn tiny_server(family: &str, options: &[&str]) -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new("tests/data/tiny").join(family).join(name), folder.path().join(name)).unwrap();
    }
    LazyLock::force(&METRICS);
    let path = folder.path().to_str().unwrap().to_owned();
    let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    let load = move || {
        let command = ["predict-otron-9000".to_owned(), "--model".to_owned(), path];
        let args = Args::parse_from(command.into_iter().chain(options));
        let app = App::new(&Config::resolve(args.serve).unwrap()).unwrap();
        app.preload(false).map(|()| app)
    };
    (serve(tokio::task::spawn_blocking(load).await.unwrap().unwrap()).await, folder)
}
