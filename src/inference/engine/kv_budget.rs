//! The number of KV cache blocks that fit into an engine's memory, and the context length that they allow.

use super::EngineOptions;
use crate::inference::scheduler::BlockGroup;
use crate::models::{BLOCK_TOKENS, ModelConfig};

/// Tokens for which a KV cache has room in any case: a model that answers nothing is of no use.
const MIN_KV_TOKENS: usize = 512;

/// Slots for recurrent states in any case: a sequence's own, its newest snapshot, and two that others may find.
const MIN_STATE_SLOTS: usize = 4;

/// The KV cache blocks of an engine for one model.
#[derive(Debug)]
pub struct KvBudget {
    /// Blocks of each group of layers, as in [`ModelConfig::kv_groups`].
    pub groups: Vec<BlockGroup>,
    /// Slots for recurrent states: those of running sequences, and snapshots in the prefix cache; none for a model
    /// without recurrent layers.
    pub n_state_slots: usize,
    /// Most tokens of one sequence: the model's context, or as much of it as the blocks hold.
    pub context_length: usize,
    prefill_chunk_tokens: usize,
}

impl EngineOptions {
    /// Most tokens of one sequence of this model: its context, or as much of it as fits into the memory for the KV
    /// cache.
    pub fn context_length(&self, config: &ModelConfig) -> usize {
        KvBudget::new(self, config).context_length
    }

    /// Bytes that the KV cache of this model takes at most: its blocks are allocated when they are first used.
    pub fn max_kv_bytes(&self, config: &ModelConfig) -> usize {
        let groups = block_groups(self, config);
        let blocks = groups.iter().zip(config.kv_block_bytes(self.kv_format));
        let block_bytes: usize = blocks.map(|(group, bytes)| group.n_blocks * bytes).sum();
        block_bytes + state_slots(self, config) * config.state_layout().slot_bytes()
    }

    /// These options with a KV cache that is made smaller to fit into `room_bytes`, but holds `MIN_KV_TOKENS`.
    #[must_use]
    pub fn with_kv_within(self, room_bytes: usize, config: &ModelConfig) -> Self {
        let block_bytes: usize = config.kv_block_bytes(self.kv_format).iter().sum();
        let min_bytes = block_bytes * MIN_KV_TOKENS.min(config.context_length).div_ceil(BLOCK_TOKENS)
            + MIN_STATE_SLOTS * config.state_layout().slot_bytes();
        Self { kv_bytes: self.kv_bytes.min(room_bytes.max(min_bytes)), ..self }
    }
}

impl KvBudget {
    /// The budget of `options.kv_bytes` for a model.
    pub fn new(options: &EngineOptions, config: &ModelConfig) -> Self {
        let EngineOptions { prefill_chunk_tokens, .. } = *options;
        let groups = block_groups(options, config);
        let limits = groups.iter().map(|group| {
            let max_blocks = BlockGroup::max_blocks_per_sequence(group.window, prefill_chunk_tokens);
            if group.n_blocks >= max_blocks { usize::MAX } else { group.n_blocks * BLOCK_TOKENS }
        });
        let context_length = limits.fold(config.context_length, usize::min);
        let n_state_slots = state_slots(options, config);
        Self { groups, n_state_slots, context_length, prefill_chunk_tokens }
    }

    /// How many sequences of the full context length fit at once; `None` for a model without a KV cache.
    pub fn n_full_sequences(&self) -> Option<usize> {
        let n_sequences = self.groups.iter().map(|group| {
            let max_blocks = BlockGroup::max_blocks_per_sequence(group.window, self.prefill_chunk_tokens);
            group.n_blocks / self.context_length.div_ceil(BLOCK_TOKENS).clamp(1, max_blocks)
        });
        n_sequences.min()
    }
}

/// The slots for recurrent states, which take half of `options.kv_bytes`.
fn state_slots(options: &EngineOptions, config: &ModelConfig) -> usize {
    match config.state_layout().slot_bytes() {
        0 => 0,
        slot_bytes => (options.kv_bytes / 2 / slot_bytes).max(MIN_STATE_SLOTS),
    }
}

