//! The families of encoders, and how each lays out its checkpoints.

use super::config::EncoderConfig;
use super::{bert, modernbert, mpnet, nomic_bert, roberta};
use crate::error::{Error, Result};
use crate::models::fields::Fields;
use crate::models::layers::activation::Activation;

/// What makes a family differ from the others.
#[derive(Debug)]
pub struct EncoderFamily {
    pub name: &'static str,
    /// What `model_type` of a `config.json` calls it.
    pub model_types: &'static [&'static str],
    /// What `general.architecture` of a GGUF file calls it.
    pub gguf_architectures: &'static [&'static str],
    /// Facts that its `config.json` may state under another name: the usual one, then the other.
    pub json_aliases: &'static [(&'static str, &'static str)],
    pub norms: NormPlacement,
    /// Sets what is not as in BERT.
    pub describe: fn(&Fields, &mut EncoderConfig) -> Result<()>,
    pub safetensors: EncoderLayout,
    pub gguf: EncoderLayout,
}

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// In front of attention and of the MLP, but for the first layer's, whose input is normed.
    Before,
    /// Behind the sums with the residual.
    After,
}

/// Which rows of the position table a text takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    FromZero,
    /// Those behind the padding token's id; a padding token takes the row of its id.
    AfterPadding {
        padding_id: u32,
    },
}

/// What the tensors of a checkpoint are called, without `.weight`, and how they lie. The names of
/// a layer's parts stand behind the layer's own.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLayout {
    /// In front of all names in checkpoints of a model with a head.
    pub prefix: &'static str,
    pub words: &'static str,
    pub positions: Option<&'static str>,
    pub types: Option<&'static str>,
    pub embedding_norm: &'static str,
    pub relative_bias: Option<&'static str>,
    /// In front of a layer's number.
    pub layers: &'static str,
    pub qkv: Qkv,
    pub output: &'static str,
    pub attention_norm: &'static str,
    pub gate_up: GateUp,
    pub down: &'static str,
    pub mlp_norm: &'static str,
    pub final_norm: Option<&'static str>,
    pub head: Option<HeadLayout>,
}

/// The query, key and value projections.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    Apart {
        query: &'static str,
        key: &'static str,
        value: &'static str,
    },
    /// One matrix of all their rows, in this order.
    Fused(&'static str),
}

/// The first products of an MLP.
#[derive(Debug, Clone, Copy)]
pub enum GateUp {
    /// One product, no gate.
    None {
        up: &'static str,
    },
    Apart {
        gate: &'static str,
        up: &'static str,
    },
    /// One matrix of all their rows, in this order.
    Fused(&'static str),
}

/// A head for classification.
#[derive(Debug, Clone, Copy)]
pub struct HeadLayout {
    pub dense: &'static str,
    pub activation: Activation,
    pub norm: Option<&'static str>,
    pub output: &'static str,
}

/// Every family, in the order of their files.
const FAMILIES: [&EncoderFamily; 5] =
    [&bert::FAMILY, &roberta::FAMILY, &mpnet::FAMILY, &modernbert::FAMILY, &nomic_bert::FAMILY];

impl EncoderFamily {
    /// The family that a `config.json` calls `model_type`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_model_type(model_type: &str) -> Result<&'static Self> {
        Self::find(model_type, |family| family.model_types)
    }

    /// The family that a GGUF file calls `architecture`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_gguf(architecture: &str) -> Result<&'static Self> {
        Self::find(architecture, |family| family.gguf_architectures)
    }

    fn find(name: &str, names: fn(&Self) -> &'static [&'static str]) -> Result<&'static Self> {
        FAMILIES.into_iter().find(|family| names(family).contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| names(family)).copied().collect();
            Error::model(format!(
                "encoders of the family `{name}` are not supported; supported: {}",
                known.join(", ")
            ))
        })
    }
}
