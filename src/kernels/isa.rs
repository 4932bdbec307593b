//! Instruction sets: detection, and the choice that a process makes.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::config::ISA_NAMES;
use crate::error::{Error, Kind, Result};

/// An instruction set: those of one architecture from the most portable to the fastest, in the order of [`ISA_NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code: the definition of every kernel.
    Scalar,
    /// NEON.
    Neon,
    /// NEON and dot products of bytes (`sdot`).
    NeonDotprod,
    /// NEON, and dot products of bytes signed or not (`sdot`, `usdot`).
    NeonI8mm,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2, FMA, F16C and AVX-VNNI: dot products of bytes in 256 bits.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AVX-512, and AMX for bytes and bfloat16.
    Amx,
}

/// The instruction set that this process uses.
static CHOSEN: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// All instruction sets, the most portable first.
    pub const ALL: [Self; ISA_NAMES.len()] = [
        Self::Scalar,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Amx,
    ];

    /// The fastest instruction set that this processor has.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let mut available = Self::ALL.into_iter().filter(|isa| isa.is_available());
            available.next_back().unwrap_or(Self::Scalar)
        })
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => Self::Neon.is_available() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Self::NeonDotprod.is_available() && is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Amx => Self::Avx512.is_available() && has_amx(),
            _ => false,
        }
    }

    /// Whether the processor has instructions for dot products of bfloat16 pairs, which are twice as fast as
    /// float32 and accumulate in float32.
    pub fn has_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => is_x86_feature_detected!("avx512bf16"),
            _ => false,
        }
    }

    /// Whether products of bfloat16 are so much faster than those of float32 that they are worth their rounding. With
    /// AMX they are, and with AVX-512 on AMD's processors. Intel's have fewer units for them than for float32: without
    /// AMX, an encoder took 1.6 times as long in bfloat16 (family 6, model 207).
    pub fn has_fast_bf16(self) -> bool {
        self.has_bf16() && (self == Self::Amx || is_amd())
    }

    /// Whether products with rounded activations, bytes or with AMX bfloat16, are faster than those with 16-bit integers.
    pub fn has_fast_rounding(self) -> bool {
        matches!(self, Self::AvxVnni | Self::Avx512 | Self::Amx)
    }

    /// The form of rounded activations, for names of what depends on it.
    pub fn rounded_form(self) -> &'static str {
        if self == Self::Amx { "bf16" } else { "int8" }
    }

    /// The instruction set that this process uses: the one chosen, else the fastest.
    pub fn current() -> Self {
        *CHOSEN.get_or_init(Self::detect)
    }

    /// Makes this process use the instruction set; to be called before the first kernel runs.
    ///
    /// # Errors
    /// When this processor does not have the instructions, or the process already uses others.
    pub fn choose(self) -> Result<()> {
        if !self.is_available() {
            let has: Vec<String> =
                Self::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| isa.to_string()).collect();
            let message =
                format!("this processor has no `{self}` instructions; choose one of {}", has.join(", "));
            return Err(Error::new(Kind::Config, message));
        }
        match CHOSEN.set(self) {
            Err(_) if Self::current() != self => {
                Err(Error::internal("this process already uses another instruction set"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(ISA_NAMES[*self as usize])
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| {
            let message =
                format!("`{name}` is not an instruction set; choose one of {}", ISA_NAMES.join(", "));
            Error::new(Kind::Config, message)
        })
    }
}

/// Whether the processor has AMX for bytes and bfloat16, and the system permits this process to use it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    use std::arch::x86_64::__cpuid_count;

    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// CPUID leaf 1: the system saves extended states, and `xgetbv` may be executed.
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const AMX_INT8: u32 = 1 << 25;
        const TILE_STATES: u64 = 0b11 << 17;
        /// `arch_prctl`: request permission for a state component, here tile data.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;

        if __cpuid_count(0, 0).eax < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
            return false;
        }
        let wanted = AMX_TILE | AMX_INT8 | AMX_BF16;
        let has_tiles = __cpuid_count(7, 0).edx & wanted == wanted;
        // SAFETY: OSXSAVE is set, as checked above.
        if !has_tiles || unsafe { xgetbv() } & TILE_STATES != TILE_STATES {
            return false;
        }
        // SAFETY: the call only requests a permission for this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    })
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

/// Other processors have no AMX, and other systems have no known way to request it.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_amx() -> bool {
    false
}
/// Whether the processor is AMD's.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_sets() {
        for (idx, (isa, name)) in Isa::ALL.into_iter().zip(ISA_NAMES).enumerate() {
            assert_eq!((isa as usize, isa.to_string().as_str()), (idx, name));
            // `AvxVnni` is `avx-vnni`.
            assert_eq!(format!("{isa:?}").to_lowercase(), name.replace('-', ""));
            assert_eq!(name.parse::<Isa>().unwrap(), isa);
        }
        let error = "sse".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("choose one of scalar, ") && error.ends_with(", amx"), "{error}");
    }
}
