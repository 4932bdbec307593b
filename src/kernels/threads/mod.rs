//! Compute threads: a pool with barriers and work stealing, a fair-share lock on it, and slices that its
//! threads fill together.

pub mod disjoint;
mod fair_share;
pub mod pool;
