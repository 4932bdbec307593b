//! File integrity: digests, a record of verified files, file locks and atomic writes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::progress::notify;
use crate::error::{Error, Result};

/// The digest of a file, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// SHA-256 of the bytes: the hub's ETag of large files.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes, git's object id: the hub's ETag of small files.
    GitBlob(String),
}

impl Digest {
    /// Reads the `ETag` header of the hub, whose length identifies the algorithm.
    pub fn from_etag(etag: &str) -> Option<Self> {
        let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match etag.len() {
            64 if is_hex => Some(Self::Sha256(etag.to_ascii_lowercase())),
            40 if is_hex => Some(Self::GitBlob(etag.to_ascii_lowercase())),
            _ => None,
        }
    }

    /// The digest in hex.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// The algorithm's name, for messages.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git SHA-1",
        }
    }

    /// A hasher of the same algorithm, for a file of `size_bytes`.
    pub fn hasher(&self, size_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => {
                let mut sha1 = Sha1::new();
                sha1.update(format!("blob {size_bytes}\0"));
                Hasher::GitBlob(sha1)
            }
        }
    }
}

/// Computes a [`Digest`] incrementally.
#[derive(Clone)]
pub enum Hasher {
    /// Computes [`Digest::Sha256`].
    Sha256(Sha256),
    /// Computes [`Digest::GitBlob`].
    GitBlob(Sha1),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Hashes the rest of `reader`, and returns the number of bytes read.
    ///
    /// # Errors
    /// When reading fails.
    pub fn update_from(&mut self, reader: &mut impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; 1 << 18];
        let mut n_bytes = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(n_bytes),
                Ok(n) => {
                    self.update(&buffer[..n]);
                    n_bytes += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The digest of all bytes added.
    pub fn into_digest(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Digest::GitBlob(hex(&hasher.finalize())),
        }
    }
}

/// A writer that hashes its bytes.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> HashingWriter<W> {
    /// A writer to `inner` that computes the SHA-256.
    pub fn sha256(inner: W) -> Self {
        Self { inner, hasher: Hasher::sha256() }
    }

    /// The digest of everything written.
    pub fn into_digest(self) -> Digest {
        self.hasher.into_digest()
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Verifies files against digests, and records the outcome, so that large files are not hashed at every start. A
/// file counts as unchanged while its size and modification time stay the same.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Holds one [`HashRecord`] per hashed file.
    folder: PathBuf,
}

/// Hashes the file at `path`.
fn hash_file(path: &Path, mut hasher: Hasher) -> io::Result<Digest> {
    hasher.update_from(&mut File::open(path)?)?;
    Ok(hasher.into_digest())
}

/// The state of a file when it was hashed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HashRecord {
    path: PathBuf,
    size_bytes: u64,
    modified_ns: u128,
    digest: Digest,
}

impl Verifier {
    /// A verifier that keeps its records under `cache_dir`.
    pub fn new(cache_dir: &Path) -> Self {
        Self { folder: cache_dir.join("verified") }
    }

    /// Whether the file at `path` has the given digest.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_intact(&self, path: &Path, digest: &Digest) -> Result<bool> {
        self.verify(path, digest).map_err(|error| io_error("read", path, &error))
    }

    /// Whether the file at `path` has the given digest, hashed now whatever is on record. A record of a file that has
    /// another digest is removed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_intact_now(&self, path: &Path, digest: &Digest) -> Result<bool> {
        let verify = || {
            let path = path.canonicalize()?;
            let is_intact = hash_file(&path, digest.hasher(fs::metadata(&path)?.len()))? == *digest;
            if !is_intact {
                let _ = fs::remove_file(self.record_path(&path));
            }
            Ok(is_intact)
        };
        verify().map_err(|error| io_error("read", path, &error))
    }

    /// Records the digest of the file at `path`, which was hashed while it was written.
    pub fn record(&self, path: &Path, digest: &Digest) {
        if let Ok(record) = HashRecord::for_file(path, digest) {
            self.save(&record);
        }
    }

    /// The recorded digest of the file at `path`, even if the file has changed since.
    pub fn recorded(&self, path: &Path) -> Option<Digest> {
        let path = path.canonicalize().ok()?;
        self.load(&path).map(|record| record.digest)
    }

    /// The SHA-256 of the file at `path` in hex.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn sha256(&self, path: &Path) -> Result<String> {
        let digest = || -> io::Result<Digest> {
            match self.load(&path.canonicalize()?) {
                // The git digest stays on record, since the file is verified by it.
                Some(HashRecord { digest: Digest::GitBlob(_), .. }) => hash_file(path, Hasher::sha256()),
                Some(known) if known == HashRecord::for_file(path, &known.digest)? => Ok(known.digest),
                _ => {
                    let unhashed = HashRecord::for_file(path, &Digest::Sha256(String::new()))?;
                    let digest = hash_file(path, Hasher::sha256())?;
                    self.save(&HashRecord { digest: digest.clone(), ..unhashed });
                    Ok(digest)
                }
            }
        };
        digest().map(|digest| digest.hex().to_owned()).map_err(|error| io_error("read", path, &error))
    }

    fn verify(&self, path: &Path, digest: &Digest) -> io::Result<bool> {
        // Read the file's state before hashing: a write in between then invalidates the record.
        let record = HashRecord::for_file(path, digest)?;
        if self.load(&record.path).is_some_and(|known| known == record) {
            return Ok(true);
        }
        let is_intact = hash_file(path, digest.hasher(record.size_bytes))? == *digest;
        if is_intact {
            self.save(&record);
        }
        Ok(is_intact)
    }

    fn record_path(&self, path: &Path) -> PathBuf {
        self.folder.join(hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()))).with_extension("json")
    }

    fn load(&self, path: &Path) -> Option<HashRecord> {
        let record: HashRecord = serde_json::from_slice(&fs::read(self.record_path(path)).ok()?).ok()?;
        (record.path == path).then_some(record)
    }

    /// Saves a record. Failing is not an error: the file is hashed again next time.
    fn save(&self, record: &HashRecord) {
        let Ok(text) = serde_json::to_vec(record) else { return };
        if let Err(error) = write_atomically(&self.record_path(&record.path), &text) {
            tracing::debug!("cannot record the digest of {}: {error}", record.path.display());
        }
    }
}

