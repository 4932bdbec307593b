//! API keys of clients.

use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Kind, Result, quote};

/// The keys that clients may authenticate with. Without keys, everyone has access. Clones share them.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// Digests of the keys, so that the time of a comparison reveals nothing about a key, not even its length. One that
    /// was removed leaves its place empty: an index stands for one key as long as the server runs.
    keys: Arc<RwLock<Vec<Option<ApiKey>>>>,
}

/// SHA-256 of a key.
type KeyDigest = [u8; 32];

/// A key that clients may authenticate with.
#[derive(Clone)]
struct ApiKey {
    digest: KeyDigest,
    /// Name of the key's account.
    name: Arc<str>,
}

impl ApiKey {
    /// A key and its name. A key without one is named by the beginning of its digest.
    fn new(key: &str, name: Option<&str>) -> Self {
        let digest: KeyDigest = Sha256::digest(key).into();
        let unnamed = || digest[..4].iter().fold("key_".to_owned(), |name, byte| format!("{name}{byte:02x}"));
        Self { digest, name: name.map_or_else(unnamed, str::to_owned).into() }
    }
}

/// The index of a tenant's key, if its name has one.
pub fn key_index(tenant: &str) -> Option<usize> {
    tenant.strip_prefix("key:")?.parse().ok()
}

/// The longest name of a key.
const MAX_NAME_BYTES: usize = 64;

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= MAX_NAME_BYTES && text.bytes().all(is_allowed)
}

impl ApiKeys {
    /// The given keys and those of a file with one key per line, perhaps followed by a space and its name; empty lines and
    /// lines that begin with `#` are skipped. Keys with the same name share an account.
    ///
    /// # Errors
    /// When a key is empty or has characters that a header cannot contain, a name has characters other than letters,
    /// digits, `-`, `_` and `.`, or the file cannot be read or has no key.
    pub fn new(keys: &[String], file: Option<&Path>) -> Result<Self> {
        let config = |message: String| Error::new(Kind::Config, message);
        let mut all: Vec<(&str, Option<&str>)> = keys.iter().map(|key| (key.trim(), None)).collect();
        let text;
        if let Some(file) = file {
            let name = file.display();
            text = fs::read_to_string(file)
                .map_err(|e| config(format!("cannot read the keys of --api-key-file {name}: {e}")))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let n_before = all.len();
            all.extend(lines.map(|line| match line.split_once([' ', '\t']) {
                Some((key, name)) => (key, Some(name.trim())),
                None => (line, None),
            }));
            if all.len() == n_before {
                return Err(config(format!("--api-key-file {name} has no key; write one per line")));
            }
        }
        // The message must not contain the key.
        if all.iter().any(|(key, _)| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(config(
                "an API key is empty or has characters other than visible ASCII; choose another, or unset \
                 --api-key and PREDICT_OTRON_API_KEY to serve without keys"
                    .to_owned(),
            ));
        }
        if let Some(name) = all.iter().filter_map(|(_, name)| *name).find(|name| !is_name(name)) {
            let message = format!(
                "`{}` cannot be the name of an API key; use up to {MAX_NAME_BYTES} letters, digits, -, _ and .",
                quote(name)
            );
            return Err(config(message));
        }
        // A key that is given twice is one, under the name that it has once.
        let mut names: Vec<(&str, Option<&str>)> = Vec::new();
        for (key, name) in all {
            match names.iter_mut().find(|(known, _)| *known == key) {
                None => names.push((key, name)),
                Some((_, known)) if known.is_none() || name.is_none() || *known == name => {
                    *known = known.or(name)
                }
                Some((_, known)) => {
                    let message = format!(
                        "one API key has the names `{}` and `{}`; give it one",
                        known.unwrap_or_default(),
                        name.unwrap_or_default()
                    );
                    return Err(config(message));
                }
            }
        }
        let keys = names.into_iter().map(|(key, name)| Some(ApiKey::new(key, name))).collect();
        Ok(Self { keys: Arc::new(RwLock::new(keys)) })
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
        let newer = newer.keys().clone();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let find = |keys: &[Option<ApiKey>], wanted: &ApiKey| {
            keys.iter().flatten().find(|key| key.digest == wanted.digest).cloned()
        };
        let added: Vec<_> =
            newer.iter().flatten().filter(|key| find(&keys, key).is_none()).cloned().map(Some).collect();
        for place in keys.iter_mut() {
            // Its name may be another.
            *place = place.as_ref().and_then(|key| find(&newer, key));
        }
        keys.extend(added);
        Ok(())
    }

