//! The command line of all commands that load models, as typed.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args as ClapArgs, ValueEnum};

use super::isa_names::ISA_NAMES;

/// Options for how models are computed.
#[derive(Debug, Clone, ClapArgs)]
pub struct ComputeArgs {
    /// Number of compute threads, at most twice the processors [default: the physical cores available to this
    /// process]
    #[arg(long, env = "PREDICT_OTRON_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set of the compute kernels [default: the fastest that the processor supports]
    #[arg(long, env = "PREDICT_OTRON_ISA", value_parser = ISA_NAMES)]
    pub isa: Option<String>,
    /// Number format of the KV cache: int8 takes half the memory and is faster with long contexts, at some
    /// cost in accuracy
    #[arg(long, env = "PREDICT_OTRON_KV_FORMAT", value_enum, default_value_t = KvPrecision::F16)]
    pub kv_format: KvPrecision,
    /// Bits of the activations of prompts: 8 makes prompts of quantized models faster, at some cost in accuracy.
    /// auto takes 8 from the second start on, if a measurement shows that predictions hardly change
    #[arg(long, env = "PREDICT_OTRON_ACTIVATIONS", value_enum, default_value_t = PromptActivations::Auto)]
    pub activations: PromptActivations,
}

/// Options for where models come from, shared by every command.
#[derive(Debug, Clone, ClapArgs)]
pub struct RegistryArgs {
    /// Use only files on disk and open no connection (same as HF_HUB_OFFLINE=1)
    #[arg(long, env = "PREDICT_OTRON_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    /// Folder for all downloads [default: the Hugging Face cache for hub files, an XDG cache folder for
    /// everything else]
    #[arg(long, env = "PREDICT_OTRON_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// Number format of the KV cache, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvPrecision {
    /// Half precision.
    F16,
    /// 8-bit integers with a scale per token and head.
    Int8,
}

/// Precision of the activations of prompts, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PromptActivations {
    /// 8 bits if they are faster and hardly change the model's predictions, else 16.
    Auto,
    /// 16 bits.
    #[value(name = "16")]
    Int16,
    /// 8 bits, except for the last token.
    #[value(name = "8")]
    Int8,
}
