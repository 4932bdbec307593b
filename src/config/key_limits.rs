//! Limits of API keys: how many requests and tokens per minute, and how many requests at the same time. They come from
//! the file of `--limits`.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Kind, Result};

/// The limits of one key; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests per minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute, of prompts and responses together.
    pub tokens_per_minute: Option<u64>,
    /// Requests in progress.
    pub concurrent_requests: Option<u64>,
}

/// The limits of all keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLimitsTable {
    default: KeyLimits,
    named: BTreeMap<String, KeyLimits>,
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    #[serde(default)]
    default: WrittenLimits,
    #[serde(default)]
    keys: BTreeMap<String, WrittenLimits>,
}

/// The limits of a key as written; what is left out is as in `[default]`.
#[derive(Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenLimits {
    requests_per_minute: Option<WrittenLimit>,
    tokens_per_minute: Option<WrittenLimit>,
    concurrent_requests: Option<WrittenLimit>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a number from 1 on, or \"unlimited\"")]
enum WrittenLimit {
    Count(NonZeroU64),
    Word(Unlimited),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Unlimited {
    Unlimited,
}

impl KeyLimitsTable {
    /// Reads a limits file in TOML: a table `[default]`, and one for each key by name, `[keys.NAME]`.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has fields that are none.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(Kind::Config, format!("cannot use the limits file {}: {e}", path.display()))
        };
        let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
        Self::parse(&text).map_err(|e| failed(&e))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let LimitsFile { default, keys } = toml::from_str(text)?;
        let default = default.or(KeyLimits::default());
        let named = keys.into_iter().map(|(name, limits)| (name, limits.or(default))).collect();
        Ok(Self { default, named })
    }

    /// The limits of the key called `name`.
    pub fn for_key(&self, name: &str) -> KeyLimits {
        self.named.get(name).copied().unwrap_or(self.default)
    }

    /// Names of the keys that have limits of their own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// Whether any key is limited.
    pub fn is_empty(&self) -> bool {
        [&self.default].into_iter().chain(self.named.values()).all(|limits| *limits == KeyLimits::default())
    }
}

impl WrittenLimits {
    /// The limits, with those of `default` for what is left out.
    fn or(self, default: KeyLimits) -> KeyLimits {
        let limit = |written: Option<WrittenLimit>, default| match written {
            None => default,
            Some(WrittenLimit::Count(n)) => Some(n.get()),
            Some(WrittenLimit::Word(Unlimited::Unlimited)) => None,
        };
        KeyLimits {
            requests_per_minute: limit(self.requests_per_minute, default.requests_per_minute),
            tokens_per_minute: limit(self.tokens_per_minute, default.tokens_per_minute),
            concurrent_requests: limit(self.concurrent_requests, default.concurrent_requests),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_without_limits_of_their_own_have_the_default_ones() {
        let table = KeyLimitsTable::parse(
            "[default]\nrequests-per-minute = 60\nconcurrent-requests = 4\n\
             [keys.team-a]\ntokens-per-minute = 100_000\nrequests-per-minute = \"unlimited\"\n",
        );
        let table = table.unwrap();
        let default = KeyLimits {
            requests_per_minute: Some(60),
            tokens_per_minute: None,
            concurrent_requests: Some(4),
        };
        let own = KeyLimits { requests_per_minute: None, tokens_per_minute: Some(100_000), ..default };
        assert_eq!((table.for_key("team-b"), table.for_key("team-a")), (default, own));
        assert_eq!(table.names().collect::<Vec<_>>(), ["team-a"]);
        assert!(!table.is_empty() && KeyLimitsTable::parse("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("[default]\nrequests-per-second = 1", "requests-per-second"),
            ("[default]\nrequests-per-minute = 0", "from 1 on"),
            ("[default]\ntokens-per-minute = \"none\"", "from 1 on"),
            ("[key.a]\nrequests-per-minute = 1", "unknown field `key`"),
        ] {
            let message = KeyLimitsTable::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        let message = KeyLimitsTable::read(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(message.contains("no/such.toml"), "{message}");
    }
}
