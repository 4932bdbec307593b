//! Log probabilities of given tokens, by an engine with a tiny model, alone, in a batch, in chunks and after the prefix
//! cache, against the logits that `transformers` computed.

use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{join_all, poll_fn};
use predict_otron_9000::inference::{
    Caller, Engine, EngineOptions, Event, Generation, GenerationRequest, PromptScores, SamplingParams,
    Scoring,
};
use predict_otron_9000::kernels::attention::kv_block::KvFormat;
use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use predict_otron_9000::models::{Backend, ModelConfig};
use predict_otron_9000::tokenizer::Tokenizer;

use crate::support::ENGINE_OPTIONS;
use crate::support::reference::{self, DecoderReference};

const FOLDER: &str = "tests/data/tiny/llama";

fn engine(options: EngineOptions) -> Engine {
    let folder = Path::new(FOLDER);
    let config = ModelConfig::from_json(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let weights = SafetensorsFiles::open(&folder.join("model.safetensors")).unwrap();
    let model =
        CausalLm::load(config, &Weights::Safetensors(weights), Backend::Kernels(Isa::current())).unwrap();
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    let options = EngineOptions { kv_format: KvFormat::F32, ..options };
    Engine::spawn(Box::new(model), Arc::new(tokenizer), options).unwrap()
}

/// A request that computes `prompt` and scores what `scoring` says.
fn request(prompt: &[u32], scoring: Scoring) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        prediction: Vec::new(),
        max_tokens: 0,
        min_tokens: 0,
        sampling: SamplingParams::default(),
        constraint: None,
        thought_budget: None,
        stop: Vec::new(),
        is_continuation: true,
        stop_tokens: Vec::new(),
        visible_tokens: Vec::new(),
        ignore_eos: false,
        top_logprobs: None,
        is_end_reported: false,
        scoring: Some(scoring),
        caller: Caller::default(),
        cache_salt: None,
    }
}

/// All events of a request.
async fn events(engine: &Engine, request: GenerationRequest) -> Vec<Event> {
    let mut generations = engine.submit(vec![engine.admit().unwrap()], request).unwrap();
    let generation: &mut Generation = &mut generations[0];
    let mut events = Vec::new();
    while let Some(event) = poll_fn(|context| generation.poll_next(context)).await {
        events.push(event);
    }
    events
}

async fn prompt_scores(engine: &Engine, prompt: &[u32]) -> (PromptScores, usize) {
    let found = events(engine, request(prompt, Scoring::Prompt { n_top: 3 })).await;
    match &found[..] {
        [Event::PromptScores(scores), Event::Finished(finished)] => {
            assert_eq!((finished.prompt_tokens, finished.completion_tokens), (prompt.len(), 0));
            (scores.clone(), finished.cached_tokens)
        }
        other => panic!("{other:?}"),
    }
}

async fn continuation_scores(engine: &Engine, prompt: &[u32], texts: &[&[u32]], ends: &[u32]) -> Vec<f64> {
    let texts = texts.iter().map(|text| text.to_vec()).collect();
    let scoring = Scoring::Continuations { texts, ends: ends.into() };
    let found = events(engine, request(prompt, scoring)).await;
    match &found[..] {
        [Event::ContinuationScores(scores), Event::Finished(_)] => scores.clone(),
        other => panic!("{other:?}"),
    }
}

fn reference() -> DecoderReference {
    reference::read(Path::new(FOLDER))
}

/// The log probability of `token` by a row of logits.
fn logprob(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    f64::from(logits[token as usize]) - sum.ln()
}

