//! The wire types of Anthropic's Messages API and the treatment of its parameters. Uses only serde and schemars.

pub mod batches;
pub mod error;
pub mod messages;
pub mod params;
pub mod response;
