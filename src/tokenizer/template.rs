//! The special tokens that a model's template puts around texts, such as `[CLS] … [SEP]`.

/// The template of a single text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextTemplate {
    /// Ids before the text.
    pub before: Vec<u32>,
    /// Ids after the text.
    pub after: Vec<u32>,
}

impl TextTemplate {
    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.before.iter().chain(&self.after).copied()
    }
}

/// The template of two texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairTemplate {
    /// Ids before the first text.
    pub before: Vec<u32>,
    /// Ids between the texts.
    pub between: Vec<u32>,
    /// The number of ids in `between` that belong to the first text.
    pub n_between_first: usize,
    /// Ids after the second text.
    pub after: Vec<u32>,
}

impl PairTemplate {
    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.before.iter().chain(&self.between).chain(&self.after).copied()
    }
}
