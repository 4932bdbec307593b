//! The models: token ids in, logits or hidden states out.
//!
//! A [`Decoder`] generates text, an [`Encoder`] embeds it. A model knows token ids, positions and
//! tensors; it never sees a string, a request or a clock. There is one decoder ([`decoder`]) and one
//! encoder ([`encoder`]), each described by data; a model family is a short file that lists its
//! differences. Weights come through [`load`].

mod backend;
mod checkpoint_config;
pub mod decoder;
pub mod encoder;
mod family;
mod forward_input;
pub mod kv_cache;
mod layers;
pub mod load;
mod model;
pub mod profile;
mod recurrent_state;
mod rope;
mod sequence_states;

pub use backend::{Backend, DEVICE};
pub use decoder::ModelConfig;
pub use forward_input::{
    BlockId, BlockTable, EncoderInput, ForwardInput, LogitSpan, SequenceChunk, SequenceId, Span, StateStep,
};
pub use kv_cache::KvCache;
pub use model::{Decoder, Encoder};
pub use sequence_states::SequenceStates;

/// The window and block arithmetic of attention that schedulers share with the kernels.
pub use crate::kernels::attention::{kv_block::BLOCK_TOKENS, window_start};

use crate::error::Error;

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::internal(format!("tensor operation failed: {e}"))
    }
}
