//! The wire types of Anthropic's Messages API and the treatment of its parameters. Uses only serde, schemars and, for
//! times, jiff.

pub mod batches;
pub mod error;
pub mod messages;
pub mod models;
pub mod params;
pub mod response;

use jiff::Timestamp;

/// A Unix time in seconds as in `2026-01-31T12:00:00Z`.
pub fn rfc_3339(time: u64) -> String {
    let seconds = i64::try_from(time).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}
