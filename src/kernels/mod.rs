//! The machine's side of the arithmetic, and the only folder that may say `unsafe`.
//!
//! Kernels know no models: they see slices, shapes and thread counts. Each is written once over
//! `simd`, whose instruction set is chosen at run time ([`isa`]), and shares its work among the
//! threads of the [`pool`].

#![allow(clippy::needless_range_loop)] // Registers are arrays here, of which several are gone through in step.

#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "amx/unsupported.rs")]
mod amx;
pub mod attention;
pub mod custom_ops;
#[cfg(test)]
mod guard_pages;
pub mod isa;
mod layout;
pub mod logits;
pub mod matmul;
mod memory;
pub mod norm;
pub mod roofline;
mod simd;
pub mod threads;
pub mod weights;
