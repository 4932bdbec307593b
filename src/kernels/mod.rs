//! The machine's side of the arithmetic, and the only folder that may say `unsafe`.
//!
//! Kernels know no models: they see slices, shapes and thread counts.

pub mod pool;
