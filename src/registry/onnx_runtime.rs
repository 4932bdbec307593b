//! The ONNX Runtime library: third-party machine code that becomes part of this process, so only files with a known
//! digest are loaded.

use std::env::consts::{ARCH, OS};
use std::path::PathBuf;

use super::Registry;
use super::layout::WantedFile;
use super::verify::Digest;
use crate::error::{Error, Result};

/// The ONNX Runtime version to download. It matches the API version that the `ort` crate is built for.
const ONNX_RUNTIME_VERSION: &str = "1.32.0";

/// A build of the library, as it is in the wheels of [`ONNX_RUNTIME_VERSION`]. The wheels for all Python versions of a
/// platform hold the same file.
struct Library {
    os: &'static str,
    arch: &'static str,
    path: &'static str,
    sha256: &'static str,
}

/// Digests of the files in the package index, taken on 2026-11-29.
const LIBRARIES: [Library; 3] = [
    Library {
        os: "linux",
        arch: "x86_64",
        path: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        sha256: "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    },
    Library {
        os: "linux",
        arch: "aarch64",
        path: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        sha256: "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    },
    Library {
        os: "macos",
        arch: "aarch64",
        path: "onnxruntime/capi/libonnxruntime.1.32.0.dylib",
        sha256: "fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7",
    },
];

impl Registry {
    /// The ONNX Runtime library for this platform, from the `onnxruntime` wheel. The file is hashed each time, since
    /// it is about to be run.
    ///
    /// # Errors
    /// When no digest is known for this platform, or a file with that digest is neither on disk nor in the wheel that
    /// pip downloads.
    pub fn onnx_runtime(&self) -> Result<PathBuf> {
        let library = LIBRARIES.iter().find(|library| (library.os, library.arch) == (OS, ARCH));
        let library = library.ok_or_else(|| {
            Error::registry(format!(
                "no ONNX Runtime of known content exists for {OS} on {ARCH}; install version {ONNX_RUNTIME_VERSION} \
                 and set ORT_DYLIB_PATH to its library"
            ))
        })?;
        self.verified_library("onnxruntime", ONNX_RUNTIME_VERSION, library)
    }

    fn verified_library(&self, package: &str, version: &str, library: &Library) -> Result<PathBuf> {
        let digest = Digest::Sha256(library.sha256.to_owned());
        let wanted = |_: &[String]| {
            Ok(vec![WantedFile {
                name: "library".into(),
                path: library.path.to_owned(),
                sha256: Some(library.sha256.to_owned()),
                optional: false,
            }])
        };
        for _ in 0..2 {
            let mut found = self.wheel(package, version).get(&wanted)?;
            let path = found
                .remove("library")
                .ok_or_else(|| Error::internal("the wheel did not return the ONNX Runtime library"))?;
            if self.verifier.is_intact_now(&path, &digest)? {
                return Ok(path);
            }
            // Replaced without a trace in its size and time: the next round extracts it again.
        }
        Err(Error::registry(format!(
            "`{}` of the wheel {package}=={version} is changed by another program; set ORT_DYLIB_PATH to a library \
             that you trust",
            library.path
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;
    use crate::config::RegistryConfig;

    /// The SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn registry(cache: &Path) -> Registry {
        Registry::new(RegistryConfig::for_folder(cache, true))
    }

    #[test]
    fn a_library_that_was_replaced_without_a_trace_is_not_loaded() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("wheels/ort-1");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".contents.json"), r#"["lib.so"]"#).unwrap();
        let path = folder.join("lib.so");
        fs::write(&path, b"abc").unwrap();
        let (registry, library) =
            (registry(cache.path()), Library { os: OS, arch: ARCH, path: "lib.so", sha256: ABC });
        assert_eq!(registry.verified_library("ort", "1", &library).unwrap(), path);

        // Other bytes with the same size and time.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"abd").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        let error = registry.verified_library("ort", "1", &library).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
}
