//! The kinds of models.

use std::fmt;

/// The kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Generates text.
    Chat,
    /// Computes embeddings of texts.
    Embedding,
    /// Scores documents against a query.
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
