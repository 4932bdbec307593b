//! Compute kernels, and the only folder with `unsafe` code.
//!
//! Kernels know no models: they see slices, shapes and thread counts. Each is written once over `simd`, whose
//! instruction set is chosen at run time ([`isa`]), and splits its work among the threads of the
//! [pool](threads::pool). Weights are packed once, at load ([`weights`]); [`matmul`] multiplies them by GEMV or GEMM
//! with fused epilogues; [`attention`] works on the paged KV cache. candle calls kernels as [`custom_ops`].

#![allow(clippy::needless_range_loop)] // Several arrays of registers are indexed in step.

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
pub mod recurrent;
pub mod roofline;
mod simd;
pub mod threads;
pub mod weights;
