//! The models that split text into tokens, and the parts of a tokenizer.

use super::bounds::with_bounds;
use super::pipeline::Pipeline;
use super::sentence_piece::SentencePiece;
use super::special::SpecialToken;
use super::template::{PairTemplate, TextTemplate};
use crate::error::{Error, Kind, Result, catch_panic};

/// A text that occurs in no other: three noncharacters.
pub const SEPARATOR: &str = "\u{10FFFE}\u{10FFFF}\u{10FFFE}";

/// Encodes text without special tokens.
pub enum TokenizerModel {
    /// A model of the `tokenizers` crate, built from GGUF metadata.
    Crate(Box<Pipeline>),
    /// A model of the `tokenizers` crate, read from a `tokenizer.json`. Text that is not at the start is
    /// encoded behind [`SEPARATOR`], whose token is then dropped, since some models encode the start of a
    /// text differently.
    Json {
        /// The crate's tokenizer.
        inner: Box<Pipeline>,
        /// The id of [`SEPARATOR`].
        separator: u32,
    },
    /// SentencePiece BPE.
    SentencePiece(SentencePiece),
}

impl TokenizerModel {
    /// Appends the ids of `text` to `ids`; `at_start` says whether the text stands at the start of a prompt or
    /// after a special token.
    ///
    /// # Errors
    /// When the model has no token for a part of the text and no unknown token, or the text exceeds a bound.
    pub fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Crate(inner) => ids.extend(run(inner, text)?),
            Self::Json { inner, separator } => {
                let prefix = if ids.is_empty() { "" } else { SEPARATOR };
                let encoded = run(inner, &format!("{prefix}{text}"))?;
                ids.extend(encoded.iter().filter(|&id| id != separator));
            }
            Self::SentencePiece(model) => model.encode(text, at_start, ids),
        }
        Ok(())
    }
}

/// The ids of a text. A panic of the crate, which a damaged file may cause, is an error.
fn run(pipeline: &Pipeline, text: &str) -> Result<Vec<u32>> {
    let encode = || pipeline.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec());
    match catch_panic(|| with_bounds(text.len(), encode)) {
        Ok(Ok(Ok(ids))) => Ok(ids),
        Ok(Ok(Err(e))) => Err(Error::internal(format!("cannot tokenize the text: {e}"))),
        Ok(Err(e)) => Err(Error::new(Kind::InvalidRequest, format!("{e}; send a shorter or plainer text"))),
        Err(place) => {
            tracing::warn!(place, "the tokenizer's library fails");
            Err(Error::model("the model's tokenizer fails for the text; see the server's log"))
        }
    }
}

/// The parts from which a tokenizer is assembled.
pub struct TokenizerParts {
    /// Encodes the text between special tokens.
    pub model: TokenizerModel,
    /// All special tokens.
    pub special_tokens: Vec<SpecialToken>,
    /// The bytes of each token by id; empty for special tokens.
    pub token_bytes: Vec<Vec<u8>>,
    /// The template of a single text.
    pub template: TextTemplate,
    /// The template of two texts, if the model has one.
    pub pair_template: Option<PairTemplate>,
    /// Whether the model puts a space before a text, which its decoder removes.
    pub has_space_prefix: bool,
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
    /// Whether every prompt starts with `bos`.
    pub add_bos: bool,
}
