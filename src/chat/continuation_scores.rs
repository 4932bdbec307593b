//! The probabilities of texts that may follow prompts with a common beginning.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::generation_request::scoring_request;
use super::model::ChatModel;
use crate::error::{Error, Kind, Result};
use crate::inference::Caller;
use crate::inference::{Admission, Event, Generation, GenerationRequest, Scoring};

/// Prompts with a common beginning, each with texts that may follow it.
pub struct ContinuationRequest {
    /// The common beginning.
    pub beginning: Vec<u32>,
    /// The prompts.
    pub prompts: Vec<ContinuedPrompt>,
    /// Tokens, any of which ends a text.
    pub ends: Vec<u32>,
    /// The sender.
    pub caller: Caller,
    /// The namespace of the prefix cache.
    pub cache_salt: Option<String>,
}

/// The rest of a prompt, and texts that may follow it.
pub struct ContinuedPrompt {
    /// The tokens after the common beginning.
    pub tokens: Vec<u32>,
    /// The texts.
    pub texts: Vec<Vec<u32>>,
}

/// The scores of texts, and what they took.
pub struct ContinuationScores {
    /// For each prompt, the natural logarithm of each text's probability, its end included.
    pub logprobs: Vec<Vec<f64>>,
    /// Tokens of all prompts; the common beginning counts once.
    pub n_tokens: usize,
    /// How many of them were in the prefix cache before.
    pub n_cached: usize,
}

/// How long to wait for a place in a full queue before asking again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long a request that was admitted waits for the place of its next prompt.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The prompts of a request while they are scored.
struct PromptRunner<'a> {
    model: &'a ChatModel,
    /// The prompts that wait or run in the engine, each with its index.
    running: Vec<(usize, Generation)>,
    logprobs: Vec<Vec<f64>>,
    /// Tokens found in the prefix cache by the first prompt, or by the common beginning before it. What later ones find
    /// may be the request's own.
    n_cached: Option<usize>,
}

impl ChatModel {
    /// Scores the texts of a request. The common beginning is computed first, so that all prompts find it in the prefix
    /// cache; then as many prompts as run at once are computed together.
    ///
    /// # Errors
    /// When a prompt does not fit the context, or the engine fails.
    pub async fn score_continuations(
        &self,
        admission: Admission,
        request: ContinuationRequest,
    ) -> Result<ContinuationScores> {
        let ContinuationRequest { beginning, prompts, ends, caller, cache_salt } = request;
        let n_tokens = beginning.len() + prompts.iter().map(|prompt| prompt.tokens.len()).sum::<usize>();
        let mut runner = PromptRunner {
            model: self,
            running: Vec::new(),
            logprobs: vec![Vec::new(); prompts.len()],
            n_cached: None,
        };
        if prompts.len() > 1 {
            let first = scoring_request(beginning.clone(), None, caller.clone(), cache_salt.clone());
            let generations = self.engine.submit(vec![admission], first)?;
            runner.running.extend(generations.into_iter().map(|generation| (0, generation)));
            runner.finish_next().await?;
        } else {
            drop(admission);
        }
        let ends: Arc<[u32]> = ends.into();
        let max_running = self.engine.status().max_running.max(1);
        for (idx, ContinuedPrompt { tokens, texts }) in prompts.into_iter().enumerate() {
            while runner.running.len() >= max_running {
                runner.finish_next().await?;
            }
            let scoring = Scoring::Continuations { texts: texts.into(), ends: ends.clone() };
            let prompt = [&beginning[..], &tokens].concat();
            let request = scoring_request(prompt, Some(scoring), caller.clone(), cache_salt.clone());
            runner.start(idx, request).await?;
        }
        while !runner.running.is_empty() {
            runner.finish_next().await?;
        }
        Ok(ContinuationScores {
            logprobs: runner.logprobs,
            n_tokens,
            n_cached: runner.n_cached.unwrap_or_default(),
        })
    }
}

impl PromptRunner<'_> {
    /// Submits a prompt. A queue may be full of this request's own prompts, so it waits for a place.
    async fn start(&mut self, idx: usize, request: GenerationRequest) -> Result<()> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            let submit = |slot| self.model.engine.submit(vec![slot], request.clone());
            match self.model.engine.admit().and_then(submit) {
                Ok(generations) => {
                    self.running.extend(generations.into_iter().map(|generation| (idx, generation)));
                    return Ok(());
                }
                Err(e) if !matches!(e.kind(), Kind::Overloaded { .. }) || Instant::now() > deadline => {
                    return Err(e);
                }
                Err(_) if self.running.is_empty() => sleep(RETRY_INTERVAL).await,
                Err(_) => self.finish_next().await?,
            }
        }
    }

    /// Waits until one of the prompts is finished.
    async fn finish_next(&mut self) -> Result<()> {
        loop {
            let next = poll_fn(|context| {
                let mut polled = self.running.iter_mut().enumerate();
                let ready =
                    polled.find_map(|(place, (idx, generation))| match generation.poll_next(context) {
                        Poll::Ready(event) => Some((place, *idx, event)),
                        Poll::Pending => None,
                    });
                ready.map_or(Poll::Pending, Poll::Ready)
            });
            match next.await {
                (_, idx, Some(Event::ContinuationScores(scores))) => self.logprobs[idx] = scores,
                (place, _, Some(Event::Finished(finished))) => {
                    self.n_cached.get_or_insert(finished.cached_tokens);
                    self.running.swap_remove(place);
                    return Ok(());
                }
                (_, _, Some(Event::Failed(e))) => return Err(e),
                (_, _, Some(_)) => {}
                (_, _, None) => {
                    return Err(Error::internal("the engine stopped before a prompt was scored"));
                }
            }
        }
    }
}
