//! The kernels, with their tests, without the rest of the server, which takes longer to build.

#![allow(dead_code, missing_docs, reason = "the server uses the rest, and documents it")]

#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/config/isa_names.rs"]
mod isa_names;

pub mod config {
    pub use crate::isa_names::ISA_NAMES;
}

/// All of `src/kernels` except the operations of candle, which would have to be built, too.
#[allow(clippy::needless_range_loop)]
#[path = "../../src/kernels"]
pub mod kernels {
    #[path = "amx/unsupported.rs"]
    mod amx;
    pub mod attention;
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
}

#[cfg(test)]
extern crate self as predict_otron_9000;

#[cfg(test)]
#[path = "../it/kernels.rs"]
mod kernel_tests;

#[cfg(test)]
#[test]
fn the_fastest_instruction_set_of_the_processor_is_found() {
    if let Ok(name) = std::env::var("FASTEST_ISA") {
        assert_eq!(kernels::isa::Isa::detect().to_string(), name);
    }
}
