//! The parts every model is made of, in plain candle ops.
//!
//! A decoder layer is four operations ([`decoder_layer`]); each is one function here, so that a
//! fused kernel can take its place and be tested against it.

pub mod activation;
pub mod attention;
pub mod decoder_layer;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod rope;
