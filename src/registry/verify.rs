//! Is a file what it should be: digests, remembered checks, locks, and putting a file in place.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::progress::note;
use crate::error::{Error, Result};

/// What the bytes of a file must hash to; the text is lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// SHA-256 of the bytes; the hub's name for large files.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes, git's name for a file; the hub's for small ones.
    GitBlob(String),
}

impl Digest {
    /// The digest that a hub's `ETag` is, which its length tells.
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

    /// A hasher of this digest's kind for a file of `size_bytes`.
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

/// A digest in the making.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Hashes the rest of `reader`; gives the bytes read.
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

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Digest::GitBlob(hex(&hasher.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks files against digests and remembers the outcome, so that 100 MB are hashed once and not
/// at each start. A file counts as the one that was hashed while its size and modification time
/// stay the same.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// One small record per file that was hashed.
    folder: PathBuf,
}

/// The digest of the file at `path`.
fn hash(path: &Path, mut hasher: Hasher) -> io::Result<Digest> {
    hasher.update_from(&mut File::open(path)?)?;
    Ok(hasher.finish())
}

/// A file as it was when it was hashed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
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

    /// Whether the file at `path` has the digest.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_intact(&self, path: &Path, digest: &Digest) -> Result<bool> {
        self.check(path, digest).map_err(|error| io_error("read", path, &error))
    }

    /// Remembers that the file at `path` has the digest, having been hashed while it was written.
    pub fn remember(&self, path: &Path, digest: &Digest) {
        if let Ok(record) = Record::of(path, digest) {
            self.save(&record);
        }
    }

    /// The digest the file at `path` had when it was last hashed, whatever it is now.
    pub fn remembered(&self, path: &Path) -> Option<Digest> {
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
                // It stays, since that is what the file is checked by.
                Some(Record { digest: Digest::GitBlob(_), .. }) => hash(path, Hasher::sha256()),
                Some(known) if known == Record::of(path, &known.digest)? => Ok(known.digest),
                _ => {
                    let unhashed = Record::of(path, &Digest::Sha256(String::new()))?;
                    let digest = hash(path, Hasher::sha256())?;
                    self.save(&Record { digest: digest.clone(), ..unhashed });
                    Ok(digest)
                }
            }
        };
        digest().map(|digest| digest.hex().to_owned()).map_err(|error| io_error("read", path, &error))
    }

    fn check(&self, path: &Path, digest: &Digest) -> io::Result<bool> {
        // Taken before hashing: a write in between makes the record stale, not the answer wrong.
        let record = Record::of(path, digest)?;
        if self.load(&record.path).is_some_and(|known| known == record) {
            return Ok(true);
        }
        let is_intact = hash(path, digest.hasher(record.size_bytes))? == *digest;
        if is_intact {
            self.save(&record);
        }
        Ok(is_intact)
    }

    fn record_path(&self, path: &Path) -> PathBuf {
        self.folder.join(hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()))).with_extension("json")
    }

    fn load(&self, path: &Path) -> Option<Record> {
        let record: Record = serde_json::from_slice(&fs::read(self.record_path(path)).ok()?).ok()?;
        (record.path == path).then_some(record)
    }

    /// Without the record the file is only hashed again, so a read-only cache is no error.
    fn save(&self, record: &Record) {
        let Ok(text) = serde_json::to_vec(record) else { return };
        if let Err(error) = write_whole(&self.record_path(&record.path), &text) {
            tracing::debug!("cannot remember that {} was checked: {error}", record.path.display());
        }
    }
}

impl Record {
    fn of(path: &Path, digest: &Digest) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let digest = digest.clone();
        Ok(Self { path, size_bytes: metadata.len(), modified_ns: modified.as_nanos(), digest })
    }
}

/// Holds a lock file until it is dropped; waits while another process or thread holds it. `what`
/// is named while waiting.
///
/// # Errors
/// When the lock file cannot be made.
pub fn lock(path: &Path, what: &str) -> Result<File> {
    let take = || -> io::Result<File> {
        create_parent(path)?;
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        if file.try_lock().is_err() {
            note(&format!("waiting for another process that fetches {what}"));
            file.lock()?;
        }
        Ok(file)
    };
    take().map_err(|error| io_error("lock", path, &error))
}

/// Moves a file that is written in full to its place, surviving a crash at any moment: there is
/// either no file at `target` or all of it.
///
/// # Errors
/// When the file system refuses; `partial` is left as it was.
pub fn put_in_place(partial: &Path, target: &Path) -> io::Result<()> {
    File::open(partial)?.sync_all()?;
    fs::rename(partial, target)?;
    // Not every file system lets a folder be synced; the rename is atomic all the same.
    if let Some(Ok(folder)) = target.parent().map(File::open) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Writes a small file as a whole.
///
/// # Errors
/// When the file system refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_parent(path)?;
    let mut temporary = tempfile::Builder::new();
    // Caches may be shared between users, so the user's own mask decides who may read.
    #[cfg(unix)]
    temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = temporary.tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Makes the folder that `path` is to be in.
///
/// # Errors
/// When the file system refuses.
pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// An error of the file system, saying what was tried with which file.
pub fn io_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or pass --cache-dir with a folder on a larger disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; pass --cache-dir with a folder you may write to"
        }
        _ => "",
    };
    Error::registry(format!("cannot {doing} {}: {error}{remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones() {
        let digest = |digest: Digest, bytes: &[u8]| {
            let mut hasher = digest.hasher(bytes.len() as u64);
            hasher.update_from(&mut &*bytes).unwrap();
            hasher.finish()
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
    fn a_checked_file_is_not_hashed_again_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, b"hello\n").unwrap();
        let digest = Digest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let verifier = Verifier::new(&folder.path().join("cache"));
        assert!(verifier.is_intact(&path, &digest).unwrap());
        assert_eq!(verifier.remembered(&path), Some(digest.clone()));

        // Other bytes of the same size and time pass: the record is believed.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"jello\n").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(verifier.is_intact(&path, &digest).unwrap());

        // With a time of its own the change is seen.
        let later = modified + std::time::Duration::from_secs(1);
        File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!verifier.is_intact(&path, &digest).unwrap());
        assert!(verifier.is_intact(&folder.path().join("absent"), &digest).is_err());
    }
}
