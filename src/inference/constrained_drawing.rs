//! Drawing a token that a grammar allows, in stages: between them, the grammar's threads work.

use super::grammar::{AllowedTokens, Constraint, TokenVerdict};
use super::sampling::Sampler;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// A draw that waits for the grammar.
pub struct PendingDraw {
    /// The adjusted logits.
    pub logits: Vec<f32>,
    /// The stage that it waits in.
    pub stage: DrawStage,
}

/// The stage of a draw.
#[derive(Debug, Clone, Copy)]
pub enum DrawStage {
    /// Nothing is drawn.
    Start,
    /// The token is drawn from all, and the grammar checks it.
    Checked(u32),
    /// The grammar computes a mask to draw from.
    Masked,
    /// The token is drawn from the mask, and the grammar advances by it.
    Consumed(u32),
}

/// A sampled token.
#[derive(Debug, Clone, Copy)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Whether the grammar has the text end with it.
    pub is_complete: bool,
}

/// Everything that takes part in a draw.
pub struct ConstrainedDrawing<'a> {
    /// Draws tokens.
    pub sampler: &'a mut Sampler,
    /// The grammar at the text's position.
    pub constraint: &'a mut Constraint,
    /// Knows the texts of tokens.
    pub tokenizer: &'a Tokenizer,
    /// Special tokens whose text is part of the text.
    pub visible_tokens: &'a [u32],
    /// Tokens that end the text.
    pub end_tokens: &'a [u32],
    /// Whether the text may end here.
    pub may_end: bool,
}

/// Sets the logits of tokens to minus infinity.
pub fn forbid(tokens: &[u32], logits: &mut [f32]) {
    for &token in tokens {
        logits.get_mut(token as usize).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
    }
}

impl ConstrainedDrawing<'_> {
    /// Continues a draw until it is done or waits; `None` while it waits.
    ///
    /// # Errors
    /// When the text cannot follow its grammar.
    pub fn resume(&mut self, draw: &mut PendingDraw) -> Result<Option<SampledToken>> {
        // Most tokens are allowed anyway, and the mask takes longer to compute than a single token to check. Drawing
        // from all tokens and, if the token is not allowed, again from the mask has the same distribution as drawing
        // from the mask at once.
        loop {
            draw.stage = match draw.stage {
                DrawStage::Start if !self.constraint.mask_pending() => DrawStage::Masked,
                DrawStage::Start => {
                    let token = self.sampler.draw(&draw.logits)?;
                    if self.end_tokens.contains(&token) {
                        DrawStage::Masked
                    } else {
                        match self
                            .constraint
                            .check(token, self.tokenizer.visible_bytes(token, self.visible_tokens))?
                        {
                            TokenVerdict::Accepted { is_complete } => {
                                return Ok(Some(SampledToken { token, is_complete }));
                            }
                            TokenVerdict::Pending => DrawStage::Checked(token),
                            TokenVerdict::Refused => DrawStage::Masked,
                        }
                    }
                }
                DrawStage::Checked(token) => match self.constraint.verdict()? {
                    TokenVerdict::Pending => return Ok(None),
                    TokenVerdict::Accepted { is_complete } => {
                        return Ok(Some(SampledToken { token, is_complete }));
                    }
                    TokenVerdict::Refused => DrawStage::Masked,
                },
                DrawStage::Masked => {
                    let Some(token) = self.draw_allowed(&mut draw.logits)? else { return Ok(None) };
                    if self.end_tokens.contains(&token) {
                        return Ok(Some(SampledToken { token, is_complete: false }));
                    }
                    match self
                        .constraint
                        .consume(token, self.tokenizer.visible_bytes(token, self.visible_tokens))?
                    {
                        TokenVerdict::Accepted { is_complete } => {
                            return Ok(Some(SampledToken { token, is_complete }));
                        }
                        _ => DrawStage::Consumed(token),
                    }
                }
                DrawStage::Consumed(token) => match self.constraint.verdict()? {
                    TokenVerdict::Accepted { is_complete } => {
                        return Ok(Some(SampledToken { token, is_complete }));
                    }
                    _ => return Ok(None),
                },
            }
        }
    }

    /// Draws from the tokens that the grammar allows; `None` while these are not known.
    fn draw_allowed(&mut self, logits: &mut [f32]) -> Result<Option<u32>> {
        let may_end = self.may_end && !self.constraint.is_in_preamble();
        match self.constraint.allowed_tokens()? {
            AllowedTokens::Pending => return Ok(None),
            AllowedTokens::All => forbid(if may_end { &[] } else { self.end_tokens }, logits),
            AllowedTokens::Masked(mask, extra) => {
                let extra = extra.and_then(|token| Some((token as usize, *logits.get(token as usize)?)));
                mask.apply_mask(logits);
                extra.into_iter().for_each(|(token, logit)| logits[token] = logit);
                if !may_end && mask.has_tokens_besides(self.end_tokens) {
                    forbid(self.end_tokens, logits);
                }
            }
        }
        self.sampler.draw(logits).map(Some)
    }
}
