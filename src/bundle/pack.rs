//! Packing a bundle.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::{
    BundleDescription, BundledModel, CACHE, CHECKSUMS, DESCRIPTION, LICENSES, PROGRAM, failed, platform,
};
use crate::embeddings::EmbeddingSource;
use crate::error::{Error, Kind, Result};
use crate::registry::{ExportedFile, ExportedModel, Hasher, ModelKind, Registry};

/// The licenses of the program.
const PROGRAM_LICENSES: [(&str, &str); 2] = [
    ("LICENSE-MIT", include_str!("../../LICENSE-MIT")),
    ("LICENSE-APACHE", include_str!("../../LICENSE-APACHE")),
];

/// The contents of a bundle besides the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleContents {
    /// References of the chat models, the default first.
    pub models: Vec<String>,
    /// Reference of the embedding model.
    pub embedding_model: String,
    /// Reference of the reranker.
    pub rerank_model: Option<String>,
    /// Whether ONNX Runtime is in it, for embedding models that the built-in encoder does not support.
    pub has_onnx_runtime: bool,
}

/// Writes a bundle with `program`, and returns its size in bytes. Models that are not on disk are downloaded first.
///
/// # Errors
/// When a model cannot be had, or a file cannot be read or written.
pub fn pack(archive: &Path, program: &Path, contents: &BundleContents, registry: &Registry) -> Result<u64> {
    let mut exported = Vec::new();
    let mut bundled = |reference: &str, kind| -> Result<BundledModel> {
        let (model, license) = find(reference, kind, registry)?;
        let local_main = model.local_main.clone();
        exported.extend(model.files);
        Ok(BundledModel { reference: reference.to_owned(), local_main, license })
    };
    let description = BundleDescription {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: platform(),
        models: contents.models.iter().map(|name| bundled(name, ModelKind::Chat)).collect::<Result<_>>()?,
        embedding_model: bundled(&contents.embedding_model, ModelKind::Embedding)?,
        rerank_model: contents
            .rerank_model
            .as_deref()
            .map(|name| bundled(name, ModelKind::Reranker))
            .transpose()?,
    };
    if contents.has_onnx_runtime {
        let library = registry.onnx_runtime()?;
        let files = [("library".to_owned(), library.clone())].into();
        exported.extend(registry.export("onnxruntime", &library, &files)?.files);
    }
    // Two models may share files.
    exported.sort_by(|a, b| a.place.cmp(&b.place));
    exported.dedup();
    if let Some(pair) = exported.windows(2).find(|pair| pair[0].place == pair[1].place) {
        let message = format!(
            "{} and {} would be the same file in the bundle; rename the folder of one of the models",
            pair[0].path.display(),
            pair[1].path.display()
        );
        return Err(Error::new(Kind::Config, message));
    }
    let partial = archive.with_added_extension("partial");
    write(&partial, program, &description, &exported).inspect_err(|_| {
        // A failure to remove what could not be written is no further news.
        let _ = fs::remove_file(&partial);
    })?;
    fs::rename(&partial, archive).map_err(|e| failed("write", archive, &e))?;
    Ok(fs::metadata(archive).map_or(0, |metadata| metadata.len()))
}

/// The files of a model, and its license.
fn find(reference: &str, kind: ModelKind, registry: &Registry) -> Result<(ExportedModel, Option<String>)> {
    if kind == ModelKind::Chat {
        let model = registry.resolve(reference, kind)?;
        return Ok((registry.export(&model.id, &model.main, &model.files)?, model.license));
    }
    let source = match kind {
        ModelKind::Reranker => EmbeddingSource::locate_reranker(reference, registry)?,
        _ => EmbeddingSource::locate(reference, registry)?,
    };
    let exported = registry.export(source.id(), source.main(), source.files())?;
    Ok((exported, source.license().map(str::to_owned)))
}

fn write(path: &Path, program: &Path, description: &BundleDescription, files: &[ExportedFile]) -> Result<()> {
    let file = File::create(path).map_err(|e| failed("write", path, &e))?;
    let mut bundle = BundleWriter { tar: Builder::new(BufWriter::new(file)), checksums: String::new() };
    let cannot_write = |e: io::Error| failed("write", path, &e);
    bundle.append_file(PROGRAM, program, 0o755)?;
    let json = serde_json::to_vec_pretty(description).map_err(|e| Error::internal(e.to_string()))?;
    bundle.append(DESCRIPTION, 0o644, json.len() as u64, &*json).map_err(cannot_write)?;
    for (name, text) in PROGRAM_LICENSES {
        let name = format!("{LICENSES}/{name}");
        bundle.append(&name, 0o644, text.len() as u64, text.as_bytes()).map_err(cannot_write)?;
    }
    let models = model_licenses(description);
    let name = format!("{LICENSES}/MODELS.txt");
    bundle.append(&name, 0o644, models.len() as u64, models.as_bytes()).map_err(cannot_write)?;
    for file in files {
        bundle.append_file(&format!("{CACHE}/{}", file.place), &file.path, 0o644)?;
    }
    let checksums = std::mem::take(&mut bundle.checksums);
    bundle.append(CHECKSUMS, 0o644, checksums.len() as u64, checksums.as_bytes()).map_err(cannot_write)?;
    let mut file = bundle.tar.into_inner().map_err(cannot_write)?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(cannot_write)
}

/// The text that lists the models and their licenses.
fn model_licenses(description: &BundleDescription) -> String {
    let BundleDescription { models, embedding_model, rerank_model, .. } = description;
    let mut text = "The models of this bundle and their licenses. ONNX Runtime, if included, is under the MIT license of \
                    Microsoft Corporation.\n\n"
        .to_owned();
    for model in models.iter().chain([embedding_model]).chain(rerank_model) {
        let license = model.license.as_deref().unwrap_or("not known; see the model's page");
        // A string can always be written to.
        let _ = writeln!(text, "{}: {license}", model.reference);
    }
    text
}

struct BundleWriter {
    tar: Builder<BufWriter<File>>,
    checksums: String,
}

impl BundleWriter {
    /// Appends a file of this machine.
    fn append_file(&mut self, name: &str, path: &Path, mode: u32) -> Result<()> {
        let file = File::open(path).map_err(|e| failed("read", path, &e))?;
        let n_bytes = file.metadata().map_err(|e| failed("read", path, &e))?.len();
        self.append(name, mode, n_bytes, file).map_err(|e| failed("copy", path, &e))
    }

    /// Appends `n_bytes` as a file called `name`, and notes their checksum.
    fn append(&mut self, name: &str, mode: u32, n_bytes: u64, bytes: impl Read) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(mode);
        header.set_size(n_bytes);
        let mut hashed = HashedReader { inner: bytes.take(n_bytes), hasher: Hasher::sha256(), n_read: 0 };
        self.tar.append_data(&mut header, name, &mut hashed)?;
        if hashed.n_read != n_bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        // A string can always be written to.
        let _ = writeln!(self.checksums, "{}  {name}", hashed.hasher.into_digest().hex());
        Ok(())
    }
}

/// A reader that hashes what is read from it.
struct HashedReader<R> {
    inner: R,
    hasher: Hasher,
    n_read: u64,
}

impl<R: Read> Read for HashedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n_read]);
        self.n_read += n_read as u64;
        Ok(n_read)
    }
}
