//! The limit on open files, which bounds the number of connections.

/// File descriptors for everything but connections: model files, caches, logs, downloads.
const OTHER_FILES: u64 = 128;

/// Raises the soft limit on open files so far that `n_connections` fit, if the hard limit allows. Returns how many
/// fit.
pub fn fit_connections(n_connections: usize) -> usize {
    let wanted = (n_connections as u64).saturating_add(OTHER_FILES);
    match rlimit::increase_nofile_limit(wanted) {
        Ok(allowed) => {
            usize::try_from(allowed.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX).min(n_connections)
        }
        Err(e) => {
            tracing::warn!(error = %e, "the limit on open files cannot be raised");
            n_connections
        }
    }
}
