//! The sum of token, position and type embeddings.

use candle_core::{DType, Tensor};

use super::config::PositionIds;
use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::kernels::norm::{TableLookup, embedding_lookup};
use crate::models::backend::DEVICE;
use crate::models::forward_input::EncoderInput;
use crate::models::layers::norm::{LayerNorm, RowNorm};

/// The embedding tables and the norm of their sum.
pub struct EncoderEmbeddings {
    /// The token embeddings.
    pub words: EmbeddingTable,
    /// The learned position embeddings.
    pub positions: Option<EmbeddingTable>,
    /// The embeddings of the first and the second text of a pair.
    pub types: Option<EmbeddingTable>,
    /// The norm of the sum.
    pub norm: LayerNorm,
}

/// A table of embeddings, `[n_rows, hidden]`.
pub struct EmbeddingTable {
    /// The embeddings, row by row.
    pub values: Vec<f32>,
    /// The number of rows.
    pub n_rows: usize,
}

impl EncoderEmbeddings {
    /// Returns the embeddings of all tokens, `[n_tokens, hidden]`, by the kernel for `isa` or in plain candle
    /// operations.
    ///
    /// # Errors
    /// When a token id or a position is out of range.
    pub fn forward(
        &self,
        isa: Option<Isa>,
        position_ids: PositionIds,
        texts: &[EncoderInput],
    ) -> Result<Tensor> {
        let collect = |ids: &dyn Fn(&EncoderInput) -> Vec<u32>| texts.iter().flat_map(ids).collect();
        let mut lookups: Vec<(&EmbeddingTable, Vec<u32>)> =
            vec![(&self.words, collect(&|text| text.token_ids.clone()))];
        if let Some(types) = &self.types {
            let last = types.n_rows as u32 - 1;
            let type_id = |text: &EncoderInput, idx| u32::from(idx >= text.n_first).min(last);
            let type_ids =
                |text: &EncoderInput| (0..text.token_ids.len()).map(|idx| type_id(text, idx)).collect();
            lookups.push((types, collect(&type_ids)));
        }
        if let Some(positions) = &self.positions {
            lookups.push((positions, collect(&|text| position_ids.for_tokens(&text.token_ids))));
        }
        for (table, rows) in &lookups {
            if let Some(row) = rows.iter().find(|&&row| row as usize >= table.n_rows) {
                return Err(Error::internal(format!(
                    "row {row} of an embedding table of {} rows",
                    table.n_rows
                )));
            }
        }
        let (n_tokens, hidden) = (lookups[0].1.len(), self.norm.weight.len());
        if let Some(isa) = isa {
            let lookups: Vec<TableLookup> =
                lookups.iter().map(|(table, rows)| TableLookup { table: &table.values, rows }).collect();
            let values = embedding_lookup(isa, &lookups, hidden, &self.norm.kernel_params());
            return Ok(Tensor::from_vec(values, (n_tokens, hidden), &DEVICE)?);
        }
        let mut sum = Tensor::zeros((n_tokens, hidden), DType::F32, &DEVICE)?;
        for (table, rows) in lookups {
            let table = Tensor::from_slice(&table.values, (table.n_rows, hidden), &DEVICE)?;
            sum = (sum + table.index_select(&Tensor::from_vec(rows, n_tokens, &DEVICE)?, 0)?)?;
        }
        self.norm.forward(&sum)
    }
}

impl PositionIds {
    /// The rows of the position table for the tokens of a text.
    fn for_tokens(self, token_ids: &[u32]) -> Vec<u32> {
        match self {
            Self::FromZero => (0..token_ids.len() as u32).collect(),
            Self::AfterPadding { padding_id } => {
                let mut last = padding_id;
                let next = |&id: &u32| {
                    if id == padding_id {
                        return padding_id;
                    }
                    last += 1;
                    last
                };
                token_ids.iter().map(next).collect()
            }
        }
    }
}
