//! Configuration keys, tensor layouts and the look-up by name that decoder and encoder families share.

use super::checkpoint_config::ConfigKey;
use super::layers::linear::Linear;
use super::load::{RowSelection, Weights};
use crate::error::{Error, Result};

/// The length of a hidden state.
pub const HIDDEN_SIZE: ConfigKey = ConfigKey::new("hidden_size", "embedding_length");
/// The width of a dense MLP between its two projections.
pub const INTERMEDIATE_SIZE: ConfigKey = ConfigKey::new("intermediate_size", "feed_forward_length");
/// The number of layers.
pub const N_LAYERS: ConfigKey = ConfigKey::new("num_hidden_layers", "block_count");
/// The number of query heads.
pub const N_HEADS: ConfigKey = ConfigKey::new("num_attention_heads", "attention.head_count");
/// The maximum number of positions.
pub const CONTEXT_LENGTH: ConfigKey = ConfigKey::new("max_position_embeddings", "context_length");
/// The number of tokens in the vocabulary; GGUF files have it as the embedding's number of rows.
pub const N_VOCAB: ConfigKey = ConfigKey::json("vocab_size");
/// The activation function, under its older name in `config.json`.
pub const HIDDEN_ACT: ConfigKey = ConfigKey::json("hidden_act");

/// The key of `config.json` with the kind of each layer, [`FULL_ATTENTION`] or [`SLIDING_ATTENTION`].
pub const LAYER_TYPES: &str = "layer_types";
/// The kind of a layer whose attention has no window.
pub const FULL_ATTENTION: &str = "full_attention";
/// The kind of a layer with sliding-window attention.
pub const SLIDING_ATTENTION: &str = "sliding_attention";

/// A family's tensor names in both kinds of checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointLayouts<L> {
    /// The names in Hugging Face's safetensors files.
    pub safetensors: L,
    /// The names in GGUF files.
    pub gguf: L,
}

impl<L> CheckpointLayouts<L> {
    /// The layout of the files that `weights` come from.
    pub fn for_weights(&self, weights: &Weights) -> &L {
        match weights {
            Weights::Gguf(_) => &self.gguf,
            Weights::Safetensors(_) => &self.safetensors,
        }
    }
}

/// The tensor names of the query, key and value projections.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    /// One matrix for each.
    Split {
        /// The query projection.
        query: &'static str,
        /// The key projection.
        key: &'static str,
        /// The value projection.
        value: &'static str,
    },
    /// One matrix with the rows of all three, in this order.
    Fused(&'static str),
}

/// The tensor names of an MLP's first projections.
#[derive(Debug, Clone, Copy)]
pub enum GateUp {
    /// One matrix for each.
    Split {
        /// The gate projection, whose output goes through the activation function.
        gate: &'static str,
        /// The up projection.
        up: &'static str,
    },
    /// One matrix with the rows of both, in this order.
    Fused(&'static str),
    /// An up projection without a gate.
    Ungated(&'static str),
}

impl Qkv {
    /// Loads the three projections by `load(tensor name, rows)`. Split matrices are loaded with the given row
    /// selections, a fused one by consecutive ranges of the same lengths.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load(
        self,
        rows: [RowSelection; 3],
        load: impl Fn(&str, &RowSelection) -> Result<Linear>,
    ) -> Result<[Linear; 3]> {
        match self {
            Self::Split { query, key, value } => {
                let [query_rows, key_rows, value_rows] = &rows;
                Ok([load(query, query_rows)?, load(key, key_rows)?, load(value, value_rows)?])
            }
            Self::Fused(name) => {
                let [n_query, n_key, n_value] = rows.each_ref().map(RowSelection::n_selected);
                let n_stored = n_query + n_key + n_value;
                let range =
                    |start: usize, n: usize| load(name, &RowSelection::range(start..start + n, n_stored));
                Ok([range(0, n_query)?, range(n_query, n_key)?, range(n_query + n_key, n_value)?])
            }
        }
    }
}

impl GateUp {
    /// Loads the gate, where there is one, and the up projection, each with `n` rows, by `load(tensor name, rows)`.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load(
        self,
        n: usize,
        load: impl Fn(&str, &RowSelection) -> Result<Linear>,
    ) -> Result<(Option<Linear>, Linear)> {
        match self {
            Self::Split { gate, up } => {
                let rows = RowSelection::all(n);
                Ok((Some(load(gate, &rows)?), load(up, &rows)?))
            }
            Self::Ungated(up) => Ok((None, load(up, &RowSelection::all(n))?)),
            Self::Fused(name) => {
                let range = |start: usize| load(name, &RowSelection::range(start..start + n, 2 * n));
                Ok((Some(range(0)?), range(n)?))
            }
        }
    }
}

/// Finds the family that has `name` among its `names`.
///
/// # Errors
/// When there is none; the message calls the models `kind` and lists the supported names.
pub fn find_family<F>(
    families: &[&'static F],
    kind: &str,
    name: &str,
    names: fn(&F) -> &'static [&'static str],
) -> Result<&'static F> {
    families.iter().copied().find(|family| names(family).contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = families.iter().flat_map(|family| names(family)).copied().collect();
        Error::model(format!(
            "{kind} of the family `{name}` are not supported; supported: {}",
            known.join(", ")
        ))
    })
}

/// Checks that each of the named sizes is between 1 and its maximum.
///
/// # Errors
/// When one is not.
pub fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|&&(_, size, max)| size == 0 || size > max) {
        Some((name, size, _)) => Err(impossible(format_args!("{name} of {size}"))),
        None => Ok(()),
    }
}

/// Returns the error for a configuration that contradicts itself or exceeds every real model.
pub fn impossible(reason: impl std::fmt::Display) -> Error {
    Error::model(format!("model configuration is impossible: {reason}"))
}
