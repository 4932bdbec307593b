//! The layers that models are made of, each as a kernel call and in plain candle operations.
//!
//! Every operation is one function with both implementations, so that a fused kernel can be tested against
//! its reference.

pub mod activation;
pub mod altup;
pub mod attention;
pub mod causal_conv;
pub mod dense_moe;
pub mod laurel;
pub mod linear;
pub mod linear_attention;
pub mod mixer;
pub mod mlp;
pub mod norm;
pub mod per_layer_input;
pub mod rope;
pub mod short_conv;
