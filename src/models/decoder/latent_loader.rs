//! Loads the latent attention of a decoder's layers.

use super::config::ModelConfig;
use super::latent_attention::{HeadLinears, LatentAttention};
use super::latent_config::LatentAttentionConfig;
use super::layout::LatentAttentionNames;
use super::loader::{DecoderLoader, StoredNorm};
use crate::error::{Error, Result};
use crate::models::family::Qkv;
use crate::models::layers::linear::Linear;
use crate::models::load::RowSelection;

/// The epsilon of the norms of latents in every family, whatever that of the other norms is.
const LATENT_NORM: StoredNorm = StoredNorm { offset: 0.0, eps: 1e-6 };

impl DecoderLoader<'_> {
    /// Loads the latent attention of a layer, whose tensors have the names that `name` makes.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub(super) fn latent_attention(
        &self,
        name: &dyn Fn(&str) -> String,
        latent: &LatentAttentionConfig,
    ) -> Result<LatentAttention> {
        let ModelConfig { hidden_size, n_heads, .. } = *self.config;
        let LatentAttentionConfig { query_rank, kv_rank, nope_dim, rope_dim, value_dim, .. } = *latent;
        let LatentAttentionNames { query_down, query_norm, query_up, kv_down, kv_norm, .. } =
            self.layout.latent_attention;
        let load_down = |rank: usize| {
            let down = self.linear(&name(query_down), &RowSelection::all(rank), hidden_size)?;
            Ok::<_, Error>((down, self.norm(&name(query_norm), rank, LATENT_NORM)?))
        };
        let query_name = match (query_rank, self.layout.qkv) {
            (None, Qkv::Split { query, .. }) => query,
            _ => query_up,
        };
        let query_dim = latent.query_dim();
        let query = |rows: &mut dyn Iterator<Item = usize>| {
            let rows = RowSelection::indices(rows, n_heads * query_dim);
            self.linear(&name(query_name), &rows, query_rank.unwrap_or(hidden_size))
        };
        let mut nope_rows = (0..n_heads).flat_map(|head| head * query_dim..head * query_dim + nope_dim);
        let mut rope_rows = (0..n_heads).flat_map(|head| latent.rope_rows(head * query_dim + nope_dim));
        let kv_down = |rows: RowSelection| self.linear(&name(kv_down), &rows, hidden_size);
        let n_kv_down = kv_rank + rope_dim;
        let (key_up, value_up) = self.kv_up(name, latent)?;
        Ok(LatentAttention {
            query_down: query_rank.map(load_down).transpose()?,
            query_nope: query(&mut nope_rows)?,
            query_rope: query(&mut rope_rows)?,
            key_rope: kv_down(RowSelection::indices(latent.rope_rows(kv_rank), n_kv_down))?,
            latent: kv_down(RowSelection::range(0..kv_rank, n_kv_down))?,
            latent_norm: self.norm(&name(kv_norm), kv_rank, LATENT_NORM)?,
            key_up,
            value_up,
            output: self.linear(
                &name(self.layout.output),
                &RowSelection::all(hidden_size),
                n_heads * value_dim,
            )?,
        })
    }

    /// Loads the projections from the latent to each head's key, transposed, and to its value.
    fn kv_up(
        &self,
        name: &dyn Fn(&str) -> String,
        latent: &LatentAttentionConfig,
    ) -> Result<(HeadLinears, HeadLinears)> {
        let n_heads = self.config.n_heads;
        let LatentAttentionConfig { kv_rank, nope_dim, value_dim, .. } = *latent;
        let LatentAttentionNames { kv_up, split_kv_up, .. } = self.layout.latent_attention;
        // The `n_out` rows of each head behind the first `start` of its `n_stored` rows.
        let per_head = |part: &str, start: usize, n_out: usize, n_stored: usize, n_in: usize| {
            let head = |head: usize| {
                let first = head * n_stored + start;
                let rows = RowSelection::range(first..first + n_out, n_heads * n_stored);
                self.linear(&name(part), &rows, n_in)
            };
            Ok::<_, Error>(HeadLinears((0..n_heads).map(head).collect::<Result<_>>()?))
        };
        let has_split = |(key, _): &(&str, &str)| self.weights.contains(&format!("{}.weight", name(key)));
        if let Some((key, value)) = split_kv_up.filter(has_split) {
            let key_up = per_head(key, 0, kv_rank, kv_rank, nope_dim)?;
            return Ok((key_up, per_head(value, 0, value_dim, value_dim, kv_rank)?));
        }
        let n_stored = nope_dim + value_dim;
        let keys = (0..n_heads).map(|head| head * n_stored..head * n_stored + nope_dim);
        let full_name = format!("{}.weight", name(kv_up));
        let key_up =
            self.weights.transposed_ranges(&full_name, keys, n_heads * n_stored, kv_rank, self.backend)?;
        let key_up = key_up.into_iter().map(|weight| Linear::new(weight, None)).collect();
        Ok((HeadLinears(key_up), per_head(kv_up, nope_dim, value_dim, n_stored, kv_rank)?))
    }
}
