//! Loads the recurrent mixers of a decoder's layers.

use super::config::{LinearAttentionConfig, ModelConfig, Recurrence};
use super::layer::Mixer;
use super::layout::{RecurrenceInputs, RecurrenceNames};
use super::loader::DecoderLoader;
use crate::error::{Error, Result};
use crate::kernels::recurrent::linear_attention::{HeadShape, UpdateRule};
use crate::models::layers::causal_conv::ConvWeights;
use crate::models::layers::linear::Linear;
use crate::models::layers::linear_attention::{GatedRmsNorm, LinearAttentionMixer};
use crate::models::layers::short_conv::ShortConvMixer;
use crate::models::load::RowSelection;

impl DecoderLoader<'_> {
    /// Loads the recurrent mixer of a layer, whose tensors have the names that `name` makes.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub(super) fn recurrent_mixer(&self, name: &dyn Fn(&str) -> String) -> Result<Mixer> {
        let (Some(names), Some(recurrence)) = (&self.layout.recurrence, &self.config.recurrence) else {
            return Err(Error::internal("a family with recurrent layers has no names for them"));
        };
        match recurrence {
            Recurrence::LinearAttention(config) => {
                Ok(Mixer::LinearAttention(Box::new(self.linear_attention(name, names, config)?)))
            }
            Recurrence::ShortConv { kernel } => {
                Ok(Mixer::ShortConv(Box::new(self.short_conv(name, names, *kernel)?)))
            }
        }
    }

    fn short_conv(
        &self,
        name: &dyn Fn(&str) -> String,
        names: &RecurrenceNames,
        kernel: usize,
    ) -> Result<ShortConvMixer> {
        let hidden_size = self.config.hidden_size;
        let RecurrenceInputs::Fused(input) = names.inputs else {
            return Err(Error::internal("a short convolution has one input projection"));
        };
        Ok(ShortConvMixer {
            input: self.linear(&name(input), &RowSelection::all(3 * hidden_size), hidden_size)?,
            conv: self.conv(&name(names.conv), hidden_size, kernel)?,
            output: self.linear(&name(names.output), &RowSelection::all(hidden_size), hidden_size)?,
        })
    }

    fn linear_attention(
        &self,
        name: &dyn Fn(&str) -> String,
        names: &RecurrenceNames,
        config: &LinearAttentionConfig,
    ) -> Result<LinearAttentionMixer> {
        let ModelConfig { hidden_size, rms_norm_eps, .. } = *self.config;
        let LinearAttentionConfig { rule, shape, conv_kernel, norm_group, gates_first, .. } = *config;
        let per_head =
            |part: &str| Ok::<_, Error>(self.weights.vector(&name(part), shape.n_heads)?.to_vec1::<f32>()?);
        let mut decay_rates = per_head(names.decay)?;
        if names.has_log_decay {
            decay_rates.iter_mut().for_each(|rate| *rate = -rate.exp());
        }
        let has_skip = matches!(rule, UpdateRule::StateSpace { .. });
        let norm = |group_len: usize| {
            // The delta rule has the same factors for all heads.
            let n = if has_skip { shape.inner_len() } else { group_len };
            let weight = self.weights.vector(&format!("{}.weight", name(names.norm)), n)?.to_vec1()?;
            Ok::<_, Error>(GatedRmsNorm { weight, eps: rms_norm_eps as f32, group_len, gates_first })
        };
        let output_rows = RowSelection::all(hidden_size);
        Ok(LinearAttentionMixer {
            rule,
            shape,
            projections: self.input_projections(name, names.inputs, &shape)?,
            column_scales: config.column_scales.clone(),
            conv: self.conv(&name(names.conv), shape.conv_channels(), conv_kernel)?,
            decay_rates,
            step_bias: per_head(names.step_bias)?,
            skip: has_skip.then(|| per_head(names.skip)).transpose()?,
            norm: norm_group.map(norm).transpose()?,
            output: self.linear(&name(names.output), &output_rows, shape.inner_len())?,
        })
    }

    /// The projections to what is convolved, to gates, to steps and to `beta`.
    fn input_projections(
        &self,
        name: &dyn Fn(&str) -> String,
        inputs: RecurrenceInputs,
        shape: &HeadShape,
    ) -> Result<Vec<Linear>> {
        let HeadShape { n_heads, n_key_heads, key_dim, value_dim, .. } = *shape;
        let (n_conv, n_gate) = (shape.conv_channels(), shape.inner_len());
        let load = |part: &str, rows: RowSelection| self.linear(&name(part), &rows, self.config.hidden_size);
        let heads_per_key = n_heads / n_key_heads;
        // Of each key head, `n` rows from `first` on, of `n_stored`.
        let by_key_head = |first: usize, n: usize, n_stored: usize| {
            (0..n_key_heads).flat_map(move |head| head * n_stored + first..head * n_stored + first + n)
        };
        let beta_step = |first: usize| {
            RowSelection::indices(by_key_head(first, heads_per_key, 2 * heads_per_key), 2 * n_heads)
        };
        match inputs {
            RecurrenceInputs::Split { conv, gate, step, beta } => Ok(vec![
                load(conv, RowSelection::all(n_conv))?,
                load(gate, RowSelection::all(n_gate))?,
                load(step, RowSelection::all(n_heads))?,
                load(beta, RowSelection::all(n_heads))?,
            ]),
            RecurrenceInputs::SplitBetaStep { conv, gate, beta_step: name } => Ok(vec![
                load(conv, RowSelection::all(n_conv))?,
                load(gate, RowSelection::all(n_gate))?,
                load(name, beta_step(heads_per_key))?,
                load(name, beta_step(0))?,
            ]),
            RecurrenceInputs::ByKeyHead { conv_gate, beta_step: name } => {
                let n_values = heads_per_key * value_dim;
                let n_stored = 2 * key_dim + 2 * n_values;
                let rows = |first: usize, n: usize| by_key_head(first, n, n_stored);
                let conv = rows(0, key_dim).chain(rows(key_dim, key_dim)).chain(rows(2 * key_dim, n_values));
                let gate = rows(2 * key_dim + n_values, n_values);
                let n_all = n_key_heads * n_stored;
                Ok(vec![
                    load(conv_gate, RowSelection::indices(conv, n_all))?,
                    load(conv_gate, RowSelection::indices(gate, n_all))?,
                    load(name, beta_step(heads_per_key))?,
                    load(name, beta_step(0))?,
                ])
            }
            RecurrenceInputs::Fused(input) => {
                let n_all = n_gate + n_conv + n_heads;
                let range =
                    |start: usize, n: usize| load(input, RowSelection::range(start..start + n, n_all));
                Ok(vec![range(n_gate, n_conv)?, range(0, n_gate)?, range(n_gate + n_conv, n_heads)?])
            }
        }
    }

    /// A causal convolution, stored as `[channels, kernel]`.
    fn conv(&self, name: &str, n_channels: usize, kernel: usize) -> Result<ConvWeights> {
        let stored = self.weights.vector(&format!("{name}.weight"), n_channels * kernel)?.to_vec1::<f32>()?;
        let weight = (0..kernel).flat_map(|idx| stored.iter().skip(idx).step_by(kernel)).copied().collect();
        let bias_name = format!("{name}.bias");
        let bias = self.weights.contains(&bias_name).then(|| self.weights.vector(&bias_name, n_channels));
        let bias = bias.transpose()?.map(|bias| bias.to_vec1()).transpose()?;
        Ok(ConvWeights { weight, bias, kernel })
    }
}