#[tokio::test]
async fn prompt_scores_agree_with_transformers() {
    let engine = engine(ENGINE_OPTIONS);
    let DecoderReference { input_ids, last_logits, .. } = reference();
    let (scores, _) = prompt_scores(&engine, &input_ids).await;
    assert_eq!((scores.first, scores.rest.len()), (input_ids[0], input_ids.len() - 1));
    // The last row is for the token after the prompt.
    let first = input_ids.len() - last_logits.len();
    for (position, logits) in (first..input_ids.len() - 1).zip(&last_logits) {
        let score = &scores.rest[position];
        let target = input_ids[position + 1];
        assert_eq!(score.token.id, target);
        let expected = logprob(logits, target);
        assert!((f64::from(score.token.logprob) - expected).abs() < 1e-3, "{score:?} is not {expected}");
        let n_larger = logits.iter().filter(|logit| **logit > logits[target as usize]).count();
        assert!(score.token.rank.abs_diff(n_larger + 1) <= 1, "{score:?}");
        assert_eq!(score.top.iter().map(|top| top.rank).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(score.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!((f64::from(score.top[0].logprob) - logprob(logits, score.top[0].id)).abs() < 1e-3);
    }
}

#[tokio::test]
async fn prompt_scores_are_the_same_alone_in_a_batch_in_chunks_and_after_the_prefix_cache() {
    let prompt = reference().input_ids;
    let whole = engine(ENGINE_OPTIONS);
    let (expected, n_cached) = prompt_scores(&whole, &prompt).await;
    assert_eq!(n_cached, 0);
    let (again, n_cached) = prompt_scores(&whole, &prompt).await;
    assert_eq!((again, n_cached), (expected.clone(), 0), "every row is computed");
    for prefill_chunk_tokens in [5, 16, 33] {
        let chunked = engine(EngineOptions { prefill_chunk_tokens, ..ENGINE_OPTIONS });
        let others = (0..3).map(|n| prompt[n..].to_vec()).collect::<Vec<_>>();
        let batch = others.iter().map(|prompt| prompt_scores(&chunked, prompt));
        let mut batch = join_all(batch).await;
        assert_eq!(batch.swap_remove(0).0, expected, "in chunks of {prefill_chunk_tokens}");
    }
}

#[tokio::test]
async fn continuation_scores_are_those_of_a_prompt_that_has_them() {
    let engine = engine(ENGINE_OPTIONS);
    let ids = reference().input_ids;
    let (prompt, rest) = ids.split_at(ids.len() - 9);
    let texts: [&[u32]; 4] = [&rest[..1], &rest[..4], &[3, 4, 5], &rest[..7]];
    let ends = [257, 10];
    let found = continuation_scores(&engine, prompt, &texts, &ends).await;
    for (text, found) in texts.iter().zip(&found) {
        let mut expected = 0.0;
        let mut p_end = 0.0;
        for end in ends {
            let whole = [prompt, text, &[end]].concat();
            let (scores, _) = prompt_scores(&engine, &whole).await;
            let tail = &scores.rest[prompt.len() - 1..];
            let (last, before) = tail.split_last().unwrap();
            expected = before.iter().map(|score| f64::from(score.token.logprob)).sum();
            p_end += f64::from(last.token.logprob).exp();
        }
        assert!((found - (expected + p_end.ln())).abs() < 1e-5, "{text:?}: {found}");
    }
    // Alone, and beside others.
    for (text, expected) in texts.iter().zip(&found) {
        assert_eq!(continuation_scores(&engine, prompt, &[text], &ends).await, [*expected]);
    }
    let batch = (0..4).map(|_| continuation_scores(&engine, prompt, &texts, &ends));
    assert!(join_all(batch).await.iter().all(|scores| *scores == found));
}

#[tokio::test]
async fn a_prompt_can_be_computed_without_a_score_or_a_token() {
    let engine = engine(ENGINE_OPTIONS);
    let prompt = &reference().input_ids[..40];
    let plain = GenerationRequest { scoring: None, ..request(prompt, Scoring::Prompt { n_top: 0 }) };
    for n_cached in [0, 32] {
        let found = events(&engine, plain.clone()).await;
        let [Event::Finished(finished)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((finished.completion_tokens, finished.cached_tokens), (0, n_cached));
    }
    let (scores, _) = prompt_scores(&engine, &prompt[..1]).await;
    assert!(scores.rest.is_empty());
}

#[tokio::test]
async fn a_dropped_scoring_request_is_cancelled() {
    let engine = engine(ENGINE_OPTIONS);
    let prompt = reference().input_ids;
    for _ in 0..8 {
        let mut generations = engine
            .submit(vec![engine.admit().unwrap()], request(&prompt, Scoring::Prompt { n_top: 0 }))
            .unwrap();
        let _ = poll_fn(|context| Poll::Ready(generations[0].poll_next(context))).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(engine.status().load.n_running, 0);
    let (scores, _) = prompt_scores(&engine, &prompt).await;
    assert_eq!(scores.rest.len(), prompt.len() - 1);
}

#[test]
fn impossible_continuations_are_refused() {
    let engine = engine(ENGINE_OPTIONS);
    for (texts, words) in
        [(vec![vec![]], "no tokens"), (vec![vec![1; 129]], "128"), (vec![vec![1; 60]], "512")]
    {
        let scoring = Scoring::Continuations { texts: texts.into(), ends: [1].into() };
        let request = request(&[1; 500], scoring);
        let error = engine.submit(vec![engine.admit().unwrap()], request).err().unwrap();
        assert!(error.to_string().contains(words), "{error}");
    }
}
