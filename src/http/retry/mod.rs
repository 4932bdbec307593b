//! Retries: joining a running attempt, and a heartbeat that keeps slow responses from timing out.

pub mod dedup;
pub mod heartbeat;
