//! A tokenizer's vocabulary as llguidance needs it.

use std::sync::Arc;

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

use crate::tokenizer::Tokenizer;

/// The token trie of a vocabulary, and the tokenizer behind it.
pub struct GrammarVocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl GrammarVocabulary {
    /// The vocabulary of a model with `n_vocab` logits.
    pub fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Self {
        let ids = 0..u32::try_from(n_vocab).unwrap_or(u32::MAX);
        let end_tokens: Vec<u32> =
            tokenizer.end_of_generation().iter().copied().filter(|end| ids.contains(end)).collect();
        let words: Vec<Vec<u8>> = ids
            .clone()
            .map(|id| match tokenizer.token_bytes(id) {
                // llguidance's marker of special tokens; no text begins with it.
                [TokTrie::SPECIAL_TOKEN_MARKER, ..] => Vec::new(),
                bytes => bytes.to_vec(),
            })
            .collect();
        let end = end_tokens.first().copied().unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(ids.end, end), &words);
        let trie = if end_tokens.is_empty() { trie } else { trie.with_eos_tokens(&end_tokens) };
        Self { trie, tokenizer }
    }
}

impl TokenizerEnv for GrammarVocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let ids = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode(text).ok());
        // A tokenizer may add to a text or change it.
        ids.filter(|ids| {
            let round_trip = ids.iter().flat_map(|&id| self.tokenizer.token_bytes(id));
            round_trip.eq(bytes)
        })
        .unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    /// False for a tokenizer that adds a space in front: text that a grammar forces may then be tokenized in another
    /// way than the model expects.
    fn tokenize_is_canonical(&self) -> bool {
        !self.tokenizer.has_space_prefix()
    }
}
