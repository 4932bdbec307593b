//! The names of instruction sets, for the command line and for the kernels.

/// The names of the kernels' instruction sets, from the most portable to the fastest.
pub const ISA_NAMES: [&str; 5] = ["scalar", "avx2", "avx-vnni", "avx512", "amx"];
