//! Alternating updates (AltUp, Baykal et al., 2023): several residual streams, of which a layer computes one. The streams
//! after the layer are first predicted, and then corrected by the layer's output.

use candle_core::{D, Tensor};

use super::linear::Linear;
use super::norm::{RmsNorm, RowNorm};
use crate::error::Result;
use crate::kernels::isa::Isa;
use crate::models::backend::DEVICE;

/// The weights that make residual streams of embeddings, and an output of streams.
#[derive(Debug, Clone)]
pub struct AltUpStreams {
    /// The projections of embeddings to all streams but the first, each `[hidden, hidden]`.
    pub projections: Vec<Linear>,
    /// The projections of these streams to parts of the output, each `[hidden, hidden]`.
    pub output_projections: Vec<Linear>,
}

/// The weights of alternating updates in one layer.
#[derive(Debug, Clone)]
pub struct AltUp {
    /// The index of the stream that the layer computes.
    pub active: usize,
    /// The norm before the router; its weights include the router's input scale.
    pub router_norm: RmsNorm,
    /// The router, `[n_streams, hidden]`.
    pub router: Linear,
    /// The coefficients of predictions, `[n_streams * n_streams, n_streams]`.
    pub prediction: Linear,
    /// The coefficients of corrections, less one, `[n_streams, n_streams]`.
    pub correction: Linear,
    /// The factors of the active stream where it gates the layer's own input, `[hidden]`.
    pub gate_scale: Option<Vec<f32>>,
}

/// The least mean square that a projected stream is divided by the root of.
const MIN_MEAN_SQUARE: f32 = 1e-5;

impl AltUpStreams {
    /// Makes streams of embeddings, `[n_tokens, hidden]` to `[n_tokens, n_streams, hidden]`. All have the magnitude of the
    /// embedding.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn expand(&self, embeddings: &Tensor) -> Result<Tensor> {
        let mut streams = vec![embeddings.clone()];
        for projection in &self.projections {
            streams.push(with_magnitude_of(embeddings, &projection.forward(embeddings)?)?);
        }
        Ok(Tensor::stack(&streams, 1)?)
    }

    /// Returns the mean of the projected streams, `[n_tokens, n_streams, hidden]` to `[n_tokens, hidden]`. All have the
    /// magnitude of the first.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn merge(&self, streams: &Tensor) -> Result<Tensor> {
        let first = stream(streams, 0)?;
        let mut sum = first.clone();
        for (idx, projection) in self.output_projections.iter().enumerate() {
            let projected = projection.forward(&stream(streams, idx + 1)?)?;
            sum = (sum + with_magnitude_of(&first, &projected)?)?;
        }
        Ok((sum / (self.output_projections.len() + 1) as f64)?)
    }
}

impl AltUp {
    /// Predicts the streams after the layer; `streams` and the result are `[n_tokens, n_streams, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn predict(&self, isa: Option<Isa>, streams: &Tensor) -> Result<Tensor> {
        let (n_tokens, n_streams, _) = streams.dims3()?;
        let routed = self.route(isa, &stream(streams, self.active)?)?;
        let coefficients = self.prediction.forward(&routed)?.reshape((n_tokens, n_streams, n_streams))?;
        Ok((coefficients.matmul(streams)? + streams)?)
    }

    /// Returns the stream that the layer computes, `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn active_stream(&self, streams: &Tensor) -> Result<Tensor> {
        stream(streams, self.active)
    }

    /// Corrects the predicted streams by the layer's output `y`, `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn correct(&self, isa: Option<Isa>, predicted: &Tensor, y: &Tensor) -> Result<Tensor> {
        let innovation = (y - stream(predicted, self.active)?)?.unsqueeze(1)?;
        let coefficients = (self.correction.forward(&self.route(isa, y)?)? + 1.0)?.unsqueeze(2)?;
        Ok((innovation.broadcast_mul(&coefficients)? + predicted)?)
    }

    /// Returns the active stream as it gates the layer's own input, `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn gate_stream(&self, streams: &Tensor) -> Result<Tensor> {
        let active = stream(streams, self.active)?;
        match &self.gate_scale {
            Some(scale) => Ok(active.broadcast_mul(&Tensor::new(scale.as_slice(), &DEVICE)?)?),
            None => Ok(active),
        }
    }

    /// Adds `x`, `[n_tokens, hidden]`, to all streams but the first.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn add_to_others(&self, streams: &Tensor, x: &Tensor) -> Result<Tensor> {
        let n_others = streams.dims3()?.1 - 1;
        let first = streams.narrow(1, 0, 1)?;
        let others = streams.narrow(1, 1, n_others)?.broadcast_add(&x.unsqueeze(1)?)?;
        Ok(Tensor::cat(&[first, others], 1)?)
    }

    /// `tanh(router(norm(x)))`, `[n_tokens, n_streams]`.
    fn route(&self, isa: Option<Isa>, x: &Tensor) -> Result<Tensor> {
        Ok(self.router.forward(&self.router_norm.apply(isa, x)?)?.tanh()?)
    }
}

/// One of the streams, `[n_tokens, hidden]`.
fn stream(streams: &Tensor, idx: usize) -> Result<Tensor> {
    Ok(streams.narrow(1, idx, 1)?.squeeze(1)?.contiguous()?)
}

/// Scales each row of `x` to the root mean square of that row of `target`.
fn with_magnitude_of(target: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mean_square = |x: &Tensor| x.sqr()?.mean_keepdim(D::Minus1);
    let magnitude = mean_square(target)?.sqrt()?;
    let own = mean_square(x)?.maximum(MIN_MEAN_SQUARE)?.sqrt()?;
    Ok(x.broadcast_mul(&magnitude)?.broadcast_div(&own)?)
}
