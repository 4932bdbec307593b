//! The machine's side of the arithmetic, and the only folder that may say `unsafe`.
//!
//! Kernels know no models: they see slices, shapes and thread counts. Each is written once over
//! `simd`, whose instruction set is chosen at run time ([`isa`]), and shares its work among the
//! threads of the [`pool`].

#![allow(clippy::needless_range_loop)] // Registers are arrays here, of which several are gone through in step.

pub mod activations;
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "amx/absent.rs")]
mod amx;
pub mod attention;
mod bytes;
pub mod isa;
pub mod kv;
pub mod limits;
pub mod linear;
pub mod op;
#[cfg(test)]
mod page_edges;
pub mod pool;
pub mod rows;
pub mod sampling;
mod shared_rows;
mod simd;
mod turns;
mod units;
pub mod weights;
mod wide;