/// The blocks that fit into `options.kv_bytes` beside recurrent states: groups with a window get as many as the running
/// sequences can hold within it, and the first groups, which have the largest window, share the rest.
fn block_groups(options: &EngineOptions, config: &ModelConfig) -> Vec<BlockGroup> {
    let block_bytes = config.kv_block_bytes(options.kv_format);
    let state_bytes = state_slots(options, config) * config.state_layout().slot_bytes();
    let kv_bytes = options.kv_bytes.saturating_sub(state_bytes);
    let n_equal = kv_bytes / block_bytes.iter().sum::<usize>().max(1);
    let windows = config.kv_groups().into_iter().map(|group| group.window);
    let mut groups: Vec<BlockGroup> = windows
        .map(|window| {
            let max_blocks = BlockGroup::max_blocks_per_sequence(window, options.prefill_chunk_tokens);
            // One more for each, which the scheduler wants to be free when another sequence starts.
            let n_blocks = n_equal.min(max_blocks.saturating_add(1).saturating_mul(options.running_requests));
            BlockGroup { n_blocks, window }
        })
        .collect();
    let n_widest = groups.iter().take_while(|group| group.window == groups[0].window).count();
    let (widest, others) = groups.split_at_mut(n_widest);
    let (widest_bytes, other_bytes) = block_bytes.split_at(n_widest);
    let taken: usize = others.iter().zip(other_bytes).map(|(group, bytes)| group.n_blocks * bytes).sum();
    let rest = kv_bytes - taken.min(kv_bytes);
    let n_blocks = rest / widest_bytes.iter().sum::<usize>().max(1);
    widest.iter_mut().for_each(|group| group.n_blocks = n_blocks);
    groups
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernels::attention::kv_block::KvFormat;

    #[test]
    fn windowed_layers_get_their_window_and_the_others_the_rest() {
        let config = |window: Option<usize>| {
            // Five of six layers have the window.
            let fields = serde_json::json!({
                "model_type": "gemma3_text", "hidden_size": 2, "intermediate_size": 2, "head_dim": 16,
                "num_hidden_layers": 6, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 16,
                "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": window,
                "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh",
            });
            ModelConfig::from_json(fields.to_string().as_bytes()).unwrap()
        };
        let options = EngineOptions {
            queued_requests: 1,
            queued_tokens: 1,
            queue_timeout: Duration::ZERO,
            running_requests: 2,
            batch_time: Duration::ZERO,
            prefill_chunk_tokens: 64,
            kv_bytes: 1 << 19,
            kv_format: KvFormat::F16,
            speculative: false,
            rounded_prompts: false,
            context_shift: false,
            prompt_logprobs: 0,
        };
        let windowed = config(Some(128));
        let layer_bytes = windowed.kv_block_bytes(KvFormat::F16)[0];
        assert_eq!(windowed.kv_block_bytes(KvFormat::F16), [layer_bytes, 5 * layer_bytes]);
        let groups = KvBudget::new(&options, &windowed).groups;
        assert_eq!(groups.iter().map(|group| group.window).collect::<Vec<_>>(), [None, Some(128)]);
        // Each of two sequences sees eight blocks, writes four, and begins and ends within one; one is to spare.
        assert_eq!(groups[1].n_blocks, 2 * (14 + 1));
        assert_eq!(groups[0].n_blocks, (1 << 19) / layer_bytes - 5 * 30);
        // In the same memory six layers without a window hold a fraction of that.
        let full = config(None);
        assert_eq!(KvBudget::new(&options, &full).groups[0].n_blocks, (1 << 19) / (6 * layer_bytes));
        assert!(options.context_length(&full) * 4 < options.context_length(&windowed));
        assert_eq!(options.max_kv_bytes(&full), (1 << 19) / (6 * layer_bytes) * 6 * layer_bytes);
        assert!(
            options.max_kv_bytes(&windowed) <= 1 << 19
                && options.max_kv_bytes(&windowed) > (1 << 19) - layer_bytes
        );
        // A cache shrinks to the room there is, down to a least size.
        let kv_bytes = |room| options.with_kv_within(room, &full).kv_bytes;
        assert_eq!([kv_bytes(1 << 20), kv_bytes(1 << 19), kv_bytes(400_000)], [1 << 19, 1 << 19, 400_000]);
        assert_eq!(kv_bytes(0), 6 * layer_bytes * MIN_KV_TOKENS / BLOCK_TOKENS);
        assert_eq!(options.with_kv_within(0, &full).context_length(&full), MIN_KV_TOKENS);
        // Too little memory for a window is too little for the context.
        let tight = EngineOptions { kv_bytes: 6 * layer_bytes * 10, ..options };
        assert_eq!(tight.context_length(&windowed), 160);
    }
}
