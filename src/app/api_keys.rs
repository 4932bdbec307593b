//! API keys of clients.

use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Kind, Result};

/// The keys that clients may authenticate with. Without keys, everyone has access. Clones share them.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// Digests of the keys, so that the time of a comparison reveals nothing about a key, not even its length. One that
    /// was removed leaves its place empty: an index stands for one key as long as the server runs.
    digests: Arc<RwLock<Vec<Option<KeyDigest>>>>,
}

/// SHA-256 of a key.
type KeyDigest = [u8; 32];

impl ApiKeys {
    /// The given keys and those of a file with one key per line; empty lines and lines that begin with `#` are
    /// skipped.
    ///
    /// # Errors
    /// When a key is empty or has characters that a header cannot contain, or the file cannot be read or has no key.
    pub fn new(keys: &[String], file: Option<&Path>) -> Result<Self> {
        let config = |message: String| Error::new(Kind::Config, message);
        let mut all: Vec<String> = keys.iter().map(|key| key.trim().to_owned()).collect();
        if let Some(file) = file {
            let name = file.display();
            let text = fs::read_to_string(file)
                .map_err(|e| config(format!("cannot read the keys of --api-key-file {name}: {e}")))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let n_before = all.len();
            all.extend(lines.map(str::to_owned));
            if all.len() == n_before {
                return Err(config(format!("--api-key-file {name} has no key; write one per line")));
            }
        }
        // The message must not contain the key.
        if all.iter().any(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(config(
                "an API key is empty or has characters other than visible ASCII; choose another, or unset \
                 --api-key and PREDICT_OTRON_API_KEY to serve without keys"
                    .to_owned(),
            ));
        }
        let digests = all.iter().map(|key| Some(Sha256::digest(key).into())).collect();
        Ok(Self { digests: Arc::new(RwLock::new(digests)) })
    }

    /// Accepts the keys of `newer` from now on, and no others.
    ///
    /// # Errors
    /// When only one of both has keys: whether they are required is decided at start.
    pub fn replace(&self, newer: &Self) -> Result<()> {
        if self.are_required() != newer.are_required() {
            let message = "keys cannot be required, or no longer, while the server runs; restart it";
            return Err(Error::new(Kind::Config, message));
        }
        let newer = newer.digests().clone();
        let mut digests = self.digests.write().unwrap_or_else(PoisonError::into_inner);
        let added: Vec<_> = newer.iter().filter(|key| !digests.contains(key)).copied().collect();
        for place in digests.iter_mut().filter(|key| !newer.contains(key)) {
            *place = None;
        }
        digests.extend(added);
        Ok(())
    }

    /// Whether clients must send a key.
    pub fn are_required(&self) -> bool {
        !self.digests().is_empty()
    }

    /// A digest of all keys in their order, which identifies what an index means.
    pub fn list_digest(&self) -> [u8; 32] {
        let all: Vec<KeyDigest> = self.digests().iter().flatten().copied().collect();
        Sha256::digest(all.as_flattened()).into()
    }

    /// The digest of the key of this index, which stays the same when others are added or removed.
    pub fn digest(&self, index: usize) -> Option<KeyDigest> {
        self.digests().get(index).copied().flatten()
    }

    fn digests(&self) -> RwLockReadGuard<'_, Vec<Option<KeyDigest>>> {
        self.digests.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of `key` among the keys, if it is one. Takes the same time for any key of the same length.
    pub fn index_of(&self, key: &[u8]) -> Option<usize> {
        let shown: KeyDigest = Sha256::digest(key).into();
        let digests = self.digests();
        let mut found = u64::MAX;
        for (index, own) in digests.iter().enumerate().filter_map(|(index, own)| Some((index, own.as_ref()?)))
        {
            found.conditional_assign(&(index as u64), own.ct_eq(&shown));
        }
        usize::try_from(found).ok().filter(|&index| index < digests.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn keys_come_from_flags_and_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# the team's\n  sk-b  \n\nsk-c").unwrap();
        let keys = ApiKeys::new(&["sk-a".to_owned()], Some(file.path())).unwrap();
        for (index, key) in ["sk-a", "sk-b", "sk-c"].into_iter().enumerate() {
            assert_eq!(keys.index_of(key.as_bytes()), Some(index), "{key}");
        }
        for key in ["", "sk-", "sk-aa", "sk-A", "# the team's"] {
            assert_eq!(keys.index_of(key.as_bytes()), None, "{key}");
        }
        assert!(keys.are_required() && !ApiKeys::default().are_required());
    }

    #[test]
    fn replaced_keys_keep_their_index() {
        let new =
            |keys: &[&str]| ApiKeys::new(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), None);
        let keys = new(&["a", "b"]).unwrap();
        keys.replace(&new(&["c", "b"]).unwrap()).unwrap();
        assert_eq!(["a", "b", "c"].map(|key| keys.index_of(key.as_bytes())), [None, Some(1), Some(2)]);
        assert_eq!((keys.digest(0), keys.digest(2)), (None, new(&["c"]).unwrap().digest(0)));
        // A key that comes back gets a new place: what its old one had belongs to nobody.
        keys.replace(&new(&["a"]).unwrap()).unwrap();
        assert_eq!(["a", "b"].map(|key| keys.index_of(key.as_bytes())), [Some(3), None]);
        assert!(keys.replace(&ApiKeys::default()).is_err() && ApiKeys::default().replace(&keys).is_err());
        assert!(keys.are_required());
    }

    #[test]
    fn invalid_keys_are_refused_without_being_printed() {
        let refusal = |key: &str| ApiKeys::new(&[key.to_owned()], None).err().unwrap().to_string();
        for key in ["", "   ", "two words", "schlüssel"] {
            let message = refusal(key);
            assert!(
                message.contains("API key") && (key.trim().is_empty() || !message.contains(key)),
                "{message}"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(ApiKeys::new(&[], Some(file.path())).err().unwrap().to_string().contains(path));
        assert!(
            ApiKeys::new(&[], Some(Path::new("no/such/file"))).err().unwrap().to_string().contains("no/such")
        );
    }
}
