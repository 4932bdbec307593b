//! What a model is for.

use std::fmt;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Generating text.
    Chat,
    /// Turning texts into vectors.
    Embedding,
    /// Scoring documents against a query.
    Reranker,
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Reranker => "reranking",
        })
    }
}
