//! Retries of slow responses: deduplication, and a heartbeat that keeps clients from timing out.

pub mod dedup;
pub mod heartbeat;
