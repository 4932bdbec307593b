//! The state of all sequences of a decoder: keys and values of attention layers, and the state of recurrent ones.

use super::decoder::config::ModelConfig;
use super::kv_cache::KvCache;
use super::recurrent_state::RecurrentStates;
use crate::kernels::attention::kv_block::KvFormat;

/// The state that a decoder keeps of the tokens it has computed.
#[derive(Debug)]
pub struct SequenceStates {
    /// The keys and values of attention layers.
    pub kv: KvCache,
    /// The state of recurrent layers.
    pub recurrent: RecurrentStates,
}

impl SequenceStates {
    /// The state before any sequence, with keys and values in a format.
    pub fn new(config: &ModelConfig, format: KvFormat) -> Self {
        Self {
            kv: KvCache::new(config.kv_layouts(format)),
            recurrent: RecurrentStates::new(config.state_layout()),
        }
    }
}
