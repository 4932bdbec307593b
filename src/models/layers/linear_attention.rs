//! Linear attention as a mixer: the gated delta net of Qwen3.5 and Qwen3-Next, and Mamba-2. Projections, a causal
//! convolution, the recurrence of matrix states, a gated norm, and the output projection.

use candle_core::{D, Tensor};
use candle_nn::ops::{rms_norm, silu};

use super::causal_conv::{ConvWeights, convolution_inputs, convolve};
use super::linear::{Linear, concat_linear, linear_residual};
use super::mixer::{MixerInput, for_each_sequence};
use crate::error::Result;
use crate::kernels::custom_ops::{LinearAttentionOp, RecurrentLayer};
use crate::kernels::isa::Isa;
use crate::kernels::recurrent::linear_attention::{GatedNorm, HeadShape, LinearAttention, UpdateRule};
use crate::kernels::recurrent::{LayerRows, SequenceState, StateLayout};
use crate::models::backend::DEVICE;

/// The weights of linear attention in one layer.
#[derive(Debug, Clone)]
pub struct LinearAttentionMixer {
    /// The update of the state.
    pub rule: UpdateRule,
    /// The heads.
    pub shape: HeadShape,
    /// The projections whose outputs make up an input row: what is convolved, the gates of outputs, the steps, and for
    /// the delta rule `beta`.
    pub projections: Vec<Linear>,
    /// Factors of the columns of an input row.
    pub column_scales: Option<Vec<f32>>,
    /// The causal convolution.
    pub conv: ConvWeights,
    /// For each head the logarithm of the decay per step.
    pub decay_rates: Vec<f32>,
    /// Addend of each head's step.
    pub step_bias: Vec<f32>,
    /// Factor of each head's values that are added to its outputs.
    pub skip: Option<Vec<f32>>,
    /// The gated norm of outputs.
    pub norm: Option<GatedRmsNorm>,
    /// The output projection, `[hidden, inner]`.
    pub output: Linear,
}

/// An RMS norm of groups of columns with a gate before or after it; see [`GatedNorm`].
#[derive(Debug, Clone)]
pub struct GatedRmsNorm {
    /// Factors of a row, or of each group in it.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
    /// Columns that are normed together.
    pub group_len: usize,
    /// Whether outputs are gated before they are normed.
    pub gates_first: bool,
}

