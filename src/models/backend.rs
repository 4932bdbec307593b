//! The implementation a model computes with, and the home of its device.

use candle_core::Device;

use crate::kernels::isa::Isa;

/// The device that tensors are made on, for the kernels and the reference alike.
pub const DEVICE: Device = Device::Cpu;

/// The implementation and the precision a model computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Plain candle operations on float32 weights: the reference that the kernels are tested against.
    Reference,
    /// The kernels for an instruction set, on weights in the checkpoint's own formats.
    Kernels(Isa),
    /// The kernels, with float weights and their inputs rounded to bfloat16 if the processor multiplies
    /// bfloat16 faster than float32.
    KernelsBf16(Isa),
}

impl Backend {
    /// The instruction set of the kernels; `None` for the reference.
    pub fn isa(self) -> Option<Isa> {
        match self {
            Self::Reference => None,
            Self::Kernels(isa) | Self::KernelsBf16(isa) => Some(isa),
        }
    }

    /// Whether floats are rounded to bfloat16.
    pub fn is_bf16(self) -> bool {
        matches!(self, Self::KernelsBf16(isa) if isa.has_fast_bf16())
    }
}
