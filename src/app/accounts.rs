//! Accounts: by whom requests are metered.

use std::sync::Arc;

use super::api_keys::key_index;
use super::{ApiKeys, App};
use crate::cache::name_digest;
use crate::config::{Config, KeyLimitsTable};
use crate::error::{Error, Kind, Result, quote};
use crate::metering::{AuditLog, Metering, UsageLedger};

/// Starts metering as `config` says, for these keys.
///
/// # Errors
/// When limits are set for a key that does not exist, or a file cannot be used.
pub fn start_metering(config: &Config, keys: &ApiKeys) -> Result<Arc<Metering>> {
    check_limits(&config.key_limits, keys)?;
    if !keys.are_required() && !config.key_limits.is_empty() {
        tracing::warn!(
            "without API keys, --limits counts by the token that a client sends, which it can change; set --api-key-file"
        );
    }
    let audit = config.audit_log.as_deref().map(AuditLog::open).transpose()?;
    let usage = UsageLedger::open(config.state_dir.as_deref())?;
    Metering::start(config.key_limits.clone(), usage, audit, keys.are_required())
}

/// Checks that every key with limits of its own exists.
///
/// # Errors
/// When one does not.
pub fn check_limits(limits: &KeyLimitsTable, keys: &ApiKeys) -> Result<()> {
    let names = keys.names();
    match limits.names().find(|name| keys.are_required() && names.iter().all(|own| &**own != *name)) {
        None => Ok(()),
        Some(unknown) => {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let message = format!(
                "--limits has limits for the key `{}`, but the keys are {}; name keys in --api-key-file, after the key",
                quote(unknown),
                names.join(", ")
            );
            Err(Error::new(Kind::Config, message))
        }
    }
}

impl App {
    /// Quotas, usage and the audit log.
    pub fn metering(&self) -> &Arc<Metering> {
        &self.parts.metering
    }

    /// The account of a tenant or of an owner of stored things: the name of its key, or the tenant itself where no keys
    /// are set.
    pub fn account(&self, tenant: &Arc<str>) -> Arc<str> {
        let keys = self.api_keys();
        let name = match key_index(tenant) {
            Some(index) => keys.name(index),
            None => keys.name_by_digest(|digest| name_digest(digest) == **tenant),
        };
        name.unwrap_or_else(|| tenant.clone())
    }
}