    /// Whether clients must send a key.
    pub fn are_required(&self) -> bool {
        !self.keys().is_empty()
    }

    /// A digest of all keys in their order, which identifies what an index means.
    pub fn list_digest(&self) -> [u8; 32] {
        let all: Vec<KeyDigest> = self.keys().iter().flatten().map(|key| key.digest).collect();
        Sha256::digest(all.as_flattened()).into()
    }

    /// The digest of the key of this index, which stays the same when others are added or removed.
    pub fn digest(&self, index: usize) -> Option<KeyDigest> {
        self.keys().get(index)?.as_ref().map(|key| key.digest)
    }

    /// The name of the key of this index.
    pub fn name(&self, index: usize) -> Option<Arc<str>> {
        self.keys().get(index)?.as_ref().map(|key| key.name.clone())
    }

    /// The names of all keys.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.keys().iter().flatten().map(|key| key.name.clone()).collect()
    }

    /// The name of the key whose digest `is_meant` accepts.
    pub fn name_by_digest(&self, is_meant: impl Fn(&[u8; 32]) -> bool) -> Option<Arc<str>> {
        self.keys().iter().flatten().find(|key| is_meant(&key.digest)).map(|key| key.name.clone())
    }

    fn keys(&self) -> RwLockReadGuard<'_, Vec<Option<ApiKey>>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of `key` among the keys, if it is one. Takes the same time for any key of the same length.
    pub fn index_of(&self, key: &[u8]) -> Option<usize> {
        let shown: KeyDigest = Sha256::digest(key).into();
        let keys = self.keys();
        let mut found = u64::MAX;
        for (index, own) in keys.iter().enumerate().filter_map(|(index, own)| Some((index, own.as_ref()?))) {
            found.conditional_assign(&(index as u64), own.digest.ct_eq(&shown));
        }
        usize::try_from(found).ok().filter(|&index| index < keys.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn keys_come_from_flags_and_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# the team's\n  sk-b  \n\nsk-c\tteam-c").unwrap();
        let keys = ApiKeys::new(&["sk-a".to_owned()], Some(file.path())).unwrap();
        for (index, key) in ["sk-a", "sk-b", "sk-c"].into_iter().enumerate() {
            assert_eq!(keys.index_of(key.as_bytes()), Some(index), "{key}");
        }
        for key in ["", "sk-", "sk-aa", "sk-A", "# the team's"] {
            assert_eq!(keys.index_of(key.as_bytes()), None, "{key}");
        }
        assert!(keys.are_required() && !ApiKeys::default().are_required());
        let names = keys.names();
        assert!(names[0].starts_with("key_") && names[0].len() == 12 && names[0] != names[1], "{names:?}");
        assert_eq!(keys.name(2).as_deref(), Some("team-c"));
    }

    #[test]
    fn a_key_may_get_another_name() {
        let keys = |line: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            writeln!(file, "{line}").unwrap();
            ApiKeys::new(&[], Some(file.path()))
        };
        let used = keys("sk-a old").unwrap();
        used.replace(&keys("sk-a new.name_1").unwrap()).unwrap();
        assert_eq!((used.index_of(b"sk-a"), used.name(0).as_deref()), (Some(0), Some("new.name_1")));
        assert_eq!(keys("sk-a\nsk-a once").unwrap().names(), ["once".into()]);
        assert!(keys("sk-a one\nsk-a two").err().unwrap().to_string().contains("`one` and `two`"));
        for line in ["sk-a two words", "sk-a näme", &format!("sk-a {}", "n".repeat(65))] {
            let message = keys(line).err().unwrap().to_string();
            assert!(message.contains("name of an API key") && !message.contains("sk-a"), "{message}");
        }
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
