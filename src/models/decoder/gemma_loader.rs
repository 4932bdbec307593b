//! Loads the parts of layers that Gemma 3n and 4 add to those of other decoders.

use super::config::{AltUpConfig, LayerConfig, ModelConfig, MoeConfig};
use super::layout::StreamProjections;
use super::loader::{DecoderLoader, StoredNorm};
use crate::error::{Error, Result};
use crate::models::layers::altup::{AltUp, AltUpStreams};
use crate::models::layers::dense_moe::DenseMoE;
use crate::models::layers::laurel::Laurel;
use crate::models::layers::linear::Linear;
use crate::models::layers::norm::RmsNorm;
use crate::models::layers::per_layer_input::{PerLayerInput, PerLayerInputs};
use crate::models::load::RowSelection;

impl DecoderLoader<'_> {
    /// Loads the weights that make the inputs of all layers, in models with such inputs.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn per_layer_inputs(&self) -> Result<Option<PerLayerInputs>> {
        let ModelConfig { hidden_size, per_layer_input_size, ref layers, .. } = *self.config;
        let (Some(names), Some(width)) = (&self.layout.per_layer_input, per_layer_input_size) else {
            return Ok(None);
        };
        let n_columns = layers.len() * width;
        let embedding = format!("{}.weight", self.name(names.embedding));
        let n_rows = self.weights.n_rows(&embedding).unwrap_or(self.config.n_vocab);
        let rows = RowSelection::all(n_columns);
        Ok(Some(PerLayerInputs {
            embedding: self.weights.matrix(
                &embedding,
                &RowSelection::all(n_rows),
                n_columns,
                self.backend,
            )?,
            n_rows,
            projection: self.linear(&self.name(names.projection), &rows, hidden_size)?,
            projection_norm: self.norm(&self.name(names.projection_norm), width, self.gemma_norm())?,
        }))
    }

    /// The part of a layer that adds its own input to the residual.
    pub(super) fn per_layer_input(&self, name: &dyn Fn(&str) -> String) -> Result<Option<PerLayerInput>> {
        let ModelConfig { hidden_size, per_layer_input_size, activation, .. } = *self.config;
        let (Some(names), Some(width)) = (&self.layout.per_layer_input, per_layer_input_size) else {
            return Ok(None);
        };
        Ok(Some(PerLayerInput {
            gate: self.linear(&name(names.gate), &RowSelection::all(width), hidden_size)?,
            activation,
            projection: self.linear(&name(names.output), &RowSelection::all(hidden_size), width)?,
            post_norm: self.norm(&name(names.post_norm), hidden_size, self.gemma_norm())?,
        }))
    }

    /// Loads the weights of residual streams outside of layers, in models with several streams.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn altup_streams(&self) -> Result<Option<AltUpStreams>> {
        let (Some(names), Some(AltUpConfig { n_streams, .. })) = (&self.layout.altup, self.config.altup)
        else {
            return Ok(None);
        };
        Ok(Some(AltUpStreams {
            projections: self.stream_projections(names.projections, n_streams - 1)?,
            output_projections: self.stream_projections(names.output_projections, n_streams - 1)?,
        }))
    }

    fn stream_projections(&self, names: StreamProjections, n: usize) -> Result<Vec<Linear>> {
        let hidden_size = self.config.hidden_size;
        let projection = |idx: usize| match names {
            StreamProjections::Split(prefix) => {
                let name = self.name(&format!("{prefix}.{idx}"));
                self.linear(&name, &RowSelection::all(hidden_size), hidden_size)
            }
            StreamProjections::Stacked(name) => {
                let rows = idx * hidden_size..(idx + 1) * hidden_size;
                self.linear(&self.name(name), &RowSelection::range(rows, n * hidden_size), hidden_size)
            }
        };
        (0..n).map(projection).collect()
    }

    /// The updates of residual streams in a layer.
    pub(super) fn altup(&self, name: &dyn Fn(&str) -> String) -> Result<Option<AltUp>> {
        let (Some(names), Some(altup)) = (&self.layout.altup, self.config.altup) else { return Ok(None) };
        let AltUpConfig { n_streams, active, has_gate_scale } = altup;
        let hidden_size = self.config.hidden_size;
        let linear =
            |part: &str, n_out: usize, n_in: usize| self.linear(&name(part), &RowSelection::all(n_out), n_in);
        let mut router_norm = self.norm(&name(names.router_norm), hidden_size, self.gemma_norm())?;
        router_norm.weight.iter_mut().for_each(|weight| *weight /= hidden_size as f32);
        let gate_scale =
            || Ok::<_, Error>(self.weights.vector(&name(names.gate_scale), hidden_size)?.to_vec1::<f32>()?);
        Ok(Some(AltUp {
            active,
            router_norm,
            router: linear(names.router, n_streams, hidden_size)?,
            prediction: linear(names.prediction, n_streams * n_streams, n_streams)?,
            correction: linear(names.correction, n_streams, n_streams)?,
            gate_scale: has_gate_scale.then(gate_scale).transpose()?,
        }))
    }

    /// The augmentation of a layer's residual.
    pub(super) fn laurel(&self, name: &dyn Fn(&str) -> String) -> Result<Option<Laurel>> {
        let Some(names) = &self.layout.laurel else { return Ok(None) };
        let hidden_size = self.config.hidden_size;
        let left = name(names.left);
        let rank = self.weights.n_rows(&format!("{left}.weight")).unwrap_or(0);
        Ok(Some(Laurel {
            left: self.linear(&left, &RowSelection::all(rank), hidden_size)?,
            right: self.linear(&name(names.right), &RowSelection::all(hidden_size), rank)?,
            post_norm: self.norm(&name(names.post_norm), hidden_size, self.gemma_norm())?,
        }))
    }

    /// The factor of a layer's output.
    pub(super) fn output_scale(&self, name: &dyn Fn(&str) -> String) -> Result<Option<f64>> {
        let stored = self.layout.output_scale.map(name).filter(|part| self.weights.contains(part));
        let scale = |part: String| Ok::<_, Error>(self.weights.vector(&part, 1)?.to_vec1::<f32>()?[0]);
        Ok(stored.map(scale).transpose()?.map(f64::from))
    }

    /// A dense MLP beside a mixture of experts.
    pub(super) fn dense_moe(
        &self,
        name: &dyn Fn(&str) -> String,
        layer: &LayerConfig,
        moe: &MoeConfig,
    ) -> Result<DenseMoE> {
        let names = self.layout.dense_moe.as_ref();
        let names = names.ok_or_else(|| Error::internal("a dense MLP beside a mixture has no names"))?;
        let hidden_size = self.config.hidden_size;
        let norm = |part: &str| self.norm(&name(part), hidden_size, self.gemma_norm());
        let mut router_weight =
            self.weights.vector(&name(names.router_scale), hidden_size)?.to_vec1::<f32>()?;
        let factor = 1.0 / (hidden_size as f32).sqrt();
        router_weight.iter_mut().for_each(|weight| *weight *= factor);
        Ok(DenseMoE {
            dense: self.dense_mlp(name, layer)?,
            dense_post_norm: norm(names.dense_post_norm)?,
            moe: self.moe(name, moe)?,
            router_norm: RmsNorm { weight: router_weight, eps: self.config.rms_norm_eps as f32 },
            moe_norm: norm(names.moe_norm)?,
            moe_post_norm: norm(names.moe_post_norm)?,
        })
    }

    fn gemma_norm(&self) -> StoredNorm {
        StoredNorm { offset: self.layout.norm_offset, eps: self.config.rms_norm_eps }
    }
}
