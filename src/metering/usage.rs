//! Usage of accounts: requests and tokens by day and model, kept in a store.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::{RecordStore, StoreLimits, unix_ms};

/// Seconds of a day.
pub const DAY_SECONDS: u64 = 24 * 3600;

/// How long a day's usage is kept.
const TIME_TO_LIVE: Duration = Duration::from_secs(400 * DAY_SECONDS);

/// Approximate bytes of the usage of all accounts.
const MAX_BYTES: u64 = 64 << 20;

/// Bytes of the usage of one account on one day, enough for thousands of models.
const MAX_DAY_BYTES: usize = 1 << 20;

/// Counts of one account, one day and one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCounts {
    /// Requests that the model answered, or began to answer.
    pub requests: u64,
    /// Tokens of prompts and of inputs to embed or score.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
}

/// The counts of one day by model.
type ModelCounts = BTreeMap<String, UsageCounts>;

/// The usage of all accounts. What was counted last waits in memory to be stored.
pub struct UsageLedger {
    store: RecordStore,
    pending: Mutex<HashMap<(Arc<str>, u64), ModelCounts>>,
}

impl UsageCounts {
    fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.prompt_tokens += more.prompt_tokens;
        self.cached_tokens += more.cached_tokens;
        self.completion_tokens += more.completion_tokens;
    }
}

impl UsageLedger {
    /// Opens the ledger in a folder or, without one, in memory.
    ///
    /// # Errors
    /// When another process has it open, or the file system refuses.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let limits =
            StoreLimits { max_bytes: MAX_BYTES, max_record_bytes: MAX_DAY_BYTES, time_to_live: TIME_TO_LIVE };
        let store = match folder {
            Some(folder) => RecordStore::open(folder, "usage.redb", limits)?,
            None => RecordStore::in_memory(limits)?,
        };
        Ok(Self { store, pending: Mutex::default() })
    }

    /// Counts a request that ended at `now`.
    pub fn add(&self, account: &Arc<str>, model: &str, counts: &UsageCounts, now: SystemTime) {
        let mut pending = self.pending();
        let models = pending.entry((account.clone(), day_of(now))).or_default();
        match models.get_mut(model) {
            Some(sum) => sum.add(counts),
            None => drop(models.insert(model.to_owned(), *counts)),
        }
    }

    /// Stores the counts that wait in memory. Waits for the disk.
    ///
    /// # Errors
    /// When the file cannot be written; what could not be stored goes on waiting.
    pub fn flush(&self, now: SystemTime) -> Result<()> {
        let pending = mem::take(&mut *self.pending());
        let mut outcome = Ok(());
        for ((account, day), models) in pending {
            let merge = |old: Option<Vec<u8>>| {
                let mut sums = parse(old)?;
                add_all(&mut sums, &models);
                let value = serde_json::to_vec(&sums).map_err(|e| Error::internal(e.to_string()))?;
                Ok((Some(value), ()))
            };
            if let Err(e) = self.store.update(&account, &day.to_string(), now, merge) {
                add_all(self.pending().entry((account, day)).or_default(), &models);
                outcome = Err(e);
            }
        }
        outcome
    }

    /// The usage of an account on each of these days, counted since 1970, that has any. Waits for the disk.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn days(&self, account: &str, days: Range<u64>, now: SystemTime) -> Result<Vec<(u64, ModelCounts)>> {
        self.flush(now)?;
        let mut found = Vec::new();
        for day in days {
            if let Some(value) = self.store.get(account, &day.to_string(), now)? {
                found.push((day, parse(Some(value))?));
            }
        }
        Ok(found)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<(Arc<str>, u64), ModelCounts>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add_all(sums: &mut ModelCounts, models: &ModelCounts) {
    models.iter().for_each(|(model, counts)| sums.entry(model.clone()).or_default().add(counts));
}

/// The day of a time in UTC, counted since 1970.
pub fn day_of(time: SystemTime) -> u64 {
    unix_ms(time) / 1000 / DAY_SECONDS
}

fn parse(value: Option<Vec<u8>>) -> Result<ModelCounts> {
    let Some(value) = value else { return Ok(ModelCounts::new()) };
    serde_json::from_slice(&value).map_err(|e| Error::internal(format!("stored usage cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(day: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(day * DAY_SECONDS + 7)
    }

    fn counts(requests: u64, prompt_tokens: u64) -> UsageCounts {
        UsageCounts { requests, prompt_tokens, ..UsageCounts::default() }
    }

    #[test]
    fn usage_adds_up_by_day_and_model() {
        let folder = tempfile::tempdir().unwrap();
        let account: Arc<str> = "team-a".into();
        let ledger = UsageLedger::open(Some(folder.path())).unwrap();
        ledger.add(&account, "m", &counts(1, 10), at(20_000));
        ledger.add(&account, "m", &counts(1, 5), at(20_000));
        ledger.flush(at(20_000)).unwrap();
        ledger.add(&account, "m", &counts(1, 1), at(20_000));
        ledger.add(&account, "n", &counts(1, 2), at(20_001));
        ledger.add(&"team-b".into(), "m", &counts(1, 99), at(20_000));
        let days = |ledger: &UsageLedger| ledger.days("team-a", 19_999..20_002, at(20_001)).unwrap();
        let expected = [
            (20_000, ModelCounts::from([("m".to_owned(), counts(3, 16))])),
            (20_001, ModelCounts::from([("n".to_owned(), counts(1, 2))])),
        ];
        assert_eq!(days(&ledger), expected);
        drop(ledger);
        assert_eq!(days(&UsageLedger::open(Some(folder.path())).unwrap()), expected, "after a restart");
    }
}
