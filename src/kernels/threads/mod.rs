//! The threads that compute, and what they share.

pub mod disjoint;
mod fair_share;
pub mod pool;