impl LinearAttentionMixer {
    /// Computes the mixer for the new tokens of all `sequences`, whose state in recurrent layer `layer` takes them in, and
    /// adds its output to the residual.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        isa: Option<Isa>,
        input: &MixerInput,
        layout: &StateLayout,
        layer: usize,
        sequences: &mut [SequenceState],
    ) -> Result<Tensor> {
        let projections: Vec<&Linear> = self.projections.iter().collect();
        let mut rows = concat_linear(input.norm, &projections, input.x)?;
        if let Some(scales) = &self.column_scales {
            rows = rows.broadcast_mul(&Tensor::new(scales.as_slice(), &DEVICE)?)?;
        }
        let y = match isa {
            Some(isa) => {
                let states = RecurrentLayer::new(layout, layer, sequences);
                let attention = self.kernel_params();
                rows.apply_op1_no_bwd(&LinearAttentionOp { isa, attention, states })?
            }
            None => for_each_sequence(&rows, layout, layer, sequences, |sequence| {
                self.reference(layout, sequence)
            })?,
        };
        linear_residual(&self.output, input.add, &y, input.residual)
    }

    fn kernel_params(&self) -> LinearAttention<'_> {
        LinearAttention {
            rule: self.rule,
            shape: self.shape,
            conv: self.conv.kernel_params(),
            decay_rates: &self.decay_rates,
            step_bias: &self.step_bias,
            skip: self.skip.as_deref(),
            norm: self.norm.as_ref().map(|norm| GatedNorm {
                weight: &norm.weight,
                eps: norm.eps,
                group_len: norm.group_len,
                gates_first: norm.gates_first,
            }),
        }
    }

    /// The outputs of a sequence's new rows, `[n_new_rows, inner]`, in plain candle operations, token by token.
    fn reference(&self, layout: &StateLayout, sequence: &mut LayerRows) -> Result<Tensor> {
        let HeadShape { n_heads, n_key_heads, key_dim, value_dim, .. } = self.shape;
        let (n_channels, inner) = (self.shape.conv_channels(), self.shape.inner_len());
        let (n_rows, n_columns) = (sequence.rows.len(), self.rule.n_columns(&self.shape));
        let rows = Tensor::from_vec(sequence.rows.concat(), (n_rows, n_columns), &DEVICE)?;
        let inputs = rows.narrow(1, 0, n_channels)?;
        let inputs = convolution_inputs(layout, sequence.state, &inputs)?;
        let convolved = silu(&convolve(&self.conv, &inputs)?)?;
        let heads = |start: usize, n: usize, dim: usize| -> Result<Tensor> {
            Ok(convolved.narrow(1, start, n * dim)?.contiguous()?.reshape((n_rows, n, dim))?)
        };
        let [query, key, value] = self.rule.starts(&self.shape);
        let (mut query, mut key) = (heads(query, n_key_heads, key_dim)?, heads(key, n_key_heads, key_dim)?);
        let value = heads(value, n_heads, value_dim)?;
        if self.rule == UpdateRule::GatedDelta {
            let normalize = |x: &Tensor| -> Result<Tensor> {
                let lengths = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
                Ok(x.broadcast_div(&lengths)?)
            };
            (query, key) = ((normalize(&query)? / (key_dim as f64).sqrt())?, normalize(&key)?);
        }
        let key_heads: Vec<u32> = (0..n_heads).map(|head| self.shape.key_head(head) as u32).collect();
        let key_heads = Tensor::new(key_heads, &DEVICE)?;
        let (query, key) = (query.index_select(&key_heads, 1)?, key.index_select(&key_heads, 1)?);
        let matrices_start = layout.conv_rows * layout.conv_channels;
        let mut state = self.read_state(&sequence.state[matrices_start..])?;
        let mut outputs = Vec::with_capacity(n_rows);
        let mut kept = sequence.snapshots.iter().map(|_| None).collect::<Vec<_>>();
        let mut final_state = None;
        for row in 0..=n_rows {
            for ((n, _), kept) in sequence.snapshots.iter().zip(&mut kept) {
                if *n == row {
                    *kept = Some(state.clone());
                }
            }
            if row == sequence.n_taken_in {
                final_state = Some(state.clone());
            }
            if row == n_rows {
                break;
            }
            let gates: Vec<[f32; 2]> = self.gates(sequence.rows[row]);
            let gate = |idx: usize| {
                let gates: Vec<f32> = gates.iter().map(|gates| gates[idx]).collect();
                Tensor::from_vec(gates, (n_heads, 1, 1), &DEVICE)
            };
            let of_row = |x: &Tensor| x.get(row)?.unsqueeze(1);
            let (query, key, value) = (of_row(&query)?, of_row(&key)?, of_row(&value)?);
            state = state.broadcast_mul(&gate(0)?)?;
            let added = match self.rule {
                UpdateRule::GatedDelta => (&value - key.matmul(&state)?)?,
                UpdateRule::StateSpace { .. } => value.clone(),
            };
            state = (state + key.transpose(1, 2)?.matmul(&added.broadcast_mul(&gate(1)?)?)?)?;
            let mut output = query.matmul(&state)?;
            if let Some(skip) = &self.skip {
                let skip = Tensor::from_slice(skip, (n_heads, 1, 1), &DEVICE)?;
                output = (output + value.broadcast_mul(&skip)?)?;
            }
            outputs.push(output.reshape((1, inner))?);
        }
        let kept_inputs = |n: usize| -> Result<Vec<f32>> {
            Ok(inputs.narrow(0, n, layout.conv_rows)?.flatten_all()?.to_vec1()?)
        };
        for ((n, place), state) in sequence.snapshots.iter_mut().zip(kept) {
            if let Some(state) = state {
                place[..matrices_start].copy_from_slice(&kept_inputs(*n)?);
                self.write_state(&state, &mut place[matrices_start..])?;
            }
        }
        if let Some(state) = final_state {
            sequence.state[..matrices_start].copy_from_slice(&kept_inputs(sequence.n_taken_in)?);
            self.write_state(&state, &mut sequence.state[matrices_start..])?;
        }
        let first = sequence.n_replayed;
        let y = Tensor::cat(&outputs, 0)?.narrow(0, first, n_rows - first)?.contiguous()?;
        let gates =
            silu(&rows.narrow(1, n_channels, inner)?.narrow(0, first, n_rows - first)?.contiguous()?)?;
        self.gated_norm(&y, &gates)
    }

    fn gates(&self, row: &[f32]) -> Vec<[f32; 2]> {
        let n_heads = self.shape.n_heads;
        let (steps, betas) = row[self.shape.conv_channels() + self.shape.inner_len()..].split_at(n_heads);
        let gates = |head: usize| {
            let step = steps[head] + self.step_bias[head];
            self.rule.gates(self.decay_rates[head], step, betas.get(head).copied())
        };
        (0..n_heads).map(gates).collect()
    }

    fn gated_norm(&self, y: &Tensor, gates: &Tensor) -> Result<Tensor> {
        let Some(GatedRmsNorm { weight, eps, group_len, gates_first }) = &self.norm else {
            return Ok((y * gates)?);
        };
        let y = if *gates_first { (y * gates)? } else { y.clone() };
        let (n_rows, inner) = y.dims2()?;
        let groups = y.reshape((n_rows, inner / group_len, *group_len))?;
        let ones = Tensor::ones(*group_len, candle_core::DType::F32, &DEVICE)?;
        let weight = Tensor::new(weight.as_slice(), &DEVICE)?.reshape(((), *group_len))?;
        let normed = rms_norm(&groups, &ones, *eps)?.broadcast_mul(&weight)?.reshape((n_rows, inner))?;
        Ok(if *gates_first { normed } else { (normed * gates)? })
    }

    /// The states of all heads, `[n_heads, key_dim, value_dim]`.
    fn read_state(&self, stored: &[f32]) -> Result<Tensor> {
        let HeadShape { n_heads, key_dim, value_dim, .. } = self.shape;
        let values: Vec<f32> = self.shape.state_places().map(|place| stored[place]).collect();
        Ok(Tensor::from_vec(values, (n_heads, key_dim, value_dim), &DEVICE)?)
    }

    fn write_state(&self, state: &Tensor, stored: &mut [f32]) -> Result<()> {
        let values = state.flatten_all()?.to_vec1::<f32>()?;
        self.shape.state_places().zip(values).for_each(|(place, value)| stored[place] = value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::recurrent::StateSlot;
    use crate::models::layers::linear::{ResidualAdd, Weight};

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0).collect()
    }

    /// A mixer whose input rows are its input, and whose outputs are not projected.
    fn mixer(rule: UpdateRule, shape: HeadShape, norm: Option<(usize, bool)>) -> LinearAttentionMixer {
        let identity = |n: usize| {
            Linear::new(Weight::Dense(Tensor::eye(n, candle_core::DType::F32, &DEVICE).unwrap()), None)
        };
        let (n_channels, inner) = (shape.conv_channels(), shape.inner_len());
        LinearAttentionMixer {
            rule,
            shape,
            projections: vec![identity(rule.n_columns(&shape))],
            column_scales: None,
            conv: ConvWeights {
                weight: values(4 * n_channels, 1),
                bias: Some(values(n_channels, 2)),
                kernel: 4,
            },
            decay_rates: values(shape.n_heads, 3).into_iter().map(|rate| -0.1 - rate.abs()).collect(),
            step_bias: values(shape.n_heads, 4),
            skip: (rule != UpdateRule::GatedDelta).then(|| values(shape.n_heads, 5)),
            norm: norm.map(|(group_len, gates_first)| GatedRmsNorm {
                weight: values(if gates_first { inner } else { group_len }, 6),
                eps: 1e-5,
                group_len,
                gates_first,
            }),
            output: identity(inner),
        }
    }

    fn layout(shape: &HeadShape) -> StateLayout {
        let (conv_channels, matrices_len) = (shape.conv_channels(), shape.matrices_len());
        StateLayout { n_layers: 2, conv_channels, conv_rows: 3, matrices_len }
    }

    /// A batch of one sequence: its number of new rows, how many of them are drafts, and accepted drafts before them.
    struct Step {
        len: usize,
        n_drafts: usize,
        n_replayed: usize,
    }

    /// The outputs of rows that are not drafts, and a snapshot of the state after 20 rows.
    fn run(
        mixer: &LinearAttentionMixer,
        isa: Option<Isa>,
        steps: &[Step],
        n_neighbors: usize,
    ) -> (Vec<f32>, StateSlot) {
        let (layout, n_columns) = (layout(&mixer.shape), mixer.rule.n_columns(&mixer.shape));
        let inner = mixer.shape.inner_len();
        let mut slots = vec![StateSlot::new(&layout); 1 + n_neighbors];
        let mut snapshot = StateSlot::new(&layout);
        let (mut position, mut all) = (0, Vec::new());
        for &Step { len, n_drafts, n_replayed } in steps {
            let first = position;
            position += n_replayed + len - n_drafts;
            let rows = |sequence: usize| {
                let start = first + n_replayed;
                (start..start + len).flat_map(move |row| values(n_columns, 10 + row + 1000 * sequence))
            };
            let x: Vec<f32> = (0..=n_neighbors).flat_map(rows).collect();
            let x = Tensor::from_vec(x, ((1 + n_neighbors) * len, n_columns), &DEVICE).unwrap();
            let residual = Tensor::zeros(((1 + n_neighbors) * len, inner), x.dtype(), &DEVICE).unwrap();
            let input = MixerInput { norm: None, x: &x, residual: &residual, add: ResidualAdd::PLAIN };
            let mut sequences: Vec<SequenceState> = slots
                .iter_mut()
                .map(|slot| SequenceState { len, n_drafts, n_replayed, slot, snapshots: Vec::new() })
                .collect();
            if (first..=position).contains(&20) {
                sequences[0].snapshots.push((20 - first, &mut snapshot));
            }
            let y = mixer.forward(isa, &input, &layout, 1, &mut sequences).unwrap();
            // The rows of accepted drafts were computed in the step before.
            all.truncate(first * inner);
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all.resize((first + n_replayed) * inner, f32::NAN);
            all.extend(&y[..len * inner]);
        }
        all.truncate(position * inner);
        (all, snapshot)
    }

    #[test]
    fn the_kernels_equal_the_reference_in_steps_of_any_length() {
        let step = |len| Step { len, n_drafts: 0, n_replayed: 0 };
        let ways =
            [vec![step(40)], vec![step(7), step(16), step(1), step(16)], (0..40).map(|_| step(1)).collect()];
        let shape = |n_heads, n_key_heads, key_dim, value_dim, is_tiled| HeadShape {
            n_heads,
            n_key_heads,
            key_dim,
            value_dim,
            is_tiled,
        };
        let mamba2 = UpdateRule::StateSpace { min_step: 0.0, max_step: 1.5 };
        for (rule, shape, norm) in [
            (UpdateRule::GatedDelta, shape(4, 2, 16, 16, false), Some((16, false))),
            (UpdateRule::GatedDelta, shape(6, 2, 20, 70, true), Some((70, false))),
            (mamba2, shape(4, 2, 16, 24, false), Some((48, true))),
            (mamba2, shape(3, 1, 9, 130, false), None),
        ] {
            let mixer = mixer(rule, shape, norm);
            let (expected, _) = run(&mixer, None, &ways[0], 0);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let (whole, snapshot) = run(&mixer, Some(isa), &ways[0], 0);
                for (idx, (found, expected)) in whole.iter().zip(&expected).enumerate() {
                    let difference = (found - expected).abs() / (1.0 + expected.abs());
                    assert!(difference < 1e-4, "{isa} {shape:?} {idx}: {found} is not {expected}");
                }
                for (way, n_neighbors) in [(0, 2), (1, 0), (1, 2), (2, 1)] {
                    let found = run(&mixer, Some(isa), &ways[way], n_neighbors);
                    assert_eq!(found.0, whole, "{isa} {shape:?}, way {way} beside {n_neighbors}");
                    assert_eq!(found.1.values, snapshot.values, "{isa} {shape:?}, way {way}");
                }
            }
        }
    }

    #[test]
    fn drafts_leave_no_trace_and_accepted_ones_are_taken_in() {
        let shape = HeadShape { n_heads: 4, n_key_heads: 2, key_dim: 16, value_dim: 16, is_tiled: false };
        let mixer = mixer(UpdateRule::GatedDelta, shape, Some((16, false)));
        let step = |len, n_drafts, n_replayed| Step { len, n_drafts, n_replayed };
        let plain = [step(18, 0, 0), step(12, 0, 0)];
        // Of three drafts none, two and all are accepted; the rows of neighbors are the same.
        let with_drafts =
            [step(18, 0, 0), step(4, 3, 0), step(4, 3, 0), step(5, 3, 2), step(4, 3, 3), step(1, 0, 0)];
        let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Some);
        for isa in isas.chain([None]) {
            let (expected, snapshot) = run(&mixer, isa, &plain, 1);
            let (found, same_snapshot) = run(&mixer, isa, &with_drafts, 1);
            for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // Outputs of accepted drafts were returned by the step before, which the test forgets.
                assert!(
                    found.is_nan() || (found - expected).abs() < 1e-6,
                    "{isa:?} {idx}: {found} {expected}"
                );
            }
            assert_eq!(same_snapshot.values.len(), snapshot.values.len());
            let pairs = same_snapshot.values.iter().zip(&snapshot.values);
            assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6, "{isa:?}");
        }
    }
}