impl HashRecord {
    fn for_file(path: &Path, digest: &Digest) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let digest = digest.clone();
        Ok(Self { path, size_bytes: metadata.len(), modified_ns: modified.as_nanos(), digest })
    }
}

/// Acquires a file lock, which is released when the returned file is dropped. Waits while another process or
/// thread holds it, and says so with the name `what`.
///
/// # Errors
/// When the lock file cannot be created.
pub fn lock_file(path: &Path, what: &str) -> Result<File> {
    let acquire = || -> io::Result<File> {
        create_parent(path)?;
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        if file.try_lock().is_err() {
            notify(&format!("waiting for another process that downloads {what}"));
            file.lock()?;
        }
        Ok(file)
    };
    acquire().map_err(|error| io_error("lock", path, &error))
}

/// Moves a completely written file to `target` atomically: a crash at any moment leaves there either no file or
/// the whole file.
///
/// # Errors
/// When the file system refuses; `partial` is then left as it was.
pub fn persist(partial: &Path, target: &Path) -> io::Result<()> {
    File::open(partial)?.sync_all()?;
    fs::rename(partial, target)?;
    // Some file systems cannot sync a folder; the rename is atomic anyway.
    if let Some(Ok(folder)) = target.parent().map(File::open) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Writes a small file atomically.
///
/// # Errors
/// When the file system refuses.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_parent(path)?;
    let mut temporary = tempfile::Builder::new();
    // Caches may be shared between users: the umask decides who may read.
    #[cfg(unix)]
    temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = temporary.tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Creates the parent folder of `path`.
///
/// # Errors
/// When the file system refuses.
pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// An error of the file system during an `action` on a file.
pub fn io_error(action: &str, path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or pass a folder on a larger disk as --cache-dir"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; pass a writable folder as --cache-dir"
        }
        _ => "",
    };
    Error::registry(format!("cannot {action} {}: {error}{remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_published_values() {
        let digest = |digest: Digest, bytes: &[u8]| {
            let mut hasher = digest.hasher(bytes.len() as u64);
            hasher.update_from(&mut &*bytes).unwrap();
            hasher.into_digest()
        };
        let sha256 = digest(Digest::Sha256(String::new()), b"abc");
        assert_eq!(sha256.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::from_etag(sha256.hex()), Some(sha256));
        // `printf 'hello\n' | git hash-object --stdin`
        let blob = digest(Digest::GitBlob(String::new()), b"hello\n");
        assert_eq!(blob.hex(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(Digest::from_etag(blob.hex()), Some(blob));
        assert_eq!(Digest::from_etag("../../../etc/passwd"), None);
    }

    #[test]
    fn a_verified_file_is_hashed_again_only_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, b"hello\n").unwrap();
        let digest = Digest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let verifier = Verifier::new(&folder.path().join("cache"));
        assert!(verifier.is_intact(&path, &digest).unwrap());
        assert_eq!(verifier.recorded(&path), Some(digest.clone()));

        // Other bytes with the same size and time go unnoticed.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"jello\n").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(verifier.is_intact(&path, &digest).unwrap());

        // A new modification time reveals the change.
        let later = modified + std::time::Duration::from_secs(1);
        File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!verifier.is_intact(&path, &digest).unwrap());
        assert!(verifier.is_intact(&folder.path().join("absent"), &digest).is_err());
    }
}
