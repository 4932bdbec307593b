//! The names of instruction sets, for the command line and for the kernels.

/// The names of the kernels' instruction sets: those of one architecture from the most portable to the fastest.
pub const ISA_NAMES: [&str; 8] =
    ["scalar", "neon", "neon-dotprod", "neon-i8mm", "avx2", "avx-vnni", "avx512", "amx"];
