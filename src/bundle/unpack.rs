//! Unpacking a bundle, with every checksum verified.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::{BundleDescription, BundledModel, CACHE, CHECKSUMS, DESCRIPTION, PROGRAM, failed, platform};
use crate::config::{RegistryConfig, bundle_settings};
use crate::error::{Error, Kind, Result, quote};
use crate::registry::{HashingWriter, Registry, check_relative_path};

/// The longest list of checksums or description that is read.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// A bundle that has been unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackedBundle {
    /// The program.
    pub program: PathBuf,
    /// The config file for its `serve`.
    pub config: PathBuf,
    /// Number of files whose checksums were verified.
    pub n_files: usize,
}

/// Unpacks a bundle into a new folder. Nothing is left of a bundle that is damaged or for another platform.
///
/// # Errors
/// When the folder exists, the archive cannot be read, a file does not have its checksum, or one has none.
pub fn unpack(archive: &Path, folder: &Path) -> Result<UnpackedBundle> {
    if folder.exists() {
        return Err(failed("unpack into", folder, &"it exists already; choose another folder, or remove it"));
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| failed("create", parent, &e))?;
    // Removed when dropped, unless it is renamed.
    let partial = tempfile::Builder::new()
        .prefix(".unbundle-")
        // A service may run as another user.
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(|e| failed("write into", parent, &e))?;
    let sums = extract(archive, partial.path())?;
    verify(archive, partial.path(), &sums)?;
    let description = read_description(archive, partial.path())?;
    fs::rename(partial.path(), folder).map_err(|e| failed("create", folder, &e))?;
    let folder = folder.canonicalize().map_err(|e| failed("read", folder, &e))?;
    let cache = folder.join(CACHE);
    let registry = Registry::new(RegistryConfig::for_folder(&cache, true));
    for (name, sum) in sums.iter().filter(|(name, _)| name.starts_with(&format!("{CACHE}/"))) {
        registry.record_sha256(&folder.join(name), sum)?;
    }
    let config = folder.join("server.toml");
    let models: Vec<String> = description.models.iter().map(|model| reference_in(&cache, model)).collect();
    let settings = bundle_settings(
        &cache,
        &models,
        &reference_in(&cache, &description.embedding_model),
        description.rerank_model.as_ref().map(|model| reference_in(&cache, model)).as_deref(),
    );
    fs::write(&config, settings).map_err(|e| failed("write", &config, &e))?;
    Ok(UnpackedBundle { program: folder.join(PROGRAM), config, n_files: sums.len() - 1 })
}

/// The reference by which the model is found in an unpacked bundle.
fn reference_in(cache: &Path, model: &BundledModel) -> String {
    match &model.local_main {
        Some(main) => cache.join(main).display().to_string(),
        None => model.reference.clone(),
    }
}

/// Extracts all files, and returns the SHA-256 of each by its name.
fn extract(archive: &Path, folder: &Path) -> Result<BTreeMap<String, String>> {
    let cannot_read = |e: io::Error| failed("read", archive, &e);
    let file = File::open(archive).map_err(cannot_read)?;
    let mut tar = Archive::new(BufReader::new(file));
    let mut sums = BTreeMap::new();
    for entry in tar.entries().map_err(cannot_read)? {
        let mut entry = entry.map_err(cannot_read)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |reason: &str| failed("read", archive, &format!("its file `{}` {reason}", quote(&name)));
        if entry.header().entry_type() != EntryType::Regular {
            return Err(refuse("is no regular file"));
        }
        check_relative_path(&name).map_err(|_| refuse("has a name that is not allowed"))?;
        let path = folder.join(&name);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| failed("write", &path, &e))?;
        let mode = if name == PROGRAM { 0o755 } else { 0o644 };
        // A second file of the same name is refused, too.
        let output = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let mut output = HashingWriter::sha256(output.map_err(|e| failed("write", &path, &e))?);
        let n_written = io::copy(&mut entry, &mut output).map_err(|e| failed("copy", &path, &e))?;
        if n_written != entry.size() {
            return Err(refuse("is cut off"));
        }
        sums.insert(name, output.into_digest().hex().to_owned());
    }
    Ok(sums)
}

/// Checks that every file has its checksum, and that none is missing.
fn verify(archive: &Path, folder: &Path, sums: &BTreeMap<String, String>) -> Result<()> {
    let damaged = |reason: String| {
        let message = format!("{}: {reason}; copy the bundle again, or make a new one", archive.display());
        Error::new(Kind::Config, message)
    };
    let listed = read_text(&folder.join(CHECKSUMS))
        .map_err(|e| failed("read", archive, &format!("it has no {CHECKSUMS}: {e}")))?;
    let listed: BTreeMap<&str, &str> =
        listed.lines().filter_map(|line| line.split_once("  ").map(|(sum, name)| (name, sum))).collect();
    for (name, sum) in sums.iter().filter(|(name, _)| *name != CHECKSUMS) {
        match listed.get(name.as_str()) {
            Some(expected) if expected == sum => {}
            Some(_) => {
                return Err(damaged(format!("`{}` does not have the SHA-256 listed for it", quote(name))));
            }
            None => return Err(damaged(format!("`{}` has no SHA-256 in {CHECKSUMS}", quote(name)))),
        }
    }
    match listed.keys().chain([&PROGRAM, &DESCRIPTION]).find(|name| !sums.contains_key(**name)) {
        Some(missing) => Err(damaged(format!("`{}` is missing", quote(missing)))),
        None => Ok(()),
    }
}

fn read_description(archive: &Path, folder: &Path) -> Result<BundleDescription> {
    let text = read_text(&folder.join(DESCRIPTION)).and_then(|text| Ok(serde_json::from_str(&text)?));
    let description: BundleDescription =
        text.map_err(|e| failed("read", archive, &format!("its {DESCRIPTION}: {e}")))?;
    if description.platform != platform() {
        let message = format!(
            "{} is for {}, and this machine is {}; make a bundle on a machine like this one",
            archive.display(),
            quote(&description.platform),
            platform()
        );
        return Err(Error::new(Kind::Config, message));
    }
    Ok(description)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
