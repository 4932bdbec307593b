//! Bundles: one tar archive with the program, models, ONNX Runtime, licenses and checksums, for machines without a
//! network.
//!
//! The program comes first, so that `tar xf BUNDLE predict-otron-9000` is quick; the checksums of everything before them
//! come last, in the format of `sha256sum`.

mod pack;
mod unpack;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

pub use pack::{BundleContents, pack};
pub use unpack::{UnpackedBundle, unpack};

/// Name of the program in a bundle.
const PROGRAM: &str = "predict-otron-9000";

/// Name of the file with the checksums.
const CHECKSUMS: &str = "SHA256SUMS";

/// Name of the description.
const DESCRIPTION: &str = "bundle.json";

/// Folder of the files that the program finds as its `--cache-dir`.
const CACHE: &str = "cache";

/// Folder of the licenses.
const LICENSES: &str = "licenses";

/// The description of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BundleDescription {
    /// Version of the program.
    version: String,
    /// Operating system and processor of the program, such as `linux-x86_64`.
    platform: String,
    /// Chat models, the default first.
    models: Vec<BundledModel>,
    /// The embedding model.
    embedding_model: BundledModel,
    /// The reranker, if there is one.
    rerank_model: Option<BundledModel>,
}

/// A model in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BundledModel {
    /// Its reference where it came from.
    reference: String,
    /// For a model that is not found by its reference: its file or folder, below the cache folder.
    local_main: Option<String>,
    /// Its license, if known.
    license: Option<String>,
}

/// The platform of this program.
fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The error of an `action` on a file that failed.
fn failed(action: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Config, format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::config::RegistryConfig;
    use crate::registry::Registry;

    fn registry(cache: &Path) -> Registry {
        Registry::new(RegistryConfig::for_folder(cache, true))
    }

    /// A bundle of two tiny models that lie outside of any cache.
    fn bundle(folder: &Path) -> PathBuf {
        let program = folder.join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let encoder = folder.join("encoder");
        fs::create_dir_all(&encoder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(Path::new("tests/data/tiny-encoders/bert").join(file), encoder.join(file)).unwrap();
        }
        fs::write(encoder.join("tokenizer.json"), "{}").unwrap();
        let archive = folder.join("bundle.tar");
        let contents = BundleContents {
            models: vec!["tests/data/tiny/llama".to_owned()],
            embedding_model: encoder.display().to_string(),
            rerank_model: None,
            has_onnx_runtime: false,
        };
        pack(&archive, &program, &contents, &registry(&folder.join("empty"))).unwrap();
        archive
    }

    #[test]
    fn a_bundle_holds_what_the_server_needs() {
        let folder = tempfile::tempdir().unwrap();
        let archive = bundle(folder.path());
        let target = folder.path().join("there");
        let unpacked = unpack(&archive, &target).unwrap();
        let config = fs::read_to_string(&unpacked.config).unwrap();
        assert!(config.contains("offline = true") && config.contains("llama"), "{config}");
        assert_eq!(fs::read_to_string(&unpacked.program).unwrap(), "#!/bin/sh\n");
        for file in ["licenses/LICENSE-MIT", "licenses/MODELS.txt", "SHA256SUMS", "bundle.json"] {
            assert!(target.join(file).is_file(), "{file}");
        }
        let found = registry(&target.join("cache"));
        let model = config.split('"').find(|text| text.ends_with("llama")).unwrap_or_default();
        assert!(found.resolve(model, crate::registry::ModelKind::Chat).is_ok(), "{model}");
        let again = unpack(&archive, &target).unwrap_err().to_string();
        assert!(again.contains("exists"), "{again}");
    }

    #[test]
    fn models_that_would_take_the_same_place_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let model = |parent: &str| {
            let model = folder.path().join(parent).join("model");
            fs::create_dir_all(&model).unwrap();
            for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                fs::write(model.join(file), parent).unwrap();
            }
            model.display().to_string()
        };
        let contents = BundleContents {
            models: vec![model("a")],
            embedding_model: model("b"),
            rerank_model: None,
            has_onnx_runtime: false,
        };
        let archive = folder.path().join("bundle.tar");
        let packed =
            pack(&archive, Path::new("Cargo.toml"), &contents, &registry(&folder.path().join("empty")));
        let message = packed.unwrap_err().to_string();
        assert!(message.contains("rename the folder") && !archive.exists(), "{message}");
    }

    #[test]
    fn a_damaged_bundle_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let archive = bundle(folder.path());
        let intact = fs::read(&archive).unwrap();
        let find =
            |text: &str| intact.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
        let mut changed = intact.clone();
        changed[find("#!/bin/sh")] = b'?';
        let mut foreign = intact.clone();
        let start = find(&platform());
        foreign[start..start + 5].copy_from_slice(b"plan9");
        let mut escaping = intact.clone();
        // The name in the header of an entry; its checksum no longer fits, either.
        let start = find("licenses/LICENSE-MIT");
        escaping[start..start + 9].copy_from_slice(b"../../../");
        for (bytes, reason) in [
            (changed, "SHA-256"),
            (intact[..intact.len() / 2].to_vec(), "cannot read"),
            (foreign, "SHA-256"),
            (escaping, "cannot read"),
            (b"no archive at all".repeat(100), "cannot read"),
        ] {
            fs::write(&archive, bytes).unwrap();
            let target = folder.path().join("there");
            let message = unpack(&archive, &target).unwrap_err().to_string();
            assert!(message.contains(reason), "{reason}: {message}");
            assert!(!target.exists());
            let left: Vec<_> =
                fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
            assert!(left.iter().all(|name| !name.to_string_lossy().contains("there")), "{left:?}");
        }
    }
}
