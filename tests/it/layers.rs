//! The house rules of `src/`: imports point only downward, siblings of one layer do not import each other,
//! some modules never meet, files form no circles, and foreign crates are named only in their home.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use imports::{Crate, circles};

/// The layers that `src/lib.rs` describes, top first; the modules of one row are siblings.
const LAYERS: [&[&str]; 11] = [
    &["cli"],
    &["http"],
    &["app"],
    &["batches", "bundle", "decisions", "responses"],
    &["chat", "messages", "ollama"],
    &["inference", "embeddings"],
    &["models", "tokenizer", "registry"],
    &["anthropic", "metering"],
    &["kernels", "openai", "telemetry", "gguf", "cache", "pulse", "store"],
    &["config"],
    &["error"],
];

/// Files (by prefix) and the modules below them that they must not import all the same.
const FORBIDDEN: [(&str, &[&str]); 3] = [
    // HTTP knows no tokens.
    ("http/", &["inference", "kernels", "models", "tokenizer"]),
    // Chat knows no tensors.
    ("chat/", &["kernels", "models"]),
    // The scheduler decides; it computes nothing.
    ("inference/scheduler", &["kernels"]),
];

/// Foreign words and the only files (by prefix) that may contain them.
const HOMES: [(&str, &[&str]); 27] = [
    ("axum::", &["http/"]),
    ("tower_http::", &["http/"]),
    ("hyper::", &["http/"]),
    ("rustls::", &["http/server/tls.rs"]),
    ("tokio_rustls::", &["http/server/tls.rs"]),
    ("tokio_util::", &["http/server/linger.rs"]),
    ("rlimit::", &["http/server/file_limit.rs"]),
    ("schemars::", &["openai/", "anthropic/", "ollama/", "http/openapi/", "http/route.rs"]),
    ("reqwest::", &["registry/hub/", "cli/client.rs"]),
    ("tar::", &["bundle/"]),
    ("listenfd::", &["cli/serve.rs"]),
    ("sd_notify::", &["cli/serve.rs"]),
    ("clap::", &["config/"]),
    ("clap_complete::", &["config/args.rs", "cli/manual.rs"]),
    ("clap_mangen::", &["cli/manual.rs"]),
    ("toml::", &["config/"]),
    ("rustyline::", &["cli/chat.rs"]),
    ("minijinja::", &["chat/template/"]),
    ("llguidance::", &["inference/grammar/"]),
    ("tokenizers::", &["tokenizer/"]),
    ("onig::", &["tokenizer/"]),
    ("fastembed::", &["embeddings/backend/onnx"]),
    ("ort::", &["embeddings/backend/onnx"]),
    ("hf_hub::", &["registry/hub"]),
    ("redb::", &["embeddings/cache/disk.rs", "store.rs", "store/"]),
    ("std::arch::", &["kernels/"]),
    ("unsafe {", &["kernels/", "main.rs"]),
];

/// Types that may share a name, since each pair stands for the same thing.
const TWIN_TYPES: [&str; 3] = [
    // In the engine and in OpenAI's API.
    "FinishReason",
    "TokenLogprob",
    // On targets with and without AMX.
    "TileConfig",
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every source file with its path below `src/`, and its text without comments.
fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            (name, code.join("\n"))
        })
        .collect()
}

/// The modules that `code` names as `crate::module`, grouped imports among them.
fn imported(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        let group = rest.strip_prefix('{').and_then(|group| group.split('}').next());
        for path in group.unwrap_or(rest).split(',').take(if group.is_some() { usize::MAX } else { 1 }) {
            modules.push(
                path.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned(),
            );
        }
    }
    modules
}

#[test]
fn imports_point_only_downward() {
    let mut violations = Vec::new();
    for (file, code) in sources() {
        let module = file.split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = layer_of(&module) else {
            assert!(["lib", "main"].contains(&module.as_str()), "{file} is in no layer; add it to LAYERS");
            continue;
        };
        for target in imported(&code) {
            match layer_of(&target) {
                Some(layer) if layer > own || target == module => {}
                // A macro or an item of the crate's root.
                None => violations.push(format!("{file} imports crate::{target}, which is in no layer")),
                Some(_) => violations.push(format!("{file} imports crate::{target}, which is not below it")),
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn some_modules_never_meet() {
    let mut violations = Vec::new();
    for (file, code) in sources() {
        for (prefix, modules) in FORBIDDEN {
            let mut targets = imported(&code);
            targets.retain(|target| file.starts_with(prefix) && modules.contains(&target.as_str()));
            violations.extend(targets.iter().map(|target| format!("{file} imports crate::{target}")));
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn files_form_no_circles() {
    let sources = sources();
    let parsed = Crate::parse(&sources);
    let mut uses = parsed.dependencies();
    for (file, targets) in &mut uses {
        // A folder's `mod.rs` has what its files share, and may be a table of which they are the rows.
        let is_shared = |target: &str| target.strip_suffix("mod.rs").is_some_and(|dir| file.starts_with(dir));
        targets.retain(|target| !is_shared(target));
    }
    let describe = |circle: &BTreeSet<&str>| {
        let edge = |file: &&str| {
            let targets: Vec<&str> = uses[file].intersection(circle).copied().collect();
            format!("{file} uses {}", targets.join(", "))
        };
        circle.iter().map(edge).collect::<Vec<_>>()
    };
    let found: Vec<_> = circles(&uses).iter().map(describe).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// The types that `code` defines at the top of its file.
fn defined_types(code: &str) -> impl Iterator<Item = &str> {
    let name = |line: &str| -> Option<usize> {
        let item = match line.strip_prefix("pub") {
            Some(rest) => rest.split_once(' ')?.1,
            None => line,
        };
        let (keyword, rest) = item.split_once(' ')?;
        ["struct", "enum", "trait", "union"].contains(&keyword).then_some(line.len() - rest.len())
    };
    code.lines()
        .filter_map(move |line| line[name(line)?..].split(|c: char| !c.is_alphanumeric() && c != '_').next())
}

#[test]
fn a_type_name_has_one_meaning() {
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, code) in sources() {
        for name in defined_types(&code).filter(|name| !TWIN_TYPES.contains(name)) {
            files.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    files.retain(|_, files| files.len() > 1);
    assert!(files.is_empty(), "types of the same name: {files:#?}");
}

#[test]
fn foreign_crates_stay_at_home() {
    let mut violations = Vec::new();
    for (file, code) in sources() {
        for (word, homes) in HOMES {
            let is_home = homes.iter().any(|home| file.starts_with(home));
            let is_named = code
                .match_indices(word)
                .any(|(start, _)| !code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if is_named && !is_home {
                violations.push(format!("{file} names `{word}`, which belongs to {homes:?}"));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn definitions_of_types_are_found() {
    let code = "pub struct A<T>(T);\nenum B {\n    C,\n}\npub(crate) trait D: E {}\nfn struct_f() {}\nuse x::enum_g;";
    assert_eq!(defined_types(code).collect::<Vec<_>>(), ["A", "B", "D"]);
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let code = "use crate::error::{Error, Kind};\nuse crate::{chat, models::load};\nlet x = crate::app::unix_time();";
    assert_eq!(imported(code), ["error", "chat", "models", "app"]);
}
